# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of three nodes in a ring: any cable may be pulled, and the copper one waits while both fibres work."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, wait_until

EXAMPLE = ROOT / "examples/ring"
NODES = ("hv1", "hv2", "hv3")
CABLES = {"hv1": "fibre0", "hv2": "fibre0", "hv3": "copper0"}
PORTS = {"hv1": ("fibre0", "copper0"), "hv2": ("fibre0", "fibre1"), "hv3": ("fibre1", "copper0")}
Ways = tuple[tuple[str, str], ...]
ROUND: Ways = (("hv1", "hv2"), ("hv2", "hv3"), ("hv3", "hv1"))
LONGEST_GAP = 5.0
# Frames in a second on a host's port. Three pings at 100 a second make some 400; a loop makes tens of thousands.
STORM = 5000


@pytest.fixture(scope="module")
def ring() -> Iterator[Cluster]:
    """The example on a lab of its own."""
    with example_lab("drover-ring", EXAMPLE) as found:
        found.play(str(EXAMPLE / "site.yml")).good()
        yield found


def shown(ring: Cluster, nodes: tuple[str, ...] = NODES) -> dict[str, str]:
    """What Open vSwitch on each of the nodes says of RSTP; nothing where it does not answer."""
    with ThreadPoolExecutor() as pool:
        said = pool.map(lambda node: ring.ssh(node, "ovs-appctl rstp/show vmbr1", check=False), nodes)
        return dict(zip(nodes, said))


def states(ring: Cluster) -> dict[str, str]:
    """NODE:PORT → its state in RSTP."""
    found = {}
    for node, said in shown(ring).items():
        for port in PORTS[node]:
            row = re.search(rf"^\s*{port}\s+(\S+)\s+(\S+)\s", said, re.MULTILINE)
            found[f"{node}:{port}"] = f"{row[1]} {row[2]}" if row else "not told"
    return found


def idle_of(seen: dict[str, str]) -> list[str]:
    """The ports that stand by."""
    return sorted(name for name, state in seen.items() if "Discarding" in state and "Disabled" not in state)


def waiting(ring: Cluster) -> list[str]:
    """The ports that stand by now."""
    return idle_of(states(ring))


def settled(ring: Cluster) -> bool | dict[str, str]:
    """Whether the ring stands as declared: one end of the copper cable waits, all else forwards."""
    seen = states(ring)
    idle = idle_of(seen)
    forwarding = [state for state in seen.values() if "Forwarding" in state]
    return (idle in (["hv1:copper0"], ["hv3:copper0"]) and len(forwarding) == 5) or seen


@contextmanager
def pings(ring: Cluster, ways: Ways = ROUND) -> Iterator[list[float]]:
    """On each way a hundred pings a second meanwhile; afterwards the longest gaps are in the list, in that order."""
    network, started = ring.lab.topology.networks["ring"], []
    config = str(ring.lab.state / "ssh_config")
    for node, other in ways:
        address = network.address(ring.lab.topology.node(other).number)
        command = ["ssh", "-F", config, node, "exec", "ping", "-D", "-n", "-i", "0.01", "-w", "180", address]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    gaps: list[float] = []
    try:
        yield gaps
    finally:
        ended = time.time()
        for node, _other in ways:
            ring.ssh(node, "pkill -INT -x ping", check=False)
        for process in started:
            text = process.communicate(timeout=30)[0]
            times = [float(word) for word in re.findall(r"^\[([0-9.]+)\] \d+ bytes from", text, re.MULTILINE)]
            assert len(times) > 100, text[-2000:]
            # Pings that nobody answers any more make a gap too, up to the end.
            gaps.append(max(later - sooner for sooner, later in zip(times, [*times[1:], ended])))


def frames(ring: Cluster, nodes: tuple[str, ...]) -> int:
    """How many frames the hosts have received."""
    return sum(int(ring.ssh(node, "cat /sys/class/net/ring0/statistics/rx_packets")) for node in nodes)


def rate(ring: Cluster, nodes: tuple[str, ...] = NODES) -> float:
    """Frames a second that arrive at one host, with broadcasts on the way."""
    begin, before = time.monotonic(), frames(ring, nodes)
    ring.ssh("hv1", "ping -b -c 20 -i 0.05 -W 1 10.231.9.255 2>/dev/null", check=False)
    return (frames(ring, nodes) - before) / (time.monotonic() - begin) / len(nodes)


def test_one_end_of_the_copper_cable_waits(ring: Cluster) -> None:
    wait_until(lambda: settled(ring), 60, "the ring as declared")
    assert ring.play(str(EXAMPLE / "site.yml")).good().changed == 0


@pytest.mark.parametrize("node", NODES)
def test_any_cable_may_be_pulled(ring: Cluster, node: str) -> None:
    wait_until(lambda: settled(ring), 60, "the ring as declared")
    idle = waiting(ring)
    with pings(ring) as gaps:
        assert rate(ring) < STORM
        assert ring.lab.cut(node, CABLES[node])
        wait_until(lambda: waiting(ring) == [] or states(ring), 60, "a ring without the cable")
        assert rate(ring) < STORM, "frames go round in a loop"
        assert ring.lab.restore(node, CABLES[node])
        wait_until(lambda: waiting(ring) == idle or states(ring), 60, f"{idle} waiting again")
        assert rate(ring) < STORM, "frames go round in a loop"
    assert max(gaps) < LONGEST_GAP, f"longest gaps of {NODES}: {gaps}"
    print(f"{node} {CABLES[node]}: longest gaps {gaps}")


ROOT_NODE, OTHERS = "hv2", ("hv1", "hv3")
BOTH_WAYS: Ways = (("hv1", "hv3"), ("hv3", "hv1"))
KILL = "systemctl mask --runtime --quiet ovs-vswitchd && systemctl kill --signal=KILL ovs-vswitchd"
START = "systemctl unmask --runtime --quiet ovs-vswitchd && systemctl start ovs-vswitchd"


def unplug(ring: Cluster) -> None:
    """The node dies, and its NICs with it: a container leaves them in the lab's namespace."""
    assert ring.lab.power_off(ROOT_NODE)
    for nic in PORTS[ROOT_NODE]:
        assert ring.lab.cut(ROOT_NODE, nic)


def plug(ring: Cluster) -> None:
    """The node boots."""
    ring.lab.restore(ROOT_NODE)
    ring.lab.power_on(ROOT_NODE)


def kill(ring: Cluster) -> None:
    """Only the switch dies; the links stay up, so the others can only miss its words, three of them, one each 2 s."""
    ring.ssh(ROOT_NODE, KILL)


def start(ring: Cluster) -> None:
    """The switch is started."""
    ring.ssh(ROOT_NODE, START)


# How the root dies and comes back, and the longest gap in seconds.
DEATHS = {"the node": (unplug, plug, LONGEST_GAP), "ovs-vswitchd": (kill, start, 6 + 2.0)}


def roots(ring: Cluster, nodes: tuple[str, ...]) -> list[str]:
    """The nodes that are the root of the tree in their own eyes."""
    return [node for node, said in shown(ring, nodes).items() if "This bridge is the root" in said]


@pytest.mark.parametrize("death", DEATHS)
def test_the_root_may_die(ring: Cluster, death: str) -> None:
    die, rise, longest = DEATHS[death]
    wait_until(lambda: settled(ring), 60, "the ring as declared")
    idle = waiting(ring)
    assert roots(ring, NODES) == [ROOT_NODE]
    with pings(ring, BOTH_WAYS) as gaps:
        died = time.monotonic()
        die(ring)
        wait_until(lambda: len(found := roots(ring, OTHERS)) == 1 or found, 60, "one new root")
        elected = time.monotonic() - died
        assert rate(ring, OTHERS) < STORM, "frames go round in a loop"
        rise(ring)
        wait_until(lambda: settled(ring), 60, "the ring as declared")
        wait_until(lambda: waiting(ring) == idle or states(ring), 60, f"{idle} waiting again")
        assert roots(ring, NODES) == [ROOT_NODE]
        assert rate(ring) < STORM, "frames go round in a loop"
    assert max(gaps) < longest, f"longest gaps of {BOTH_WAYS}: {gaps}"
    print(f"{death} of the root dies: a new root after {elected:.1f} s, longest gaps {gaps}")
