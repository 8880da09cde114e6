# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be changed in a running VM at once; the rest waits for its next start. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .._xml import Property, devices, text_of
from . import bandwidth, disks, metadata, nics, spoofing, tuning

CHECKS = "address checks"
LINK = nics.PLACED["link"].place
DISK_LIMITS = {name: field.place for field in disks.COMMON if (name := field.name) in ("iops", "bandwidth")}
RECORD = ("tags", "owner", "rollback_safe")


def plugs(live: Element, definition: Element) -> list[tuple[str, str]]:
    """Words and device XML for each NIC that runs in other VLANs, on another bridge, or with another link than defined.

    Writes them into `live`. libvirt takes a change of a NIC only with its whole live XML.
    """
    changes = []
    wanted = {nics.nic_mac(nic): nic for nic in filter(nics.known, devices(definition, "interface"))}
    for nic in filter(nics.known, devices(live, "interface")):
        new = wanted.get(nics.nic_mac(nic))
        if new is None:
            continue
        words = [] if _bridge(nic) != _bridge(new) and _keeps_bridge(nic, new) else _replug(nic, nics.read(new))
        if words:
            changes.append((f"move nic {nics.nic_mac(nic)} at once {', '.join(words)}", text_of(nic)))
        before, after = LINK.get(nic) or "up", LINK.get(new) or "up"
        if before != after:
            LINK.put(nic, after)
            changes.append((f"set the link of nic {nics.nic_mac(nic)} at once from {before} to {after}", text_of(nic)))
    return changes


def _replug(nic: Element, after: Mapping[str, Any]) -> list[str]:
    """Write the bridge and the VLANs; the changes in words."""
    before, words = nics.read(nic), []
    if before["bridge"] != after["bridge"]:
        nics.PLACED["bridge"].place.put(nic, after["bridge"])
        words.append(f"from bridge {before['bridge']} to {after['bridge']}")
    if _carried(after) not in ("none", _carried(before)):
        for name in ("vlan", "trunks"):
            if after[name]:
                nics.PLACED[name].place.put(nic, after[name])
        words.append(f"from VLAN {_carried(before)} to {_carried(after)}")
    return words


def kept_plugs(live: Element, definition: Element) -> dict[str, str]:
    """Why a NIC changes its bridge at the next start only, by the words of the sheet's changes."""
    wanted = {nics.nic_mac(nic): nic for nic in filter(nics.known, devices(definition, "interface"))}
    found = {}
    for nic in filter(nics.known, devices(live, "interface")):
        mac = nics.nic_mac(nic)
        new = wanted.get(mac)
        if new is not None and _bridge(nic) != _bridge(new) and (reason := _keeps_bridge(nic, new)):
            found[f"nic {mac} bridge {_bridge(nic) or 'none'} -> {_bridge(new) or 'none'}"] = reason
    return found


def _bridge(nic: Element) -> str | None:
    bridge: str | None = nics.PLACED["bridge"].place.get(nic)
    return bridge


def _keeps_bridge(nic: Element, new: Element) -> str | None:
    """Why libvirt can't move it to the other bridge as it runs."""
    if None in (_bridge(nic), _bridge(new)):
        return "it goes from a bridge to a network, or back"
    kinds = [Property("virtualport/@type").get(one) for one in (nic, new)]
    if kinds[0] != kinds[1]:
        return "the bridges are of different kinds"
    if kinds[0] is None and _carried(nics.read(nic)) != _carried(nics.read(new)):
        return "its VLAN changes, too"
    if kinds[0] is not None:
        # It adds the port to the new one, while the old one has it (seen with 11.3).
        return "libvirt can't move it between bridges of Open vSwitch"
    return None


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


def disk_limits(live: Element, definition: Element) -> list[tuple[str, str, dict[str, int]]]:
    """Words, target and libvirt's parameters for each disk whose limits are not its definition's; writes them, too.

    A parameter of 0 takes a limit away.
    """
    changes = []
    wanted = {Property("target/@dev").get(disk): disk for disk in devices(definition, "disk")}
    for disk in devices(live, "disk"):
        target = Property("target/@dev").get(disk)
        new = wanted.get(target)
        if new is None or disks.read(disk) is None or disk.get("device") == "cdrom":
            continue
        texts, parameters = [], {}
        for name, place in DISK_LIMITS.items():
            before, after = place.get(disk) or {}, place.get(new) or {}
            if before != after:
                place.put(disk, after)
                texts.append(f"{name} {tuning.shown(name, before)} -> {tuning.shown(name, after)}")
                parameters.update({f"{way}_{place.unit}_sec": after.get(way, 0) for way in tuning.WAYS})
        if texts:
            changes.append((f"limit disk {target} at once: {', '.join(texts)}", target, parameters))
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
