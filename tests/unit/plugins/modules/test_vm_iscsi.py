# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of module vm to which QEMU itself logs in: which volume it is, and whether the node's kernel uses it."""

from __future__ import annotations

from contextlib import closing
from unittest.mock import Mock

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks import block, iscsi
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.plugins.module_utils._volume_rules import tgt_wwid
from ansible_collections.drover.kvm.tests.unit.devices_fake import WWID, installed
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import SAN, WEB, lab
from ansible_collections.drover.kvm.tests.unit.tgt_server import PREFIX, PrivateSan, missing

__all__ = ["lab"]

OTHER = "36001405ee27ff29e2f44851b1dc257ca"
DISK = {**SAN, "user": "drover", "secret": "san1"}
SHEET = {**WEB, "disks": [{**DISK, "wwid": WWID}]}
UNIT = f"{SAN['iqn']}/1"


class Array:
    """What libiscsi is told: the WWIDs of the unit, unless its `login` fails; `logins` are those that were made."""

    def __init__(self):
        self.says = [WWID]
        self.login = Mock()
        self.logins = []

    def wwids(self, login):
        self.logins.append(login)
        self.login()
        return self.says


@pytest.fixture
def array(monkeypatch):
    found = Array()
    monkeypatch.setattr(iscsi, "wwids", found.wwids)
    monkeypatch.setattr(Node, "password", lambda _self, kind, usage: f"{kind}-{usage}-password")
    return found


@pytest.fixture
def devices(lab, tmp_path, monkeypatch):
    return installed(tmp_path / "root", monkeypatch, block, iscsi)


def test_the_unit_is_asked_before_a_start_as_the_vm_would_log_in(lab, array):
    made = lab.both(**SHEET)
    assert made["vm"]["disks"][0]["wwid"] == WWID and array.logins == [], "it is asked before a start, not before"
    assert lab.both(name="web1", state="running")["changed"]
    (login, *_more) = array.logins
    assert (login.portal, login.target, login.lun) == (SAN["portal"], SAN["iqn"], 1)
    assert login.initiator == "iqn.2026-01.org.drover:vm-web1"
    assert (login.user, login.password) == ("drover", "iscsi-san1-password")
    lab.both(name="web1", state="paused")
    array.says = [OTHER]
    assert lab.both(name="web1", state="running")["actions"] == ["resume web1"], "it has the unit open already"


@pytest.mark.parametrize(
    "says, words",
    [
        ([OTHER], f"{UNIT} is the volume {OTHER}, not {WWID}: the array maps another volume there"),
        ([], f"is the volume of no WWID, not {WWID}"),
        (Unreachable("Authentication failure(513)"), f"whether it is the volume {WWID}: Authentication failure"),
        (NotFound("libiscsi is not installed here"), "could not be asked whether it is the volume"),
    ],
)
def test_a_start_on_another_volume_is_refused(lab, array, says, words):
    lab.both(**SHEET)
    if isinstance(says, Exception):
        array.login.side_effect = says
    else:
        array.says = says
    for check in (True, False):
        result = lab.run(name="web1", state="running", _ansible_check_mode=check)
        assert result["error"] == "Refused" and words in result["msg"], result["msg"]
        assert lab.node.domains()["web1"].state == "stopped" and "password" not in result["msg"]


def test_what_is_declared_is_kept_changed_and_forgotten(lab, array):
    plain = {**WEB, "disks": [DISK]}
    lab.both(**plain, state="running")
    assert array.logins == []
    assert lab.both(**SHEET)["actions"] == [
        f"change web1: disk vda wwid none -> {WWID}",
        "change the declared WWIDs of web1 as it runs",
    ]
    assert lab.both(**SHEET)["pending_restart"] == []
    assert lab.both(**plain)["vm"]["disks"][0]["wwid"] == WWID, "what is not given stays"
    changed = lab.both(**{**WEB, "disks": [{**DISK, "wwid": OTHER.upper()}]})
    assert changed["vm"]["disks"][0]["wwid"] == OTHER and changed["pending_restart"] == []
    lab.both(**{**WEB, "disks": [{**DISK, "wwid": ""}]})
    assert "wwid=" not in lab.node.domains()["web1"].xml
    lab.both(name="web1", state="stopped", force=True)
    array.says = [OTHER]
    assert lab.both(name="web1", state="running")["changed"]


def test_a_disk_that_goes_takes_its_record_along(lab, array):
    lab.both(**SHEET)
    lab.both(**{**WEB, "disks": []})
    assert WWID not in lab.node.domains()["web1"].xml
    lab.both(**{**WEB, "disks": [{**DISK, "lun": 2}]}, state="running")
    assert array.logins == []


@pytest.mark.parametrize("wwid", ["36001405", f"naa.{WWID[1:]}", WWID[1:]])
def test_what_is_no_wwid_is_refused(lab, wwid):
    assert "is not a WWID" in lab.run(**{**WEB, "disks": [{**DISK, "wwid": wwid}]})["msg"]


def test_a_disk_that_is_named_by_what_it_is_has_none(lab, devices):
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    result = lab.run(**{**WEB, "disks": [{"type": "block", "path": "/dev/san/web1", "wwid": WWID}]})
    assert result["error"] == "Invalid" and "disk vda: wwid is for disks of type iscsi" in result["msg"]


def test_a_vm_whose_node_logged_in_to_the_same_volume_by_another_name_is_found(lab, array, devices):
    devices.add("sdb", "8:16", ["san/web1"], udev=WWID)
    lab.both(**{**WEB, "name": "db1", "nics": [], "disks": [{"type": "block", "path": "/dev/san/web1"}]})
    assert f"disk device:{WWID} of web1 belongs to db1 on this node" in lab.run(**SHEET)["msg"]


@pytest.mark.parametrize("disk", [DISK, SHEET["disks"][0]])
def test_a_unit_that_the_nodes_own_kernel_uses_is_refused(lab, array, devices, disk):
    devices.add("sdb", "8:16")
    devices.by_iscsi("sdb", SAN["iqn"], 1)
    sheet = {**WEB, "disks": [disk]}
    lab.both(**sheet)
    (devices.root / "proc/self/mountinfo").write_text("1 1 8:16 / /srv rw - ext4 /dev/sdb rw\n")
    refused = lab.run(**sheet, state="running")
    assert refused["error"] == "Refused" and f"{UNIT} is in use on this node: the mount /srv" in refused["msg"]
    (devices.root / "proc/self/mountinfo").write_text("")
    assert lab.both(**sheet, state="running")["changed"]


@pytest.mark.skipif(missing() != [], reason=f"not here: {missing()}")
def test_two_units_of_a_real_target_that_are_exchanged_are_noticed(lab):
    serials = ["00c0ffee00c0ffee", "00c0ffee00c0fff0"]
    with closing(PrivateSan()) as san:
        san.admin("new", "target", "-T", f"{PREFIX}:array")
        san.admin("bind", "target", "--initiator-address", "127.0.0.1")
        for lun, serial in enumerate(serials, start=1):
            san.add_unit(lun, serial)
        disk = {"type": "iscsi", "iqn": f"{PREFIX}:array", "portal": f"127.0.0.1:{san.port}"}
        sheet = {**WEB, "disks": [{**disk, "lun": 1, "wwid": tgt_wwid(serials[0])}]}
        assert lab.both(**sheet, state="running")["changed"]
        lab.both(name="web1", state="stopped", force=True)
        for lun in (1, 2):
            san.admin("delete", "logicalunit", "--lun", str(lun))
        for lun, serial in enumerate(reversed(serials), start=1):
            san.add_unit(lun, serial)
        refused = lab.run(name="web1", state="running")
        assert tgt_wwid(serials[1]) in refused["msg"] and f"not {tgt_wwid(serials[0])}" in refused["msg"]
        moved = {**sheet, "disks": [{**disk, "lun": 2, "target": "vdb", "wwid": tgt_wwid(serials[0])}]}
        assert lab.both(**moved, state="running")["changed"], "there it is now"
