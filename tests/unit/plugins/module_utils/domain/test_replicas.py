# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replica is written, which one counts, and with what a VM starts from it."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import replicas
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid

MIB = 2**20
OLD, NEW, NOW = "2026-11-20T03:00:00Z", "2026-11-21T03:00:00Z", "2026-11-21T04:01:02Z"
SECOND = {"iqn_prefix": "iqn.2026-11.org.example", "portal": "10.231.7.10:3260", "user": "drover", "secret": "san2"}
SHEET = {
    "name": "db1",
    "disks": [
        {"type": "iscsi", "size": 32 * MIB},
        {"type": "file", "device": "cdrom", "path": "/srv/x.iso"},
        {"type": "file", "size": 64 * MIB},
    ],
}


def record(slot, whole=True, time=NEW, vm="db1"):
    return {"vm": vm, "slot": slot, "whole": whole, "time": time if whole else None, "uuid": "U", "sheet": {"name": vm}}


A, B = record("a", time=OLD), record("b", time=NEW)


@pytest.mark.parametrize(
    "records,written,counts",
    [
        ([], "a", None),
        ([A], "b", "a"),
        ([A, B], "a", "b"),
        ([B, A], "a", "b"),
        # A run was cut off while it wrote: the other one counts, and the torn one is written again.
        ([record("a", whole=False), B], "a", "b"),
        ([A, record("b", whole=False)], "b", "a"),
        ([record("a", whole=False)], "a", None),
        # One node has not heard that its replica is being written; nor that it was written anew.
        ([A, B, A, record("b", whole=False)], "b", "a"),
        ([record("a", time=OLD), record("b", time="2026-11-20T15:00:00Z"), record("a", time=NEW)], "b", "a"),
        ([record("a", vm="web1")], "a", None),
    ],
)
def test_there_always_is_a_whole_replica(records, written, counts):
    assert replicas.next_slot(records, "db1") == written
    chosen = replicas.choose(records, ["db1"], NOW)[0]
    assert chosen["slot"] == counts and counts != written


def test_the_age_of_the_data_is_told():
    assert replicas.choose([A, B], ["db1", "web1"], NOW) == [
        {"name": "db1", "slot": "b", "time": NEW, "age": 3662, "sheet": {"name": "db1"}},
        {"name": "web1", "slot": None, "time": None, "age": None, "sheet": None},
    ]
    with pytest.raises(ValueError, match="is not a moment"):
        replicas.choose([A], ["db1"], "yesterday")


def test_each_disk_has_a_volume_of_its_own():
    (item,) = replicas.plan([SHEET], [A], SECOND)
    assert item["record"] == {"vm": "db1", "slot": "b", "whole": False}
    place = {"portal": "10.231.7.10:3260", "user": "drover", "secret": "san2"}
    assert item["vm"] == {
        "name": "db1",
        "slot": "b",
        "disks": [
            {"target": "vda", "iqn": "iqn.2026-11.org.example:replica-db1-0-b", **place},
            {"target": "vdb", "iqn": "iqn.2026-11.org.example:replica-db1-1-b", **place},
        ],
    }
    volume = item["volumes"][1]
    assert (volume["name"], volume["size"], volume["iqn"]) == (
        "replica-db1-1-b",
        64 * MIB,
        item["vm"]["disks"][1]["iqn"],
    )
    assert volume["initiators"] == ["iqn.2026-01.org.drover:vm-db1"] and volume["owner"] == "db1"


@pytest.mark.parametrize(
    "sheet,settings,words",
    [
        (SHEET, {**SECOND, "portal": ""}, "portal of the second SAN is missing"),
        (SHEET, {**SECOND, "user_name": "x"}, "no setting user_name"),
        ({"name": "db1", "disks": [{"type": "iscsi"}]}, SECOND, "has no size"),
    ],
)
def test_what_is_missing_is_named(sheet, settings, words):
    with pytest.raises(Invalid, match=words):
        replicas.plan([sheet], [], settings)


KEPT = ("target", "bus", "serial", "rotation_rate", "boot_order", "discard", "iops")


def test_a_vm_starts_as_it_was_with_the_disks_of_the_replica():
    disk = {
        "type": "file",
        "target": "vda",
        "device": "disk",
        "bus": "scsi",
        "serial": "S",
        "rotation_rate": 1,
        "boot_order": 1,
        "discard": "unmap",
        "iops": {"total": 500},
        "cache": "none",
        "io": "native",
        "path": "/a",
        "format": "qcow2",
    }
    media = {"type": "file", "target": "sda", "device": "cdrom", "path": "/srv/x.iso"}
    sheet = {"name": "db1", "uuid": "U", "state": "stopped", "disks": [disk, media]}
    copy = {"type": "iscsi", "format": "raw", "iqn": "I"}
    assert replicas.sheet_of(sheet, {"vda": copy}) == {
        "name": "db1",
        "uuid": "U",
        "state": "running",
        "disks": [{**{key: disk[key] for key in KEPT}, **copy}],
    }
