# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be changed in a running VM at once; the rest waits for its next start. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .._xml import devices, text_of
from . import bandwidth, metadata, nics, spoofing

CHECKS = "address checks"
RECORD = ("tags", "owner", "rollback_safe")


def vlans(live: Element, sheet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Words and device XML for each NIC that runs in other VLANs than its sheet says; writes them into `live`.

    libvirt takes a change of a NIC only with its whole live XML.
    """
    changes = []
    wanted = {nic["mac"]: nic for nic in sheet["nics"]}
    for nic in filter(nics.known, devices(live, "interface")):
        before = nics.read(nic)
        after = wanted.get(nics.nic_mac(nic))
        if not after or before["bridge"] != after["bridge"] or _carried(before) == _carried(after) == "none":
            continue
        if _carried(after) != "none" and _carried(before) != _carried(after):
            for name in ("vlan", "trunks"):
                if after[name]:
                    nics.PLACED[name].place.put(nic, after[name])
            words = f"move nic {after['mac']} at once from VLAN {_carried(before)} to {_carried(after)}"
            changes.append((words, text_of(nic)))
    return changes


def _carried(nic: Mapping[str, Any]) -> str:
    return ", ".join(map(str, [nic["vlan"]] if nic["vlan"] else nic["trunks"] or [])) or "none"


def limits(live: Element, sheet: Mapping[str, Any]) -> list[tuple[str, str, dict[str, int]]]:
    """Words, MAC address and libvirt's parameters for each NIC whose limits are not its sheet's; writes them, too."""
    changes = []
    wanted = {nic["mac"]: nic for nic in sheet["nics"]}
    for nic in filter(nics.known, devices(live, "interface")):
        before, after = bandwidth.BANDWIDTH.get(nic), wanted.get(nics.nic_mac(nic))
        if after is not None and before != (after["bandwidth"] or {}):
            limit = after["bandwidth"] or {}
            bandwidth.BANDWIDTH.put(nic, limit)
            words = f"limit nic {after['mac']} at once: {bandwidth.words(before)} -> {bandwidth.words(limit)}"
            changes.append((words, after["mac"], bandwidth.parameters(limit)))
    return changes


def said(live: Element, definition: Element, names: Sequence[str]) -> list[str]:
    """What the record of a running VM says otherwise than its definition's, of these names; writes it into `live`."""
    before, wanted = metadata.read(live), metadata.read(definition)
    changed = [name for name in names if before.get(name) != wanted.get(name)]
    if changed:
        metadata.edit(live, {name: wanted.get(name) for name in changed})
    return changed


def checks(live: Element, definition: Element) -> str | None:
    """The words for what is said of its NICs, in the same way."""
    before, wanted = metadata.nics(live), metadata.nics(definition)
    if before == wanted:
        return None
    metadata.set_nics(live, wanted)
    return CHECKS if _checked(before) != _checked(wanted) else "declared addresses"


def _checked(said: Mapping[str, Mapping[str, str]]) -> dict[str, list[str | None]]:
    """What the guard of the ports reads of it."""
    found = {mac: [words.get(name) for name in spoofing.RECORD] for mac, words in said.items()}
    return {mac: words for mac, words in found.items() if any(words)}
