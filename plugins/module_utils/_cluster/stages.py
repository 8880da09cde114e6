# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cut an ordered plan into stages: moves of one stage may run at the same time and in any order."""

from __future__ import annotations

from collections.abc import Sequence

from .board import Board
from .model import Cluster, Move


def stages(cluster: Cluster, moves: Sequence[Move]) -> list[list[Move]]:
    """The moves in their order; a new stage begins where a move needs what an earlier one of its stage sets free.

    Within a stage every guest counts on both its nodes, as it does while it migrates.
    """
    board = Board(cluster)
    guests = {guest.key: guest for guest in cluster.guests}
    result: list[list[Move]] = []
    for move in moves:
        guest = guests[move.vm, move.source]
        full = cluster.need(guest) > board.free(move.target) or board.short_of_pages(guest, move.target)
        crowded = full or board.rivals(guest, move.target)
        if result and crowded:
            for done in result[-1]:
                board.put(guests[done.vm, done.source], "", out_of=done.source)
        if not result or crowded:
            result.append([])
        result[-1].append(move)
        board.put(guest, move.target)
    return result
