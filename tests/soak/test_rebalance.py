# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather the VMs on few nodes, spread them again, and weigh the nodes unequally, while all VMs run on."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster
from ansible_collections.drover.kvm.tests.lab.observer import Observer


def test_the_vms_are_gathered_and_come_home(cluster: Cluster) -> None:
    before = cluster.where()
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        waived = {"drover_require_n_minus_1": False}
        assert cluster.play("consolidate", "--check", "--diff", **waived).good().changed > 0
        assert cluster.where() == before
        cluster.play("consolidate", **waived).good()
        assert len(set(cluster.where().values())) < len(set(before.values()))
        assert cluster.play("consolidate", **waived).good().changed == 0
        cluster.play("spread").good()
        assert cluster.where() == before
        assert cluster.play("spread").good().changed == 0
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_a_saved_plan_is_done_once_and_then_refused(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.where()
    weights = {node: 4 if node == "hv1" else 1 for node in set(before.values())}
    # The VMs are small beside their nodes: one of them is about 1 % of what a node takes.
    options = {"drover_weights": weights, "drover_threshold": 0.5}
    file = tmp_path / "plan.json"
    cluster.play("rebalance", "--check", **options, drover_save_plan=str(file)).good()
    plan = json.loads(file.read_text(encoding="utf-8"))
    assert plan["moves"] and cluster.where() == before
    cluster.play("rebalance", **options, drover_plan_file=str(file)).good()
    assert cluster.where() == {**before, **{move["vm"]: move["to"] for move in plan["moves"]}}
    cluster.play("rebalance", **options, drover_plan_file=str(file)).refused("facts changed since the plan was saved")
    for move in plan["moves"]:
        result = cluster.task(move["to"], "migrate", name=move["vm"], to=move["from"], set_home="keep")
        assert not result["failed"], result
    assert cluster.where() == before
