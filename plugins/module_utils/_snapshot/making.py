# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of one VM or several, of one moment: all are frozen, all are taken, all go on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Callable

from .._domain.stillness import still
from .._errors import DroverError, Failed, Refused
from .._files import free_space
from .._quiesce import Freeze, why_not
from . import choose, volumes
from .facts import bytes_text
from .machine import Machine
from .record import Note

AUTO, REQUIRED, NEVER = "auto", "required", "never"
# What QEMU writes beside the pages of memory.
SPARE = 64 << 20


@dataclass
class Plan:
    """What will be made of one VM. `freeze`: its agent is asked; `pause`: it stands still, so all is of one moment."""

    machine: Machine
    name: str
    kind: str
    memory: bool
    freeze: bool
    required: bool
    xml: str
    note: Note
    pause: bool = False
    still: Freeze | None = None
    stands: ExitStack = field(default_factory=ExitStack)
    quiesced: bool | None = None
    error: DroverError | None = None

    @property
    def words(self) -> str:
        """For people."""
        what = "memory and disks" if self.memory else "disks"
        quiet = ", its file systems frozen" if self.freeze else ""
        quiet += ", paused for the moment" if self.pause else ""
        left = ", in place of what an interrupted run left of it" if self.machine.is_torn(self.name) else ""
        return f"make the {self.kind} snapshot {self.name} of {self.machine.name} ({what}{quiet}){left}"

    @property
    def by_storage(self) -> bool:
        """Whether the storage keeps it, and not libvirt."""
        return self.kind in volumes.KINDS


def plan(machine: Machine, name: str, note: Note, options: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """What is to be done, and what to warn of; the options of the module but for the name. Raises Refused."""
    facts, folder, quiesce, most = machine.facts, options["directory"], options["quiesce"], options["max_chain"]
    memory = options["memory"] and machine.active
    kind = choose.choose(facts, memory, options["kind"], machine.kinds, folder)
    if kind == choose.EXTERNAL and (longest := choose.too_long(machine.chains(), most)):
        raise Refused(f"{longest}, and max_chain is {most}: remove snapshots of {machine.name} first (state=retained)")
    reason = _why_not(machine)
    if quiesce == REQUIRED and machine.active and not memory and reason:
        raise Refused(f"{machine.name} can't be quiesced: {reason}. Mend that, or say quiesce: auto")
    warnings = _room(machine, name, memory, folder) if kind == choose.EXTERNAL else []
    if kind == choose.EXTERNAL and (disks := [str(one["target"]) for one in choose.on_volumes(facts)]):
        warnings.append(
            f"libvirt can't set {machine.name} back to it, as {', '.join(disks)} is no file; for a way back make "
            "a backup"
        )
    freeze = machine.active and not memory and quiesce != NEVER and reason is None
    if machine.active and not memory and quiesce == AUTO and reason:
        warnings.append(f"{machine.name} is not quiesced: {reason}; the snapshot is as after a power cut")
    found = Plan(machine, name, kind, memory, freeze, quiesce == REQUIRED and freeze, "", note)
    if found.by_storage:
        several = len(choose.written(facts)) > 1 or len(options["vms"] or []) > 1
        found.pause = several and facts["state"] == "running"
    else:
        found.xml = choose.xml(facts, name, note.description, kind, memory, folder)
    return found, warnings


def _why_not(machine: Machine) -> str | None:
    state = machine.facts["state"]
    return f"it is {state}" if state not in ("running", "stopped") else why_not(machine.running)


def _room(machine: Machine, name: str, memory: bool, folder: str | None) -> list[str]:
    """What may not fit. Raises Refused where it certainly does not, or a file is in the way."""
    files = choose.overlays(machine.facts, name, folder)
    needs = (machine.facts["memory"]["maximum"] or 0) + SPARE if memory else SPARE
    saved = [choose.memory_path(machine.facts, name, folder)] if memory else []
    for path in [*files.values(), *saved]:
        place = str(PurePosixPath(path).parent)
        if not os.path.isdir(place):
            raise Refused(f"the folder {place} for the changes of {machine.name} does not exist; make it first")
        if os.path.lexists(path):
            raise Refused(f"{path} is there already; look whose it is, or choose another name")
    warnings = []
    for place in sorted({str(PurePosixPath(path).parent) for path in [*files.values(), *saved]}):
        free = free_space(place)
        if free < needs:
            raise Refused(f"{place} has {bytes_text(free)} free; make room for {bytes_text(needs)} of the snapshot")
        here = [target for target, path in files.items() if str(PurePosixPath(path).parent) == place]
        grown = sum(size for target, size in _sizes(machine).items() if target in here)
        if free < grown:
            warnings.append(
                f"what {machine.name} writes from now on may take {bytes_text(grown)} in {place}, where "
                f"{bytes_text(free)} are free; a machine whose storage is full is paused"
            )
    return warnings


def _sizes(machine: Machine) -> dict[str, int]:
    """How big each disk of a running VM may become."""
    if not machine.active:
        return {}
    targets = [str(disk["target"]) for disk in choose.written(machine.facts)]
    return {target: machine.node.block_sizes(machine.name, target).get("capacity", 0) for target in targets}


def make(plans: Sequence[Plan]) -> list[str]:
    """Carry all of them out; returns what to warn of. Raises Failed, and then none of them is left."""
    for one in plans:
        _begin(one)
    with ThreadPoolExecutor(max_workers=max(1, len(plans))) as pool:
        try:
            for call in (_freeze, _pause, _take):
                if not _failed(plans):
                    list(pool.map(call, plans))
        finally:
            list(pool.map(_thaw, plans))
    for one in plans:
        if one.required and one.error is None and not one.quiesced:
            one.error = Failed(f"{one.machine.name} wrote again before the snapshot was done; it was not quiesced")
    if _failed(plans):
        _take_back(plans)
    for one in plans:
        note = replace(one.note, made=True, quiesced=one.quiesced, allocated=one.machine.allocated())
        one.machine.note(one.name, note, one.kind)
    return [f"{one.machine.name} is not quiesced" for one in plans if one.freeze and not one.quiesced]


def _failed(plans: Sequence[Plan]) -> list[Plan]:
    return [one for one in plans if one.error]


def _keeping(one: Plan, call: Callable[[], object]) -> None:
    try:
        call()
    except DroverError as error:
        one.error = one.error or error


def _begin(one: Plan) -> None:
    if one.by_storage:
        one.machine.volumes.begin(one.name, one.note, off=not one.machine.active)
    else:
        # Before the snapshot, which holds the metadata of its moment: so it knows of itself when it is gone back to.
        one.machine.write(one.machine.record.noting(one.name, one.note))


def _pause(one: Plan) -> None:
    if one.pause:
        node, name = one.machine.node, one.machine.name
        pause = still(node, name, one.machine.domain.uuid, partial(node.suspend, name))
        _keeping(one, lambda: one.stands.enter_context(pause))


def _freeze(one: Plan) -> None:
    if not one.freeze:
        return
    still = Freeze(one.machine.node, one.machine.name, one.machine.domain.uuid)
    try:
        still.begin()
        one.still = still
    except DroverError as error:
        one.quiesced = False
        one.error = error if one.required or isinstance(error, Refused) else None


def _take(one: Plan) -> None:
    machine = one.machine
    disks_only = machine.active and not one.memory
    live = one.memory and one.kind == choose.EXTERNAL
    if one.by_storage:
        _keeping(one, lambda: machine.volumes.take(one.name))
    else:
        _keeping(one, lambda: machine.node.create_snapshot(machine.name, one.xml, disks_only, live))
    if one.still:
        one.quiesced = one.still.held() and one.error is None


def _thaw(one: Plan) -> None:
    _keeping(one, one.stands.close)
    if one.still:
        _keeping(one, one.still.end)


def _take_back(plans: Sequence[Plan]) -> None:
    """Remove what was made; always raises Failed with all that went wrong, and what may be left."""
    name, words = plans[0].name, "; ".join(str(one.error) for one in _failed(plans))
    left = {one.machine.name: why for one in plans if (why := _remains(one))}
    if left:
        said = ", ".join(f"{vm} ({why})" for vm, why in left.items())
        raise Failed(
            f"{words}. Snapshot {name} may still be there of {said}; it is not whole. Remove it with state: absent for "
            f"{', '.join(left)}, then run this again"
        )
    others = ", ".join(one.machine.name for one in plans if not one.error)
    raise Failed(f"{words}; there is no snapshot {name}{f' of {others} either' if others else ''}")


def _remains(one: Plan) -> str:
    """Why the snapshot may be there all the same; nothing once it is listed no more, and its note is gone."""
    try:
        if one.by_storage:
            # Those volumes know what this run made, whatever their marks say.
            one.machine.volumes.read().drop(one.name)
        if one.name in one.machine.read().snapshots:
            one.machine.drop(one.name)
        if one.name in one.machine.read().snapshots:
            return "it is still listed"
        if one.name in one.machine.record.notes:
            one.machine.write(one.machine.record.without(one.name))
    except DroverError as error:
        return error.message
    return ""
