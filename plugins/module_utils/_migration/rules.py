# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about a migration that was not finished, decided from what all nodes say. Pure.

The migration leaves the VM paused on the target and starts it there only when the source can never run it again: as
long as the source's QEMU process exists, the target has never run. The marker that both ends carry (from F, to T)
tells our migrations from others; to those, foreign.py applies.

The rules, F being the marker's source and T its target:
 1  a job is active: wait, or abort it when it has stalled
 2  F runs, T is paused: drop T
 3  F runs, T is absent or shut off: undefine T
 4  F runs, T gives no answer: F is the VM, T can only be paused; the marker stays until T is seen
 5  F is paused by the migration, T is paused: drop F, resume T
 6  F is paused by the migration, T gives no answer or holds nothing: resume F, whose QEMU lives
 7  F is gone, T is paused: resume T, unless F ran on since: then T is older than the disks, and a person must choose
 8  as 7, but the VM was paused before: leave it paused
 9  F is gone, T runs: finish the rest
10  F gives no answer, T is paused: stop; resume T only with the proof that F is off
11  F gives no answer, T runs: T is the VM
12  T runs while F is not gone: the invariant is broken (somebody resumed by hand)
13  anything else: report, never resume
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from . import foreign
from .copies import (
    ABSENT,
    DOUBTFUL,
    GONE,
    MIGRATING,
    OFF,
    RUNS,
    UNREACHABLE,
    USER,
    Action,
    Copy,
    Decision,
    Marker,
    Said,
    drop,
    read,
    report,
)

SILENT = (UNREACHABLE, GONE)


def decide(
    nodes: Mapping[str, Said],
    fenced: Collection[str] = (),
    keep: str | None = None,
    stalled: bool = False,
    lock_owner: str | None = None,
) -> Decision:
    """The rule that fits and the actions it asks for, in their order.

    `nodes` holds what every node of the cluster says (copies.read tells the form). `fenced`: nodes proven to be off.
    `keep`: the operator's choice between two copies. `stalled`: the job makes no progress. `lock_owner`: the node that
    holds the VM's disk lock, where the site has one.
    """
    copies = read(nodes, fenced)
    markers = {copy.node: copy.marker for copy in copies.values() if copy.marker}
    if not markers:
        return foreign.decide(copies, keep, stalled, lock_owner)
    marker = next(iter(markers.values()))
    if any(found.id != marker.id or node not in (found.source, found.target) for node, found in markers.items()):
        return report("13", copies, "the markers do not belong to one migration of these nodes")
    return Case(copies, marker, keep, stalled).decide()


@dataclass(frozen=True)
class Case:
    """One migration of ours and all that is known of it."""

    copies: Mapping[str, Copy]
    marker: Marker
    keep: str | None
    stalled: bool

    @property
    def source(self) -> Copy:
        """F: what the source says; a node that is not among those asked counts as silent."""
        return self.copies.get(self.marker.source, Copy(self.marker.source, UNREACHABLE))

    @property
    def target(self) -> Copy:
        """T: what the target says."""
        return self.copies.get(self.marker.target, Copy(self.marker.target, UNREACHABLE))

    def decide(self) -> Decision:
        """The first rule that fits."""
        for question in (self.strangers, self.both_run, self.job, self.contradiction):
            decision = question()
            if decision:
                return decision
        kind = self.source.kind
        if kind == USER and self.marker.was == "paused":
            kind = RUNS
        rules = {
            RUNS: self.source_is_as_it_was,
            MIGRATING: self.source_is_paused,
            ABSENT: self.source_is_gone,
            OFF: self.source_is_gone,
            UNREACHABLE: self.source_is_silent,
            GONE: self.source_is_silent,
        }
        return rules.get(kind, self.source_is_stuck)()

    def strangers(self) -> Decision | None:
        """A copy where there should be none."""
        ends = (self.source.node, self.target.node)
        third = [c.node for c in self.copies.values() if (c.active or c.hidden) and c.node not in ends]
        if third:
            return self.stop("12", f"the VM is also on {', '.join(third)}, which had no part in its migration")
        return None

    def both_run(self) -> Decision | None:
        """Rule 12, the alarm: only a person can tell which copy's data is to be kept."""
        if not self.source.kind == self.target.kind == RUNS:
            return None
        question = "ALARM: the VM runs on both nodes; choose with keep which one is the VM"
        return self.chosen("12", question, "the VM ran on both nodes")

    def job(self) -> Decision | None:
        """Rule 1. A stalled job of the target alone holds nothing: the other rules apply then."""
        at = self.source if self.source.job else self.target
        if not at.job:
            return None
        if not self.stalled:
            action = Action(at.node, "wait", f"wait for the job on {at.node}")
            return Decision("1", self.place(), "the migration goes on", (action,))
        if self.source.job and self.source.kind == RUNS:
            action = Action(at.node, "abort_job", f"abort the stalled job on {at.node}; the VM runs on there")
            return Decision("1", self.source.node, "the migration has stalled", (action,))
        if self.source.kind == RUNS:
            return None
        return self.stop("1", "a job has stalled in a state in which aborting it is not safe")

    def contradiction(self) -> Decision | None:
        """Evidence that can't be true is no evidence."""
        if DOUBTFUL in (self.source.kind, self.target.kind):
            return self.stop("13", "libvirt and the processes of the node contradict each other: look there")
        return None

    def place(self) -> str:
        """Where the VM is while a job is active: the source as long as it is there."""
        return self.source.node if self.source.active else "unknown"

    def source_is_as_it_was(self) -> Decision:
        """Rules 2, 3, 4, 12: the source runs, or is paused by its user as before."""
        source, target = self.source, self.target
        if target.kind in SILENT:
            text = f"{source.node} is the VM; the copy on {target.node} can only be paused and is dropped when seen"
            return Decision("4", source.node, text, (*self.note(source), Action("", "report", text)))
        if target.kind in (ABSENT, OFF):
            text = f"{source.node} is the VM; {target.node} holds nothing of it that runs"
            return Decision("3", source.node, text, (*drop(target, source), *self.close(source)))
        if target.kind == MIGRATING or (target.kind == USER and target.marker):
            text = f"{source.node} is the VM; the paused copy on {target.node} never ran"
            return Decision("2", source.node, text, (*drop(target, source), *self.close(source)))
        rule = "12" if target.kind == RUNS else "13"
        return self.stop(rule, f"{source.node} has the VM, and {target.node} has a copy {target.kind}")

    def source_is_paused(self) -> Decision:
        """Rules 5, 12, or 6: the source's QEMU lives, paused by the migration."""
        source, target = self.source, self.target
        if target.kind == RUNS:
            text = f"{target.node} runs the VM; the copy on {source.node} is what the migration left"
            return Decision("12", target.node, text, (*drop(source, target), *self.close(target, certain=False)))
        if not source.marker:
            return self.stop("13", f"the pause on {source.node} is not by this migration: it carries no marker there")
        if target.kind == USER and target.marker:
            text = f"all of the VM has arrived on {target.node}: finish the migration"
            return Decision("5", target.node, text, (*drop(source, target), *self.resume(target), *self.close(target)))
        if target.kind not in (*SILENT, ABSENT, OFF, MIGRATING):
            return self.stop("13", f"{target.node} has a copy {target.kind}")
        return self.resume_source()

    def resume_source(self) -> Decision:
        """Rule 6: the target has never run, and can't for as long as the source's QEMU lives."""
        source, target = self.source, self.target
        text = f"the QEMU of {source.node} lives, so {target.node} has never run the VM"
        if self.marker.was != "running":
            return self.stop("6", f"{text}; it was paused before, so resuming it is for a person", source.node)
        if target.kind in SILENT:
            return Decision("6", source.node, text, tuple(self.resume(source)))
        actions = (*drop(target, source), *self.resume(source), *self.close(source))
        return Decision("6", source.node, text, actions)

    def source_is_gone(self) -> Decision:
        """Rules 7, 8, 9: no QEMU on the source, at most a definition."""
        source, target = self.source, self.target
        if target.kind == USER and target.marker and source.ran_on:
            question = f"{source.node} ran on after the copy on {target.node} was made, and is off; choose with keep"
            return self.chosen("13", question, f"{source.node} ran on after the copy on {target.node} was made")
        if target.kind == USER and target.marker:
            rule = "7" if self.marker.was == "running" else "8"
            text = f"{target.node} is the VM; {source.node} can't run it again"
            return Decision(rule, target.node, text, (*drop(source, target), *self.resume(target), *self.close(target)))
        if target.kind == RUNS or (target.kind == OFF and source.kind == ABSENT):
            text = f"{target.node} is the VM: the migration was done, only the rest is to finish"
            return Decision("9", target.node, text, (*drop(source, target), *self.close(target)))
        if target.kind == ABSENT:
            text = f"the VM is shut off on {source.node}; {target.node} holds nothing of it"
            return Decision("3", source.node, text, tuple(self.close(source)))
        if target.kind == OFF:
            return self.both_off()
        rule = "10" if target.kind in SILENT else "13"
        return self.stop(rule, f"{source.node} does not run it, and {target.node} has it {target.kind}")

    def source_is_silent(self) -> Decision:
        """Rules 10, 11: the source gives no answer."""
        source, target = self.source, self.target
        if target.kind == RUNS:
            text = f"{target.node} is the VM; what is left on {source.node} is dropped when it is seen"
            return Decision("11", target.node, text, (Action("", "report", text),))
        if target.kind != USER or not target.marker:
            return self.stop("13" if target.active else "10", f"{source.node} gives no answer")
        if source.kind != GONE:
            text = (
                f"{source.node} gives no answer and may run the VM, or have run on: bring it back. Only if it lost its "
                "power while the move was under way, make sure that it is off and name it in fenced"
            )
            return self.stop("10", text)
        text = f"{source.node} is proven not to run the VM; the marker stays until it is seen again"
        return Decision("10", target.node, text, tuple(self.resume(target)))

    def source_is_stuck(self) -> Decision:
        """Rule 13. Its QEMU lives, so the target can't be the VM unless somebody resumed it there by hand."""
        where = self.source.node if self.target.kind in (*SILENT, ABSENT, OFF, MIGRATING, USER) else "unknown"
        return self.stop("13", f"{self.source.node} has it {self.source.kind}: it is for a person to resume it", where)

    def both_off(self) -> Decision:
        """Both ends hold a definition and nobody runs: nothing can be lost by waiting for a person.

        One that was shut off before is still whole on the source, so what the target got so far can go.
        """
        if self.marker.was not in ("running", "paused") and self.source.marker and self.target.marker:
            text = f"{self.source.node} still holds the whole VM; {self.target.node} got its definition only"
            actions = (*drop(self.target, self.source), *self.close(self.source))
            return Decision("3", self.source.node, text, actions)
        question = "both nodes have it shut off; choose with keep which definition stays"
        return self.chosen("13", question, "both nodes had it shut off")

    def chosen(self, rule: str, question: str, text: str) -> Decision:
        """What a person has chosen between the two copies, or the question; then no file is deleted."""
        ends = {copy.node: copy for copy in (self.source, self.target)}
        if self.keep not in ends:
            return self.stop(rule, question)
        kept = ends.pop(str(self.keep))
        on = self.resume(kept) if kept.kind == USER else []
        actions = (*drop(next(iter(ends.values())), kept), *on, *self.close(kept, certain=False))
        return Decision(rule, kept.node, f"{text}; {kept.node} was chosen", actions)

    def note(self, copy: Copy) -> list[Action]:
        """Write down that the source ran on: once it is off, nothing else tells its rest from what a good move left."""
        if copy.kind != RUNS or not copy.marker or copy.marker.ran:
            return []
        return [Action(copy.node, "note", f"write down on {copy.node} that the VM ran on there")]

    def stop(self, rule: str, text: str, where: str = "unknown") -> Decision:
        """Do nothing but tell."""
        return report(rule, self.copies, text, where)

    def resume(self, copy: Copy) -> list[Action]:
        """Let it run, unless its user had paused it before the migration."""
        return [Action(copy.node, "resume", f"resume it on {copy.node}")] if self.marker.was == "running" else []

    def close(self, copy: Copy, certain: bool = True) -> list[Action]:
        """The last steps: autostart as it was, files, then the marker, which keeps the case open until here.

        Where it is not `certain` by itself which copy is the VM, no file is deleted.
        """
        certain = certain and copy.persistent is not False
        actions = self.files(copy) if certain else []
        if self.marker.autostart and copy.persistent is not False:
            actions.append(Action(copy.node, "set_autostart", f"switch autostart on again on {copy.node}", True))
        if self.marker.home == copy.node:
            actions.append(Action(copy.node, "set_home", f"make {copy.node} its home", copy.node))
        if copy.marker:
            actions.append(Action(copy.node, "clear_marker", f"take the marker away on {copy.node}"))
        return actions

    def files(self, kept: Copy) -> list[Action]:
        """What becomes of files that were copied: those of the copy that is not the VM go, if we made them."""
        source, target, copies = self.marker.source, self.marker.target, self.marker.copies
        if kept.node == source:
            found = [Action(target, "remove_copies", f"delete what was copied of its files to {target}", copies)]
            return found if copies else []
        left, state = tuple(path for path in copies if path not in self.marker.state), self.marker.state
        found = [
            Action(source, "remove_originals", f"delete the files of its disks that {source} has no use for", left),
            Action(source, "forget", f"delete the files of its UEFI and TPM that {source} has no use for", state),
            Action(target, "release_copies", f"the files on {target} are its own now", copies),
        ]
        return [action for action in found if action.value]
