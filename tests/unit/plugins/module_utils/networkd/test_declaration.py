# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is declared for module networkd: the files that say it, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.module_utils._networkd import apply, devices, files, live
from ansible_collections.drover.kvm.plugins.modules.networkd import FIELDS

BOND = {"name": "bond0", "members": ["nic2", "nic1"], "mode": "802.3ad", "lacp_time": "fast", "mtu": 9000}
VLAN = {"name": "bond0.100", "parent": "bond0", "tag": 100}
BRIDGE = {"name": "br100", "ports": [{"name": "bond0.100"}]}
GIVEN = {"name": "br100", "addresses": ["10.0.0.1/24"]}
SITE = {"bonds": [BOND], "vlans": [VLAN], "bridges": [BRIDGE], "addresses": [GIVEN]}
# As it is written for module ovs_bridge.
SWITCH = {
    "name": "br0",
    "bonds": [{"name": "bond0", "members": ["nic1", "nic2"], "mode": "balance-tcp", "lacp": "active"}],
    "ports": [{"name": "storage0", "type": "internal", "tag": 5}],
}


def table(**params: Any) -> devices.Devices:
    return devices.declared(normalise(FIELDS, params))


def texts(**params: Any) -> dict[str, list[str]]:
    """File -> its lines, but for those that all have."""
    usual = {f"{key}=no" for key in ("RequiredForOnline", "LinkLocalAddressing", "IPv6AcceptRA", "LLDP")}
    usual.add("ConfigureWithoutCarrier=yes")
    found = files.render(table(**params), "")
    return {
        name: [line for line in text.splitlines() if "=" in line and line not in usual] for name, text in found.items()
    }


def test_a_bond_a_vlan_and_a_bridge():
    assert texts(**SITE) == {
        "bond0.netdev": [
            "Name=bond0", "Kind=bond", "Mode=802.3ad", "TransmitHashPolicy=layer3+4", "LACPTransmitRate=fast",
            "MIIMonitorSec=100ms", "UpDelaySec=0ms", "DownDelaySec=0ms",
        ],
        "bond0.network": ["Name=bond0", "MTUBytes=9000", "VLAN=bond0.100"],
        "bond0.100.netdev": ["Name=bond0.100", "Kind=vlan", "Id=100"],
        "bond0.100.network": ["Name=bond0.100", "Bridge=br100"],
        "br100.netdev": [
            "Name=br100", "Kind=bridge", "STP=no", "Priority=32768", "MulticastSnooping=yes", "VLANFiltering=no",
        ],
        "br100.network": ["Name=br100", "Address=10.0.0.1/24"],
        "nic1.network": ["Name=nic1", "MTUBytes=9000", "Bond=bond0"],
        "nic2.network": ["Name=nic2", "MTUBytes=9000", "Bond=bond0"],
    }  # fmt: skip


def test_the_words_of_open_vswitch_are_understood():
    found = texts(bridges=[SWITCH], addresses=[{"name": "storage0", "addresses": ["10.0.5.1/24"]}])
    assert "Mode=802.3ad" in found["bond0.netdev"] and "LACPTransmitRate=slow" in found["bond0.netdev"]
    assert found["bond0.network"] == ["Name=bond0", "Bridge=br0"]
    assert found["br0.network"] == ["Name=br0", "VLAN=storage0"]
    assert found["storage0.netdev"] == ["Name=storage0", "Kind=vlan", "Id=5"]
    assert found["storage0.network"] == ["Name=storage0", "Address=10.0.5.1/24"]


def test_a_bridge_that_filters_vlans():
    ports = [*SWITCH["ports"], {"name": "nic3", "tag": 7}, {"name": "nic4", "trunks": [9, 8, 20]}]
    found = texts(bridges=[{**SWITCH, "ports": ports, "vlan_filtering": True}])
    untagged = ["VLAN=1", "PVID=1", "EgressUntagged=1"]
    assert found["bond0.network"] == ["Name=bond0", "Bridge=br0", *untagged, "VLAN=2-4094"]
    assert found["br0.network"] == ["Name=br0", "VLAN=storage0", *untagged, "VLAN=5"]
    assert found["nic3.network"] == ["Name=nic3", "Bridge=br0", "VLAN=7", "PVID=7", "EgressUntagged=7"]
    assert found["nic4.network"] == ["Name=nic4", "Bridge=br0", "VLAN=8-9", "VLAN=20"]


def test_addresses_of_both_families_with_routes():
    given = {"name": "nic3", "addresses": ["10.0.0.1/24", "2001:DB8::1/64"], "gateway": ["10.0.0.254", "2001:db8::fe"]}
    given.update({"dns": ["10.0.0.53"], "routes": [{"to": "10.9.0.0/16", "via": "10.0.0.253"}]})
    text = files.render(table(addresses=[given]), "")["nic3.network"]
    assert "LinkLocalAddressing=ipv6" in text and "Address=2001:db8::1/64" in text and "DNS=10.0.0.53" in text
    assert sorted(files.routes(text)) == [
        ["10.9.0.0/16", "10.0.0.253"], ["default", "10.0.0.254"], ["default", "2001:db8::fe"],
    ]  # fmt: skip


BAD = {
    "named twice": ({"bonds": [BOND], "vlans": [{**VLAN, "name": "bond0"}]}, "bond0 is declared twice"),
    "member of two": ({"bonds": [BOND, {"name": "bond1", "members": ["nic1"]}]}, "nic1 is declared twice"),
    "port of two": ({**SITE, "bridges": [BRIDGE, {**BRIDGE, "name": "br2"}]}, "in br100 already"),
    "member as port": ({"bonds": [BOND], "bridges": [{"name": "br0", "ports": [{"name": "nic1"}]}]}, "in bond0"),
    "a bridge as port": ({"bridges": [{"name": "a"}, {"name": "b", "ports": [{"name": "a"}]}]}, "a bridge already"),
    "address in a bond": ({"bonds": [BOND], "addresses": [{**GIVEN, "name": "nic1"}]}, "give it to bond0"),
    "a ring": ({"vlans": [{**VLAN, "parent": "br100"}], "bridges": [BRIDGE]}, "carry itself"),
    "vlan twice": ({"bonds": [BOND], "vlans": [VLAN, {**VLAN, "name": "x"}]}, "declared twice: bond0.100 and x"),
    "vlan larger": ({"vlans": [{**VLAN, "mtu": 9000}], "bonds": [{**BOND, "mtu": 1500}]}, "larger than that of bond0"),
    "lacp off": ({"bonds": [{**BOND, "lacp": "off"}]}, "do not go together"),
    "no lacp": ({"bonds": [{**BOND, "mode": "active-backup"}]}, "lacp_time and min_links have no effect"),
    "lacp alone": ({"bonds": [{"name": "b", "members": ["x"], "lacp": "active"}]}, "take mode 802.3ad"),
    "hash": ({"bonds": [{"name": "b", "members": ["x"], "hash_policy": "layer2"}]}, "hash_policy has no effect"),
    "primary": ({"bonds": [{"name": "b", "members": ["x"], "primary": "y"}]}, "primary is one of"),
    "delay": ({"bonds": [{"name": "b", "members": ["x"], "up_delay": 150}]}, "multiple of miimon"),
    "no members": ({"bonds": [{"name": "b", "members": []}]}, "at least one member"),
    "member twice": ({"bonds": [{"name": "b", "members": ["x", "x"]}]}, "listed twice"),
    "tag": ({"bridges": [{"name": "b", "ports": [{"name": "x", "tag": 5}]}]}, "without vlan_filtering"),
    "no tag": ({"bridges": [{"name": "b", "ports": [{"name": "x", "type": "internal"}]}]}, "has one tag"),
    "own tag": ({"bridges": [{"name": "b", "ports": [{"name": "b", "tag": 5}]}]}, "type: internal and a tag"),
    "a VM's tap": ({"bridges": [{"name": "b", "ports": [{"name": "vnet0"}]}]}, "means something else"),
    "no prefix": ({"addresses": [{"name": "x", "addresses": ["10.0.0.1"]}]}, "no prefix length"),
    "no address": ({"addresses": [{"name": "x", "addresses": ["10.0.0.300/24"]}]}, "10.0.0.300"),
    "gateways": ({"addresses": [{**GIVEN, "gateway": ["10.0.0.2", "10.0.0.3"]}]}, "of each family"),
    "network": ({"addresses": [{**GIVEN, "routes": [{"to": "10.0.0.1/8", "via": "10.0.0.2"}]}]}, "host bits"),
}
NAMES = ["../x", "-rf", "a b", "a;b", "a\nb", "$(x)", "", "x" * 16, "a/b", "%i", "[Match]", "lo", "all", "7"]


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    params, words = BAD[case]
    with pytest.raises(Invalid, match=words):
        table(**params)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_be_nothing_else(name):
    bonds = [{"bonds": [{**BOND, **named}]} for named in ({"name": name}, {"members": [name]})]
    for params in (*bonds, {"vlans": [{**VLAN, "parent": name}]}, {"bridges": [{"name": name}]}):
        with pytest.raises(Invalid):
            table(**params)


def test_what_must_be_made_anew():
    old = files.render(table(**SITE), "06-drover-")
    slower = {**SITE, "bonds": [{**BOND, "lacp_time": "slow"}], "bridges": [{**BRIDGE, "stp": True}]}
    moved = {**SITE, "vlans": [{**VLAN, "parent": "nic3"}]}
    assert apply.remade(old, files.render(table(**slower), "06-drover-")) == ["bond0"]
    assert apply.remade(old, files.render(table(**moved), "06-drover-")) == ["bond0.100"]


def test_a_lost_vlan_is_made_again_by_what_it_is_on():
    after = {
        "bond0": {"kind": "bond", "master": None, "up": True},
        "bond0.100": {"kind": "vlan", "master": "br100", "up": True, "parent": "bond0", "tag": 100},
        "br100": {"kind": "bridge", "master": None, "up": True},
    }
    assert live.late({name: facts for name, facts in after.items() if name != "bond0.100"}, after) == [
        "bond0",
        "bond0.100",
    ]
    # One that is only in the wrong place needs no other link.
    assert live.late({**after, "bond0.100": {**after["bond0.100"], "master": None}}, after) == ["bond0.100"]
