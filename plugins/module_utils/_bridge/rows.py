# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bridge's rows in OVSDB as a state of plain data."""

from __future__ import annotations

from .._ovs import Row, Snapshot
from . import queues
from .options import BOND, BRIDGE, MARK, MIRROR, PORT, State, read

VM_IDS = {"iface-id", "attached-mac", "vm-id"}


def describe(snapshot: Snapshot, name: str) -> State | None:
    """The state of the bridge, None when there is none. The ports of virtual machines are libvirt's: left out."""
    bridge = snapshot.find("Bridge", name)
    if bridge is None:
        return None
    controllers = [snapshot.tables["Controller"][row_id]["target"] for row_id in bridge["controller"]]
    state: State = {"name": name, **read(BRIDGE, "Bridge", bridge), "controllers": sorted(controllers)}
    state.update(ports={}, bonds={}, mirrors={})
    for port in snapshot.rows("Port", bridge["ports"]):
        interfaces = snapshot.rows("Interface", port["interfaces"])
        if is_vm_port(port, interfaces):
            continue
        if [interface["name"] for interface in interfaces] == [port["name"]]:
            state["ports"][port["name"]] = _port_state(snapshot, port, interfaces[0])
        else:
            state["bonds"][port["name"]] = _bond_state(snapshot, port, interfaces)
    for mirror in snapshot.rows("Mirror", bridge["mirrors"]):
        state["mirrors"][mirror["name"]] = _mirror_state(snapshot, mirror)
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


def _port_state(snapshot: Snapshot, port: Row, interface: Row) -> State:
    own = {"qos": queues.describe(snapshot, port), "managed": MARK in port["external_ids"]}
    return {**read(PORT, "Interface", interface), **read(PORT, "Port", port), **own}


def _bond_state(snapshot: Snapshot, port: Row, interfaces: list[Row]) -> State:
    own = {"qos": queues.describe(snapshot, port), "managed": MARK in port["external_ids"]}
    members = sorted(interface["name"] for interface in interfaces)
    return {"members": members, **read(BOND, "Port", port), **alike(interfaces), **own}


def alike(members: list[Row]) -> State:
    """The options of a bond that its members keep; one that is not the same for all of them has no value."""
    first, *others = [read(BOND, "Interface", member) for member in members]
    return {key: value if all(other[key] == value for other in others) else None for key, value in first.items()}


def _mirror_state(snapshot: Snapshot, mirror: Row) -> State:
    source, target, output = (
        [port["name"] for port in snapshot.rows("Port", mirror[column])]
        for column in ("select_src_port", "select_dst_port", "output_port")
    )
    ports = {"select_src": source, "select_dst": target, "output_port": output[0] if output else None}
    return {**read(MIRROR, "Mirror", mirror), **ports, "managed": MARK in mirror["external_ids"]}
