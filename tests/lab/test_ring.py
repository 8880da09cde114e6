# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of three nodes in a ring: any cable may be pulled, and the copper one waits while both fibres work."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, wait_until

EXAMPLE = ROOT / "examples/ring"
NODES = ("hv1", "hv2", "hv3")
CABLES = {"hv1": "fibre0", "hv2": "fibre0", "hv3": "copper0"}
PORTS = {"hv1": ("fibre0", "copper0"), "hv2": ("fibre0", "fibre1"), "hv3": ("fibre1", "copper0")}
LONGEST_GAP = 5.0
# Frames in a second on a host's port. Three pings at 100 a second make some 400; a loop makes tens of thousands.
STORM = 5000


@pytest.fixture(scope="module")
def ring() -> Iterator[Cluster]:
    """The example on a lab of its own."""
    with example_lab("drover-ring", EXAMPLE) as found:
        found.play(str(EXAMPLE / "site.yml")).good()
        yield found


def states(ring: Cluster) -> dict[str, str]:
    """NODE:PORT → its state in RSTP, from Open vSwitch itself."""
    found = {}
    for node in NODES:
        said = ring.ssh(node, "ovs-appctl rstp/show vmbr1")
        for port in PORTS[node]:
            row = re.search(rf"^\s*{port}\s+(\S+)\s+(\S+)\s", said, re.MULTILINE)
            found[f"{node}:{port}"] = f"{row[1]} {row[2]}" if row else "not told"
    return found


def waiting(ring: Cluster) -> list[str]:
    """The ports that stand by."""
    return sorted(name for name, state in states(ring).items() if "Discarding" in state and "Disabled" not in state)


def settled(ring: Cluster) -> bool | dict[str, str]:
    """Whether the ring stands as declared: one end of the copper cable waits, all else forwards."""
    seen = states(ring)
    idle = waiting(ring)
    forwarding = [state for state in seen.values() if "Forwarding" in state]
    return (idle in (["hv1:copper0"], ["hv3:copper0"]) and len(forwarding) == 5) or seen


@contextmanager
def pings(ring: Cluster) -> Iterator[list[float]]:
    """Each node pings the next one a hundred times a second meanwhile; afterwards the longest gaps are in the list."""
    network, started = ring.lab.topology.networks["ring"], []
    config = str(ring.lab.state / "ssh_config")
    for node, other in zip(NODES, (*NODES[1:], NODES[0])):
        address = network.address(ring.lab.topology.node(other).number)
        command = ["ssh", "-F", config, node, "exec", "ping", "-D", "-n", "-i", "0.01", "-w", "60", address]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    gaps: list[float] = []
    try:
        yield gaps
    finally:
        for node in NODES:
            ring.ssh(node, "pkill -INT -x ping", check=False)
        for process in started:
            text = process.communicate(timeout=30)[0]
            times = [float(word) for word in re.findall(r"^\[([0-9.]+)\] \d+ bytes from", text, re.MULTILINE)]
            assert len(times) > 100, text[-2000:]
            gaps.append(max(later - sooner for sooner, later in zip(times, times[1:])))


def frames(ring: Cluster) -> int:
    """How many frames the hosts have received."""
    return sum(int(ring.ssh(node, "cat /sys/class/net/ring0/statistics/rx_packets")) for node in NODES)


def rate(ring: Cluster) -> float:
    """Frames a second that arrive at one host, with broadcasts on the way."""
    begin, before = time.monotonic(), frames(ring)
    ring.ssh("hv1", "ping -b -c 20 -i 0.05 -W 1 10.231.9.255 2>/dev/null", check=False)
    return (frames(ring) - before) / (time.monotonic() - begin) / len(NODES)


def test_one_end_of_the_copper_cable_waits(ring: Cluster) -> None:
    wait_until(lambda: settled(ring), 20, "the ring as declared")
    assert ring.play(str(EXAMPLE / "site.yml")).good().changed == 0


@pytest.mark.parametrize("node", NODES)
def test_any_cable_may_be_pulled(ring: Cluster, node: str) -> None:
    wait_until(lambda: settled(ring), 20, "the ring as declared")
    idle = waiting(ring)
    with pings(ring) as gaps:
        assert rate(ring) < STORM
        assert ring.lab.cut(node, CABLES[node])
        wait_until(lambda: waiting(ring) == [] or states(ring), 10, "a ring without the cable")
        assert rate(ring) < STORM, "frames go round in a loop"
        assert ring.lab.restore(node, CABLES[node])
        wait_until(lambda: waiting(ring) == idle or states(ring), 15, f"{idle} waiting again")
        assert rate(ring) < STORM, "frames go round in a loop"
    assert max(gaps) < LONGEST_GAP, f"longest gaps of {NODES}: {gaps}"
    print(f"{node} {CABLES[node]}: longest gaps {gaps}")
