# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are VMs: the same lab, the same faults, and a kernel that has what this host's may lack."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import LabError
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, borrowed, keeps, wait_until
from ansible_collections.drover.kvm.tests.lab.test_lab import births, traces

TOPOLOGY = Path(__file__).with_name("vm_topology.json")
VMS = ("vm1", "vm2")
SINK_STORAGE, SINK_GUESTS = "10.231.5.1", "10.231.100.1"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
KERNEL_BOND = """modprobe -a bonding 8021q
ip link add bond0 type bond mode 802.3ad lacp_rate fast miimon 100
for nic in nic1 nic2; do ip link set $nic down; ip link set $nic master bond0; done
ip link add link bond0 name bond0.5 type vlan id 5
ip address add 10.231.5.11/24 dev bond0.5
ip link set bond0 up; ip link set bond0.5 up"""
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -q -y openvswitch-switch"
OVS_BOND = """ovs-vsctl --may-exist add-br br0
ovs-vsctl add-bond br0 bond0 nic1 nic2 lacp=active bond_mode=balance-tcp other_config:lacp-time=fast
ovs-vsctl add-port br0 guests0 tag=100 -- set interface guests0 type=internal
ip link set nic1 up; ip link set nic2 up; ip link set guests0 up
ip address add 10.231.100.12/24 dev guests0"""
GUARD = ROOT / "roles/open_vswitch/files/drover_port_guard.py"
MAC = "52:54:00:00:00:77"
# A port that looks like a VM's; the switch itself lets BPDUs pass, so that only the guard can drop them.
GUEST = f"""ip link add web1 type veth peer name inside
ip link set inside address {MAC}; ip link set inside up; ip link set web1 up
ovs-vsctl set bridge br0 other_config:forward-bpdu=true -- add-port br0 web1 tag=100 -- set interface web1 \
    'external_ids:attached-mac="{MAC}"' external_ids:vm-id=1 external_ids:iface-id=1"""
GUEST_GOES = """python3 /root/port_guard.py off
ovs-vsctl remove bridge br0 other_config forward-bpdu -- --if-exists del-port br0 web1; ip link del web1"""
# What of five frames each comes out at another port of the VLAN; ends when the honest ones have.
FRAMES = f"""
import select, socket, time
def wire(name):
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
    found.bind((name, 0))
    return found
guest, other = wire("inside"), wire("guests0")
own, foreign = (bytes.fromhex(mac.replace(":", "")) for mac in ("{MAC}", "52:54:00:de:ad:01"))
text = bytes.fromhex("ff" * 6) + b"%s" + bytes.fromhex("88b5")
frames = {{
    "bpdu": bytes.fromhex("0180c2000000") + own + bytes.fromhex("0026424203") + bytes(35),
    "foreign": text % foreign + b"drover".ljust(46),
    "own": text % own + b"drover".ljust(46),
}}
for _time in range(5):
    for frame in frames.values():
        guest.send(frame)
        time.sleep(0.1)
seen, end = [], time.monotonic() + 20
while seen.count("own") < 5 and select.select([other], [], [], max(0, end - time.monotonic()))[0]:
    data = other.recv(2048)
    seen += [name for name, frame in frames.items() if data[:14] == frame[:14]]
print(*sorted(set(seen)))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two VMs and a container between the same switches."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    prepared = os.environ.get("DROVER_LAB_PREPARED", "1") != "0"
    Lab("drover-vm").down()
    found = Lab("drover-vm", TOPOLOGY.read_text(encoding="utf-8"))
    with borrowed(found):
        assert found.up(prepared=prepared) is True
        yield found
    assert keeps() or traces("drover-vm") == []


def rtt(lab: Lab, node: str, address: str) -> float:
    """Milliseconds of the quickest of five pings."""
    text = lab.ssh(node, f"ping -c 5 -i 0.2 -W 2 {address}")
    return float(text.rsplit("=", 1)[1].split("/")[0])


def boot_id(lab: Lab, node: str) -> str:
    return lab.ssh(node, BOOT_ID, check=False).strip()


def reaches(lab: Lab, node: str, address: str) -> bool | str:
    """Whether a ping comes back, else what ping said."""
    text = lab.ssh(node, f"ping -c 1 -W 1 {address} || true")
    return " 0% packet loss" in text or text


def carriers(lab: Lab) -> list[str]:
    """Whether each end of the cable between the VMs sees the other."""
    return [lab.ssh(node, "cat /sys/class/net/fibre0/carrier").strip() for node in VMS]


def test_up_again_changes_nothing(lab: Lab) -> None:
    assert lab.up(prepared=lab.settings["prepared"]) is False
    assert [lab.status()["nodes"][name]["power"] for name in (*VMS, "box1")] == ["on"] * 3


def test_each_vm_is_itself_from_the_start(lab: Lab) -> None:
    script = f"hostname; cat /etc/machine-id; {BOOT_ID}; uname -r; date +%s; ls -d /sys/class/net/*"
    seen = {}
    for node in VMS:
        before = time.time()
        seen[node] = lab.ssh(node, script).split()
        assert before - 5 < int(seen[node][4]) < time.time() + 5
        assert seen[node][0] == node
        assert seen[node][3] != os.uname().release
        assert {Path(path).name for path in seen[node][5:]} >= {"mgmt0", "nic1", "nic2", "fibre0"}
    assert not {seen["vm1"][1], seen["vm1"][2]} & {seen["vm2"][1], seen["vm2"][2]}


def test_a_vm_has_what_the_topology_says(lab: Lab) -> None:
    assert lab.ssh("vm1", "cat /sys/class/net/nic1/mtu /sys/class/net/mgmt0/mtu").split() == ["9000", "1500"]
    assert lab.ssh("vm1", "lsblk -bdno SIZE /dev/disk/by-id/virtio-disk1").strip() == str(64 << 20)
    assert lab.ssh("vm1", "findmnt -no FSTYPE /var/lib/bounded").strip() == "tmpfs"
    assert "Filename" not in lab.ssh("vm1", "apt-get install -y --print-uris ethtool; ls /repo/Packages")


def test_modules_of_its_own_kernel_load(lab: Lab) -> None:
    lab.ssh("vm1", "modprobe -a openvswitch bonding 8021q sch_netem")
    loaded = lab.ssh("vm1", "cut -d' ' -f1 /proc/modules").split()
    assert set(loaded) >= {"openvswitch", "bonding", "8021q", "sch_netem"}


def test_a_pulled_cable_has_no_carrier_at_either_end(lab: Lab) -> None:
    for node in VMS:
        lab.ssh(node, "ip link set fibre0 up")
    assert lab.cut("vm1", "fibre0") is True
    assert lab.cut("vm1", "fibre0") is False
    wait_until(lambda: carriers(lab) == ["0", "0"], 5, "no carrier at either end")
    assert lab.cuts("vm1") == {"fibre0": "pulled"}
    assert lab.restore("vm1", "fibre0") is True
    wait_until(lambda: carriers(lab) == ["1", "1"], 5, "a carrier at both ends")


def test_a_silent_cut_keeps_the_carrier_and_drops_everything(lab: Lab) -> None:
    changes = lab.ssh("vm2", "cat /sys/class/net/mgmt0/carrier_changes")
    lab.cut("vm2", "mgmt0", silent=True)
    try:
        assert lab.cuts("vm2") == {"mgmt0": "silent"}
        assert reaches(lab, "box1", lab.topology.management(lab.topology.node("vm2"))) is not True
    finally:
        lab.restore("vm2")
    lab.wait_ssh("vm2")
    assert lab.ssh("vm2", "cat /sys/class/net/mgmt0/carrier_changes") == changes


def test_a_frozen_process_stops_and_goes_on(lab: Lab) -> None:
    pids = lab.freeze("vm1", "systemd-networkd")
    try:
        assert lab.ssh("vm1", f"cut -d' ' -f3 /proc/{pids[0]}/stat") == "T\n"
    finally:
        assert lab.thaw("vm1", "systemd-networkd") == pids
    with pytest.raises(LabError, match="no process 'nosuch' on vm1"):
        lab.freeze("vm1", "nosuch")


def test_a_filesystem_is_filled_and_emptied(lab: Lab) -> None:
    with pytest.raises(LabError, match="no filesystem of its own"):
        lab.fill("vm1", "/srv")
    assert lab.fill("vm1", "/var/lib/bounded") == 16 << 20
    assert lab.empty("vm1", "/var/lib/bounded") is True
    assert lab.empty("vm1", "/var/lib/bounded") is False


def test_a_kernel_bond_with_a_vlan_reaches_the_network_behind_the_switch(lab: Lab) -> None:
    lab.ssh("vm1", KERNEL_BOND)
    wait_until(lambda: reaches(lab, "vm1", SINK_STORAGE), 20, "the sink over bond0.5")
    assert "Number of ports: 2" in lab.ssh("vm1", "cat /proc/net/bonding/bond0")
    assert lab.network.appctl("lacp/show", "vm1-bond0").count("current attached") == 2
    lab.cut("vm1", "nic1", silent=True)
    try:
        bond = "cat /proc/net/bonding/bond0"
        wait_until(lambda: "Number of ports: 1" in lab.ssh("vm1", bond), 15, "LACP drops the dead cable")
        assert reaches(lab, "vm1", SINK_STORAGE) is True
    finally:
        lab.restore("vm1")


def test_a_bond_of_the_kernels_datapath_speaks_lacp_with_the_core(lab: Lab) -> None:
    lab.ssh("vm2", f"command -v ovs-vsctl || {INSTALL}", timeout=600)
    lab.ssh("vm2", OVS_BOND)
    wait_until(lambda: reaches(lab, "vm2", SINK_GUESTS), 20, "the sink on VLAN 100")
    assert "system@ovs-system" in lab.ssh("vm2", "ovs-dpctl show")
    assert lab.ssh("vm2", "ovs-appctl lacp/show bond0").count("current attached") == 2
    assert lab.network.appctl("lacp/show", "vm2-bond0").count("current attached") == 2


def test_the_guard_of_a_vms_port_works_in_the_kernels_datapath(lab: Lab) -> None:
    node = Cluster(lab)
    node.ssh("vm2", "cat >/root/port_guard.py", stdin=GUARD.read_text(encoding="utf-8"))
    node.ssh("vm2", GUEST)
    try:
        assert node.ssh("vm2", "python3 -", stdin=FRAMES).split() == ["bpdu", "foreign", "own"], "not exercised"
        assert "web1" in node.ssh("vm2", "python3 /root/port_guard.py once")
        assert node.ssh("vm2", "python3 -", stdin=FRAMES).split() == ["own"]
    finally:
        node.ssh("vm2", GUEST_GOES)
    assert "system@ovs-system" in node.ssh("vm2", "ovs-dpctl show")


def test_a_delay_is_felt(lab: Lab) -> None:
    box = lab.topology.management(lab.topology.node("box1"))
    before = rtt(lab, "vm1", box)
    lab.ssh("vm1", "tc qdisc add dev mgmt0 root netem delay 200ms")
    try:
        assert rtt(lab, "vm1", box) > max(200, before)
    finally:
        lab.ssh("vm1", "tc qdisc del dev mgmt0 root")


def test_a_reboot_and_a_power_cut(lab: Lab) -> None:
    machine, ids = lab.machine("vm2"), {node: boot_id(lab, node) for node in VMS}
    lab.ssh("vm2", "echo kept >/root/kept; sync")
    before = births(machine.pids())
    lab.ssh("vm1", "reboot", check=False)
    assert lab.power_off("vm2") is True
    assert not before & births([pid for pid, _birth in before])
    assert lab.status()["nodes"]["vm2"]["power"] == "off"
    assert lab.power_off("vm2") is False
    assert lab.power_on("vm2") is True
    assert lab.ssh("vm2", "cat /root/kept") == "kept\n"
    wait_until(lambda: boot_id(lab, "vm1") not in ("", ids["vm1"]), 120, "vm1 answers again")
    assert boot_id(lab, "vm2") != ids["vm2"]
    assert lab.ssh("vm1", "hostname; cat /sys/class/net/nic1/mtu").split() == ["vm1", "9000"]
