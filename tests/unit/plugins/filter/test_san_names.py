# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters san_volumes, san_sessions, san_names and network_of."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.filter.network_of import network_of
from ansible_collections.drover.kvm.plugins.filter.portal import portal
from ansible_collections.drover.kvm.plugins.filter.san_names import san_names
from ansible_collections.drover.kvm.plugins.filter.san_sessions import san_sessions
from ansible_collections.drover.kvm.plugins.filter.san_volumes import san_volumes

PREFIX = "iqn.2026-11.org.example"
A, B, C = (f"{PREFIX}:{name}" for name in "abc")


def results(**devices):
    return [
        {"name": target, "session": {"devices": [{"lun": lun, "wwid": wwid} for lun, wwid in found]}}
        for target, found in devices.items()
    ]


def names(volumes, found, lenient=False):
    return san_names(san_volumes(volumes, PREFIX), found, lenient)


def test_a_volume_is_completed():
    given = [{"name": "a"}, {"name": "x", "target": B, "lun": "0", "wwid": "36001", "portals": ["p"], "more": 1}]
    assert san_volumes(given, PREFIX) == [
        {"name": "a", "target": A, "lun": 1, "state": "present"},
        {"name": "x", "target": B, "lun": 0, "state": "present", "wwid": "36001", "portals": ["p"]},
    ]
    assert san_volumes([]) == []


@pytest.mark.parametrize(
    "volumes, words",
    [
        ([{"name": "x", "target": A}, {"name": "x", "target": B}], r"x \(.*:a, 1\) and x \(.*:b, 1\) have the same"),
        ([{"name": "x", "target": A}, {"name": "y", "target": A}], r"x \(.*\) and y \(.*\) are one logical unit"),
        ([{"name": "a", "wwid": "36001"}, {"name": "b", "wwid": "36001"}], r"a \(.*\) and b \(.*\) .* same WWID 36001"),
        ([{"name": "web 1"}], "'web 1' is no name"),
        ([{"name": "../sda"}], "is no name"),
        ([{"name": "a\n"}], "is no name"),
        ([{}], "'' is no name"),
        ([{"name": "a", "lun": 16384}], "no logical unit; it is a number from 0 to 16383"),
        ([{"name": "a", "lun": -1}], "no logical unit"),
        ([{"name": "a", "wwid": '3", RUN+="x'}], "is no WWID"),
    ],
)
def test_volumes_that_are_none_or_not_told_apart_are_refused(volumes, words):
    with pytest.raises(ValueError, match=words):
        san_volumes(volumes, PREFIX)


def test_a_volume_needs_a_target():
    with pytest.raises(ValueError, match="the volume q has no target"):
        san_volumes([{"name": "q"}])


def test_a_target_is_logged_in_to_once():
    volumes = [
        {"name": "x", "target": A},
        {"name": "y", "target": A, "lun": 2},
        {"name": "z", "target": B, "state": "absent"},
    ]
    assert san_sessions(san_volumes(volumes)) == [
        {"target": A, "state": "present"},
        {"target": B, "state": "absent"},
    ]
    with pytest.raises(ValueError, match=r"volumes x and q share the target .*:a .* differ"):
        san_sessions(san_volumes([*volumes, {"name": "q", "target": A, "lun": 3, "portals": ["10.231.5.10"]}]))


def test_names_follow_the_disk_and_not_its_order():
    volumes = [{"name": "web1", "target": A}, {"name": "db1", "target": A, "lun": 2}, {"name": "b", "state": "absent"}]
    expected = [{"name": "db1", "wwid": "36002"}, {"name": "web1", "wwid": "36001"}]
    assert names(volumes, results(**{A: [(1, "36001"), (2, "36002")]})) == expected
    assert names(volumes, results(**{A: [(2, "36002"), (1, "36001")]})) == expected


@pytest.mark.parametrize(
    "volumes, found, words",
    [
        ([{"name": "a"}, {"name": "b"}], {A: [(1, "36001")], B: [(1, "36001")]}, "a and b have the same WWID 36001"),
        ([{"name": "a", "lun": 3}], {A: [(1, "36001")]}, "has no logical unit 3"),
        ([{"name": "c"}], {A: [(1, "36001")]}, "has no logical unit 1"),
        ([{"name": "a"}], {A: [(1, "")]}, "or no WWID"),
        ([{"name": "a", "wwid": "36009"}], {A: [(1, "36001")]}, "its disk is 36001, not 36009"),
        ([{"name": "a"}], {A: [(1, '3"\nKERNEL=="sda')]}, "can't be a name's key"),
    ],
)
def test_what_names_are_refused(volumes, found, words):
    with pytest.raises(ValueError, match=words):
        names(volumes, results(**found))


def test_check_mode_before_the_first_login_has_the_declared_names():
    volumes = [{"name": "a"}, {"name": "b", "wwid": "36002"}]
    assert names(volumes, [{"name": A, "session": None}], True) == [{"name": "b", "wwid": "36002"}]


def test_the_network_that_holds_an_address():
    networks = ["10.231.5.0/24", "10.231.7.0/24", "fd00:5::/64"]
    assert network_of("10.231.7.10", networks) == "10.231.7.0/24"
    assert network_of(portal("[fd00:5::10]:3260"), networks) == "fd00:5::/64"
    assert network_of("10.231.6.10", networks) == ""
    assert network_of("10.231.6.10", []) == ""
    with pytest.raises(ValueError, match="nowhere"):
        network_of("10.231.6.10", ["nowhere"])
