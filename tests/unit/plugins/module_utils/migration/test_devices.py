# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM's block devices are, as the other node is asked for them."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _lvm
from ansible_collections.drover.kvm.plugins.module_utils._blocks import Blocks
from ansible_collections.drover.kvm.plugins.module_utils._disks import block
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._migration import devices, ends, locks
from ansible_collections.drover.kvm.plugins.module_utils._migration.order import Order
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.tests.unit.devices_fake import WWID, Devices
from ansible_collections.drover.kvm.tests.unit.lvm_fake import MIB, Groups

ONE = "/dev/san/vms1"
ORDER = Order(id="1", kind="live", vm="web1", uuid="u1", source="hv1", target="hv2", here="hv1")


@pytest.fixture
def node(tmp_path, monkeypatch):
    found = Devices(tmp_path / "root")
    found.add("sdb", "8:16", ["san/vms1"], udev=WWID)
    for module in (block, devices):
        monkeypatch.setattr(module, "Blocks", partial(Blocks, found.root))
    return found


def read(path):
    disk = parse(f"<disk type='block' device='disk'><source dev='{path}'/><target dev='vda'/></disk>")
    (found,) = devices.read([disk, parse("<disk type='file'><source file='/a'/></disk>")], _lvm.Lvm())
    return found


def test_a_lun_is_its_wwid_over_one_path_or_two(node):
    what = {"identity": WWID, "size": 64 * MIB, "disks": [(WWID, 64 * MIB)]}
    assert read(ONE) == {"target": "vda", "path": ONE, **what, "lock": "", "fault": ""}
    node.add("dm-0", "254:0", [], uuid=f"mpath-{WWID}", label="web1")
    (node.root / "dev/mapper/web1").symlink_to(node.root / "dev/dm-0")
    assert read("/dev/mapper/web1")["identity"] == WWID


def test_a_device_that_is_gone_has_no_wwid(node):
    assert read("/dev/san/gone")["disks"] == [(None, 0)]


def test_a_partition_has_no_size_to_compare(node):
    (node.root / "sys/class/block/sdb/partition").write_text("1")
    assert read(ONE)["disks"] == [(WWID, 0)] and read(ONE)["size"] == 0


@pytest.mark.parametrize("shared, lock, fault", [(True, "vmsan/web1", ""), (False, "", "vmsan is not shared")])
def test_a_logical_volume_lies_on_the_disks_of_its_group(node, monkeypatch, shared, lock, fault):
    fake = Groups({ONE: 65 * MIB})
    fake.vgcreate(["--shared", "vmsan", ONE] if shared else ["vmsan", ONE])
    monkeypatch.setattr(_lvm, "run", fake.run)
    monkeypatch.setattr(
        _lvm, "run_json", lambda argv: {"report": [{"lv": []}]} if argv[0] == "lvs" else fake.report(argv)
    )
    found = read("/dev/vmsan/web1")
    assert found["identity"] == "LVM-UUIDvmsan" and found["disks"] == [(WWID, 64 * MIB)]
    assert found["lock"] == lock and fault in found["fault"]


def test_a_lun_that_is_named_like_a_logical_volume_is_its_wwid_too(node):
    (node.root / "dev/shop").mkdir()
    (node.root / "dev/shop/db1").symlink_to(node.root / "dev/sdb")
    assert read("/dev/shop/db1") == {**read(ONE), "path": "/dev/shop/db1"}


def test_a_node_without_the_group_says_so(node, monkeypatch):
    monkeypatch.setattr(_lvm, "run_json", Groups({}).report)
    assert "no volume group vmsan" in read("/dev/vmsan/web1")["fault"]


STORAGE = """<device><name>block_{0}</name>{1}<capability type='storage'><block>/dev/{0}</block>{2}<size>{3}</size>
<logical_block_size>{4}</logical_block_size></capability></device>"""


def test_the_paths_of_a_node_are_known_by_the_wwid():
    serial = f"<serial>{WWID}</serial>"
    parts = [
        ("sdb", "<parent>scsi_3_0_0_1</parent>", serial, 4096, 512),
        # libvirt says eight times what it has.
        ("sdc", "<parent>scsi_4_0_0_1</parent>", serial, 8 * 4096, 4096),
        ("vda", "<parent>pci_0</parent>", "", 4096, 512),
    ]
    texts = [STORAGE.format(*words) for words in parts]
    found = [SimpleNamespace(XMLDesc=lambda _flags, text=text: text) for text in texts]
    node = SimpleNamespace(name="hv2", connection=SimpleNamespace(listAllDevices=lambda _flag: found))
    sdb, sdc = ends.End(node).paths()[WWID]
    assert sdb == {"name": "/dev/sdb", "place": "scsi_3_0_0_1", "size": 4096}
    assert sdc == {"name": "/dev/sdc", "place": "scsi_4_0_0_1", "size": 0}


def test_the_hook_shares_the_volumes_and_its_words_say_why_it_can_t(tmp_path, monkeypatch):
    hook = tmp_path / "drover-devices"
    hook.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    hook.chmod(0o755)
    monkeypatch.setattr(locks, "HOOK", str(hook))
    order = Order(**{**vars(ORDER), "devices": [{"lock": "vg0/web1"}, {"lock": ""}, {"lock": "vg0/web2"}]})
    locks.share(order)
    assert (tmp_path / "said").read_text() == "web1 share u1 vg0/web1 vg0/web2\n"
    hook.write_text("#!/bin/sh\necho 'vg0/web1 is held by hv2' >&2\nexit 1\n")
    with pytest.raises(Failed, match="vg0/web1, vg0/web2 can't be shared with hv2: .*vg0/web1 is held by hv2"):
        locks.share(order)
    hook.unlink()
    with pytest.raises(Failed, match="not installed"):
        locks.share(order)
