# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of systemd-networkd that say what is declared, and what of ours can be read back from them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .devices import Device, Devices

HEAD = "# Written by drover.kvm.networkd, which replaces and removes it.\n"
KINDS = ("netdev", "network")


def render(devices: Devices, prefix: str) -> dict[str, str]:
    """File name -> text."""
    files = {}
    for name, device in sorted(devices.items()):
        if device["kind"] != "nic":
            files[f"{prefix}{name}.netdev"] = HEAD + _text(_netdev(name, device))
        files[f"{prefix}{name}.network"] = HEAD + _text(_network(name, device))
    return files


def lines(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The texts as a diff shows them best."""
    return {name: text.splitlines() for name, text in texts.items()}


def named(files: Mapping[str, str], prefix: str, kind: str = "network") -> dict[str, str]:
    """Interface -> text, of our files of one kind."""
    end = f".{kind}"
    return {name[len(prefix) : -len(end)]: text for name, text in files.items() if name.endswith(end)}


def values(text: str, key: str) -> list[str]:
    """What a file says of a key."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def routes(text: str) -> list[list[str]]:
    """The routes of a file: destination and gateway."""
    parts = text.split("[Route]\n")[1:]
    return [[(values(part, "Destination") or ["default"])[0], values(part, "Gateway")[0]] for part in parts]


Section = tuple[str, list[tuple[str, Any]]]


def _text(sections: Iterator[Section]) -> str:
    parts = []
    for title, lines in sections:
        shown = [f"{key}={_word(value)}" for key, value in lines if value is not None]
        if shown:
            parts.append("\n".join([f"[{title}]", *shown]) + "\n")
    return "\n".join(parts)


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _netdev(name: str, device: Device) -> Iterator[Section]:
    settings = device["settings"]
    yield "NetDev", [("Name", name), ("Kind", device["kind"]), ("MACAddress", device["mac"])]
    if device["kind"] == "vlan":
        yield "VLAN", [("Id", settings["tag"])]
    elif device["kind"] == "bond":
        yield (
            "Bond",
            [
                ("Mode", settings["mode"]),
                ("TransmitHashPolicy", settings["hash_policy"]),
                ("LACPTransmitRate", settings["lacp_time"]),
                ("MIIMonitorSec", f"{settings['miimon']}ms"),
                ("UpDelaySec", f"{settings['up_delay']}ms"),
                ("DownDelaySec", f"{settings['down_delay']}ms"),
                ("MinLinks", settings["min_links"]),
            ],
        )
    else:
        yield (
            "Bridge",
            [
                ("STP", settings["stp"]),
                ("Priority", settings["stp_priority"]),
                ("MulticastSnooping", settings["mcast_snooping"]),
                ("VLANFiltering", settings["vlan_filtering"]),
            ],
        )


def _network(name: str, device: Device) -> Iterator[Section]:
    yield "Match", [("Name", name)]
    # The machine's start waits for addresses by a unit of its own, not for each cable.
    yield "Link", [("MTUBytes", device["mtu"]), ("RequiredForOnline", False)]
    yield (
        "Network",
        [
            ("LinkLocalAddressing", "ipv6" if any(":" in address for address in device["addresses"]) else "no"),
            ("IPv6AcceptRA", False),
            ("LLDP", False),
            # A pulled cable takes neither addresses nor routes away.
            ("ConfigureWithoutCarrier", True),
            *_place(device),
            *(("VLAN", vlan) for vlan in device["stacked"]),
            *(("Address", address) for address in device["addresses"]),
            *(("DNS", server) for server in device["dns"]),
        ],
    )
    for target, gateway in device["routes"]:
        yield "Route", [("Destination", None if target == "default" else target), ("Gateway", gateway)]
    yield "Bridge", [("Cost", device["stp_path_cost"]), ("Priority", device["stp_port_priority"])]
    if device["vlans"]:
        yield from _vlans(device["vlans"])


def _place(device: Device) -> Iterator[tuple[str, Any]]:
    if device["master"]:
        yield ("Bond" if device["master_kind"] == "bond" else "Bridge"), device["master"]
    if device["primary"]:
        yield "PrimarySlave", True


def _vlans(vlans: Mapping[str, Any]) -> Iterator[Section]:
    untagged = vlans["untagged"]
    if untagged:
        yield "BridgeVLAN", [("VLAN", untagged), ("PVID", untagged), ("EgressUntagged", untagged)]
    for first, last in spans(vlans["tagged"]):
        yield "BridgeVLAN", [("VLAN", str(first) if first == last else f"{first}-{last}")]


def spans(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
