# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ovs-vswitchd says of a bridge now, and what of it is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .._ovs import Row, Snapshot
from .options import State
from .rows import vm_ports

IN_STEP = "current attached"
UNKNOWN = "unknown"


def runtime(snapshot: Snapshot, name: str, lacp: Mapping[str, str]) -> State:
    """What ovs-vswitchd says of the bridge now; it may change at any time by itself."""
    bridge = snapshot.find("Bridge", name)
    state: State = {"applied": snapshot.applied, "interfaces": {}, "bonds": {}, "vm_ports": vm_ports(snapshot, name)}
    controllers = [snapshot.tables["Controller"][row_id] for row_id in bridge["controller"]] if bridge else []
    state["controllers"] = {row["target"]: row["is_connected"] for row in controllers}
    state["rstp"] = _rstp(snapshot, bridge) if bridge and bridge["rstp_enable"] else None
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


def _rstp(snapshot: Snapshot, bridge: Row) -> State:
    """Who is the root of the tree, and the part that each port plays in it."""
    status = bridge["rstp_status"]
    state: State = {key: status.get(f"rstp_{key}") for key in ("bridge_id", "root_id")}
    state["ports"] = {
        port["name"]: {key: port["rstp_status"].get(f"rstp_port_{key}") for key in ("role", "state")}
        for port in snapshot.rows("Port", bridge["ports"])
        if port["rstp_status"]
    }
    return state


def rstp_starts(snapshot: Snapshot, name: str) -> bool:
    """Whether RSTP is switched on and has not said yet which part the bridge plays."""
    bridge = snapshot.find("Bridge", name)
    return bool(bridge and bridge["rstp_enable"] and not bridge["rstp_status"])


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


def cut_off(snapshot: Snapshot, taps: Collection[str]) -> list[str]:
    """A warning when taps of virtual machines are in no bridge of Open vSwitch, as after theirs was lost."""
    used = {row["name"] for row in snapshot.tables["Interface"].values()}
    lost = ", ".join(sorted(set(taps) - used))
    return [f"{lost} of virtual machines are in no bridge: module drover.kvm.vm_ports plugs them again"] if lost else []


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
