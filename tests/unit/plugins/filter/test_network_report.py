# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter network_report: the written map of the cables against the live one."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._bridge.switch_map import report as compared

SYSTEM = "00:1c:73:00:00:01"
DECLARED: dict[str, dict[str, dict[str, Any]]] = {
    "hv1": {"nic1": {"system": SYSTEM, "key": 11, "port": 101}, "nic2": {"system": SYSTEM, "key": 11, "port": 102}},
    "hv2": {"nic1": {"system": SYSTEM, "key": 12, "port": 103}, "nic2": {"system": SYSTEM, "key": 12, "port": 104}},
    "hv3": {"nic1": {"switch": "core2", "port_name": "Ethernet7"}},
}


def link(interface: str, place: dict[str, Any] | None) -> dict[str, Any]:
    """What ovs_info says of a cable in this place."""
    told = place or {}
    return {
        "interface": interface,
        "link_state": "up",
        "partner": {key: told[key] for key in ("system", "key", "port")} if "key" in told else None,
        "lldp": {"switch": told["switch"], "port": told["port_name"]} if "switch" in told else None,
    }


def live(**changes: Any) -> dict[str, Any]:
    """The answers of all hosts, as declared but for `host_interface=place`."""
    places = {host: {**ports} for host, ports in DECLARED.items()}
    for name, place in changes.items():
        host, interface = name.split("_")
        places[host][interface] = place
    return {host: {"links": [link(*item) for item in ports.items()]} for host, ports in places.items()}


def report(answers: Any, declared: Any = None) -> dict[str, Any]:
    """The filter's answer; declared is DECLARED unless told otherwise."""
    found: dict[str, Any] = compared(answers, DECLARED if declared is None else declared)
    assert found["wrong"] == sum(not row["ok"] for row in found["rows"])
    assert len(found["table"]) == len(found["rows"]) + 1
    return found


def wrong(answers: Any, declared: Any = None) -> dict[str, str]:
    """Host and interface -> the verdict, of the rows that are not ok."""
    rows = report(answers, declared)["rows"]
    return {f"{row['host']} {row['interface']}": row["verdict"] for row in rows if not row["ok"]}


def test_a_true_map():
    found = report(live())
    assert found["wrong"] == 0
    assert found["table"][0].split() == ["host", "interface", "declared", "live", "verdict"]
    assert [row["host"] for row in found["rows"]] == ["hv1", "hv1", "hv2", "hv2", "hv3"]
    assert f"system={SYSTEM} key=11 port=101" in found["table"][1]


def test_two_swapped_cables_are_named_exactly():
    answers = live(hv1_nic2=DECLARED["hv2"]["nic1"], hv2_nic1=DECLARED["hv1"]["nic2"])
    assert wrong(answers) == {"hv1 nic2": "swapped with hv2 nic1", "hv2 nic1": "swapped with hv1 nic2"}
    swapped = {row["swapped_with"] for row in report(answers)["rows"]}
    assert swapped == {None, "hv2 nic1", "hv1 nic2"}


def test_two_swapped_cables_of_one_host():
    answers = live(hv1_nic1=DECLARED["hv1"]["nic2"], hv1_nic2=DECLARED["hv1"]["nic1"])
    assert wrong(answers) == {"hv1 nic1": "swapped with hv1 nic2", "hv1 nic2": "swapped with hv1 nic1"}


def test_swapped_cables_where_only_the_channel_is_declared():
    """The two cables of a host are then one place; what is right stays out of it."""
    declared = {host: {nic: {"key": place["key"]} for nic, place in DECLARED[host].items()} for host in ("hv1", "hv2")}
    answers = live(hv1_nic2=DECLARED["hv2"]["nic2"], hv2_nic2=DECLARED["hv1"]["nic2"])
    assert wrong(answers, declared) == {"hv1 nic2": "swapped with hv2 nic2", "hv2 nic2": "swapped with hv1 nic2"}


def test_three_cables_in_a_ring():
    one, two, three = DECLARED["hv1"]["nic1"], DECLARED["hv1"]["nic2"], DECLARED["hv2"]["nic1"]
    assert wrong(live(hv1_nic1=two, hv1_nic2=three, hv2_nic1=one)) == {
        "hv1 nic1": "is in the place of hv1 nic2",
        "hv1 nic2": "is in the place of hv2 nic1",
        "hv2 nic1": "is in the place of hv1 nic1",
    }


def test_a_cable_in_a_free_port_of_the_switch():
    assert wrong(live(hv1_nic1={**DECLARED["hv1"]["nic1"], "port": 148})) == {"hv1 nic1": "wrong port"}
    assert wrong(live(hv3_nic1={"switch": "CORE2", "port_name": "Ethernet8"})) == {"hv3 nic1": "wrong port_name"}


def test_what_gives_no_answer():
    answers = live(hv1_nic1=None)
    answers["hv1"]["links"][1]["link_state"] = "down"
    del answers["hv2"]
    answers["hv3"] = {"unreachable": True, "msg": "no route to host"}
    assert wrong(answers) == {
        "hv1 nic1": "no partner",
        "hv1 nic2": "link down",
        "hv2 nic1": "no answer from the host",
        "hv2 nic2": "no answer from the host",
        "hv3 nic1": "no answer from the host",
    }


def test_a_partner_that_nobody_has_declared():
    declared = {"hv1": {"nic1": DECLARED["hv1"]["nic1"]}}
    assert wrong(live(), declared) == {"hv1 nic2": "not declared"}
    assert wrong(live(), {**declared, "hv2": {}}) == {"hv1 nic2": "not declared"}


def test_an_interface_that_is_not_there():
    declared = {"hv1": {**DECLARED["hv1"], "nic7": {"key": 1}}}
    assert wrong(live(), declared) == {"hv1 nic7": "no LACP and no LLDP on this interface"}


@pytest.mark.parametrize("ports", [["nic1"], {"nic1": {}}, {"nic1": "core1"}, {"nic1": {"channel": 11}}])
def test_a_map_that_can_not_be_read_is_refused(ports):
    with pytest.raises(ValueError, match="switch_ports of hv1"):
        report(live(), {"hv1": ports})
