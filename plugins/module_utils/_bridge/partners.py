# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a cable: what LACP and LLDP say, as plain data. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Facts = dict[str, Any]
NOBODY = "00:00:00:00:00:00"
# `lacp/show` of ovs-vswitchd; versions before 2.16 write the older word.
BOND = re.compile(r"^---- (\S+) ----$")
MEMBER = re.compile(r"^(?:member|slave): (\S+): (.+)$")
PARTY = re.compile(r"^\s*(actor|partner) (sys_id|sys_priority|port_id|port_priority|key|state): *(.*)$")
NAMES = {
    "sys_id": "system",
    "sys_priority": "system_priority",
    "key": "key",
    "port_id": "port",
    "port_priority": "port_priority",
    "state": "state",
}
# /proc/net/bonding/NAME of the kernel.
KERNEL_NAMES = {
    "system mac address": "system",
    "system priority": "system_priority",
    "oper key": "key",
    "port key": "key",
    "port number": "port",
    "port priority": "port_priority",
    "port state": "state",
}
STATES = ("activity", "timeout", "aggregation", "synchronized", "collecting", "distributing", "defaulted", "expired")


def switch_links(text: str) -> list[Facts]:
    """The members of Open vSwitch's bonds that speak LACP, from `ovs-appctl lacp/show`."""
    links: list[Facts] = []
    bond = ""
    for line in text.splitlines():
        begin, member, party = BOND.match(line), MEMBER.match(line), PARTY.match(line)
        if begin:
            bond = begin[1]
        elif member:
            links.append({"interface": member[1], "bond": bond, "lacp": member[2], "actor": {}, "partner": {}})
        elif party and links:
            name = NAMES[party[2]]
            value = party[3].split() if name == "state" else party[3] if name == "system" else int(party[3])
            links[-1][party[1]][name] = value
    return [_somebody(link) for link in links]


def kernel_links(bond: str, text: str) -> list[Facts]:
    """The members of a bond of the kernel that speaks LACP (mode 802.3ad), from its file in /proc/net/bonding."""
    links: list[Facts] = []
    if "802.3ad" not in text:
        return links
    party: Facts = {}
    for name, value in re.findall(r"^\s*([^:\n]+): ?(.*?)\s*$", text, re.MULTILINE):
        if name in ("Slave Interface", "Member Interface"):
            links.append({"interface": value, "bond": bond, "lacp": "", "actor": {}, "partner": {}})
        elif name in ("details actor lacp pdu", "details partner lacp pdu") and links:
            party = links[-1][name.split()[1]]
        elif name in KERNEL_NAMES and links:
            key = KERNEL_NAMES[name]
            party[key] = _state_words(int(value)) if key == "state" else value if key == "system" else int(value)
    for link in links:
        state = link["actor"].get("state", [])
        heard = "defaulted" if "defaulted" in state else "expired" if "expired" in state else "current"
        link["lacp"] = f"{heard} {'attached' if 'synchronized' in state else 'detached'}"
    return [_somebody(link) for link in links]


def _state_words(bits: int) -> list[str]:
    return [word for place, word in enumerate(STATES) if bits >> place & 1]


def _somebody(link: Facts) -> Facts:
    """The link with no partner where none has spoken."""
    spoke = link["partner"].get("system", NOBODY).lower() != NOBODY
    return {**link, "partner": link["partner"] if spoke else None}


def lldp_neighbours(answer: Any) -> dict[str, Facts]:
    """Interface -> its neighbour, from `lldpcli -f json show neighbors` (lists of one come without their list)."""
    found: dict[str, Facts] = {}
    for interface, seen in _entries(answer, "lldp", "interface"):
        chassis = next(iter(_named(seen.get("chassis"))), ("", {}))
        port = _dict(seen.get("port"))
        found[interface] = {
            "switch": chassis[0] or None,
            "switch_id": _dict(chassis[1].get("id")).get("value"),
            "port": _dict(port.get("id")).get("value"),
            "port_description": port.get("descr"),
        }
    return found


def _entries(answer: Any, *path: str) -> Iterator[tuple[str, Facts]]:
    for step in path:
        answer = _dict(answer).get(step)
    for group in answer if isinstance(answer, list) else [answer]:
        yield from ((name, seen) for name, seen in _dict(group).items() if isinstance(seen, dict))


def _named(chassis: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """A chassis is listed below its name; one without a name has its keys there."""
    if "id" in _dict(chassis):
        return [("", _dict(chassis))]
    return [(name, _dict(value)) for name, value in _dict(chassis).items()]


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
