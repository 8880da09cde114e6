# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that speaks against a migration comes at once."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _node
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect, libvirt
from ansible_collections.drover.kvm.plugins.module_utils._migration import ends, prechecks
from ansible_collections.drover.kvm.plugins.module_utils._migration.prechecks import blockers
from ansible_collections.drover.kvm.tests.unit.rpc import counted

GIB = 2**30
NEED = {
    "name": "vm1",
    "uuid": "u1",
    "running": True,
    "memory": GIB,
    "paged": False,
    "disks": [],
    "bridges": ["br-int"],
    "hostdevs": [],
    "filesystems": [],
    "kept": [],
    "state": [],
    "unmoved": [],
    "snapshots": 0,
    "managed_save": False,
    "copies": [],
    "copying": False,
    "ejecting": False,
    "lease": None,
    "devices": [],
}
ROOM = {"/srv": {"free": 2 * GIB, "names": []}}
SAID = {"silent": "", "taken": [], "domains": {"vm2": "u2"}, "free": 8 * GIB, "against": {}, "room": ROOM}
COPY = {"target": "vda", "path": "/srv/a.raw", "format": "raw", "size": GIB}
DISK = {"target": "vda", "device": "disk", "identity": "file:/a", "shared_storage": False}


def reasons(need=None, said=None, known=None):
    answer = said if isinstance(said, Unreachable) else {**SAID, **(said or {})}
    return [found.reason for found in blockers({**NEED, **(need or {})}, "hv2", answer, known, {})]


def test_nothing_speaks_against_it():
    assert reasons(known={"bridges": [{"name": "br-int"}], "cordon": None}) == []


@pytest.mark.parametrize(
    "need,expected",
    [
        ({"hostdevs": ["PCI device 0000:65:00.0"]}, "hostdev"),
        ({"filesystems": ["share"]}, "filesystem"),
        ({"snapshots": 2}, "snapshots"),
        ({"managed_save": True}, "managed_save"),
        ({"running": False, "unmoved": ["nvram"]}, "state_file"),
        ({"running": False, "unmoved": ["tpm"]}, "state_file"),
        ({"disks": [DISK]}, "local_disk"),
        ({"disks": [{**DISK, "device": "cdrom"}]}, "local_medium"),
        ({"memory": 8 * GIB}, "memory"),
    ],
)
def test_what_the_vm_has(need, expected):
    assert reasons(need) == [expected]


@pytest.mark.parametrize(
    "said,expected",
    [
        ({"silent": "no answer"}, "migration_network"),
        ({"domains": {"vm1": "u9"}}, "exists"),
        ({"domains": {"vm9": "u1"}}, "exists"),
        ({"against": {"u1": {"cpu": "lacks avx2"}}}, "cpu"),
        ({"against": {"u1": {"machine": "not supported"}}}, "machine"),
        ({"against": {"u1": {"secret drover": "none"}}}, "secret"),
        ({"against": {"u1": {"firmware": "it has no UEFI"}}}, "firmware"),
        ({"against": {"u1": {"tpm": "it has no emulated TPM"}}}, "tpm"),
        (Unreachable("no answer"), "unreachable"),
    ],
)
def test_what_the_destination_says(said, expected):
    assert reasons(said=said) == [expected]


VARS = "/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"
KEYS = "/var/lib/libvirt/swtpm/u1/tpm2/tpm2-00.permall"


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("there, expected", [([VARS], 1), ([VARS, KEYS], 2), (["/other"], 0), ([], 0)])
def test_a_file_of_uefi_or_a_tpm_that_is_there_is_somebodys(running, there, expected):
    """Of a VM that is off ours would be refused when it is written; over that of one that runs QEMU would write."""
    found = blockers({**NEED, "running": running, "state": [VARS, KEYS]}, "hv2", {**SAID, "taken": there}, None, {})
    assert [one.reason for one in found] == ["file_exists"] * expected
    assert [one.text for one in found] == [f"hv2 has a file {path} already" for path in there[:expected]]


def test_what_its_facts_tell():
    known = {"bridges": [{"name": "br-ex"}], "cordon": {"since": "now", "by": "alice", "reason": "DIMM"}}
    assert reasons(known=known) == ["cordoned", "bridge"]


LEASE = "/srv/leases/u1"


@pytest.mark.parametrize(
    "lease,room,there,words",
    [
        (None, {}, "", None),
        (LEASE, {"names": ["u1"]}, "/srv/leases", None),
        (LEASE, {}, "", None),
        (LEASE, {"names": ["u1"]}, None, "lease directory is not set"),
        (LEASE, {"names": ["u1"]}, "/srv/other", "lease directory is /srv/other"),
        (LEASE, {"names": ["u2"]}, "/srv/leases", "holds no u1"),
        (LEASE, {"error": "no such folder"}, "/srv/leases", "no such folder"),
    ],
)
def test_the_destination_must_have_the_same_lease(lease, room, there, words):
    said = {**SAID, "room": {"/srv/leases": room}}
    directories = {"hv1": "/srv/leases", "hv2": there} if there != "" else {}
    found = blockers({**NEED, "lease": lease}, "hv2", said, None, directories)
    assert [one.reason for one in found] == (["lease"] if words else [])
    assert words is None or words in found[0].text


def test_all_at_once():
    need = {"hostdevs": ["PCI device 0000:65:00.0"], "disks": [DISK, {**DISK, "device": "cdrom"}], "memory": 9 * GIB}
    said = {"domains": {"vm1": "u9"}, "against": {"u1": {"cpu": "x", "machine": "y"}}}
    found = reasons(need, said, {"cordon": {"since": "now"}})
    assert found == ["hostdev", "local_disk", "local_medium", "exists", "memory", "cpu", "machine", "cordoned"]


@pytest.mark.parametrize(
    "disk",
    [
        {**DISK, "shared_storage": True},
        {**DISK, "device": "cdrom", "identity": None},
        {**DISK, "device": "cdrom", "optional": True},
    ],
)
def test_shared_and_empty_drives_are_fine(disk):
    assert reasons({"disks": [disk]}) == []


def test_huge_pages_are_no_part_of_what_is_free():
    large = {"memory": 64 * GIB, "paged": True}
    assert reasons(large) == [] and reasons(large, {"free": GIB // 16}) == ["memory"]


def test_a_vm_that_is_off_takes_no_memory_there():
    assert reasons({"running": False, "memory": 99 * GIB}) == []


TIED = {"hostdevs": ["PCI device 0000:65:00.0"], "filesystems": ["share"]}


def test_devices_and_folders_of_the_node_are_named():
    texts = [found.text for found in blockers({**NEED, **TIED}, "hv2", SAID, None, {})]
    assert texts == ["it has PCI device 0000:65:00.0 of the node", "it shares folders with the node: share"]


def test_every_reason_has_a_mend():
    need = {**NEED, **TIED, "snapshots": 1, "disks": [DISK], "memory": 9 * GIB}
    for found in blockers(need, "hv2", {**SAID, "domains": {"vm1": "u9"}, "against": {"u1": {"cpu": "x"}}}, None, {}):
        assert found.text and found.mend


def test_file_systems_of_the_network_are_shared(tmp_path, monkeypatch):
    """The facts that plans are made from say the same."""
    monkeypatch.setattr(_node, "MOUNTS", tmp_path / "mounts")
    lines = ["/dev/vda / ext4 rw 0 0", "san:/vms /our\\040vms nfs4 rw 0 0", "ceph-fuse /ceph fuse.ceph rw 0 0"]
    (tmp_path / "mounts").write_text("\n".join([*lines, ""]))
    assert prechecks.shared_mounts() == ["/ceph", "/our vms"]


@pytest.mark.parametrize(
    "room,expected",
    [
        ({"free": 2 * GIB, "names": ["b.raw"]}, []),
        ({"free": GIB, "names": []}, ["room"]),
        ({"free": 2 * GIB, "names": ["a.raw"]}, ["file_exists"]),
        # What an earlier copy left carries a claim, and is replaced.
        ({"free": 2 * GIB, "names": ["a.raw", "a.raw.drover-copy"]}, []),
        ({"error": "no such folder"}, ["folder"]),
    ],
)
def test_what_is_copied_finds_its_place_there(room, expected):
    need = {"disks": [DISK], "copies": [COPY], "copying": True}
    assert reasons(need, {"room": {"/srv": room}}) == expected


def test_two_disks_share_the_room_of_their_folder():
    copies = [COPY, {**COPY, "target": "vdb", "path": "/srv/b.raw"}]
    assert reasons({"copies": copies, "copying": True}) == ["room"]


@pytest.mark.parametrize("need,mend", [({}, "storage=copy"), ({"copying": True, "running": False}, "start it")])
def test_a_local_disk_says_how_it_could_move(need, mend):
    found = blockers({**NEED, "disks": [DISK], **need}, "hv2", SAID, None, {})
    assert found[0].reason == "local_disk" and mend in found[0].mend


LUN = {"target": "vda", "path": "/dev/san/web1", "disks": [("3600a", GIB)], "lock": "", "fault": ""}
# Over two sessions.
PATHS = [
    {"name": "/dev/sdb", "place": "scsi_3_0_0_1", "size": GIB},
    {"name": "/dev/sdc", "place": "scsi_4_0_0_1", "size": GIB},
]


@pytest.mark.parametrize(
    "device, words",
    [
        ({}, None),
        ({"disks": [("3600a", GIB), ("3600b", GIB)]}, "(3600b)"),
        ({"disks": [(None, 0)]}, "(no WWID)"),
        ({"disks": [("3600a", 2 * GIB)]}, "web1 has 2GiB, on hv2 1GiB"),
        ({"disks": [("3600c", 2 * GIB)]}, None),
        # A part of a disk.
        ({"disks": [("3600a", 0)]}, None),
        ({"fault": "volume group vg0 is not shared between nodes"}, "not shared"),
        ({"lock": "vmsan/web1"}, None),
    ],
)
def test_a_device_is_known_there_by_its_wwid(device, words):
    disk = {**DISK, "identity": "block:/dev/san/web1"}
    said = {**SAID, "paths": {"3600a": PATHS, "3600c": [{**PATHS[0], "size": 0}]}}
    found = blockers({**NEED, "disks": [disk], "devices": [{**LUN, **device}]}, "hv2", said, None, {})
    assert [one.reason for one in found] == (["local_disk"] if words else [])
    assert words is None or words in found[0].text


@pytest.mark.parametrize(
    "change, words",
    [
        # A path that is down has the size from before.
        ({"size": GIB // 2}, None),
        ({"place": "scsi_4_0_0_2"}, None),
        ({"place": "pci_0000_00_07_0"}, None),
        ({"place": "scsi_3_0_0_2"}, "hv2 has two volumes of the WWID 3600a, /dev/sdb and /dev/sdc"),
    ],
)
def test_two_volumes_of_one_wwid_are_not_taken_for_two_paths(change, words):
    said = {**SAID, "paths": {"3600a": [PATHS[0], {**PATHS[1], **change}]}}
    found = blockers({**NEED, "devices": [LUN]}, "hv2", said, None, {})
    assert [words in one.text for one in found] == ([True] if words else [])


class Older:
    """A node whose QEMU does not know the machine type; of the CPU it can say no more than that."""

    def refuses_machine(self, need):
        return {"machine": "the machine 'pc-q35-10.0' is not supported"}

    def refuses_cpu(self, need):
        return "the machine 'pc-q35-10.0' is not supported"


def test_a_machine_type_that_is_not_there_is_one_reason_and_not_two():
    need = {"running": True, "cpu": "<cpu/>", "passthrough": False, "secrets": []}
    assert list(prechecks._against(Older(), need)) == ["machine"]


OURS = "7d4da458-de51-4138-9921-aae15234a969"
DOMAIN = f"<domain type='test'><name>vm1</name><uuid>{OURS}</uuid><memory>1024</memory><os>{{}}</os></domain>"
PLAIN, EFI = "<type>hvm</type>", "<type>hvm</type><loader type='pflash'>/x.fd</loader><nvram>/y.fd</nvram>"


@pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
@pytest.mark.parametrize("machine, capabilities", [(PLAIN, 1), (EFI, 2)])
def test_what_a_vm_is_made_of_is_asked_once(monkeypatch, machine, capabilities):
    with connect("test:///default") as node:
        node.connection.defineXML(DOMAIN.format(machine))
        calls = counted(monkeypatch)
        found = prechecks.traits(ends.End(node), OURS)
    assert found["name"] == "vm1" and found["kept"] == found["state"] == []
    asked = {"XMLDesc": 1, "State": 1, "Capabilities": capabilities, "SnapshotNum": 1}
    assert {call: sum(count for name, count in calls.items() if name.endswith(call)) for call in asked} == asked, calls
