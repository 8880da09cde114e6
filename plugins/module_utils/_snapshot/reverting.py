# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM is set back to a snapshot: what that loses is named and must be said, and is saved before.

To set it back gives the VM the definition of that moment, and so takes away what was written into its metadata since.
That is the proof: an act that was noted as begun, whose safety snapshot is there and whose note is gone, was carried
out. Only what follows it is left to do then. It is not so for snapshots that the storage keeps, see `rolling.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .._domain import metadata
from .._domain.admission import Admission
from .._domain.neighbours import claims_of
from .._errors import DroverError, Failed, NotFound, Refused
from .._node import cordon
from .._quiesce import why_not
from .._resource import Step
from .._xml import parse
from . import choose, facts, making, record
from .facts import Snapshot, age_text, bytes_text
from .machine import Machine
from .record import Act, Note

SAFETY = "safety"
# libvirt sets external snapshots back from 9.10 on, see https://libvirt.org/news.html.
EXTERNAL_SINCE = 9010000
CLOCK_SECONDS = 20
CLOCK_NEAR = 2
POLL = 0.5


class Revert:
    """One VM that shall be set back. `id` names the run; `now` is its moment, in seconds since the epoch."""

    quiesce = making.AUTO
    cuts = True

    def __init__(self, machine: Machine, params: Mapping[str, Any], now: float) -> None:
        self.machine, self.params, self.now = machine, params, now
        self.name = str(params["snapshot"])
        self.id = params["id"] or facts.stamp(now).replace(":", "").replace("-", "")
        self.safety = f"before-{self.name}-{self.id}" if params["safety_snapshot"] else ""
        self.lost: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self.finished = False

    @property
    def target(self) -> Snapshot:
        """The snapshot. Raises NotFound."""
        found = self.machine.snapshots.get(self.name)
        if found is None:
            has = ", ".join(self.machine.snapshots) or "none"
            raise NotFound(f"{self.machine.name} has no snapshot {self.name}; it has {has}")
        return found

    @property
    def is_done(self) -> bool:
        """Whether this very act is noted as done."""
        act = self.machine.record.act
        return self.finished or (act is not None and act.state == "done" and self._is_ours(act))

    def _is_ours(self, act: Act | None) -> bool:
        """Only an id that was given says that it is the same act."""
        return act is not None and bool(self.params["id"]) and (act.id, act.snapshot) == (self.id, self.name)

    @property
    def is_forgotten(self) -> bool:
        """Whether an earlier run set it back and was killed just then: its note went with what was discarded."""
        act = self.machine.record.act
        there = bool(self.params["id"] and self.safety) and self.is_safe
        return there and not self._is_ours(act) and record.read(self.target.definition).act == act

    @property
    def is_carried_out(self) -> bool:
        """Whether only what comes after it is missing, as an earlier run was interrupted there."""
        act = self.machine.record.act
        return self.is_forgotten or (act is not None and act.state == "carried" and self._is_ours(act))

    @property
    def is_safe(self) -> bool:
        """Whether the safety snapshot is there."""
        return self.safety in self.machine.snapshots and not self.machine.is_torn(self.safety)

    def check_other(self) -> None:
        """Raise Refused while another act has left the volumes half set back: what is in them now is nobody's state."""
        act = self.machine.record.act
        goes_on = self.params["state"] == "reverted" and self._is_ours(act)
        if act is not None and act.state == "rolling" and not goes_on:
            raise Refused(
                f"{self.machine.name} is half set back to {act.snapshot}, by a run that was interrupted. Finish that "
                f"first: state=reverted, snapshot={act.snapshot}, discard_changes_since={act.snapshot}, id={act.id}",
                act=act.id,
            )

    def check(self) -> None:
        """Raise Refused for all that speaks against it; nothing is changed before."""
        machine, target = self.machine, self.target
        self.lost = machine.lost(target, self.now)
        if metadata.read(machine.definition).get("rollback_safe") == "no" and machine.name not in self.params["i_know"]:
            raise Refused(
                f"{machine.name} is marked as one that can't go back (rollback_safe: false), such as a directory "
                f"server or a database with replicas: others would still know what it forgets. If you are sure, say "
                f"i_know: [{machine.name}]"
            )
        if self.params["discard_changes_since"] != self.name:
            raise Refused(
                f"to set {machine.name} back to {self.name} loses {self.words()}. If that is meant, say "
                f"discard_changes_since: {self.name}",
                lost=self.lost,
            )
        self.check_way()
        if machine.kinds != {target.kind}:
            both = " and ".join(sorted(machine.kinds, reverse=True))
            raise Refused(
                f"{machine.name} has {both} snapshots, and there is no way back among these; see docs/snapshots.md, By "
                "hand"
            )
        if target.state == "paused" or self.runs_after():
            self._check_start()

    def check_way(self) -> None:
        """Raise Refused for what speaks against this kind of snapshot."""
        machine, target = self.machine, self.target
        held = machine.node.checkpoints(machine.name) if target.kind == choose.INTERNAL else []
        if held:
            raise Refused(
                f"QEMU can't set {machine.name} back while it notes what has changed since a backup. Take that away, "
                "the next backup is a full one then: "
                + "; ".join(f"virsh checkpoint-delete {machine.name} {name}" for name in reversed(held))
            )
        if target.kind == choose.EXTERNAL and (disks := facts.volumes(target)):
            raise Refused(
                f"libvirt sets {machine.name} back to external snapshots of files only; {', '.join(disks)} is none. "
                f"What came after {target.name} is merged by state=absent; to go back, restore a backup"
            )
        if target.kind == choose.EXTERNAL and machine.node.version() < EXTERNAL_SINCE:
            raise Refused(
                f"libvirt of this node can't set {machine.name} back to an external snapshot; that takes libvirt 9.10 "
                "(Debian 13). docs/snapshots.md says how it is done by hand"
            )

    def words(self) -> str:
        """What is lost, for people."""
        lost = self.lost or {}
        size = "" if lost.get("bytes") is None else f", at least {bytes_text(lost['bytes'])} written"
        kept = f"; {', '.join(lost['kept'])} stay" if lost.get("kept") else ""
        return f"all changes since {lost.get('since')} ({age_text(lost.get('age', 0))}{size}{kept})"

    def runs_after(self) -> bool:
        """Whether the VM runs then: as its memory was, else as it is now."""
        return self.target.state == "running" or (self.machine.active and self.target.state != "paused")

    def _check_start(self) -> None:
        """It is started by this, on this node: that must be possible, and it must not run anywhere else."""
        machine = self.machine
        found = cordon()
        if found is not None:
            raise Refused(
                f"this node is cordoned ({found.get('reason')}), so {machine.name} could not start; undrain it first"
            )
        if not machine.active:
            admission = Admission(machine.site, machine.name, self.params["fenced"])
            admission.start(claims_of(machine.definition), machine.domain.uuid, lambda: None)

    def steps(self) -> list[Step]:
        """What is left to do."""
        if self.is_done:
            return []
        name = self.machine.name
        last = [Step(f"note that {name} was set back", self.finish)]
        if self.is_carried_out:
            return last
        self.check()
        steps = self.before()
        if self.needs_safety():
            self.plan_safety()
            steps.append(Step(f"keep {name} as it is now in a safety snapshot", self.save))
        words = f"set {name} back to {self.name} of {facts.stamp(self.target.time)}"
        words += ", which cuts its power" if self.cuts and self.machine.active and not self.target.memory else ""
        words += ": all changes since are lost"
        words += ", but for the safety snapshot" if self.safety else ""
        return [*steps, Step(words, self.revert), *last]

    def before(self) -> list[Step]:
        """What comes before the safety snapshot."""
        return [Step(f"note that {self.machine.name} is set back to {self.name}", self.begin)]

    def needs_safety(self) -> bool:
        """Whether it is still to be made."""
        return bool(self.safety) and not self.is_safe

    def begin(self) -> None:
        """Note what will be done, before anything is."""
        self.machine.write(replace(self.machine.record, act=self.act("begun")))

    def act(self, state: str) -> Act:
        """The note of it."""
        return Act(self.name, self.id, self.safety, state, facts.stamp(time.time()))

    def plan_safety(self) -> making.Plan:
        """The snapshot of now: of the kind that the VM has, with memory where that kind needs it."""
        note = Note(f"before {self.machine.name} was set back to {self.name}", (SAFETY,))
        memory = self.target.kind == choose.INTERNAL and self.machine.active
        own = {"kind": self.target.kind, "memory": memory, "quiesce": self.quiesce, "vms": None}
        # Going back shortens the chain again.
        options = {**self.params, **own, "max_chain": self.params["max_chain"] + 1}
        found, warnings = making.plan(self.machine, self.safety, note, options)
        self.warnings += warnings
        return found

    def save(self) -> None:
        """Make it, and see that it is there."""
        self.warnings += making.make([self.plan_safety()])
        self.machine.read()
        if not self.is_safe:
            raise Failed(f"{self.machine.name} has no safety snapshot {self.safety}; and was not set back: try again")

    def revert(self) -> None:
        """Set it back, and see that it was. Raises Failed, which says what is of the VM then."""
        machine, start = self.machine, self.runs_after() and not self.target.memory
        known, policy, before = machine.record, metadata.record_xml(machine.definition), machine.domain.id
        target = self.target
        try:
            machine.node.revert(machine.name, self.name, start)
        except DroverError as error:
            raise Failed(f"{error.message}; {self._state()}") from None
        machine.read()
        self._prove(target, before)
        machine.write_policy(policy)
        machine.write(replace(known, act=self.act("carried")))

    def _state(self) -> str:
        domain = self.machine.node.domain(self.machine.name)
        state = domain.state if domain else "gone"
        kept = f"what it was is in the snapshot {self.safety}" if self.safety else "no safety snapshot was asked for"
        return f"{self.machine.name} is {state} now, and {kept}. The same id goes on from here"

    def _prove(self, target: Snapshot, before: int | None) -> None:
        """Raise Failed where libvirt says that it did and the VM does not show it."""
        machine = self.machine
        wrong = []
        if not machine.snapshots[self.name].current:
            wrong.append("the snapshot is not the current one")
        if before is not None and machine.domain.id == before and machine.domain.reason != "from snapshot":
            wrong.append("the machine that ran before still runs")
        old = {path for path in target.overlays.values() if any(path in chain for chain in machine.chains().values())}
        if old:
            wrong.append(f"it still uses {', '.join(sorted(old))}, which is newer")
        if machine.active != (target.memory or before is not None):
            wrong.append(f"it is {machine.facts['state']}")
        if wrong:
            raise Failed(f"{machine.name} was not set back to {self.name}: {'; '.join(wrong)}; {self._state()}")

    def finish(self) -> None:
        """Set the clock, and note that all is done."""
        machine = self.machine.read()
        known = self._remembered() if self.is_forgotten else machine.record
        if machine.active and self.target.memory and machine.facts["state"] == "running":
            self._set_clock()
        machine.write(replace(known, act=self.act("done")))
        self.finished = True

    def _remembered(self) -> record.Record:
        """The record as it was before; an interrupted run left the one of the snapshot's moment."""
        safety = self.machine.snapshots[self.safety].definition
        self.machine.write_policy(metadata.record_xml(safety))
        found = record.read(safety)
        return replace(found, notes={**found.notes, **{n: v for n, v in self.machine.record.notes.items() if v.made}})

    def _set_clock(self) -> None:
        """The guest's clock stood still since the snapshot. That it can't be set is a warning."""
        machine = self.machine
        end, words = time.monotonic() + CLOCK_SECONDS, ""
        while time.monotonic() < end:
            words = why_not(machine.running) or ""
            try:
                if not words:
                    machine.node.set_guest_time(machine.name, int(time.time()))
                    if abs(machine.node.guest_time(machine.name) - time.time()) <= CLOCK_NEAR:
                        return
                    words = "it did not take the time"
            except DroverError as error:
                words = error.message
            if "no channel" in words:
                break
            time.sleep(POLL)
            domain = machine.node.domain(machine.name)
            machine.running = parse(domain.live_xml) if domain and domain.live_xml else None
        late = age_text(time.time() - self.target.time)
        self.warnings.append(f"the clock of {machine.name} may be {late} behind: {words}")
