# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about a migration that was not ours: no copy carries our marker, so the target may have run. Pure.

The rows, S being where the VM came from and D where it went:
B4.1   S runs, D is absent: all is well
B4.2   S runs with a job, D is paused: wait
B4.3   as B4.2, but without progress: abort the job
B4.4   S runs without a job, D is paused by the migration: drop D
B4.5   S runs, D is shut off (failed): undefine D
B4.6   S is paused by the migration, D runs: drop S
B4.7   S is paused by the migration, D answers and holds nothing: resume S
B4.8   S is paused by the migration, D gives no answer: stop
B4.9   as B4.8, but D is proven to be off: resume S
B4.10  both run: alarm; the operator or the owner of the disk lock decides
B4.11  both are shut off: keep the newest definition
B4.12  post-copy: both halves are needed; report
B4.13  absent everywhere: the definition is lost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .copies import (
    DOUBTFUL,
    GONE,
    MIGRATING,
    OFF,
    POSTCOPY,
    RUNS,
    UNREACHABLE,
    Action,
    Copy,
    Decision,
    drop,
    report,
)

Copies = Mapping[str, Copy]


def decide(copies: Copies, keep: str | None, stalled: bool, lock_owner: str | None) -> Decision:
    """The row that fits and the actions it asks for."""
    active = [copy for copy in copies.values() if copy.active]
    decision = (
        _contradiction(copies)
        or _both_run(copies, keep or lock_owner)
        or _postcopy(copies)
        or _job(copies, active, stalled)
        or _several(copies, active)
    )
    if decision:
        return decision
    return _one(copies, active[0], lock_owner) if active else _none(copies)


def _contradiction(copies: Copies) -> Decision | None:
    """Evidence that can't be true, or a process that nobody answers for."""
    if any(copy.kind == DOUBTFUL for copy in copies.values()):
        return report("B4.0", copies, "libvirt and the processes of a node contradict each other: look there")
    if any(copy.hidden for copy in copies.values()):
        return report(
            "B4.0", copies, "a node whose libvirt gives no answer has a QEMU process of it: mend libvirt first"
        )
    return None


def _both_run(copies: Copies, chosen: str | None) -> Decision | None:
    running = {copy.node: copy for copy in copies.values() if copy.kind == RUNS}
    if len(running) < 2:
        return None
    if chosen not in running:
        return report("B4.10", copies, "ALARM: the VM runs on several nodes; choose with keep which one is the VM")
    kept = running.pop(str(chosen))
    actions = [action for copy in running.values() for action in drop(copy, kept)]
    return Decision("B4.10", kept.node, f"the VM ran on several nodes; {kept.node} is kept", tuple(actions))


def _postcopy(copies: Copies) -> Decision | None:
    if any(copy.kind == POSTCOPY for copy in copies.values()):
        return report("B4.12", copies, "a post-copy was cut: both halves are needed, let libvirt resume it")
    return None


def _job(copies: Copies, active: Sequence[Copy], stalled: bool) -> Decision | None:
    """Wait or abort; a stalled job of the target alone, beside a VM that runs, holds nothing."""
    busy = [copy for copy in active if copy.job and (len(active) > 1 or copy.job != "other")]
    if not busy:
        return None
    running = [copy for copy in active if copy.kind == RUNS]
    at = next((copy for copy in busy if copy.kind == RUNS), busy[0])
    if not stalled:
        where = running[0].node if running else "unknown"
        return Decision("B4.2", where, "a migration goes on", (Action(at.node, "wait", "wait for the job"),))
    if at.kind == RUNS:
        action = Action(at.node, "abort_job", f"abort the stalled job on {at.node}; the VM runs on there")
        return Decision("B4.3", at.node, "the migration has stalled", (action,))
    if running:
        return None
    return report("B4.3", copies, "a job has stalled in a state in which aborting it is not safe")


def _several(copies: Copies, active: Sequence[Copy]) -> Decision | None:
    if len(active) < 2:
        return None
    if sorted(copy.kind for copy in active) == sorted((RUNS, MIGRATING)):
        return _one_runs(active)
    return report("B4.0", copies, "several nodes have a copy, and none of them is the VM for sure")


def _one_runs(active: Sequence[Copy]) -> Decision:
    """One runs, the other is paused by the migration: whichever it was, the one that runs is the VM."""
    runs, paused = sorted(active, key=lambda copy: copy.kind != RUNS)
    if runs.reason == "migrated":
        text = f"the VM has arrived on {runs.node}; {paused.node} was left paused"
        return Decision("B4.6", runs.node, text, tuple(drop(paused, runs)))
    text = f"the VM runs on {runs.node}; the shell on {paused.node} was never finished"
    actions = drop(paused, runs)[:1]  # if it is defined there, it was so before: destroying the shell is enough
    return Decision("B4.4", runs.node, text, tuple(actions))


def _one(copies: Copies, copy: Copy, lock_owner: str | None) -> Decision:
    others = [other for other in copies.values() if other.node != copy.node]
    if copy.kind == RUNS:
        failed = [other for other in others if other.kind == OFF and other.reason == "failed"]
        doubles = [other for other in others if other.kind == OFF and other not in failed]
        actions = [action for other in failed for action in drop(other, copy)]
        actions += [Action(d.node, "report", f"{d.node} has a second definition, shut off: look") for d in doubles]
        return Decision("B4.5" if failed else "B4.1", copy.node, f"{copy.node} runs the VM", tuple(actions))
    if copy.kind != MIGRATING:
        silent = any(other.kind == UNREACHABLE for other in others)
        text = f"{copy.node} has it {copy.kind}: it is for a person to resume it"
        return Decision("B4.1", "unknown" if silent else copy.node, text, (Action("", "report", text),))
    return _left_paused(copies, copy, others, lock_owner)


def _left_paused(copies: Copies, copy: Copy, others: Sequence[Copy], lock_owner: str | None) -> Decision:
    """Only a copy paused by a migration is seen: the other end may have run since, unless the evidence excludes it."""
    if not others or any(other.kind == UNREACHABLE for other in others):
        return report("B4.8", copies, "the other end gives no answer and may run the VM: fence it first")
    if lock_owner not in (None, copy.node):
        return report("B4.8", copies, f"{lock_owner} holds the lock of its disk")
    ran = [other.node for other in others if other.kind == OFF and other.reason != "failed"]
    if ran:
        return report("B4.7", copies, f"the VM may have run on {', '.join(ran)} and been shut down there since")
    rule = "B4.9" if any(other.kind == GONE for other in others) else "B4.7"
    actions = [action for other in others if other.kind == OFF for action in drop(other, copy)]
    actions.append(Action(copy.node, "resume", f"resume it on {copy.node}"))
    return Decision(rule, copy.node, f"no other node can run the VM: it is on {copy.node}", tuple(actions))


def _none(copies: Copies) -> Decision:
    """Nobody runs it; never started from here."""
    silent = any(copy.kind == UNREACHABLE for copy in copies.values())
    off = [copy for copy in copies.values() if copy.kind == OFF]
    if silent:
        return report("B4.8", copies, "it is seen nowhere as running, and not all nodes answer")
    if len(off) == 1:
        return Decision("B4.1", off[0].node, f"it is shut off on {off[0].node}")
    if not off:
        text = "its definition is lost: define it again from its sheet or a saved definition"
        return Decision("B4.13", "none", text, (Action("", "report", text),))
    newest = max((copy.generation or 0 for copy in off), default=0)
    kept = [copy for copy in off if copy.generation == newest]
    if len(kept) != 1:
        return report("B4.11", copies, "several nodes have it shut off, none with a newer definition: choose by hand")
    actions = [action for copy in off if copy is not kept[0] for action in drop(copy, kept[0])]
    return Decision("B4.11", kept[0].node, f"{kept[0].node} has the newest definition", tuple(actions))
