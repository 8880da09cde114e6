# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports of VMs: how their taps are plugged, how they shall be, and the one transaction that mends them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._ovs import Change, Row, Snapshot
from .options import VLAN_KEYS
from .rows import owners

Ports = dict[str, dict[str, Any]]
NOWHERE: dict[str, Any] = {
    "type": None,
    "bridge": None,
    "tag": None,
    "trunks": [],
    "vlan_mode": None,
    "external_ids": {},
}
PLUG = ("type", "bridge")
# Our external id: what the guard of the port shall know beyond what libvirt writes.
POLICY, OPEN = "drover-port", "open"


def seen(snapshot: Snapshot | None, kernel: Mapping[str, str | None], vlans: Ports, taps: Ports) -> Ports:
    """How each of the taps is plugged now. `kernel` are the kernel's own bridges by tap, `vlans` their VLANs there.

    Of the external ids only those that libvirt writes count, and ours.
    """
    switched = owners(snapshot) if snapshot else {}
    return {
        name: _switched(snapshot, owner, tap)
        if snapshot and (owner := switched.get(name))
        else _plugged(kernel.get(name), vlans.get(name), tap)
        for name, tap in taps.items()
    }


def _plugged(bridge: str | None, vlans: Mapping[str, Any] | None, tap: Row) -> dict[str, Any]:
    """A tap in a bridge of the kernel, or nowhere. VLANs count only for one that libvirt gave some."""
    found = {**NOWHERE, "vm": tap["vm"], "mac": tap["mac"]}
    if not bridge:
        return found
    if vlans and has_vlan(tap):
        trunks = vlans["tagged"] + ([vlans["untagged"]] if vlans["untagged"] and tap["trunks"] else [])
        found.update({"tag": vlans["untagged"], "trunks": sorted(trunks), "vlan_mode": tap["vlan_mode"]})
    return {**found, "type": "linux", "bridge": bridge}


def has_vlan(tap: Mapping[str, Any]) -> bool:
    """Whether libvirt gave the NIC a VLAN."""
    return bool(tap["tag"] or tap["trunks"])


def _switched(snapshot: Snapshot, owner: tuple[str, str], tap: Row) -> dict[str, Any]:
    known = {"vm": tap["vm"], "mac": tap["mac"]}
    port, ids = snapshot.get("Port", owner[1]), snapshot.get("Interface", tap["tap"])["external_ids"]
    return {
        **known,
        "type": "ovs",
        "bridge": owner[0],
        **{key: port[key] for key in VLAN_KEYS},
        "external_ids": {key: ids[key] for key in (*tap["external_ids"], POLICY) if key in ids},
    }


def declared(taps: Ports) -> Ports:
    """How each tap shall be plugged, in the shape of `seen`."""
    return {name: {key: tap[key] for key in ("vm", "mac", *NOWHERE)} for name, tap in taps.items()}


def words(before: Ports, wanted: Ports) -> list[str]:
    """A sentence for each tap that is not as it shall be, sorted."""
    return [_sentence(name, before[name], wanted[name]) for name in sorted(wanted) if before[name] != wanted[name]]


def _sentence(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    whose = f"{name} of VM {new['vm']}"
    if old["bridge"] is None:
        return f"plug {whose} into bridge {new['bridge']}{_vlan(new)}"
    if any(old[key] != new[key] for key in PLUG):
        return f"move {whose} from bridge {old['bridge']} to bridge {new['bridge']}{_vlan(new)}"
    if any(old[key] != new[key] for key in VLAN_KEYS):
        return f"set {whose} on bridge {new['bridge']}: {_shown(old)} -> {_shown(new)}"
    return f"set the external ids of {whose} on bridge {new['bridge']}"


def _vlan(port: Mapping[str, Any]) -> str:
    return f" ({_shown(port)})" if port["type"] == "ovs" or has_vlan(port) else ""


def _shown(port: Mapping[str, Any]) -> str:
    parts = [f"VLAN {port['tag']}"] if port["tag"] else []
    parts += [f"trunk of VLANs {', '.join(map(str, port['trunks']))}"] if port["trunks"] else []
    parts += [str(port["vlan_mode"])] if port["vlan_mode"] else []
    return ", ".join(parts) or "no VLAN"


def change(snapshot: Snapshot, before: Ports, wanted: Ports) -> Change | None:
    """The one transaction for all that concerns Open vSwitch; None when nothing does."""
    result = Change(snapshot)
    added: dict[str, list[str]] = {}
    removed: dict[str, list[str]] = {}
    for name in sorted(wanted):
        old, new = before[name], wanted[name]
        if old == new:
            continue
        stays = old["type"] == new["type"] == "ovs" and old["bridge"] == new["bridge"]
        if stays:
            _update(result, name, old, new)
            continue
        if old["type"] == "ovs":
            removed.setdefault(old["bridge"], []).append(_leaving(result, name))
        if new["type"] == "ovs":
            added.setdefault(new["bridge"], []).append(_insert(result, name, new))
    for bridge in sorted({*added, *removed}):
        row_id = snapshot.get("Bridge", bridge)["_uuid"]
        result.mutate("Bridge", row_id, "ports", add=added.get(bridge, []), remove=removed.get(bridge, []))
    return result if result.operations else None


def _insert(result: Change, name: str, new: Mapping[str, Any]) -> str:
    interface = result.insert("Interface", {"name": name, "external_ids": new["external_ids"]})
    vlans = {key: new[key] for key in VLAN_KEYS}
    return result.insert("Port", {"name": name, **vlans, "interfaces": [interface]})


def _update(result: Change, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    port, interface = result.snapshot.get("Port", name), result.snapshot.get("Interface", name)
    vlans = {key: new[key] for key in VLAN_KEYS if old[key] != new[key]}
    if vlans:
        result.update("Port", port["_uuid"], vlans)
    if old["external_ids"] != new["external_ids"]:
        others = {key: value for key, value in interface["external_ids"].items() if key != POLICY}
        ids = {**others, **new["external_ids"]}
        result.update("Interface", interface["_uuid"], {"external_ids": ids})


def _leaving(result: Change, name: str) -> str:
    port = result.snapshot.get("Port", name)
    result.guard("Port", port["_uuid"], ["external_ids", "interfaces"])
    return str(port["_uuid"])


def kernel_moves(before: Ports, wanted: Ports) -> list[tuple[str, str | None]]:
    """The taps that change their bridge of the kernel, with the new one; None where they leave the kernel's bridges."""
    changed = [name for name in sorted(wanted) if any(before[name][key] != wanted[name][key] for key in PLUG)]
    into = [(name, str(wanted[name]["bridge"])) for name in changed if wanted[name]["type"] == "linux"]
    left = [name for name in changed if before[name]["type"] == "linux" and wanted[name]["type"] == "ovs"]
    return [*((name, None) for name in left), *into]


def kernel_vlans(before: Ports, wanted: Ports) -> list[str]:
    """The taps in bridges of the kernel whose VLANs are to be set: those of a new place, and those that are wrong."""
    taps = [name for name in sorted(wanted) if wanted[name]["type"] == "linux" and has_vlan(wanted[name])]
    return [name for name in taps if before[name] != wanted[name]]


def missing(wanted: Ports, switched: Sequence[str], kernel: Sequence[str]) -> dict[str, list[str]]:
    """The bridges that are not there, each with the VMs that belong into it."""
    there = {("ovs", name) for name in switched} | {("linux", name) for name in kernel}
    found: dict[str, set[str]] = {}
    for port in wanted.values():
        if (port["type"], port["bridge"]) not in there:
            found.setdefault(port["bridge"], set()).add(port["vm"])
    return {bridge: sorted(vms) for bridge, vms in sorted(found.items())}


def problems(snapshot: Snapshot, wanted: Ports) -> list[str]:
    """What ovs-vswitchd could not do for these ports, one sentence for each."""
    found = []
    for name in sorted(name for name, port in wanted.items() if port["type"] == "ovs"):
        row = snapshot.find("Interface", name)
        if row and (row["error"] or row["ofport"] == -1):
            found.append(f"{name} of VM {wanted[name]['vm']}: {row['error'] or 'Open vSwitch gave it no port number'}")
    return found
