# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At night nodes are switched off once they are really empty (F-23), in the morning they come back with their VMs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODES = ("hv1", "hv2", "hv3")
FACT = "/etc/ansible/facts.d/drover.fact"
TOGETHER: dict[str, Any] = {"drover_anti_affinity": [], "drover_require_n_minus_1": False, "drover_power_off": True}

# Asks the lab whether a node is on, and switches it on; to cut it off is not its business.
AGENT = """#!/bin/sh
while read -r line; do case $line in action=*) action=${{line#action=}} ;; plug=*) plug=${{line#plug=}} ;; esac; done
lab() {{ {python} {root}/roles/lab/files/lab.py --name {lab} "$@"; }}
case $action in
status) lab status | {python} -c 'import json, sys
sys.exit(2 if json.load(sys.stdin)["nodes"][sys.argv[1]]["power"] == "off" else 0)' $plug ;;
on) lab power-on $plug >&2 ;;
*) exit 1 ;;
esac
"""

# In place of a Wake-on-LAN packet.
WAKE = """- name: Wake it
  ansible.builtin.command:
    argv: [{python}, {root}/roles/lab/files/lab.py, --name, {lab}, power-on, "{{{{ drover_turn }}}}"]
"""

INTRUDER = """<domain type='qemu'>
  <name>intruder</name><memory unit='MiB'>16</memory><os><type>hvm</type></os>
</domain>
"""


def at_hand(cluster: Cluster, path: Path, text: str) -> Path:
    """A program or a file of tasks that calls the lab."""
    path.write_text(text.format(python=sys.executable, root=ROOT, lab=cluster.lab.name), encoding="utf-8")
    path.chmod(0o700)
    return path


@pytest.fixture(autouse=True)
def at_rest(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where the VMs are, which count all the time; in the end all nodes are on."""
    before = cluster.where()
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        yield before
        for node in NODES:
            cluster.lab.power_on(node)
            cluster.ssh(node, "virsh", "destroy", "intruder", check=False)
            cluster.ssh(node, "systemctl", "stop", "corosync", check=False)
        if cluster.where() != before or any(cordoned(cluster, node) for node in NODES):
            wake = at_hand(cluster, tmp_path / "wake_all.yml", WAKE)
            print(cluster.play("spread", drover_wake=",".join(NODES), drover_wake_tasks=str(wake)).output)
        for name in before:
            watch.wait_word(name, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def powers(cluster: Cluster) -> dict[str, str]:
    """Whether each node is on, by the lab."""
    return {node: cluster.lab.status()["nodes"][node]["power"] for node in NODES}


def cordoned(cluster: Cluster, node: str) -> bool:
    """Whether libvirt keeps VMs off the node."""
    return '"since"' in cluster.ssh(node, "cat", FACT, check=False)


def moving(cluster: Cluster, node: str) -> bool | str:
    """Whether a VM is leaving the node."""
    units = cluster.ssh(node, "systemctl", "list-units", "--no-legend", "drover-migrate-*")
    return bool(units) or "no move has begun"


def test_empty_nodes_are_switched_off_over_night(cluster: Cluster, at_rest: dict[str, str], tmp_path: Path) -> None:
    program = str(at_hand(cluster, tmp_path / "fence_lab", AGENT))
    agent = {"agent": program, "host": "localhost", "timeout": 60, "options": {"plug": "{{ inventory_hostname }}"}}
    night = {**TOGETHER, "drover_keep_on": 1, "drover_fence": agent}
    foretold = cluster.play("consolidate", "--check", **night).good()
    assert "Would be switched off, after a second look: hv" in foretold.output and cluster.where() == at_rest
    without = {name: value for name, value in night.items() if name != "drover_fence"}
    cluster.play("consolidate", **without).refused("has no drover_fence in the inventory")

    # Others come to need both nodes that are to go, one of them by a VM that nobody had planned.
    going = foretold.output.partition("after a second look: ")[2].partition('"')[0].split(", ")
    assert len(going) == 2, going
    cluster.ssh(going[1], "systemd-run", "--unit=corosync", "sleep", "3600")
    process = cluster.start("consolidate", **night, drover_bandwidth="4MiB", drover_parallel=1)
    wait_until(lambda: moving(cluster, going[0]), 240, "a move away from the node")
    cluster.ssh(going[0], "virsh", "create", "/dev/stdin", stdin=INTRUDER)
    output = process.communicate(timeout=600)[0]
    assert process.returncode != 0, output
    assert f"{going[0]} stays on: it holds intruder; qemu-system-x86_64 runs for intruder." in output, output
    assert f"{going[1]} stays on: corosync.service runs." in output, output
    assert powers(cluster) == dict.fromkeys(NODES, "on") and not any(cordoned(cluster, node) for node in going)
    assert set(cluster.where().values()) == set(NODES) - {going[1]}, cluster.where()
    cluster.ssh(going[0], "virsh", "destroy", "intruder")
    cluster.ssh(going[1], "systemctl", "stop", "corosync")

    said = cluster.play("consolidate", **night).good()
    assert powers(cluster) == {**dict.fromkeys(NODES, "on"), **dict.fromkeys(going, "off")}, said.output
    assert all(f"{node} is off" in said.output for node in going), said.output
    assert cluster.play("consolidate", **night).good().changed == 0

    cluster.play("spread", drover_fence=agent, drover_wake=",".join(going)).good()
    assert powers(cluster) == dict.fromkeys(NODES, "on") and cluster.where() == at_rest
    assert not any(cordoned(cluster, node) for node in NODES)
    assert cluster.play("spread").good().changed == 0


def test_nodes_without_an_agent_are_woken_by_tasks(cluster: Cluster, at_rest: dict[str, str], tmp_path: Path) -> None:
    wake = {"drover_wake_tasks": str(at_hand(cluster, tmp_path / "wake.yml", WAKE))}
    cluster.play("consolidate", **TOGETHER, **wake, drover_keep_on=0).refused("one hypervisor must stay on")
    said = cluster.play("consolidate", **TOGETHER, **wake).good()
    off = [node for node, power in powers(cluster).items() if power == "off"]
    assert len(off) == 1 and f"{off[0]} shuts down and takes no connection any more" in said.output, said.output

    # Nobody can say of it whether it is off, or only silent with VMs on it.
    more = cluster.play("consolidate", **TOGETHER, **wake, drover_keep_on=1)
    assert more.code != 0 and f"{off[0]} gives no answer" in more.output, more.output
    assert "so no node was switched off" in " ".join(more.output.split()), more.output
    assert [node for node, power in powers(cluster).items() if power == "off"] == off
    assert not any(cordoned(cluster, node) for node in NODES if node not in off)

    cluster.play("spread", **wake, drover_wake=off[0]).good()
    assert powers(cluster) == dict.fromkeys(NODES, "on") and cluster.where() == at_rest
    assert not cordoned(cluster, off[0])
