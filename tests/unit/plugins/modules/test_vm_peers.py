# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other modules for libvirt do wrong with VMs, each fault a test: none of it must happen here.

The faults were seen with community.libvirt 2.3.0: a new MAC at each run, check mode that foretells something else, a
missing VM that can't be removed, changes of a running VM that nobody hears of, a stop that does not wait, removals that
take shared media along or delete a disk and then fail, sizes, cloud-init data that never changes.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytest.importorskip("libvirt")
lab = test_vm.lab
MIB = 2**20
LOCAL = {"type": "file", "format": "raw", "size": "1MiB"}
WEB = {"name": "web1", "memory": "64MiB", "vcpus": 2, "nics": [{"bridge": "br-int", "vlan": 100}]}


@pytest.fixture
def disk(lab, tmp_path):
    """The VM with a disk of its own and a shared medium, whose name looks as if it were its own too."""
    made, medium = tmp_path / "drover-web1-0.raw", tmp_path / "drover-web1-9.raw"
    medium.write_bytes(b"0" * MIB)
    shared = {"type": "file", "device": "cdrom", "path": str(medium)}
    assert not lab.run(**WEB, disks=[LOCAL, shared]).get("failed")
    assert not lab.run(**{**WEB, "name": "web2", "nics": []}, disks=[shared]).get("failed")
    return made, medium


def test_b1_what_is_applied_is_applied_in_check_mode_too(lab):
    lab.both(**WEB)
    for running in (False, True):
        wish = {**WEB, **({"state": "running"} if running else {})}
        lab.run(**wish)
        foretold = lab.run(**wish, _ansible_check_mode=True, _ansible_diff=True)
        assert foretold["changed"] is False and foretold["diff"]["before"] == foretold["diff"]["after"] == {}


def test_b2_an_address_that_is_not_given_stays(lab, monkeypatch):
    lab.run(**WEB)
    monkeypatch.setattr(lab.node, "define", lambda xml: pytest.fail("a VM without changes was defined again"))
    for _again in range(3):
        result = lab.run(**WEB)
        assert not result["changed"] and result["vm"]["nics"][0]["mac"] == vm_mac("web1", 0)


def test_b3_a_missing_vm_is_absent_already(lab):
    for wish in ({}, {"remove_disks": True}, {"force": True}):
        result = lab.both(name="web1", state="absent", **wish)
        assert (result["changed"], result["vm"]) == (False, None)


def test_b4_a_change_that_the_running_vm_lacks_is_told_until_it_has_it(lab):
    lab.run(**WEB, state="running")
    assert lab.both(name="web1", memory="128MiB")["pending_restart"] == ["memory 64MiB -> 128MiB"]
    assert lab.run(name="web1")["pending_restart"] == ["memory 64MiB -> 128MiB"]


def test_b5_a_stop_is_over_when_the_vm_is_off_and_is_no_change_then(lab, monkeypatch):
    lab.run(**WEB, state="running")
    asked = []
    shutdown, domain = lab.node.shutdown, lab.node.domain
    monkeypatch.setattr(lab.node, "shutdown", asked.append)

    def slow(name):
        asked.append("looked")
        if asked.count("looked") == 4:
            shutdown(name)
        return domain(name)

    monkeypatch.setattr(lab.node, "domain", slow)
    result = lab.run(name="web1", state="stopped")
    assert result["changed"] and result["vm"]["state"] == "stopped" and asked[0] == "web1"
    assert lab.run(name="web1", state="stopped")["changed"] is False


@test_vm.NEEDS_QEMU_IMG
def test_b6_media_are_never_removed(lab, disk):
    made, medium = disk
    result = lab.both(name="web1", state="absent", remove_disks=True)
    assert result["actions"] == ["undefine web1", f"delete {made}"]
    assert medium.stat().st_size == MIB and not made.exists()


@test_vm.NEEDS_QEMU_IMG
def test_b6_nor_is_a_medium_that_carries_the_vms_own_mark(lab, disk):
    made, medium = disk
    os.setxattr(medium, file.MARK, vm_uuid("web1").encode())
    result = lab.run(name="web1", state="absent", remove_disks=True)
    assert medium.exists(), result
    assert result["failed"] and "disk of web2" in result["msg"] and made.exists() and lab.node.domain("web1")


@test_vm.NEEDS_QEMU_IMG
@pytest.mark.parametrize("name", ["drover-web1-0.raw.bak", "drover-web1-0-before-update.raw", "drover-web1-0.raw.gz"])
def test_b6_a_copy_that_somebody_kept_stays_though_it_carries_the_mark(lab, disk, name):
    """`cp -a` takes extended attributes along; the copy is an admin's only one once the VM is gone."""
    made, _medium = disk
    kept = made.with_name(name)
    subprocess.run(["cp", "-a", made, kept], check=True)
    assert os.getxattr(kept, file.MARK).decode() == vm_uuid("web1")
    for defined in (True, False):
        result = lab.both(name="web1", state="absent", remove_disks=True)
        assert result["actions"] == (["undefine web1", f"delete {made}"] if defined else [])
        assert kept.exists()


@test_vm.NEEDS_QEMU_IMG
@pytest.mark.parametrize("defined, active", [(False, True), (False, False), (True, True)])
def test_b6_disks_stay_that_the_vm_has_on_another_node(lab, disk, defined, active):
    """Files on shared storage: `absent` on a node that has not the VM, or only its stale definition."""
    made, _medium = disk
    if not defined:
        lab.node.undefine("web1")
    lab.peers = {"hv2": test_vm.elsewhere("web1", active, disk=f"file:{made}")}
    for check in (True, False):
        result = lab.run(name="web1", state="absent", remove_disks=True, _ansible_check_mode=check)
        assert made.exists() and result["failed"] and "is also a disk of web1 on hv2" in result["msg"]
    assert ("web1" in lab.node.domains()) is defined


@test_vm.NEEDS_QEMU_IMG
def test_b6_two_stale_definitions_do_not_hold_each_other(lab, disk):
    made, _medium = disk
    lab.peers = {"hv2": test_vm.elsewhere("web1", False, disk=f"file:{made}")}
    assert lab.run(name="web1", state="absent", remove_disks=True)["actions"] == ["undefine web1", f"delete {made}"]


def test_b7_disks_of_no_pool_hinder_no_removal(lab, tmp_path):
    image = tmp_path / "elsewhere.raw"
    image.write_bytes(b"0" * MIB)
    lab.run(**WEB, disks=[{"type": "file", "format": "raw", "path": str(image)}])
    assert lab.both(name="web1", state="absent", remove_disks=True)["actions"] == ["undefine web1"]
    assert image.stat().st_size == MIB


@test_vm.NEEDS_QEMU_IMG
def test_b8_a_vm_with_snapshots_stays_whole_or_goes_whole(lab, disk):
    """The peer deletes the disk and then fails at the snapshot, which may be somebody's only way back."""
    xml = "<domainsnapshot><name>before</name></domainsnapshot>"
    snapshot = lab.node.connection.lookupByName("web1").snapshotCreateXML(xml, 0)
    for check in (True, False):
        result = lab.run(name="web1", state="absent", remove_disks=True, _ansible_check_mode=check)
        assert result["failed"] and "web1 has snapshots (before)" in result["msg"] and result["changed"] is False
    assert disk[0].exists() and set(lab.node.domains()) == {"web1", "web2"}
    snapshot.delete(0)
    result = lab.both(name="web1", state="absent", remove_disks=True)
    assert result["actions"] == ["undefine web1", f"delete {disk[0]}"] and set(lab.node.domains()) == {"web2"}


@test_vm.NEEDS_QEMU_IMG
def test_b8_a_disk_outlives_a_vm_that_can_not_be_undefined(lab, disk, monkeypatch):
    undefine = lab.node.undefine

    def refuse(name, **_how):
        raise Failed(f"cannot undefine domain {name} with nvram")

    monkeypatch.setattr(lab.node, "undefine", refuse)
    result = lab.run(name="web1", state="absent", remove_disks=True)
    assert result["failed"] and "with nvram" in result["msg"] and result["changed"] is False
    assert disk[0].exists() and lab.node.domain("web1")
    monkeypatch.setattr(lab.node, "undefine", undefine)
    assert lab.run(name="web1", state="absent", remove_disks=True)["changed"] and not disk[0].exists()


@test_vm.NEEDS_QEMU_IMG
def test_b8_a_removal_that_was_cut_off_after_the_definition_is_finished(lab, disk):
    lab.node.undefine("web1")
    assert lab.both(name="web1", state="absent", remove_disks=True)["actions"] == [f"delete {disk[0]}"]


@test_vm.NEEDS_QEMU_IMG
@pytest.mark.parametrize("check", [True, False])
def test_b9_a_disk_is_not_made_smaller_and_check_mode_says_so(lab, disk, check):
    lab.run(name="web1", disks=[{**LOCAL, "size": "4MiB"}])
    result = lab.run(name="web1", disks=[{**LOCAL, "size": "2MiB"}], _ansible_check_mode=check)
    assert "cut off what is in it" in result["msg"] and disk[0].stat().st_size == 4 * MIB
