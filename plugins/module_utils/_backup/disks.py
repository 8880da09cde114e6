# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a VM that are backed up, and how much is on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .._disks import rbd
from .._domain.facts import disk_identity
from .._libvirt import Domain, Node
from .._xml import Property, parse, target_of
from . import files, job


class Disk(NamedTuple):
    """A disk that is backed up. `path` is None where it is no file or device of this node; sizes in bytes.

    Such a disk has the size 0 while its VM is off.
    """

    target: str
    identity: str | None
    format: str
    path: str | None
    size: int
    allocation: int

    @property
    def noted(self) -> bool:
        """Whether QEMU can note in it what changes between two backups."""
        return self.format == "qcow2"

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        said = {name: getattr(self, name) for name in ("target", "identity", "format", "size")}
        return {**said, "file": files.image_name(self.target)}


def disks_of(node: Node, domain: Domain) -> tuple[list[Disk], list[str]]:
    """The disks of a VM that are backed up, and the targets of those that are not."""
    elements, spared = job.copied_disks(parse(domain.live_xml or domain.xml))
    found = []
    for element in elements:
        target, identity = target_of(element), disk_identity(element)[1]
        path = Property("source/@file").get(element) or Property("source/@dev").get(element)
        image_format = Property("driver/@type").get(element) or "raw"
        if identity and rbd.is_known(identity):
            size, used = _measured(identity)
        elif path is None and not domain.active:
            size = used = 0  # nobody here can tell
        else:
            sizes = node.block_sizes(domain.name, target)
            # Of a device libvirt knows no allocation, and of a chain only that of its top.
            alone = Property("source/@file").get(element) and not _has_base(element)
            size, used = sizes["capacity"], sizes["allocation"] if alone else None
        found.append(Disk(target, identity, image_format, path, size, min(used or size, size)))
    return found, spared


def whole(disks: Sequence[Disk]) -> str:
    """Of which disks all is copied each time, in words; nothing where there is none such."""
    found = [f"{disk.target} ({disk.format})" for disk in disks if not disk.noted]
    return f"all of {', '.join(found)}, where QEMU can't note what changes" if found else ""


def _has_base(disk: Element) -> bool:
    return any(len(one) for one in disk.iter("backingStore"))


def _measured(identity: str) -> tuple[int, int | None]:
    with rbd.named(identity) as (images, image):
        return int(images.look(image, "")["size"]), images.used(image, None, None, parents=True)
