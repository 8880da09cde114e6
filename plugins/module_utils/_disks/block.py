# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A block device of the node by a name that follows what it is: a LUN that the node logged in to, or a disk of its own.

Its volume is made and grown by another module, on the SAN. See
https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._blocks import Block, Blocks
from .._errors import Invalid, NotFound, Refused
from .._fields import Field, size_text
from .._identity import logical_of
from .._xml import Property
from .file import check_medium
from .kind import Kind, Options, Store, Volume

DEVICE = Property("source/@dev")
FIELDS = (Field("path", type="path", check=check_medium, place=DEVICE),)
# What the kernel or udev name in the order in which disks come, and links by the way to a disk or by what is on it.
UNSTABLE = re.compile(r"/dev/([^/]+|mapper/control|disk/by-(path|uuid|label|partuuid|partlabel|diskseq)/.*|block/.*)")
STABLE = ("/dev/san/", "/dev/mapper/", "/dev/disk/by-id/")


def source() -> Element:
    """The empty disk of a block device. The guest's own cache is enough; with the node's no migration would be safe."""
    disk = Element("disk", {"type": "block"})
    SubElement(disk, "driver", {"name": "qemu", "cache": "none", "discard": "unmap"})
    SubElement(disk, "source")
    return disk


def _recognises(disk: Element) -> bool:
    return disk.get("type") == "block" and logical_of(DEVICE.get(disk) or "") is None


def usual(options: Options) -> Options:
    """What a new disk has unless it is given: requests go to the kernel as they come where its cache is left out."""
    io = "native" if options.get("cache") in (None, "none", "directsync") else None
    return {**options, "format": options.get("format") or "raw", "io": options.get("io") or io}


def _fill(options: Options, _vm: str, _number: int) -> Options:
    return usual(options)


def _identity(options: Options) -> str | None:
    return f"block:{options['path']}" if options.get("path") else None


def look(path: str) -> Block | None:
    """The device behind a path; None when there is none."""
    blocks = Blocks()
    try:
        return blocks.look(blocks.resolve(path))
    except NotFound:
        return None


def is_other(path: str) -> bool:
    """Whether a device is there that is not LVM's, though its name may look so (/dev/VG/LV)."""
    found = look(path)
    return found is not None and not found.uuid.startswith("LVM-")


def stable_name(block: Block) -> str | None:
    """The best name of a device: the SAN's, the map's, or udev's by its identity."""
    names = [f"/dev/mapper/{block.map}"] if block.is_multipath else []
    names += block.links
    return next((name for start in STABLE for name in sorted(names) if name.startswith(start)), None)


def _complaint(options: Options) -> str | None:
    if options["format"] != "raw":
        return "a disk of type block has the format raw"
    if options.get("source"):
        return "source has no effect on a disk of type block; the volume is made on the SAN"
    return speaks_against(options["path"])


def speaks_against(path: str) -> str | None:
    """Why a path is no name for a device to rely on; None when it is one."""
    if not path.startswith("/dev/"):
        return f"{path} is no block device; give one by /dev/san/NAME, /dev/mapper/NAME or /dev/disk/by-id/NAME"
    if logical_of(path) and not is_other(path):
        return f"{path} is a logical volume; give it with type lvm, by vg and lv"
    if logical_of(path) or UNSTABLE.fullmatch(path):
        found = look(path)
        name = stable_name(found) if found else None
        better = f"write {name}" if name else "give it by /dev/san/NAME, /dev/mapper/NAME or /dev/disk/by-id/NAME"
        if logical_of(path):
            return f"{path} would be taken for a logical volume by its name; {better}"
        return f"{path} may be another disk after the next boot, and on another node; {better}"
    return None


def inspect(options: Options) -> Volume | None:
    """The device behind a disk; None when there is none. Raises Refused for what must not become a disk."""
    path = options.get("path")
    found = look(path) if path else None
    if found is None:
        return None
    if found.uuid.startswith("LVM-"):
        raise Refused(f"{path} is the logical volume {found.map}; give it with type lvm, by vg and lv")
    if not found.is_multipath and (above := Blocks().top(found.name)) != found.name:
        raise Refused(f"{path} is only one path to {stable_name(Blocks().look(above))}; give that")
    return Volume(f"block:{path}", found.size)


def _check_new(options: Options) -> int | None:
    path = options["path"]
    raise Invalid(
        f"{path} does not exist on this node; make the volume on the SAN (module iscsi_volume) and log in to it (role "
        "san_initiator)"
    )


def _check_grow(options: Options, size: int) -> None:
    path, found = options["path"], look(options["path"])
    has = size_text(found.size) if found else "gone"
    raise Refused(
        f"{path} has {has}, not {size_text(size)}: grow the volume on the SAN first (module iscsi_volume), and let the "
        "nodes see it (role san_initiator)"
    )


def _create(options: Options, _size: int | None, _uuid: str) -> bool:
    raise Refused(f"{options['path']} is not made from here")


def _marked(_vm: str, _uuid: str, _disks: list[Options]) -> list[Volume]:
    return []


def _remove(identity: str, _uuid: str) -> None:
    raise Refused(f"{identity} is not removed from here")


def check_free(options: dict[str, Any]) -> None:
    """Raise Refused when something on this node uses the device: a mount, LVM, another VM."""
    found = look(options["path"])
    if found is None:
        raise Refused(f"{options['path']} is not there on this node; log in to it (role san_initiator)")
    users = Blocks().users(found.name)
    if users:
        raise Refused(f"{options['path']} is in use on this node: {', '.join(users)}; stop that first", users=users)


STORE = Store(
    inspect,
    _check_new,
    _create,
    _check_grow,
    _marked,
    _remove,
    grows_open=True,
    check_free=check_free,
    check_grow=_check_grow,
)
BLOCK = Kind("block", FIELDS, ("path",), _recognises, source, _fill, _identity, _complaint, STORE)
