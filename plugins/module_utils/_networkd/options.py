# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of module networkd, in the words of module ovs_bridge where both have them. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Callable

from .._bridge.checks import check_interface, check_mtu, check_once, check_vlans
from .._fields import Field, between, check_mac, check_vlan

# Open vSwitch's word -> the kernel's: both mean LACP, and that a flow's addresses and ports choose the member.
SAME_MODE = {"balance-tcp": "802.3ad"}
MODES = (
    "802.3ad",
    "balance-tcp",
    "active-backup",
    "balance-xor",
    "balance-rr",
    "broadcast",
    "balance-tlb",
    "balance-alb",
)
HASHES = ("layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4", "vlan+srcmac")
RESERVED = re.compile(r"vnet[0-9]*|lo|all|default|bonding_masters", re.ASCII)


def check_device(value: str) -> str:
    """The name of an interface that does not mean something else to the kernel, to networkd or to libvirt."""
    check_interface(value)
    if RESERVED.fullmatch(value) or value.isdigit():
        raise ValueError(f"{value!r} means something else to the kernel, to systemd or to libvirt; take another name")
    return value


def check_members(value: list[str]) -> list[str]:
    """The members of a bond, sorted; each once. One is enough, as long as the second cable is not there yet."""
    if len(set(value)) != len(value):
        raise ValueError(f"{', '.join(value)}: a member is listed twice")
    if not value:
        raise ValueError("a bond has at least one member")
    return sorted(check_device(item) for item in value)


def check_addresses(value: list[str]) -> list[str]:
    """Addresses with their prefix, as `ip` prints them; each once."""
    found = [_with_prefix(item, ip_interface) for item in value]
    if len(set(found)) != len(found):
        raise ValueError(f"{', '.join(value)}: an address is listed twice")
    return found


def check_network(value: str) -> str:
    """A network with its prefix."""
    return "default" if value in ("default", "0.0.0.0/0", "::/0") else _with_prefix(value, ip_network)


def _with_prefix(value: str, parse: Callable[[str], Any]) -> str:
    if "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; write it as 10.0.5.11/24 or 2001:db8::11/64")
    try:
        return str(parse(value))
    except ValueError as error:
        raise ValueError(str(error)) from None


def check_address(value: str) -> str:
    """An IPv4 or IPv6 address."""
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address") from None


def check_gateway(value: list[str]) -> list[str]:
    """The default gateways, one of each family at most."""
    found = [check_address(item) for item in value]
    if len({ip_address(item).version for item in found}) != len(found):
        raise ValueError("a gateway of each family (IPv4, IPv6) at most")
    return found


def check_servers(value: list[str]) -> list[str]:
    """Addresses of name servers, in the order in which they are asked."""
    return [check_address(item) for item in value]


VLAN_KEYS = (
    Field("tag", type="int", check=check_vlan),
    Field("trunks", type="list", elements="int", check=check_vlans),
)
MTU = Field("mtu", type="int", check=check_mtu)
NAME = Field("name", required=True, check=check_device)
PORT_KEYS = (
    Field("stp_path_cost", type="int", check=between(1, 65535)),
    Field("stp_port_priority", type="int", check=between(0, 63)),
)
BOND = (
    NAME,
    Field("members", type="list", elements="str", required=True, check=check_members),
    Field("mode", choices=MODES, default="active-backup"),
    Field("lacp", choices=("active", "off")),
    Field("lacp_time", choices=("fast", "slow")),
    Field("hash_policy", choices=HASHES),
    Field("miimon", type="int", default=100, check=between(1, 60000)),
    Field("up_delay", type="int", default=0, check=between(0, 600000)),
    Field("down_delay", type="int", default=0, check=between(0, 600000)),
    Field("min_links", type="int", check=between(1, 64)),
    Field("primary", check=check_device),
    MTU,
)
VLAN = (
    NAME,
    Field("parent", required=True, check=check_device),
    Field("tag", type="int", required=True, check=check_vlan),
    MTU,
)
PORT = (
    NAME,
    Field("type", choices=("system", "internal"), default="system"),
    Field("mac", check=check_mac),
    *PORT_KEYS,
    *VLAN_KEYS,
    MTU,
)
BRIDGE = (
    NAME,
    Field("stp", type="bool", default=False),
    Field("stp_priority", type="int", default=32768, check=between(0, 65535)),
    Field("mcast_snooping", type="bool", default=True),
    Field("vlan_filtering", type="bool", default=False),
    Field("mac", check=check_mac),
    MTU,
    Field("ports", type="list", elements="dict", default=[], fields=PORT, check=check_once),
    Field("bonds", type="list", elements="dict", default=[], fields=(*BOND, *PORT_KEYS, *VLAN_KEYS), check=check_once),
)
ROUTE = (Field("to", required=True, check=check_network), Field("via", required=True, check=check_address))
ADDRESS = (
    NAME,
    Field("addresses", type="list", elements="str", required=True, check=check_addresses),
    Field("gateway", type="list", elements="str", default=[], check=check_gateway),
    Field("dns", type="list", elements="str", default=[], check=check_servers),
    Field("routes", type="list", elements="dict", default=[], fields=ROUTE),
    MTU,
)
