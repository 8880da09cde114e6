# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block devices of this node: what they are, how big the SAN says they are, and who uses them.

Reads sysfs, procfs and udev's database; starts no program, as there may be hundreds of devices. See
https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block and sd(4).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ._errors import NotFound
from ._files import raw, told

SECTOR = 512
SG_IO = 0x2285
SG_FROM_DEVICE = -3
SG_HEADER = struct.Struct("iiBBHIPPPIIiPBBBBHHiII")
SG_HEADER_BYTES = 88
READ_CAPACITY_16 = bytes([0x9E, 0x10]) + bytes(11) + bytes([32, 0, 0])
CHECK_CONDITION = 2
SCSI_MILLISECONDS = 5000
# These read the devices to keep them, not to use what is on them.
KEEPERS = ("multipathd", "(udev-worker)", "systemd-udevd", "udevd", "iscsid", "lvmlockd", "sanlock")
SAN = re.compile(r"/(session|rport-)\d")
UNIT = re.compile(r"/(session\d+)/(?:.*/)?\d+:\d+:\d+:(\d+)/block/")
GUEST = re.compile(rb"(?:^|,)guest=([^,\0]+)")


class Block(NamedTuple):
    """A block device: the kernel's `name` (sdb, dm-1), `number` (8:16), `size` in bytes, identity and links.

    `wwid` is what udev and multipathd call it (3600140...), `serial` the unit serial number; empty when unknown.
    `map` is the name of a device-mapper device, `uuid` its dm uuid.
    """

    name: str
    number: str
    size: int
    wwid: str
    serial: str
    links: tuple[str, ...]
    map: str = ""
    uuid: str = ""

    @property
    def is_multipath(self) -> bool:
        """Whether it is a map of multipathd."""
        return self.uuid.startswith("mpath-")

    @property
    def by_id(self) -> str:
        """The link that names the data, not the way to it; the device itself where udev made none."""
        order = ("/dev/disk/by-id/dm-uuid-mpath-", "/dev/disk/by-id/wwn-", "/dev/disk/by-id/scsi-", "/dev/disk/by-id/")
        found = (link for start in order for link in sorted(self.links) if link.startswith(start))
        return next(found, f"/dev/{self.name}")


class Blocks:
    """The block devices below `root`, which is a folder of files in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def look(self, name: str) -> Block:
        """One device by the kernel's name. Raises NotFound."""
        folder = self.root / "sys/class/block" / name
        number, sectors = told(folder / "dev"), told(folder / "size")
        if not number:
            raise NotFound(f"there is no block device {name}", device=name)
        known, links = self._udev(number)
        uuid = told(folder / "dm/uuid")
        wwid = uuid[len("mpath-") :] if uuid.startswith("mpath-") else known.get("ID_SERIAL", "")
        serial = known.get("SCSI_IDENT_SERIAL") or known.get("ID_SCSI_SERIAL", "")
        return Block(
            name=name,
            number=number,
            size=int(sectors or 0) * SECTOR,
            wwid=wwid or udev_wwid(told(folder / "device/wwid")),
            serial=serial or _page(folder / "device/vpd_pg80"),
            links=links,
            map=told(folder / "dm/name"),
            uuid=uuid,
        )

    def known_to_udev(self, name: str) -> bool:
        """Whether udev has looked at the device, so that its links are there."""
        return bool(self._udev(self.look(name).number)[0])

    def resolve(self, path: str) -> str:
        """The kernel's name of the device behind a path. Raises NotFound."""
        real = Path(os.path.realpath(self.root / path.lstrip("/")))
        if real.parent != Path(os.path.realpath(self.root / "dev")) or not self._exists(real.name):
            raise NotFound(f"{path} is no block device of this node", path=path)
        return real.name

    def holders(self, name: str) -> list[str]:
        """The devices that are built on this one (dm-1)."""
        return _names(self.root / "sys/class/block" / name / "holders")

    def top(self, name: str) -> str:
        """The multipath map above a path; the device itself where there is none."""
        return next((holder for holder in self.holders(name) if self.look(holder).is_multipath), name)

    def paths(self, name: str) -> list[str]:
        """The devices below a map."""
        return _names(self.root / "sys/class/block" / name / "slaves")

    def of_san(self) -> list[str]:
        """All names of the devices that come over iSCSI or Fibre Channel, and of what multipath makes of them."""
        names = _names(self.root / "sys/class/block")
        remote = {name for name in names if SAN.search(os.path.realpath(self.root / "sys/class/block" / name))}
        remote |= {above for name in remote for above in self.holders(name) if self.look(above).is_multipath}
        found = [self.look(name) for name in remote]
        return sorted({link for one in found for link in (*one.links, f"/dev/mapper/{one.map}", f"/dev/{one.name}")})

    def is_part(self, name: str) -> bool:
        """Whether it is a partition."""
        return (self.root / "sys/class/block" / name / "partition").exists()

    def units(self, name: str) -> list[str]:
        """The logical units that the device is (`IQN/LUN`), where iSCSI brought it; of a map those of its paths."""
        found = set()
        for path in [name, *self.paths(name)]:
            match = UNIT.search(os.path.realpath(self.root / "sys/class/block" / path))
            target = told(self.root / "sys/class/iscsi_session" / match[1] / "targetname") if match else ""
            found |= {f"{target}/{match[2]}"} if match and target else set()
        return sorted(found)

    def of_unit(self, unit: str) -> list[str]:
        """The devices here that are a logical unit (`IQN/LUN`), or a map of its paths."""
        return [name for name in _names(self.root / "sys/class/block") if unit in self.units(name)]

    def users(self, name: str) -> list[str]:
        """Who uses the device or what is built on it, in words; empty when nobody does."""
        tree = {one: self.look(one) for one in self._tree(name)}
        found = [words for block in tree.values() if (words := _holder(block))]
        found += self._mounted(tree)
        found += self._opened({block.number for block in tree.values()})
        if not found and self._claimed(name):
            found.append("the kernel (mounted elsewhere, swap, or another device built on it)")
        return list(dict.fromkeys(found))

    def capacity(self, name: str) -> int | None:
        """The size in bytes that the SAN tells now, which the kernel may not have heard of; None without an answer."""
        try:
            descriptor = os.open(self.root / "dev" / name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            # The first answer after a change is only that there was one.
            for _attempt in range(3):
                status, data = _read_capacity(descriptor)
                if status != CHECK_CONDITION:
                    break
        except OSError:
            return None
        finally:
            os.close(descriptor)
        last, block = struct.unpack_from(">QI", data)
        return (last + 1) * block if status == 0 and block else None

    def rescan(self, name: str) -> None:
        """Let the kernel ask the SAN for the size of one path."""
        (self.root / "sys/class/block" / name / "device/rescan").write_text("1\n", encoding="ascii")

    def _exists(self, name: str) -> bool:
        return (self.root / "sys/class/block" / name / "dev").exists()

    def _udev(self, number: str) -> tuple[dict[str, str], tuple[str, ...]]:
        properties, links = {}, []
        for line in told(self.root / "run/udev/data" / f"b{number}").splitlines():
            if line.startswith("E:"):
                key, _equals, value = line[2:].partition("=")
                properties[key] = value
            elif line.startswith("S:"):
                links.append(f"/dev/{line[2:]}")
        return properties, tuple(sorted(links))

    def _tree(self, name: str) -> Iterator[str]:
        yield name
        folder = self.root / "sys/class/block" / name
        parts = [entry for entry in _names(folder) if entry.startswith(name) and self.is_part(entry)]
        for above in [*parts, *self.holders(name)]:
            yield from self._tree(above)

    def _mounted(self, tree: dict[str, Block]) -> Iterator[str]:
        by_number = {block.number: block for block in tree.values()}
        for line in told(self.root / "proc/self/mountinfo").splitlines():
            words = line.split(" ")
            source = words[words.index("-") + 2]
            named = os.path.basename(os.path.realpath(self.root / source.lstrip("/")))
            if words[2] in by_number or (source.startswith("/dev/") and named in tree):
                yield f"the mount {words[4]}"
        for line in told(self.root / "proc/swaps").splitlines()[1:]:
            if os.path.basename(os.path.realpath(self.root / line.split()[0].lstrip("/"))) in tree:
                yield "swap"

    def _opened(self, numbers: set[str]) -> Iterator[str]:
        for folder in sorted((self.root / "proc").glob("[0-9]*")):
            comm = told(folder / "comm")
            if comm in KEEPERS:
                continue
            if any(_number(entry) in numbers for entry in _entries(folder / "fd")):
                guest = GUEST.search(raw(folder / "cmdline").replace(b"\0", b","))
                words = f"VM {guest[1].decode(errors='replace')}, " if guest else ""
                yield f"{words}process {folder.name} ({comm})"

    def _claimed(self, name: str) -> bool:
        try:
            os.close(os.open(self.root / "dev" / name, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False


def _holder(block: Block) -> str:
    """What a device on top is, in words; nothing for a map or a partition, which are only ways to others."""
    if block.uuid.startswith("LVM-"):
        return f"the logical volume {block.map}"
    if block.uuid and not block.is_multipath and not block.uuid.startswith("part"):
        return f"the mapping {block.map}"
    return f"the RAID {block.name}" if block.name.startswith("md") else ""


def _read_capacity(descriptor: int) -> tuple[int, bytes]:
    """SCSI status and answer; see https://www.kernel.org/doc/html/latest/scsi/scsi-generic.html."""
    data, command = ctypes.create_string_buffer(32), ctypes.create_string_buffer(READ_CAPACITY_16, 16)
    sense = ctypes.create_string_buffer(32)
    addresses = [ctypes.addressof(buffer) for buffer in (data, command, sense)]
    fields = [ord("S"), SG_FROM_DEVICE, 16, 32, 0, 32, *addresses, SCSI_MILLISECONDS, 0, 0, 0]
    header = bytearray(SG_HEADER.pack(*fields, *[0] * 9).ljust(SG_HEADER_BYTES, b"\0"))
    fcntl.ioctl(descriptor, SG_IO, header)
    answer = SG_HEADER.unpack_from(header)
    status, host = answer[13], answer[17]
    return (status or host), data.raw


def udev_wwid(text: str) -> str:
    """The kernel's name of a unit in udev's words, for a device that udev has not seen; empty where udev says more."""
    kind, _dot, value = text.partition(".")
    return {"naa": "3", "eui": "2"}.get(kind, "") + value if kind in ("naa", "eui") else ""


def _page(path: Path) -> str:
    return raw(path)[4:].decode("ascii", "replace").strip(" \0")


def _number(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISBLK(found.st_mode) else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder)]


def other_names(identity: str, blocks: Blocks | None = None) -> list[str]:
    """What else a disk of this identity (`block:PATH`, `lvm:VG/LV`, `iscsi:IQN/LUN@PORTAL`) is, seen from this node.

    Two names may lead to one device, and one disk may have two paths: a device is its WWID or LVM's UUIDs, and a
    logical unit of iSCSI its target and number, whatever the portal, as a target's name is its own in the whole world
    (RFC 7143, 4.2.7). Of a device that this node does not see nothing is known.
    """
    kind, _colon, place = identity.partition(":")
    if kind == "iscsi":
        return [_unit(place.rpartition("@")[0])]
    if kind not in ("block", "lvm"):
        return []
    blocks = blocks or Blocks()
    try:
        found = blocks.look(blocks.resolve(place if kind == "block" else f"/dev/{place}"))
    except NotFound:
        return []
    name = found.uuid if found.uuid and not found.is_multipath else found.wwid
    return [*([f"device:{name}"] if name else []), *map(_unit, blocks.units(found.name))]


def _unit(name: str) -> str:
    return f"unit:{name.lower()}"


def describe(block: Block) -> dict[str, Any]:
    """A device as modules return it."""
    return {"wwid": block.wwid, "serial": block.serial, "size": block.size, "path": block.by_id}
