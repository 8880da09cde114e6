# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather the guests on few nodes, so that the others can be switched off; and spread them again."""

from __future__ import annotations

from dataclasses import replace

from . import choose, proof
from .attempt import move
from .board import Board
from .drain import drain
from .model import Cluster, Move, Plan
from .rebalance import Limits, rebalance


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
    """Bring all guests home that have one elsewhere and fit there, then even out the rest; no guest moves twice.

    Those that can't come to a home that takes others are named.
    """
    board, moves, kept = Board(cluster), list[Move](), list[str]()
    away = [guest for guest in cluster.guests if guest.home in cluster.nodes and guest.home != guest.node]
    for guest in choose.by_size(board, away):
        home = str(guest.home)
        hindrance = guest.fixed[0] if guest.fixed else board.hindrance(guest, home)
        if hindrance is None:
            board.put(guest, home, out_of=guest.node)
            moves.append(move(guest, home, "home"))
        elif board.shut(home) is None:
            kept.append(f"{guest.name} stays on {guest.node}, away from its home {home}: {hindrance.text}")
    there = {(each.vm, each.source): each.target for each in moves}
    stay = frozenset((guest.name, there.get(guest.key, guest.node)) for guest in away)
    rest = rebalance(moved(cluster, moves), limits, stay=stay)
    return replace(rest, moves=(*moves, *rest.moves), warnings=(*rest.warnings, *sorted(kept)))


def moved(cluster: Cluster, moves: list[Move]) -> Cluster:
    """The cluster as it is when the moves are done."""
    target = {(each.vm, each.source): each.target for each in moves}
    guests = tuple(replace(guest, node=target.get(guest.key, guest.node)) for guest in cluster.guests)
    return replace(cluster, guests=guests)
