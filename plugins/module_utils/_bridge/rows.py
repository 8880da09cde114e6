# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge's rows in OVSDB as a state of plain data, and the change of rows that leads to another state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._ovs import Change, Row, Snapshot

State = dict[str, Any]
MARK = "drover-managed"
LACP_TIME = "lacp-time"
IN_STEP = "current attached"
UNKNOWN = "unknown"
VM_IDS = {"iface-id", "attached-mac", "vm-id"}
VLAN_KEYS = ("tag", "trunks", "vlan_mode")
# OVS keeps an empty cell for its own default; the state names it, so that asking for the default is no change.
NEW_PORT: State = {
    "type": "system",
    "tag": None,
    "trunks": [],
    "vlan_mode": None,
    "peer": None,
    "mac": None,
    "mtu": None,
    "external_ids": {},
    "other_config": {},
    "managed": True,
}
NEW_BOND: State = {
    "members": [],
    "mode": "active-backup",
    "lacp": "off",
    "lacp_time": "slow",
    "tag": None,
    "trunks": [],
    "vlan_mode": None,
    "mtu": None,
    "other_config": {},
    "managed": True,
}


def describe(snapshot: Snapshot, name: str) -> State | None:
    """The state of the bridge, None when there is none. The ports of virtual machines are libvirt's: left out."""
    bridge = snapshot.find("Bridge", name)
    if bridge is None:
        return None
    state: State = {
        "name": name,
        "datapath_type": bridge["datapath_type"] or "system",
        "fail_mode": bridge["fail_mode"],
        "rstp": bridge["rstp_enable"],
        "external_ids": bridge["external_ids"],
        "other_config": bridge["other_config"],
        "ports": {},
        "bonds": {},
    }
    for port in snapshot.rows("Port", bridge["ports"]):
        interfaces = snapshot.rows("Interface", port["interfaces"])
        if is_vm_port(port, interfaces):
            continue
        if [interface["name"] for interface in interfaces] == [port["name"]]:
            state["ports"][port["name"]] = _port_state(port, interfaces[0])
        else:
            state["bonds"][port["name"]] = _bond_state(port, interfaces)
    return state


def is_vm_port(port: Row, interfaces: list[Row]) -> bool:
    """Whether a port belongs to a virtual machine: libvirt's names and ids, unless the port is marked as ours."""
    if MARK in port["external_ids"]:
        return False
    return port["name"].startswith("vnet") or any(VM_IDS & set(row["external_ids"]) for row in interfaces)


def vm_ports(snapshot: Snapshot, name: str) -> list[str]:
    """The names of the ports of virtual machines on this bridge."""
    bridge = snapshot.find("Bridge", name)
    ports = snapshot.rows("Port", bridge["ports"]) if bridge else []
    return [port["name"] for port in ports if is_vm_port(port, snapshot.rows("Interface", port["interfaces"]))]


def owners(snapshot: Snapshot) -> dict[str, tuple[str, str]]:
    """Every port and interface name in use, with the bridge and the port that it belongs to."""
    used: dict[str, tuple[str, str]] = {}
    for bridge in snapshot.tables["Bridge"].values():
        for port in snapshot.rows("Port", bridge["ports"]):
            names = [interface["name"] for interface in snapshot.rows("Interface", port["interfaces"])]
            used.update(dict.fromkeys([port["name"], *names], (bridge["name"], port["name"])))
    return used


def _port_state(port: Row, interface: Row) -> State:
    return {
        "type": interface["type"] or "system",
        **{key: port[key] for key in VLAN_KEYS},
        "peer": interface["options"].get("peer"),
        "mac": interface["mac"],
        "mtu": interface["mtu_request"],
        "external_ids": interface["external_ids"],
        "other_config": port["other_config"],
        "managed": MARK in port["external_ids"],
    }


def _bond_state(port: Row, interfaces: list[Row]) -> State:
    sizes = {interface["mtu_request"] for interface in interfaces}
    return {
        "members": sorted(interface["name"] for interface in interfaces),
        "mode": port["bond_mode"] or NEW_BOND["mode"],
        "lacp": port["lacp"] or NEW_BOND["lacp"],
        "lacp_time": port["other_config"].get(LACP_TIME, NEW_BOND["lacp_time"]),
        **{key: port[key] for key in VLAN_KEYS},
        "mtu": sizes.pop() if len(sizes) == 1 else None,
        "other_config": {key: value for key, value in port["other_config"].items() if key != LACP_TIME},
        "managed": MARK in port["external_ids"],
    }


def change(snapshot: Snapshot, name: str, before: State | None, wanted: State | None) -> Change:
    """The one transaction that makes `wanted` of `before`; the two must differ."""
    result = Change(snapshot)
    root = snapshot.root["_uuid"]
    bridge = snapshot.find("Bridge", name)
    if wanted is None or before is None or bridge is None:
        if bridge is not None:
            result.guard("Bridge", bridge["_uuid"], ["ports"])
            result.mutate("Open_vSwitch", root, "bridges", add=[], remove=[bridge["_uuid"]])
        if wanted is not None:
            ports = [_insert_port(result, port, rows) for port, rows in _ports(wanted).items()]
            row = {"name": name, **_bridge_row(wanted), "ports": ports}
            result.mutate("Open_vSwitch", root, "bridges", add=[result.insert("Bridge", row)], remove=[])
        return result
    columns = _differing(_bridge_row(before), _bridge_row(wanted))
    if columns:
        result.update("Bridge", bridge["_uuid"], columns)
    old, new = _ports(before), _ports(wanted)
    for port in sorted(old.keys() & new.keys()):
        _update_port(result, port, old[port], new[port])
    added = [_insert_port(result, port, new[port]) for port in sorted(new.keys() - old.keys())]
    gone = [_guarded_port(result, port) for port in sorted(old.keys() - new.keys())]
    result.mutate("Bridge", bridge["_uuid"], "ports", add=added, remove=gone)
    return result


def _bridge_row(state: State) -> Row:
    columns = ("datapath_type", "fail_mode", "external_ids", "other_config")
    return {**{column: state[column] for column in columns}, "rstp_enable": state["rstp"]}


def _ports(state: State) -> dict[str, tuple[Row, dict[str, Row]]]:
    """Of every port and bond: the columns of its Port row, and of its Interface rows by name."""
    rows: dict[str, tuple[Row, dict[str, Row]]] = {}
    for name, port in state["ports"].items():
        columns = {**_port_row(port), "other_config": port["other_config"], "bond_mode": None, "lacp": None}
        interface = {
            "type": "" if port["type"] == "system" else port["type"],
            "options": {"peer": port["peer"]} if port["peer"] else {},
            "mac": port["mac"],
            "mtu_request": port["mtu"],
            "external_ids": port["external_ids"],
        }
        rows[name] = (columns, {name: interface})
    for name, bond in state["bonds"].items():
        settings = {**bond["other_config"], LACP_TIME: bond["lacp_time"]}
        columns = {**_port_row(bond), "other_config": settings, "bond_mode": bond["mode"], "lacp": bond["lacp"]}
        rows[name] = (columns, {member: {"type": "", "mtu_request": bond["mtu"]} for member in bond["members"]})
    return rows


def _port_row(port: State) -> Row:
    mark = {MARK: "true"} if port["managed"] else {}
    return {**{key: port[key] for key in VLAN_KEYS}, "external_ids": mark}


def _differing(old: Row, new: Row) -> Row:
    return {column: value for column, value in new.items() if column not in old or old[column] != value}


def _insert_port(result: Change, name: str, rows: tuple[Row, dict[str, Row]]) -> str:
    columns, interfaces = rows
    members = [_interface(result, member, {}, row) for member, row in sorted(interfaces.items())]
    return result.insert("Port", {"name": name, **columns, "interfaces": members})


def _interface(result: Change, name: str, old: Row, new: Row) -> str:
    """A reference to the interface, made or changed; one that leaves another port is taken over as it is."""
    row = result.snapshot.find("Interface", name)
    if row is None:
        return result.insert("Interface", {"name": name, **new})
    columns = _differing(old, new)
    if "options" in columns:
        kept = {key: value for key, value in row["options"].items() if key != "peer"}
        columns["options"] = {**kept, **columns["options"]}
    columns = {column: value for column, value in columns.items() if row[column] != value}
    if columns:
        result.update("Interface", row["_uuid"], columns)
    return str(row["_uuid"])


def _update_port(result: Change, name: str, old: tuple[Row, dict[str, Row]], new: tuple[Row, dict[str, Row]]) -> None:
    if old == new:
        return
    row = result.snapshot.get("Port", name)
    columns = _differing(old[0], new[0])
    if "external_ids" in columns:
        columns["external_ids"] = {**row["external_ids"], **columns["external_ids"]}
    members = [_interface(result, member, old[1].get(member, {}), ids) for member, ids in sorted(new[1].items())]
    if sorted(members) != sorted(row["interfaces"]):
        columns["interfaces"] = members
    if columns:
        result.update("Port", row["_uuid"], columns)


def _guarded_port(result: Change, name: str) -> str:
    row = result.snapshot.get("Port", name)
    result.guard("Port", row["_uuid"], ["external_ids", "interfaces"])
    return str(row["_uuid"])


def runtime(snapshot: Snapshot, name: str, lacp: Mapping[str, str]) -> State:
    """What ovs-vswitchd says of the bridge now; it may change at any time by itself."""
    bridge = snapshot.find("Bridge", name)
    state: State = {"applied": snapshot.applied, "interfaces": {}, "bonds": {}, "vm_ports": vm_ports(snapshot, name)}
    for port in snapshot.rows("Port", bridge["ports"]) if bridge else []:
        rows = snapshot.rows("Interface", port["interfaces"])
        for row in rows:
            state["interfaces"][row["name"]] = {key: row[key] for key in ("ofport", "error", "link_state", "mtu")}
        if len(rows) > 1:
            speaks = port["lacp"] not in (None, "off")
            members = {
                row["name"]: {"link_state": row["link_state"], "lacp": lacp.get(row["name"]) if speaks else None}
                for row in rows
            }
            heard = any(member["lacp"] == IN_STEP for member in members.values())
            status = ("negotiated" if heard else "waiting") if speaks else "off"
            state["bonds"][port["name"]] = {"lacp_status": status, "members": members}
    return state


def problems(snapshot: Snapshot, state: State) -> list[str]:
    """What ovs-vswitchd could not do for the ports that are ours, one sentence for each interface."""
    found = []
    for name, port in {**state["ports"], **state["bonds"]}.items():
        if port.get("type") == "patch" or not (port["managed"] or name == state["name"]):
            continue  # a patch cable has one end until the task of the other bridge has run
        for member in port.get("members", [name]):
            row = snapshot.find("Interface", member) or {"error": "it is gone", "ofport": -1}
            if row["error"] or row["ofport"] == -1:
                of_bond = f" of bond {name}" if "members" in port else ""
                why = row["error"] or "Open vSwitch gave it no port number"
                found.append(f"{member}{of_bond} on bridge {state['name']}: {why}")
    return found


def open_ends(snapshot: Snapshot, state: State) -> list[str]:
    """The patch ports whose other end does not exist yet."""
    return [
        f"patch port {name} of bridge {state['name']} leads nowhere: there is no port {port['peer']} yet"
        for name, port in state["ports"].items()
        if port["type"] == "patch" and port["managed"] and not snapshot.find("Interface", port["peer"])
    ]


def speaks_lacp(state: State | None) -> bool:
    """Whether a bond of the bridge speaks LACP."""
    return any(bond["lacp"] != "off" for bond in (state or {"bonds": {}})["bonds"].values())


def out_of_step(state: State | None, lacp: Mapping[str, str], alone: bool = False) -> list[str]:
    """The bonds with LACP of which a member (`alone`: every member) waits for a partner, and how these stand."""
    found = []
    for name, bond in (state or {"bonds": {}})["bonds"].items():
        late = [member for member in bond["members"] if lacp.get(member) != IN_STEP]
        if bond["lacp"] != "off" and late and not (alone and len(late) < len(bond["members"])):
            found.append(f"{name} ({', '.join(f'{member} is {lacp.get(member, UNKNOWN)}' for member in late)})")
    return found
