# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells of a bond (as Linux 6.12 wrote it), and which member is blamed for what."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._networkd import lacp

HEAD = """Ethernet Channel Bonding Driver: v6.12.0

Bonding Mode: IEEE 802.3ad Dynamic link aggregation
MII Status: up

802.3ad info
LACP active: on
LACP rate: fast
Active Aggregator Info:
\tAggregator ID: 1
\tNumber of ports: 2
\tPartner Mac Address: 9a:00:00:00:00:01
"""
MEMBER = """
Slave Interface: {name}
MII Status: {mii}
Speed: {speed}
Duplex: full
Slave queue ID: 0
Aggregator ID: {aggregator}
details actor lacp pdu:
    system mac address: 52:00:00:00:00:01
    port key: 15
    port number: 1
    port state: {actor}
details partner lacp pdu:
    system mac address: {partner}
    oper key: 1
    port number: 7
    port state: {state}
"""
GOOD = {"mii": "up", "speed": "10000 Mbps", "aggregator": 1, "actor": 63, "partner": "9a:00:00:00:00:01", "state": 63}
WANTED = {"bond0": ["nic1", "nic2"]}


def judged(carrier=("nic1", "nic2"), members=("nic1", "nic2"), **second):
    text = HEAD + "".join(
        MEMBER.format(name=name, **{**GOOD, **(second if name == "nic2" else {})}) for name in members
    )
    return lacp.faults(lacp.bonds({"bond0": text}), WANTED, {name: name in carrier for name in WANTED["bond0"]})


def test_all_is_well():
    assert judged() == ([], [])


FAULTS = {
    "no speed": ({"speed": "Unknown", "mii": "down"}, "nic2 of bond bond0 has no speed"),
    "nobody": ({"partner": "00:00:00:00:00:00", "actor": 69, "state": 1}, "nobody answers LACP at the other end"),
    "elsewhere": ({"aggregator": 2, "partner": "9a:00:00:00:00:02"}, "another switch or port-channel"),
    "slower": ({"aggregator": 2, "speed": "1000 Mbps"}, "its speed differs"),
    "waiting": ({"state": 7}, "not in step with its partner 9a:00:00:00:00:01"),
    "missing": ({"members": ("nic1",)}, "nic2 of bond bond0 is not in the bond"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_member_is_named_with_the_reason(fault):
    second, words = FAULTS[fault]
    wrong, said = judged(**second)
    assert len(wrong) == 1 and words in wrong[0] and said == []


def test_a_pulled_cable_is_a_word_and_two_are_a_fault():
    assert judged(carrier=("nic1",), mii="down") == ([], ["nic2 of bond bond0 has no carrier"])
    assert judged(carrier=()) == (["bond bond0: no cable is plugged in (nic1, nic2)"], [])
