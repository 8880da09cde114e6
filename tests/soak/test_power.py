# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At night nodes are switched off once they are really empty, in the morning they come back with their VMs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODES = ("hv1", "hv2", "hv3")
FACT = "/etc/ansible/facts.d/drover.fact"

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


@pytest.fixture
def night(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The options of a night with all VMs on one node; in the end all nodes are on."""
    program = tmp_path / "fence_lab"
    values = {"python": sys.executable, "root": ROOT, "lab": cluster.lab.name}
    program.write_text(AGENT.format(**values), encoding="utf-8")
    program.chmod(0o700)
    agent = {"agent": str(program), "host": "localhost", "timeout": 60, "options": {"plug": "{{ inventory_hostname }}"}}
    together: dict[str, Any] = {"drover_anti_affinity": [], "drover_require_n_minus_1": False}
    yield {**together, "drover_fence": agent, "drover_power_off": True, "drover_keep_on": 1}
    for node in NODES:
        cluster.lab.power_on(node)


def powers(cluster: Cluster) -> dict[str, str]:
    """Whether each node is on, by the lab."""
    return {node: cluster.lab.status()["nodes"][node]["power"] for node in NODES}


def test_empty_nodes_are_switched_off_over_night(cluster: Cluster, night: dict[str, Any]) -> None:
    before, on = cluster.where(), dict.fromkeys(NODES, "on")
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        foretold = cluster.play("consolidate", "--check", **night).good()
        assert "Would be switched off, after a second look: hv" in foretold.output and cluster.where() == before
        without = {name: value for name, value in night.items() if name != "drover_fence"}
        cluster.play("consolidate", **without).refused("has no drover_fence in the inventory")

        # Somebody needs the two nodes that are to go.
        going = foretold.output.partition("after a second look: ")[2].partition('"')[0].split(", ")
        for node in going:
            cluster.ssh(node, "systemd-run", "--unit=nfs-server", "sleep", "3600")
        stays = cluster.play("consolidate", **night)
        assert stays.code != 0 and "stays on: nfs-server.service runs" in stays.output, stays.output
        assert powers(cluster) == on and set(cluster.where().values()) == set(NODES) - set(going)
        for node in going:
            assert '"since"' not in cluster.ssh(node, "cat", FACT), f"{node} is cordoned still"
            cluster.ssh(node, "systemctl", "stop", "nfs-server")

        said = cluster.play("consolidate", **night).good()
        assert powers(cluster) == {**on, **dict.fromkeys(going, "off")}, said.output
        assert cluster.play("consolidate", **night).good().changed == 0

        morning = {name: night[name] for name in ("drover_fence",)}
        cluster.play("spread", **morning, drover_wake=",".join(going)).good()
        assert powers(cluster) == on and cluster.where() == before
        assert cluster.play("spread").good().changed == 0
        for name in before:
            watch.wait_word(name)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
