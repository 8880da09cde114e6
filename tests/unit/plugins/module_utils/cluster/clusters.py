# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random clusters, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import replace

from ansible_collections.drover.kvm.plugins.module_utils._cluster.board import Board
from ansible_collections.drover.kvm.plugins.module_utils._cluster.model import (
    GIB,
    Cluster,
    Guest,
    Node,
    Obstacle,
    Rules,
)

SIZES = (1, 1, 2, 2, 2, 4, 4, 8, 8, 16, 32, 64)
PCI = Obstacle("host_device", "it uses a device of its node", "detach it")


def cluster(seed: int, nodes: int, guests: int, fill: float = 0.6, plain: bool = False) -> Cluster:
    """A cluster whose guests fill that share of its memory; unless `plain` with all that makes planning hard."""
    dice = random.Random(seed)
    members = [_guest(dice, number, plain) for number in range(guests)]
    rules = _rules(dice, members, nodes, plain)
    need = sum(guest.memory + rules.overhead for guest in members if guest.active)
    each = max(int(need / fill / nodes), 66 * GIB) + rules.reserve
    known = {f"hv{number:02}": _node(dice, f"hv{number:02}", each, plain) for number in range(1, nodes + 1)}
    return Cluster(known, tuple(_settled(dice, members, known, rules)), rules)


def _rules(dice: random.Random, guests: list[Guest], nodes: int, plain: bool) -> Rules:
    if plain:
        return Rules(anti_affinity=frozenset({"pair1", "pair2", "pair3"}))
    names = [f"hv{number:02}" for number in range(1, nodes + 1)]
    cpu = {(guest.name, node): dice.random() > 0.5 or "lacks avx" for guest in guests[::7] for node in names}
    pins = {guest.name: frozenset(dice.sample(names, min(2, nodes))) for guest in guests[::11]}
    return Rules(
        anti_affinity=frozenset({"pair1", "pair2", "pair3"}), cpu=cpu, pins=pins, check_return=dice.random() > 0.5
    )


def _node(dice: random.Random, name: str, memory: int, plain: bool) -> Node:
    if plain:
        return Node(name, memory, 32, frozenset({"br0"}))
    return Node(
        name,
        int(memory * dice.uniform(0.8, 1.3)),
        dice.choice((16, 32, 64)),
        frozenset({"br0"} | ({"br1"} if dice.random() > 0.2 else set())),
        frozenset({"pc-q35-7.2"} | ({"pc-q35-10.0"} if dice.random() > 0.3 else set())),
        frozenset({"qemu", "kvm"}),
        vm_capable=dice.random() > 0.05,
        cordon="disk swap" if dice.random() < 0.08 else None,
        reachable=dice.random() > 0.05,
    )


def _guest(dice: random.Random, number: int, plain: bool) -> Guest:
    tags = {f"pair{dice.randint(1, 3)}"} if dice.random() < 0.05 else set()
    hard = not plain
    return Guest(
        f"vm{number:04}",
        "",
        dice.choice(SIZES) * GIB,
        uuid=f"00000000-0000-0000-0000-{number:012}",
        vcpus=dice.choice((1, 2, 4, 8)),
        active=plain or dice.random() > 0.15,
        tags=frozenset(tags),
        bridges=frozenset({"br1"} if hard and dice.random() < 0.2 else {"br0"}),
        machine="pc-q35-10.0" if hard and dice.random() < 0.2 else "pc-q35-7.2",
        virt_type="kvm",
        fixed=(PCI,) if hard and dice.random() < 0.03 else (),
    )


def _settled(dice: random.Random, guests: list[Guest], nodes: dict[str, Node], rules: Rules) -> list[Guest]:
    """The guests on random nodes that have the memory; those for which there is none are left out."""
    free = {name: node.memory - rules.reserve for name, node in nodes.items() if node.reachable}
    settled = []
    for guest in sorted(guests, key=lambda each: -each.memory):
        possible = [name for name in sorted(free) if free[name] >= guest.memory + rules.overhead]
        if not possible:
            continue
        name = dice.choice(possible)
        free[name] -= guest.memory + rules.overhead if guest.active else 0
        home = dice.choice(sorted(nodes)) if dice.random() < 0.3 else None
        settled.append(replace(guest, node=name, home=home))
    return sorted(settled, key=lambda each: each.key)


def even(seed: int, nodes: int, guests: int, fill: float = 0.6) -> Cluster:
    """A plain cluster whose guests were put where most memory was free, the largest first; none has a home."""
    start = cluster(seed, nodes, guests, fill, plain=True)
    board = Board(replace(start, guests=()))
    settled = []
    for guest in sorted(start.guests, key=lambda each: (-each.memory, each.name)):
        name = max(start.nodes, key=lambda node: (board.free(node), node))
        settled.append(replace(guest, node=name, home=None))
        board.put(settled[-1], name)
    return replace(start, guests=tuple(sorted(settled, key=lambda each: each.key)))


def tight(seed: int, nodes: int, guests: int, fill: float) -> Cluster:
    """A cluster whose hv01 can be emptied for certain, and whose other nodes are then filled to that share on average.

    It is made backwards: all guests are on the others, some of the large ones go to hv01, and small ones that stay move
    from the fullest node to the emptiest, each move possible when it is made. So the holes are in pieces.
    """
    dice = random.Random(seed)
    members = sorted((_guest(dice, number, plain=True) for number in range(guests)), key=lambda each: -each.memory)
    rules = _rules(dice, members, nodes, plain=True)
    names = [f"hv{number:02}" for number in range(1, nodes + 1)]
    need = sum(guest.memory + rules.overhead for guest in members)
    room = max(int(need / fill / (nodes - 1)), 66 * GIB)
    board = Board(
        Cluster({name: Node(name, room + rules.reserve, 32, frozenset({"br0"})) for name in names}, (), rules)
    )
    where = dict[Guest, str]()
    for guest in members:
        fits = [name for name in names[1:] if board.hindrance(guest, name) is None]
        if fits:
            where[guest] = dice.choice(fits)
            board.put(guest, where[guest])
    large = [guest for guest in where if guest.memory >= 16 * GIB]
    for guest in dice.sample(large, len(large) // (nodes - 1)):
        board.put(guest, names[0], out_of=where[guest])
        where[guest] = names[0]
    for _time in range(guests):
        full, *_others, empty = sorted(names[1:], key=lambda name: (board.free(name), name))
        small = [guest for guest in where if where[guest] == full and guest.memory <= 4 * GIB]
        guest = dice.choice(small or members)
        if small and board.hindrance(guest, empty) is None:
            board.put(guest, empty, out_of=full)
            where[guest] = empty
    settled = (replace(guest, node=name) for guest, name in where.items())
    return Cluster(board.cluster.nodes, tuple(sorted(settled, key=lambda each: each.key)), rules)
