# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge with 100 VLAN ports: one task of ours beside a bare ping and beside one ovs-vsctl a port, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, seconds_of_tasks, typical
from ansible_collections.drover.kvm.tests.unit import ovs_server

PORTS = 100
ROUNDS = 9
LOOPS = 2  # a loop takes half a minute
NO_OP_GOAL, CHANGE_GOAL = 1.6, 50.0


def bridge(name: str, socket: str, shift: int) -> dict[str, Any]:
    """The whole bridge in one task."""
    ports = [{"name": f"port{number}", "type": "internal", "tag": 1000 + number + shift} for number in range(PORTS)]
    return {"name": name, "drover.kvm.ovs_bridge": {"name": "br0", "socket": socket, "ports": ports}}


def loop(name: str, socket: str, shift: int) -> dict[str, Any]:
    """One ovs-vsctl for each port, as playbooks without a module for the whole bridge have it."""
    tag = f"tag={{{{ 1000 + item + {shift} }}}}"
    words = ["ovs-vsctl", f"--db=unix:{socket}", "set", "port", "port{{ item }}", tag]
    return {"name": name, "ansible.builtin.command": {"argv": words}, "loop": list(range(PORTS))}


def test_a_bridge_with_a_hundred_vlan_ports(tmp_path: Path) -> None:
    with ovs_server.private_switch() as server:
        socket = server.socket
        tasks: list[dict[str, Any]] = [bridge("made", socket, 0), {"name": "warm", "ansible.builtin.ping": {}}]
        for number in range(ROUNDS):
            tasks.append({"name": "ping", "ansible.builtin.ping": {}})
            tasks.append(bridge("nothing to do", socket, 0))
            tasks.append(bridge("all changed", socket, 1000))
            if number < LOOPS:
                tasks.append(loop("one ovs-vsctl a port", socket, 2000))
            tasks.append(bridge("changed back", socket, 0))
        seconds = seconds_of_tasks(tasks, tmp_path)
    ping, same, changed, looped = (
        typical(seconds[name]) for name in ("ping", "nothing to do", "all changed", "one ovs-vsctl a port")
    )
    rows = [
        ("task ping", f"{ping:.3f} s"),
        ("ovs_bridge, nothing to do", f"{same:.3f} s, {same / ping:.2f} pings (goal: at most {NO_OP_GOAL})"),
        ("ovs_bridge, all tags changed", f"{changed:.3f} s in one transaction"),
        ("loop of ovs-vsctl, the same", f"{looped:.1f} s, {looped / changed:.0f} times (goal: {CHANGE_GOAL:.0f})"),
    ]
    report(f"A bridge with {PORTS} VLAN ports (medians of {ROUNDS} rounds)", rows)
    assert same <= NO_OP_GOAL * ping and looped >= CHANGE_GOAL * changed, rows
