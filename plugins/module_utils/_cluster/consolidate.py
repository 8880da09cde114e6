# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather the guests on few nodes, so that the others can be switched off; and spread them again."""

from __future__ import annotations

from dataclasses import replace

from . import choose, proof
from .board import Board
from .drain import drain
from .model import Cluster, Guest, Move, Plan
from .rebalance import Limits, rebalance
from .undrain import in_turn


def consolidate(cluster: Cluster, n_minus_1: bool = True) -> Plan:
    """Empty as many nodes as can be, those with the least memory in use first, and no guest moves twice.

    With `n_minus_1` a node is only emptied if the loss of any one of those that stay on could be borne. Greedy: a
    node that can't be emptied beside those before it stays on, and a cleverer choice of nodes is not looked for. A node
    that is off the list anyway (cordoned, silent) is left as it is.
    """
    board = Board(cluster)
    plan = Plan(warnings=choose.left_out(board))
    chosen: list[str] = []
    for name in sorted(board.targets(), key=lambda node: (board.used[node], len(board.at[node]), node)):
        tried = drain(cluster, [*chosen, name])
        if not tried.blockers and not (n_minus_1 and proof.not_borne(cluster, tried)):
            plan, chosen = tried, [*chosen, name]
    stay = [name for name in board.targets() if name not in chosen]
    said = f"{_list(chosen)} can be switched off, {_list(stay)} must stay on"
    return replace(plan, warnings=(said, *plan.warnings))


def _list(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "no node"


def spread(cluster: Cluster, limits: Limits) -> Plan:
    """Bring all guests home that have one elsewhere and fit there, then even out those that have none.

    No guest moves twice. Those that can't come to a home that takes others are named.
    """
    board = Board(cluster)
    settled = [guest for guest in cluster.guests if guest.home in cluster.nodes]
    moves, waiting = in_turn(board, choose.by_size(board, [guest for guest in settled if guest.home != guest.node]))
    there = {(each.vm, each.source): each.target for each in moves}
    # Moved away from home to even out loads, they would come back by the next one.
    bound = {(guest.name, there.get(guest.key, guest.node)) for guest in settled}
    rest = rebalance(moved(cluster, moves), limits, stay={(each.vm, each.target) for each in moves}, settled=bound)
    apart = {(each.vm, each.source) for each in rest.moves}
    left = [guest for guest in waiting if board.shut(str(guest.home)) is None and guest.key not in apart]
    kept = sorted(_kept(board, guest) for guest in left)
    return replace(rest, moves=(*moves, *rest.moves), warnings=(*rest.warnings, *kept))


def _kept(board: Board, guest: Guest) -> str:
    hindrance = guest.fixed[0] if guest.fixed else board.hindrance(guest, str(guest.home))
    words = hindrance.text if hindrance else "its turn did not come"
    return f"{guest.name} stays on {guest.node}, away from its home {guest.home}: {words}"


def moved(cluster: Cluster, moves: list[Move]) -> Cluster:
    """The cluster as it is when the moves are done."""
    target = {(each.vm, each.source): each.target for each in moves}
    guests = tuple(replace(guest, node=target.get(guest.key, guest.node)) for guest in cluster.guests)
    return replace(cluster, guests=guests)
