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


def test_without_an_agent_nothing_is_started(cluster: Cluster, fence: Any, at_rest: dict[str, str]) -> None:
    cluster.lab.cut(NODE, "mgmt0")
    cluster.play("failover_node", node=NODE).refused("hv3 has no drover_fence in the inventory")
    missing = {**fence()["drover_fence"], "agent": "fence_missing"}
    cluster.play("failover_node", node=NODE, drover_fence=missing).refused("fence_missing is not installed")
    assert running(cluster) == only_theirs(at_rest)
    cluster.lab.restore()
    assert cluster.where() == at_rest


def test_without_a_majority_nothing_is_fenced(cluster: Cluster, fence: Any, at_rest: dict[str, str]) -> None:
    cluster.lab.cut(NODE, "mgmt0")
    cluster.lab.cut("hv2", "mgmt0")
    cluster.play("failover_node", **fence()).refused("Only 1 of 3 hypervisors answer")
    cluster.lab.restore()
    assert cluster.where() == at_rest


@pytest.mark.parametrize("dead", [True, False])
def test_a_node_that_is_proven_to_be_off_is_failed_over_once(
    cluster: Cluster, fence: Any, at_rest: dict[str, str], dead: bool
) -> None:
    lost = sorted(vm for vm, node in at_rest.items() if node == NODE)
    assert lost, at_rest
    with Observer(cluster.lab) as watch:
        for vm in at_rest:
            watch.wait_word(vm)
        # With `dead` false it lives and is silent: the agent has something to do. Else it is cut off all the same,
        # as the lab keeps the network of a container that is off, which would go on answering pings.
        cluster.lab.cut(NODE, "mgmt0")
        if dead:
            cluster.lab.power_off(NODE)
            # A disk of the node's own is out of reach: an empty one in its place would be a VM that forgot everything.
            own = [{"type": "file", "format": "raw", "size": "32MiB"}]
            words = "does not exist, and without size it can't be made"
            cluster.play("failover_node", vm_disks=own, **fence()).refused(words)
            assert running(cluster) == only_theirs(at_rest)
        played = cluster.play("failover_node", **fence()).good()
        assert sorted(running(cluster)) == sorted(at_rest)
        assert cluster.lab.status()["nodes"][NODE]["power"] == "off"
        for vm in at_rest:
            watch.wait_word(vm, after=time.monotonic(), seconds=240)
        assert cluster.play("failover_node", **fence()).good().changed == 0
    # The observer reads the dead node's disk too, where the definitions still are.
    twice = tuple(f"is defined on {node} and {NODE}" for node in OTHERS)
    said = [words for words in watch.verdict().violations if not words.endswith(twice)]
    assert not said, said
    print(f"failed over in {played.seconds:.0f} s: {watch.verdict()}")
    send_home(cluster, lost)
    assert cluster.where() == at_rest


def send_home(cluster: Cluster, lost: list[str]) -> None:
    """Switch the node on again, where its VMs must not have started, and bring them back."""
    cluster.lab.restore()
    cluster.lab.power_on(NODE)
    wait_until(lambda: set(lost) <= set(seen := cluster.domains(NODE)) or str(seen), 120, "libvirt of the node")
    elsewhere = running(cluster)
    for vm in lost:
        assert cluster.domains(NODE)[vm] == "shut off"
        cluster.ssh(NODE, "virsh", "undefine", vm)
        result = cluster.task(elsewhere[vm], "migrate", name=vm, to=NODE, set_home="keep")
        assert not result["failed"], result
