# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters san_sessions and san_names."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.filter.san_names import san_names
from ansible_collections.drover.kvm.plugins.filter.san_sessions import san_sessions

A, B = "iqn.2026-11.org.example:a", "iqn.2026-11.org.example:b"


def results(**devices):
    return [
        {"name": target, "session": {"devices": [{"lun": lun, "wwid": wwid} for lun, wwid in found]}}
        for target, found in devices.items()
    ]


def test_a_target_is_logged_in_to_once():
    volumes = [
        {"name": "x", "target": A},
        {"name": "y", "target": A, "lun": 2},
        {"name": "z", "target": B, "state": "absent"},
    ]
    assert san_sessions(volumes) == [{"target": A}, {"target": B, "state": "absent"}]
    with pytest.raises(ValueError, match=r"two volumes of .*:a differ"):
        san_sessions([*volumes, {"name": "q", "target": A, "portals": ["10.231.5.10"]}])
    with pytest.raises(ValueError, match="the volume q has no target"):
        san_sessions([{"name": "q"}])


def test_names_follow_the_disk_and_not_its_order():
    volumes = [
        {"name": "web1", "target": A},
        {"name": "db1", "target": A, "lun": 2},
        {"name": "old", "target": B, "state": "absent"},
    ]
    expected = [{"name": "db1", "wwid": "36002"}, {"name": "web1", "wwid": "36001"}]
    assert san_names(volumes, results(**{A: [(1, "36001"), (2, "36002")]})) == expected
    assert san_names(volumes, results(**{A: [(2, "36002"), (1, "36001")]})) == expected


@pytest.mark.parametrize(
    "volumes, found, words",
    [
        (
            [{"name": "x", "target": A}, {"name": "y", "target": B}],
            {A: [(1, "36001")], B: [(1, "36001")]},
            "x and y have the same",
        ),
        ([{"name": "x", "target": A}, {"name": "y", "target": A}], {A: [(1, "36001")]}, "x and y have the same"),
        ([{"name": "x", "target": A, "lun": 3}], {A: [(1, "36001")]}, "has no logical unit 3"),
        ([{"name": "x", "target": A}], {A: [(1, "")]}, "without a WWID"),
        ([{"name": "x", "target": A, "wwid": "36009"}], {A: [(1, "36001")]}, "its disk is 36001, not 36009"),
    ],
)
def test_what_names_are_refused(volumes, found, words):
    with pytest.raises(ValueError, match=words):
        san_names(volumes, results(**found))


def test_check_mode_before_the_first_login_has_no_disks_yet():
    assert san_names([{"name": "x", "target": A}], [{"name": A, "session": None}], True) == []
