# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task wants of the snapshots of one VM, and the steps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from .._errors import Refused
from .._resource import Step
from . import making, removing, retain, volumes
from .machine import Machine
from .record import Note
from .reverting import Revert
from .rolling import Rolling

Shown = dict[str, Any]


class Item:
    """One VM and the options of the task. `now` is the task's moment, in seconds since the epoch."""

    def __init__(self, machine: Machine, params: Mapping[str, Any], now: float) -> None:
        self.machine, self.params, self.now = machine, params, now
        self.name = machine.name
        self.snapshot = str(params["snapshot"])
        self.plan: making.Plan | None = None
        self.warnings: list[str] = []

    @cached_property
    def revert(self) -> Revert:
        """The act of setting it back, by the kind of the snapshot; asked for only when the VM was read."""
        there = self.machine.snapshots.get(self.snapshot)
        way = Rolling if there is not None and there.kind in volumes.KINDS else Revert
        return way(self.machine, self.params, self.now)

    def shown(self) -> Shown:
        """What is compared: the snapshots by name, and the last act of setting back."""
        act = self.machine.record.act
        there = {name: self._shown(name) for name in self.machine.snapshots}
        return {"snapshots": there, "reverted": {"snapshot": act.snapshot, "id": act.id} if act else None}

    def _shown(self, name: str) -> Shown:
        one, note = self.machine.snapshots[name], self.machine.notes.get(name, Note())
        words, whole = note.description or one.description, not self.machine.lacks(name)
        shown = {"description": words, "tags": list(note.tags), "memory": one.memory, "kind": one.kind}
        return {**shown, "complete": whole}

    def wanted(self) -> Shown:
        """What shall be. Raises Refused and NotFound."""
        found, state = self.shown(), self.params["state"]
        self.revert.check_other()
        if state == "present":
            found["snapshots"][self.snapshot] = self._present()
        elif state == "reverted" and self.revert.steps():
            # Without an id its own is the moment, which nobody can foretell.
            found["reverted"] = {"snapshot": self.snapshot, "id": self.params["id"]}
        elif state in ("absent", "retained"):
            gone = self._gone()
            found["snapshots"] = {name: one for name, one in found["snapshots"].items() if name not in gone}
        return found

    def _note(self) -> Note:
        """The note that the snapshot shall have."""
        # The note of one that is gone (by hand, or by a run that was killed) says nothing of the one to come.
        there = self.snapshot in self.machine.snapshots
        old = self.machine.notes.get(self.snapshot, Note()) if there else Note()
        tags, words = self.params["tags"], self.params["description"]
        new = replace(old, tags=old.tags if tags is None else tuple(tags))
        return new if words is None else replace(new, description=words)

    def _present(self) -> Shown:
        note, there = self._note(), self.machine.snapshots.get(self.snapshot)
        if there is None or self.machine.is_torn(self.snapshot):
            self.plan, warnings = making.plan(self.machine, self.snapshot, note, self.params)
            self.warnings += warnings
            words = {"memory": self.plan.memory, "kind": self.plan.kind, "complete": True}
            return {"description": note.description, "tags": list(note.tags), **words}
        self.plan = None
        if lacks := self.machine.lacks(self.snapshot):
            raise Refused(
                f"there is a snapshot {self.snapshot} of {self.name}, but {lacks}; remove it, or take another name"
            )
        if self.params["memory"] and not there.memory and there.state != "shutoff":
            raise Refused(f"snapshot {there.name} of {self.name} is there already, without memory; take another name")
        if self.params["kind"] not in ("auto", there.kind):
            raise Refused(f"snapshot {there.name} of {self.name} is there, and is {there.kind}; take another name")
        if self.snapshot not in self.machine.notes:
            self.warnings.append(f"snapshot {there.name} of {self.name} was made by other means; it is left as it is")
            return self._shown(self.snapshot)
        return {**self._shown(self.snapshot), "tags": list(note.tags), "description": note.description}

    def _gone(self) -> list[str]:
        machine, notes = self.machine, self.machine.notes
        if self.params["state"] == "absent":
            if self.snapshot in machine.snapshots and self.snapshot not in notes:
                raise Refused(
                    f"snapshot {self.snapshot} of {self.name} was made by other means and is left alone; by hand: "
                    f"{machine.by_hand(self.snapshot)}"
                )
            machine.volumes.check_drop(self.snapshot)
            return removing.order(machine, [self.snapshot])
        keep, tags = self.params["keep"] or 0, self.params["tags"] or []
        torn = [name for name in machine.snapshots if machine.is_torn(name) and set(tags) <= set(notes[name].tags)]
        whole = [one for name, one in machine.snapshots.items() if name not in torn]
        surplus = retain.surplus(whole, notes, tags, keep, self.params["max_age"], self.now)
        for name in torn + surplus:
            machine.volumes.check_drop(name)
        return removing.order(machine, torn + surplus)

    def steps(self) -> list[Step]:
        """All but to make one, which is done for all VMs together."""
        if self.params["state"] == "present":
            return self._noting()
        if self.params["state"] == "reverted":
            return self.revert.steps()
        return [removing.step(self.machine, name, self.params["timeout"]) for name in self._gone()]

    def _noting(self) -> list[Step]:
        """Write down what the note of a snapshot that is there lacks, also as an earlier run was interrupted."""
        machine = self.machine
        old, there = machine.notes.get(self.snapshot), machine.snapshots.get(self.snapshot)
        new = replace(self._note(), made=True)
        if there is None or old is None or old == new or machine.is_torn(self.snapshot):
            return []
        call = partial(machine.note, self.snapshot, new, there.kind)
        return [Step(f"note description and tags of snapshot {self.snapshot} of {self.name}", call)]
