# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the nodes that could take a guest takes it, and what to say when none can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Callable, Optional

from .board import Board
from .model import Blocker, Guest, Obstacle, size_text

Choice = Callable[[Board, Guest, Iterable[str]], Optional[str]]


def spread(board: Board, guest: Guest, nodes: Iterable[str]) -> str | None:
    """Its home if that is among them, else the node that is least busy with it, by wishes. Keeps loads even.

    One that is shut off goes where it could start, if there is such a node.
    """
    possible = [node for node in nodes if node != guest.node and board.hindrance(guest, node) is None]
    if guest.home in possible and board.starts(guest, guest.home):
        return guest.home
    return min(possible, key=lambda node: (not board.starts(guest, node), board.wish(guest, node), node), default=None)


def tight(board: Board, guest: Guest, nodes: Iterable[str]) -> str | None:
    """The node with the least memory left over. Keeps large holes for large guests."""
    return _first(board, guest, sorted(nodes, key=lambda node: (board.free(node), node)))


def emptiest(board: Board, guest: Guest, nodes: Iterable[str]) -> str | None:
    """The node that is filled least with it."""
    return _first(board, guest, sorted(nodes, key=lambda node: (board.filled(node, guest), node)))


def under(ceiling: float, choice: Choice) -> Choice:
    """Its home if that can take it, else the choice among the nodes that are not filled above the ceiling with it."""

    def choose(board: Board, guest: Guest, nodes: Iterable[str]) -> str | None:
        nodes = list(nodes)
        home = _first(board, guest, [node for node in nodes if node == guest.home and board.starts(guest, node)])
        low = [node for node in nodes if board.filled(node, guest) <= ceiling]
        if home or not (board.cluster.rules.failure_domains and board.cluster.groups(guest)):
            return home or choice(board, guest, low)
        # A failure domain without a rival is worth more than an even load.
        apart = [node for node in nodes if not board.wish(guest, node)[0]]
        best = choice(board, guest, [node for node in low if node in apart])
        return best or emptiest(board, guest, apart) or choice(board, guest, low)

    return choose


def _first(board: Board, guest: Guest, nodes: Iterable[str]) -> str | None:
    need = board.cluster.need(guest)
    roomy = (node for node in nodes if node != guest.node and (not need or board.free(node) >= need))
    return next((node for node in roomy if board.hindrance(guest, node) is None), None)


def by_size(board: Board, guests: Iterable[Guest]) -> list[Guest]:
    """The largest first, since they have the fewest places; those that are shut off last."""
    return sorted(guests, key=lambda guest: (-board.cluster.size(guest), guest.key))


def by_choice(board: Board, guests: Iterable[Guest]) -> list[Guest]:
    """Those that may go to the fewest nodes first, whatever their size."""
    targets = board.targets()
    choices = {g.key: sum(board.lasting(g, node) is None for node in targets) for g in guests}
    return sorted(by_size(board, guests), key=lambda guest: choices[guest.key])


def fixed(guest: Guest) -> list[Blocker]:
    """What keeps the guest where it is, whatever the destination."""
    return blockers(guest, guest.fixed)


def blockers(guest: Guest, obstacles: Iterable[Obstacle]) -> list[Blocker]:
    """The obstacles of the guest, as blockers where it is."""
    return [Blocker(guest.name, guest.node, o.reason, o.text, o.mend) for o in obstacles]


def nowhere(board: Board, guest: Guest, hindrances: Mapping[str, Obstacle]) -> list[Blocker]:
    """One blocker for each kind of hindrance, naming the nodes that it concerns; mending one of them is enough."""
    kinds: dict[str, list[str]] = {}
    for node in sorted(hindrances):
        kinds.setdefault(hindrances[node].reason, []).append(node)
    size = board.cluster.size(guest)
    name = f"{guest.name} ({size_text(size)})" if size else guest.name
    blockers = []
    for reason in sorted(kinds):
        words = "; ".join(f"{node} {hindrances[node].text}" for node in kinds[reason])
        mends = list(dict.fromkeys(hindrances[node].mend for node in kinds[reason]))
        blockers.append(Blocker(guest.name, guest.node, reason, f"{name} has no place: {words}", "; or ".join(mends)))
    return blockers


def left_out(board: Board) -> tuple[str, ...]:
    """In words, the nodes that were no choice although they might be one another day."""
    reasons = {name: board.shut(name) for name in sorted(board.cluster.nodes)}
    return tuple(
        f"{name} was left out: it {obstacle.text}"
        for name, obstacle in reasons.items()
        if obstacle and obstacle.reason in ("cordoned", "node_unreachable")
    )


def no_target(board: Board, node: str) -> Blocker:
    """The blocker for a cluster in which no node takes guests."""
    reasons = {name: board.shut(name) for name in sorted(board.cluster.nodes)}
    words = "; ".join(f"{name} {obstacle.text}" for name, obstacle in reasons.items() if obstacle)
    mend = "bring a node back, lift a cordon, or add a node"
    return Blocker("", node, "no_destination", f"no node can take VMs: {words or 'none is known'}", mend)


def unknown_guests(board: Board, names: Iterable[str]) -> list[Blocker]:
    """A blocker for each name that no node has; one that is elsewhere is where it shall be."""
    known = {guest.name for guest in board.cluster.guests}
    mend = "look at its name, and whether a node that does not answer holds it"
    return [Blocker(n, "", "unknown_vm", f"{n} is on no node that answers", mend) for n in names if n not in known]


def missing_node(board: Board, name: str) -> list[Blocker]:
    """The blocker for a node that is not known or gives no answer; nothing when it is fine."""
    node = board.cluster.nodes.get(name)
    if node is None:
        known = ", ".join(sorted(board.cluster.nodes)) or "none"
        return [Blocker("", name, "unknown_node", f"{name} is not a node of this cluster", f"name one of: {known}")]
    if not node.reachable:
        text = f"{name} does not answer: what runs there is not known"
        mend = "bring it back; if it is dead, fence it and start its VMs elsewhere"
        return [Blocker("", name, "node_unreachable", text, mend)]
    return []
