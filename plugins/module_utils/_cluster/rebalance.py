# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Even out the load of the nodes, with as few GiB and moves as can be found; each move is possible when it comes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from . import choose
from .attempt import move
from .board import Board
from .model import GIB, Cluster, Guest, Move, Plan, size_text

# What a move costs beside its bytes. With a small one many small VMs move, with a large one few large VMs, and small
# ones are left to level out the rest; which is better differs from cluster to cluster, so each is tried.
MOVE_COSTS = (16 * GIB, 64 * GIB, 512 * GIB)
TINY = 1e-9  # Gains below it are rounding errors.
Rated = tuple[float, str, Guest]


@dataclass(frozen=True)
class Limits:
    """How much may be moved, and what stays.

    Budgets in moves and in bytes of memory (None: no limit). Nothing moves while no node is further than `threshold`
    (a share, 0.1 is 10 %) from its aim.
    """

    max_moves: int | None = None
    max_memory_moved: int | None = None
    threshold: float = 0.1

    def allow(self, moves: int, memory: int) -> bool:
        """Whether so many moves, of so many bytes together, are within the budgets."""
        enough = self.max_moves is None or moves <= self.max_moves
        return enough and (self.max_memory_moved is None or memory <= self.max_memory_moved)


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

    def uneven(self) -> float:
        """The sum of the squares of all distances, which is what the descent makes small."""
        return sum(part**2 for name in self.nodes for part in self.off(name))

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
    settled: frozenset[tuple[str, str]]
    cost: int
    moves: list[Move] = field(default_factory=list)
    memory: int = 0
    movable: dict[str, list[tuple[int, int, Guest]]] = field(default_factory=dict)
    best: dict[tuple[str, str], list[Rated]] = field(default_factory=dict)

    def run(self, uneven: bool) -> None:
        """Take apart what must be; then, if `uneven`, level out until nothing helps or a budget is used up."""
        self._part()
        if not uneven:
            return
        self._rate(self.scale.nodes)
        while self.scale.worst() > self.limits.threshold / 2 and self._within(0):
            found = self._next()
            if found is None:
                break
            guest, target = found
            self._move(guest, target, "balance")
            self._rate([guest.node, target])

    def _part(self) -> None:
        """Take guests apart that must be kept apart and are on one node, the smaller one of two moving.

        One that is settled goes where the others can't.
        """
        smallest = reversed(choose.by_size(self.board, self.board.cluster.guests))
        for guest in sorted(smallest, key=lambda guest: guest.key in self.settled):
            loose = guest.node in self.scale.nodes and not guest.fixed and guest.key not in self.stay
            if loose and self._within(guest.memory) and self.board.rivals(guest, guest.node):
                target = choose.spread(self.board, guest, self.scale.nodes)
                if target:
                    self._move(guest, target, "apart")

    def _move(self, guest: Guest, target: str, why: str) -> None:
        self.board.put(guest, target, out_of=guest.node)
        self.stay.add(guest.key)
        self.memory += guest.memory
        self.moves.append(move(guest, target, why))

    @property
    def result(self) -> tuple[float, int]:
        """What the best of several has least of: how uneven it ends (to a millionth), then the bytes moved."""
        return round(self.scale.uneven(), 6), self.memory

    def _within(self, more: int) -> bool:
        """Whether the budgets allow one move more, of so many bytes."""
        return self.limits.allow(len(self.moves) + 1, self.memory + more)

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
        if top is None:
            return None
        return top[2], top[1][1]

    def _possible(self, pair: tuple[str, str]) -> tuple[float, Guest] | None:
        for score, _name, guest in self.best[pair]:
            if self._within(guest.memory) and self.board.hindrance(guest, pair[1]) is None:
                return score, guest
        return None

    def _rate(self, changed: Iterable[str]) -> None:
        """Rate again all moves from and to nodes that changed."""
        changed, nodes, need = set(changed), self.scale.nodes, self.board.cluster.need
        for name in changed:
            guests = (g for g in self.board.at[name].values() if self._loose(g))
            self.movable[name] = [(need(guest), guest.vcpus, guest) for guest in guests]
        off = {name: self.scale.off(name) for name in nodes}
        for source in nodes:
            for target in nodes if source in changed else changed:
                if source != target:
                    self.best[source, target] = self._rated(source, target, off)

    def _loose(self, guest: Guest) -> bool:
        """Whether it may be moved to even out loads."""
        bound = guest.fixed or guest.fresh or guest.key in self.stay or guest.key in self.settled
        return guest.active and not bound

    def _rated(self, source: str, target: str, off: Mapping[str, tuple[float, float]]) -> list[Rated]:
        """The guests whose move from source to target helps, the one that helps most for its cost first.

        What counts is the sum of the squares of all distances from the aims. The score is below zero.
        """
        (sm, sv), (tm, tv), scale = off[source], off[target], self.scale
        if sm <= tm and sv <= tv:
            return []
        ms, mt = 1 / scale.capacity[source], 1 / scale.capacity[target]
        vs, vt = scale.vcpu_scale[source], scale.vcpu_scale[target]
        slope_m, slope_v = 2 * (sm * ms - tm * mt), 2 * (sv * vs - tv * vt)
        bend_m, bend_v = ms**2 + mt**2, vs**2 + vt**2
        rated = []
        for size, vcpus, guest in self.movable[source]:
            gain = size * (slope_m - size * bend_m) + vcpus * (slope_v - vcpus * bend_v)
            if gain > TINY:
                rated.append((-gain / (size + self.cost), guest.name, guest))
        rated.sort(key=_score)
        return rated


def _score(rated: Rated) -> tuple[float, str]:
    return rated[:2]


def rebalance(
    cluster: Cluster,
    limits: Limits,
    weights: Mapping[str, float] | None = None,
    stay: Collection[tuple[str, str]] = (),
    settled: Collection[tuple[str, str]] = (),
) -> Plan:
    """Bring the running guests of the nodes nearer to the nodes' weights (none: by what the nodes can take).

    Nodes that take no guests are left as they are, and so are the guests whose keys are in `stay`; those in `settled`
    move only to be kept apart from others. Nothing that breaks a rule is planned, and no guest moves twice.
    """
    scale = Scale(Board(cluster), weights or {})
    before = scale.worst()
    descents = []
    for cost in MOVE_COSTS:
        board = Board(cluster)
        descents.append(Descent(board, Scale(board, weights or {}), limits, set(stay), frozenset(settled), cost))
        descents[-1].run(before > limits.threshold)
    best = min(descents, key=lambda each: each.result)
    return Plan(tuple(best.moves), warnings=_notes(best, before, " beside those that come home" if stay else ""))


def _notes(descent: Descent, before: float, beside: str) -> tuple[str, ...]:
    """What people ask afterwards: how even it was and will be, and why it stops there."""
    limits, after = descent.limits, descent.scale.worst()
    said = [f"the node furthest from its aim is {100 * before:.1f} % off, {100 * after:.1f} % after it"]
    if before <= limits.threshold and not descent.moves:
        said = [f"no node is further than {100 * limits.threshold:.4g} % from its aim, so nothing moves"]
    elif after > limits.threshold:
        count = len(descent.moves)
        spent = f"{count} move{'s' * (count != 1)}, {size_text(descent.memory)}"
        said.append(f"it stays uneven: the budget, the rules or the sizes of the VMs allow no more ({spent}{beside})")
    return (*said, *_together(descent.board, descent.scale.nodes), *choose.left_out(descent.board))


def _together(board: Board, nodes: Iterable[str]) -> Iterator[str]:
    """In words, the guests that are still with one from which they must be kept apart."""
    for name in nodes:
        for guest in sorted(board.at[name].values(), key=lambda guest: guest.key):
            others = [other.name for other in board.rivals(guest, name) if other.key < guest.key]
            if others:
                yield f"{guest.name} stays on {name} with {', '.join(others)}, from which it must be kept apart"
