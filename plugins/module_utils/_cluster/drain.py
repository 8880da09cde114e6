# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Empty nodes: an ordered list of moves, each possible when its turn comes, or everything that hinders it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Callable

from . import choose, maintenance
from .attempt import Attempt
from .board import Board
from .level import level
from .model import STAYING, Blocker, Cluster, Guest, Move, Plan

Order = Callable[[Board, Iterable[Guest]], "list[Guest]"]

SQUEAKS = 4

# For a cluster in which an even plan leaves a guest over: from the plan that disturbs least to the one that fits most.
# The first that places every guest is taken.
STRATEGIES: tuple[tuple[Order, choose.Choice, bool], ...] = (
    (choose.by_size, choose.spread, False),
    (choose.by_size, choose.tight, False),
    (choose.by_size, choose.tight, True),
    (choose.by_choice, choose.tight, True),
)


def drain(cluster: Cluster, nodes: Sequence[str], room: bool = True, only: Iterable[str] | None = None) -> Plan:
    """Empty the nodes, or move `only` the guests of these names off them; they take no guest in either case.

    With `room`, others may move too when a guest fits nowhere. Guests stay whose own word wants that.

    With blockers the moves are those that are possible in spite of them.
    """
    board = Board(cluster, closed=nodes)
    names = sorted(set(nodes))
    leaving = None if only is None else frozenset(only)
    there = [guest for name in names if name in board.at for guest in board.at[name].values()]
    named = [guest for guest in there if leaving is None or guest.name in leaving]
    guests = [guest for guest in named if guest.verb not in STAYING]
    blockers = [blocker for name in names for blocker in choose.missing_node(board, name)]
    blockers += choose.unknown_guests(board, leaving or ())
    blockers += [blocker for guest in named for blocker in choose.blockers(guest, maintenance.against(guest))]
    moves: list[Move] = []
    if guests and not board.targets():
        blockers += [choose.no_target(board, name) for name in sorted({guest.node for guest in guests})]
    elif guests:
        moves, hindered = _moves(cluster, names, guests, room)
        blockers += hindered
    # Each once, by node and guest.
    unique = {(b.node, b.vm, b.reason, b.text): b for b in blockers}
    ordered = tuple(unique[key] for key in sorted(unique))
    staying = frozenset(guest.key for guest in named if guest.verb in STAYING)
    plan = Plan(tuple(moves), ordered, {}, frozenset(nodes), leaving, choose.left_out(board), staying)
    return replace(plan, starts=maintenance.starts(cluster, plan))


def _moves(
    cluster: Cluster, nodes: Sequence[str], guests: Sequence[Guest], room: bool
) -> tuple[list[Move], list[Blocker]]:
    """The moves of all guests that can go, and what hinders those that find no place."""
    movable = [guest for guest in guests if not guest.fixed]
    best = mended = _best(cluster, nodes, movable, room)
    if len(movable) < len(guests):
        # As if what can be mended were mended: a guest that is fixed today needs a place tomorrow too.
        keys = {guest.key for guest in guests}
        freed = tuple(replace(guest, fixed=()) if guest.key in keys else guest for guest in cluster.guests)
        loose = [guest for guest in freed if guest.key in keys]
        mended = _best(replace(cluster, guests=freed), nodes, loose, room)
    stuck = {
        guest.key: choose.nowhere(each.board, guest, found) for each in (best, mended) for guest, found in each.stuck
    }
    return best.moves, [blocker for found in stuck.values() for blocker in found]


def _best(cluster: Cluster, nodes: Sequence[str], guests: Sequence[Guest], room: bool) -> Attempt:
    """The first attempt in which every guest finds a place, else the one that leaves the fewest.

    When all strategies leave one over, those that are left go first in the next attempt (squeaky wheel optimisation,
    Joslin and Clements 1999), a few times.
    """
    attempts = [level(cluster, nodes, guests)]
    start = Board(cluster, closed=nodes)
    if sum(map(cluster.need, guests)) > sum(max(0, start.free(name)) for name in start.targets()):
        # Whatever moves where, the memory is not there; to look for a way would take long.
        room = False
    for order, choice, with_room in STRATEGIES:
        if not attempts[-1].stuck:
            break
        if with_room <= room:
            attempt = Attempt(cluster, nodes, choice, with_room)
            attempts.append(attempt.run(order(attempt.board, guests)))
    first: list[Guest] = []
    for _round in range(SQUEAKS if room else 0):
        stuck = [guest for guest, _found in attempts[-1].stuck if guest not in first]
        if not stuck:
            break
        first = [*stuck, *first]
        attempt = Attempt(cluster, nodes, choose.tight, room)
        rest = [guest for guest in choose.by_size(attempt.board, guests) if guest not in first]
        attempts.append(attempt.run([*first, *rest]))
    return min(attempts, key=lambda attempt: len(attempt.stuck))
