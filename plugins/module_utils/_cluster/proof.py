# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a plan by replaying it, without anything of what made it: a plan that breaks a rule never leaves the planner.

Only the model is shared with the planner. A guest counts on its target from the moment its move begins, and on its
source until the move is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .model import Cluster, Guest, Move, Plan


def violations(cluster: Cluster, plan: Plan, stages: Sequence[Sequence[Move]], opened: Iterable[str] = ()) -> list[str]:
    """Every rule that the plan would break, in words; empty for a plan that holds.

    `opened` are nodes that take guests although they are cordoned.
    """
    where = {guest.key: guest.node for guest in cluster.guests}
    guests = {guest.key: guest for guest in cluster.guests}
    if [move for stage in stages for move in stage] != list(plan.moves):
        return ["the stages do not hold the moves in their order"]
    found: list[str] = []
    closed = plan.emptied | _shut(cluster, opened)
    # Who counts on each node: a guest that is on its way on both.
    at: dict[str, dict[tuple[str, str], Guest]] = {name: {} for name in cluster.nodes}
    for guest in (each for each in cluster.guests if each.node):
        at[guest.node][guest.key] = guest
    for stage in stages:
        begun: list[Move] = []
        for move in stage:
            key = (move.vm, move.source)
            if key not in guests or where[key] != move.source:
                found.append(f"{move.vm} is not on {move.source} when its turn comes")
                continue
            found += _step(cluster, guests[key], move, closed)
            found += _crowd(cluster, guests[key], move.target, at[move.target].values())
            at[move.target][key] = guests[key]
            where[key] = move.target
            begun.append(move)
        for move in begun:
            at[move.source].pop((move.vm, move.source), None)
    for guest in cluster.guests:
        if not guest.node and guest.name in plan.placements:
            target = plan.placements[guest.name]
            found += _site(cluster, guest, target, closed) + _crowd(cluster, guest, target, at[target].values())
            at[target][guest.key] = guest
            where[guest.key] = target
    return found + _left(cluster, plan, where)


def _shut(cluster: Cluster, opened: Iterable[str]) -> set[str]:
    opened = set(opened)
    return {
        name
        for name, node in cluster.nodes.items()
        if not node.reachable or not node.vm_capable or (node.cordon is not None and name not in opened)
    }


def _step(cluster: Cluster, guest: Guest, move: Move, closed: Iterable[str]) -> list[str]:
    """What is wrong with the move itself."""
    found = [f"{guest.name} can't be moved: {obstacle.text}" for obstacle in guest.fixed]
    if move.target == move.source:
        found.append(f"{guest.name} is to move to where it is")
    usual = "live" if guest.active else "offline"
    if move.mode != ("restart" if guest.waits or (guest.active and guest.verb == "restart") else usual):
        found.append(f"{guest.name} is to move {move.mode}")
    back = cluster.runs_cpu(guest, move.source)
    if cluster.rules.check_return and back is not True:
        found.append(f"{guest.name} could never return to {move.source}")
    return found + _site(cluster, guest, move.target, closed)


def _site(cluster: Cluster, guest: Guest, target: str, closed: Iterable[str]) -> list[str]:
    """What the target lacks for the guest."""
    node, rules = cluster.nodes[target], cluster.rules
    wrong = {
        "takes no guests": target in closed,
        "lacks a bridge": not guest.bridges <= node.bridges,
        "lacks a VLAN": bool(cluster.lost_vlans(guest, target)),
        "lacks its machine type": bool(guest.machine and node.machine_types)
        and guest.machine not in node.machine_types,
        "lacks its type": bool(guest.virt_type and node.virt_types) and guest.virt_type not in node.virt_types,
        "lacks its firmware": node.firmware is not None and not guest.firmware <= node.firmware,
        "lacks its lease": bool(guest.lease)
        and guest.lease != node.leases
        and any(other.leases for other in cluster.nodes.values()),
        "lacks its CPU": cluster.runs_cpu(guest, target) is not True,
        "is not where it is pinned to": guest.name in rules.pins and target not in rules.pins[guest.name],
    }
    return [f"{guest.name} to {target}: {target} {words}" for words, broken in wrong.items() if broken]


def _crowd(cluster: Cluster, guest: Guest, target: str, others: Iterable[Guest]) -> list[str]:
    """What is wrong with the company: too little memory, or a guest that must be kept apart."""
    if not guest.active:
        return []
    rules, node = cluster.rules, cluster.nodes[target]
    company = [other for other in others if other.key != guest.key and other.active]
    rivals = [other for other in company if guest.tags & other.tags & rules.anti_affinity]
    found = [f"{guest.name} to {target}: {rival.name} is there" for rival in rivals]
    all_there = [guest, *company]
    taken = sum(_beside(cluster, each) for each in all_there) + sum(node.pages.values())
    if taken + rules.reserve > node.memory:
        found.append(f"{guest.name} to {target}: too little memory")
    if guest.page and sum(each.memory for each in all_there if each.page == guest.page) > node.pages.get(guest.page, 0):
        found.append(f"{guest.name} to {target}: too few huge pages")
    return found


def _beside(cluster: Cluster, guest: Guest) -> int:
    """What a running guest takes beside huge pages."""
    return cluster.rules.overhead + (0 if guest.page else guest.memory)


def _left(cluster: Cluster, plan: Plan, where: dict[tuple[str, str], str]) -> list[str]:
    """Guests that stay on a node that shall be empty although no blocker says so; guests that travel twice."""
    named = {(blocker.vm, blocker.node) for blocker in plan.blockers}
    left = [
        f"{guest.name} stays on {where[guest.key]} without a word"
        for guest in cluster.guests
        if where[guest.key] in plan.emptied
        and (plan.leaving is None or guest.name in plan.leaving)
        and guest.key not in named
        and not (guest.key in plan.staying and guest.verb in ("shutdown", "leave"))
        and ("", guest.node) not in named
    ]
    if plan.leaving is not None:
        others = [move for move in plan.moves if move.source in plan.emptied and move.vm not in plan.leaving]
        left += [f"{move.vm} was to stay on {move.source}" for move in others]
    trips = [(move.vm, move.source) for move in plan.moves]
    return left + sorted({f"{vm} travels twice" for vm, source in trips if trips.count((vm, source)) > 1})


def not_borne(cluster: Cluster, plan: Plan, opened: Iterable[str] = ()) -> dict[str, list[str]]:
    """For each node whose loss the others could not bear after the plan: the running guests without a place.

    They are started anew then, so memory, bridges, VLANs, machine and virtualisation types and pins count, and so do
    disks of the node, also those that a move may copy; anti-affinity does not. Found
    by packing the largest first into the tightest hole: a loss that only a cleverer packing could bear is named too.
    `opened` as for `violations`.
    """
    target = {(move.vm, move.source): move.target for move in plan.moves}
    where = {
        g.key: plan.placements.get(g.name, "") if not g.node else target.get(g.key, g.node) for g in cluster.guests
    }
    off = {guest.key for guest in cluster.guests if guest.key in plan.staying and guest.verb == "shutdown"}
    active = [guest for guest in cluster.guests if guest.active and where[guest.key] and guest.key not in off]
    active.sort(key=lambda guest: (-guest.memory, guest.key))
    closed = plan.emptied | _shut(cluster, opened)
    left = {name: cluster.capacity(name) for name in sorted(cluster.nodes) if name not in closed}
    pages = Counter({(name, size): all_ for name in left for size, all_ in cluster.nodes[name].pages.items()})
    there: dict[str, list[Guest]] = {}
    for guest in active:
        # A move has taken its medium out of the drive.
        in_drive = guest.ejects and guest.key not in target
        there.setdefault(where[guest.key], []).append(replace(guest, ejects=in_drive))
        if where[guest.key] in left:
            left[where[guest.key]] -= _beside(cluster, guest)
            pages[where[guest.key], guest.page] -= guest.memory if guest.page else 0
    result = {}
    for lost in sorted(there):
        free, huge = {name: size for name, size in left.items() if name != lost}, pages.copy()
        homeless = [guest.name for guest in there[lost] if not _restart(cluster, guest, free, huge)]
        if homeless:
            result[lost] = homeless
    return result


def _restart(cluster: Cluster, guest: Guest, free: dict[str, int], huge: Counter[tuple[str, int]]) -> bool:
    """Take the guest's memory from the tightest node that can start it; False when none can."""
    need, paged = _beside(cluster, guest), guest.memory if guest.page else 0
    reasons = {obstacle.reason for obstacle in guest.fixed}
    # Files that may be copied, and media that may be ejected, are as lost with their node as others.
    tied = guest.copies or guest.ejects or reasons & {"host_device", "filesystem", "local_disk", "local_iso"}
    nodes = [] if tied else [(size, name) for name, size in free.items() if size >= need]
    while nodes:
        size, name = tightest = min(nodes)
        if _starts(cluster, guest, name) and huge[name, guest.page] >= paged:
            free[name] = size - need
            huge[name, guest.page] -= paged
            return True
        nodes.remove(tightest)
    return False


def _starts(cluster: Cluster, guest: Guest, name: str) -> bool:
    """Whether the node has what the guest needs to start there; its present CPU doesn't matter for that."""
    node = cluster.nodes[name]
    machine = not guest.machine or not node.machine_types or guest.machine in node.machine_types
    kind = not guest.virt_type or not node.virt_types or guest.virt_type in node.virt_types
    pinned = guest.name in cluster.rules.pins and name not in cluster.rules.pins[guest.name]
    firmware = node.firmware is None or guest.firmware <= node.firmware
    ways = guest.bridges <= node.bridges and not cluster.lost_vlans(guest, name)
    return machine and kind and firmware and ways and not pinned
