# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of random clusters, replayed step by step by a checker that shares nothing with the planner."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._cluster import proof
from ansible_collections.drover.kvm.plugins.module_utils._cluster.drain import drain
from ansible_collections.drover.kvm.plugins.module_utils._cluster.model import GIB, Cluster, Guest
from ansible_collections.drover.kvm.plugins.module_utils._cluster.place import place
from ansible_collections.drover.kvm.plugins.module_utils._cluster.stages import stages
from ansible_collections.drover.kvm.plugins.module_utils._cluster.undrain import undrain
from ansible_collections.drover.kvm.tests.unit.plugins.module_utils.cluster import clusters

SEEDS = range(200)


def some_cluster(seed: int) -> Cluster:
    dice = random.Random(seed)
    nodes = dice.randint(2, 6)
    return clusters.cluster(seed, nodes, nodes * dice.randint(3, 15), dice.uniform(0.4, 0.9), plain=seed % 4 == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_drain_holds_and_leaves_nothing_without_a_word(seed):
    cluster = some_cluster(seed)
    plan = drain(cluster, ["hv01"] if seed % 3 else ["hv01", "hv02"])
    assert proof.violations(cluster, plan, stages(cluster, plan.moves)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_every_drain_of_some_vms_holds_and_leaves_the_others(seed):
    cluster = some_cluster(seed)
    there = [guest.name for guest in cluster.guests if guest.node == "hv01"]
    chosen = set(random.Random(seed).sample(there, len(there) // 2))
    plan = drain(cluster, ["hv01"], only=chosen)
    assert proof.violations(cluster, plan, stages(cluster, plan.moves)) == []
    assert {move.vm for move in plan.moves if move.source == "hv01"} <= chosen
    assert {blocker.vm for blocker in plan.blockers} <= chosen | {""}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_return_holds_and_moves_only_those_at_home_there(seed):
    cluster = some_cluster(seed)
    plan = undrain(cluster, "hv01")
    cluster = replace(cluster, rules=replace(cluster.rules, check_return=False))
    assert proof.violations(cluster, plan, stages(cluster, plan.moves), ["hv01"]) == []
    homes = {guest.key: guest.home for guest in cluster.guests}
    assert {homes[move.vm, move.source] for move in plan.moves} <= {"hv01"}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_placement_holds(seed):
    cluster = some_cluster(seed)
    dice = random.Random(seed)
    new = [Guest(f"new{n}", "", dice.choice(clusters.SIZES) * GIB, bridges=frozenset({"br0"})) for n in range(6)]
    known = list(cluster.guests[:3])
    after, plan = place(cluster, [*new, *known], fenced=sorted(cluster.nodes))
    assert proof.violations(after, plan, []) == []
    named = set(plan.placements) | {blocker.vm for blocker in plan.blockers}
    assert "" in named or {guest.name for guest in [*new, *known]} == named


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_the_order_of_the_facts_does_not_matter(seed):
    cluster = some_cluster(seed)
    dice = random.Random(seed)
    nodes, guests = list(cluster.nodes.items()), list(cluster.guests)
    dice.shuffle(nodes)
    dice.shuffle(guests)
    assert drain(Cluster(dict(nodes), tuple(guests), cluster.rules), ["hv01"]) == drain(cluster, ["hv01"])


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_a_second_drain_of_an_emptied_node_has_nothing_to_do(seed):
    cluster = clusters.cluster(seed, 4, 30, 0.5, plain=True)
    plan = drain(cluster, ["hv01"])
    target = {(move.vm, move.source): move.target for move in plan.moves}
    after = tuple(replace(guest, node=target.get(guest.key, guest.node)) for guest in cluster.guests)
    assert not plan.blockers
    assert drain(replace(cluster, guests=after), ["hv01"]).moves == ()


def test_a_tight_cluster_is_emptied_by_making_room():
    emptied, without = 0, 0
    for seed in range(20):
        cluster = clusters.cluster(seed, 4, 40, 0.72, plain=True)
        emptied += not drain(cluster, ["hv01"]).blockers
        without += not drain(cluster, ["hv01"], room=False).blockers
    assert emptied == 20
    assert without < 20, "the clusters are not tight enough to show it"


def test_one_node_of_12_with_300_vms_is_planned_at_once():
    cluster = clusters.cluster(1, 12, 300, plain=True)
    start = time.process_time()
    plan = drain(cluster, ["hv01"])
    seconds = time.process_time() - start
    assert plan.moves and not plan.blockers
    assert seconds < 0.5, "ten times what it takes on a slow machine"


def test_a_hopeless_cluster_is_given_up_in_time():
    cluster = clusters.cluster(2, 12, 300, 0.97, plain=True)
    start = time.process_time()
    plan = drain(cluster, ["hv01", "hv02"])
    assert plan.blockers
    assert time.process_time() - start < 20
