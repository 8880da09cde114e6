# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of random clusters, replayed step by step by a checker that shares nothing with the planner."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._cluster import proof
from ansible_collections.drover.kvm.plugins.module_utils._cluster.attempt import move
from ansible_collections.drover.kvm.plugins.module_utils._cluster.board import Board
from ansible_collections.drover.kvm.plugins.module_utils._cluster.consolidate import consolidate, moved, spread
from ansible_collections.drover.kvm.plugins.module_utils._cluster.drain import drain
from ansible_collections.drover.kvm.plugins.module_utils._cluster.model import GIB, Cluster, Guest, Node, Plan
from ansible_collections.drover.kvm.plugins.module_utils._cluster.place import place
from ansible_collections.drover.kvm.plugins.module_utils._cluster.rebalance import Limits, Scale, rebalance
from ansible_collections.drover.kvm.plugins.module_utils._cluster.rolling import rolling
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
    plan = undrain(cluster, ["hv01"])
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


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rebalance_holds_within_its_budgets_and_leaves_no_node_worse(seed):
    cluster = some_cluster(seed)
    limits = Limits(max_moves=seed % 7, max_memory_moved=(seed % 5) * 16 * GIB, threshold=0.05)
    plan = rebalance(cluster, limits)
    assert proof.violations(cluster, plan, stages(cluster, plan.moves)) == []
    assert len(plan.moves) <= limits.max_moves
    assert sum(move.memory for move in plan.moves) <= limits.max_memory_moved
    level = [move for move in plan.moves if move.why == "balance"]
    if len(level) == len(plan.moves):
        assert uneven(cluster, plan) <= uneven(cluster, Plan()) + 1e-9


def uneven(cluster: Cluster, plan: Plan) -> float:
    return Scale(Board(moved(cluster, list(plan.moves))), {}).uneven()


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_what_was_evened_out_stays_as_it_is(seed):
    cluster = some_cluster(seed)
    plan = rebalance(cluster, Limits())
    after = rebalance(moved(cluster, list(plan.moves)), Limits())
    assert not plan.moves or len(after.moves) < len(plan.moves)


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_every_spread_and_consolidation_holds(seed):
    cluster = some_cluster(seed)
    for plan in (spread(cluster, Limits()), consolidate(cluster), consolidate(cluster, n_minus_1=False)):
        assert proof.violations(cluster, plan, stages(cluster, plan.moves)) == []
    plan = consolidate(cluster)
    assert not plan.emptied or not proof.not_borne(cluster, plan)


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_what_was_spread_stays_where_it_is(seed):
    """A VM that has a home is not evened out: the next run would bring it back."""
    cluster = some_cluster(seed)
    homes = (replace(guest, home=guest.home or guest.node) for guest in cluster.guests)
    cluster = replace(cluster, guests=tuple(homes))
    after = moved(cluster, list(spread(cluster, Limits()).moves))
    assert not spread(after, Limits()).moves


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_every_step_of_a_cycle_holds_and_all_are_back_at_its_end(seed):
    cluster = clusters.cluster(seed, 4, 30, 0.5, plain=True)
    guests = tuple(replace(guest, home=None, tags=frozenset()) for guest in cluster.guests)
    cluster = replace(cluster, guests=guests)
    steps = list(rolling(cluster, sorted(cluster.nodes)))
    for step in steps:
        opened = [step.node] if step.what == "undrain" else []
        assert proof.violations(step.cluster, step.plan, stages(step.cluster, step.plan.moves), opened) == []
        assert not step.plan.blockers
    end = moved(steps[-1].cluster, list(steps[-1].plan.moves))
    assert {g.name: g.node for g in end.guests} == {g.name: g.node for g in cluster.guests}


@pytest.mark.parametrize(
    "guest,node",
    [({"copies": True}, {}), ({"ejects": True}, {}), ({"virt_type": "kvm"}, {"virt_types": frozenset({"qemu"})})],
    ids=["files of its node", "a medium of its node", "no KVM there"],
)
def test_what_can_start_nowhere_else_is_lost_with_its_node(guest, node):
    nodes = {"hv1": Node("hv1", 64 * GIB), "hv2": replace(Node("hv2", 64 * GIB), **node)}
    both = Cluster(nodes, (replace(Guest("web1", "hv1", GIB), **guest),))
    assert proof.not_borne(both, Plan()) == {"hv1": ["web1"]}
    assert proof.not_borne(replace(both, guests=(Guest("web1", "hv1", GIB),)), Plan()) == {}


def test_a_medium_that_a_move_ejects_ties_a_vm_no_longer():
    ejected = (Guest("web1", "hv1", GIB, ejects=True),)
    both = Cluster({name: Node(name, 64 * GIB) for name in ("hv1", "hv2")}, ejected)
    gone = Plan((move(ejected[0], "hv2", "balance"),))
    assert (proof.not_borne(both, gone), proof.not_borne(both, Plan())) == ({}, {"hv1": ["web1"]})


def test_a_cycle_without_return_moves_far_fewer_bytes():
    cluster = clusters.even(1, 6, 90, 0.5)
    there, back = (
        sum(move.memory for step in rolling(cluster, sorted(cluster.nodes), come_home=home) for move in step.plan.moves)
        for home in (False, True)
    )
    assert there < 0.75 * back


def test_a_tight_cluster_is_emptied_in_each_case_that_is_possible():
    plans = [drain(clusters.tight(seed, 6, 60, fill), ["hv01"]) for seed in range(5) for fill in (0.85, 0.95)]
    assert [plan.blockers for plan in plans] == [()] * 10
    assert any(move.why != "drain" for plan in plans for move in plan.moves), "not tight enough to show it"


@pytest.mark.parametrize("seed", range(10))
def test_a_drain_keeps_the_fullest_node_as_empty_as_a_search_of_all_plans(seed):
    cluster = clusters.even(seed, 4, 22, 0.5)
    cluster = replace(cluster, rules=replace(cluster.rules, anti_affinity=frozenset()))
    leaving = [cluster.need(guest) for guest in cluster.guests if guest.node == "hv01"]
    board = Board(moved(cluster, list(drain(cluster, ["hv01"]).moves)))
    start = Board(cluster)
    least = min(
        max(start.used[name] + sum(size for size, each in zip(leaving, chosen) if each == name) for name in OTHERS)
        for chosen in itertools.product(OTHERS, repeat=len(leaving))
    )
    assert max(board.used.values()) <= least * 1.005


OTHERS = ("hv02", "hv03", "hv04")


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
