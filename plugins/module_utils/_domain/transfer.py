# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running VM's disk that shall lie elsewhere: what is to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from .._disks.kind import Options
from .._disks.landing import Place
from .._errors import Invalid, Refused
from .._fields import size_text
from .._identity import target_number
from .._xml import Property, devices, find, target_of
from . import disks as sheet
from .facts import disk_identity

# QEMU itself makes these bigger as their VM runs.
GROWING = ("file", "rbd")


class Disk(NamedTuple):
    """One disk as it runs: `copy` is what it is being copied to, `ready` whether that has caught up.

    `options` and `copied` are those of module vm for both; None for a kind of storage that it does not know.
    """

    target: str
    identity: str | None
    format: str
    copy: str | None
    ready: bool
    defined: str | None
    options: Options | None = None
    copied: Options | None = None

    @property
    def name(self) -> str:
        """Its storage, for people."""
        return str(self.identity).partition(":")[2]


def disks(live: Element, definition: Element) -> dict[str, Disk]:
    """The disks of a running VM by target."""
    defined = {target_of(disk): disk_identity(disk)[1] for disk in devices(definition, "disk")}
    found = {}
    for disk in devices(live, "disk"):
        target, mirror = target_of(disk), find(disk, "mirror")
        copy = None if mirror is None else _as_disk(mirror)
        found[target] = Disk(
            target,
            disk_identity(disk)[1],
            Property("driver/@type").get(disk) or "raw",
            None if copy is None else disk_identity(copy)[1] or "",
            mirror is not None and mirror.get("ready") == "yes",
            defined.get(target),
            sheet.read(disk),
            None if copy is None else sheet.read(copy),
        )
    return found


def _as_disk(mirror: Element) -> Element:
    disk, source = Element("disk", {"type": mirror.get("type", "file")}), find(mirror, "source")
    SubElement(disk, "driver", {"type": Property("format/@type").get(mirror) or "raw"})
    if source is not None:
        disk.append(source)
    return disk


def filled(options: Mapping[str, Any], disk: Disk, vm: str) -> Options:
    """The options of where the disk shall lie, completed as module vm completes those of a new disk. Raises Invalid."""
    kind = sheet.KINDS[options["type"]]
    # The format of a file that is not named otherwise; other kinds are raw.
    given = {**options, "format": options["format"] or (disk.format if kind.name == "file" else None)}
    found = kind.fill(given, vm, target_number(disk.target))
    missing = [name for name in kind.needs if options.get(name) is None and name != "format"]
    complaint = f"{missing[0]} is missing" if missing else kind.complaint(found)
    if complaint:
        raise Invalid(f"{disk.target}: {complaint}", option="disks")
    if bool(found.get("user")) != bool(found.get("secret")):
        raise Invalid(f"{disk.target}: user and secret go together", option="disks")
    return found


def verbs(disk: Disk, place: Place, size: int, overwrite: bool = False) -> list[str]:
    """What leads the disk to its place: some of abort, clear, grow, copy, pivot in this order, or finish.

    `size` is the disk's, in bytes. Raises Refused and Invalid.
    """
    if disk.identity == place.identity:
        if disk.format != place.format:
            raise Invalid(f"{disk.target} is {place.name} already, as {disk.format}; another format needs another path")
        return [] if disk.copy is None and not place.unfinished else ["finish" if disk.copy is None else "abort"]
    if disk.copy == place.identity:
        return ["copy", "pivot"]
    found = [] if disk.copy is None else ["abort"]
    if place.size is not None:
        return [*found, *_onto_volume(disk, place, size, overwrite), "copy", "pivot"]
    if place.exists and not place.unfinished:
        raise Refused(f"{place.name} is there already; look whose it is, or choose another one")
    found += ["clear"] if place.unfinished else []
    if place.free is not None and place.free < space(size):
        needs = f"{size_text(size)} and 5 % more"
        raise Refused(
            f"{disk.target} does not fit: {place.name} has {place.free >> 20} MiB free beside it and needs {needs}; "
            f"{disk.name} counts until the copy is done"
        )
    return [*found, "copy", "pivot"]


def _onto_volume(disk: Disk, place: Place, size: int, overwrite: bool) -> list[str]:
    """QEMU copies between disks of one size only."""
    has = place.size or 0
    if has < size:
        raise Refused(
            f"{disk.target} does not fit: {place.name} has {size_text(has)}, and the disk {size_text(size)}; make the "
            "volume bigger on the SAN"
        )
    if has > size and (disk.options or {}).get("type") not in GROWING:
        raise Refused(
            f"{place.name} has {size_text(has)}, and {disk.target} {size_text(size)}: only the same size can be "
            f"copied; grow {disk.name} first"
        )
    if not place.blank and not overwrite:
        raise Refused(
            f"{place.name} is not empty: there is data at its beginning. Is it the right volume? What an unfinished "
            "copy left, or nobody needs, is overwritten with overwrite=true"
        )
    return ["grow"] if has > size else []


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


def check_twins(
    places: Mapping[str, str], known: Mapping[str, Disk], name: str, names: Callable[[str], Iterable[str]]
) -> None:
    """Refuse one storage for two disks of the VM, and a disk's own by another name: it would be copied onto itself.

    `places` are the identities by target, `names` tells all names of an identity.
    """
    held = {
        target: {one for identity in (disk.identity, disk.defined) if identity for one in names(identity)}
        for target, disk in known.items()
    }
    for target, identity in places.items():
        mine = set(names(identity))
        if mine & held[target] and identity not in (known[target].identity, known[target].copy):
            raise Refused(f"{target} of {name} is {known[target].identity}, which {identity} is too, by another name")
        others = {other for other in known if mine & held[other]}
        others |= {other for other, same in places.items() if mine & set(names(same))}
        if others - {target}:
            raise Refused(f"{identity}, where {target} of {name} shall lie, is for {min(others - {target})}")
