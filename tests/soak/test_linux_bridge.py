# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers without Open vSwitch: the kernel's bond with LACP, VLANs and bridges, cables pulled, a bridge lost."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, wait_until

EXAMPLE = ROOT / "examples/linux-bridge"
SITE = str(EXAMPLE / "site.yml")
NODE, OTHER = "hv1", "hv2"
ONE = ("--limit", NODE)
LONGEST_GAP = 5.0
# A VM without a disk: its firmware asks the network for one, with packets from its MAC address.
MAC = "52:54:00:11:22:33"
DOMAIN = f"""<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='network'/><bios rebootTimeout='0'/></os>
<devices><interface type='bridge'><mac address='{MAC}'/><source bridge='br100'/><model type='virtio'/></interface>
</devices></domain>"""


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    """The example on a lab of its own."""
    with example_lab("drover-linux", EXAMPLE) as found:
        found.play(SITE).good()
        yield found


def members(servers: Cluster, node: str = NODE) -> int:
    """How many ports the active aggregator of the node's bond has, as the kernel says."""
    said = servers.ssh(node, "cat /proc/net/bonding/bond0")
    assert "Partner Mac Address: 00:00:00:00:00:00" not in said, said
    return int(re.findall(r"Number of ports: (\d+)", said)[0])


def ports(servers: Cluster, bridge: str = "br100") -> list[str]:
    """What is plugged into a bridge of the kernel."""
    links = json.loads(servers.ssh(NODE, f"ip -json link show master {bridge}") or "[]")
    return sorted(link["ifname"] for link in links if link)


@contextmanager
def pings(servers: Cluster) -> Iterator[list[float]]:
    """The other node's storage address is asked ten times a second meanwhile; the list gets the longest gap."""
    address = servers.lab.topology.networks["storage"].address(servers.lab.topology.node(OTHER).number)
    command = ["ssh", "-F", str(servers.lab.state / "ssh_config"), NODE, "exec", "ping", "-D", "-n", "-i", "0.1"]
    process = subprocess.Popen([*command, "-w", "120", address], stdout=subprocess.PIPE, text=True)
    gaps: list[float] = []
    try:
        yield gaps
    finally:
        servers.ssh(NODE, "pkill -INT -x ping", check=False)
        said = process.communicate(timeout=60)[0]
        times = [float(word) for word in re.findall(r"^\[([0-9.]+)\] \d+ bytes", said, re.MULTILINE)]
        assert len(times) > 10, times
        gaps.append(max(later - sooner for sooner, later in zip(times, times[1:])))


def test_the_bond_carries_both_cables_and_a_second_run_changes_nothing(servers: Cluster) -> None:
    assert servers.play(SITE).good().changed == 0
    assert members(servers) == members(servers, OTHER) == 2
    with pings(servers) as gaps:
        assert ports(servers) == ["bond0.100"]
    assert gaps[0] < LONGEST_GAP


def test_a_cable_may_be_pulled(servers: Cluster) -> None:
    with pings(servers) as gaps:
        assert servers.lab.cut(NODE, "nic1")
        wait_until(lambda: members(servers) == 1 or "two members", 20, "one member")
        assert servers.play(SITE, *ONE).good().changed == 0
        assert servers.lab.restore(NODE, "nic1")
        wait_until(lambda: members(servers) == 2 or "one member", 30, "both members")
    assert gaps[0] < LONGEST_GAP, gaps
    print(f"longest gap {gaps[0]:.2f} s")


def test_an_lacp_that_does_not_negotiate_is_named(servers: Cluster) -> None:
    core = servers.lab.network
    core.vsctl("set", "port", f"{NODE}-bond0", "lacp=off")
    try:
        told = "cat /proc/net/bonding/bond0"
        wait_until(lambda: "00:00:00:00:00:00" in servers.ssh(NODE, told) or "heard", 20, "silence")
        words = "nic1 of bond bond0: nobody answers LACP at the other end of its cable"
        servers.play(SITE, *ONE, linux_bridge_wait_lacp=3).refused(words)
    finally:
        core.vsctl("set", "port", f"{NODE}-bond0", "lacp=active")
    wait_until(lambda: members(servers) == 2 or "not yet", 30, "LACP again")


def test_a_vm_comes_back_after_its_bridge_was_lost(servers: Cluster) -> None:
    servers.ssh(NODE, "systemctl start libvirtd && cat >/run/web1.xml && virsh create /run/web1.xml", stdin=DOMAIN)
    tap = servers.ssh(NODE, "virsh domiflist web1").split()[-5]
    assert ports(servers) == ["bond0.100", tap]
    seen = f"timeout 60 tcpdump -c 1 -n -e -i bond0 vlan 100 and ether src {MAC}"
    assert MAC in servers.ssh(NODE, seen, timeout=90)
    servers.ssh(NODE, "ip link delete br100")
    predicted = servers.play(SITE, *ONE, "--check").good()
    assert predicted.changed == 1 and ports(servers) == []
    servers.ssh(NODE, "networkctl reload")
    wait_until(lambda: ports(servers) == ["bond0.100"] or ports(servers), 20, "the bridge without the VM")
    assert servers.play("repair_network", node=NODE, drover_listen=0).good().changed == 1
    assert ports(servers) == ["bond0.100", tap]
    assert MAC in servers.ssh(NODE, seen, timeout=90)
    servers.ssh(NODE, "virsh destroy web1")


def test_a_bond_changes(servers: Cluster) -> None:
    one = [{"name": "bond0", "members": ["nic1"], "mode": "802.3ad", "lacp_time": "slow"}]
    predicted = servers.play(SITE, *ONE, "--check", "--diff", linux_bridge_bonds=one).good()
    assert predicted.changed == 1 and members(servers) == 2
    assert servers.play(SITE, *ONE, linux_bridge_bonds=one).good().changed == 1
    assert members(servers) == 1 and ports(servers) == ["bond0.100"]
    assert "slow" in servers.ssh(NODE, "cat /sys/class/net/bond0/bonding/lacp_rate")
    assert servers.play(SITE, *ONE).good().changed == 1
    wait_until(lambda: members(servers) == 2 or "one member", 20, "both members")


def test_a_change_that_cuts_ansible_off_takes_itself_back(servers: Cluster) -> None:
    cut = {"linux_bridge_bridges": [{"name": "br0", "ports": [{"name": "mgmt0"}]}]}
    servers.play(SITE, *ONE, **cut).refused("mgmt0 carries the connection of Ansible")
    played = servers.play(SITE, *ONE, linux_bridge_confirm_timeout=40, linux_bridge_wait_lacp=30, **cut)
    assert played.code != 0 and "could not be reached within 40 s" in re.sub(r"\s+", " ", played.output), played.output
    wait_until(lambda: servers.lab.answers(NODE)[0] or "silent", 60, "the node answers again")
    assert servers.play(SITE, *ONE).good().changed == 0
