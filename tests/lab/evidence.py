# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab's nodes look like when a story has failed: whom they reach, their bonds, connections and logs."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab

SECONDS = 25
LINES = 12
# Each is cut to its last lines. Connections that are still being made stand out, and so do packets to nowhere.
LOOKS = (
    "ovs-appctl bond/show | grep -vE '^$|hash|recirc|updelay|downdelay'",
    "for bridge in $(ovs-vsctl list-br); do echo $bridge; ovs-appctl fdb/show $bridge; done",
    "ip -4 neigh",
    "ss -Htn state syn-sent state syn-recv",
    f"tail -n {LINES} /var/log/openvswitch/ovs-vswitchd.log",
    f"journalctl --no-pager -o short-iso -n {LINES} -u libvirtd -u virtqemud",
    "virsh -q list --all",
)


def lab_of(item: Any) -> Lab | None:
    """The lab of a story by what it was given: the lab, a cluster on it, or what has a cluster."""
    for value in getattr(item, "funcargs", {}).values():
        cluster = getattr(value, "cluster", value)
        found = cluster if isinstance(cluster, Lab) else getattr(cluster, "lab", None)
        if isinstance(found, Lab):
            return found
    return None


def gather(lab: Lab) -> str:
    """All looks at all nodes that run VMs, side by side; never raises for a node that says nothing."""
    nodes = [name for name, node in lab.topology.nodes.items() if "hypervisors" in node.groups]
    with ThreadPoolExecutor() as pool:
        return "\n".join(pool.map(lambda node: f"----- {node}\n{_ask(lab, node, _script(lab, node))}", nodes))


def _script(lab: Lab, node: str) -> str:
    looks = [f"{{ {look}; }} 2>&1 | tail -n {2 * LINES}" for look in LOOKS]
    return "\n".join([*_pings(lab, node), *looks])


def _pings(lab: Lab, node: str) -> list[str]:
    """One ping to each other machine in each network that both have, all at once; only silence is said."""
    topology = lab.topology
    ways = [
        (other.name, network, topology.networks[network].address(other.number))
        for other in topology.nodes.values()
        for network in other.networks
        if other.name != node and network in topology.node(node).networks
    ]
    lines = [f"ping -c 2 -W 3 -q {at} >/dev/null 2>&1 || echo '{name} is silent in {net}' &" for name, net, at in ways]
    return [*lines, "wait"]


def _ask(lab: Lab, node: str, script: str) -> str:
    argv = ["ssh", "-F", str(lab.state / "ssh_config"), node, "sh"]
    try:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        return f"no end within {SECONDS} s: {error.stdout!r}"
    return done.stdout + done.stderr
