# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that the storage itself keeps: one in each volume of a VM, which together are one snapshot of the VM.

Each volume carries a mark for each, so that they are ours on whichever node the VM is, also when its definition was
lost. libvirt knows nothing of them, so a VM with such snapshots is migrated like any other.
"""

from __future__ import annotations

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Callable
from xml.etree.ElementTree import Element

from .._errors import Failed, Refused
from .._xml import devices, find, target_of, text_of
from . import rbd
from .facts import Snapshot
from .record import Note
from .storage import Extent, Look, Part, Storage, Volume

STORAGES = (rbd.STORAGE,)
KINDS = tuple(one.kind for one in STORAGES)
# A snapshot whose mark has no id yet is that of a run that was killed, if it was made within so many seconds of the
# mark: one of that name that was there before is refused.
WINDOW = 120
# How much is read again to see that a volume was set back: of so many places so many bytes.
PLACES, LENGTH = 32, 65536


@dataclass(frozen=True)
class Mark:
    """What is noted of one volume's part: of which VM and run, when that began (s), and the storage's id of it.

    `volumes` are all that have a part; `off`: the VM was off.
    """

    vm: str
    run: str
    begun: float
    id: str = ""
    volumes: tuple[str, ...] = ()
    off: bool = False
    note: Note = field(default_factory=Note)

    @property
    def text(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self))

    def is_of(self, part: Part) -> bool:
        """Whether a snapshot of its name is the one that it is about."""
        return part.id == self.id if self.id else part.time - self.begun <= WINDOW


def read_mark(text: str) -> Mark | None:
    """A mark; None for what is none."""
    try:
        said = json.loads(text)
        note = Note(**{**said["note"], "tags": tuple(said["note"]["tags"])})
        return Mark(**{**said, "note": note, "volumes": tuple(said["volumes"]), "begun": float(said["begun"])})
    except (ValueError, TypeError, KeyError):
        return None


class Handles:
    """Volumes, each opened once and for as long as `stack`: a connection takes longer than what is asked on it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.known: dict[str, Volume] = {}

    def of(self, storage: Storage, disk: Element) -> Volume:
        """The volume of a disk."""
        source = find(disk, "source")
        key = f"{storage.kind} {'' if source is None else text_of(source)}"
        if key not in self.known:
            self.known[key] = self.stack.enter_context(storage.opened(disk))
        return self.known[key]


class Volumes:
    """The volumes of one VM (`root`: its XML), by the names of its disks. `kind` is empty where they keep none."""

    def __init__(self, root: Element, uuid: str, handles: Handles) -> None:
        self.uuid, self.handles = uuid, handles
        disks = [disk for disk in devices(root, "disk") if _is_written(disk)]
        known = [one for one in STORAGES if any(map(one.recognises, disks))]
        self.storage = known[0] if known else None
        self.kind = self.storage.kind if self.storage else ""
        ours = [disk for disk in disks if self.storage and self.storage.recognises(disk)]
        self.disks = {target_of(disk): disk for disk in ours}
        self.names: dict[str, str] = {}
        self.looks: dict[str, Look] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.notes: dict[str, Note] = {}
        self.taken: dict[tuple[str, str], str] = {}

    @property
    def opened(self) -> dict[str, Volume]:
        """All volumes, by disk."""
        return {name: self.handles.of(self.storage, disk) for name, disk in self.disks.items() if self.storage}

    def _each(self, call: Callable[[str, Volume], object], *names: str) -> None:
        """Call it for these disks at the same time. Raises what the first one raised, when all have ended."""
        volumes = self.opened
        with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
            for done in [pool.submit(call, name, volumes[name]) for name in names]:
                done.result()

    def read(self) -> Volumes:
        """Ask the storage."""
        volumes = self.opened
        self.names = {disk: one.name for disk, one in volumes.items()}
        self.looks = {disk: one.look() for disk, one in volumes.items()}
        names = {part.name for look in self.looks.values() for part in look.parts}
        self.snapshots = {name: self._snapshot(name) for name in names}
        ours = {name: list(self.ours(name).values()) for name in names}
        self.notes = {name: _note(marks) for name, marks in ours.items() if marks}
        return self

    def parts(self, name: str) -> dict[str, Part]:
        """By disk, also what others made."""
        found = {disk: [one for one in look.parts if one.name == name] for disk, look in self.looks.items()}
        return {disk: parts[0] for disk, parts in found.items() if parts}

    def ours(self, name: str) -> dict[str, Mark]:
        """The marks of the parts that are ours, by disk."""
        marks = {disk: read_mark(self.looks[disk].marks.get(name, "")) for disk in self.looks}
        parts = self.parts(name)
        return {
            disk: mark
            for disk, mark in marks.items()
            if mark and mark.vm == self.uuid and disk in parts and self._is_of(mark, disk, parts[disk])
        }

    def _is_of(self, mark: Mark, disk: str, part: Part) -> bool:
        return mark.is_of(part) or self.taken.get((disk, part.name)) == part.id

    def _snapshot(self, name: str) -> Snapshot:
        ours, parts = self.ours(name), self.parts(name)
        moment = min(part.time for disk, part in parts.items() if disk in ours or not ours)
        off = any(mark.off for mark in ours.values())
        text = next((mark.note.description for mark in ours.values()), "")
        state = "shutoff" if off else "disk-snapshot"
        return Snapshot(name, text, int(moment), state, self.kind, False, None, None, False, {}, Element("domain"))

    def is_torn(self, name: str) -> bool:
        """Whether it is what a run left that was killed while it made it."""
        return name in self.notes and not self.notes[name].made

    def lacks(self, name: str) -> str:
        """Why it is not a snapshot of the whole VM as that is now; nothing when it is, as far as it tells."""
        ours = self.ours(name)
        there = ours or self.parts(name)
        if self.is_torn(name):
            return "the run that made it was interrupted"
        without = [f"{disk} ({self.names[disk]})" for disk in self.disks if disk not in there]
        if without:
            return f"{' and '.join(without)} has no part in it"
        gone = sorted({one for mark in ours.values() for one in mark.volumes} - set(self.names.values()))
        if gone:
            return f"{', '.join(gone)} has a part in it and is no disk of the VM now"
        return "" if len({mark.run for mark in ours.values()}) < 2 else "its parts are of different moments"

    # ---- what is done

    def begin(self, name: str, note: Note, off: bool) -> None:
        """Mark all volumes before; what a run left that was killed goes first. Raises Refused for one of others."""
        self.drop(name)
        here = [disk for disk in self.parts(name) if disk not in self.ours(name)]
        if here:
            raise Refused(f"{self.names[here[0]]} has a snapshot {name} already, which is not ours; take another name")
        mark = Mark(self.uuid, secrets.token_hex(8), time.time(), "", tuple(sorted(self.names.values())), off, note)
        self._each(lambda _disk, volume: volume.mark(name, mark.text), *self.disks)

    def take(self, name: str) -> None:
        """Make all parts at once."""

        def make(disk: str, volume: Volume) -> None:
            self.taken[disk, name] = volume.take(name)

        self._each(make, *self.disks)

    def note(self, name: str, note: Note) -> None:
        """Write the note to all parts that are ours, with the storage's id. Raises Failed where one is missing."""
        self.read()
        parts, ours = self.parts(name), self.ours(name)
        if note.made and (without := [self.names[disk] for disk in self.disks if disk not in ours]):
            raise Failed(f"{' and '.join(without)} has no snapshot {name}")

        def write(disk: str, volume: Volume) -> None:
            volume.mark(name, replace(ours[disk], id=parts[disk].id, note=note).text)

        self._each(write, *ours)
        self.notes[name] = note

    def drop(self, name: str) -> None:
        """Remove what is ours of it, the mark last."""
        ours = self.ours(name)

        def remove(_disk: str, volume: Volume) -> None:
            volume.drop(name)
            volume.mark(name, None)

        self._each(remove, *ours)
        if ours:
            self.read()

    def check_drop(self, name: str) -> None:
        """Raise Refused for one that may be the ground of other volumes."""
        for disk in self.ours(name):
            if self.parts(name)[disk].protected:
                raise Refused(f"{self.names[disk]}@{name} is protected, so there may be clones of it; unprotect it")

    def users(self) -> dict[str, list[str]]:
        """Who has the volumes open, by their names; those that nobody has are left out."""
        found = {one.name: list(one.look().users) for one in self.opened.values()}
        return {name: users for name, users in found.items() if users}

    def check_free(self) -> None:
        """Raise Refused when somebody has one open."""
        for volume, users in self.users().items():
            if self.storage:
                raise Refused(self.storage.in_use(volume, users), users=users)

    def written(self, name: str) -> dict[str, list[Extent]]:
        """What each volume was written since, by disk."""
        return {disk: one.written(name) for disk, one in self.opened.items()}

    def lost(self, name: str) -> int:
        """The bytes that were written since."""
        return sum(one.length for extents in self.written(name).values() for one in extents if one.there)

    def roll_back(self, name: str) -> None:
        """Set all volumes back, and read again what had changed. Raises Failed when one does not hold what it held."""
        self.check_free()
        changed = self.written(name)

        def back(disk: str, volume: Volume) -> None:
            volume.roll_back(name)
            places = [(one.offset, min(one.length, LENGTH)) for one in changed[disk][:PLACES]]
            if not volume.is_like(name, places):
                raise Failed(f"{volume.name} is not what it was in {name}")

        self._each(back, *self.disks)

    def held(self) -> dict[str, int | None]:
        """The bytes of each snapshot in all volumes together; None where one can't tell."""
        found = [one.held(self.looks[disk].parts) for disk, one in self.opened.items()]
        return {name: _sum([one[name] for one in found if name in one]) for name in self.snapshots}

    def places(self, name: str) -> list[str]:
        """Volume and snapshot as the storage's own tools call them."""
        return sorted(f"{self.names[disk]}@{name}" for disk in self.parts(name))


def _is_written(disk: Element) -> bool:
    return disk.get("device", "disk") == "disk" and find(disk, "readonly") is None


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _note(marks: list[Mark]) -> Note:
    """Of all parts; it is made where all are."""
    return replace(marks[0].note, made=all(mark.note.made for mark in marks))
