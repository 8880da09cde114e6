# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner beside hbal of ganeti-htools, on the same clusters: emptying a node, tight clusters, evening out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._cluster import proof
from ansible_collections.drover.kvm.plugins.module_utils._cluster.drain import drain
from ansible_collections.drover.kvm.plugins.module_utils._cluster.model import GIB, Cluster, Plan
from ansible_collections.drover.kvm.plugins.module_utils._cluster.rebalance import Limits, rebalance
from ansible_collections.drover.kvm.plugins.module_utils._cluster.stages import stages
from ansible_collections.drover.kvm.tests.benchmarks.hbal import hbal
from ansible_collections.drover.kvm.tests.benchmarks.measure import report
from ansible_collections.drover.kvm.tests.unit.plugins.module_utils.cluster import clusters

ROUNDS = 5
WORSE_MEMORY = 0.005
TIGHT = [(3, 20, 0.85), (4, 40, 0.85), (6, 90, 0.9), (10, 200, 0.9), (10, 200, 0.95), (20, 600, 0.95)]
SEEDS = range(10)
REBALANCE_GOAL = 1.0


def where(cluster: Cluster, plan: Plan) -> dict[str, str]:
    """The node of each VM after the plan."""
    return {**{guest.name: guest.node for guest in cluster.guests}, **{move.vm: move.target for move in plan.moves}}


def filled(cluster: Cluster, nodes: Mapping[str, str], without: str = "") -> list[float]:
    """The share of memory that VMs take on each node but that one."""
    used = dict.fromkeys(cluster.nodes, 0)
    for guest in cluster.guests:
        used[nodes[guest.name]] += cluster.need(guest)
    return [used[name] / cluster.capacity(name) for name in sorted(used) if name != without]


def busy(cluster: Cluster, nodes: Mapping[str, str]) -> list[float]:
    """The vCPUs per thread of each node."""
    vcpus = dict.fromkeys(cluster.nodes, 0)
    for guest in cluster.guests:
        vcpus[nodes[guest.name]] += guest.vcpus
    return [vcpus[name] / cluster.nodes[name].threads for name in sorted(vcpus)]


def least_maximum(cluster: Cluster, node: str) -> float:
    """A bound that no plan which moves only this node's VMs can beat, to a thousandth of it.

    At a lower one the VMs of some size and larger would have fewer slots on all other nodes than they are.
    """
    stay = {guest.name: guest.node for guest in cluster.guests if guest.node != node}
    others = replace(cluster, guests=tuple(guest for guest in cluster.guests if guest.name in stay))
    used = dict(zip(sorted(set(cluster.nodes) - {node}), filled(others, stay, node)))
    need = sorted(map(cluster.need, (guest for guest in cluster.guests if guest.node == node)), reverse=True)
    whole = sum(map(cluster.need, cluster.guests)) / sum(cluster.capacity(name) for name in used)
    low, high = max(whole, *used.values()), 1.0
    while high - low > low / 1000:
        middle = (low + high) / 2
        free = [int((middle - used[name]) * cluster.capacity(name)) for name in used]
        slots = {size: sum(each // size for each in free) for size in need}
        enough = all(slots[size] > place for place, size in enumerate(need))
        low, high = (low, middle) if enough else (middle, high)
    return low


def checked(cluster: Cluster, plan: Plan) -> Plan:
    """The plan, replayed by the checker."""
    assert proof.violations(cluster, plan, stages(cluster, plan.moves)) == []
    return plan


@pytest.mark.parametrize("nodes, guests, goal", [(12, 300, 0.05), (100, 5000, 0.2)])
def test_emptying_a_node(nodes: int, guests: int, goal: float, tmp_path: Path) -> None:
    cluster = clusters.even(1, nodes, guests)
    seconds, proven = [], []
    for _round in range(ROUNDS):
        start = time.process_time()
        plan = drain(cluster, ["hv01"])
        seconds.append(time.process_time() - start)
        steps = stages(cluster, plan.moves)
        assert proof.violations(cluster, plan, steps) == [] and not plan.blockers
        proof.not_borne(cluster, plan)
        proven.append(time.process_time() - start)
    theirs = hbal(cluster, tmp_path, "-E", offline="hv01")
    left = sum(node == "hv01" for node in theirs.where(cluster).values())
    most, least = max(filled(cluster, where(cluster, plan), "hv01")), least_maximum(cluster, "hv01")
    rows = [
        ("planned", f"{statistics.median(seconds):.3f} s of CPU"),
        ("planned, replayed, N-1 judged", f"{statistics.median(proven):.3f} s (goal: {goal})"),
        ("`hbal -E`", f"{theirs.seconds:.3f} s, {left} VMs left"),
        (
            "fullest node",
            f"{100 * most:.2f} %, `hbal` {100 * max(filled(cluster, theirs.where(cluster), 'hv01')):.2f} %",
        ),
        ("no plan can do better than", f"{100 * least:.2f} % (goal: at most {100 * WORSE_MEMORY} % more)"),
    ]
    report(f"Emptying one node of {nodes} with {guests} VMs (medians of {ROUNDS})", rows)
    assert statistics.median(proven) <= goal and most <= least * (1 + WORSE_MEMORY), rows


def test_emptying_a_node_of_a_tight_cluster(tmp_path: Path) -> None:
    rows, all_emptied = [], True
    for nodes, guests, fill in TIGHT:
        ours, theirs, moved, own = 0, 0, 0, 0
        for seed in SEEDS:
            cluster = clusters.tight(seed, nodes, guests, fill)
            plan = checked(cluster, drain(cluster, ["hv01"]))
            ours += not plan.blockers
            moved += sum(move.memory for move in plan.moves)
            own += sum(guest.memory for guest in cluster.guests if guest.node == "hv01")
            answer = hbal(cluster, tmp_path, "-E", offline="hv01").where(cluster)
            theirs += "hv01" not in answer.values()
        all_emptied &= ours == len(SEEDS)
        words = (
            f"{ours} of {len(SEEDS)} emptied, `hbal -E` {theirs}; {moved // GIB} GiB moved, {own // GIB} of them had to"
        )
        rows.append((f"{nodes} nodes, {guests} VMs, {100 * fill:.0f} % full afterwards", words))
    report("Emptying one node of a tight cluster, each known to be possible (goal: all)", rows)
    assert all_emptied, rows


def at(cluster: Cluster, nodes: Mapping[str, str]) -> Cluster:
    """The cluster with its VMs on these nodes."""
    return replace(cluster, guests=tuple(replace(guest, node=nodes[guest.name]) for guest in cluster.guests))


@pytest.mark.parametrize("nodes, guests, limit, seeds", [(10, 200, 1000, range(10)), (40, 1500, 10, range(1))])
def test_evening_out(nodes: int, guests: int, limit: int, seeds: range, tmp_path: Path) -> None:
    names = ("before", "ours", "`hbal`")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    moved, seconds = [], []
    for seed in seeds:
        cluster = clusters.cluster(seed, nodes, guests, 0.6, plain=True)
        theirs = hbal(cluster, tmp_path, "-l", str(limit))
        memory = {guest.name: guest.memory for guest in cluster.guests}
        budget = sum(memory[vm] for vm in {vm for vm, _target in theirs.moves})
        start = time.process_time()
        plan = checked(cluster, rebalance(cluster, Limits(threshold=0, max_memory_moved=budget)))
        seconds.append((time.process_time() - start, theirs.seconds))
        moved.append((len(plan.moves), sum(m.memory for m in plan.moves), len(theirs.moves), budget))
        states = ({g.name: g.node for g in cluster.guests}, where(cluster, plan), theirs.where(cluster))
        for name, state in zip(names, states):
            score = hbal(at(cluster, state), tmp_path, "-l", "0").score
            spread = [statistics.pstdev(part) for part in (filled(cluster, state), busy(cluster, state))]
            found[name].append((spread[0], spread[1], score))
    ours, own, them, budget = (statistics.mean(column) for column in zip(*moved))
    rows = [
        (
            "planned and replayed",
            f"{max(s for s, _t in seconds):.2f} s of CPU at most, `hbal` {max(t for _s, t in seconds):.1f} s",
        ),
        ("moved", f"{ours:.0f} VMs, {own / GIB:.0f} GiB; `hbal` {them:.0f}, {budget / GIB:.0f} GiB"),
    ]
    means = {name: [statistics.mean(column) for column in zip(*found[name])] for name in names}
    for name, (a, b, score) in means.items():
        rows.append(
            (
                f"{name}: standard deviation, score of `hbal`",
                f"memory {100 * a:.2f} %, vCPUs per thread {b:.3f}; {score:.3f}",
            )
        )
    report(
        f"Evening out {nodes} nodes with {guests} VMs, means of {len(seeds)}, as many GiB as `hbal -l {limit}`", rows
    )
    assert means["ours"][0] < means["`hbal`"][0] and means["ours"][2] < means["`hbal`"][2], rows


def test_evening_out_as_far_as_it_goes() -> None:
    cluster = clusters.cluster(3, 40, 1500, 0.6, plain=True)
    start = time.process_time()
    plan = rebalance(cluster, Limits(threshold=0))
    seconds = time.process_time() - start
    checked(cluster, plan)
    before, after = (
        statistics.pstdev(filled(cluster, nodes))
        for nodes in ({g.name: g.node for g in cluster.guests}, where(cluster, plan))
    )
    rows = [
        ("planned", f"{seconds:.2f} s of CPU (goal: {REBALANCE_GOAL:.0f})"),
        (
            "standard deviation of memory",
            f"{100 * before:.2f} % before, {100 * after:.2f} % after {len(plan.moves)} moves",
        ),
    ]
    report("Evening out 40 nodes with 1500 VMs without a budget", rows)
    assert seconds <= REBALANCE_GOAL, rows
