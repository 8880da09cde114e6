# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make room for a guest that fits nowhere: move others away from one node, as few bytes as can be found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from . import choose
from .board import Board
from .model import Guest

Steps = list[tuple[Guest, str]]
TRIALS = 2000  # bounds the work in a hopeless cluster


def make_room(board: Board, guest: Guest, targets: Sequence[str], moved: Collection[tuple[str, str]]) -> Steps:
    """The moves that end with the guest's own; empty when no single node can be cleared for it.

    Guests that are in `moved` have travelled in this plan already and stay where they are.
    """
    options = []
    for target in targets:
        # Memory is what others can make room in; huge pages are a node's own affair.
        if target == guest.node or board.lasting(guest, target) or board.short_of_pages(guest, target):
            continue
        options += [(_bytes(board, leaving), target, leaving) for leaving in _leavers(board, guest, target, moved)]
    options.sort(key=lambda option: (option[0], len(option[2]), option[1], [g.key for g in option[2]]))
    for _size, target, leaving in options[:TRIALS]:
        steps = _trial(board, leaving, [node for node in targets if node != target])
        if steps is not None:
            return [*steps, (guest, target)]
    return []


def _bytes(board: Board, guests: Sequence[Guest]) -> int:
    return sum(board.cluster.need(guest) for guest in guests)


def _leavers(board: Board, guest: Guest, target: str, moved: Collection[tuple[str, str]]) -> Iterator[list[Guest]]:
    """Sets of guests whose leaving would let this one in; always those that must be kept apart from it."""
    movable = [g for g in board.at[target].values() if g.mode == "live" and not g.fixed and g.key not in moved]
    must = board.rivals(guest, target)
    if any(rival not in movable for rival in must):
        return
    missing = board.cluster.need(guest) - board.free(target) - _bytes(board, must)
    if missing <= 0:
        yield must
        return
    others = [(board.cluster.need(g), g) for g in choose.by_size(board, (g for g in movable if g not in must))]
    others.sort(key=lambda other: -other[0])
    for start in range(len(others)):
        chosen = _cover(others[start:], missing)
        if chosen:
            yield [*must, *chosen]


def _cover(guests: Sequence[tuple[int, Guest]], missing: int) -> list[Guest]:
    """Guests (with their bytes, the largest first) that free at least the missing bytes with little waste.

    Empty if they can't.
    """
    chosen: list[Guest] = []
    last: Guest | None = None  # The smallest that alone frees what is missing in the end, of those not chosen.
    left: list[tuple[int, Guest]] = []
    for need, guest in guests:
        if missing and need <= missing:
            chosen.append(guest)
            missing -= need
        else:
            left.append((need, guest))
    if not missing:
        return chosen
    for need, guest in left:
        last = guest if need >= missing else last
    return [*chosen, last] if last else []


def _trial(board: Board, leaving: Sequence[Guest], targets: Sequence[str]) -> Steps | None:
    """Places for all of the leaving guests; the board is left as it was found. None when one has no place."""
    steps: Steps = []
    for guest in choose.by_size(board, leaving):
        target = choose.tight(board, guest, targets)
        if target is None:
            break
        board.put(guest, target, out_of=guest.node)
        steps.append((guest, target))
    for guest, target in reversed(steps):
        board.put(guest, guest.node, out_of=target)
    return steps if len(steps) == len(leaving) else None
