# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring guests back to nodes that were emptied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import choose, maintenance
from .attempt import move
from .board import Board
from .model import Blocker, Cluster, Guest, Move, Plan, size_text


def undrain(cluster: Cluster, nodes: Sequence[str], come_home: bool = True) -> Plan:
    """Exactly the guests whose home is one of the nodes and that are elsewhere, the largest first.

    One that waits for room that another one leaves goes after it. A guest that was moved on purpose since has got
    another home by that, and stays. Those that were shut down for the time start again. The nodes may still be
    cordoned: lifting the cordon is part of bringing the guests back. Without `come_home` those that were shut down
    start, and nobody moves.
    """
    cluster = one_way(cluster)
    board = Board(cluster, opened=nodes)
    warnings = tuple(text for text in choose.left_out(board) if "cordoned" not in text)
    blockers = [blocker for name in nodes for blocker in choose.missing_node(board, name)]
    blocked = {blocker.node for blocker in blockers}
    open_nodes = [name for name in nodes if name not in blocked]
    away = [g for g in cluster.guests if come_home and g.home in open_nodes and g.home != g.node and g.node]
    moves, waiting = in_turn(board, choose.by_size(board, away))
    for guest in waiting:
        home = str(guest.home)
        hindrance = board.hindrance(guest, home)
        blockers += choose.fixed(guest) + (choose.nowhere(board, guest, {home: hindrance}) if hindrance else [])
    plan = Plan(tuple(moves), warnings=warnings)
    starts = maintenance.starts(cluster, plan, open_nodes)
    # They start before the others move. One whose mark is left over runs already.
    waking = sorted({guest.key for guest in cluster.guests if guest.waits}.intersection(starts))
    for moment in (Board(cluster, opened=nodes), board):
        blockers += _overfull(moment, {node for _name, node in waking}) + _beside_rivals(moment, waking)
    return replace(plan, starts=starts, blockers=tuple(sorted({*blockers}, key=lambda b: (b.vm, b.reason, b.text))))


def one_way(cluster: Cluster) -> Cluster:
    """The cluster for guests that come home: the way back to the present node is not needed, it was only a stay."""
    return replace(cluster, rules=replace(cluster.rules, check_return=False))


def _beside_rivals(board: Board, starts: Sequence[tuple[str, str]]) -> list[Blocker]:
    """Guests that are to start again where one is by now from which they must be kept apart."""
    found = []
    for name, node in starts:
        for rival in board.rivals(board.at[node][name, node], node):
            text = f"{name} starts again on {node}, where {rival.name} is, and the two must be kept apart"
            found.append(Blocker(name, node, "anti_affinity", text, f"move {rival.name} away (module migrate)"))
    return found


def _overfull(board: Board, nodes: set[str]) -> list[Blocker]:
    """Nodes on which guests are to start again whose memory was given to others meanwhile."""
    mend = "move others away (module migrate), or shut them down"
    missing = {name: -board.free(name) for name in sorted(nodes)}
    words = {name: f"{name} lacks {size_text(size)} of memory for what starts there" for name, size in missing.items()}
    return [Blocker("", name, "memory", words[name], mend) for name, size in missing.items() if size > 0]


def in_turn(board: Board, guests: Sequence[Guest]) -> tuple[list[Move], list[Guest]]:
    """The moves in an order in which each is possible, and those for whom no turn came."""
    moves: list[Move] = []
    waiting, waited = list(guests), 0
    while len(waiting) != waited:
        waited = len(waiting)
        for guest in list(waiting):
            if not guest.fixed and board.hindrance(guest, str(guest.home)) is None:
                board.put(guest, str(guest.home), out_of=guest.node)
                moves.append(move(guest, str(guest.home), "home"))
                waiting.remove(guest)
    return moves, waiting
