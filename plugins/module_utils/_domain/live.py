# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that can be changed in a running VM at once; the rest waits for its next start. Pure.

What of the machine itself can is in scaling.py, which devices come and go in attaching.py. Here is what changes in
those that stay, and the record of the VM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from .._xml import Property, devices, target_of, text_of
from . import attaching, bandwidth, cloud_init, disks, metadata, nics, scaling, spoofing, tuning
from .scaling import Change

if TYPE_CHECKING:
    from .._libvirt import Node

CHECKS = "address checks"
LINK = nics.PLACED["link"].place
DISK_LIMITS = {field.name: field.place for field in disks.COMMON if field.when == "live"}
RECORD = ("tags", "owner", "rollback_safe", "on_maintenance", "min_memory")


DEVICES = {"disks": "disk", "nics": "interface"}


@dataclass(frozen=True)
class Live:
    """What changes at once: ahead of the definition, after it, and the devices that come and go at last."""

    ahead: list[Change] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    devices: list[attaching.Change] = field(default_factory=list)


def plan(live: Element, before: Element, after: Element, given: Collection[str], awake: bool) -> Live:
    """What makes a running VM what its definition becomes, in the options that were given; writes it into `live`.

    `before` and `after` are its definition before and after the task. `awake` says whether the guest's CPUs run.
    """
    plugged = attaching.plan(live, after, [kind for name, kind in DEVICES.items() if name in given], awake)
    if "cloud_init" in given and not (cloud_init.read(after) or {}).get("medium"):
        plugged += _seed(live)
    ahead = scaling.changes(live, before, after, given, ahead=True)
    changes = _plugs(live, after) if "nics" in given else []
    changes += scaling.changes(live, before, after, given, ahead=False)
    if "nics" in given:
        changes += _limits(live, after)
    if "disks" in given:
        changes += _disk_limits(live, after)
    return Live(ahead, changes + _record(live, after, given), plugged)


def _seed(live: Element) -> list[attaching.Change]:
    """Take out what cloud-init has read; writes it, too."""
    drive = cloud_init.eject(live)
    target = str(cloud_init.target(live))
    return [] if drive is None else [attaching.Change("load", "disk", target, text_of(drive).strip())]


def reasons(live: Element, definition: Element, awake: bool) -> dict[str, str]:
    """Why what could change at once waits for the next start, by the words of the sheet's changes."""
    found = attaching.reasons(live, definition, awake)
    found.update(scaling.reasons(live, definition))
    found.update(_kept_plugs(live, definition))
    return found


def _nics(live: Element, definition: Element) -> Iterator[tuple[Element, Element]]:
    """Each NIC that runs and is defined, both ways."""
    wanted = {nics.nic_mac(nic): nic for nic in filter(nics.known, devices(definition, "interface"))}
    for nic in filter(nics.known, devices(live, "interface")):
        if nics.nic_mac(nic) in wanted:
            yield nic, wanted[nics.nic_mac(nic)]


def _plugs(live: Element, definition: Element) -> list[Change]:
    """Each NIC that runs in other VLANs, on another bridge, or with another link than defined; writes it, too.

    libvirt takes a change of a NIC only with its whole live XML.
    """
    changes = []
    said = bool(metadata.NICS.get(definition))
    for nic, new in _nics(live, definition):
        mac = nics.nic_mac(nic)
        moves = [] if _bridge(nic) != _bridge(new) and _keeps_bridge(nic, new) else _replug(nic, nics.read(new))
        if moves:
            words = f"move nic {mac} at once {', '.join(moves)}"
            changes.append(Change(words, partial(_update, text_of(nic)), said))
        before, after = LINK.get(nic) or "up", LINK.get(new) or "up"
        if before != after:
            LINK.put(nic, after)
            words = f"set the link of nic {mac} at once from {before} to {after}"
            changes.append(Change(words, partial(_update, text_of(nic)), said))
    return changes


def _update(xml: str, node: Node, name: str) -> None:
    node.update_device(name, xml, live=True, config=False)


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


def _kept_plugs(live: Element, definition: Element) -> dict[str, str]:
    """Why a NIC changes its bridge at the next start only, by the words of the sheet's changes."""
    return {
        f"nic {nics.nic_mac(nic)} bridge {_bridge(nic) or 'none'} -> {_bridge(new) or 'none'}": reason
        for nic, new in _nics(live, definition)
        if _bridge(nic) != _bridge(new) and (reason := _keeps_bridge(nic, new))
    }


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


def _limits(live: Element, definition: Element) -> list[Change]:
    """Each NIC whose limits are not its definition's; writes them, too."""
    changes = []
    for nic, new in _nics(live, definition):
        before, after = bandwidth.BANDWIDTH.get(nic) or {}, bandwidth.BANDWIDTH.get(new) or {}
        if before != after:
            bandwidth.BANDWIDTH.put(nic, after)
            words = f"limit nic {nics.nic_mac(nic)} at once: {bandwidth.words(before)} -> {bandwidth.words(after)}"
            changes.append(Change(words, partial(_limit, nics.nic_mac(nic) or "", bandwidth.parameters(after))))
    return changes


def _limit(mac: str, parameters: Mapping[str, int], node: Node, name: str) -> None:
    node.set_bandwidth(name, mac, parameters)


def _disk_limits(live: Element, definition: Element) -> list[Change]:
    """Each disk whose limits are not its definition's; writes them, too. A parameter of 0 takes a limit away."""
    changes = []
    wanted = {target_of(disk): disk for disk in devices(definition, "disk")}
    for disk in devices(live, "disk"):
        target = target_of(disk)
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
            words = f"limit disk {target} at once: {', '.join(texts)}"
            changes.append(Change(words, partial(_limit_disk, target, parameters)))
    return changes


def _limit_disk(target: str, parameters: Mapping[str, int], node: Node, name: str) -> None:
    node.set_disk_limits(name, target, parameters)


def _record(live: Element, definition: Element, given: Collection[str]) -> list[Change]:
    """What the record of the running VM says otherwise than its definition's; writes it, too."""
    before, wanted = metadata.read(live), metadata.read(definition)
    changed = [name for name in RECORD if name in given and before.get(name) != wanted.get(name)]
    if changed:
        metadata.edit(live, {name: wanted.get(name) for name in changed})
    if "nics" in given and (words := _checks(live, definition)):
        changed.append(words)
    if "disks" in given and (said := metadata.DISKS.get(definition)) != metadata.DISKS.get(live):
        metadata.DISKS.put(live, said)
        changed.append("declared WWIDs")
    if not changed:
        return []
    words = f"change the {' and '.join(changed)} of {Property('name').get(definition)} as it runs"
    return [Change(words, partial(_write_record, metadata.record_xml(live)), CHECKS in changed)]


def _write_record(record: str | None, node: Node, name: str) -> None:
    node.set_metadata(name, metadata.PREFIX, metadata.NAMESPACE, record, live=True, config=False)


def _checks(live: Element, definition: Element) -> str | None:
    """The words for what is said of its NICs, in the same way."""
    before, wanted = metadata.NICS.get(live), metadata.NICS.get(definition)
    if before == wanted:
        return None
    metadata.NICS.put(live, wanted)
    return CHECKS if _checked(before) != _checked(wanted) else "declared addresses"


def _checked(said: Mapping[str, Mapping[str, str]]) -> dict[str, list[str | None]]:
    """What the guard of the ports reads of it."""
    found = {mac: [words.get(name) for name in spoofing.RECORD] for mac, words in said.items()}
    return {mac: words for mac, words in found.items() if any(words)}
