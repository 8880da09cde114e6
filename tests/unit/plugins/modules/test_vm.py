# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm against libvirt's own test driver: real definitions, real states, no hypervisor."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _bridges, _ceph, _ceph_conf, _rbd, _reserved
from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain import changing, metadata, site, starting
from ansible_collections.drover.kvm.plugins.module_utils._domain.bandwidth import WAYS
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect
from ansible_collections.drover.kvm.plugins.modules import vm
from ansible_collections.drover.kvm.tests.unit import hostile, rbd_library
from ansible_collections.drover.kvm.tests.unit.hotplug import CpuLimits

pytest.importorskip("libvirt")

MIB = 2**20
SAN = {"type": "iscsi", "iqn": "iqn.2026-11.org.example:drover-web1-0", "portal": "10.231.5.10:3260"}
WEB: dict[str, Any] = {
    "name": "web1",
    "memory": "64MiB",
    "vcpus": 2,
    "disks": [{**SAN, "user": "drover", "secret": "san1"}],
    "nics": [{"bridge": "br-int", "vlan": 100}],
}


class Lab:
    """A node of the test driver, its bridges and its peers; `run` is the module."""

    def __init__(self, node: Node, capsys: Any) -> None:
        self.node = node
        self.capsys = capsys
        self.peers: dict[str, Any] = {}

    def run(self, **args: Any) -> dict[str, Any]:
        with patch_module_args(args), pytest.raises(SystemExit):
            vm.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def both(self, **args: Any) -> dict[str, Any]:
        """The real run; check mode said the same, and a second run does nothing."""
        before = {name: (domain.xml, domain.state) for name, domain in self.node.domains().items()}
        predicted = self.run(**args, _ansible_check_mode=True, _ansible_diff=True)
        assert {name: (domain.xml, domain.state) for name, domain in self.node.domains().items()} == before
        real = self.run(**args, _ansible_diff=True)
        assert not real.get("failed"), real["msg"]
        predicted.pop("invocation"), real.pop("invocation")
        assert predicted == real
        again = self.run(**args)
        assert again["actions"] == [] and again["changed"] is False
        return real


@pytest.fixture
def lab(tmp_path, monkeypatch, capsys):
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    with connect(f"test://{path}") as node:
        lab = Lab(node, capsys)

        @contextmanager
        def same():
            yield node

        monkeypatch.setattr(vm, "connect", same)
        monkeypatch.setattr(_bridges, "bridges", lambda: {"br-int": "ovs", "br0": "linux"})
        monkeypatch.setattr(site, "ask_peers", lambda call, seconds: lab.peers)
        monkeypatch.setattr(file, "DIRECTORY", str(tmp_path))
        yield lab


def test_a_vm_from_nothing_to_nothing(lab):
    result = lab.both(**WEB, state="running", autostart=True, tags=["web"], description="the shop")
    assert result["changed"] and result["actions"] == [
        "define web1: 2 vCPUs, 64MiB, 1 disks, 1 NICs", "start web1 with the node", "start web1",
    ]  # fmt: skip
    made = result["vm"]
    assert made["uuid"] == vm_uuid("web1") and made["nics"][0]["mac"] == vm_mac("web1", 0)
    assert made["state"] == "running" and made["autostart"] is True and result["pending_restart"] == []
    assert "stop it first" in lab.run(name="web1", state="absent")["msg"]
    assert lab.both(name="web1", state="stopped", force=True)["actions"] == ["cut the power of web1"]
    assert lab.both(name="web1", state="absent")["vm"] is None
    assert lab.node.domains() == {}


def test_a_running_vm_says_what_waits_for_its_next_start_on_every_run(lab):
    lab.run(**WEB, state="running")
    result = lab.both(name="web1", memory="128MiB", vcpus=4)
    waits = ["memory 64MiB -> 128MiB", "vcpus 2 -> 4"]
    assert result["actions"] == ["change web1: " + ", ".join(f"{one} (from its next start)" for one in waits)]
    assert result["pending_restart"] == waits
    assert lab.run(name="web1")["pending_restart"] == waits
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", state="running")["pending_restart"] == []


def test_a_balloon_that_is_elsewhere_waits_for_no_restart(lab):
    lab.run(**WEB, max_memory="128MiB", state="running")
    lab.node.set_memory("web1", 128 * MIB, live=True, config=False)
    assert lab.run(name="web1")["pending_restart"] == []
    result = lab.both(name="web1", max_memory="256MiB")
    assert result["pending_restart"] == ["memory 128MiB -> 64MiB", "max_memory 128MiB -> 256MiB"]


def test_a_balloon_between_the_minimum_and_the_memory_is_no_change(lab):
    sheet = {**WEB, "max_memory": "128MiB", "min_memory": "32MiB"}
    made = lab.both(**sheet, state="running")["vm"]
    assert (made["memory"], made["min_memory"]) == (64 * MIB, 32 * MIB)
    lab.node.set_memory("web1", 40 * MIB, live=True, config=False)
    result = lab.both(**sheet)
    assert result["actions"] == result["pending_restart"] == []
    # Also where something else of the memory waits.
    waits = lab.both(name="web1", max_memory="256MiB")["pending_restart"]
    assert waits == ["max_memory 128MiB -> 256MiB"]
    waits = lab.both(name="web1", memory="192MiB")["pending_restart"]
    assert waits == ["memory 128MiB -> 192MiB", "max_memory 128MiB -> 256MiB"]


def test_without_its_minimum_a_vm_has_back_what_its_node_had_taken(lab):
    lab.both(**WEB, max_memory="128MiB", min_memory="32MiB", state="running")
    lab.node.set_memory("web1", 40 * MIB, live=True, config=False)
    # As long as it has one, the service of the node sees to it.
    assert not any("give back" in words for words in lab.both(name="web1", min_memory="36MiB")["actions"])
    result = lab.both(name="web1", min_memory=0)
    assert "give back all of its memory at once, 64MiB" in result["actions"] and result["pending_restart"] == []
    assert "<currentMemory unit='KiB'>65536<" in lab.node.domain("web1").live_xml


def test_the_least_that_a_vm_is_left_is_said_at_once_and_taken_back(lab):
    lab.run(**WEB, state="running")
    result = lab.both(name="web1", min_memory="48MiB")
    assert "change the min_memory of web1 as it runs" in result["actions"] and result["pending_restart"] == []
    assert "<drover:min_memory>50331648<" in lab.node.domain("web1").live_xml
    assert "min_memory=48MiB is more than the memory of 32MiB" in lab.run(name="web1", memory="32MiB")["msg"]
    assert lab.both(name="web1", min_memory="0")["vm"]["min_memory"] is None
    assert "min_memory" not in lab.node.domain("web1").live_xml


def test_tags_of_a_running_vm_change_at_once(lab):
    lab.run(**WEB, state="running", tags=["web", "prod"])
    result = lab.both(name="web1", tags={"add": ["gold"], "remove": ["prod"]})
    assert result["vm"]["tags"] == ["gold", "web"] and result["pending_restart"] == []
    assert "change the tags of web1 as it runs" in result["actions"]


def test_what_is_said_of_a_running_vm_changes_at_once(lab):
    lab.run(**WEB, state="running", owner="Sales")
    result = lab.both(name="web1", owner="R&D", rollback_safe=True, on_maintenance="leave")
    assert "change the owner and rollback_safe and on_maintenance of web1 as it runs" in result["actions"]
    assert result["pending_restart"] == [] and "R&amp;D" in lab.node.domain("web1").live_xml
    assert lab.both(name="web1", owner="")["vm"]["owner"] is None
    assert "owner" not in lab.node.domain("web1").live_xml


def test_the_title_changes_at_any_time_and_waits_for_no_restart(lab):
    assert lab.both(**WEB, state="running", title="R&D's <shop>")["vm"]["title"] == "R&D's <shop>"
    result = lab.both(name="web1", title="The shop")
    assert result["actions"] == ["change web1: title R&D's <shop> -> The shop"]
    assert result["vm"]["title"] == "The shop" and result["pending_restart"] == []
    assert lab.run(name="web1")["vm"]["title"] == "The shop"
    result = lab.both(name="web1", title="", memory="128MiB")
    assert result["actions"] == ["change web1: memory 64MiB -> 128MiB (from its next start), title The shop -> none"]
    assert result["vm"]["title"] is None and result["pending_restart"] == ["memory 64MiB -> 128MiB"]
    assert "<title" not in lab.node.domain("web1").xml


def test_shutting_down_waits(lab):
    lab.run(**WEB, state="running")
    assert lab.both(name="web1", state="stopped")["actions"] == ["shut web1 down"]
    lab.node.start("web1")
    lab.node.shutdown = lambda name, mode=None: None
    result = lab.run(name="web1", state="stopped", shutdown_timeout=1)
    assert result["failed"] and result["error"] == "TimedOut" and "last seen: running" in result["msg"]
    assert result["vm"]["state"] == "running"


def test_many_at_once_inherit_and_are_refused_together(lab):
    two = [{"name": "a", "vcpus": 1}, {"name": "b"}]
    result = lab.both(vms=two, memory="64MiB", vcpus=2, state="running")
    assert [item["vm"]["vcpus"] for item in result["results"]] == [1, 2]
    result = lab.run(vms=[{"name": "c"}, {"name": "b", "uuid": vm_uuid("a")}, {"name": "d"}], memory="64MiB", vcpus=1)
    assert result["failed"] and "b: uuid is" in result["msg"] and set(lab.node.domains()) == {"a", "b"}


@pytest.mark.parametrize(
    "clash",
    [
        {"uuid": vm_uuid("web1")},
        {"nics": [{"bridge": "br0", "mac": vm_mac("web1", 0)}]},
        {"nics": [{"bridge": "br0", "addresses": ["192.0.2.21/26"]}]},
        {"nics": [{"bridge": "br0", "addresses": ["2001:db8:0::21/64"]}]},
        {"disks": [SAN]},
    ],
)
@pytest.mark.parametrize("state", ["present", "running"])
def test_what_another_vm_has_is_refused(lab, clash, state):
    nics = [{**WEB["nics"][0], "addresses": ["192.0.2.21/24", "2001:db8::21/64"]}]
    lab.run(**{**WEB, "nics": nics}, state=state)
    result = lab.run(name="other", memory="64MiB", vcpus=1, **clash)
    assert "of other belongs to web1 on this node" in result["msg"] and set(lab.node.domains()) == {"web1"}


def test_what_a_running_vm_will_have_at_its_next_start_is_its_own_already(lab):
    lab.run(**WEB, state="running")
    lab.run(name="web1", nics=[*WEB["nics"], {"bridge": "br0", "mac": "52:54:00:00:00:01"}])
    wish = {"memory": "64MiB", "vcpus": 1, "nics": [{"bridge": "br0", "mac": "52:54:00:00:00:01"}]}
    assert "MAC address 52:54:00:00:00:01 of other belongs to web1" in lab.run(name="other", **wish)["msg"]


def test_an_address_is_free_when_its_vm_has_another_one(lab):
    nics = [{"bridge": "br0", "addresses": ["192.0.2.21/24"]}]
    lab.run(name="old", memory="64MiB", vcpus=1, nics=nics)
    lab.run(name="old", nics=[{"bridge": "br0", "addresses": ["192.0.2.22/24"]}])
    assert lab.both(name="new", memory="64MiB", vcpus=1, nics=nics)["changed"]


def test_two_items_of_one_task_must_not_share(lab):
    result = lab.run(vms=[{"name": "a"}, {"name": "b"}], memory="64MiB", vcpus=1, disks=[SAN])
    assert "belongs to a" in result["msg"] and lab.node.domains() == {}


def test_another_portal_of_a_target_leads_to_the_same_disk(lab):
    """A SAN has two portals, and an address has several spellings; two VMs would write to one volume."""
    lab.both(**{**WEB, "disks": [SAN]})
    other = {"name": "db1", "memory": "64MiB", "vcpus": 1, "disks": [{**SAN, "portal": "10.231.7.10:3260"}]}
    result = lab.run(**other)
    assert result["error"] == "Refused" and f"unit:{SAN['iqn']}/1 of db1 belongs to web1" in result["msg"]


def elsewhere(name="web1", active=True, uuid=None, disk=None):
    claims = [["UUID", uuid or vm_uuid(name)]] + ([["disk", disk]] if disk else [])
    return [{"name": name, "active": active, "claims": claims}]


@pytest.mark.parametrize(
    "peer,words",
    [
        (elsewhere(), "web1 runs on hv2; a VM has one home"),
        (elsewhere(active=False), "web1 is defined on hv2"),
        (elsewhere("other", uuid=vm_uuid("web1")), "UUID .* of web1 runs on hv2 as other"),
        (elsewhere("other", disk=f"iscsi:{SAN['iqn']}/1@{SAN['portal']}"), "of web1 belongs to other on hv2"),
        (Unreachable("silent"), "web1 is not started: hv2 gave no answer"),
    ],
)
def test_the_peers_are_asked_before_a_start(lab, peer, words):
    lab.peers = {"hv2": peer, "hv3": []}
    result = lab.run(**WEB, state="running")
    assert result["error"] == "Refused" and re.search(words, result["msg"]) and lab.node.domains() == {}


def test_a_peer_that_is_known_to_be_off_does_not_stop_the_start(lab):
    lab.peers = {"hv2": Unreachable("silent")}
    assert lab.both(**WEB, state="running", fenced=["hv2"])["vm"]["state"] == "running"


def test_another_peer_that_gives_no_answer_does(lab):
    lab.peers = {"hv2": Unreachable("silent"), "hv3": Unreachable("silent")}
    result = lab.run(**WEB, state="running", fenced=["hv2"])
    assert result["error"] == "Refused" and "hv3 gave no answer" in result["msg"] and "hv2" not in result["msg"]


def test_a_peer_that_is_slow_is_asked_once_more_and_with_patience_not_for_each_vm(lab, monkeypatch):
    asked = []

    def ask(_call, seconds):
        asked.append(seconds)
        return {"hv2": [] if seconds >= slow else Unreachable("silent"), "hv3": Unreachable("silent")}

    monkeypatch.setattr(site, "ask_peers", ask)
    slow = 40
    assert lab.run(**WEB, state="running", fenced=["hv3"])["vm"]["state"] == "running"
    assert asked[0] == site.PEER_SECONDS and set(asked[1:]) == {site.PATIENT_SECONDS}
    slow, asked[:] = 99, []
    result = lab.run(
        vms=[{"name": f"new{number}", "memory": "64MiB", "vcpus": 1} for number in range(3)],
        state="running",
        fenced=["hv3"],
    )
    assert "hv2 gave no answer" in result["msg"] and asked.count(site.PATIENT_SECONDS) == 1, result


def test_of_two_controllers_that_build_a_vm_on_two_nodes_at_once_none_starts_it_beside_the_other(lab, monkeypatch):
    lab.peers = {"hv2": []}
    define = lab.node.define

    def slow(xml):
        define(xml)
        lab.peers["hv2"] = elsewhere()

    monkeypatch.setattr(lab.node, "define", slow)
    result = lab.run(**WEB, state="running")
    assert result["failed"] and "runs on hv2" in result["msg"] and lab.node.domain("web1").state == "stopped"


MARK = {"id": "1", "from": "hv1", "to": "hv2", "was": "running", "autostart": False, "started": 1}


def test_a_migration_that_was_cut_off_is_left_to_its_recovery(lab):
    lab.run(**WEB)
    lab.node.set_metadata("web1", metadata.PREFIX, metadata.MARKER_NAMESPACE, metadata.marker_xml(MARK))
    for wish in ({"state": "running"}, {"state": "absent"}, {"memory": "128MiB"}, {"autostart": True}):
        result = lab.run(name="web1", **wish)
        assert result["error"] == "Refused" and "state=recovered" in result["msg"], wish
    assert not lab.run(name="web1")["changed"]


@pytest.mark.parametrize("wish", ["stopped", "absent"])
def test_a_paused_vm_is_not_woken_to_shut_down(lab, wish):
    lab.run(**WEB, state="running")
    lab.node.suspend("web1")
    result = lab.run(name="web1", state=wish)
    assert result["error"] == "Refused" and "force=true" in result["msg"]
    assert lab.node.domain("web1").state == "paused"


class Broken:
    """A VM that an I/O error pauses: libvirt's test driver has no such reason, so it is put on what it says."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing, self.node, self.really = True, lab.node, lab.node.domains
        lab.run(**WEB, state="running")
        lab.node.suspend("web1")
        monkeypatch.setattr(lab.node, "domains", self.domains)
        monkeypatch.setattr(lab.node, "domain", lambda name: self.domains()[name])
        monkeypatch.setattr(starting, "STEADY_SECONDS", 0.2)

    def domains(self) -> dict[str, Any]:
        if self.failing and self.really()["web1"].state == "running":
            self.node.suspend("web1")
        found = self.really()["web1"]
        return {"web1": replace(found, reason="I/O error") if found.state == "paused" else found}


def test_a_vm_that_its_storage_paused_is_resumed(lab, monkeypatch):
    broken = Broken(lab, monkeypatch)
    broken.failing = False
    assert lab.both(name="web1", state="running")["actions"] == ["resume web1, which an I/O error had paused"]
    assert lab.node.domain("web1").state == "running"


def test_a_vm_whose_storage_is_not_back_says_so(lab, monkeypatch):
    Broken(lab, monkeypatch)
    result = lab.run(name="web1", state="running")
    assert result["error"] == "Failed" and "its storage is not back" in result["msg"], result
    assert lab.node.domain("web1").state == "paused"


def test_a_vm_that_its_storage_paused_is_not_resumed_beside_its_double(lab, monkeypatch):
    Broken(lab, monkeypatch).failing = False
    double = {"name": "web1", "uuid": vm_uuid("web1"), "active": True, "persistent": True, "claims": []}
    lab.peers = {"hv2": [double]}
    assert lab.run(name="web1", state="running")["error"] == "Refused"
    assert lab.node.domain("web1").state == "paused"


NEEDS_QEMU_IMG = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@NEEDS_QEMU_IMG
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_files_are_made_grown_and_removed_only_when_asked(lab, tmp_path, kind):
    image = tmp_path / f"drover-web1-0.{kind}"
    disks = [{"type": "file", "format": kind, "size": "2MiB"}]
    result = lab.both(**{**WEB, "disks": disks})
    assert result["actions"][0] == f"create {image} ({kind}, 2MiB)" and result["vm"]["disks"][0]["size"] == 2 * MIB
    assert os.getxattr(image, file.MARK).decode() == vm_uuid("web1")
    disks[0]["size"] = "4MiB"
    assert lab.both(name="web1", disks=disks)["actions"] == [f"grow {image} ({kind}, 4MiB)"]
    disks[0]["size"] = "1MiB"
    words = f"{image} has 4MiB; to make it smaller (1MiB) would cut off what is in it: write size: 4MiB"
    assert words in lab.run(name="web1", disks=disks)["msg"]
    lab.both(name="web1", disks=[])
    assert image.exists()
    lab.both(name="web1", state="absent")
    assert image.exists()
    assert lab.both(name="web1", state="absent", remove_disks=True)["actions"] == [f"delete {image}"]
    assert not image.exists()


@pytest.fixture
def live(lab, monkeypatch):
    """What a running QEMU takes its disks for, by target; the test driver has no block devices."""
    sizes: dict[str, int] = {}
    monkeypatch.setattr(lab.node, "block_sizes", lambda name, target: {"capacity": sizes[target]})
    monkeypatch.setattr(lab.node, "block_resize", lambda name, target, size: sizes.update({target: size}))
    return sizes


def test_a_running_vm_learns_that_its_volume_on_the_san_has_grown(lab, live):
    live["vda"] = 1024 * MIB
    disks = [{**SAN, "size": "1GiB"}]
    lab.run(**{**WEB, "disks": disks}, state="running")
    assert lab.run(name="web1", disks=disks)["actions"] == []
    disks[0]["size"] = "2GiB"
    result = lab.both(name="web1", disks=disks)
    assert result["actions"] == ["grow vda as it runs to 2GiB"] and live == {"vda": 2048 * MIB}
    assert result["vm"]["disks"][0]["size"] == 2048 * MIB and result["pending_restart"] == []
    disks[0]["size"] = "1GiB"
    assert "cut off what is in it" in lab.run(name="web1", disks=disks)["msg"]
    lab.run(name="web1", state="stopped", force=True)
    assert lab.run(name="web1", disks=[{**SAN, "size": "4GiB"}])["actions"] == []


@NEEDS_QEMU_IMG
def test_qemu_itself_grows_a_file_that_it_has_open(lab, live, tmp_path):
    image = tmp_path / "drover-web1-0.raw"
    disks = [{"type": "file", "format": "raw", "size": "2MiB"}]
    lab.run(**{**WEB, "disks": disks}, state="running")
    live["vda"] = 2 * MIB
    lab.node.block_resize = lambda name, target, size: (live.update({target: size}), os.truncate(image, size))
    disks[0]["size"] = "4MiB"
    assert lab.both(name="web1", disks=disks)["actions"] == ["grow vda as it runs to 4MiB"]
    assert image.stat().st_size == 4 * MIB


def test_a_disk_that_did_not_grow_is_an_error(lab, live):
    live["vda"] = 1024 * MIB
    lab.run(**{**WEB, "disks": [{**SAN, "size": "1GiB"}]}, state="running")
    lab.node.block_resize = lambda name, target, size: None
    result = lab.run(name="web1", disks=[{**SAN, "size": "2GiB"}])
    assert result["error"] == "NotConverged" and "grow vda" in result["msg"]


@NEEDS_QEMU_IMG
def test_removal_undefines_first_and_spares_what_is_not_ours(lab, tmp_path):
    mine, foreign = tmp_path / "drover-web1-0.raw", tmp_path / "somebody.iso"
    foreign.write_bytes(b"0" * MIB)
    media = {"type": "file", "device": "cdrom", "path": str(foreign)}
    lab.both(**{**WEB, "disks": [{"type": "file", "format": "raw", "size": "1MiB"}, media]})
    result = lab.both(name="web1", state="absent", remove_disks=True)
    assert result["actions"] == ["undefine web1", f"delete {mine}"]
    assert foreign.exists() and not mine.exists()


@NEEDS_QEMU_IMG
@pytest.mark.parametrize("remove_disks", [False, True])
def test_a_vm_with_snapshots_stays(lab, tmp_path, remove_disks):
    disk = {"type": "file", "format": "qcow2", "size": "1MiB", "path": str(tmp_path / "web1.qcow2")}
    lab.run(**{**WEB, "disks": [disk]})
    lab.node.create_snapshot("web1", "<domainsnapshot><name>s1</name></domainsnapshot>", False, False)
    result = lab.run(name="web1", state="absent", remove_disks=remove_disks)
    assert result["failed"] and "web1 has snapshots (s1)" in result["msg"] and "drover.kvm.snapshot" in result["msg"]
    assert lab.node.domain("web1") and Path(disk["path"]).exists()
    lab.node.delete_snapshot("web1", "s1")
    assert lab.run(name="web1", state="absent", remove_disks=remove_disks)["changed"]


@pytest.mark.parametrize("target", [{"target": "vda"}, {}])
def test_a_disk_under_an_external_snapshot_is_not_put_back(lab, tmp_path, target):
    disk = {"type": "file", "format": "qcow2", "size": "1MiB", "path": str(tmp_path / "web1.qcow2"), **target}
    lab.run(**{**WEB, "disks": [disk]})
    over = str(tmp_path / "web1-vda.s1.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk["path"], "-F", "qcow2", over], check=True)
    lab.node.define(lab.node.domain("web1").xml.replace(disk["path"], over))
    before = lab.node.domain("web1").xml
    result = lab.run(**{**WEB, "disks": [disk]})
    assert "where it writes since an external snapshot: remove the snapshots of this VM first" in result["msg"]
    assert "take it off" not in result["msg"] and lab.node.domain("web1").xml == before


def test_a_disk_that_another_vm_uses_is_not_removed(lab, tmp_path):
    disk = {"type": "file", "format": "raw", "size": "1MiB", "path": str(tmp_path / "shared.raw")}
    lab.run(**{**WEB, "disks": [disk]})
    lab.peers = {"hv2": elsewhere("other", disk=f"file:{disk['path']}")}
    result = lab.run(name="web1", state="absent", remove_disks=True)
    assert "is also a disk of other on hv2" in result["msg"] and lab.node.domain("web1")
    lab.peers = {"hv2": Unreachable("silent")}
    assert "gave no answer" in lab.run(name="web1", state="absent", remove_disks=True)["msg"]


@NEEDS_QEMU_IMG
def test_a_defined_disk_whose_file_is_gone_is_not_made_anew(lab, tmp_path):
    disk = {"type": "file", "format": "raw", "size": "1MiB", "path": str(tmp_path / "a.raw")}
    lab.run(**{**WEB, "disks": [disk]})
    (tmp_path / "a.raw").unlink()
    assert "is the storage there" in lab.run(name="web1", disks=[disk])["msg"]


FSID = "5a1fb9a4-6a4c-4b0e-9f0c-0d7b1c9b8f11"
IMAGE = {"type": "rbd", "pool": "vms", "size": "40MiB"}
CEPH_VM: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 1, "disks": [IMAGE]}


@pytest.fixture
def ceph(tmp_path, monkeypatch):
    """A Ceph cluster that the node knows, with a template in it."""
    folder = tmp_path / "ceph"
    folder.mkdir()
    (folder / "ceph.conf").write_text(f"[global]\nfsid = {FSID}\nmon host = 10.231.5.13, 10.231.5.14\n")
    (folder / "ceph.client.libvirt.keyring").write_text("")
    found = rbd_library.Cluster()
    found.pools["vms"].add("debian", 32 * MIB)
    found.pools["vms"].snap("debian", "base", protected=True)
    found.pools["other"].shut = True
    monkeypatch.setattr(_ceph_conf, "FOLDER", folder)
    monkeypatch.setattr(_ceph, "connect", found.connect)
    monkeypatch.setattr(_rbd, "rbd", found.rbd)
    return found


def test_an_image_that_is_only_called_like_a_half_made_one_stays(lab, ceph):
    images = ceph.pools["vms"]
    for more in ({"data": {0: "theirs"}}, {"watchers": ["10.231.5.99"]}, {"meta": {"drover.vm": "another"}}):
        images.add("data.part", 4 * MIB, **more)
        result = lab.run(**{**CEPH_VM, "disks": [{**IMAGE, "image": "data"}]})
        assert "data.part" in images and result["failed"] and "vms/data.part exists and is not ours" in result["msg"]
    for more in ({}, {"meta": {"drover.vm": vm_uuid("web1")}, "data": {0: "half"}}):
        images.add("data.part", 4 * MIB, **more)
        assert lab.run(**{**CEPH_VM, "disks": [{**IMAGE, "image": "data"}]})["changed"] and "data.part" not in images
        assert images["data"]["data"] == {}
        lab.run(name="web1", state="absent", remove_disks=True, disks=[{**IMAGE, "image": "data"}])
    # A disk of this name would be taken for what is left of making another one.
    result = lab.run(**{**CEPH_VM, "disks": [{**IMAGE, "image": "data.part"}]})
    assert "data.part" not in images and "an image is called that is being made" in result["msg"]


def test_an_image_is_made_grown_and_goes_to_the_trash_only_when_asked(lab, ceph):
    images = ceph.pools["vms"]
    result = lab.both(**CEPH_VM, state="running")
    assert result["actions"][0] == f"create {FSID}/vms/drover-web1-0 (raw, 40MiB)"
    assert images["drover-web1-0"]["meta"] == {"drover.vm": vm_uuid("web1")}
    disk = result["vm"]["disks"][0]
    assert (disk["size"], disk["monitors"]) == (40 * MIB, ["10.231.5.13:6789", "10.231.5.14:6789"])
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", disks=[{**IMAGE, "size": "60MiB"}])["vm"]["disks"][0]["size"] == 60 * MIB
    assert "smaller" in lab.run(name="web1", disks=[IMAGE])["msg"]
    images.add("drover-web1-1", MIB, meta={"drover.vm": "another"})
    images.add("drover-web1-10", MIB, meta={"drover.vm": vm_uuid("web1")}, watchers=["10.231.5.99"])
    busy = lab.run(name="web1", state="absent", remove_disks=True)
    assert busy["failed"] and "10.231.5.99 has it open" in busy["msg"] and lab.node.domains() == {}
    images["drover-web1-10"]["watchers"] = []
    # The definition is gone: the marks alone tell what was made for it.
    assert len(lab.both(name="web1", state="absent", remove_disks=True)["actions"]) == 1
    assert images.trash == ["drover-web1-0", "drover-web1-10"] and "drover-web1-1" in images
    assert set(ceph.users) == {"client.libvirt"}


def test_an_image_is_cloned_from_a_protected_snapshot(lab, ceph):
    images = ceph.pools["vms"]
    images.add("drover-web1-0.part", 1)
    disks = [{**IMAGE, "source": "vms/debian@base"}, {"type": "rbd", "pool": "vms", "source": "vms/debian@base"}]
    lab.both(**{**CEPH_VM, "disks": disks})
    assert images["drover-web1-0"]["parent"] == "debian@base" and images["drover-web1-0"]["size"] == 40 * MIB
    assert images["drover-web1-1"]["size"] == 32 * MIB and "drover-web1-0.part" not in images


@pytest.mark.parametrize(
    "disk, words",
    [
        ({"source": "vms/debian@none"}, "there is no snapshot vms/debian@none"),
        ({"source": "vms/none@base"}, "there is no snapshot vms/none@base"),
        ({"source": "vms/debian@base", "size": "16MiB"}, "has 33554432 bytes, more than"),
        ({"source": "vms/debian@draft"}, "not protected"),
        ({"size": None}, "without size it can't be made"),
        ({"image": "taken"}, "was made for another VM"),
        ({"monitors": ["192.0.2.1"]}, "has its monitors (192.0.2.1)"),
    ],
)
def test_images_that_can_not_be_had(lab, ceph, disk, words):
    ceph.pools["vms"].snap("debian", "draft", size=MIB)
    ceph.pools["vms"].add("taken", 40 * MIB, meta={"drover.vm": "another"})
    given = {name: value for name, value in {**IMAGE, **disk}.items() if value is not None}
    result = lab.run(**{**CEPH_VM, "disks": [given]})
    assert result["failed"] and words in result["msg"]
    assert lab.node.domains() == {} and "drover-web1-0" not in ceph.pools["vms"]


def test_a_full_pool_takes_no_new_image_and_keeps_those_that_are_there(lab, ceph):
    lab.run(**CEPH_VM)
    ceph.pools["vms"].flags = "hashpspool,full,full_quota"
    for check in (True, False):
        result = lab.run(**{**CEPH_VM, "name": "web2"}, _ansible_check_mode=check)
        assert result["failed"] and result["error"] == "Refused" and "pool vms is full" in result["msg"]
    assert "drover-web2-0" not in ceph.pools["vms"] and set(lab.node.domains()) == {"web1"}
    assert lab.both(**CEPH_VM)["changed"] is False


def test_a_vm_whose_image_a_client_has_open_does_not_start(lab, ceph):
    lab.run(**CEPH_VM)
    ceph.pools["vms"]["drover-web1-0"]["watchers"] = ["10.231.5.12"]
    result = lab.run(name="web1", state="running")
    assert result["failed"] and result["error"] == "Refused" and result["details"]["watchers"] == ["10.231.5.12"]
    assert "the client at 10.231.5.12 has it open" in result["msg"] and "blocklist" in result["msg"]
    ceph.pools["vms"]["drover-web1-0"]["watchers"] = []
    assert lab.run(name="web1", state="running")["vm"]["state"] == "running"
    # Now it is its own watcher.
    ceph.pools["vms"]["drover-web1-0"]["watchers"] = ["10.231.5.11"]
    assert lab.both(**CEPH_VM, state="running")["changed"] is False


def test_a_cluster_that_gives_no_answer_is_waited_for_once(lab, ceph, monkeypatch):
    asked = []

    def connect(options):
        asked.append(options["user"])
        raise Unreachable("Ceph cluster ceph gives no answer")

    monkeypatch.setattr(_ceph, "connect", connect)
    result = lab.run(vms=[CEPH_VM, {**CEPH_VM, "name": "web2"}])
    assert result["failed"] and result["error"] == "Unreachable" and asked == ["client.libvirt"]


def test_an_image_of_another_vm_is_refused_also_through_another_monitor(lab, ceph):
    lab.run(**CEPH_VM)
    ceph.pools["vms"]["drover-web1-0"]["meta"].clear()
    for monitor in ("10.231.5.14", "10.231.5.13:3300"):
        disk = {**IMAGE, "image": "drover-web1-0", "monitors": [monitor]}
        result = lab.run(name="db1", memory="64MiB", vcpus=1, disks=[disk])
        assert f"disk rbd:{FSID}/vms/drover-web1-0 of db1 belongs to web1" in result["msg"]


@NEEDS_QEMU_IMG
def test_two_disks_of_a_machine_never_share_a_file(lab, tmp_path):
    """Both would be drover-web1-1.qcow2, by their place in the names of their buses."""
    first, second = ({"type": "file", "format": "qcow2", "size": "1MiB", "target": name} for name in ("sdb", "vdb"))
    refused = lab.run(**{**WEB, "disks": [first, second]})
    assert refused["failed"] and "is disks[0] of this VM already" in refused["msg"], refused
    assert not list(tmp_path.glob("drover-*"))
    lab.both(**{**WEB, "disks": [first]})
    refused = lab.run(name="web1", disks=[first, second])
    assert refused["failed"] and "is sdb of this VM already" in refused["msg"], refused
    lab.both(name="web1", disks=[first, {**second, "path": str(tmp_path / "other.qcow2")}])


@pytest.mark.parametrize("path", ["/dev/sda", "/etc/shadow", "/proc/kcore", "{tmp}/link", "/dev/mem"])
def test_the_machines_own_files_are_no_disks(lab, tmp_path, path):
    (tmp_path / "link").symlink_to("/etc/shadow")
    disk = {"type": "file", "format": "raw", "path": path.format(tmp=tmp_path), "size": "1MiB"}
    assert "belongs to the operating system" in lab.run(**{**WEB, "disks": [disk]})["msg"]


@NEEDS_QEMU_IMG
def test_an_image_that_is_based_on_another_file_is_refused(lab, tmp_path):
    image = tmp_path / "evil.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", image, "1M"], check=True
    )
    disk = {"type": "file", "format": "qcow2", "path": str(image)}
    assert "is based on /etc/shadow" in lab.run(**{**WEB, "disks": [disk]})["msg"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": name}, "is not a valid name")
    for name in ("../x", "{{ 7*7 }}", "-rf", "a b", "", ".", "x" * 64, "$(id)", "a/b", "ü", "\u202e", "a\n", "`id`")
]
BAD += [({"name": name}, "is no name for a VM") for name in ("all", "localhost", "Localhost", "127.0.0.1", "ungrouped")]
# Twins that look alike: none of them is another one's name.
TWINS = ("\u00e1", "a\u0301", "w\u0435b1", "\uff57eb1", "web1\u200b")
BAD += [({"name": name}, "is not a valid name") for name in TWINS]
BAD += [
    ({"memory": memory}, "memory: .*(not a size|whole mebibytes)")
    for memory in ("4GB", "-1", "1e9", "0x10", "", 1, "9" * 30, "8193KiB", "99999TiB")
]
BAD += [
    ({"vcpus": 0}, "vcpus: 0 is not a number"),
    ({"vcpus": 2**63}, "vcpus"),
    ({"vcpus": "two"}, "vcpus"),
    ({"cpu": "a' mode='x"}, "is not a CPU model"),
    ({"uuid": "not-a-uuid"}, "is not a UUID"),
    ({"boot": ["disk", "disk"]}, "each once"),
    ({"description": "two\nlines"}, "one line"),
    ({"title": "two\nlines"}, "title: write one line"),
    ({"title": "x" * 1001}, "title: write one line"),
    ({"tags": ["a b"]}, "is not a tag"),
    ({"tags": {"set": ["a"], "sub": ["b"]}}, "a list .exactly these"),
    ({"colour": "red"}, "[Uu]nsupported parameters"),
    (
        {"nics": [{"bridge": "br-none"}]},
        r"nics\[0\] of web1: \S+ has no bridge br-none \(it has: .*\); name one that it has, or make this one first",
    ),
    ({"nics": [{"bridge": "br 0"}]}, "is not the name of a bridge"),
    ({"nics": [{"bridge": "br-int", "speed": 3}]}, "[Uu]nsupported parameters"),
    ({"nics": {"bridge": "br-int"}}, "list|dict"),
    ({"disks": [{}]}, "type"),
    ({"disks": [{"type": "floppy"}]}, "value of type must be one of"),
    ({"disks": [{**SAN, "iqn": "iqn.2026-13.x:y"}]}, "is not an iSCSI qualified name"),
    ({"disks": [{**SAN, "portal": "10.231.5.10"}]}, "is not a portal"),
    ({"disks": [{**SAN, "portal": "10.231.5.999:3260"}]}, "is not a portal"),
    ({"disks": [{**SAN, "lun": 16384}]}, "is not a logical unit"),
    ({"disks": [{**SAN, "target": "vda1"}]}, "is not the name of a guest's disk"),
    ({"disks": [{"type": "file", "format": "raw", "path": "../a", "size": "1MiB"}]}, "path"),
    ({"disks": [{"type": "file", "format": "raw", "path": "json:{}", "size": "1MiB"}]}, "path"),
    (
        {"disks": [{"type": "file", "format": "raw", "path": "/srv/../etc/a", "size": "1MiB"}]},
        "is not the path of a file",
    ),
    ({"disks": [{"type": "file", "format": "raw", "size": 7}]}, "whole mebibytes"),
    ({"memory": "16TiB"}, r"memory=16TiB of web1 is more than \S+ has \(\d+MiB\); write less, or choose"),
    ({"memory": None}, "memory is missing"),
    ({"shutdown_timeout": 0}, "is not a waiting time"),
]
BAD += [({"nics": [{"bridge": "br-int", "vlan": vlan}]}, f"{vlan} is not a VLAN") for vlan in (0, 4095, 4096, -1)]
BAD += [
    ({"nics": [{"bridge": "br-int", "mac": mac}]}, "is not (a MAC|the) address")
    for mac in ("52:54:00:12:34", "01:00:5e:00:00:01", "zz:54:00:12:34:56", "")
]

BAD += [
    ({"disks": [{**disk, "secret": "san/1"}]}, "is not a name: letters, digits and . _ : @ - only")
    for disk in ({**SAN, "user": "drover"}, {"type": "rbd", "pool": "vms", "monitors": ["10.231.5.13"]})
]


@pytest.mark.parametrize("options,words", BAD)
def test_bad_input_gets_a_clear_answer(lab, options, words):
    result = lab.run(**{**WEB, **options})
    assert result["failed"] and re.search(words, result["msg"]), result
    assert "Traceback" not in str(result) and lab.node.domains() == {}
    if "name" not in options:
        many = lab.run(vms=[{"name": "good", "memory": "64MiB", "vcpus": 1}, {**WEB, **options}])
        assert many["failed"] and lab.node.domains() == {}


LIMIT = {"inbound": {"average": "10Mbit/s"}, "outbound": {"average": "20Mbit/s", "burst": "64KiB"}}

KEPT = {f"inbound.{key}": number for key, number in (("average", 1250), ("peak", 1250), ("burst", 0))}
KEPT.update({f"outbound.{key}": number for key, number in (("average", 2500), ("peak", 2500), ("burst", 64))})


def test_the_bandwidth_of_a_running_vm_changes_at_once(lab, monkeypatch):
    lab.run(**WEB, state="running")
    asked = []

    def limited(node, name, mac, limits):
        """The test driver can't limit a NIC that runs; libvirt would also write it into the live definition."""
        asked.append((name, mac, limits))
        domain = real(node, name)
        now.append(domain.live_xml.replace("<source bridge", f"{inside(limits)}<source bridge"))

    def inside(limits):
        ways = [(way, {key: limits[f"{way}.{key}"] for key in ("average", "peak", "burst")}) for way in WAYS]
        words = [f"<{way} {' '.join(f'{key}={str(n)!r}' for key, n in said.items() if n)}/>" for way, said in ways]
        return (
            f"<bandwidth>{''.join(word for word, (_way, said) in zip(words, ways) if any(said.values()))}</bandwidth>"
        )

    def seen(node, name):
        domain = real(node, name)
        return replace(domain, live_xml=now[-1]) if domain and now and domain.live_xml else domain

    now: list[str] = []
    real = Node.domain
    monkeypatch.setattr(Node, "set_bandwidth", limited)
    monkeypatch.setattr(Node, "domain", seen)
    monkeypatch.setattr(site.Site, "domain", lambda self, name: self.node.domain(name))
    result = lab.both(name="web1", nics=[{"bandwidth": LIMIT}])
    mac = vm_mac("web1", 0)
    words = "inbound average 10Mbit/s peak 10Mbit/s, outbound average 20Mbit/s burst 64KiB peak 20Mbit/s"
    assert result["actions"] == [
        f"change web1: nic {mac} bandwidth no limit -> {words}",
        f"limit nic {mac} at once: no limit -> {words}",
    ]
    assert asked[0][2] == KEPT
    assert result["pending_restart"] == [] and "<bandwidth>" in lab.node.domain("web1").xml
    assert lab.both(name="web1", nics=[{"bandwidth": {}}])["vm"]["nics"][0]["bandwidth"] is None
    assert set(asked[1][2].values()) == {0}


def test_what_is_checked_of_a_running_vms_addresses_changes_at_once(lab, monkeypatch):
    told = []
    monkeypatch.setattr(changing, "declare", lambda domain: told.append(domain.live_xml))
    lab.run(**WEB, state="running")
    assert lab.run(name="web1")["vm"]["nics"][0]["anti_spoof"] is True
    result = lab.both(name="web1", nics=[{"ips": ["10.231.100.21"]}])
    mac = vm_mac("web1", 0)
    assert result["actions"] == [
        f"change web1: nic {mac} ips none -> 10.231.100.21",
        "change the address checks of web1 as it runs",
    ]
    assert result["pending_restart"] == [] and result["vm"]["nics"][0]["ips"] == ["10.231.100.21"]
    assert f'mac="{mac}" ips="10.231.100.21"' in told[0]
    result = lab.both(name="web1", nics=[{"anti_spoof": False}])
    assert result["vm"]["nics"][0]["ips"] is None and 'anti_spoof="no"' in told[1]
    result = lab.both(name="web1", nics=[{"anti_spoof": True}])
    assert result["vm"]["nics"][0]["anti_spoof"] is True and "anti_spoof" not in told[2]


def test_a_running_vm_changes_its_trunk_at_once(lab, monkeypatch):
    moved = []
    lab.run(**{**WEB, "nics": [{"bridge": "br-int", "trunks": [20, 30]}]}, state="running")
    monkeypatch.setattr(Node, "update_device", lambda self, name, xml, live, config: moved.append((xml, live, config)))
    result = lab.run(name="web1", nics=[{"trunks": [30, 40]}])
    mac = vm_mac("web1", 0)
    assert f"move nic {mac} at once from VLAN 20, 30 to 30, 40" in result["actions"]
    assert "<tag id='40'/>" in moved[0][0] and moved[0][1:] == (True, False)


RESERVED = [
    ({"vlan": 5}, "nics[0] of web1 on br-int asks for VLAN 5, which belongs to the hosts (they keep 5, 10, 11)"),
    ({"trunks": [4, 10, 100]}, "asks for VLAN 10"),
    ({}, "without a VLAN would carry all of them, also those of the hosts (5, 10, 11)"),
]


@pytest.fixture
def reserved(tmp_path, monkeypatch):
    path = tmp_path / "network.json"
    monkeypatch.setattr(_reserved, "FILE", path)
    path.write_text('{"version": 1, "reserved_vlans": {"br-int": [5], "*": ["10-11"]}}', encoding="utf-8")
    return path


@pytest.mark.parametrize("nic, words", RESERVED)
def test_vlans_of_the_hosts_are_refused(lab, reserved, nic, words):
    result = lab.run(**{**WEB, "nics": [{"bridge": "br-int", **nic}]}, state="running")
    assert result["error"] == "Refused" and words in result["msg"] and "open_vswitch_reserved_vlans" in result["msg"]
    assert lab.node.domains() == {}
    lab.run(**WEB)
    before = lab.node.domain("web1").xml
    if nic:
        assert words.partition(" asks")[2] in lab.run(name="web1", nics=[nic])["msg"]
    assert lab.node.domain("web1").xml == before


def test_a_vm_that_was_defined_with_a_vlan_of_the_hosts_does_not_start(lab, reserved):
    reserved.rename(reserved.with_suffix(".later"))
    lab.run(**{**WEB, "nics": [{"bridge": "br-int", "vlan": 5}]})
    reserved.with_suffix(".later").rename(reserved)
    assert "asks for VLAN 5" in lab.run(name="web1", state="running")["msg"]
    assert not lab.run(name="web1", memory="128MiB").get("failed"), "what is not about its network can be changed"
    assert lab.both(name="web1", nics=[{"vlan": 100}], state="running")["vm"]["state"] == "running"


def test_linux_bridges_and_other_vlans_are_free(lab, reserved):
    lab.both(**{**WEB, "nics": [{"bridge": "br0"}, {"bridge": "br-int", "vlan": 12}]}, state="running")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"reserved_vlans": {"br0": ["x"]}}', '{"reserved_vlans": {"br0": [4095]}}']
)
def test_a_file_that_can_not_be_read_lets_nothing_through(lab, reserved, text):
    reserved.write_text(text, encoding="utf-8")
    assert "it is not known which VLANs are the hosts' own" in lab.run(**WEB)["msg"]
    assert lab.node.domains() == {}


# An act is done again by each run.
STATE = Field("state", choices=tuple(state for state in vm.STATES if state != "restarted"), default="present")
FUZZED = (STATE, *(field for field in vm.FIELDS if field.name not in ("state", "shutdown_timeout")))


@pytest.fixture
def driver(lab, monkeypatch):
    """The test driver starts no VM that is paused, and limits no CPU time."""
    begin = Node.start
    monkeypatch.setattr(
        Node, "start", lambda node, name, paused=False: (begin(node, name), paused and node.suspend(name))
    )
    return CpuLimits(monkeypatch)


@pytest.mark.slow
@hostile.fuzz(FUZZED, WEB, {**WEB, "state": "running"}, {"name": "web1"}, {"name": "old", "force": True}, quick=60)
def test_any_input_gets_a_clear_answer(lab, driver, args):
    for name, domain in lab.node.domains().items():
        if domain.state != "stopped":
            lab.node.destroy(name)
        lab.node.undefine(name)
    for path in Path(file.DIRECTORY).glob("drover-*"):
        path.unlink()
    # The test driver changes no NIC of a running VM, and takes each of its disks for one of 1 TiB.
    lab.node.block_sizes = lambda name, target: {}
    lab.run(name="old", memory="64MiB", vcpus=1, state="running")

    def look():
        files = sorted((path.name, path.stat().st_size) for path in Path(file.DIRECTORY).iterdir())
        return files, {name: (one.xml, one.state, one.autostart) for name, one in lab.node.domains().items()}

    hostile.answered(lab.run, look, {"shutdown_timeout": 1, **args})
