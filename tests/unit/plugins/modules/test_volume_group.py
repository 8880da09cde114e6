# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module volume_group on fakes of LVM's commands and of sysfs."""

from __future__ import annotations

import builtins
import json
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _lvm
from ansible_collections.drover.kvm.plugins.module_utils._blocks import Blocks
from ansible_collections.drover.kvm.plugins.module_utils._disks import block
from ansible_collections.drover.kvm.plugins.modules import volume_group
from ansible_collections.drover.kvm.tests.unit.devices_fake import Devices
from ansible_collections.drover.kvm.tests.unit.lvm_fake import MIB, Groups

ONE, TWO = "/dev/san/vms1", "/dev/san/vms2"


class Node:
    """A node with two volumes of the SAN; `run` is the module."""

    def __init__(self, root, capsys):
        self.capsys = capsys
        self.devices = Devices(root)
        for number, name in enumerate(("sdb", "sdc")):
            self.devices.add(name, f"8:{number}", [f"san/vms{number + 1}", f"mapper/vms{number + 1}"])
            (root / "dev" / name).write_bytes(bytes(MIB))
        self.lvm = Groups({ONE: 65 * MIB, TWO: 65 * MIB})

    def run(self, **args):
        with patch_module_args({"name": "vmsan", **args}), pytest.raises(SystemExit):
            volume_group.main()
        return json.loads(self.capsys.readouterr().out)

    def both(self, **args):
        before = json.dumps(self.lvm.groups)
        predicted = self.run(**args, _ansible_check_mode=True)
        assert json.dumps(self.lvm.groups) == before
        real = self.run(**args)
        assert not real.get("failed"), real["msg"]
        assert real["actions"] == predicted["actions"]
        assert self.run(**args)["changed"] is False
        return real

    def refused(self, *words, **args):
        before = json.dumps([self.lvm.groups, self.lvm.carried])
        result = self.run(**args)
        assert result.get("failed") and all(word in result["msg"] for word in words), result
        assert json.dumps([self.lvm.groups, self.lvm.carried]) == before


@pytest.fixture
def node(tmp_path, monkeypatch, capsys):
    root = tmp_path / "root"
    found = Node(root, capsys)
    for place in (block, volume_group):
        monkeypatch.setattr(place, "Blocks", partial(Blocks, root))
    monkeypatch.setattr(_lvm, "run", found.lvm.run)
    monkeypatch.setattr(_lvm, "run_json", found.lvm.report)
    real = builtins.open
    monkeypatch.setattr(_lvm, "open", lambda path, mode: real(root / path.lstrip("/"), mode), raising=False)
    return found


def test_a_group_from_nothing_to_nothing(node):
    made = node.both(devices=[ONE])
    assert made["actions"] == [f"make volume group vmsan on {ONE}"] and made["group"]["size"] == 64 * MIB
    grown = node.both(devices=[ONE, TWO])
    assert grown["actions"] == [f"add {TWO} to volume group vmsan"] and grown["group"]["size"] == 128 * MIB
    assert node.both(state="absent")["group"] is None
    assert node.lvm.groups == {} and node.lvm.carried == {}


def test_a_device_has_several_names(node):
    node.both(devices=[ONE])
    assert node.run(devices=["/dev/mapper/vms1"])["changed"] is False


def test_a_device_that_became_bigger_is_used_whole(node):
    node.both(devices=[ONE])
    node.lvm.sizes[ONE] += 3 * MIB
    assert node.run()["changed"] is False, "less than an extent"
    node.lvm.sizes[ONE] += MIB
    assert node.both()["actions"] == [f"take the new size of {ONE}"]
    assert node.lvm.groups["vmsan"]["devices"][ONE] == 68 * MIB


def test_a_shared_group_is_made_once_and_joined(node):
    assert node.both(devices=[ONE], shared=True)["group"]["locks"] is True
    node.lvm.groups["vmsan"]["started"] = False
    assert node.both(devices=[ONE], shared=True)["actions"] == ["join the locks of volume group vmsan"]
    node.refused("can't be changed", shared=False)


@pytest.mark.parametrize("kind", ["ext4", "dos", "LVM2_member"])
def test_a_device_that_carries_something_is_refused(node, kind):
    node.lvm.carried[ONE] = kind
    node.refused(f"{ONE} carries {kind}", devices=[ONE])


def test_what_no_tool_knows_is_refused_too(node):
    (node.devices.root / "dev/sdb").write_bytes(bytes(4096) + b"oracle")
    node.refused("carries data of an unknown kind", devices=[ONE])


def test_a_device_in_use_or_with_another_name_is_refused(node):
    node.refused("write /dev/san/vms1", devices=["/dev/sdb"])
    node.refused("no block device of this node", devices=["/dev/san/vms9"])
    (node.devices.root / "proc/self/mountinfo").write_text("1 1 8:0 / /srv rw - ext4 /dev/sdb rw\n")
    node.refused("in use: the mount /srv", devices=[ONE])


def test_no_device_is_taken_out(node):
    node.both(devices=[ONE, TWO])
    node.refused(f"pvmove {TWO}", devices=[ONE])


def test_a_group_with_volumes_or_of_others_stays(node):
    node.both(devices=[ONE])
    node.lvm.groups["vmsan"]["volumes"] = 2
    node.refused("holds 2 volume(s)", state="absent")
    node.lvm.groups["vmsan"].update(volumes=0, tags=[])
    node.refused("not made by this module", state="absent")


def test_whether_a_group_on_the_san_is_shared_is_said(node):
    node.devices.by_iscsi("sdc", "iqn.2026-11.org.example:vms2", 1)
    node.refused(f"{TWO} is a volume of a SAN", "say shared: true", devices=[ONE, TWO])
    assert node.both(devices=[ONE, TWO], shared=False)["group"]["shared"] is False
    assert node.run(devices=[TWO, ONE])["changed"] is False, "what is there need not be said again"


def test_a_new_group_needs_devices(node):
    node.refused("there is no volume group vmsan")
    assert node.run(state="absent")["changed"] is False


@pytest.fixture
def shared(node):
    node.both(devices=[ONE], shared=True)
    return node


@pytest.mark.parametrize("others", [{}, {"hv2": (0, "FREE")}, {"hv2": (900, "DEAD")}], ids=["none", "left", "dead"])
def test_a_shared_group_that_the_others_left_is_removed(shared, others):
    shared.lvm.others = others
    assert shared.both(state="absent")["actions"] == ["remove volume group vmsan"]
    assert shared.lvm.groups == {} and shared.lvm.carried == {} and shared.lvm.written == set()


@pytest.mark.parametrize("state", ["LIVE", "FAIL", "UNKNOWN"])
def test_a_shared_group_that_another_node_has_stays(shared, state):
    shared.lvm.others = {"hv2": (1240, state), "hv3": (0, "FREE")}
    shared.refused("still shared with hv2:", "vgchange --lock-stop vmsan", state="absent")


def test_a_shared_group_is_removed_by_a_node_that_takes_part_in_its_locks(shared):
    shared.lvm.groups["vmsan"]["started"] = False
    shared.refused("vgchange --lock-start vmsan", state="absent")
