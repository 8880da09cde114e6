# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to do with the volumes behind a VM's disks: make, grow, remove. Looks at them, changes nothing.

`kinds` are the kinds of storage by name; `capacity` tells how big a running VM's QEMU takes a disk for, in bytes, by
its target, and None for a disk that no QEMU has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple

from .._errors import Invalid, Refused
from .._fields import size_text
from .kind import Kind, Options, Store, Volume

Kinds = Mapping[str, Kind]
Capacity = Callable[[str], "int | None"]
# What makes volumes of another kind may round them up to whole extents of LVM.
EXTENT = 4 * 2**20


class Change(NamedTuple):
    """A volume to `create` or to `grow`, or a running VM's disk to `resize`; `size` in bytes."""

    verb: str
    kind: Kind
    disk: Options
    size: int | None

    @property
    def name(self) -> str:
        """The volume, for people."""
        return self.kind.volume_name(self.disk)

    @property
    def words(self) -> str:
        """The change in words."""
        size = "the size of its source" if self.size is None else size_text(self.size)
        if self.verb == "resize":
            return f"grow {self.disk['target']} as it runs to {size}"
        source, kind, clone = (self.disk.get(name) for name in ("source", "source_format", "clone"))
        origin = f", a {clone} clone of {source}" if source and clone else ""
        origin = f", a copy of {source}, which is {kind}" if kind else origin
        return f"{self.verb} {self.name} ({self.disk['format']}, {size}{origin if self.verb == 'create' else ''})"

    def apply(self, uuid: str, resize: Callable[[str, int], None]) -> bool:
        """Do it, with `resize` for a running VM's disk; False when a new volume could not be marked."""
        store = self.kind.store
        if self.verb == "create" and store:
            return store.create(self.disk, self.size, uuid)
        if self.verb == "grow" and store and self.size:
            store.grow(self.disk, self.size)
        elif self.size:
            resize(self.disk["target"], self.size)
        return True


def measure(kinds: Kinds, disks: Iterable[Options], capacity: Capacity) -> None:
    """Write the size of each disk, in bytes, and what it is based on into its options; None where nobody can tell."""
    for disk in disks:
        store = kinds[disk["type"]].store
        volume = store.inspect(disk) if store else None
        disk["backing"] = volume.backing if volume else None
        disk["size"] = volume.size if volume else None if store else capacity(disk["target"])


def plan(
    kinds: Kinds,
    disks: Iterable[Options],
    declared: Mapping[str, Mapping[str, Any]],
    present: set[str],
    uuid: str,
    capacity: Capacity,
) -> list[Change]:
    """The changes that give each disk its declared size (`declared` by target), which is written into its options.

    `present` are the targets that the VM already has. Raises Invalid and Refused.
    """
    changes = []
    for disk in disks:
        kind, given = kinds[disk["type"]], declared.get(disk["target"], {})
        wanted = given.get("size")
        seen = capacity(disk["target"]) if wanted else None
        if kind.store is None:
            changes += _told(kind, disk, wanted, seen)
        elif kind.identity(disk):
            source = {name: given.get(name) for name in ("source", "source_format", "checksum", "clone")}
            wanted = kind.store.rounded(disk, wanted) if wanted else wanted
            volume, disk["size"] = _checked(kind, {**disk, **source}, disk["target"] in present, wanted, uuid)
            changes += _changes(kind, {**disk, **source}, volume, seen)
            disk["backing"] = _backing(volume, source)
    return changes


def _told(kind: Kind, disk: Options, wanted: int | None, seen: int | None) -> list[Change]:
    """A running VM learns how big the volume has become that another module grew."""
    if not wanted or seen is None:
        return []
    if seen - wanted >= EXTENT:
        raise Refused(_cut(f"{disk['target']}, {kind.identity(disk)},", seen, wanted))
    disk["size"] = max(seen, wanted)
    return [Change("resize", kind, disk, wanted)] if wanted > seen else []


def _cut(name: str, size: int, wanted: int) -> str:
    has = size_text(size)
    return f"{name} has {has}; to make it smaller ({size_text(wanted)}) would cut off what is in it: write size: {has}"


def _backing(volume: Volume | None, source: Options) -> str | None:
    """What a disk will be based on: the template of a linked clone, until it is wanted to be a copy of its own."""
    if source["clone"] == "full":
        return None
    linked = source["clone"] and source["source"]
    return volume.backing if volume else os.path.realpath(linked) if linked else None


def _changes(kind: Kind, disk: Options, volume: Volume | None, seen: int | None) -> list[Change]:
    size = disk["size"]
    if volume is None:
        return [Change("create", kind, disk, size)]
    verbs = []
    if size and volume.size < size and (seen is None or (kind.store and kind.store.grows_open)):
        if kind.store:
            kind.store.check_grow(disk, size)
        verbs.append("grow")
    if size and seen is not None and seen < size:
        verbs.append("resize")
    return [Change(verb, kind, disk, size) for verb in verbs]


def _checked(
    kind: Kind, disk: Options, present: bool, wanted: int | None, uuid: str
) -> tuple[Volume | None, int | None]:
    """The volume that may become or stay the VM's disk, None where a new one can be made; and its size then."""
    volume = kind.store.inspect(disk) if kind.store else None
    if volume is None:
        return None, _check_new(kind, disk, present, wanted)
    if volume.template and disk["device"] == "disk" and not disk["readonly"]:
        raise Refused(f"{volume.name} is a template, which no VM may write to; name it as the source of a disk")
    if not present and volume.backing and not (volume.clone and volume.mark == uuid):
        raise Refused(f"{volume.name} is based on {volume.backing}; such a file can't be added to a VM yet")
    if not present and volume.mark not in (None, uuid):
        raise Refused(f"{volume.name} was made for another VM, with the UUID {volume.mark}")
    if wanted is not None and wanted < volume.size:
        raise Refused(_cut(volume.name, volume.size, wanted))
    return volume, volume.size if wanted is None else wanted


def _check_new(kind: Kind, disk: Options, present: bool, wanted: int | None) -> int | None:
    name = kind.volume_name(disk)
    if present:
        raise Refused(f"{name}, disk {disk['target']}, is missing; is the storage there on which it lies?")
    if disk["device"] == "cdrom":
        raise Invalid(f"{name} does not exist; a cdrom needs an image")
    told = kind.store.check_new({**disk, "size": wanted}) if kind.store else None
    if wanted is None and not disk["source"]:
        raise Invalid(f"{name} does not exist, and without size it can't be made", option="disks")
    return told if wanted is None else wanted


def removable(
    kinds: Kinds, vm: str, uuid: str, disks: Iterable[Options], others: Mapping[str, list[dict[str, Any]]]
) -> list[tuple[Store, Volume]]:
    """The volumes that we made for this VM, each with its store.

    Raises Refused when one of the `others` (surveys by node) has one.
    """
    known = list(disks)
    found: list[tuple[Store, Volume]] = []
    for kind in kinds.values():
        if kind.store:
            own = [disk for disk in known if disk["type"] == kind.name and disk.get("device") != "cdrom"]
            for volume in kind.store.marked(vm, uuid, own):
                _check_unused(kind, volume, others)
                found.append((kind.store, volume))
    return found


def _check_unused(kind: Kind, volume: Volume, others: Mapping[str, list[dict[str, Any]]]) -> None:
    if kind.store and (based := kind.store.based(volume.identity)):
        raise Refused(f"{volume.name} is what {', '.join(based)} is based on; it is not removed", based=based)
    for node, domains in others.items():
        for other in domains:
            held = [str(name) for _kind, name in other["claims"] if name.startswith(f"{kind.name}:")]
            if kind.store and volume.identity in map(kind.store.canonical, held):
                raise Refused(f"{volume.name} is also a disk of {other['name']} on {node}; it is not removed")
