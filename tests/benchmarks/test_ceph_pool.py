# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pool that is as declared: one task of ours beside a ping and beside one `ceph` for each option, interleaved."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, typical
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, tasks

NODE = "q1"
POOL = "measured"
ROUNDS = 7
NO_OP_GOAL, LOOP_GOAL = 1.8, 10.0
OPTIONS = {
    "size": 2,
    "min_size": 1,
    "accept_risk": True,
    "crush_rule": "replicated_rule",
    "pg_autoscale_mode": "off",
    "pg_num": 8,
    "target_size_ratio": 0.5,
    "bulk": False,
    "compression_mode": "aggressive",
    "flags": ["nodelete"],
    "compression_algorithm": "zstd",
    "quota_bytes": "1GiB",
    "applications": ["rbd"],
}
# What a playbook asks one after another that has no such module.
ASKED = [
    *(f"osd pool get {POOL} {name}" for name in ("size", "min_size", "crush_rule", "pg_autoscale_mode", "pg_num")),
    *(f"osd pool get {POOL} {name}" for name in ("target_size_ratio", "bulk", "compression_mode", "nodelete")),
    *(f"osd pool get {POOL} compression_algorithm", f"osd pool get-quota {POOL}", f"osd pool application get {POOL}"),
]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A Ceph that works, in a lab of its own."""
    with example_lab(os.environ.get("DROVER_CEPH_LAB", "drover-bench-ceph"), ROOT / "examples/ceph-quorum") as found:
        yield found


def test_a_pool_that_is_as_declared(cluster: Cluster) -> None:
    ours = {"name": "nothing to do", "drover.kvm.ceph_pool": {"name": POOL, **OPTIONS}}
    loop = {"name": "one ceph an option", "ansible.builtin.command": "ceph {{ item }}", "loop": ASKED}
    each: list[dict[str, Any]] = [{**ours, "name": "made"}, {"name": "warm", "ansible.builtin.ping": {}}]
    for _round in range(ROUNDS):
        each += [{"name": "ping", "ansible.builtin.ping": {}}, ours, loop]
    seconds = defaultdict(list)
    for task, result in zip(each, tasks(cluster, NODE, each)):
        assert not result.get("failed") and (task is not ours or not result["changed"]), result
        seconds[task["name"]].append(result["seconds"])
    ping, same, looped = (typical(seconds[name]) for name in ("ping", "nothing to do", "one ceph an option"))
    rows = [
        ("task ping", f"{ping:.3f} s"),
        ("ceph_pool, nothing to do", f"{same:.3f} s, {same / ping:.2f} pings (goal: at most {NO_OP_GOAL})"),
        (f"loop of {len(ASKED)} ceph", f"{looped:.1f} s, {looped / same:.0f} times (goal: {LOOP_GOAL:.0f})"),
    ]
    report(f"A pool with {len(OPTIONS)} options as declared (medians of {ROUNDS} rounds)", rows)
    assert same <= NO_OP_GOAL * ping and looped >= LOOP_GOAL * same, rows
