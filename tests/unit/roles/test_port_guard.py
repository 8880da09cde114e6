# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of VM ports against a real switch: raw frames go into a VM's port, and what comes out elsewhere is read."""

from __future__ import annotations

import io
import re
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from ansible_collections.drover.kvm.roles.open_vswitch.files import drover_port_guard as program
from ansible_collections.drover.kvm.tests.unit import frames, ovs_server
from ansible_collections.drover.kvm.tests.unit.frames import (
    IP4,
    IP6,
    IPV4,
    IPV6,
    LOCAL6,
    MAC,
    OTHER_IP4,
    OTHER_IP6,
    OTHER_MAC,
    RARP,
    TCP,
    UDP,
    arp,
    bpdu,
    discovery,
    ether,
    icmp6,
    ipv4,
    ipv6,
    lacp,
    tagged,
    udp,
)

pytestmark = pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}")
IPS = f"{IP4},{IP6}"
IDS = [f'external_ids:attached-mac="{MAC}"', "external_ids:vm-id=0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10"]


def add_vm(server, name="vnet0", *ids, vlan="tag=100"):
    """A VM's port as libvirt makes it."""
    port = ["--", "add-port", "br0", name, *([vlan] if vlan else [])]
    server.vsctl(*port, "--", "set", "interface", name, *IDS, *ids)


@pytest.fixture(scope="module")
def server():
    with ovs_server.private_switch() as running:
        yield running


def make_bridge(server, folder):
    """A bridge with a VM's port, a wire that carries VLAN 100, and one that carries all; both are recorded."""
    server.bare()
    words = ["add-br", "br0", "--", "set", "bridge", "br0", "other_config:forward-bpdu=true"]
    for name, vlan in (("wire", ["tag=100"]), ("all", [])):
        words += ["--", "add-port", "br0", name, *vlan]
        words += ["--", "set", "interface", name, f"options:tx_pcap={folder / name}"]
    server.vsctl(*words)
    add_vm(server)


@pytest.fixture
def switch(server, tmp_path):
    make_bridge(server, tmp_path)
    return server


@pytest.fixture
def guard(switch):
    return program.Guard(switch.folder)


def passes(server, folder, frame, port="vnet0"):
    """Send a frame from the VM's port; whether anything came out of a wire for it."""
    before = {name: len(frames.recorded(folder / name)) for name in ("wire", "all")}
    server.appctl("netdev-dummy/receive", port, frame.hex())
    marker = ether(0x88B5, time.monotonic_ns().to_bytes(8, "big"), "52:54:00:00:00:77")
    server.appctl("netdev-dummy/receive", "all", tagged(100, marker).hex())
    end = time.monotonic() + 5
    # What was sent after the frame is here, so the frame is here or was dropped.
    while marker[12:22] not in b"".join(frames.recorded(folder / "wire")):
        assert time.monotonic() < end, "the marker did not come"
        time.sleep(0.01)
    after = {name: frames.recorded(folder / name) for name in before}
    return any(marker[12:22] not in one for name in after for one in after[name][before[name] :])


@pytest.fixture
def comes_out(switch, tmp_path):
    """Whether a frame of the VM passes."""
    return partial(passes, switch, tmp_path)


SOLICIT, ADVERTISE, ADVERT, REDIRECT = 135, 136, 134, 137
NOBODY = "0.0.0." + "0"
DHCP_OFFER, DHCP_ASK = udp(67, 68), udp(68, 67)
# Frame, and whether it passes: without any guard, with the default guard, with declared addresses.
FRAMES = {
    "own IPv4": (ether(IPV4, ipv4(UDP, udp(1000, 2000))), True, True, True),
    "own TCP": (ether(IPV4, ipv4(TCP, bytes(20))), True, True, True),
    "own ARP": (arp(), True, True, True),
    "own ARP answer": (arp(operation=2), True, True, True),
    "ARP probe": (arp(address=NOBODY, target=IP4), True, True, True),
    "RARP after a migration": (arp(address=NOBODY, kind=RARP), True, True, True),
    "asks DHCP": (ether(IPV4, ipv4(UDP, DHCP_ASK, NOBODY, "255.255.255.255")), True, True, True),
    "own IPv6": (ether(IPV6, ipv6(UDP, udp(1000, 2000))), True, True, True),
    "own link-local IPv6": (ether(IPV6, ipv6(UDP, udp(546, 547), LOCAL6)), True, True, True),
    "neighbour solicitation": (ether(IPV6, discovery(SOLICIT, frames.PEER6, MAC)), True, True, True),
    "duplicate address detection": (ether(IPV6, discovery(SOLICIT, IP6, source="::")), True, True, True),
    "neighbour advertisement": (ether(IPV6, discovery(ADVERTISE, IP6, MAC)), True, True, True),
    "own link-local advertisement": (ether(IPV6, discovery(ADVERTISE, LOCAL6, MAC, LOCAL6)), True, True, True),
    "router solicitation": (ether(IPV6, icmp6(133, bytes(4), LOCAL6, "ff02::2")), True, True, True),
    "other protocol": (ether(0x88B6, b"hello"), True, True, False),
    "other MAC": (ether(IPV4, ipv4(UDP, udp(1000, 2000)), OTHER_MAC), True, False, False),
    "other MAC, other protocol": (ether(0x88B6, b"hello", OTHER_MAC), True, False, False),
    "other IPv4": (ether(IPV4, ipv4(UDP, udp(1000, 2000), OTHER_IP4)), True, True, False),
    "other IPv6": (ether(IPV6, ipv6(UDP, udp(1000, 2000), OTHER_IP6)), True, True, False),
    "ARP for another IPv4": (arp(address=OTHER_IP4, operation=2), True, True, False),
    "gratuitous ARP for another IPv4": (arp(address=OTHER_IP4, target=OTHER_IP4), True, True, False),
    "ARP with another MAC inside": (arp(sender=OTHER_MAC, operation=2), True, False, False),
    "RARP for another MAC": (arp(sender=OTHER_MAC, kind=RARP), True, False, False),
    "advertisement for another IPv6": (ether(IPV6, discovery(ADVERTISE, OTHER_IP6, MAC)), True, True, False),
    "advertisement with another MAC": (ether(IPV6, discovery(ADVERTISE, IP6, OTHER_MAC)), True, False, False),
    "solicitation with another MAC": (ether(IPV6, discovery(SOLICIT, IP6, OTHER_MAC)), True, False, False),
    "DHCP server": (ether(IPV4, ipv4(UDP, DHCP_OFFER)), True, False, False),
    "DHCPv6 server": (ether(IPV6, ipv6(UDP, udp(547, 546))), True, False, False),
    "router advertisement": (ether(IPV6, icmp6(ADVERT, bytes(12), LOCAL6, "ff02::1")), True, False, False),
    "redirect": (ether(IPV6, icmp6(REDIRECT, bytes(36), LOCAL6)), True, False, False),
    "tagged": (tagged(5, ether(IPV4, ipv4(UDP, udp(1, 2)))), False, False, False),
    "tagged with its own VLAN": (tagged(100, ether(IPV4, ipv4(UDP, udp(1, 2)))), False, False, False),
    "tagged with priority only": (tagged(0, ether(IPV4, ipv4(UDP, udp(1, 2)))), True, False, False),
    "tagged twice": (tagged(100, tagged(5, ether(IPV4, ipv4(UDP, udp(1, 2))))), False, False, False),
    "tagged twice, the first for priority": (
        tagged(0, tagged(5, ether(IPV4, ipv4(UDP, udp(1, 2))))),
        True,
        False,
        False,
    ),
    "LACP": (lacp(), True, False, False),
    "LACP with another MAC": (lacp(OTHER_MAC), True, False, False),
    "frame to a bridge": (ether(0x88CC, b"lldp", MAC, "01:80:c2:00:00:0e"), True, False, False),
}


@pytest.fixture(scope="module", params=["no guard", "default guard", "declared addresses"])
def state(request, server, tmp_path_factory):
    """A switch in one of the three states: which one, and the function that sends."""
    folder = tmp_path_factory.mktemp("pcap")
    make_bridge(server, folder)
    if request.param == "declared addresses":
        server.vsctl("set", "interface", "vnet0", f'external_ids:drover-port="{IPS}"')
    if request.param != "no guard":
        program.Guard(server.folder).ensure()
    return request.param_index, partial(passes, server, folder)


@pytest.mark.parametrize("name", FRAMES)
def test_what_a_vm_can_send(state, name):
    number, send = state
    frame, *expected = FRAMES[name]
    assert send(frame) is expected[number]


HONEST, LIE = ether(IPV4, ipv4(UDP, udp(1, 2))), ether(IPV4, ipv4(UDP, udp(1, 2)), OTHER_MAC)


def flows(switch, cookie="0/0", bridge="br0"):
    """The flows of a bridge."""
    management = f"unix:{switch.folder}/{bridge}.mgmt"
    return switch._call("ovs-ofctl", "-OOpenFlow14", "--names", "dump-flows", management, f"cookie={cookie}")


def count(switch, bridge="br0"):
    """How many of our flows the bridge has."""
    return flows(switch, f"{program.COOKIE}/-1", bridge).count("cookie=")


def test_a_guest_does_not_become_root_of_the_spanning_tree(switch, guard, comes_out):
    without = ["other_config:rstp-enable=false"]
    ports = [word for name in ("wire", "all") for word in ("--", "set", "port", name, *without)]
    switch.vsctl("set", "bridge", "br0", "rstp_enable=true", *ports)
    root = "rstp_status:rstp_root_id"

    def becomes_root():
        """Send its claim until the switch believes it, for a second at most."""
        end = time.monotonic() + 1
        while time.monotonic() < end and switch.get("bridge", "br0", root) == own:
            switch.appctl("netdev-dummy/receive", "vnet0", bpdu().hex())
            time.sleep(0.05)
        return switch.get("bridge", "br0", root) != own

    own = switch.get("bridge", "br0", root)
    guard.ensure()
    assert not becomes_root()
    assert comes_out(HONEST), "the port must forward without the spanning tree"
    switch.vsctl("clear", "port", "vnet0", "other_config")
    assert becomes_root(), "not exercised: an unguarded guest can't become root either"


def test_a_second_time_changes_nothing_and_deleted_flows_come_back(switch, guard):
    assert guard.ensure() == ["br0: vnet0"]
    assert guard.ensure() == []
    number = count(switch)
    assert number > 15
    switch._call("ovs-ofctl", "del-flows", f"unix:{switch.folder}/br0.mgmt", f"cookie={program.COOKIE}/-1")
    assert guard.ensure() == []
    assert guard.ensure(verify=True) == ["br0: vnet0"]
    assert count(switch) == number


def test_flows_of_others_stay(switch, guard):
    switch._call(
        "ovs-ofctl", "add-flow", f"unix:{switch.folder}/br0.mgmt", "cookie=7,priority=5,in_port=9,actions=drop"
    )
    guard.ensure()
    switch.vsctl("del-port", "vnet0")
    assert guard.ensure() == ["br0: no VM"]
    assert count(switch) == 0
    assert "cookie=0x7" in flows(switch)


@pytest.mark.parametrize(
    "words",
    [["set-controller", "br0", "tcp:192.0.2.1:6653"], ["set", "bridge", "br0", "fail_mode=secure"]],
    ids=["controller", "secure"],
)
def test_a_bridge_whose_flows_are_somebody_elses_is_left_alone(switch, guard, words):
    switch.vsctl(*words)
    guard.ensure()
    assert count(switch) == 0
    assert guard.bridges()[0].foreign


@pytest.mark.parametrize(
    "vlan, ids", [("tag=100", ["external_ids:drover-port=open"]), ("trunks=100,200", []), ("", [])]
)
def test_a_vm_that_may_lie_still_sends_no_bpdu(switch, guard, comes_out, vlan, ids):
    switch.vsctl("del-port", "vnet0")
    add_vm(switch, "vnet0", *ids, vlan=vlan)
    guard.ensure()
    frame = LIE if vlan == "tag=100" else tagged(100, LIE)
    assert comes_out(frame)
    assert not comes_out(bpdu()) and not comes_out(lacp())


def test_ports_of_the_host_are_not_touched(switch, guard):
    guard.ensure()
    assert set(re.findall(r"in_port=\"?(\w+)", flows(switch))) == {"vnet0"}
    assert switch.get("port", "wire", "other_config") == "{}"


def test_what_a_vm_sends_is_metered_where_the_datapath_does_not_police(switch, guard):
    limit = ["ingress_policing_rate=10000", "ingress_policing_burst=800"]
    switch.vsctl("set", "bridge", "br0", "datapath_type=netdev", "--", "set", "interface", "vnet0", *limit)
    guard.ensure()
    [port] = guard.bridges()[0].ports
    meters = guard.ofctl("dump-meters", "br0")
    assert f"meter={program.METERS + port.number} kbps burst" in meters and "rate=10000 burst_size=800" in meters
    assert f"meter:{program.METERS + port.number},NORMAL" in flows(switch)
    switch.vsctl("set", "interface", "vnet0", "ingress_policing_rate=20000")
    guard.ensure()
    assert "rate=20000" in guard.ofctl("dump-meters", "br0")
    switch.vsctl("set", "interface", "vnet0", "ingress_policing_rate=0")
    guard.ensure()
    assert "rate=" not in guard.ofctl("dump-meters", "br0")
    assert "meter:" not in flows(switch)


class Enough(Exception):
    """The test is over."""


@pytest.fixture
def service(guard):
    """The guard as a service, until the test is over; `looks` are the times at which it read the database."""
    end = threading.Event()
    guard.looks = []

    class Watched(program.Guard):
        def bridges(self):
            guard.looks.append(time.monotonic())
            return super().bridges()

        def process(self):
            if end.is_set():
                raise Enough
            return super().process()

    def watch():
        with suppress(Enough):
            Watched(guard.folder).watch()

    watching = threading.Thread(target=watch)
    watching.start()
    yield guard
    end.set()
    watching.join(10)
    assert not watching.is_alive()


def until(condition, what):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def answers(switch):
    """Whether the switch takes connections again."""
    with suppress(RuntimeError):
        return bool(flows(switch))
    return False


def test_the_service_guards_what_is_plugged_and_all_after_a_crash_of_the_switch(switch, service, comes_out):
    until(lambda: count(switch) > 15, "the first port")
    assert not comes_out(LIE)
    looks = len(service.looks)
    time.sleep(1.5)
    assert len(service.looks) == looks, "it asks although nothing changed"
    switch.vsctl("--", "--if-exists", "del-port", "vnet0")
    until(lambda: count(switch) == 0, "the flows of a port that is gone")
    add_vm(switch)
    until(lambda: count(switch) > 15, "the port that was plugged again")
    assert not comes_out(LIE) and comes_out(HONEST)
    switch.restart_switch()
    begin = time.monotonic()
    until(lambda: answers(switch) and count(switch) > 15, "the flows after the crash")
    assert time.monotonic() - begin < 5
    assert not comes_out(LIE) and comes_out(HONEST)
    switch.vsctl("set", "interface", "vnet0", "external_ids:drover-port=open")
    until(lambda: count(switch) == 1, "a changed policy")
    assert comes_out(LIE)


def nic(mac, tap, inside="<virtualport type='openvswitch'/>"):
    """A NIC as the XML of a VM has it that starts."""
    return f"<interface><mac address='{mac}'/><source bridge='br0'/>{inside}<target dev='{tap}'/></interface>"


SAID = f'<drover:nic mac="{MAC}" ips="{IPS}"/><drover:nic mac="52:54:00:00:00:02" anti_spoof="no"/>'
NIC_LIST = [nic(MAC.upper(), "vnet0"), *(nic(f"52:54:00:00:00:0{n + 1}", f"vnet{n}") for n in (1, 2))]
DOMAIN = f"""<domain type='kvm' id='1'><name>web1</name><metadata>
<drover:vm xmlns:drover="urn:drover:kvm:1" version="1"><drover:nics>{SAID}</drover:nics></drover:vm></metadata>
<devices>{"".join(NIC_LIST)}{nic("52:54:00:00:00:04", "vnet3", "")}</devices></domain>"""


def test_what_a_definition_declares():
    assert program.policies(DOMAIN) == {"vnet0": IPS, "vnet1": "open", "vnet2": ""}
    assert program.policies(re.sub("drover:(nic|vm)", r"\1", DOMAIN).replace("xmlns:drover", "xmlns")) == {
        "vnet0": IPS,
        "vnet1": "open",
        "vnet2": "",
    }


def test_the_hook_guards_before_the_guest_runs(switch, guard, monkeypatch, capsys):
    for name in ("vnet1", "vnet2"):
        add_vm(switch, name)
    for operation in ("prepare", "started", "stopped", "release", "migrate", "reconnect"):
        assert program.hook(guard, "web1", operation) == 0
    assert count(switch) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(DOMAIN))
    assert program.hook(guard, "web1", "start") == 0
    assert switch.get("interface", "vnet0", "external_ids:drover-port") == f'"{IPS}"'
    assert switch.get("interface", "vnet1", "external_ids:drover-port") == "open"
    assert "drover-port" not in switch.get("interface", "vnet2", "external_ids")
    assert count(switch) > 30
    assert capsys.readouterr().err == ""


def test_the_hook_keeps_a_vm_from_starting_that_can_not_be_guarded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(DOMAIN))
    assert program.hook(program.Guard(tmp_path), "web1", "start") == 1
    words = capsys.readouterr().err
    assert "web1 refused: its ports can't be guarded" in words and "open_vswitch_port_guard: false" in words
    monkeypatch.setattr("sys.stdin", io.StringIO(DOMAIN.replace("openvswitch", "802.1Qbg")))
    assert program.hook(program.Guard(tmp_path), "web1", "start") == 0, "it has no port on Open vSwitch"
