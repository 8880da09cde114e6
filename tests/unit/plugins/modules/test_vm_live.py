# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module vm changes in a VM that runs, what waits for its restart and why, and the restart itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import SubElement

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _node
from ansible_collections.drover.kvm.plugins.module_utils._domain import changing, draft, scaling
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import HARDWARE
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.plugins.module_utils._xml import devices, parse, text_of
from ansible_collections.drover.kvm.tests.unit import rpc
from ansible_collections.drover.kvm.tests.unit.hotplug import CpuLimits, Hotplug, bus_of, free_ports, inner, key_of
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import SAN, WEB, elsewhere, lab

pytest.importorskip("libvirt")
__all__ = ["lab"]

MACS = [vm_mac("web1", number) for number in range(3)]
NICS = WEB["nics"]
MORE = [*WEB["disks"], {**SAN, "iqn": SAN["iqn"][:-1] + "1"}]
DRIVE = {"type": "file", "device": "cdrom"}


@pytest.fixture
def plug(lab, monkeypatch):
    monkeypatch.setattr(changing, "DETACH_SECONDS", 0.3)
    found = Hotplug(lab.node, monkeypatch)
    lab.run(**WEB, machine="q35", state="running")
    return found


def buses(text: str | None) -> dict[str, int | None]:
    """The PCI bus of each disk and NIC."""
    root = parse(str(text))
    return {key_of(device): bus_of(device) for kind in ("disk", "interface") for device in devices(root, kind)}


def test_disks_and_nics_come_and_go_at_once_and_the_others_keep_their_places(lab, plug):
    before = buses(lab.node.domain("web1").live_xml)
    result = lab.both(name="web1", disks=MORE, nics=[*NICS, {"bridge": "br0"}])
    assert result["actions"] == [
        f"change web1: disk vdb added, nic {MACS[1]} added", "attach disk vdb at once", f"attach nic {MACS[1]} at once",
    ]  # fmt: skip
    assert result["pending_restart"] == []
    domain = lab.node.domain("web1")
    now = buses(domain.live_xml)
    assert now == buses(domain.xml) and {**now, **before} == now and set(now) - set(before) == {"vdb", MACS[1]}
    result = lab.both(name="web1", disks=MORE[:1], nics=NICS)
    assert result["actions"][1:] == ["detach disk vdb at once", f"detach nic {MACS[1]} at once"]
    domain = lab.node.domain("web1")
    assert result["pending_restart"] == [] and buses(domain.live_xml) == buses(domain.xml) == before


def test_only_what_is_declared_is_changed(lab, plug):
    root = plug.live("web1")
    next(one for one in root if one.tag == "devices").remove(devices(root, "interface")[0])
    result = lab.both(name="web1", disks=WEB["disks"])
    assert result["actions"] == [] and result["pending_restart"] == [f"nic {MACS[0]} added"]
    assert lab.both(name="web1", nics=NICS)["actions"] == [f"attach nic {MACS[0]} at once"]


def fill(plug: Hotplug) -> int:
    """Plug something into all ports but one."""
    root = plug.live("web1")
    free = free_ports(root)
    for bus in free[1:]:
        device = parse(f"<rng model='virtio'><address type='pci' bus='{bus:#04x}' slot='0x00'/></rng>")
        next(one for one in root if one.tag == "devices").append(device)
    return free[0]


def test_without_a_free_port_it_waits_and_says_so_on_every_run(lab, plug):
    free = fill(plug)
    both = [*NICS, {"bridge": "br0"}]
    result = lab.both(name="web1", disks=MORE, nics=both)
    words = f"nic {MACS[1]} added"
    assert result["actions"] == [
        f"change web1: disk vdb added, {words} (from its next start: no PCI port is free)", "attach disk vdb at once",
    ]  # fmt: skip
    assert result["pending_restart"] == [f"{words}: no PCI port is free"]
    assert buses(lab.node.domain("web1").live_xml)["vdb"] == free
    assert lab.run(name="web1")["pending_restart"] == [f"{words}: no PCI port is free"]
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", state="running")["pending_restart"] == []


def test_the_place_of_one_that_goes_is_free_for_one_that_comes(lab, plug):
    fill(plug)
    lab.both(name="web1", disks=MORE)
    result = lab.both(name="web1", disks=MORE[:1], nics=[*NICS, {"bridge": "br0"}])
    assert result["actions"][1:] == ["detach disk vdb at once", f"attach nic {MACS[1]} at once"]


def test_a_place_that_is_taken_as_it_runs_is_left_to_libvirt(lab, plug):
    """A device that somebody plugged in by hand sits where the definition wants another."""
    root = plug.live("web1")
    first, second = free_ports(root)[:2]
    taken = parse(f"<rng model='virtio'><address type='pci' bus='{first:#04x}' slot='0x00'/></rng>")
    next(one for one in root if one.tag == "devices").append(taken)
    lab.both(name="web1", disks=MORE)
    domain = lab.node.domain("web1")
    assert buses(domain.xml)["vdb"] == first and buses(domain.live_xml)["vdb"] == second


SLOW: list[tuple[dict[str, Any], str]] = [
    ({**SAN, "bus": "sata"}, "disk sda added: a disk on the bus sata can't be changed while it runs"),
    ({**SAN, "bus": "scsi"}, "disk sda added: it has no SCSI controller for it yet"),
    (DRIVE, "disk sda added: a drive on the bus sata can't be changed while it runs"),
]


@pytest.mark.parametrize("disk, words", SLOW)
def test_what_no_guest_can_get_while_it_runs(lab, plug, disk, words):
    if "iqn" in disk:
        disk = {**disk, "iqn": MORE[1]["iqn"]}
    assert lab.both(name="web1", disks=[*WEB["disks"], disk])["pending_restart"] == [words]
    lab.run(name="web1", state="stopped", force=True)
    lab.run(name="web1", state="running")
    gone = lab.both(name="web1", disks=WEB["disks"])
    if disk.get("bus") == "scsi":
        assert gone["actions"][1:] == ["detach disk sda at once"]
    else:
        assert gone["pending_restart"] == [words.replace("added", "removed")]


def test_a_running_guest_is_told_another_rate_at_its_next_start(lab, plug):
    disk = {**SAN, "iqn": MORE[1]["iqn"], "bus": "scsi", "rotation_rate": 1}
    lab.run(name="web1", disks=[*WEB["disks"], disk], state="restarted")
    for rate, words in ((7200, "1 -> 7200"), (0, "1 -> none")):
        result = lab.both(name="web1", disks=[*WEB["disks"], {**disk, "rotation_rate": rate}])
        assert result["pending_restart"] == [f"disk sda rotation_rate {words}"]
    restarted = lab.run(name="web1", state="restarted")
    assert restarted["pending_restart"] == [] and "rotation_rate" not in lab.node.domain("web1").live_xml


def test_a_running_guest_is_told_another_block_at_its_next_start(lab, plug):
    for size, words in (("4KiB", "none -> 4KiB"), (0, None)):
        result = lab.both(name="web1", disks=[{**WEB["disks"][0], "physical_block_size": size}])
        assert result["pending_restart"] == ([f"disk vda physical_block_size {words}"] if words else [])


def test_an_old_nic_needs_an_old_bus(lab, plug):
    result = lab.both(name="web1", nics=[*NICS, {"bridge": "br0", "model": "e1000"}])
    assert result["pending_restart"] == [f"nic {MACS[1]} added: no PCI port is free"]


def test_a_guest_that_does_not_let_go_is_an_error_and_the_next_run_tries_again(lab, plug):
    lab.run(name="web1", disks=MORE)
    plug.deaf = True
    result = lab.run(name="web1", disks=MORE[:1], tags=["small"])
    assert result["error"] == "TimedOut" and "detach disk vdb at once" in result["msg"], result
    assert "has not let go of it" in result["msg"] and "state=restarted" in result["msg"]
    assert result["pending_restart"] == ["disk vdb removed"] and [d["target"] for d in result["vm"]["disks"]] == ["vda"]
    claims = domain_facts(lab.node.domain("web1"))["disks"]
    assert [disk["target"] for disk in claims] == ["vda", "vdb"], "no other VM may have it yet"
    plug.deaf = False
    result = lab.both(name="web1", disks=MORE[:1])
    assert result["actions"] == ["detach disk vdb at once"] and result["pending_restart"] == []


def test_a_disk_that_lies_elsewhere_than_defined_is_never_swapped_in_a_running_guest(lab, plug):
    """Between the end of a copy to another storage and the definition of that, say."""
    disk = devices(plug.live("web1"), "disk")[0]
    inner(disk, "source").set("name", f"{SAN['iqn']}/9")
    for options in ({"disks": WEB["disks"]}, {"disks": MORE}):
        result = lab.both(name="web1", **options)
        assert not [words for words in result["actions"] if "vda" in words], result["actions"]
        assert result["pending_restart"] == ["disk vda lun 9 -> 1"]
    assert plug.calls == [("attach", "vdb")]
    for state in ("running", "restarted"):
        result = lab.run(name="web1", state=state, restart="allowed")
        assert result["error"] == "Refused" and "vda runs on iscsi:" in result["msg"], result
    assert lab.node.domain("web1").state == "running"


def test_a_guest_that_was_asked_a_moment_ago_is_waited_for(lab, plug, monkeypatch):
    lab.run(name="web1", disks=MORE)
    detach, asked = Node.detach_device, []

    def busy(node, name, xml, live, config):
        if asked:
            detach(node, name, xml, live=live, config=config)
        asked.append(xml)
        raise changing.Failed("Device virtio-disk1 is already in the process of unplug")

    monkeypatch.setattr(Node, "detach_device", busy)
    assert lab.run(name="web1", disks=MORE[:1])["error"] == "TimedOut"
    assert lab.run(name="web1", disks=MORE[:1])["actions"] == ["detach disk vdb at once"]


def test_a_guest_that_stands_still_is_not_asked_to_let_go(lab, plug):
    lab.run(name="web1", disks=MORE)
    lab.node.suspend("web1")
    result = lab.both(name="web1", disks=MORE[:1])
    assert result["pending_restart"] == ["disk vdb removed: a guest that stands still can't let go of it"]
    result = lab.both(name="web1", disks=MORE[:1], state="running")
    assert result["actions"] == ["resume web1", "detach disk vdb at once"] and result["pending_restart"] == []


@pytest.mark.parametrize(
    "peer, words",
    [
        (elsewhere("other", disk=f"iscsi:{MORE[1]['iqn']}/1@{SAN['portal']}"), "belongs to other on hv2"),
        (Unreachable("silent"), "web1 is not given its disks: hv2 gave no answer"),
        (elsewhere(), "web1 runs on hv2"),
    ],
)
def test_the_peers_are_asked_before_a_disk_is_attached(lab, plug, peer, words):
    lab.peers = {"hv2": peer}
    before = lab.node.domain("web1").xml
    result = lab.run(name="web1", disks=MORE)
    assert result["error"] == "Refused" and words in result["msg"] and plug.calls == []
    assert lab.node.domain("web1").xml == before
    if isinstance(peer, Unreachable):
        assert lab.both(name="web1", disks=MORE, fenced=["hv2"])["pending_restart"] == []


def test_the_peers_are_asked_again_when_its_turn_comes_late(lab, plug, monkeypatch):
    monkeypatch.setattr(changing.Admission.start, "__defaults__", (0.0,))
    lab.peers = {"hv2": []}
    define = lab.node.define

    def slow(xml):
        define(xml)
        lab.peers["hv2"] = elsewhere("other", disk=f"iscsi:{MORE[1]['iqn']}/1@{SAN['portal']}")

    monkeypatch.setattr(lab.node, "define", slow)
    assert "belongs to other" in lab.run(name="web1", disks=MORE)["msg"] and plug.calls == []


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_file_is_made_before_it_is_attached_and_never_another_vms(lab, plug, tmp_path, monkeypatch):
    disks = [*WEB["disks"], {"type": "file", "format": "qcow2", "size": "2MiB"}]
    attach, there = Node.attach_device, []

    def look(*args, **named):
        there.append((tmp_path / "drover-web1-1.qcow2").exists())
        attach(*args, **named)

    monkeypatch.setattr(Node, "attach_device", look)
    monkeypatch.setattr(Node, "block_sizes", lambda node, name, target: {"capacity": 2 << 20})
    result = lab.both(name="web1", disks=disks)
    assert [words.split()[0] for words in result["actions"]] == ["create", "change", "attach"] and there == [True]
    other = {"name": "other", "memory": "64MiB", "vcpus": 1, "machine": "q35"}
    lab.run(**other, state="running")
    result = lab.run(name="other", disks=[{**disks[1], "path": str(tmp_path / "drover-web1-1.qcow2")}])
    assert "was made for another VM" in result["msg"] and len(there) == 1


def media(*names: str, tmp: Any) -> Iterator[str]:
    for name in names:
        (tmp / name).write_bytes(b"0" * 2048)
        yield str(tmp / name)


def test_media_change_at_once(lab, plug, tmp_path):
    one, two = media("one.iso", "two.iso", tmp=tmp_path)
    lab.run(name="web1", disks=[*WEB["disks"], DRIVE])
    lab.run(name="web1", state="restarted", force=True)

    def put(path):
        result = lab.both(name="web1", disks=[*WEB["disks"], {**DRIVE, "path": path}])
        assert result["pending_restart"] == []
        return result["actions"]

    assert put(one) == [f"change web1: disk sda path none -> {one}", "change the medium of disk sda at once"]
    assert put(two) == [f"change web1: disk sda path {one} -> {two}", "change the medium of disk sda at once"]
    assert f"file='{two}'" in lab.node.domain("web1").live_xml and one not in lab.node.domain("web1").live_xml
    assert put("") == [f"change web1: disk sda path {two} -> none", "change the medium of disk sda at once"]
    assert "<source file" not in lab.node.domain("web1").live_xml
    missing = lab.run(name="web1", disks=[*WEB["disks"], {**DRIVE, "path": str(tmp_path / "none.iso")}])
    assert "none.iso" in missing["msg"] and missing["error"] in ("Refused", "Invalid")


def test_a_locked_tray_is_named_and_the_next_run_goes_on(lab, plug, tmp_path):
    (one,) = media("one.iso", tmp=tmp_path)
    lab.run(name="web1", disks=[*WEB["disks"], DRIVE])
    lab.run(name="web1", state="restarted", force=True)
    plug.locked = {"sda"}
    disks = [*WEB["disks"], {**DRIVE, "path": one}]
    result = lab.run(name="web1", disks=disks)
    assert result["error"] == "Failed" and "the guest of web1 has locked the tray of sda" in result["msg"]
    assert result["pending_restart"] == [f"disk sda path none -> {one}"]
    plug.locked = set()
    assert lab.both(name="web1", disks=disks)["actions"] == ["change the medium of disk sda at once"]


def test_only_a_drive_can_be_empty(lab):
    result = lab.run(**{**WEB, "disks": [{"type": "file", "format": "raw", "path": "", "size": "1MiB"}]})
    assert result["error"] == "Invalid" and "path" in result["msg"] and lab.node.domains() == {}


BRIDGES = {"br-int": "ovs", "br-ext": "ovs", "br0": "linux", "br1": "linux"}
MOVES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({"bridge": "br0"}, {"bridge": "br1"}, None),
    ({"bridge": "br-int", "vlan": 100}, {"bridge": "br-ext"}, "libvirt can't move it between bridges of Open vSwitch"),
    ({"bridge": "br0"}, {"bridge": "br-int", "vlan": 100}, "the bridges are of different kinds"),
]


@pytest.mark.parametrize("move", MOVES)
def test_a_nic_changes_its_bridge_at_once_where_libvirt_can(lab, plug, monkeypatch, move):
    old, new, reason = move
    monkeypatch.setattr(draft.Site, "bridges", BRIDGES)
    lab.run(name="web1", nics=[old], state="restarted", force=True)
    lab.run(name="web1", nics=[{**old, "mac": MACS[1]}])
    lab.run(name="web1", state="restarted", force=True)
    place = buses(lab.node.domain("web1").live_xml)
    result = lab.both(name="web1", nics=[{**new, "mac": MACS[1]}])
    words = f"nic {MACS[1]} bridge {old['bridge']} -> {new['bridge']}"
    if reason:
        assert [words for words in result["pending_restart"] if reason in words], result["pending_restart"]
        return
    assert result["pending_restart"] == [] and words in result["actions"][0]
    assert result["actions"][1:] == [f"move nic {MACS[1]} at once from bridge {old['bridge']} to {new['bridge']}"]
    assert buses(lab.node.domain("web1").live_xml) == place


def test_what_waits_is_brought_about_by_a_restart_where_that_is_allowed(lab, plug):
    change = {"name": "web1", "memory": "128MiB", "disks": MORE}
    result = lab.both(**change, state="running", restart="allowed")
    assert result["actions"] == [
        "change web1: memory 64MiB -> 128MiB, disk vdb added",
        "shut web1 down, as this waits for a restart: memory 64MiB -> 128MiB",
        "start web1",
    ]
    assert result["pending_restart"] == [] and "131072" in lab.node.domain("web1").live_xml and plug.calls == []


def test_nothing_is_restarted_for_what_changes_at_once_or_where_nobody_asked(lab, plug):
    assert "shut" not in str(lab.both(name="web1", disks=MORE, state="running", restart="allowed")["actions"])
    waits = ["memory 64MiB -> 128MiB"]
    for options in ({"state": "running"}, {"restart": "allowed"}, {"state": "running", "restart": "never"}):
        result = lab.both(name="web1", memory="128MiB", **options)
        assert result["pending_restart"] == waits and result["vm"]["state"] == "running", options
    lab.node.suspend("web1")
    lab.run(name="web1", state="running", restart="allowed")
    assert lab.run(name="web1")["pending_restart"] == waits, "it was paused, and is only resumed"
    assert lab.both(name="web1", state="running", restart="allowed")["pending_restart"] == []


@pytest.mark.parametrize("peer, words", [(Unreachable("silent"), "hv2 gave no answer"), (elsewhere(), "runs on hv2")])
def test_a_restart_that_could_not_end_in_a_start_is_not_begun(lab, plug, peer, words):
    lab.peers = {"hv2": peer}
    before = lab.node.domain("web1").xml
    for options in ({"memory": "128MiB", "state": "running", "restart": "allowed"}, {"state": "restarted"}):
        result = lab.run(name="web1", **options)
        assert result["error"] == "Refused" and words in result["msg"]
        domain = lab.node.domain("web1")
        assert domain.state == "running" and domain.xml == before


def test_on_a_cordoned_node_nothing_is_restarted(lab, plug, monkeypatch, tmp_path):
    monkeypatch.setattr(_node, "FACT", tmp_path / "drover.fact")
    fact = '{"cordon": {"since": "now", "by": "ann", "reason": "RAM"}}'
    (tmp_path / "drover.fact").write_text(fact, encoding="utf-8")
    result = lab.run(name="web1", state="restarted")
    assert result["error"] == "Refused" and "cordoned since now by ann (RAM)" in result["msg"]
    assert lab.node.domain("web1").state == "running"
    result = lab.run(name="web1", memory="128MiB", state="running", restart="allowed")
    assert "cordoned" in result["msg"] and lab.run(name="web1")["pending_restart"] == []


def test_the_peers_are_asked_once_more_before_the_guest_goes_down(lab, plug, monkeypatch):
    monkeypatch.setattr(changing.Admission.start, "__defaults__", (0.0,))
    lab.peers = {"hv2": []}
    define = lab.node.define
    monkeypatch.setattr(lab.node, "define", lambda xml: (define(xml), lab.peers.update({"hv2": elsewhere()})))
    result = lab.run(name="web1", memory="128MiB", state="running", restart="allowed")
    assert "runs on hv2" in result["msg"] and lab.node.domain("web1").state == "running"
    assert result["pending_restart"] == ["memory 64MiB -> 128MiB"]


def test_a_guest_that_does_not_shut_down_goes_on(lab, plug, monkeypatch):
    monkeypatch.setattr(lab.node, "shutdown", lambda name, mode=None: None)
    options = {"memory": "128MiB", "restart": "allowed", "shutdown_timeout": 1}
    result = lab.run(name="web1", state="running", **options)
    assert result["error"] == "TimedOut" and result["pending_restart"] == ["memory 64MiB -> 128MiB"]
    assert lab.node.domain("web1").state == "running"


def test_restarted_is_an_act(lab, plug):
    for _time in range(2):
        before = lab.node.domain("web1").id
        result = lab.run(name="web1", state="restarted")
        assert result["actions"] == ["shut web1 down", "start web1"] and result["vm"]["state"] == "running"
        assert lab.node.domain("web1").id != before
    check = lab.run(name="web1", state="restarted", _ansible_check_mode=True)
    assert check["actions"] == ["shut web1 down", "start web1"] and check["vm"]["state"] == "running"
    assert lab.run(name="web1", state="restarted", force=True)["actions"] == ["cut the power of web1", "start web1"]
    lab.run(name="web1", state="stopped")
    assert lab.run(name="web1", state="restarted")["actions"] == ["start web1"]
    lab.node.suspend("web1")
    assert "force=true" in lab.run(name="web1", state="restarted")["msg"]
    assert lab.run(name="web1", state="restarted", force=True)["vm"]["state"] == "running"


def test_a_restart_brings_about_what_waits(lab, plug):
    lab.run(name="web1", memory="128MiB")
    assert lab.run(name="web1", state="restarted", vcpus=4)["pending_restart"] == []
    assert "131072" in lab.node.domain("web1").live_xml


def test_paused_from_each_state_and_back(lab, plug):
    assert lab.both(name="web1", state="paused")["actions"] == ["pause web1"]
    assert lab.both(name="web1", state="running")["actions"] == ["resume web1"]
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", state="paused")["actions"] == ["start web1 and pause it"]
    assert lab.node.domain("web1").state == "paused"
    assert lab.both(name="new", memory="64MiB", vcpus=1, state="paused")["vm"]["state"] == "paused"


@pytest.mark.parametrize("reason", ["I/O error", "migrating", "watchdog", "crashed", "post-copy failed", "unknown"])
def test_a_vm_that_something_else_paused_is_not_taken_for_paused(lab, plug, monkeypatch, reason):
    lab.node.suspend("web1")
    domains = lab.node.domains()
    stuck = {"web1": replace(domains["web1"], reason=reason)}
    monkeypatch.setattr(lab.node, "domains", lambda: stuck)
    result = lab.run(name="web1", state="paused")
    assert result["error"] == "Refused" and reason in result["msg"], result
    if reason != "I/O error":
        result = lab.run(name="web1", state="running")
        assert result["error"] == "Refused" and re.search("resumed blindly|paused by a migration", result["msg"])
    assert lab.node.domain("web1").state == "paused"


def test_one_that_is_paused_is_not_resumed_beside_its_double(lab, plug):
    lab.run(name="web1", state="paused")
    lab.peers = {"hv2": elsewhere()}
    assert lab.run(name="web1", state="running")["error"] == "Refused"
    assert lab.node.domain("web1").state == "paused"


def test_a_run_without_a_change_asks_libvirt_no_more_than_a_list_does(lab, plug, monkeypatch):
    """Five lists, two definitions and the job of the VM; nothing for each disk or NIC."""
    lab.run(name="web1", disks=MORE)
    asked = []
    for name in ("_do", "domain", "host", "block_sizes"):
        call = getattr(Node, name)
        monkeypatch.setattr(Node, name, lambda *args, _call=call, _name=name: (asked.append(_name), _call(*args))[1])
    assert lab.run(name="web1", disks=MORE, nics=[{"vlan": 100}], state="running")["actions"] == []
    assert asked == []
    assert lab.run(name="web1", disks=MORE[:1], nics=[{"vlan": 100}])["actions"][1:] == ["detach disk vdb at once"]
    # Whether the guest let go of it, and the proof at the end.
    assert asked.count("domain") == 2, asked


def test_fifty_vms_that_are_as_declared_cost_five_lists_and_one_xml_each(lab, monkeypatch):
    sheets = [{**WEB, "name": f"vm{n}", "disks": [{**SAN, "lun": n + 1}], "nics": []} for n in range(50)]
    assert len(lab.run(vms=sheets)["results"]) == 50
    calls = rpc.counted(monkeypatch)
    assert lab.run(vms=sheets)["changed"] is False
    lists = {"virConnectGetAllDomainStats": 1, "virConnectListAllDomains": 4}
    assert calls == {**lists, "virDomainGetXMLDesc": 50}


def test_memory_and_vcpus_within_the_most_change_at_once(lab, plug):
    lab.run(name="web1", max_memory="256MiB", max_vcpus=4, state="restarted")
    done = lab.both(name="web1", memory="128MiB", vcpus=3)
    assert done["actions"] == [
        "set the memory at once to 128MiB",
        "change web1: memory 64MiB -> 128MiB, vcpus 2 -> 3",
        "set the vCPUs at once from 2 to 3",
    ]
    assert done["pending_restart"] == []
    live = lab.node.domain("web1").live_xml
    assert "<currentMemory unit='KiB'>131072<" in live and "current='3'" in live
    done = lab.both(name="web1", memory="512MiB")
    assert "memory 128MiB -> 512MiB (from its next start)" in done["actions"][0] and len(done["actions"]) == 1
    assert done["pending_restart"] == ["memory 256MiB -> 512MiB"]


def test_a_maximum_that_was_given_stays_when_it_was_reached(lab, plug):
    lab.run(name="web1", max_memory="256MiB", max_vcpus=4, state="restarted")
    reached = lab.both(name="web1", memory="256MiB", vcpus=4)
    assert reached["pending_restart"] == [] and (reached["vm"]["max_memory"], reached["vm"]["max_vcpus"]) == (2**28, 4)
    assert lab.both(name="web1", max_memory="256MiB", max_vcpus=4)["actions"] == []
    less = lab.both(name="web1", memory="128MiB")
    assert less["actions"][0] == "set the memory at once to 128MiB" and less["pending_restart"] == []
    assert (less["vm"]["max_memory"], less["vm"]["max_vcpus"]) == (2**28, 4)
    lab.run(name="web1", state="stopped", force=True)
    fewer = lab.both(name="web1", memory="64MiB", vcpus=1)["vm"]
    assert (fewer["max_memory"], fewer["max_vcpus"]) == (2**28, 4)
    assert "max_memory" not in lab.node.domain("web1").xml
    # One that was never given, or is less than what it shall have now, follows.
    more = lab.both(name="web1", memory="512MiB", vcpus=8)["vm"]
    assert (more["max_memory"], more["max_vcpus"]) == (None, None)
    lab.both(name="web1", memory="64MiB", vcpus=2)
    assert "<memory unit='KiB'>65536<" in lab.node.domain("web1").xml
    one = lab.both(name="web1", max_memory="64MiB", max_vcpus=2)["vm"]
    assert (one["max_memory"], one["max_vcpus"]) == (2**26, 2)


def test_vcpus_that_a_guest_keeps_are_named(lab, plug, monkeypatch):
    lab.run(name="web1", max_vcpus=4, state="restarted")

    def kept(*_args, **_named):
        raise changing.Failed("operation failed: vcpu unplug request timed out")

    monkeypatch.setattr(Node, "set_vcpus", kept)
    assert "the guest keeps them" in lab.run(name="web1", vcpus=4)["msg"]


def test_the_link_of_a_nic_changes_at_once(lab, plug):
    result = lab.both(name="web1", nics=[{"link": "down"}])
    assert result["actions"][1:] == [f"set the link of nic {MACS[0]} at once from up to down"]
    assert result["pending_restart"] == [] and "<link state='down'/>" in lab.node.domain("web1").live_xml
    result = lab.both(name="web1", nics=[{"link": "up", "vlan": 200}])
    assert result["actions"][1:] == [
        f"move nic {MACS[0]} at once from VLAN 100 to 200", f"set the link of nic {MACS[0]} at once from down to up",
    ]  # fmt: skip
    assert "<link state='down'/>" not in lab.node.domain("web1").live_xml


def test_the_limits_of_a_disk_change_at_once(lab, plug, monkeypatch):
    asked = []

    def limited(node, name, target, limits):
        """The test driver limits no disk that is not there when it starts; QEMU does."""
        asked.append((target, limits))
        disk = devices(plug.live(name), "disk")[0]
        tune = next((child for child in disk if child.tag == "iotune"), None)
        tune = SubElement(disk, "iotune") if tune is None else tune
        for key, number in limits.items():
            for old in [child for child in tune if child.tag == key]:
                tune.remove(old)
            if number:
                SubElement(tune, key).text = str(number)

    monkeypatch.setattr(Node, "set_disk_limits", limited)
    disk = {**WEB["disks"][0], "iops": {"total": 500}, "bandwidth": {"read": "10MiB"}}
    result = lab.both(name="web1", disks=[disk])
    assert result["actions"][1:] == ["limit disk vda at once: iops none -> total 500, bandwidth none -> read 10MiB/s"]
    assert result["pending_restart"] == [] and asked[0] == ("vda", {
        "total_iops_sec": 500, "read_iops_sec": 0, "write_iops_sec": 0,
        "total_bytes_sec": 0, "read_bytes_sec": 10 << 20, "write_bytes_sec": 0,
    })  # fmt: skip
    result = lab.both(name="web1", disks=[{**disk, "iops": {}}])
    assert result["actions"][1:] == ["limit disk vda at once: iops total 500 -> none"]
    assert set(asked[1][1].values()) == {0} and result["pending_restart"] == []


def test_the_time_of_vcpus_is_limited_at_once(lab, plug, monkeypatch):
    limits = CpuLimits(monkeypatch)
    steps = [(50, "none -> 50 %", 50000), (20, "50 % -> 20 %", 20000), (0, "20 % -> none", -1)]
    for percent, words, quota in steps:
        result = lab.both(name="web1", cpu_quota=percent)
        assert result["actions"][1:] == [f"limit the time of each vCPU at once: {words}"]
        assert limits.calls[-1] == (100000, quota) and result["pending_restart"] == []
        assert result["vm"]["cpu_quota"] == (percent or None)
    # A limit that somebody else gave it as it runs stays, where the task says nothing of it.
    lab.node.set_cpu_quota("web1", 50000, 12345)
    result = lab.both(name="web1", memory="64MiB")
    assert result["actions"] == [] and result["pending_restart"] == ["cpu_quota 25 -> none"]
    assert lab.both(name="web1", cpu_quota=0)["actions"] == ["limit the time of each vCPU at once: 25 % -> none"]


def test_a_limit_of_vcpus_that_waits_for_a_restart_anyway_is_not_set_before(lab, plug, monkeypatch):
    monkeypatch.setattr(Node, "set_cpu_quota", None)
    result = lab.both(name="web1", cpu_quota=50, memory="128MiB", state="running", restart="allowed")
    assert "at once" not in str(result["actions"]) and "<quota>50000</quota>" in lab.node.domain("web1").live_xml


# Each option of HARDWARE that says it is live, with a value that a VM started with these has at once.
STARTED = {"max_memory": "256MiB", "max_vcpus": 4}
AT_ONCE: dict[str, Any] = {"memory": "128MiB", "vcpus": 3, "cpu_quota": 50}


def test_every_option_that_says_it_is_live_has_a_row():
    live = {field.name for field in HARDWARE if field.when == "live"}
    # A minimum that is taken away gives back what the node has taken.
    assert {*AT_ONCE, "min_memory"} == {row.name for row in scaling.ROWS} == live | {"min_memory"}


@pytest.mark.parametrize("option", AT_ONCE)
def test_what_says_it_is_live_waits_for_no_restart(lab, plug, monkeypatch, option):
    CpuLimits(monkeypatch)
    lab.run(name="web1", **STARTED, state="restarted")
    result = lab.both(name="web1", **{option: AT_ONCE[option]})
    assert result["pending_restart"] == [] and "at once" in str(result["actions"]), result["actions"]


def test_vcpus_that_the_vm_started_with_stay_until_its_next_start(lab, plug):
    result = lab.both(name="web1", vcpus=1)
    assert result["pending_restart"] == [f"vcpus 2 -> 1: {scaling.BORN}"]
    live, after = parse("<domain><vcpu current='3'>4</vcpu></domain>"), parse("<domain><vcpu>2</vcpu></domain>")
    assert scaling.changes(live, after, after, {"vcpus"}, ahead=False) == []
    listed = "".join(f"<vcpu id='{n}' enabled='yes' hotpluggable='{'yes' if n else 'no'}'/>" for n in range(3))
    live.append(parse(f"<vcpus>{listed}</vcpus>"))
    change = scaling.changes(live, after, after, {"vcpus"}, ahead=False)
    assert [one.words for one in change] == ["set the vCPUs at once from 3 to 2"]
    assert "current='2'" in text_of(live)
