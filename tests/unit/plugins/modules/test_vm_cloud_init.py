# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud-init is given: the seed of a VM made, seen, changed and deleted; secrets stay in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.drover.kvm.plugins.module_utils import _seed
from ansible_collections.drover.kvm.plugins.module_utils._domain import cloud_init, facts
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import adoption
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._xml import drop, find, parse, text_of
from ansible_collections.drover.kvm.tests.unit.hotplug import Hotplug
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytest.importorskip("libvirt")
lab = test_vm.lab

SECRET = "correct-horse"
DATA = f"#cloud-config\npassword: {SECRET}\n# 'quotes' and \"others\"\n"
NIC = {"bridge": "br0", "addresses": ["fd00::21/64"], "gateway": ["fe80::1"]}
WEB: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 2, "nics": [NIC]}
UUID = vm_uuid("web1")


class Iso:
    """The program that makes the ISO: keeps what it was given, and writes no more of it than the mark."""

    def __init__(self) -> None:
        self.made: list[dict[str, str]] = []
        self.said: list[str] = []

    def run(self, argv: list[str]) -> str:
        self.said += argv
        folder = Path(argv[-1])
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        self.made.append({path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()})
        image = bytearray(_seed.DESCRIPTOR + 2048)
        words = argv[argv.index("-A") + 1].upper().encode().ljust(128)
        image[_seed.DESCRIPTOR + 574 : _seed.DESCRIPTOR + 702] = words
        Path(argv[argv.index("-o") + 1]).write_bytes(image)
        return ""


@pytest.fixture(autouse=True)
def iso(tmp_path, monkeypatch):
    found = Iso()
    monkeypatch.setattr(_seed, "run", found.run)
    monkeypatch.setattr(_seed, "WORK", str(tmp_path / "work"))
    return found


@pytest.fixture
def seed(tmp_path):
    return tmp_path / "drover-web1-seed.iso"


def no_secret(*things: Any) -> None:
    assert SECRET not in json.dumps(things)


def test_a_seed_is_made_seen_changed_and_deleted_with_its_vm(lab, iso, seed):
    result = lab.both(**WEB, state="running", cloud_init={"user_data": DATA})
    assert result["actions"] == [
        f"make the seed {seed}", "define web1: 2 vCPUs, 64MiB, 0 disks, 1 NICs", "start web1",
    ]  # fmt: skip
    told = result["vm"]["seed"]
    assert told["medium"] == str(seed) and len(told["digest"]) == 16 and result["vm"]["disks"] == []
    assert seed.stat().st_mode & 0o777 == 0o600 and _seed.mark(str(seed)) == UUID
    files = iso.made.pop()
    assert set(files) == {"meta-data", "user-data", "network-config"} and files["user-data"] == DATA
    assert json.loads(files["meta-data"]) == {"instance-id": UUID, "local-hostname": "web1"}
    network = json.loads(files["network-config"])["ethernets"]["nic0"]
    assert network["match"] == {"macaddress": vm_mac("web1", 0)} and network["addresses"] == ["fd00::21/64"]
    changed = lab.both(name="web1", cloud_init={"user_data": DATA.replace("others", "else")})
    new = changed["vm"]["seed"]["digest"]
    words = f"cloud-init data {told['digest']} -> {new}"
    assert changed["actions"] == [f"make the seed {seed}", f"change web1: {words} (from its next start)"]
    assert changed["pending_restart"] == [words] and changed["diff"]["after"]["seed"] == {"digest": new}
    assert lab.both(name="web1")["actions"] == [] and lab.both(name="web1", disks=[])["actions"] == []
    gone = lab.both(name="web1", state="absent", force=True)
    assert gone["actions"] == ["cut the power of web1", "undefine web1", f"delete {seed}"] and not seed.exists()
    no_secret(result, changed, gone, lab.run(name="web1", state="absent"), iso.said)


def test_nothing_shows_what_is_in_it(lab, iso, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _self, message, log_args=None: logged.append(message))
    items = [{**WEB, "cloud_init": {"user_data": DATA}}, {"name": "web2", "cloud_init": {"user_data": SECRET}}]
    bad = lab.run(vms=items, memory="64MiB", vcpus=1)
    assert "user data begins with #cloud-config" in bad["msg"]
    good = lab.run(vms=items[:1])
    assert good["changed"] and good["invocation"]["module_args"]["vms"][0]["cloud_init"]["user_data"] != DATA
    one = lab.run(**items[0])
    assert len(logged) == 3
    no_secret(bad, good, one, logged, iso.said, lab.node.domain("web1").xml)


def test_addresses_change_it(lab, iso, seed):
    lab.run(**WEB, cloud_init={})
    assert iso.made[-1]["user-data"] == "#cloud-config\n{}\n"
    result = lab.both(name="web1", nics=[{"addresses": ["fd00::22/64"]}], cloud_init={})
    assert f"make the seed {seed}" in result["actions"] and "fd00::22/64" in iso.made[-1]["network-config"]
    assert f"nic {vm_mac('web1', 0)} addresses fd00::21/64 -> fd00::22/64" in result["actions"][1]
    assert result["vm"]["nics"][0]["gateway"] == ["fe80::1"]
    assert "gateway fe80::1 needs" in lab.run(name="web1", nics=[{"addresses": ["10.0.0.2/24"]}])["msg"]


def test_a_medium_that_somebody_took_out_stays_out_until_there_is_another(lab, seed):
    made = lab.run(**WEB, cloud_init={})
    root = parse(lab.node.domain("web1").xml)
    drive = cloud_init.drive(root)
    drop(drive, find(drive, "source"))
    lab.node.define(text_of(root))
    result = lab.both(name="web1", cloud_init={})
    assert result["actions"] == [] and result["vm"]["seed"] == {**made["vm"]["seed"], "medium": None}
    again = lab.both(name="web1", cloud_init={"hostname": "shop"})
    assert f"make the seed {seed}" in again["actions"] and again["vm"]["seed"]["medium"] == str(seed)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_once_the_guest_is_set_up_it_goes_if_asked(lab, seed, monkeypatch, state):
    Hotplug(lab.node, monkeypatch)
    given = {"user_data": DATA}
    refused = lab.run(**WEB, cloud_init={**given, "remove": True})
    assert refused["error"] == "Invalid" and "a new one would never be" in refused["msg"] and not seed.exists()
    made = lab.run(**WEB, state=state, cloud_init=given)
    gone = lab.both(name="web1", cloud_init={**given, "remove": True})
    at_once = ["change the medium of disk sda at once"] if state == "running" else []
    assert gone["actions"] == ["change web1: seed taken out of its drive", *at_once, f"delete {seed}"]
    assert not seed.exists() and gone["pending_restart"] == []
    assert gone["vm"]["seed"] == {**made["vm"]["seed"], "medium": None}
    domain = lab.node.domain("web1")
    assert str(seed) not in domain.xml + (domain.live_xml or "")
    # The same data are known, other ones are a new seed.
    assert lab.both(name="web1", cloud_init=given)["actions"] == []
    assert lab.both(name="web1", cloud_init={"remove": True, "hostname": "shop"})["actions"] == []
    assert f"make the seed {seed}" in lab.both(name="web1", cloud_init={"hostname": "shop"})["actions"]


def test_what_libvirt_leaves_of_it_in_the_drive_of_a_vm_that_runs_is_nothing():
    drive = "<disk type='file' device='cdrom'>{}<target dev='sda' bus='sata'/><alias name='{}'/></disk>"
    for source, there in (
        ("<source file='/srv/a.iso' startupPolicy='optional'/>", True),
        ("<source index='2'/>", False),
    ):
        text = drive.format(source, cloud_init.disks.SEED)
        root = parse(f"<domain><devices>{text}</devices></domain>")
        assert (cloud_init.eject(root) is not None) is there
        assert cloud_init.eject(root) is None


def test_a_tray_that_the_guest_has_locked_keeps_the_seed(lab, seed, monkeypatch):
    plug = Hotplug(lab.node, monkeypatch)
    lab.run(**WEB, state="running", cloud_init={})
    plug.locked = {"sda"}
    result = lab.run(name="web1", cloud_init={"remove": True})
    assert "has locked the tray of sda" in result["msg"] and seed.exists()
    plug.locked = set()
    done = lab.both(name="web1", cloud_init={"remove": True})
    assert done["actions"] == ["change the medium of disk sda at once", f"delete {seed}"] and not seed.exists()


def test_a_vm_that_came_from_another_node_needs_none_while_it_runs(lab, seed):
    lab.run(**WEB, state="running", cloud_init={})
    seed.unlink()
    assert lab.both(name="web1", cloud_init={})["actions"] == []
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", cloud_init={})["actions"] == [f"make the seed {seed}"]


def test_a_file_of_somebody_else_is_left_alone(lab, seed):
    seed.write_bytes(b"x" * 40000)
    result = lab.run(**WEB, cloud_init={})
    assert "is not the seed of this VM" in result["msg"] and seed.stat().st_size == 40000
    assert lab.run(name="web1", state="absent")["changed"] is False and seed.exists()


def test_what_a_killed_run_left_goes(lab, seed, tmp_path):
    (tmp_path / f"work/seed-{UUID}/content").mkdir(parents=True)
    (tmp_path / f"work/seed-{UUID}/content/user-data").write_text(SECRET, encoding="utf-8")
    lab.run(**WEB, cloud_init={})
    assert list((tmp_path / "work").iterdir()) == []
    lab.node.undefine("web1")
    assert lab.both(name="web1", state="absent")["actions"] == [f"delete {seed}"]


def test_it_hinders_no_move_and_no_sheet(lab):
    lab.run(**WEB, cloud_init={})
    domain = lab.node.domain("web1")
    disk = facts.domain_facts(domain)["disks"][0]
    assert disk["device"] == "cdrom" and disk["optional"] is True
    options, words = adoption(domain)
    assert "cloud_init" not in options and options["disks"] == []
    assert not any("sda" in word for word in words)


def test_a_target_that_a_device_holds_is_refused_by_name(lab, tmp_path):
    new = {"type": "file", "path": str(tmp_path / "new.raw"), "size": "4MiB", "format": "raw"}
    lab.run(**WEB, cloud_init={}, disks=[{**new, "path": str(tmp_path / "old.raw")}])
    old, files = {"type": "file", "target": "vda"}, sorted(tmp_path.iterdir())
    for check in (True, False):
        drive = {"type": "file", "device": "cdrom", "path": "", "target": "sda"}
        result = lab.run(name="web1", disks=[old, new, drive], _ansible_check_mode=check)
        words = "target sda is the drive of cloud_init already; write another one, such as sdb"
        assert result["msg"] == f"disks[2]: {words}"
        result = lab.run(name="web1", disks=[old, new, {**drive, "target": "vdb"}], _ansible_check_mode=check)
        assert f"disks[2]: target vdb is file:{tmp_path}/new.raw already" in result["msg"]
        assert lab.run(name="web1", disks=[old, old], _ansible_check_mode=check)["msg"] == (
            "disks[1]: vda is in the list twice"
        )
        assert sorted(tmp_path.iterdir()) == files
    assert lab.both(name="web1", disks=[old, {**drive, "target": None}])["actions"]


def test_without_a_program_it_says_so(lab, monkeypatch):
    def none(argv):
        raise NotFound("no")

    monkeypatch.setattr(_seed, "run", none)
    assert "neither xorriso nor genisoimage is installed" in lab.run(**WEB, cloud_init={})["msg"]
    assert lab.node.domain("web1") is None


@pytest.mark.skipif(shutil.which("xorriso") is None, reason="xorriso is not installed")
def test_a_real_one(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_seed, "WORK", str(tmp_path / "work"))
    path = tmp_path / "seed.iso"
    _seed.make(str(path), UUID, {"user-data": DATA, "meta-data": "{}"})
    look = ["blkid", "-p", "-s", "LABEL", "-o", "value", str(path)]
    label = subprocess.run(look, capture_output=True, text=True, check=True)
    assert label.stdout.strip() == "CIDATA" and _seed.mark(str(path)) == UUID and DATA.encode() in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600 and not list((tmp_path / "work").iterdir())
    _seed.remove(str(path), UUID)
    assert not path.exists()
