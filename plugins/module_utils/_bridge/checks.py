# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one option of a bridge may hold, whatever the other options say. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from .._fields import between, check_name, check_vlan

TARGET = re.compile(r"(ssl|tcp|pssl|ptcp):[][A-Za-z0-9.:%_-]*|p?unix:/[A-Za-z0-9./_-]+", re.ASCII)
KEY = re.compile(r"flow|\d{1,10}|0[xX][0-9a-fA-F]{1,8}", re.ASCII)
MTU = (68, 65535)


def check_interface(value: str) -> str:
    """A name that the kernel accepts for an interface and that is safe as an argument and a file name."""
    return check_name(value, longest=15)


def check_interfaces(value: list[str]) -> list[str]:
    """Names of ports, sorted; each once."""
    if len(set(value)) != len(value):
        raise ValueError(f"{', '.join(value)}: a port is listed twice")
    return sorted(check_interface(item) for item in value)


def check_mtu(value: int) -> int:
    """An MTU in bytes that Open vSwitch accepts."""
    if not MTU[0] <= value <= MTU[1]:
        raise ValueError(f"{value} is not an MTU; write bytes from {MTU[0]} to {MTU[1]}")
    return value


def check_vlans(value: list[int]) -> list[int]:
    """VLANs, sorted; each once."""
    if len(set(value)) != len(value):
        raise ValueError(f"{value} lists a VLAN twice")
    return sorted(check_vlan(item) for item in value)


def check_any_vlans(value: list[int]) -> list[int]:
    """Any values of a VLAN tag, the reserved 0 (untagged) and 4095 included, sorted; each once."""
    if len(set(value)) != len(value):
        raise ValueError(f"{value} lists a VLAN twice")
    return sorted(between(0, 4095)(item) for item in value)


def check_members(value: list[str]) -> list[str]:
    """The members of a bond, sorted; at least two different ones."""
    if len(set(value)) != len(value):
        raise ValueError(f"{', '.join(value)}: a member is listed twice")
    if len(value) < 2:
        raise ValueError("a bond has at least two members; write a single interface under ports")
    return sorted(check_interface(item) for item in value)


def check_map(value: Mapping[str, Any]) -> dict[str, str | None]:
    """Keys and values as Open vSwitch keeps them: text; no value (null) removes the key."""
    return {str(key): None if item is None else text(item) for key, item in value.items()}


def check_key(value: str) -> str:
    """The key of a tunnel, as a number of up to 32 bits, or `flow`."""
    if not KEY.fullmatch(value):
        raise ValueError(f"{value!r} is not a tunnel key; write a number or flow")
    return value


def check_address(value: str) -> str:
    """An IPv4 or IPv6 address. A name would be looked up by the switch, over the network that it makes."""
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address") from None


def check_remote(value: str) -> str:
    """The other end of a tunnel: an address, or `flow` when flows choose it."""
    return value if value == "flow" else check_address(value)


def check_rebalance(value: int) -> int:
    """Milliseconds between two attempts to balance; 0 for never."""
    return value and between(1000)(value)


def check_targets(value: list[str]) -> list[str]:
    """OpenFlow controllers as Open vSwitch writes them, sorted; each once."""
    for item in value:
        if not TARGET.fullmatch(item):
            raise ValueError(f"{item!r} is not a controller; write tcp:ADDRESS:PORT, ssl:ADDRESS:PORT or unix:/PATH")
    return in_order(value)


def in_order(value: list[str]) -> list[str]:
    """Words, sorted; each once."""
    return sorted(set(value))


def text(value: Any) -> str:
    """A value as it stands in a map of Open vSwitch."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_once(value: list[dict[str, Any]], key: str = "name") -> list[dict[str, Any]]:
    """A list of ports, bonds or mirrors in which each name stands once."""
    keys = [item[key] for item in value]
    twice = sorted({item for item in keys if keys.count(item) > 1})
    if twice:
        raise ValueError(f"listed twice: {', '.join(str(item) for item in twice)}")
    return value


def check_queues(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Queues in the order of their numbers; each once."""
    return sorted(check_once(value, "id"), key=lambda item: int(item["id"]))
