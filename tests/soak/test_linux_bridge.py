# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers without Open vSwitch: the kernel's bond with LACP, VLANs and bridges, cables pulled, a bridge lost."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, Played, example_lab, wait_until

EXAMPLE = ROOT / "examples/linux-bridge"
SITE = str(EXAMPLE / "site.yml")
NODE, OTHER = "hv1", "hv2"
ONE = ("--limit", NODE)
# Seconds; an emulated node on a busy machine is slow.
LIMITS = {"linux_bridge_address_timeout": 240, "linux_bridge_wait_lacp": 120}
LONGEST_GAP = 5.0
# A VM without a disk: its firmware asks the network for one. The rest is the sheet of any VM.
VM: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 1, "boot": ["network"]}
HEARD_SECONDS = 200
# So that it asks again and again; module vm leaves alone what it has no option for.
ASK_AGAIN = """virsh dumpxml --inactive web1 | sed "s|</os>|<bios rebootTimeout='0'/></os>|" >/run/web1.xml
virsh define /run/web1.xml"""
LIAR = "52:54:00:de:ad:01"
# The guest's NIC has another address than the one that libvirt knows.
OVERRIDE = f"""<qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:device alias='net0'>
<qemu:frontend><qemu:property name='mac' type='string' value='{LIAR}'/></qemu:frontend>
</qemu:device></qemu:override></domain>"""
# What leaves the node from an address while its tap hears three frames of it.
LEAVES = """tcpdump --immediate-mode -l -n -e -i bond0 "ether src $1" >/run/left 2>/run/left.log &
until grep -q listening /run/left.log; do sleep 0.2; done
timeout $3 tcpdump --immediate-mode -c 3 -n -e -i "$2" "ether src $1" >/run/heard 2>&1 || { cat /run/heard; exit 1; }
kill $!; wait; cat /run/left"""
# One bridge that keeps the VLANs apart, in place of all that the example has.
FILTERED: dict[str, Any] = {
    "linux_bridge_bonds": [],
    "linux_bridge_vlans": [],
    "linux_bridge_bridges": [
        {
            "name": "br1",
            "vlan_filtering": True,
            "bonds": [
                {"name": "bond0", "members": ["nic1", "nic2"], "mode": "802.3ad", "lacp_time": "fast"},
            ],
            "ports": [
                {"name": "storage0", "type": "internal", "tag": 5},
                {"name": "guests0", "type": "internal", "tag": 100},
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    """The example on a lab of its own."""
    with example_lab("drover-linux", EXAMPLE) as found:
        site(found).good()
        yield found


def site(servers: Cluster, *options: str, **variables: Any) -> Played:
    """The example's playbook."""
    return servers.play(SITE, *options, **{**LIMITS, **variables})


def members(servers: Cluster, node: str = NODE) -> int:
    """How many ports the active aggregator of the node's bond has, as the kernel says."""
    said = servers.ssh(node, "cat /proc/net/bonding/bond0")
    assert "Partner Mac Address: 00:00:00:00:00:00" not in said, said
    return int(re.findall(r"Number of ports: (\d+)", said)[0])


def ports(servers: Cluster, bridge: str = "br100") -> list[str]:
    """What is plugged into a bridge of the kernel."""
    links = json.loads(servers.ssh(NODE, f"ip -json link show master {bridge}", check=False) or "[]")
    return sorted(link["ifname"] for link in links if link)


@contextmanager
def pings(servers: Cluster) -> Iterator[list[float]]:
    """The other node's storage address is asked ten times a second meanwhile; the list gets the longest gap."""
    address = servers.lab.topology.networks["storage"].address(servers.lab.topology.node(OTHER).number)
    command = ["ssh", "-F", str(servers.lab.state / "ssh_config"), NODE, "exec", "ping", "-D", "-n", "-i", "0.1"]
    process = subprocess.Popen([*command, "-w", "1200", address], stdout=subprocess.PIPE, text=True)
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
    with pings(servers) as gaps:
        assert site(servers).good().changed == 0
    assert members(servers) == members(servers, OTHER) == 2
    assert ports(servers) == ["bond0.100"]
    assert gaps[0] < LONGEST_GAP


def test_a_cable_may_be_pulled(servers: Cluster) -> None:
    with pings(servers) as gaps:
        assert servers.lab.cut(NODE, "nic1")
        wait_until(lambda: members(servers) == 1 or "two members", 60, "one member")
        assert site(servers, *ONE).good().changed == 0
        assert servers.lab.restore(NODE, "nic1")
        wait_until(lambda: members(servers) == 2 or "one member", 60, "both members")
    assert gaps[0] < LONGEST_GAP, gaps
    print(f"longest gap {gaps[0]:.2f} s")


def test_an_lacp_that_does_not_negotiate_is_named(servers: Cluster) -> None:
    core = servers.lab.network
    core.vsctl("set", "port", f"{NODE}-bond0", "lacp=off")
    try:
        told = "cat /proc/net/bonding/bond0"
        wait_until(lambda: "00:00:00:00:00:00" in servers.ssh(NODE, told) or "heard", 60, "silence")
        words = "nic1 of bond bond0: nobody answers LACP at the other end of its cable"
        site(servers, *ONE, linux_bridge_wait_lacp=3).refused(words)
    finally:
        core.vsctl("set", "port", f"{NODE}-bond0", "lacp=active")
    wait_until(lambda: members(servers) == 2 or "not yet", 60, "LACP again")


@pytest.fixture(scope="module")
def vm(servers: Cluster) -> Iterator[str]:
    """The MAC address of a VM that module vm made on the bridge; libvirt's filter checks it."""
    # It stays when nobody asks it: an emulated one takes longer to start than a module waits for its answer.
    servers.ssh(NODE, "echo LIBVIRTD_ARGS= >/etc/default/libvirtd && systemctl restart libvirtd", timeout=300)
    nics = [{"bridge": "br100", "anti_spoof": True}]
    assert change(servers, nics=nics)["changed"]
    servers.ssh(NODE, ASK_AGAIN, timeout=120)
    assert change(servers, state="running", nics=nics)["changed"]
    yield servers.ssh(NODE, "virsh domiflist web1").split()[-1]
    servers.ssh(NODE, "virsh destroy web1; virsh undefine web1", check=False, timeout=120)


def change(servers: Cluster, **options: Any) -> dict[str, Any]:
    """What module vm did; AssertionError when it failed."""
    result = servers.task(NODE, "vm", **VM, **options)
    assert not result["failed"], result
    return result


def tap(servers: Cluster) -> str:
    """The VM's end on the node."""
    return servers.ssh(NODE, "virsh -q domiflist web1", timeout=120).split()[0]


def is_heard(servers: Cluster, mac: str, vlan: int = 100) -> None:
    """A frame of the VM leaves the node with the tag of its VLAN; AssertionError with what was seen instead."""
    words = f"timeout {HEARD_SECONDS} tcpdump --immediate-mode -c 1 -n -e -i bond0 ether src {mac}"
    said = servers.ssh(NODE, words, timeout=HEARD_SECONDS + 60)
    assert f"vlan {vlan}," in said, said


def leaves(servers: Cluster, mac: str) -> str:
    """What leaves the node with this address, while the VM's tap hears it send."""
    script = ["bash", "-c", shlex.quote(LEAVES), "leaves", mac, tap(servers), str(HEARD_SECONDS)]
    return servers.ssh(NODE, *script, timeout=HEARD_SECONDS + 60)


def test_a_vm_of_any_sheet_goes_on_the_bridge_and_a_vlan_is_refused_with_the_mend(servers: Cluster, vm: str) -> None:
    assert ports(servers) == ["bond0.100", tap(servers)]
    is_heard(servers, vm)
    again = change(servers, state="running", nics=[{"bridge": "br100", "anti_spoof": True}])
    assert not again["changed"] and again["pending_restart"] == [], again
    refused = servers.task(NODE, "vm", **VM, nics=[{"bridge": "br100", "vlan": 100}])
    assert refused["failed"], refused
    assert "br100 is a Linux bridge without VLANs; take a bridge that carries this VLAN alone" in refused["msg"], (
        refused
    )


def test_a_vm_with_the_address_of_another_is_not_heard(servers: Cluster, vm: str) -> None:
    liar = servers.ssh(NODE, "virsh dumpxml --inactive web1", timeout=120).replace("</domain>", OVERRIDE)
    servers.ssh(NODE, "virsh destroy web1 && cat >/run/liar.xml && virsh create /run/liar.xml", stdin=liar, timeout=240)
    assert leaves(servers, LIAR).strip() == ""
    servers.ssh(NODE, "virsh destroy web1 && virsh start web1", timeout=240)
    assert vm in leaves(servers, vm)


def test_a_vm_comes_back_after_its_bridge_was_lost(servers: Cluster, vm: str) -> None:
    plugged = ["bond0.100", tap(servers)]
    servers.ssh(NODE, "ip link delete br100")
    predicted = site(servers, *ONE, "--check").good()
    assert predicted.changed == 1 and ports(servers) == []
    # What was deleted a moment ago may still be there for networkd.
    wait_until(lambda: "br100" not in (seen := servers.ssh(NODE, "networkctl list")) or seen, 60, "networkd sees it")
    servers.ssh(NODE, "networkctl reload")
    wait_until(lambda: ports(servers) == ["bond0.100"] or ports(servers), 60, "the bridge without the VM")
    assert servers.play("repair_network", node=NODE, drover_listen=0).good().changed == 1
    assert ports(servers) == plugged
    is_heard(servers, vm)


def test_one_bridge_keeps_vlans_apart(servers: Cluster, vm: str) -> None:
    servers.ssh(NODE, "virsh destroy web1", timeout=120)
    networks, number = servers.lab.topology.networks, servers.lab.topology.node(NODE).number
    addresses = [
        {"name": f"{name}0", "addresses": [networks[name].interface(number)]} for name in ("storage", "guests")
    ]
    filtered = {**FILTERED, "linux_bridge_addresses": addresses}
    assert site(servers, *ONE, **filtered).good().changed
    assert site(servers, *ONE, **filtered).good().changed == 0
    for name in ("storage", "guests"):
        said = servers.ssh(NODE, f"ping -c 5 -i 0.3 -W 5 {networks[name].address(1)}", check=False)
        assert " 0% packet loss" in said, said
    change(servers, state="running", nics=[{"bridge": "br1", "vlan": 100}])
    is_heard(servers, vm)
    moved = change(servers, nics=[{"bridge": "br1", "vlan": 200}])
    assert moved["changed"] and moved["pending_restart"] == [], moved
    is_heard(servers, vm, 200)
    change(servers, state="absent", force=True)
    assert site(servers, *ONE).good().changed
    assert ports(servers) == ["bond0.100"] and members(servers) == 2


def test_a_lost_vlan_is_made_again(servers: Cluster) -> None:
    servers.ssh(NODE, "ip link delete bond0.100")
    assert site(servers, *ONE).good().changed == 1
    assert ports(servers) == ["bond0.100"]


def test_a_bond_changes(servers: Cluster) -> None:
    one = [{"name": "bond0", "members": ["nic1"], "mode": "802.3ad", "lacp_time": "slow"}]
    predicted = site(servers, *ONE, "--check", "--diff", linux_bridge_bonds=one).good()
    assert predicted.changed == 1 and members(servers) == 2
    assert site(servers, *ONE, linux_bridge_bonds=one).good().changed == 1
    assert members(servers) == 1 and ports(servers) == ["bond0.100"]
    assert "slow" in servers.ssh(NODE, "cat /sys/class/net/bond0/bonding/lacp_rate")
    assert site(servers, *ONE).good().changed == 1
    wait_until(lambda: members(servers) == 2 or "one member", 60, "both members")


def test_a_change_that_cuts_ansible_off_takes_itself_back(servers: Cluster) -> None:
    cut = {"linux_bridge_bridges": [{"name": "br0", "ports": [{"name": "mgmt0"}]}]}
    site(servers, *ONE, **cut).refused("mgmt0 carries the connection of Ansible")
    played = site(servers, *ONE, linux_bridge_confirm_timeout=40, linux_bridge_wait_lacp=30, **cut)
    assert played.code != 0 and "could not be reached within 40 s" in re.sub(r"\s+", " ", played.output), played.output
    wait_until(lambda: servers.lab.answers(NODE)[0] or "silent", 180, "the node answers again")
    assert site(servers, *ONE).good().changed == 0
