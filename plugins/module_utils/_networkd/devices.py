# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the declaration to a table of devices: each NIC, bond, VLAN and bridge once, with all its options. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .._errors import Invalid
from .apply import USUAL_MTU
from .options import SAME_MODE

Device = dict[str, Any]
Devices = dict[str, Device]
LACP = "802.3ad"
HASHED = (LACP, "balance-xor")
NEW: Device = {
    "master": None,
    "master_kind": None,
    "mtu": None,
    "mac": None,
    "primary": False,
    "stp_path_cost": None,
    "stp_port_priority": None,
    "vlans": None,
    "stacked": [],
    "addresses": [],
    "dns": [],
    "routes": [],
    "settings": {},
}


def declared(params: Mapping[str, Any]) -> Devices:
    """The devices by name. Raises Invalid when the parts of the declaration do not fit together."""
    devices: Devices = {}
    for bond in params["bonds"]:
        _add_bond(devices, bond)
    for vlan in params["vlans"]:
        _add(devices, vlan["name"], "vlan", {"mtu": vlan["mtu"], "settings": _vlan(vlan["parent"], vlan["tag"])})
    for bridge in params["bridges"]:
        _add_bridge(devices, bridge)
    for bridge in params["bridges"]:
        _add_ports(devices, bridge)
    for item in params["addresses"]:
        _add_address(devices, item)
    for name, device in list(devices.items()):
        if device["kind"] == "vlan":
            parent = devices.setdefault(device["settings"]["parent"], {**NEW, "kind": "nic"})
            parent["stacked"] = sorted([*parent["stacked"], name])
    for device in devices.values():
        device["master_kind"] = devices[device["master"]]["kind"] if device["master"] else None
    _check_tree(devices)
    return devices


def below(devices: Mapping[str, Device], name: str) -> Iterator[str]:
    """The devices that carry this one: the members of a bond or bridge, the parent of a VLAN."""
    device = devices.get(name, NEW)
    yield from (other for other, item in devices.items() if item["master"] == name)
    if device["settings"].get("parent"):
        yield device["settings"]["parent"]


def _add(devices: Devices, name: str, kind: str, values: Mapping[str, Any]) -> None:
    if name in devices:
        raise Invalid(f"{name} is declared twice, as {devices[name]['kind']} and as {kind}", device=name)
    devices[name] = {**NEW, "kind": kind, **values}


def _vlan(parent: str, tag: int) -> Device:
    return {"parent": parent, "tag": tag}


def _add_bond(devices: Devices, bond: Mapping[str, Any], **more: Any) -> None:
    name, mode = bond["name"], SAME_MODE.get(bond["mode"], bond["mode"])
    _check_bond(name, mode, bond)
    settings = {
        "mode": mode,
        "lacp_time": (bond["lacp_time"] or "slow") if mode == LACP else None,
        "hash_policy": (bond["hash_policy"] or "layer3+4") if mode in HASHED else None,
        "min_links": bond["min_links"] if mode == LACP else None,
        **{key: bond[key] for key in ("miimon", "up_delay", "down_delay", "primary")},
    }
    _add(devices, name, "bond", {"mtu": bond["mtu"], "settings": settings, **more})
    for member in bond["members"]:
        _add(devices, member, "nic", {"master": name, "mtu": bond["mtu"], "primary": member == bond["primary"]})


def _check_bond(name: str, mode: str, bond: Mapping[str, Any]) -> None:
    where = f"bond {name}"
    if bond["lacp"] is not None and (bond["lacp"] == "active") != (mode == LACP):
        mend = "take mode 802.3ad" if bond["lacp"] == "active" else "the modes 802.3ad and balance-tcp are LACP"
        raise Invalid(f"{where}: mode {bond['mode']} and lacp: {bond['lacp']} do not go together; {mend}")
    if (bond["lacp_time"] or bond["min_links"]) and mode != LACP:
        raise Invalid(f"{where}: lacp_time and min_links have no effect in mode {mode}")
    if bond["hash_policy"] and mode not in (*HASHED, "balance-tlb"):
        raise Invalid(f"{where}: hash_policy has no effect in mode {mode}")
    if bond["primary"] and (
        mode not in ("active-backup", "balance-tlb", "balance-alb") or bond["primary"] not in bond["members"]
    ):
        raise Invalid(f"{where}: primary is one of the members, in mode active-backup, balance-tlb or balance-alb")
    for key in ("up_delay", "down_delay"):
        if bond[key] % bond["miimon"]:
            raise Invalid(f"{where}: the kernel rounds {key} to a multiple of miimon, {bond['miimon']} ms; write one")


def _add_bridge(devices: Devices, bridge: Mapping[str, Any]) -> None:
    settings = {key: bridge[key] for key in ("stp", "stp_priority", "mcast_snooping", "vlan_filtering")}
    own: Mapping[str, Any] = next((port for port in bridge["ports"] if port["name"] == bridge["name"]), {})
    if own.get("tag") or own.get("trunks"):
        raise Invalid(
            f"bridge {bridge['name']}: a VLAN of the host is a port of its own, with type: internal and a tag"
        )
    values = {"settings": settings, "mtu": bridge["mtu"] or own.get("mtu"), "mac": bridge["mac"] or own.get("mac")}
    _add(devices, bridge["name"], "bridge", values)


def _add_ports(devices: Devices, bridge: Mapping[str, Any]) -> None:
    name, filtering, mtu = bridge["name"], bridge["vlan_filtering"], devices[bridge["name"]]["mtu"]
    inside = []
    for port in [port for port in bridge["ports"] if port["name"] != name]:
        where = f"port {port['name']} of bridge {name}"
        if port["type"] == "internal":
            inside.append(_add_internal(devices, where, name, port))
            continue
        if port["mac"]:
            raise Invalid(f"{where}: mac is for a port with type: internal")
        plug = {**_plug(where, port, filtering), "master": name, "mtu": port["mtu"] or mtu}
        present = devices.setdefault(port["name"], {**NEW, "kind": "nic"})
        if present["master"] or present["kind"] == "bridge":
            raise Invalid(f"{where}: {port['name']} is {_what(present)} already", device=port["name"])
        present.update({**plug, "mtu": present["mtu"] or plug["mtu"]})
    for bond in bridge["bonds"]:
        plug = _plug(f"bond {bond['name']} of bridge {name}", bond, filtering)
        _add_bond(devices, {**bond, "mtu": bond["mtu"] or mtu}, master=name, **plug)
    if filtering:
        devices[name]["vlans"] = {"untagged": 1, "tagged": sorted(set(inside) - {1})}


def _add_internal(devices: Devices, where: str, bridge: str, port: Mapping[str, Any]) -> int:
    if port["tag"] is None or port["trunks"]:
        raise Invalid(
            f"{where}: an internal port of a Linux bridge has one tag; without a VLAN the bridge is that port"
        )
    values = {"mtu": port["mtu"], "mac": port["mac"], "settings": _vlan(bridge, port["tag"])}
    _add(devices, port["name"], "vlan", values)
    return int(port["tag"])


def _plug(where: str, port: Mapping[str, Any], filtering: bool) -> Device:
    """What the bridge keeps of a port. An access port has a tag; a trunk without a list carries all VLANs."""
    found = {key: port[key] for key in ("stp_path_cost", "stp_port_priority")}
    tag, trunks = port["tag"], port["trunks"]
    if (tag or trunks) and not filtering:
        raise Invalid(
            f"{where}: a bridge without vlan_filtering knows no VLANs; make a bridge for each VLAN (vlans: with this "
            "parent and tag, which is then the port of that bridge), or set vlan_filtering: true"
        )
    if tag and trunks:
        raise Invalid(f"{where}: an access port has a tag, a trunk has trunks")
    tagged = [] if tag else trunks or list(range(2, 4095))
    vlans = {"untagged": tag or (None if trunks else 1), "tagged": tagged}
    return {**found, "vlans": vlans if filtering else None}


def _add_address(devices: Devices, item: Mapping[str, Any]) -> None:
    name = item["name"]
    device = devices.setdefault(name, {**NEW, "kind": "nic"})
    if device["master"]:
        raise Invalid(f"{name} is {_what(device)}, where an address has no effect; give it to {device['master']}")
    routes = [["default", gateway] for gateway in item["gateway"]]
    routes += [[route["to"], route["via"]] for route in item["routes"]]
    more = {"mtu": device["mtu"] or item["mtu"], "addresses": item["addresses"], "dns": item["dns"]}
    device.update({**more, "routes": sorted(routes)})


def _what(device: Device) -> str:
    return f"in {device['master']}" if device["master"] else f"a {device['kind']}"


def _check_tree(devices: Devices) -> None:
    for name, device in devices.items():
        seen, left = set(), list(below(devices, name))
        while left:
            carrier = left.pop()
            if carrier == name:
                raise Invalid(f"{name} would carry itself: it is below one of its own ports or VLANs", device=name)
            if carrier not in seen:
                seen.add(carrier)
                left += below(devices, carrier)
        if device["kind"] == "vlan" and (device["mtu"] or 0) > (mtu_of(devices, device["settings"]["parent"]) or 65535):
            raise Invalid(
                f"VLAN {name}: its mtu is larger than that of {device['settings']['parent']}; set mtu there too"
            )
    places: dict[tuple[str, int], str] = {}
    for name, device in devices.items():
        if device["kind"] == "vlan":
            place = (device["settings"]["parent"], device["settings"]["tag"])
            if place in places:
                raise Invalid(f"VLAN {place[1]} on {place[0]} is declared twice: {places[place]} and {name}")
            places[place] = name


def mtu_of(devices: Devices, name: str) -> int | None:
    """The MTU in bytes that a device will have; None when nothing here says it."""
    device = devices[name]
    return device["mtu"] or (None if device["kind"] == "nic" else USUAL_MTU)
