# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot goes: what it holds for others is merged, as the VM runs. libvirt does it, whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

from .._errors import DroverError, Failed, Refused
from .._resource import Step
from . import choose
from .machine import Machine

SECONDS_PER_GIB = 150
LEAST_SECONDS = 120
# How often it is said how far a merge is. A shorter one is waited for without a look.
LOOK_SECONDS = 1.0
# libvirt 11.3 compares all disks before it deletes an internal snapshot, also the media that are not in it.
OTHER_MEDIUM = "is not the same as disk image currently used by VM"


def order(machine: Machine, names: Collection[str]) -> list[str]:
    """In which order they go: the oldest first, so that a run that is cut off leaves the newest, and each merge is of
    what one of them holds. An external one on which several branches stand goes after those.

    Raises Refused, before anything is changed, where such branches stay: it holds what all of them need.
    """
    there = machine.snapshots
    parents = {one.name: one.parent for one in there.values()}
    current = next((one.name for one in there.values() if one.current), None)
    left, found = [name for name in there if name in names], []
    while left:
        free = [name for name in left if there[name].kind != choose.EXTERNAL or _branches(name, parents, current) < 2]
        if not free:
            _refuse(machine.name, left[0], [child for child, parent in parents.items() if parent == left[0]])
        gone = free[0]
        left.remove(gone)
        found.append(gone)
        above = parents.pop(gone)
        parents = {name: above if parent == gone else parent for name, parent in parents.items()}
        current = above if current == gone else current
    return found


def _branches(name: str, parents: Mapping[str, str | None], current: str | None) -> int:
    return list(parents.values()).count(name) + (1 if name == current else 0)


def _refuse(vm: str, name: str, branches: Sequence[str]) -> None:
    raise Refused(
        f"snapshot {name} of {vm} is the ground of {', '.join(branches)} and of what runs now; remove "
        f"{', '.join(branches)} first"
    )


def step(machine: Machine, name: str, seconds: int | None) -> Step:
    """Remove it. When the time is over the work goes on without us, and the next run sees that it is done."""
    one = machine.snapshots[name]
    merge = Removal(machine, name)
    size = machine.allocated() or 0
    limit = seconds or max(LEAST_SECONDS, SECONDS_PER_GIB * size // 2**30)
    words = f"remove the {one.kind} snapshot {name} of {machine.name}"
    if one.kind == choose.EXTERNAL:
        words += ", and merge what was written since"
    return Step(words, merge.start, merge.done, limit)


def _mend(words: str) -> str:
    if OTHER_MEDIUM in words:
        return (
            "put that back into the drive (virsh snapshot-dumpxml names it, virsh change-media inserts it), run this "
            "again, and take it out"
        )
    return "the snapshot is there, and the VM has all its data: run this again"


class Removal:
    """One that is under way in a thread, as libvirt answers only at its end."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name
        self.error: DroverError | None = None
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.machine.drop(self.name)
        except DroverError as error:
            self.error = error

    def done(self) -> bool | str:
        """Whether it is gone, else how far the merge is. Raises what libvirt said."""
        if self.thread:
            self.thread.join(LOOK_SECONDS)
            if self.thread.is_alive():
                return self._progress()
        if self.error:
            raise Failed(f"{self.error.message}; {_mend(self.error.message)}")
        self.machine.read()
        if self.name in self.machine.snapshots and self.name in self.machine.notes:
            return "it is still listed"
        if self.name in self.machine.record.notes:
            self.machine.write(self.machine.record.without(self.name))
        return True

    def _progress(self) -> str:
        parts = []
        for target in self.machine.chains():
            try:
                job = self.machine.node.block_job(self.machine.name, target)
            except DroverError:
                continue
            if job:
                parts.append(f"{target} {job.get('cur', 0)} of {job.get('end', 0)} bytes")
        return "merging" + (f": {', '.join(parts)}" if parts else "")
