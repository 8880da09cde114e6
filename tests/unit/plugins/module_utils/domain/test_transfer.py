# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that shall lie in another file: what is decided."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks.landing import Place
from ansible_collections.drover.kvm.plugins.module_utils._domain import transfer
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import source_xml
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import names_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.transfer import Disk
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

MIB = 2**20
OLD = Disk("vda", "file:/old/a.qcow2", "qcow2", None, False, "file:/old/a.qcow2")
NEW = Place("file:/new/a.raw", "raw", False, False, 500 * MIB)
LEFT = NEW._replace(exists=True, unfinished=True)
HOME = Place("file:/old/a.qcow2", "qcow2", True, False, 500 * MIB)
UNIT = "iscsi:iqn.2026-11.org.example:a/1@10.0.0.1:3260"
LUN = Place(UNIT, "raw", True, size=400 * MIB)
IMAGE = Place("rbd:F/vms/a", "raw", False)
FILE = OLD._replace(options={"type": "file"})
XML = """<domain><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/a.qcow2'/>
    {mirror}<target dev='vda'/></disk>
  <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda'/></disk>
</devices></domain>"""
MIRROR = "<mirror type='file' job='copy'{ready}><format type='raw'/><source file='/new/a.raw'/></mirror>"


@pytest.mark.parametrize(
    "disk,place,expected",
    [
        (OLD, NEW, ["copy", "pivot"]),
        (OLD._replace(identity="iscsi:iqn.x/1@10.0.0.1:3260"), NEW, ["copy", "pivot"]),
        # A run was cut off, and the copy goes on in QEMU.
        (OLD._replace(copy="file:/new/a.raw"), LEFT, ["copy", "pivot"]),
        (OLD._replace(copy="file:/other/a.raw"), NEW, ["abort", "copy", "pivot"]),
        # ... and it is wanted no more.
        (OLD._replace(copy="file:/new/a.raw"), HOME, ["abort"]),
        # QEMU has ended meanwhile: nobody writes to what was copied.
        (OLD, LEFT, ["clear", "copy", "pivot"]),
        (OLD, HOME, []),
        # Cut off between the change and its note.
        (OLD._replace(identity="file:/new/a.raw", format="raw"), LEFT, ["finish"]),
        # A volume of the SAN is there beforehand.
        (FILE, LUN, ["copy", "pivot"]),
        (FILE._replace(copy=UNIT), LUN._replace(size=None), ["copy", "pivot"]),
        (FILE, LUN._replace(size=404 * MIB), ["grow", "copy", "pivot"]),
        (FILE._replace(identity=UNIT, format="raw"), LUN._replace(size=None), []),
        (OLD, IMAGE, ["copy", "pivot"]),
        (OLD, IMAGE._replace(exists=True, unfinished=True), ["clear", "copy", "pivot"]),
    ],
)
def test_verbs(disk, place, expected):
    assert transfer.verbs(disk, place, 400 * MIB) == expected


@pytest.mark.parametrize(
    "place,error,words",
    [
        (NEW._replace(exists=True), Refused, "is there already"),
        (NEW._replace(free=419 * MIB), Refused, "does not fit"),
        (HOME._replace(format="raw"), Invalid, "another format needs another path"),
        (LUN._replace(size=396 * MIB), Refused, "does not fit: .* has 396MiB"),
        # The disk lies on something that only its own SAN can make bigger.
        (LUN._replace(size=404 * MIB), Refused, "only the same size"),
        (LUN._replace(blank=False), Refused, "is not empty"),
        (IMAGE._replace(exists=True), Refused, "is there already"),
    ],
)
def test_what_is_refused(place, error, words):
    with pytest.raises(error, match=words):
        transfer.verbs(OLD, place, 400 * MIB)


@pytest.mark.parametrize("ready", ["", " ready='yes'"])
def test_disks_as_they_run(ready):
    live, defined = parse(XML.format(mirror=MIRROR.format(ready=ready))), parse(XML.format(mirror=""))
    found = transfer.disks(live, defined)
    assert found["vda"]._replace(options=None, copied=None) == OLD._replace(copy="file:/new/a.raw", ready=bool(ready))
    assert found["vda"].copied["path"] == "/new/a.raw" and found["vda"].options["path"] == "/old/a.qcow2"
    assert found["sda"].identity is None
    assert transfer.disks(defined, defined)["vda"]._replace(options=None) == OLD


def test_data_is_overwritten_only_when_that_was_asked_for():
    full = LUN._replace(blank=False)
    assert transfer.verbs(FILE, full, 400 * MIB, overwrite=True) == ["copy", "pivot"]


GIVEN = dict.fromkeys(("format", "path", "iqn", "lun", "portal", "initiator", "user", "secret", "pool", "monitors"))
ISCSI = {**GIVEN, "type": "iscsi", "iqn": "iqn.2026-11.org.example:a", "portal": "10.0.0.1:3260"}


@pytest.mark.parametrize(
    "given,words",
    [
        ({"type": "iscsi", "iqn": None}, "iqn is missing"),
        ({"type": "iscsi", "format": "qcow2"}, "has the format raw"),
        ({"type": "iscsi", "user": "drover"}, "user and secret go together"),
        ({"type": "file"}, "path is missing"),
        ({"type": "rbd"}, "pool is missing"),
        ({"type": "rbd", "pool": "vms"}, "monitors"),
    ],
)
def test_a_destination_that_is_not_told_whole(given, words):
    with pytest.raises(Invalid, match=f"vda: .*{words}"):
        transfer.filled({**ISCSI, **given}, OLD, "web1")


def test_a_destination_is_what_module_vm_would_make_of_it():
    found = transfer.filled({**ISCSI, "user": "drover", "secret": "san1"}, OLD, "web1")
    assert (found["lun"], found["initiator"]) == (1, "iqn.2026-01.org.drover:vm-web1")
    xml = source_xml(found)
    assert "name='iqn.2026-11.org.example:a/1'" in xml and "usage='san1'" in xml and "<target" not in xml
    assert transfer.filled({**GIVEN, "type": "file", "path": "/a"}, OLD, "web1")["format"] == "qcow2"


PORTALS = ("10.0.0.1:3260", "10.0.7.1:3260")
ONE, OTHER = (f"{UNIT.partition('@')[0]}@{portal}" for portal in PORTALS)


@pytest.mark.parametrize("other", ["file:/old/b.raw", "file:/new/b.raw"])
def test_two_disks_need_two_places(other):
    known = {"vda": OLD, "vdb": OLD._replace(target="vdb", identity="file:/old/b.raw", defined=None)}
    transfer.check_twins({"vda": "file:/new/a.raw", "vdb": "file:/new/b.raw"}, known, "web1", names_of)
    with pytest.raises(Refused, match="where vda of web1 shall lie, is for vdb"):
        transfer.check_twins({"vda": other, "vdb": "file:/new/b.raw"}, known, "web1", names_of)


def test_a_volume_over_another_portal_is_the_same_volume():
    known = {"vda": OLD._replace(identity=ONE, defined=ONE), "vdb": OLD._replace(target="vdb")}
    transfer.check_twins({"vda": ONE}, known, "web1", names_of)
    with pytest.raises(Refused, match="vda of web1 is .*, which .* is too, by another name"):
        transfer.check_twins({"vda": OTHER}, known, "web1", names_of)
    with pytest.raises(Refused, match="where vdb of web1 shall lie, is for vda"):
        transfer.check_twins({"vdb": OTHER}, known, "web1", names_of)


@pytest.mark.parametrize(
    "disks,words",
    [
        ({}, "has no disk vda"),
        ({"vda": OLD._replace(identity=None)}, "empty drive"),
        ({"vda": OLD._replace(defined="file:/b")}, "power it off and on"),
    ],
)
def test_which_disk_is_meant(disks, words):
    with pytest.raises((Invalid, Refused), match=words):
        transfer.check_options({"target": "vda"}, disks, "web1")
