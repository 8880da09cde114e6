# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A drain that keeps the fullest node as empty as can be found."""

from __future__ import annotations

from collections.abc import Sequence

from . import choose
from .attempt import Attempt, move
from .board import Board
from .model import Cluster, Guest

CEILING_STEP = 0.0005  # How exactly the lowest ceiling is looked for, as a share of a node's memory.
ROUNDS = 200  # Bounds the exchanges after that.
TINY = 1e-9  # Rounding errors are below it.


def level(cluster: Cluster, nodes: Sequence[str], guests: Sequence[Guest]) -> Attempt:
    """The attempt that keeps the fullest node as empty as can be found, and below that the loads even.

    The ceiling is bisected between what the nodes hold already, or will on average, and what filling the emptiest node
    each time gives; below a ceiling the largest goes into the tightest hole (MULTIFIT, Coffman, Garey, Johnson 1978).
    """

    def attempt(choice: choose.Choice) -> Attempt:
        made = Attempt(cluster, nodes, choice, room=False)
        return made.run(choose.by_size(made.board, guests))

    best = attempt(choose.under(1, choose.emptiest))
    start = Board(cluster, closed=nodes)
    need = sum(map(cluster.need, guests)) + sum(start.used[name] for name in best.targets)
    mean = need / max(1, sum(cluster.capacity(name) for name in best.targets))
    low, high = max([mean, *map(start.filled, best.targets)]), _ceiling(best)
    while not best.stuck and high - low > CEILING_STEP:
        middle = (low + high) / 2
        found = attempt(choose.under(middle, choose.tight))
        if found.stuck:
            low = middle
        else:
            best, high = found, min(middle, _ceiling(found))
    best = _lower(best)
    even = attempt(choose.under(_ceiling(best) + TINY, choose.spread))
    return best if len(even.stuck) > len(best.stuck) else even


def _lower(attempt: Attempt) -> Attempt:
    """The attempt with guests moved on or swapped for as long as that lowers the fullest node. None goes from its home.

    A guest that is on the way to a node only takes memory there, so any order of the moves stays possible.
    """
    board, guests = attempt.board, {(guest.name, guest.node): guest for guest in attempt.board.cluster.guests}
    placed = {guests[move.vm, move.source]: move.target for move in attempt.moves}
    loose = [guest for guest in placed if board.cluster.need(guest) and guest.home != placed[guest]]
    for _round in range(ROUNDS):
        peak = max(attempt.targets, key=lambda node: (board.filled(node), node), default="")
        options = []
        for guest in (each for each in loose if placed[each] == peak):
            others: list[tuple[Guest | None, str]] = [(None, node) for node in attempt.targets if node != peak]
            others += [(other, placed[other]) for other in loose if placed[other] != peak]
            options += [(_after(board, guest, other, peak, node), guest, other, node) for other, node in others]
        options = sorted((o for o in options if o[0] < board.filled(peak) - TINY), key=lambda o: (o[0], o[1].key, o[3]))
        done = next((o for o in options if _swap(board, o[1], o[2], peak, o[3])), None)
        if done is None:
            break
        _share, guest, other, node = done
        placed[guest] = node
        placed.update({other: peak} if other else {})
    attempt.moves = [move(guest, target, "drain") for guest, target in placed.items()]
    return attempt


def _after(board: Board, guest: Guest, other: Guest | None, peak: str, node: str) -> float:
    """The share of the fuller of the two nodes when the guest has gone from the peak, and the other one there."""
    less = board.cluster.need(guest) - (board.cluster.need(other) if other else 0)
    shares = ((board.used[name] + sign * less, board.cluster.capacity(name)) for name, sign in ((peak, -1), (node, 1)))
    return max(used / max(1, capacity) for used, capacity in shares)


def _swap(board: Board, guest: Guest, other: Guest | None, peak: str, node: str) -> bool:
    """Do so on the board, if nothing hinders it."""
    board.put(guest, "", out_of=peak)
    if other:
        board.put(other, "", out_of=node)
    possible = board.hindrance(guest, node) is None and (not other or board.hindrance(other, peak) is None)
    board.put(guest, node if possible else peak)
    if other:
        board.put(other, peak if possible else node)
    return possible


def _ceiling(attempt: Attempt) -> float:
    return max(map(attempt.board.filled, attempt.targets), default=0.0)
