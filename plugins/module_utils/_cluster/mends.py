# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The smallest set of mends that makes a refused drain possible, found by planning again as if they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Callable

from . import maintenance
from .board import Board
from .model import Cluster, Guest, Plan, size_text

# More mends to choose from, or more guests, would mean many seconds of planning.
MOST, MOST_GUESTS = 8, 500


@dataclass(frozen=True)
class Mend:
    """Something that people could do: in words, and the cluster as it were then."""

    text: str
    apply: Callable[[Cluster], Cluster]


def enough(cluster: Cluster, plan: Plan, again: Callable[[Cluster], Plan]) -> list[str]:
    """Words for the smallest set of mends with which `again` has no blocker; empty when none of a few is enough.

    What keeps a guest where it is must be mended in any case. Of the rest, one is tried, then two, then as few as are
    left when each that is not needed is taken out of all (that set may not be the smallest, but none of it is idle).
    """
    blocked = {blocker.vm for blocker in plan.blockers} - {""}
    reasons = {blocker.reason for blocker in plan.blockers}
    guests = [guest for guest in cluster.guests if guest.name in blocked and guest.node in plan.emptied]
    must = [mend for guest in guests for mend in _loose(guest)]
    others = _others(cluster, plan, guests, reasons)
    if any(not blocker.vm for blocker in plan.blockers if blocker.reason != "no_destination"):
        return []
    if len(others) > MOST or len(cluster.guests) > MOST_GUESTS:
        return []
    chosen = _smallest(others, lambda some: not again(_with(cluster, [*must, *some])).blockers)
    return [] if chosen is None else [mend.text for mend in (*must, *chosen)]


def _smallest(mends: Sequence[Mend], works: Callable[[Sequence[Mend]], bool]) -> list[Mend] | None:
    for size in (0, 1, 2):
        for some in combinations(mends, size):
            if works(some):
                return list(some)
    if not works(mends):
        return None
    needed = list(mends)
    # The hardest to do stand last, so they are tried first.
    for mend in reversed(mends):
        without = [one for one in needed if one is not mend]
        if works(without):
            needed = without
    return needed


def _with(cluster: Cluster, mends: Sequence[Mend]) -> Cluster:
    for mend in mends:
        cluster = mend.apply(cluster)
    return cluster


def _loose(guest: Guest) -> list[Mend]:
    """One mend for each obstacle; the first of them frees the guest for the next plan."""
    free = _changed(guest, fixed=())
    return [Mend(f"{guest.name}: {obstacle.mend}", free) for obstacle in maintenance.against(guest)]


def _others(cluster: Cluster, plan: Plan, guests: Sequence[Guest], reasons: set[str]) -> list[Mend]:
    """All other mends that may help, the easiest first."""
    mends = [
        Mend(f"undrain {name} (it is cordoned: {node.cordon})", _node(name, cordon=None))
        for name, node in sorted(cluster.nodes.items())
        if node.cordon is not None and node.reachable and node.vm_capable and name not in plan.emptied
    ]
    if "cpu_return" in reasons:
        text = "check_return: false, if the VMs shall not come back to where they are now"
        mends.append(Mend(text, lambda now: replace(now, rules=replace(now.rules, check_return=False))))
    mends += [_unpinned(g.name) for g in guests if "pinned" in reasons and g.name in cluster.rules.pins]
    mends += _bridges(cluster, plan, guests) if "bridge" in reasons else []
    mends += _vlans(cluster, plan, guests) if "vlan" in reasons else []
    if "anti_affinity" in reasons:
        mends += [_together(tag) for tag in sorted(frozenset().union(*(cluster.groups(g) for g in guests)))]
    for guest in guests:
        mends += _own(cluster, guest, reasons)
    return mends


def _bridges(cluster: Cluster, plan: Plan, guests: Sequence[Guest]) -> list[Mend]:
    board = Board(cluster, closed=plan.emptied)
    wanted = frozenset[str]().union(*(guest.bridges for guest in guests))
    return [
        Mend(f"create bridge {name} on {node}", _node(node, bridges=cluster.nodes[node].bridges | {name}))
        for name in sorted(wanted)
        for node in board.targets()
        if name not in cluster.nodes[node].bridges
    ]


def _vlans(cluster: Cluster, plan: Plan, guests: Sequence[Guest]) -> list[Mend]:
    board = Board(cluster, closed=plan.emptied)
    found = []
    for bridge, vlan in sorted(frozenset[tuple[str, int]]().union(*(guest.vlans for guest in guests))):
        for node in board.targets():
            has = cluster.nodes[node].vlans
            if vlan not in has.get(bridge, (vlan,)):
                more = {**has, bridge: has[bridge] | {vlan}}
                found.append(Mend(f"let VLAN {vlan} out of {bridge} on {node}", _node(node, vlans=more)))
    return found


def _own(cluster: Cluster, guest: Guest, reasons: set[str]) -> list[Mend]:
    """What can be done with the guest itself."""
    mends = []
    if reasons & {"machine_type", "virt_type"}:
        text = f"{guest.name}: give it a machine type that the others offer, and power it off and on"
        mends.append(Mend(text, _changed(guest, machine="", virt_type="")))
    if "cpu" in reasons and (guest.cpu or any(vm == guest.name for vm, _node in cluster.rules.cpu)):
        text = f"{guest.name}: give it the cluster's baseline CPU, and power it off and on"
        mends.append(Mend(text, _any_cpu(guest)))
    if "lease" in reasons and guest.lease:
        text = f"{guest.name}: mount {guest.lease} on the other nodes, and apply role hypervisor there"
        mends.append(Mend(text, _changed(guest, lease="")))
    if guest.active and reasons & {"memory", "hugepages", "anti_affinity"}:
        # One with UEFI or TPM in places of its own has to run to move.
        off = "" if guest.state_elsewhere else "shut it down meanwhile, or "
        text = f"{guest.name}: {off}find {size_text(cluster.size(guest))} on one other node"
        mends.append(Mend(text, _changed(guest, active=False)))
    return mends


def _changed(guest: Guest, **values: Any) -> Callable[[Cluster], Cluster]:
    def apply(cluster: Cluster) -> Cluster:
        guests = (replace(one, **values) if one.key == guest.key else one for one in cluster.guests)
        return replace(cluster, guests=tuple(guests))

    return apply


def _node(name: str, **values: Any) -> Callable[[Cluster], Cluster]:
    def apply(cluster: Cluster) -> Cluster:
        return replace(cluster, nodes={**cluster.nodes, name: replace(cluster.nodes[name], **values)})

    return apply


def _unpinned(vm: str) -> Mend:
    def apply(cluster: Cluster) -> Cluster:
        pins = {name: nodes for name, nodes in cluster.rules.pins.items() if name != vm}
        return replace(cluster, rules=replace(cluster.rules, pins=pins))

    return Mend(f"{vm}: change what pins and avoid say of it", apply)


def _any_cpu(guest: Guest) -> Callable[[Cluster], Cluster]:
    def apply(cluster: Cluster) -> Cluster:
        cpu = {key: value for key, value in cluster.rules.cpu.items() if key[0] != guest.name}
        cluster = _changed(guest, cpu=False)(cluster)
        return replace(cluster, rules=replace(cluster.rules, cpu=cpu))

    return apply


def _together(tag: str) -> Mend:
    def apply(cluster: Cluster) -> Cluster:
        return replace(cluster, rules=replace(cluster.rules, anti_affinity=cluster.rules.anti_affinity - {tag}))

    return Mend(f"take tag {tag} out of anti_affinity for this plan", apply)
