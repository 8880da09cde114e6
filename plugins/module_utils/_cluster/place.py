# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a node for each declared VM: where it is already, or the least busy node that can take it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from .._reserved import trespass
from . import choose
from .board import Board
from .model import Blocker, Cluster, Guest, Plan, size_text


def place(cluster: Cluster, wanted: Sequence[Guest], fenced: Collection[str] = ()) -> tuple[Cluster, Plan]:
    """The cluster with the wanted guests in it, and the plan: who goes where.

    A VM that is seen nowhere may still be on a node that gives no answer: it is refused unless all of those are in
    `fenced` (somebody made sure that they are off or empty).
    """
    known = _known(cluster, wanted)
    before = {guest.key: cluster.size(guest) for guest in cluster.guests}
    cluster = _with_wanted(cluster, wanted, known)
    board = Board(cluster)
    more = [guest for guest in cluster.guests if guest.node and cluster.size(guest) > before[guest.key]]
    blockers = [b for guest in wanted for copy in known[guest.name][:1] for b in _doubtful(copy)]
    blockers += [blocker for guest in wanted for blocker in _trespasses(cluster, guest)]
    blockers += [blocker for guest in more for blocker in _crowded(board, guest)]
    placements = {guest.name: known[guest.name][0].node for guest in wanted if known[guest.name]}
    new = [guest for guest in cluster.guests if not guest.node]
    silent = sorted(name for name, node in cluster.nodes.items() if not node.reachable and name not in fenced)
    if silent:
        blockers += [_may_exist(guest, silent) for guest in new]
    elif new and not board.targets():
        blockers.append(choose.no_target(board, ""))
    else:
        found, hindered = _find(cluster, new)
        placements.update(found)
        blockers += hindered
    ordered = tuple(sorted(blockers, key=lambda b: (b.vm, b.node, b.reason)))
    return cluster, Plan(blockers=ordered, placements=dict(sorted(placements.items())), warnings=choose.left_out(board))


def _known(cluster: Cluster, wanted: Sequence[Guest]) -> dict[str, list[Guest]]:
    """For each wanted VM the guests that are it already, by its name or its UUID."""
    by_name: dict[str, list[Guest]] = {guest.name: [] for guest in wanted}
    by_uuid = {guest.uuid: guest.name for guest in wanted if guest.uuid}
    for guest in cluster.guests:
        name = guest.name if guest.name in by_name else by_uuid.get(guest.uuid)
        if name:
            by_name[name].append(guest)
    return by_name


def _with_wanted(cluster: Cluster, wanted: Sequence[Guest], known: dict[str, list[Guest]]) -> Cluster:
    """The cluster as it will be: wanted guests run and take what their sheet says, new ones have no node yet.

    A new one that is not to be started takes its place all the same: one day it will be.
    """
    keys = {copy.key: guest for guest in wanted for copy in known[guest.name]}
    guests = [_as_wanted(guest, keys[guest.key]) if guest.key in keys else guest for guest in cluster.guests]
    new = [replace(guest, active=True) for guest in wanted if not known[guest.name]]
    return replace(cluster, guests=tuple(sorted((*guests, *new), key=lambda guest: guest.key)))


def _as_wanted(guest: Guest, sheet: Guest) -> Guest:
    active = guest.active or sheet.active
    return replace(guest, active=active, memory=max(guest.memory, sheet.memory), tags=guest.tags | sheet.tags)


def _doubtful(guest: Guest) -> list[Blocker]:
    return [blocker for blocker in choose.fixed(guest) if blocker.reason == "defined_twice"]


def _crowded(board: Board, guest: Guest) -> list[Blocker]:
    """What hinders a guest that starts, or takes more, where it is. The board has it already as it will be."""
    board.put(guest, "", out_of=guest.node)
    hindrance = board.crowded(guest, guest.node)
    board.put(guest, guest.node)
    if hindrance is None:
        return []
    size = size_text(board.cluster.size(guest))
    text = f"{guest.name} ({size}) has no place where it is: {guest.node} {hindrance.text}"
    mend = f"move it or others away (module migrate); or {hindrance.mend}"
    return [Blocker(guest.name, guest.node, hindrance.reason, text, mend)]


def _trespasses(cluster: Cluster, guest: Guest) -> list[Blocker]:
    """The NICs that ask for a VLAN of the hosts. What one node reserves is taken on all: the VM may move there."""
    found = []
    for place, nic in enumerate(guest.nics):
        own = {vlan for node in cluster.nodes.values() for vlan in node.reserved.get(nic.get("bridge") or "", ())}
        words, _colon, mend = (trespass(nic, own) or "").partition(": ")
        if words:
            found.append(Blocker(guest.name, "", "reserved_vlan", f"nics[{place}] of {guest.name} {words}", mend))
    return found


def _may_exist(guest: Guest, silent: Sequence[str]) -> Blocker:
    text = f"{guest.name} was seen nowhere, but may be on {', '.join(silent)}, which gave no answer"
    mend = "bring the node back; or, when it is certainly off or empty, name it in fenced (playbooks: drover_fenced)"
    return Blocker(guest.name, "", "unknown_place", text, mend)


def _find(cluster: Cluster, new: Sequence[Guest]) -> tuple[dict[str, str], list[Blocker]]:
    """Places that keep the loads even; when that leaves a guest without a place, those that pack tightest."""
    results = []
    for choice in (choose.spread, choose.tight):
        board = Board(cluster)
        targets, found, blockers = board.targets(), dict[str, str](), list[Blocker]()
        for guest in choose.by_size(board, new):
            node = choice(board, guest, targets)
            if node:
                board.put(guest, node)
                found[guest.name] = node
            else:
                hindrances = {name: board.hindrance(guest, name) for name in targets}
                blockers += choose.nowhere(board, guest, {name: o for name, o in hindrances.items() if o})
        if not blockers:
            return found, []
        results.append((found, blockers))
    return max(results, key=lambda result: len(result[0]))
