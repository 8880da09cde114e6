# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that shall lie in another file: what is decided."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import transfer
from ansible_collections.drover.kvm.plugins.module_utils._domain.transfer import Disk, Place
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

MIB = 2**20
OLD = Disk("vda", "file:/old/a.qcow2", "qcow2", None, False, "file:/old/a.qcow2")
NEW = Place("/new/a.raw", "raw", False, False, 500 * MIB)
LEFT = NEW._replace(exists=True, unfinished=True)
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
        (OLD._replace(copy="/new/a.raw"), LEFT, ["copy", "pivot"]),
        (OLD._replace(copy="/other/a.raw"), NEW, ["abort", "copy", "pivot"]),
        # ... and it is wanted no more.
        (OLD._replace(copy="/new/a.raw"), Place("/old/a.qcow2", "qcow2", True, False, 0), ["abort"]),
        # QEMU has ended meanwhile: nobody writes to what was copied.
        (OLD, LEFT, ["clear", "copy", "pivot"]),
        (OLD, Place("/old/a.qcow2", "qcow2", True, False, 0), []),
        # Cut off between the change and its note.
        (OLD._replace(identity="file:/new/a.raw", format="raw"), LEFT, ["finish"]),
    ],
)
def test_verbs(disk, place, expected):
    assert transfer.verbs(disk, place, 400 * MIB) == expected


@pytest.mark.parametrize(
    "place,error,words",
    [
        (NEW._replace(exists=True), Refused, "is there already"),
        (NEW._replace(free=419 * MIB), Refused, "does not fit"),
        (Place("/old/a.qcow2", "raw", True, False, 500 * MIB), Invalid, "another format needs another path"),
    ],
)
def test_what_is_refused(place, error, words):
    with pytest.raises(error, match=words):
        transfer.verbs(OLD, place, 400 * MIB)


@pytest.mark.parametrize("ready", ["", " ready='yes'"])
def test_disks_as_they_run(ready):
    live, defined = parse(XML.format(mirror=MIRROR.format(ready=ready))), parse(XML.format(mirror=""))
    found = transfer.disks(live, defined)
    assert found["vda"] == OLD._replace(copy="/new/a.raw", ready=bool(ready))
    assert found["sda"].identity is None
    assert transfer.disks(defined, defined)["vda"] == OLD


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
