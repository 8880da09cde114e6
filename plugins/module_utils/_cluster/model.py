# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the planner knows: nodes, guests, the rules of the site, moves and blockers. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

# What a node said when it compared a guest's CPU with its own: True, or why it can't run it.
CpuMatrix = Mapping["tuple[str, str]", Union[bool, str]]
RUNNING = ("running", "paused", "blocked", "pmsuspended", "in shutdown", "crashed", "idle")
GIB = 2**30
# What becomes of a guest when its node is emptied, see maintenance.py; the two after RESTART keep it there.
MIGRATE, RESTART, SHUTDOWN, LEAVE, REFUSE = "migrate", "restart", "shutdown", "leave", "refuse"
STAYING = frozenset({SHUTDOWN, LEAVE})


@dataclass(frozen=True)
class Obstacle:
    """Why something can't be done, as a keyword and in words, and what mends it."""

    reason: str
    text: str
    mend: str


@dataclass(frozen=True)
class Node:
    """A hypervisor. Empty sets of machine types and virtualisation types mean that it did not say.

    `reserved` are the VLANs of the hosts by bridge, `vlans` those that its uplinks carry, where not all. `pages` are
    the bytes in huge pages by the size of a page, which are a part of `memory`. `leases` is the directory of the
    leases, empty where there is none. `firmware` is what it has of efi and tpm for VMs; None where it did not say.
    """

    name: str
    memory: int = 0
    threads: int = 1
    bridges: frozenset[str] = frozenset()
    machine_types: frozenset[str] = frozenset()
    virt_types: frozenset[str] = frozenset()
    vm_capable: bool = True
    cordon: str | None = None
    reachable: bool = True
    reserved: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    vlans: Mapping[str, frozenset[int]] = field(default_factory=dict)
    pages: Mapping[int, int] = field(default_factory=dict)
    leases: str = ""
    firmware: frozenset[str] | None = None


@dataclass(frozen=True)
class Guest:
    """A VM on the node that named it; `node` is empty for one that is still to be placed.

    `memory` is the most that it may take (the balloon may grow). `fixed` says why it can't be moved at all,
    `copies` that its disks are files which move with it, `ejects` that a medium of its node is taken out of its drive
    before, `state_elsewhere` that it could not move while it is shut off.
    `page` is the size of the huge pages that back its memory (0: none do), `lease` the directory of its lease. One
    that is `fresh` came to its node a short while ago. `verb` is what becomes of it when its node is emptied; one that
    `waits` was shut down for that and is to be started again, so it counts as active; `recorded` is the mark of that,
    which an interrupted run may leave on one that runs. `firmware` is what it takes of efi and tpm. `cpu` says that its
    node told its CPU, which the nodes compare with their own.
    """

    name: str
    node: str
    memory: int
    uuid: str = ""
    vcpus: int = 1
    active: bool = True
    tags: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    vlans: frozenset[tuple[str, int]] = frozenset()
    machine: str = ""
    virt_type: str = ""
    home: str | None = None
    fixed: tuple[Obstacle, ...] = ()
    nics: tuple[Mapping[str, Any], ...] = ()
    copies: bool = False
    ejects: bool = False
    state_elsewhere: bool = False
    page: int = 0
    lease: str = ""
    fresh: bool = False
    verb: str = MIGRATE
    waits: bool = False
    recorded: bool = False
    firmware: frozenset[str] = frozenset()
    cpu: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others, also from a copy of the same name on another node."""
        return (self.name, self.node)

    @property
    def mode(self) -> str:
        """How it moves: live, offline as a definition, or by a restart: shut down, moved and started there."""
        if self.waits or (self.active and self.verb == RESTART):
            return "restart"
        return "live" if self.active else "offline"


@dataclass(frozen=True)
class Rules:
    """What the site asks for.

    `reserve` is kept for the node itself, `overhead` is added to each running guest. With `copy_storage` files of a
    node may be copied to another, with `eject_cdrom` media of a node ejected. Guests that run on their node for less
    than `hold_off` seconds are left there when loads are evened out. Wishes, which no guest stays behind for: guests
    that share a tag of `affinity` go together, those of `anti_affinity` to nodes of different `failure_domains` (domain
    by node).
    """

    reserve: int = 2 * GIB
    overhead: int = GIB // 8
    anti_affinity: frozenset[str] = frozenset()
    affinity: frozenset[str] = frozenset()
    failure_domains: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    cpu: CpuMatrix = field(default_factory=dict)
    check_return: bool = True
    copy_storage: bool = False
    eject_cdrom: bool = False
    hold_off: int = 0


@dataclass(frozen=True)
class Cluster:
    """All that is known at the start of a plan."""

    nodes: Mapping[str, Node]
    guests: tuple[Guest, ...]
    rules: Rules = field(default_factory=Rules)

    def capacity(self, node: str) -> int:
        """The bytes of memory that guests may take on the node beside its huge pages."""
        return self.nodes[node].memory - sum(self.nodes[node].pages.values()) - self.rules.reserve

    def need(self, guest: Guest) -> int:
        """The bytes that the guest takes on its node beside huge pages; nothing while it is shut off."""
        return self.awake(guest) if guest.active else 0

    def awake(self, guest: Guest) -> int:
        """The same as if it ran."""
        return (0 if guest.page else guest.memory) + self.rules.overhead

    def paged(self, guest: Guest) -> int:
        """The bytes that it takes in huge pages."""
        return guest.memory if guest.page and guest.active else 0

    def size(self, guest: Guest) -> int:
        """All bytes that the guest takes on its node."""
        return self.need(guest) + self.paged(guest)

    def lost_vlans(self, guest: Guest, name: str) -> list[tuple[str, int]]:
        """The VLANs of the guest (bridge, VLAN) that don't leave the node, though they leave another one."""

        def leaves(node: Node, bridge: str, vlan: int) -> bool:
            return bridge in node.bridges and vlan in node.vlans.get(bridge, (vlan,))

        limited = [(bridge, vlan) for bridge, vlan in guest.vlans if bridge in self.nodes[name].vlans]
        return sorted(
            way
            for way in limited
            if not leaves(self.nodes[name], *way) and any(leaves(other, *way) for other in self.nodes.values())
        )

    def runs_cpu(self, guest: Guest, node: str) -> bool | str:
        """True if the node can run the guest's CPU, else why not; where others compared it, silence is no yes."""
        silence = "it was not compared there" if guest.cpu and self.rules.cpu else True
        return self.rules.cpu.get((guest.name, node), silence)

    def groups(self, guest: Guest) -> frozenset[str]:
        """The tags of the guest that keep it away from others; a guest that is shut off disturbs nobody."""
        return guest.tags & self.rules.anti_affinity if guest.active else frozenset()


@dataclass(frozen=True)
class Move:
    """One migration: running guests live or by a restart, those that are shut off as a definition."""

    vm: str
    uuid: str
    source: str
    target: str
    mode: str
    memory: int
    why: str = ""
    copies: bool = False
    ejects: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As the module migrate takes it."""
        names = {"vm": self.vm, "uuid": self.uuid, "from": self.source, "to": self.target}
        storage = {"storage": "copy"} if self.copies else {}
        drive = {"eject_cdrom": True} if self.ejects else {}
        return {**names, "mode": self.mode, "memory": self.memory, **storage, **drive}


@dataclass(frozen=True)
class Blocker:
    """Why the plan can't be carried out: the guest (empty when it is about a node), where, why, and what mends it."""

    vm: str
    node: str
    reason: str
    text: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        """As data for a result."""
        return {"vm": self.vm, "node": self.node, "reason": self.reason, "text": self.text, "mend": self.mend}


@dataclass(frozen=True)
class Plan:
    """What shall be done: moves in an order in which each is possible, or where new guests go; and what hinders.

    `emptied` are the nodes that guests leave, and `leaving` the names of those that do (None: all). `staying` are the
    guests that stay there by their own word, and are shut down or left alone. `starts` are guests that start where they
    are.
    """

    moves: tuple[Move, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    placements: Mapping[str, str] = field(default_factory=dict)
    emptied: frozenset[str] = frozenset()
    leaving: frozenset[str] | None = None
    warnings: tuple[str, ...] = ()
    staying: frozenset[tuple[str, str]] = frozenset()
    starts: tuple[tuple[str, str], ...] = ()


def size_text(size: int) -> str:
    """A size for people: 1.5 GiB, 512 MiB."""
    if abs(size) < GIB:
        return f"{size / 2**20:.4g} MiB"
    return f"{size / GIB:.4g} GiB"
