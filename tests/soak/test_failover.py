# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""F-42 to F-45: the VMs of a node start elsewhere only when its fence agent, and its silence, prove that it is off."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE, OTHERS = "hv3", ("hv1", "hv2")

# Switches the lab's node off, and tells by the lab whether it is; `way` comes before that.
AGENT = """#!/bin/sh
while read -r line; do case $line in action=*) action=${{line#action=}} ;; esac; done
lab() {{ {python} {root}/roles/lab/files/lab.py --name {lab} "$@"; }}
{way}
case $action in
status) lab status | {python} -c 'import json, sys
sys.exit(2 if json.load(sys.stdin)["nodes"]["{node}"]["power"] == "off" else 0)' ;;
off) lab power-off {node} >&2 ;;
esac
"""


@pytest.fixture
def fence(cluster: Cluster, tmp_path: Path) -> Iterator[Any]:
    """Make the agent that does, or says, something; the options of failover_node with it."""
    program = tmp_path / "fence_lab"

    def make(way: str = "") -> dict[str, Any]:
        values = {"python": sys.executable, "root": ROOT, "lab": cluster.lab.name, "node": NODE, "way": way}
        program.write_text(AGENT.format(**values), encoding="utf-8")
        program.chmod(0o700)
        return {"node": NODE, "drover_fence": {"agent": str(program), "host": "localhost", "timeout": 20}}

    yield make
    cluster.lab.restore()


@pytest.fixture(autouse=True)
def at_rest(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Where the VMs are; the same afterwards."""
    before = cluster.where()
    yield before
    cluster.lab.restore()
    cluster.lab.power_on(NODE)
    lost = sorted(vm for vm, node in before.items() if node == NODE)
    wait_until(lambda: set(lost) <= set(seen := cluster.domains(NODE)) or str(seen), 120, "libvirt of the node")


def running(cluster: Cluster) -> dict[str, str]:
    """VM → the living node on which it runs."""
    return {vm: node for node in OTHERS for vm, state in cluster.domains(node).items() if state == "running"}


def only_theirs(before: dict[str, str]) -> dict[str, str]:
    """What runs on the others when nothing was started."""
    return {vm: node for vm, node in before.items() if node != NODE}


def test_a_node_that_answers_is_not_dead(cluster: Cluster, fence: Any, at_rest: dict[str, str]) -> None:
    cluster.play("failover_node", **fence()).refused("hv3 answers, so it is not dead")
    assert cluster.where() == at_rest


@pytest.mark.parametrize(
    "way,words",
    [
        ("[ $action = off ] && exit 1", "fence_lab failed"),
        ("[ $action = status ] && exit 1", "fence_lab failed"),
        ("sleep 60", "gave no answer within 20 s"),
        # It says that the node is off; the node lives, cut off from the controller only.
        ("[ $action = off ] && exit 0; [ $action = status ] && exit 2", "still answers"),
    ],
)
def test_an_agent_that_fails_hangs_or_lies_starts_nothing(
    cluster: Cluster, fence: Any, at_rest: dict[str, str], way: str, words: str
) -> None:
    cluster.lab.cut(NODE, "mgmt0")
    cluster.play("failover_node", **fence(way)).refused(words)
    assert running(cluster) == only_theirs(at_rest)
    cluster.lab.restore()
    assert cluster.where() == at_rest


def test_without_a_majority_nothing_is_fenced(cluster: Cluster, fence: Any, at_rest: dict[str, str]) -> None:
    cluster.lab.cut(NODE, "mgmt0")
    cluster.lab.cut("hv2", "mgmt0")
    cluster.play("failover_node", **fence()).refused("Only 1 of 3 hypervisors answer")
    cluster.lab.restore()
    assert cluster.where() == at_rest


def test_a_node_that_is_proven_to_be_off_is_failed_over_once(
    cluster: Cluster, fence: Any, at_rest: dict[str, str]
) -> None:
    lost = sorted(vm for vm, node in at_rest.items() if node == NODE)
    assert lost, at_rest
    # It lives and is silent: the agent has something to do.
    cluster.lab.cut(NODE, "mgmt0")
    played = cluster.play("failover_node", **fence()).good()
    assert sorted(running(cluster)) == sorted(at_rest)
    assert cluster.lab.status()["nodes"][NODE]["power"] == "off"
    with Observer(cluster.lab) as watch:
        for vm in at_rest:
            watch.wait_word(vm, after=time.monotonic(), seconds=240)
    assert cluster.play("failover_node", **fence()).good().changed == 0
    print(f"failed over in {played.seconds:.0f} s")
    cluster.lab.restore()
    cluster.lab.power_on(NODE)
    wait_until(lambda: set(lost) <= set(seen := cluster.domains(NODE)) or str(seen), 120, "libvirt of the node")
    for vm in lost:
        assert cluster.domains(NODE)[vm] == "shut off"
        cluster.ssh(NODE, "virsh", "undefine", vm)
        where = running(cluster)[vm]
        result = cluster.task(where, "migrate", name=vm, to=NODE, set_home="keep")
        assert not result["failed"], result
    assert cluster.where() == at_rest
