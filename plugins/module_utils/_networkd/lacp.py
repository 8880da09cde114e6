# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the kernel's bonds do what they shall: who is in step with its LACP partner, and who is not and why. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._bridge.partners import kernel_links
from .devices import LACP, Devices, below

Facts = dict[str, Any]
BLOCK = re.compile(r"^(?:Slave|Member) Interface: (\S+)$", re.MULTILINE)
FLOWING = {"synchronized", "collecting", "distributing"}


def bonds(texts: Mapping[str, str]) -> dict[str, Facts]:
    """By bond, what the kernel tells of its members."""
    return {name: _bond(name, text) for name, text in texts.items()}


def _bond(name: str, text: str) -> Facts:
    head, *rest = BLOCK.split(text)
    blocks = dict(zip(rest[::2], rest[1::2]))
    links = {link["interface"]: link for link in kernel_links(name, text)}
    active = re.search(r"Active Aggregator Info:.*?Aggregator ID: (\d+)", head, re.DOTALL)
    members = {member: _member(block, links.get(member), active and active[1]) for member, block in blocks.items()}
    return {"mode": "802.3ad" if "802.3ad" in head else _line(head, "Bonding Mode"), "members": members}


def _member(block: str, link: Facts | None, active: str | None) -> Facts:
    speed = _line(block, "Speed").split()
    found: Facts = {"mii": _line(block, "MII Status"), "speed": int(speed[0]) if speed and speed[0].isdigit() else None}
    if link is not None:
        state = set((link["partner"] or {}).get("state", []))
        aggregated = _line(block, "Aggregator ID") == active
        flowing = set(link["actor"].get("state", [])) >= FLOWING and state >= FLOWING
        found.update({"lacp": link["lacp"], "partner": link["partner"], "aggregated": aggregated})
        found["in_step"] = found["mii"] == "up" and bool(link["partner"]) and aggregated and flowing
    return found


def _line(text: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def look(client: Any, devices: Devices) -> tuple[dict[str, Facts], list[str], list[str]]:
    """What the kernel tells of its bonds now, and of those with LACP what is wrong and what is worth a word."""
    seen = bonds(client.bonds())
    speaking = [name for name, device in devices.items() if device["settings"].get("mode") == LACP]
    wanted = {name: sorted(below(devices, name)) for name in speaking}
    carrier = {member: client.carrier(member) for members in wanted.values() for member in members}
    return (seen, *faults(seen, wanted, carrier))


def faults(
    seen: Mapping[str, Facts], wanted: Mapping[str, list[str]], carrier: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """What is wrong with the bonds, and what is only worth a word; `wanted` are the members of each LACP bond.

    A member without a cable is worth a word as long as another one works.
    """
    wrong, words = [], []
    for bond, members in sorted(wanted.items()):
        facts = seen.get(bond, {}).get("members", {})
        dark = [member for member in members if not carrier.get(member)]
        wrong += [_fault(bond, member, facts) for member in members if member not in dark and not _works(facts, member)]
        if len(dark) == len(members):
            wrong.append(f"bond {bond}: no cable is plugged in ({', '.join(dark)})")
        else:
            words += [f"{member} of bond {bond} has no carrier" for member in dark]
    return wrong, words


def _works(facts: Mapping[str, Facts], member: str) -> bool:
    return bool(facts.get(member, {}).get("in_step"))


def _fault(bond: str, member: str, facts: Mapping[str, Facts]) -> str:
    where, seen = f"{member} of bond {bond}", facts.get(member)
    if seen is None:
        return f"{where} is not in the bond"
    if seen["speed"] is None:
        return f"{where} has no speed, and LACP of the kernel takes no member without one (ethtool {member})"
    if not seen.get("partner"):
        return (
            f"{where}: nobody answers LACP at the other end of its cable (partner MAC zero); look at the switch's port"
        )
    if not seen["aggregated"]:
        speeds = {item["speed"] for item in facts.values() if item["speed"]}
        why = (
            "its speed differs from the others'"
            if len(speeds) > 1
            else "its cable ends at another switch or port-channel"
        )
        return f"{where} is in another aggregator than the rest (partner {seen['partner']['system']}): {why}"
    return f"{where} is not in step with its partner {seen['partner']['system']} ({seen['lacp']})"
