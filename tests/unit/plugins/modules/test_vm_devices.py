# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of module vm that are block devices or logical volumes: libvirt's test driver, fakes of LVM and of sysfs."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _lvm
from ansible_collections.drover.kvm.plugins.module_utils._disks import block, lvm
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid
from ansible_collections.drover.kvm.tests.unit import lvm_fake
from ansible_collections.drover.kvm.tests.unit.devices_fake import WWID, installed
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import WEB, lab

__all__ = ["lab"]

MIB = 2**20
UUID = vm_uuid("web1")
NAME = "drover-web1-0"
DISK = {"type": "lvm", "vg": "vg0", "size": "8MiB"}
SHEET = {**WEB, "disks": [DISK]}
ON_SAN = {**WEB, "disks": [{"type": "block", "path": "/dev/san/web1"}]}


@pytest.fixture
def devices(lab, tmp_path, monkeypatch):
    return installed(tmp_path / "root", monkeypatch, block, lvm)


@pytest.fixture
def group(devices, tmp_path, monkeypatch):
    """Group vg0 of 64 extents of 2 MiB, 32 of them free; that of another test is forgotten."""
    return make_group(tmp_path, monkeypatch, "")


@pytest.fixture
def shared(devices, tmp_path, monkeypatch):
    """The same, shared with other nodes."""
    return make_group(tmp_path, monkeypatch, "sanlock")


def make_group(folder, monkeypatch, lock):
    fake = lvm_fake.Lvm(folder, lock=lock)
    monkeypatch.setattr(_lvm, "run", fake.run)
    monkeypatch.setattr(_lvm, "run_json", fake.report)
    monkeypatch.setattr(lvm, "LVM", _lvm.Lvm())
    return fake


def test_a_lun_of_the_san_from_nothing_to_nothing(lab, devices):
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    made = lab.both(**ON_SAN, state="running")["vm"]
    assert made["disks"][0]["path"] == "/dev/san/web1" and made["disks"][0]["size"] == 64 * MIB
    lab.both(name="web1", state="stopped", force=True)
    gone = lab.both(name="web1", state="absent", remove_disks=True)
    assert gone["actions"] == ["undefine web1"], "a LUN is the SAN's"


def test_a_kernel_name_is_refused_with_the_stable_one(lab, devices):
    devices.add("sdb", "8:16", ["san/web1", "mapper/x"], udev=WWID)
    result = lab.run(**{**WEB, "disks": [{"type": "block", "path": "/dev/sdb"}]})
    assert "another disk after the next boot" in result["msg"] and "write /dev/san/web1" in result["msg"]


def test_one_path_of_a_map_is_refused_with_the_map(lab, devices):
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    devices.add("dm-0", "254:0", [], uuid=f"mpath-{WWID}", label="shop")
    devices.hold("sdb", "dm-0")
    assert "only one path to /dev/mapper/shop; give that" in lab.run(**ON_SAN)["msg"]


def test_a_device_that_is_missing_or_used_is_refused(lab, devices):
    assert "log in to it (role san_initiator)" in lab.run(**ON_SAN)["msg"]
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    (devices.root / "proc/self/mountinfo").write_text("1 1 8:16 / /srv rw - ext4 /dev/sdb rw\n")
    result = lab.run(**ON_SAN, state="running")
    assert "/dev/san/web1 is in use on this node: the mount /srv" in result["msg"]
    assert lab.node.domains() == {}


def test_a_lun_grows_on_the_san(lab, devices):
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    disks = [{"type": "block", "path": "/dev/san/web1", "size": "128MiB"}]
    assert "has 64MiB, not 128MiB: grow the volume on the SAN first" in lab.run(**{**WEB, "disks": disks})["msg"]


def test_a_second_vm_on_the_same_lun_by_another_name_is_refused(lab, devices):
    devices.add("sdb", "8:16", ["san/web1", "san/again"], udev=WWID)
    lab.both(**ON_SAN)
    other = {"name": "db1", "memory": "64MiB", "vcpus": 1, "disks": [{"type": "block", "path": "/dev/san/again"}]}
    assert "of db1 belongs to web1" in lab.run(**other)["msg"]


@pytest.mark.parametrize("portal", ["10.231.5.10:3260", "[fd00:5::10]:3260"])
def test_a_second_vm_on_the_same_lun_by_qemus_own_initiator_is_refused(lab, devices, portal):
    devices.add("sdb", "8:16")
    devices.add("sdc", "8:32")
    devices.add("dm-0", "254:0", ["san/web1"], uuid=f"mpath-{WWID}", label="web1")
    for number, path in enumerate(("sdb", "sdc"), start=1):
        devices.hold(path, "dm-0")
        devices.by_iscsi(path, "iqn.2026-11.org.example:web1", 3, number)
    lab.both(**ON_SAN)
    disk = {"type": "iscsi", "iqn": "iqn.2026-11.org.example:web1", "lun": 3, "portal": portal}
    other = {"name": "db1", "memory": "64MiB", "vcpus": 1, "disks": [disk]}
    assert "unit:iqn.2026-11.org.example:web1/3 of db1 belongs to web1" in lab.run(**other)["msg"]
    assert lab.both(**{**other, "disks": [{**disk, "lun": 4}]})["changed"]


def test_a_volume_from_nothing_to_nothing(lab, group):
    made = lab.both(**SHEET, state="running")
    assert made["actions"][0] == f"create /dev/vg0/{NAME} (raw, 8MiB)" or made["actions"][0].startswith("create")
    assert sorted(group.volumes[NAME]["tags"]) == [f"drover.group={group.uuid}", f"drover.vm={UUID}"]
    assert made["vm"]["disks"][0]["size"] == 8 * MIB
    assert set(group.device(NAME).read_bytes()) == {0}, "old data of others"
    lab.both(name="web1", state="stopped", force=True)
    group.lvcreate(["--size", f"{MIB}b", "--name", "drover-web1-7", "--addtag", "mine", "vg0"])
    lab.both(name="web1", state="absent", remove_disks=True)
    assert sorted(group.volumes) == ["drover-web1-7", "pool0"]


def test_a_volume_stays_of_which_somebody_has_a_snapshot(lab, group):
    lab.both(**SHEET)
    group.lvcreate(["--snapshot", "--size", f"{MIB}b", "--name", "before-update", f"vg0/{NAME}"])
    lvm.LVM.forget()
    for check in (True, False):
        gone = lab.run(name="web1", state="absent", remove_disks=True, _ansible_check_mode=check)
        assert {"before-update", NAME} <= set(group.volumes) and gone["failed"] and "vg0/before-update" in gone["msg"]
    assert "web1" in lab.node.domains()
    group.lvremove(["--yes", "vg0/before-update"])
    lvm.LVM.forget()
    lab.both(name="web1", state="absent", remove_disks=True)
    assert sorted(group.volumes) == ["pool0"]


def test_a_volume_in_a_copy_of_its_group_is_not_ours(lab, group):
    """vgimportclone of a LUN that the array has copied: tags stay as they are, as seen with lvm2 2.03.16."""
    lab.both(**SHEET)
    group.import_clone()
    lvm.LVM.forget()
    lab.both(name="web1", state="absent", remove_disks=True)
    assert sorted(group.volumes) == [NAME, "pool0"]


def test_a_volume_made_by_hand_grows_after_a_run_that_was_cut_off_too(lab, group, monkeypatch):
    group.lvcreate(["--size", f"{4 * MIB}b", "--name", "by-hand", "vg0"])
    sheet = {**WEB, "disks": [{"type": "lvm", "vg": "vg0", "lv": "by-hand"}]}
    lab.both(**sheet)
    sheet["disks"][0]["size"] = "12MiB"
    with monkeypatch.context() as patch:
        patch.setattr(group, "blkdiscard", Mock(side_effect=Failed("killed")))
        assert "killed" in lab.run(**sheet)["msg"] and "by-hand.part" in group.volumes
    lab.both(**sheet)
    assert group.volumes["by-hand"] == {**group.volumes["by-hand"], "size": 6, "tags": []}
    assert "by-hand.part" not in group.volumes


def test_a_volume_grows_in_whole_extents_and_never_shrinks(lab, group):
    lab.both(**{**SHEET, "disks": [{**DISK, "size": "3MiB"}]})
    assert group.volumes[NAME]["size"] == 2
    grown = lab.both(**{**SHEET, "disks": [{**DISK, "size": "9MiB"}]})
    assert grown["vm"]["disks"][0]["size"] == 10 * MIB
    assert set(group.device(NAME).read_bytes()) == {0} and f"{NAME}.part" not in group.volumes
    assert "would cut off" in lab.run(**{**SHEET, "disks": [{**DISK, "size": "3MiB"}]})["msg"]


def test_a_group_on_the_san_without_locks_is_not_changed(lab, devices, group):
    """Two nodes that make volumes in it at once, as build_vms lets them, would lose LVM's metadata."""
    devices.add("sdb", "8:16", ["mapper/vms1"])
    group.lvcreate(["--size", f"{MIB}b", "--name", "by-hand", "vg0"])
    devices.by_iscsi("sdb", "iqn.2026-11.org.example:vms1", 1)
    assert "lies on /dev/mapper/vms1, a volume of a SAN, and is not shared" in lab.run(**SHEET)["msg"]
    assert lab.node.domains() == {} and NAME not in group.volumes
    by_hand = {"type": "lvm", "vg": "vg0", "lv": "by-hand"}
    lab.both(**{**WEB, "disks": [by_hand]})
    assert "is not shared" in lab.run(**{**WEB, "disks": [{**by_hand, "size": "8MiB"}]})["msg"]


@pytest.mark.parametrize("tags, lock", [("drover.made=volume_group", ""), ("", "sanlock")])
def test_a_group_on_the_san_of_one_node_or_with_locks_is(lab, devices, tmp_path, monkeypatch, tags, lock):
    devices.add("sdb", "8:16", ["mapper/vms1"])
    devices.by_iscsi("sdb", "iqn.2026-11.org.example:vms1", 1)
    made = make_group(tmp_path, monkeypatch, lock)
    made.tags = tags
    assert lab.both(**SHEET)["changed"] and NAME in made.volumes


@pytest.mark.parametrize("size", ["1GiB", "128MiB"])
def test_a_group_without_room_is_refused_before_anything_is_made(lab, group, size):
    assert "vg0 has 64MiB free" in lab.run(**{**SHEET, "disks": [{**DISK, "size": size}]})["msg"]
    assert lab.node.domains() == {} and NAME not in group.volumes


def test_a_volume_of_another_vm_or_kind_is_refused(lab, group):
    group.lvcreate(["--size", f"{MIB}b", "--name", NAME, "--addtag", "drover.vm=other", "vg0"])
    assert "made for another VM" in lab.run(**SHEET)["msg"]
    unfinished = {"type": "lvm", "vg": "vg0", "lv": "data.part", "size": "8MiB"}
    assert "that is being made" in lab.run(**{**WEB, "disks": [unfinished]})["msg"]
    assert "of another kind" in lab.run(**{**SHEET, "disks": [{"type": "lvm", "vg": "vg0", "lv": "pool0"}]})["msg"]
    assert "no volume group vg9" in lab.run(**{**SHEET, "disks": [{**DISK, "vg": "vg9"}]})["msg"]


def test_what_an_interrupted_run_left_is_made_anew_and_what_others_left_is_not(lab, group):
    part = f"{NAME}.part"
    group.lvcreate(["--size", f"{MIB}b", "--name", part, "vg0"])
    assert "is not ours" in lab.run(**SHEET)["msg"]
    group.volumes[part]["tags"] = [f"drover.vm={UUID}"]
    lab.both(**SHEET)
    assert part not in group.volumes and group.volumes[NAME]["size"] == 4


def test_a_new_volume_of_a_shared_group_is_free_until_its_vm_starts(lab, shared):
    lab.both(**SHEET)
    assert shared.here == {} and any(f"--setautoactivation n vg0/{NAME}" in one for one in shared.commands)


def test_a_volume_that_another_node_holds_is_refused_by_its_name(lab, shared):
    lab.both(**SHEET)
    shared.elsewhere[NAME] = "ex"
    assert "is held by hv2" in lab.run(**SHEET, state="running")["msg"]
    assert lab.node.domains()["web1"].state == "stopped"
    gone = lab.run(name="web1", state="absent", remove_disks=True)
    assert "was not removed, hv2 has it" in gone["msg"] and NAME in shared.volumes


def test_a_shared_lock_becomes_this_nodes_own_before_a_volume_grows(lab, shared, monkeypatch):
    lab.both(**SHEET)
    shared.here[NAME] = "sh"
    monkeypatch.setattr(block, "look", lambda path: SimpleNamespace(uuid="LVM-x") if NAME in shared.here else None)
    lab.both(**{**SHEET, "disks": [{**DISK, "size": "16MiB"}]})
    assert shared.here[NAME] == "ex" and shared.volumes[NAME]["size"] == 8


def test_a_volume_comes_and_goes_with_the_start_and_the_end_of_its_vm(lab, devices, group):
    """A hook activates it and gives it back, which libvirt calls at no other time."""
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    block_disk = {"type": "block", "target": "vda", "path": "/dev/san/web1"}
    lab.run(**{**WEB, "disks": [block_disk]}, state="running")
    added = lab.run(name="web1", disks=[block_disk, {**DISK, "target": "vdb"}])
    assert not added.get("failed"), added["msg"]
    assert added["pending_restart"] == ["disk vdb added: a logical volume becomes active when its machine starts"]
