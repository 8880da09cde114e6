# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Even out the load of the nodes, with as few GiB and moves as can be found; each move is possible when it comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import choose
from .board import Board
from .drain import move
from .model import GIB, Cluster, Guest, Move, Plan, size_text

# What a move costs beside its bytes, so that one large VM is rather moved than twenty small ones.
MOVE_COST = 4 * GIB
TINY = 1e-9  # Gains below it are rounding errors.


@dataclass(frozen=True)
class Limits:
    """How much may be moved, and what stays.

    Budgets in moves and in bytes of memory (None: no limit). Nothing moves while no node is further than `threshold`
    (a share, 0.1 is 10 %) from its aim. A guest that was moved less than `hold_off` seconds before `now` (seconds
    since 1970) stays.
    """

    max_moves: int | None = None
    max_memory: int | None = None
    threshold: float = 0.1
    hold_off: int = 0
    now: int = 0


class Scale:
    """How far each node is from its aim, its share of what the movable nodes carry together.

    Memory is measured in shares of what guests may take on the node. vCPUs per thread are brought to the same scale: a
    node with its fair share of both has the same number twice.
    """

    def __init__(self, board: Board, weights: Mapping[str, float]) -> None:
        cluster = board.cluster
        self.board = board
        self.nodes = board.targets()
        self.capacity = {name: max(1, cluster.capacity(name)) for name in self.nodes}
        threads = {name: cluster.nodes[name].threads for name in self.nodes}
        memory = sum(board.used[name] for name in self.nodes)
        vcpus = sum(board.vcpus[name] for name in self.nodes)
        self.memory_aim = _shares(memory, weights or self.capacity, self.nodes)
        self.vcpu_aim = _shares(vcpus, weights or threads, self.nodes)
        # vCPUs times this are as a share of memory.
        mean = memory / max(1, sum(self.capacity.values()))
        self.vcpu_scale = {name: mean * sum(threads.values()) / max(1, vcpus) / threads[name] for name in self.nodes}

    def off(self, name: str) -> tuple[float, float]:
        """How far the node is above its aim (below zero: under it), in memory and in vCPUs."""
        memory = (self.board.used[name] - self.memory_aim[name]) / self.capacity[name]
        return memory, (self.board.vcpus[name] - self.vcpu_aim[name]) * self.vcpu_scale[name]

    def worst(self) -> float:
        """The largest distance of any node from its aim."""
        return max((abs(part) for name in self.nodes for part in self.off(name)), default=0.0)


def _shares(total: int, weights: Mapping[str, float], nodes: Iterable[str]) -> dict[str, float]:
    nodes = list(nodes)
    whole = sum(weights.get(name, 0) for name in nodes) or 1
    return {name: total * weights.get(name, 0) / whole for name in nodes}


@dataclass
class Descent:
    """Steepest descent: at each step the move that evens out most for what it costs. The same for the same facts."""

    board: Board
    scale: Scale
    limits: Limits
    stay: set[tuple[str, str]]
    moves: list[Move] = field(default_factory=list)
    memory: int = 0
    best: dict[tuple[str, str], list[tuple[float, str, Guest]]] = field(default_factory=dict)

    def run(self) -> None:
        """Move until the nodes are well within the threshold, nothing helps any more, or a budget is used up."""
        self._rate(self.scale.nodes)
        while self.scale.worst() > self.limits.threshold / 2 and self._within(0):
            found = self._next()
            if found is None:
                break
            guest, target = found
            self.board.put(guest, target, out_of=guest.node)
            self.stay.add(guest.key)
            self.memory += guest.memory
            self.moves.append(move(guest, target, "balance"))
            self._rate([guest.node, target])

    def _within(self, more: int) -> bool:
        limits = self.limits
        moves = limits.max_moves is None or len(self.moves) < limits.max_moves
        return moves and (limits.max_memory is None or self.memory + more <= limits.max_memory)

    def _next(self) -> tuple[Guest, str] | None:
        """The best move that is possible now."""
        pairs = sorted((rated[0][0], pair) for pair, rated in self.best.items() if rated)
        top: tuple[float, tuple[str, str], Guest] | None = None
        for score, pair in pairs:
            if top and top[0] <= score:
                break
            found = self._possible(pair)
            if found and (top is None or (found[0], pair) < (top[0], top[1])):
                top = (found[0], pair, found[1])
        return (top[2], top[1][1]) if top else None

    def _possible(self, pair: tuple[str, str]) -> tuple[float, Guest] | None:
        for score, _name, guest in self.best[pair]:
            if self._within(guest.memory) and self.board.hindrance(guest, pair[1]) is None:
                return score, guest
        return None

    def _rate(self, changed: Iterable[str]) -> None:
        """Rate again all moves from and to nodes that changed."""
        changed = set(changed)
        off = {name: self.scale.off(name) for name in self.scale.nodes}
        for source in self.scale.nodes:
            guests = [g for g in self.board.at[source].values() if g.active and not g.fixed and g.key not in self.stay]
            for target in self.scale.nodes:
                if source != target and (source in changed or target in changed):
                    self.best[source, target] = self._rated(guests, source, target, off)

    def _rated(
        self, guests: Iterable[Guest], source: str, target: str, off: Mapping[str, tuple[float, float]]
    ) -> list[tuple[float, str, Guest]]:
        """The guests whose move from source to target helps, the one that helps most for its cost first.

        What counts is the sum of the squares of all distances from the aims. The score is below zero.
        """
        (sm, sv), (tm, tv), scale, overhead = off[source], off[target], self.scale, self.board.cluster.rules.overhead
        if sm <= tm and sv <= tv:
            return []
        ms, mt = 1 / scale.capacity[source], 1 / scale.capacity[target]
        vs, vt = scale.vcpu_scale[source], scale.vcpu_scale[target]
        slope_m, slope_v, bend_m, bend_v = (
            2 * (sm * ms - tm * mt),
            2 * (sv * vs - tv * vt),
            ms**2 + mt**2,
            vs**2 + vt**2,
        )
        rated = []
        for guest in guests:
            size, vcpus = guest.memory + overhead, guest.vcpus
            gain = size * (slope_m - size * bend_m) + vcpus * (slope_v - vcpus * bend_v)
            if gain > TINY:
                rated.append((-gain / (size + MOVE_COST), guest.name, guest))
        rated.sort(key=lambda one: one[:2])
        return rated


def rebalance(
    cluster: Cluster,
    limits: Limits,
    weights: Mapping[str, float] | None = None,
    stay: frozenset[tuple[str, str]] = frozenset(),
) -> Plan:
    """Bring the running guests of the nodes nearer to the nodes' weights (none: by what the nodes can take).

    Nodes that take no guests are left as they are, and so are the guests whose keys are in `stay`. Nothing that breaks
    a rule is planned, and no guest moves twice.
    """
    board = Board(cluster)
    scale = Scale(board, weights or {})
    before = scale.worst()
    held = {g.key for g in cluster.guests if g.moved and limits.now - g.moved < limits.hold_off}
    descent = Descent(board, scale, limits, held | stay)
    if before > limits.threshold:
        descent.run()
    return Plan(tuple(descent.moves), warnings=_notes(board, descent, before, held))


def _notes(board: Board, descent: Descent, before: float, held: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """What people ask afterwards: how even it was and will be, and what stayed although it might have moved."""
    limits, after = descent.limits, descent.scale.worst()
    said = [f"the node furthest from its aim is {100 * before:.1f} % off, {100 * after:.1f} % after it"]
    if before <= limits.threshold:
        said = [f"no node is further than {100 * limits.threshold:.4g} % from its aim, so nothing moves"]
    elif after > limits.threshold:
        count = len(descent.moves)
        spent = f"{count} move{'s' * (count != 1)}, {size_text(descent.memory)}"
        said.append(f"it stays uneven: the budget, the rules or the sizes of the VMs allow no more ({spent})")
    names = sorted(name for name, _node in held)
    said += [f"moved less than {limits.hold_off // 60} min ago and left: {', '.join(names)}"] if names else []
    return (*said, *choose.left_out(board))
