# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bridge shall be: the options laid over what is there, and what is refused. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from .._errors import Invalid, NotFound, Refused
from .._fields import Field
from .._ovs import Snapshot
from . import judge
from .options import (
    BOND,
    BRIDGE,
    MIRROR,
    NEW_BOND,
    NEW_MIRROR,
    NEW_PORT,
    PORT,
    TUNNEL_KEYS,
    VLAN_KEYS,
    State,
    fresh,
    keys_of,
)
from .rows import alike, owners, vm_ports
from .words import NEW_OWN_PORT, new_bridge


def wanted(params: State, before: State | None, snapshot: Snapshot, devices: set[str]) -> State | None:
    """The bridge as the options ask for it; what they do not name stays. Raises Invalid, NotFound or Refused."""
    name = params["name"]
    if params["state"] == "absent":
        _check_absent(params, before, snapshot)
        return None
    _check_declared(params, snapshot)
    state = before or new_bridge(name)
    state = {**state, **_laid_over(f"bridge {name}", BRIDGE, state, params)}
    state = _with_ports(params, state, snapshot)
    state = _with_mirrors(params, state, vm_ports(snapshot, name))
    judge.check(params, before, state, vm_ports(snapshot, name))
    _check_interfaces(state, snapshot, devices)
    return state


def _check_absent(params: State, before: State | None, snapshot: Snapshot) -> None:
    name = params["name"]
    guests = vm_ports(snapshot, name)
    if guests:
        raise Refused(
            f"bridge {name} carries virtual machines ({', '.join(guests)}); move or stop them first", ports=guests
        )
    ports = {**before["ports"], **before["bonds"]} if before else {}
    foreign = sorted(port for port, item in ports.items() if not item["managed"] and port != name)
    if foreign and not params["purge_ports"]:
        raise Refused(
            f"bridge {name} has ports that this module did not make ({', '.join(foreign)}); "
            "remove them first, or set purge_ports: true to lose them too",
            ports=foreign,
        )


def _check_declared(params: State, snapshot: Snapshot) -> None:
    """Refuse names that are used twice, that are virtual machines' ports, or that live on another bridge."""
    bridge, ports, bonds = params["name"], params["ports"] or [], params["bonds"] or []
    names = [port["name"] for port in ports]
    for bond in bonds:
        names += [bond["name"], *(bond["members"] or [])]
        if bond["name"] == bridge or bridge in (bond["members"] or []):
            raise Invalid(f"bridge {bridge} can't be a bond or the member of a bond of itself")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Invalid(f"bridge {bridge}: {', '.join(twice)}: a name is either one port, one bond or one bond's member")
    used, guests = owners(snapshot), vm_ports(snapshot, bridge)
    for name in [bridge, *names]:
        home, port = used.get(name, (bridge, name))
        if home != bridge:
            raise Refused(
                f"{name} belongs to port {port} of bridge {home}; take it out of {home} first, a port is never moved "
                "between bridges by itself",
                bridge=home,
                port=port,
            )
        if name in guests:
            raise Refused(f"{name} is the port of a virtual machine: its VLAN is an option of the machine's NIC")


def merged(present: Mapping[str, str], given: Mapping[str, str | None] | None) -> dict[str, str]:
    """The present keys with the given ones laid over; a key without a value goes."""
    after = {**present, **(given or {})}
    return {key: value for key, value in after.items() if value is not None}


def _with_ports(params: State, state: State, snapshot: Snapshot) -> State:
    """The state with the declared ports and bonds, and without ours (or, asked so, anybody's) that are not declared."""
    name, system_id = params["name"], snapshot.root["external_ids"].get("system-id")
    after = {**state}
    for kind, other, fields, new in (("ports", "bonds", PORT, NEW_PORT), ("bonds", "ports", BOND, NEW_BOND)):
        given = params[kind]
        if given is None:
            continue
        declared = {item["name"] for item in given} | ({name} if kind == "ports" else set())
        kept = {
            port: item
            for port, item in after[kind].items()
            if port in declared or not (item["managed"] or params["purge_ports"])
        }
        for item in given:
            present = kept.get(item["name"], NEW_OWN_PORT if item["name"] == name else new)
            if present is NEW_PORT and item["type"] == "internal" and system_id:
                present = {**present, "mac": lasting_mac(system_id, item["name"])}
            if kind == "bonds" and item["members"]:
                present = _settled(present, item["members"], snapshot)
            where = f"{kind[:-1]} {item['name']} of bridge {name}"
            kept[item["name"]] = {**_port(where, fields, present, item), "managed": item["name"] != name}
        after[kind] = kept
        # A port may turn into a bond of the same name, and the other way round.
        after[other] = {port: item for port, item in after[other].items() if port not in declared or port == name}
    members = {member for bond in params["bonds"] or [] for member in bond["members"] or []}
    gone = {
        port for port in members & after["ports"].keys() if after["ports"][port]["managed"] or params["purge_ports"]
    }
    after["ports"] = {port: item for port, item in after["ports"].items() if port not in gone}
    return after


def _settled(bond: State, members: list[str], snapshot: Snapshot) -> State:
    """The bond; what its members differ in is as the ones that stay have it, if none does as in a new bond."""
    staying = [snapshot.get("Interface", member) for member in bond["members"] if member in members]
    agreed = alike(staying) if staying else NEW_BOND
    return {**bond, **{key: value for key, value in agreed.items() if bond[key] is None}}


def lasting_mac(system_id: str, port: str) -> str:
    """A locally administered MAC that a port of this machine has whenever it is made.

    Open vSwitch would draw another one each time, and the neighbours would go on sending to the old one for a minute.
    """
    digest = hashlib.sha256(f"{system_id} {port}".encode()).hexdigest()
    return ":".join(["02", *(digest[at : at + 2] for at in range(0, 10, 2))])


def _port(where: str, fields: Sequence[Field], present: State, given: State) -> State:
    """A port or bond with the given options."""
    # The VLAN options belong together: one given clears the others. So do the options of a type.
    vlans = (*VLAN_KEYS, "cvlans")
    if any(given[key] is not None for key in vlans):
        present = {**present, **{key: NEW_PORT[key] for key in vlans}}
    if given.get("type") not in (None, present.get("type")):
        present = {**present, **{key: NEW_PORT[key] for key in ("peer", "options", *TUNNEL_KEYS)}}
    return _laid_over(where, fields, present, given)


def _with_mirrors(params: State, state: State, guests: list[str]) -> State:
    """The state with the declared mirrors, and without ours that are not; none selects a port that is gone."""
    there = {*state["ports"], *state["bonds"], *guests}
    declared = {item["name"]: item for item in params["mirrors"] or []}
    mirrors: State = {}
    for name, mirror in state["mirrors"].items():
        if params["mirrors"] is None or name in declared or not mirror["managed"]:
            selected = {key: [port for port in mirror[key] if port in there] for key in ("select_src", "select_dst")}
            output = mirror["output_port"] if mirror["output_port"] in there else None
            mirrors[name] = {**mirror, **selected, "output_port": output}
    for name, item in declared.items():
        where = f"mirror {name} of bridge {params['name']}"
        new = _laid_over(where, MIRROR, mirrors.get(name, NEW_MIRROR), item)
        if item["output_port"] or item["output_vlan"]:
            new = {**new, "output_port": item["output_port"], "output_vlan": item["output_vlan"]}
        mirrors[name] = {**new, "managed": True}
        missing = sorted({*new["select_src"], *new["select_dst"], new["output_port"] or params["name"]} - there)
        if missing:
            raise NotFound(f"{where}: the bridge has no port {', '.join(missing)}", ports=missing)
    return {**state, "mirrors": mirrors}


def _laid_over(where: str, fields: Sequence[Field], present: State, given: State) -> State:
    """The given options over what is there; of a map only the given keys."""
    names = [field.name for field in fields if field.name in present]
    values = {name: given[name] for name in names if given[name] is not None}
    for field in fields:
        if field.name in values and field.type == "dict" and field.place:
            own = keys_of(fields, field.place.table, field.place.column)
            for key in sorted(own.keys() & values[field.name].keys()):
                if values[field.name][key] is not None or own[key] in values:
                    raise Invalid(f"{where}: set option {own[key]} instead of {field.name} {key}")
                values[own[key]] = fresh(fields)[own[key]]
            values[field.name] = merged(present[field.name], values[field.name])
    if "qos" in values:
        values["qos"] = None if values["qos"]["type"] == "none" else {**values["qos"]}
        if values["qos"]:
            values["qos"]["queues"] = values["qos"]["queues"] or []
    return {**present, **values}


def _check_interfaces(state: State, snapshot: Snapshot, devices: set[str]) -> None:
    """Every interface stands in one place, and a new one that the kernel must have is there."""
    holders: dict[str, list[str]] = {}
    for name in state["ports"]:
        holders.setdefault(name, []).append(f"port {name}")
    for name, bond in state["bonds"].items():
        for member in bond["members"]:
            holders.setdefault(member, []).append(f"bond {name}")
    for name, places in holders.items():
        if len(places) > 1:
            raise Refused(
                f"bridge {state['name']}: {name} would be in {' and in '.join(places)}; remove it from one, or set "
                "purge_ports: true if the port that this module did not make may go",
                interface=name,
            )
    system = [name for name, port in state["ports"].items() if port["type"] == "system"]
    system += [member for bond in state["bonds"].values() for member in bond["members"]]
    present = {row["name"] for row in snapshot.tables["Interface"].values()}
    missing = sorted(set(system) - present - devices)
    if missing:
        raise NotFound(
            f"bridge {state['name']}: {', '.join(missing)}: no such device on this machine; "
            "a port that Open vSwitch itself makes has type: internal",
            interfaces=missing,
        )
