# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running VM's disk that shall lie in another file: what is to do about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from .._errors import Invalid, Refused
from .._fields import size_text
from .._xml import Property, devices, find, text_of
from .facts import disk_identity


class Disk(NamedTuple):
    """One disk as it runs: `copy` is the file that it is being copied to, `ready` whether that has caught up."""

    target: str
    identity: str | None
    format: str
    copy: str | None
    ready: bool
    defined: str | None

    @property
    def name(self) -> str:
        """Its storage, for people."""
        return str(self.identity).partition(":")[2]


class Place(NamedTuple):
    """The file that a disk shall lie in: whether it is there (`exists`), whether that is a copy of ours which was not
    finished (`unfinished`), and how many bytes are `free` beside it."""

    path: str
    format: str
    exists: bool
    unfinished: bool
    free: int


def disks(live: Element, definition: Element) -> dict[str, Disk]:
    """The disks of a running VM by target."""
    defined = {Property("target/@dev").get(disk): disk_identity(disk)[1] for disk in devices(definition, "disk")}
    found = {}
    for disk in devices(live, "disk"):
        target, mirror = str(Property("target/@dev").get(disk)), find(disk, "mirror")
        copy = None if mirror is None else mirror.get("file") or Property("source/@file").get(mirror)
        found[target] = Disk(
            target,
            disk_identity(disk)[1],
            Property("driver/@type").get(disk) or "raw",
            None if mirror is None else copy or "",
            mirror is not None and mirror.get("ready") == "yes",
            defined.get(target),
        )
    return found


def verbs(disk: Disk, place: Place, size: int) -> list[str]:
    """What leads the disk to its place: some of abort, clear, copy, pivot in this order, or finish. `size` in bytes.

    Raises Refused and Invalid.
    """
    there = f"file:{place.path}"
    if disk.identity == there:
        if disk.format != place.format:
            raise Invalid(f"{disk.target} is {place.path} already, as {disk.format}; another format needs another path")
        return [] if disk.copy is None and not place.unfinished else ["finish" if disk.copy is None else "abort"]
    if disk.copy == place.path:
        return ["copy", "pivot"]
    found = [] if disk.copy is None else ["abort"]
    if place.exists and not place.unfinished:
        raise Refused(f"{place.path} is there already; look whose it is, or choose another path")
    found += ["clear"] if place.unfinished else []
    if place.free < space(size):
        needs = f"{size_text(size)} and 5 % more"
        raise Refused(
            f"{disk.target} does not fit: {place.path} has {place.free >> 20} MiB free beside it and needs {needs}; "
            f"{disk.name} counts until the copy is done"
        )
    return [*found, "copy", "pivot"]


def space(size: int) -> int:
    """The bytes that a copy of this size may take, with what a format adds."""
    return size * 105 // 100


def check_options(options: Mapping[str, Any], known: Mapping[str, Disk], name: str) -> Disk:
    """The disk that is meant. Raises Invalid and Refused."""
    disk = known.get(options["target"])
    if disk is None:
        raise Invalid(f"{name} has no disk {options['target']}; it has {', '.join(sorted(known)) or 'none'}")
    if disk.identity is None:
        raise Refused(f"{disk.target} of {name} is an empty drive")
    if disk.defined != disk.identity:
        raise Refused(
            f"{disk.target} of {name} runs on {disk.identity} and is defined as {disk.defined}: power it off and on"
        )
    return disk


def disk_xml(place: Place) -> str:
    """The copy as libvirt's block copy wants it."""
    disk = Element("disk", {"type": "file"})
    SubElement(disk, "source", {"file": place.path})
    SubElement(disk, "driver", {"type": place.format})
    return text_of(disk)
