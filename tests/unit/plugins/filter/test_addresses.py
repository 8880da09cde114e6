# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses planned from numbers, the faults of a whole inventory, hosts file and zone."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.filter.addressing import FilterModule
from ansible_collections.drover.kvm.plugins.module_utils._domain import addresses
from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import vm_sheet
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Invalid, NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.plugins.modules.vm import FIELDS
from ansible_collections.drover.kvm.plugins.plugin_utils import _addressing
from ansible_collections.drover.kvm.plugins.plugin_utils._addressing import (
    address_faults,
    addressing,
    dns_zone,
    hosts_file,
)

FRONT = {
    "bridge": "br0",
    "vlan": 100,
    "cidr": ["10.231.0.0/16", "fd00:100::/64"],
    "gateway": ["10.231.0.1", "fe80::1"],
    "nameservers": "fd00:100::53",
    "offset": 256,
}
NO_ADDRESS = "is not an address with its prefix, such as 192.0.2.21/24 or 2001:db8::21/64"
LACKS = "gateway 10.0.0.1 needs an address of IPv4 beside it"
BACK = {"bridge": "br0", "vlan": 200, "cidr": "fd00:200::/64"}


def machine(name: str, *nics: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inventory_hostname": name, "vm_nics": [{"bridge": "br0", **nic} for nic in nics], **more}


def test_a_number_gives_the_nics():
    assert FilterModule().filters()["addressing"] is addressing
    assert addressing(17, [FRONT, BACK]) == [
        {
            "bridge": "br0",
            "vlan": 100,
            "addresses": ["10.231.1.17/16", "fd00:100::111/64"],
            "gateway": ["10.231.0.1", "fe80::1"],
            "nameservers": ["fd00:100::53"],
            "mac": "52:54:01:00:00:11",
        },
        {"bridge": "br0", "vlan": 200, "addresses": ["fd00:200::11/64"], "mac": "52:54:01:01:00:11"},
    ]
    assert "mac" not in addressing("17", BACK, "")[0]


def test_five_thousand_numbers_share_nothing_and_stay():
    plans = {number: addressing(number, [FRONT, BACK]) for number in range(1, 5001)}
    nics = [nic for plan in plans.values() for nic in plan]
    assert len({nic["mac"] for nic in nics}) == len(nics) == 10000
    own = [address for nic in nics for address in nic["addresses"]]
    assert len(set(own)) == len(own) == 15000
    assert plans == {number: addressing(number, [FRONT, BACK]) for number in range(1, 5001)}
    assert plans[5000][0]["addresses"] == ["10.231.20.136/16", "fd00:100::1488/64"]


@pytest.mark.parametrize(
    "number, networks, words",
    [
        (0, BACK, "0 is not the number of a VM"),
        (True, BACK, "True is not the number"),
        ("web1", BACK, "'web1' is not the number"),
        (65536, BACK, "write 1 to 65535"),
        (1, "10.0.0.0/24", "write a list of networks"),
        (1, [{"vlan": 3}], r"networks\[0\]: write a dictionary with cidr"),
        (1, {"cidr": "10.0.0.1/24"}, "10.0.0.1/24 is an address; the network is 10.0.0.0/24"),
        (1, {"cidr": "10.0.0/x"}, "is no network such as"),
        (1, {"cidr": "10.0.0.0/24", "offset": "a"}, "is no network such as"),
        (255, {"cidr": "10.0.0.0/24"}, "has no place for number 255; the last one is 254"),
        (250, {"cidr": "10.0.0.0/24", "offset": 10}, "the last one is 244"),
        (1, {"cidr": "10.0.0.0/24", "gateway": "10.0.0.1"}, "number 1: gateway 10.0.0.1 is the NIC's own address"),
        (1, {"cidr": "10.0.0.0/24", "gateway": "10.0.1.1"}, "gateway 10.0.1.1 is outside of 10.0.0.0/24"),
    ],
)
def test_what_can_not_be_planned(number, networks, words):
    with pytest.raises(Invalid, match=words):
        addressing(number, networks)


@pytest.mark.parametrize("prefix", ["52:54", "01:00:5e", "00:16:3e", "zz:00:00"])
def test_prefixes_of_others_are_refused(prefix):
    with pytest.raises(Invalid, match="mac_prefix"):
        addressing(1, BACK, prefix)


def test_without_netaddr_it_says_so(monkeypatch):
    monkeypatch.setattr(_addressing, "netaddr", None)
    with pytest.raises(NotFound, match="netaddr is not installed on the controller"):
        addressing(1, BACK)


def test_all_faults_of_an_inventory_come_at_once_and_name_both():
    machines = [
        machine("web1", {"addresses": ["10.0.0.21/24"], "gateway": "10.0.1.1"}, vm_memory="1GiB", vm_vcpus=1),
        machine("web2", {"addresses": ["fd00:0::21/64"]}, {"mac": vm_mac("db1", 0)}),
        machine("db1", {"addresses": ["10.0.0.21/16", "fd00::21/64"]}),
        machine("broken", {"addresses": ["10.0.0.300/24"]}),
        machine("fine", {"addresses": ["10.0.0.30/24"], "gateway": ["10.0.0.1"]}),
        {"inventory_hostname": "bare", "vm_memory": "1GiB"},
    ]
    assert address_faults(machines) == [
        "web1: vm_nics[0]: gateway 10.0.1.1 is outside of 10.0.0.0/24",
        f"broken: vm_nics[0].addresses: '10.0.0.300/24' {NO_ADDRESS}",
        "address 10.0.0.21 is given to vm_nics[0] of web1 and vm_nics[0] of db1",
        "address fd00::21 is given to vm_nics[0] of web2 and vm_nics[0] of db1",
        f"MAC address {vm_mac('db1', 0)} is given to vm_nics[1] of web2 and vm_nics[0] of db1",
    ]
    assert address_faults(machines, ["fine", "bare"]) == []
    assert address_faults(machines, ["web1"]) == [
        "web1: vm_nics[0]: gateway 10.0.1.1 is outside of 10.0.0.0/24",
        "address 10.0.0.21 is given to vm_nics[0] of web1 and vm_nics[0] of db1",
    ]


@pytest.mark.parametrize(
    "nic, words",
    [
        ({"addresses": ["10.0.0.21"]}, "is not an address with its prefix"),
        ({"addresses": ["10.0.0.0/24"]}, "is the address of the network itself"),
        ({"addresses": ["10.0.0.255/24"]}, "or of all in it"),
        ({"addresses": ["fe80::1/64"]}, "no address that a VM can be given"),
        ({"addresses": ["224.0.0.1/24"]}, "no address that a VM can be given"),
        ({"addresses": ["10.0.0.2/24", "10.0.0.2/24"]}, "10.0.0.2/24 is listed twice"),
        ({"gateway": ["10.0.0.1", "10.0.0.2"]}, "one gateway for IPv4 and one for IPv6"),
        ({"gateway": ["router"]}, "'router' is not an IP address"),
        ({"nameservers": ["127.0.0.1"]}, "no address of another machine"),
    ],
)
def test_values_that_are_none(nic, words):
    with pytest.raises(DroverError, match=words):
        normalise(FIELDS, {"name": "web1", "nics": [nic]})


@pytest.mark.parametrize(
    "nic, words",
    [
        ({"gateway": ["10.0.0.1"]}, [LACKS]),
        ({"addresses": ["fd00::2/64"], "gateway": ["10.0.0.1"]}, [LACKS]),
        ({"addresses": ["fd00::2/64"], "gateway": ["fe80::1"]}, []),
        ({"addresses": ["fd00::2/64"], "gateway": ["fd01::1"]}, ["gateway fd01::1 is outside of fd00::/64"]),
        ({"addresses": ["10.0.0.2/24", "10.1.0.2/24"], "gateway": ["10.1.0.1"]}, []),
    ],
)
def test_gateways(nic, words):
    assert addresses.faults(nic) == words


def test_the_network_of_the_guest():
    nics = [
        {"mac": "52:54:00:00:00:01", "addresses": None},
        {
            "mac": "52:54:00:00:00:02",
            "addresses": ["10.0.0.2/24", "fd00::2/64"],
            "gateway": ["10.0.0.1", "fe80::1"],
            "nameservers": ["fd00::53"],
        },
    ]
    assert addresses.network_config(nics) == {
        "version": 2,
        "ethernets": {
            "nic1": {
                "match": {"macaddress": "52:54:00:00:00:02"},
                "dhcp4": False,
                "dhcp6": False,
                "addresses": ["10.0.0.2/24", "fd00::2/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.0.0.1"}, {"to": "::/0", "via": "fe80::1"}],
                "nameservers": {"addresses": ["fd00::53"]},
            }
        },
    }
    assert addresses.network_config(nics[:1]) is None


MACHINES = [
    machine("web1", {"vlan": 3}, {"addresses": "10.0.0.21/24,fd00::21/64"}),
    {"inventory_hostname": "HV1", "ansible_host": "10.0.0.11"},
    {"inventory_hostname": "hv2.example.org", "ansible_host": "hv2.example.org"},
    {"inventory_hostname": "192.0.2.7"},
    machine("db1.example.org", {"addresses": ["fd00::22/64"]}),
]


def test_a_hosts_file():
    assert hosts_file(MACHINES[:3]) == "10.0.0.11 hv1\n10.0.0.21 web1\nfd00::21 web1\n"
    assert hosts_file([*MACHINES[:3], MACHINES[4]], "Example.org.") == (
        "10.0.0.11 hv1.example.org hv1\nfd00::22 db1.example.org db1\n"
        "10.0.0.21 web1.example.org web1\nfd00::21 web1.example.org web1\n"
    )
    assert hosts_file([]) == ""


def test_a_zone():
    assert dns_zone(MACHINES[:3]) == "hv1 IN A 10.0.0.11\nweb1 IN A 10.0.0.21\nweb1 IN AAAA fd00::21\n"
    assert dns_zone(MACHINES[:1], "example.org", reverse=True).splitlines() == [
        "21.0.0.10.in-addr.arpa. IN PTR web1.example.org.",
        f"1.2.{'0.' * 26}0.0.d.f.ip6.arpa. IN PTR web1.example.org.",
    ]
    with pytest.raises(Invalid, match="domain is missing"):
        dns_zone(MACHINES, reverse=True)
    with pytest.raises(Invalid, match="is not the name of a domain"):
        dns_zone(MACHINES, "exa mple")
    with pytest.raises(Invalid, match="not a name that DNS allows"):
        dns_zone([machine("web_1", {"addresses": ["fd00::1/64"]})])


def test_numbers_and_networks_are_no_options_and_user_data_becomes_text():
    sheet = vm_sheet(
        {
            **machine("web1", {"gateway": "10.0.0.1", "addresses": ["10.0.0.2/24"]}),
            "vm_number": 17,
            "vm_networks": [FRONT],
            "vm_cloud_init": {"hostname": "shop", "user_data": {"users": [{"name": 'it\'s "me"'}]}},
        }
    )
    assert set(sheet) == {"name", "state", "nics", "cloud_init"}
    assert sheet["cloud_init"]["user_data"].startswith("#cloud-config\n{")
    with pytest.raises(Invalid, match="web1: vm_cloud_init.user_data: user data begins with #cloud-config"):
        vm_sheet({**machine("web1"), "vm_cloud_init": {"user_data": "users: []"}})
    with pytest.raises(Invalid, match="there is no option key"):
        vm_sheet({**machine("web1"), "vm_cloud_init": {"key": "users: []"}})


def test_a_uuid_is_given_to_one_vm_only():
    given = {"vm_uuid": vm_uuid("db1").upper()}
    faults = address_faults([machine("web1", **given), machine("db1"), machine("web2")])
    assert faults == [f"UUID {vm_uuid('db1')} is given to vm_uuid of web1 and vm_uuid of db1"]
