# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel has, in the shape of what is declared, so that the two can be compared. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from .. import _lifelines
from . import files
from .devices import Device, Devices

Facts = dict[str, Any]
# By our name: the kernel's file in /sys/class/net/BOND/bonding.
BOND_FILES = {
    "mode": "mode",
    "lacp_time": "lacp_rate",
    "hash_policy": "xmit_hash_policy",
    "miimon": "miimon",
    "up_delay": "updelay",
    "down_delay": "downdelay",
    "min_links": "min_links",
    "primary": "primary",
}
BRIDGE_KEYS = {
    "stp": "stp_state",
    "stp_priority": "priority",
    "mcast_snooping": "mcast_snooping",
    "vlan_filtering": "vlan_filtering",
}
PORT_KEYS = {"stp_path_cost": "cost", "stp_port_priority": "priority"}
LEAVING: Facts = {"kind": None, "master": None, "addresses": [], "routes": []}
# What a device can only get by being made anew.
FIXED = ("parent", "tag", *BOND_FILES)


@dataclass
class Host:
    """All that was read at one moment. `bonds` are the settings of each bond, `managed` what networkd says."""

    files: dict[str, str]
    links: dict[str, Facts]
    addresses: dict[str, list[str]]
    routes: dict[str, list[list[str]]]
    vlans: dict[str, Facts]
    bonds: dict[str, dict[str, str]]
    managed: dict[str, Facts]
    pending: bool = False

    @classmethod
    def read(cls, client: Any) -> Host:
        """Ask the kernel and networkd; `client` is a Networkd."""
        links = {link["ifname"]: link for link in client.links()}
        routes: dict[str, list[list[str]]] = {}
        for route in _lifelines.routes():
            if route.get("gateway"):
                routes.setdefault(route.get("dev", ""), []).append([route["dst"], route["gateway"]])
        return cls(
            files=client.files(),
            links=links,
            addresses={link["ifname"]: _addresses(link) for link in _lifelines.addresses() if "ifname" in link},
            routes=routes,
            vlans={port["ifname"]: _vlans(port.get("vlans", [])) for port in client.vlans()},
            bonds={name: client.bond(name) for name, link in links.items() if kind_of(link) == "bond"},
            managed=client.managed(),
            pending=client.pending(),
        )


def kind_of(link: Facts) -> str:
    """Bond, vlan or bridge; anything else is a NIC (of whatever make)."""
    kind = link.get("linkinfo", {}).get("info_kind")
    return kind if kind in ("bond", "vlan", "bridge") else "nic"


def _addresses(link: Facts) -> list[str]:
    return [f"{item['local']}/{item['prefixlen']}" for item in link.get("addr_info", []) if "local" in item]


def _vlans(entries: Iterable[Facts]) -> Facts:
    untagged: int | None = None
    tagged: list[int] = []
    for entry in entries:
        numbers = range(entry["vlan"], int(entry.get("vlanEnd") or entry["vlan"]) + 1)
        if "PVID" in entry.get("flags", []):
            untagged = entry["vlan"]
        else:
            tagged += numbers
    return {"untagged": untagged, "tagged": sorted(tagged)}


def wanted(device: Device) -> Facts:
    """What the kernel shall show of a device; what is not declared is not compared."""
    facts = {
        "kind": device["kind"],
        "master": device["master"],
        "up": True,
        "addresses": sorted(device["addresses"]),
        "routes": sorted(device["routes"]),
        **device["settings"],
    }
    optional = ("mtu", "mac", "stp_path_cost", "stp_port_priority", "vlans")
    facts.update({key: device[key] for key in optional if device[key] is not None})
    # What has no meaning in a mode is not looked at.
    return {key: value for key, value in facts.items() if value is not None or key == "master"}


def all_wanted(devices: Devices) -> dict[str, Facts]:
    """That of all devices, by name."""
    return {name: wanted(device) for name, device in devices.items()}


def seen(host: Host, name: str, shape: Facts, text: str = "") -> Facts:
    """The same keys as the kernel has them. Addresses and routes of others are left out; `text` is our present file."""
    link = host.links[name]
    info = link.get("linkinfo", {})
    ours = {*shape.get("addresses", []), *(str(ip_interface(item)) for item in files.values(text, "Address"))}
    paths = [*shape.get("routes", []), *files.routes(text)]
    found: Facts = {
        "kind": kind_of(link),
        "master": link.get("master"),
        "up": "UP" in link.get("flags", []),
        "mtu": link.get("mtu"),
        "mac": link.get("address"),
        "addresses": sorted(set(host.addresses.get(name, [])) & ours),
        "routes": sorted(route for route in host.routes.get(name, []) if route in paths),
        "vlans": host.vlans.get(name),
        "parent": link.get("link"),
        "tag": info.get("info_data", {}).get("id"),
        **{key: info.get("info_slave_data", {}).get(there) for key, there in PORT_KEYS.items()},
        **_settings(host, name, info),
    }
    return {key: found.get(key) for key in shape}


def _settings(host: Host, name: str, info: Facts) -> Facts:
    data = info.get("info_data", {})
    if info.get("info_kind") == "bridge":
        found = {key: data.get(there) for key, there in BRIDGE_KEYS.items()}
        return {key: value if key == "stp_priority" else bool(value) for key, value in found.items()}
    words = host.bonds.get(name, {})
    return {key: int(word) if word.isdigit() else word for key, word in _words(words).items()}


def _words(words: Mapping[str, str]) -> dict[str, str]:
    return {key: words[there] for key, there in BOND_FILES.items() if there in words}


def carriers(host: Host, name: str) -> set[str]:
    """The link and all that carry it, as the kernel has them now: members, parents, and theirs."""
    found, left = set(), [name]
    while left:
        link = left.pop()
        if link in found or link not in host.links:
            continue
        found.add(link)
        left += [other for other, item in host.links.items() if item.get("master") == link]
        left += [host.links[link]["link"]] if "link" in host.links[link] else []
    return found


def lifelines(host: Host, address: str | None) -> dict[str, str]:
    """The links that carry the default route or the address through which Ansible came, each with the reason."""
    defaults = [name for name, routes in host.routes.items() if any(target == "default" for target, _gateway in routes)]
    found = _lifelines.judged(defaults, host.addresses, address)
    return {carrier: reason for name, reason in found.items() for carrier in carriers(host, name)}


def is_fixed(old: Facts | None, new: Facts) -> bool:
    """Whether a device that is there can only become what it shall be by being made anew."""
    return old is not None and any(old.get(key) != new[key] for key in FIXED if key in new)


def unlike(before: Mapping[str, Facts], after: Mapping[str, Facts]) -> tuple[list[str], list[str]]:
    """The links that must be made anew, and those that must only be set up again."""
    differ = [name for name in after if before.get(name) != after[name]]
    remake = [name for name in differ if is_fixed(before.get(name), after[name])]
    return remake, [name for name in differ if name not in remake]


def late(now: Mapping[str, Facts], after: Mapping[str, Facts]) -> list[str]:
    """The links to set up again, since they are not there yet or differ; for a missing VLAN also what it is made on."""
    names = unlike(now, after)[1]
    missing = [after[name] for name in names if name not in now]
    return sorted({*names, *(facts["parent"] for facts in missing if facts["kind"] == "vlan")})


def runtime(host: Host, devices: Devices, bonds: Mapping[str, Facts]) -> Facts:
    """What networkd says of the declared links, and the kernel of its bonds."""
    keys = {"state": "OperationalState", "setup": "AdministrativeState", "file": "NetworkFile"}
    told = {name: host.managed.get(name, {}) for name in devices}
    links = {name: {key: facts.get(there) for key, there in keys.items()} for name, facts in told.items()}
    return {"links": links, "bonds": {name: bonds[name] for name in bonds if name in devices}}
