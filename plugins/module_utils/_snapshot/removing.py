# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot goes: what it holds for others is merged, as the VM runs. libvirt does it, whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Collection

from .._errors import DroverError, Failed, Refused
from .._resource import Step
from . import choose
from .machine import Machine

SECONDS_PER_GIB = 150
LEAST_SECONDS = 120


def check(machine: Machine, names: Collection[str]) -> None:
    """Raise Refused for what libvirt could not remove, before anything is changed.

    An external one on which several branches stand holds what all of them need.
    """
    for name in names:
        machine.volumes.check_drop(name)
        children = [one.name for one in machine.snapshots.values() if one.parent == name]
        stay = [child for child in children if child not in names]
        here = machine.snapshots[name]
        branches = len(stay) + (1 if here.current else 0)
        if here.kind == choose.EXTERNAL and stay and branches > 1:
            raise Refused(
                f"snapshot {name} of {machine.name} is the ground of {', '.join(stay)} and of what runs now; remove "
                f"{', '.join(stay)} first"
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
        if self.thread and self.thread.is_alive():
            self.thread.join(0.2)
            return self._progress()
        if self.error:
            raise Failed(f"{self.error.message}; the snapshot is not gone, and the VM has all of its data")
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
