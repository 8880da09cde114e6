# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One try at emptying nodes: each guest in its turn to the node that a choice names, with room made if need be."""

from __future__ import annotations

from collections.abc import Iterable

from . import choose
from .board import Board
from .model import Cluster, Guest, Move, Obstacle
from .room import make_room


class Attempt:
    """One try at emptying the nodes in one way; `stuck` are the guests for which no place was found."""

    def __init__(self, cluster: Cluster, nodes: Iterable[str], choice: choose.Choice, room: bool) -> None:
        self.board = Board(cluster, closed=nodes)
        self.targets = self.board.targets()
        self.choice = choice
        self.room = room
        self.moves: list[Move] = []
        self.stuck: list[tuple[Guest, dict[str, Obstacle]]] = []

    def run(self, guests: Iterable[Guest]) -> Attempt:
        """Find a place for each of the guests, in that order."""
        for guest in guests:
            target = self.choice(self.board, guest, self.targets)
            moves = [(guest, target)] if target else self._with_room(guest)
            for moved, node in moves:
                self._move(moved, node, "drain" if moved is guest else f"room for {guest.name}")
            if not moves:
                hindrances = ((node, self.board.hindrance(guest, node)) for node in self.targets)
                self.stuck.append((guest, {node: found for node, found in hindrances if found}))
        return self

    def _with_room(self, guest: Guest) -> list[tuple[Guest, str]]:
        moved = {(move.vm, move.source) for move in self.moves}
        return make_room(self.board, guest, self.targets, moved) if self.room else []

    def _move(self, guest: Guest, target: str, why: str) -> None:
        self.board.put(guest, target, out_of=guest.node)
        self.moves.append(move(guest, target, why))


def move(guest: Guest, target: str, why: str) -> Move:
    """The move of a guest from where the facts say it is."""
    along = (guest.copies, guest.ejects)
    return Move(guest.name, guest.uuid, guest.node, target, guest.mode, guest.memory, why, *along)
