# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The day the network breaks: swapped cables are named, VMs cut off by a lost bridge or a wrong VLAN come back."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.checks import GUEST_VLAN, OTHER_VLAN, address, both_cables_carry_lacp
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE = "hv2"
# The storage network is on the same bridge: what a guest of QEMU's iSCSI client bears is some 15 s, so the bridge is
# made again at once, and by nothing that knows of VMs. The module then finds its own marks missing, and writes them.
REMADE = "ovs-vsctl del-br br0 && ovs-vsctl add-br br0 -- set bridge br0 datapath_type=netdev"
REMADE += " -- add-bond br0 bond0 nic1 nic2 lacp=active bond_mode=balance-tcp other_config:lacp-time=fast"
REMADE += " -- add-port br0 storage0 tag=5 -- set interface storage0 type=internal"
REMADE += " -- add-port br0 migration0 tag=6 -- set interface migration0 type=internal"
LOSE = f"""---
- name: Lose the bridge
  hosts: {NODE}
  gather_facts: false
  tasks:
    - name: Lose it and make it again
      ansible.builtin.command:
        argv: [sh, -c, "{REMADE}"]
    - name: Mark it as declared
      drover.kvm.ovs_bridge:
        name: br0
        datapath_type: "{{{{ open_vswitch_bridges[0].datapath_type }}}}"
        bonds: "{{{{ open_vswitch_bridges[0].bonds }}}}"
        ports: "{{{{ open_vswitch_bridges[0].ports }}}}"
"""
ROLE = ("--limit", NODE, "--tags", "open_vswitch")
NICS = ("nic1", "nic2")
LACP = "ovs-appctl lacp/show bond0"
# What the map is for each host; the command line gives it for all.
OWN_MAP = "{{ lab_map[inventory_hostname] | default({}) }}"


class Core:
    """The lab's switch, with numbers at its ports such as a person would give them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = list(cluster.lab.machines)

    def system(self) -> str:
        """The switch's own word for its LACP system id."""
        found = re.search(r"sys_id: (\S+)", self.cluster.lab.network.appctl("lacp/show", f"{NODE}-bond0"))
        assert found
        return found[1]

    def key(self, node: str) -> int:
        """The number of a node's port-channel."""
        return 101 + self.nodes.index(node)

    def port(self, node: str, nic: str) -> int:
        """The number of the port; those of all first cables are lower than those of the second."""
        return 11 + 10 * NICS.index(nic) + self.nodes.index(node)

    def map(self) -> dict[str, Any]:
        """The written map."""
        system = self.system()
        return {
            node: {nic: {"system": system, "key": self.key(node), "port": self.port(node, nic)} for nic in NICS}
            for node in self.nodes
        }

    def plug(self, swapped: tuple[str, ...] = ()) -> None:
        """Plug every cable into its port; the second cables of `swapped` into each other's."""
        places = {node: node for node in self.nodes}
        places.update(zip(swapped, reversed(swapped)))
        words: list[str] = []
        for node, place in places.items():
            # `place` is the node in whose port the second cable sits.
            ids = [("nic1", node), ("nic2", place)]
            for nic, owner in ids:
                numbers = [f"lacp-port-id={self.port(owner, nic)}", f"lacp-aggregation-key={self.key(owner)}"]
                words += ["--", "set", "interface", f"{node}-{nic}", *(f"other_config:{word}" for word in numbers)]
            back = next(other for other, owner in places.items() if owner == node)
            members = ",".join(self.uuid(name) for name in (f"{node}-nic1", f"{back}-nic2"))
            words += ["--", "set", "port", f"{node}-bond0", f"interfaces=[{members}]"]
        self.cluster.lab.network.vsctl(*words[1:])

    def uuid(self, interface: str) -> str:
        """The row of an interface."""
        return self.cluster.lab.network.vsctl("get", "interface", interface, "_uuid").strip()

    def forget(self) -> None:
        """Take the numbers away."""
        words: list[str] = []
        for name in (f"{node}-{nic}" for node in self.nodes for nic in NICS):
            words += ["--", "remove", "interface", name, "other_config", "lacp-port-id"]
            words += ["--", "remove", "interface", name, "other_config", "lacp-aggregation-key"]
        self.cluster.lab.network.vsctl(*words[1:])

    def seen(self, node: str, nic: str, owner: str) -> bool | str:
        """Whether a node hears the numbers of the owner's port at its NIC."""
        said = self.cluster.ssh(node, LACP).partition(f"member: {nic}:")[2].partition("member:")[0]
        wanted = (f"partner port_id: {self.port(owner, nic)}\n", f"partner key: {self.key(owner)}\n")
        return all(words in said for words in wanted) or said

    def wait_for_all(self) -> None:
        """Until every node hears its own numbers at each NIC."""
        for node in self.nodes:
            for nic in NICS:
                wait_until(lambda node=node, nic=nic: self.seen(node, nic, node), 60, f"LACP of {node} {nic}")

    def forgotten(self) -> bool | str:
        """Whether no node hears a number of ours any more."""
        said = {node: self.cluster.ssh(node, LACP) for node in self.nodes}
        return not any(f"partner key: {self.key(node)}\n" in words for node, words in said.items()) or str(said)


@pytest.fixture
def core(cluster: Cluster) -> Iterator[Core]:
    """The switch with its numbers; at the end every cable is in its place and the numbers are gone."""
    found = Core(cluster)
    found.plug()
    found.wait_for_all()
    yield found
    # Each step is heard before the next: what a node says of a bond is of before until the other end's word comes.
    found.plug()
    found.wait_for_all()
    found.forget()
    wait_until(found.forgotten, 60, "the switch's own numbers")
    wait_until(lambda: attached(cluster), 60, "LACP with the cables in their places")


def attached(cluster: Cluster) -> bool | str:
    """Whether all bonds are whole."""
    try:
        both_cables_carry_lacp(cluster)
    except AssertionError as error:
        return str(error)
    return True


def test_two_swapped_cables_are_named(cluster: Cluster, core: Core) -> None:
    variables = {"lab_map": core.map(), "switch_ports": OWN_MAP}
    whole = cluster.play("network_report", **variables).good()
    assert "All 8 cables are where the map says." in whole.output
    assert whole.changed == 0
    core.plug(swapped=("hv1", "hv2"))
    for node, other in (("hv1", "hv2"), ("hv2", "hv1")):
        wait_until(lambda node=node, other=other: core.seen(node, "nic2", other), 60, f"LACP of {node}")
    words = "hv1 nic2 swapped with hv2 nic2; hv2 nic2 swapped with hv1 nic2."
    cluster.play("network_report", **variables).refused("2 of 8 cables are not as the map says:", words)
    shown = cluster.play("network_report", report_only=True, **variables).good()
    assert shown.output.count(" swapped with ") == 2


def test_a_link_with_a_small_mtu_is_found(cluster: Cluster) -> None:
    whole = cluster.play("network_report").good()
    assert "Packets of full size arrive." in whole.output and whole.changed == 0
    cluster.ssh(NODE, "ovs-vsctl set interface migration0 mtu_request=9000")
    try:
        wait_until(lambda: "mtu 9000" in (seen := cluster.ssh(NODE, "ip link show migration0")) or seen, 60, "the MTU")
        words = f"{address(cluster, 'hv1', 'migration')} by migration0: packets of 9000 bytes get lost, of 1500 arrive"
        report = cluster.play("network_report").refused(f"Packets of full size do not arrive: {words}", "Mend the MTU")
        assert re.search(rf"^{NODE} .*failed=1", report.output, re.MULTILINE), report.output
        assert len(re.findall(r" failed=1 ", report.output)) == 1, report.output
    finally:
        cluster.ssh(NODE, "ovs-vsctl clear interface migration0 mtu_request")
    wait_until(lambda: "mtu 1500" in (seen := cluster.ssh(NODE, "ip link show migration0")) or seen, 60, "the MTU")


CUT_OFF = """---
- name: Change the bridge over the network that it carries
  hosts: {node}
  gather_facts: false
  tasks:
    - name: Give the port another VLAN
      drover.kvm.ovs_bridge:
        name: br0
        datapath_type: netdev
        bonds: "{{{{ open_vswitch_bridges[0].bonds }}}}"
        ports:
          - {{name: storage0, type: internal, tag: 5}}
          - {{name: migration0, type: internal, tag: {tag}}}
        confirm_timeout: 20
"""


def test_a_change_that_cuts_ansible_off_is_taken_back(cluster: Cluster, tmp_path: Path) -> None:
    change = tmp_path / "change.yml"
    config = cluster.lab.state / "ssh_config"
    # Ansible comes in over the migration network, by way of another node.
    way = f"-F {config} -o HostKeyAlias={NODE} -o ProxyCommand='ssh -F {config} -W %h:%p hv1'"
    over = {"ansible_host": address(cluster, NODE, "migration"), "ansible_ssh_common_args": way}
    before = cluster.ssh(NODE, "ovs-vsctl show")
    change.write_text(CUT_OFF.format(node=NODE, tag=6), encoding="utf-8")
    assert cluster.play(str(change), **over).good().changed == 0
    change.write_text(CUT_OFF.format(node=NODE, tag=77), encoding="utf-8")
    played = cluster.play(str(change), **over)
    assert played.code != 0, played.output
    assert re.search(r"change\s+back\s+by\s+itself|is\s+taken\s+back\s+20\s+s\s+after", played.output), played.output
    wait_until(lambda: cluster.ssh(NODE, "ovs-vsctl show") == before, 60, "the switch as it was")
    change.write_text(CUT_OFF.format(node=NODE, tag=6), encoding="utf-8")
    assert cluster.play(str(change), **over).good().changed == 0


def test_a_change_is_kept_when_ansible_comes_in_again(cluster: Cluster, tmp_path: Path) -> None:
    change = tmp_path / "change.yml"
    for tag in (77, 6):
        change.write_text(CUT_OFF.format(node=NODE, tag=tag), encoding="utf-8")
        played = cluster.play(str(change), "-v").good()
        assert played.changed == 1 and '"confirmed": true' in played.output, played.output
        assert cluster.ssh(NODE, "ovs-vsctl get port migration0 tag").strip() == str(tag)
        assert "drover" not in cluster.ssh(NODE, "systemctl list-timers --all --no-legend")


FAULTS = {
    "ovs-vswitchd killed": "systemctl kill --signal=KILL ovs-vswitchd",
    "ovsdb-server killed": "systemctl kill --signal=KILL ovsdb-server",
    "both restarted": "systemctl restart openvswitch-switch",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_guests_bear_a_restart_of_the_switch(cluster: Cluster, fault: str) -> None:
    before, vswitchd = taps(cluster), cluster.ssh(NODE, "pidof ovs-vswitchd ovsdb-server")
    assert before
    with Observer(cluster.lab) as watch:
        names = guests_of(cluster)
        for name in names:
            watch.wait_word(name)
        struck = time.monotonic()
        cluster.ssh(NODE, FAULTS[fault])
        wait_until(lambda: whole_again(cluster, vswitchd), 60, "the switch")
        for name in names:
            watch.wait_word(name, after=time.monotonic(), seconds=60)
        gaps = {name: watch.longest_gap(name, struck) for name in names}
    assert max(gaps.values()) < 5, gaps
    assert taps(cluster) == before
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print(f"{fault}: longest gaps {gaps}")


def whole_again(cluster: Cluster, before: str) -> bool | str:
    """Whether other daemons run than before, both members of the bond are attached and the host has its addresses."""
    now = cluster.ssh(NODE, "pidof ovs-vswitchd ovsdb-server", check=False)
    lacp = cluster.ssh(NODE, "ovs-appctl lacp/show bond0", check=False)
    addresses = cluster.ssh(NODE, "ip -brief address")
    there = all(f"{address(cluster, NODE, network)}/24" in addresses for network in ("storage", "migration"))
    return (now not in ("", before) and lacp.count(": current attached") == 2 and there) or now + lacp + addresses


def guests_of(cluster: Cluster) -> list[str]:
    """The VMs on the node of these stories."""
    return sorted(name for name, node in cluster.where().items() if node == NODE)


def taps(cluster: Cluster) -> dict[str, str]:
    """Port, VLAN and external ids of each tap of the node, as Open vSwitch says them."""
    show = "ovs-vsctl --bare --columns=name find interface external_ids:iface-status=active"
    names = sorted(cluster.ssh(NODE, show).split())
    told = "ovs-vsctl port-to-br {0} -- get port {0} tag trunks vlan_mode -- get interface {0} external_ids"
    return {name: cluster.ssh(NODE, told.format(name)) for name in names}


def tap_of(cluster: Cluster, vm: str) -> str:
    """The tap of a VM, from libvirt."""
    return cluster.ssh(NODE, "virsh", "domiflist", vm).split()[-5]


def test_vms_come_back_after_their_bridge_was_lost(cluster: Cluster, tmp_path: Path) -> None:
    lose = tmp_path / "lose.yml"
    lose.write_text(LOSE, encoding="utf-8")
    before, names = taps(cluster), guests_of(cluster)
    assert len(before) == len(names) == 2
    with Observer(cluster.lab) as watch:
        words = {name: watch.wait_word(name) for name in names}
        cluster.play(str(lose)).good()
        deaf = time.monotonic()
        time.sleep(2)  # a guest speaks four times a second
        heard = {name for name in names if watch.words(name)[-1]["time"] > deaf}
        assert not heard, f"not exercised: {heard} still speak without a port"
        predicted = cluster.play("repair_network", "--check", node=NODE).good()
        assert predicted.changed == 1 and taps(cluster) == {}
        repaired = cluster.play("repair_network", node=NODE).good()
        end = time.monotonic()
        assert repaired.changed == 1
        for name in names:
            again = watch.wait_word(name, after=end, seconds=60)
            assert again["boot"] == words[name]["boot"], f"{name} was rebooted"
            assert again["counter"] > words[name]["counter"]
            assert again["monotonic_ms"] > words[name]["monotonic_ms"]
        assert taps(cluster) == before
        assert cluster.play("repair_network", node=NODE).good().changed == 0
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_taps_in_the_wrong_vlan_are_found_and_mended(cluster: Cluster) -> None:
    before, names = taps(cluster), guests_of(cluster)
    first, second = (tap_of(cluster, name) for name in names)
    cluster.ssh(NODE, f"ovs-vsctl set port {first} tag={OTHER_VLAN} -- set port {second} tag={OTHER_VLAN}")
    repaired = cluster.play("repair_network", "--diff", node=NODE, vms=names[0]).good()
    assert repaired.changed == 1
    assert cluster.ssh(NODE, f"ovs-vsctl get port {first} tag").strip() == str(GUEST_VLAN)
    assert cluster.ssh(NODE, f"ovs-vsctl get port {second} tag").strip() == str(OTHER_VLAN)
    assert cluster.play("site", *ROLE).good().changed == 1
    assert taps(cluster) == before
    assert cluster.play("repair_network", node=NODE).good().changed == 0


def test_a_vm_that_stays_silent_is_named_and_its_link_bounced(cluster: Cluster) -> None:
    name = guests_of(cluster)[0]
    tap = tap_of(cluster, name)
    cluster.ssh(NODE, f"ip link set {tap} down")
    try:
        played = cluster.play("repair_network", node=NODE, vms=name, bounce=True, drover_listen=2)
        assert played.code != 0 and played.changed == 1, played.output
        text = re.sub(r"\s+", " ", played.output)
        assert f"{name} sent nothing for 2 s" in text and f"drover.kvm.drain_node -e node={NODE}" in text, played.output
        assert "up" in cluster.ssh(NODE, "virsh", "domif-getlink", name, tap)
    finally:
        cluster.ssh(NODE, f"ip link set {tap} up")
    with Observer(cluster.lab) as watch:
        watch.wait_word(name, seconds=60)
