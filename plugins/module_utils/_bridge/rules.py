# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bridge shall be: the options laid over what is there, and what is refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import Invalid, NotFound, Refused
from .._fields import check_vlan
from .._ovs import Snapshot
from .rows import LACP_TIME, MARK, NEW_BOND, NEW_PORT, VLAN_KEYS, State, owners, vm_ports

INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
MTU = (68, 65535)


def check_interface(value: str) -> str:
    """A name that the kernel accepts for an interface and that is safe as an argument and a file name."""
    if not INTERFACE.fullmatch(value) or ".." in value:
        raise ValueError(
            f"{value!r} is not a valid name: 1 to 15 letters, digits, dots, hyphens or underscores, "
            "the first a letter or digit, no two dots in a row"
        )
    return value


def check_mtu(value: int) -> int:
    """An MTU in bytes that Open vSwitch accepts."""
    if not MTU[0] <= value <= MTU[1]:
        raise ValueError(f"{value} is not an MTU; write bytes from {MTU[0]} to {MTU[1]}")
    return value


def check_trunks(value: list[int]) -> list[int]:
    """The VLANs of a trunk, sorted; each once."""
    if len(set(value)) != len(value):
        raise ValueError(f"{value} lists a VLAN twice")
    return sorted(check_vlan(item) for item in value)


def check_members(value: list[str]) -> list[str]:
    """The members of a bond, sorted; at least two different ones."""
    if len(set(value)) != len(value):
        raise ValueError(f"{', '.join(value)}: a member is listed twice")
    if len(value) < 2:
        raise ValueError("a bond has at least two members; write a single interface under ports")
    return sorted(check_interface(item) for item in value)


def check_map(value: Mapping[str, Any]) -> dict[str, str | None]:
    """Keys and values as Open vSwitch keeps them: text; no value (null) removes the key."""
    return {str(key): None if item is None else _text(item) for key, item in value.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_once(value: list[State]) -> list[State]:
    """A list of ports or bonds in which each name stands once."""
    names = [item["name"] for item in value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"listed twice: {', '.join(twice)}")
    return value


def wanted(params: State, before: State | None, snapshot: Snapshot, devices: set[str]) -> State | None:
    """The bridge as the options ask for it; what they do not name stays. Raises Invalid, NotFound or Refused."""
    if params["state"] == "absent":
        _check_absent(params, before, snapshot)
        return None
    _check_declared(params, snapshot)
    state = before or _new_bridge(params["name"])
    for key in ("datapath_type", "fail_mode", "rstp"):
        if params[key] is not None:
            state = {**state, key: params[key]}
    for key in ("external_ids", "other_config"):
        state = {**state, key: merged(state[key], params[key])}
    state = _with_ports(params, state)
    _check_bridge(params["name"], before, state, snapshot)
    _check_interfaces(state, snapshot, devices)
    return state


def _new_bridge(name: str) -> State:
    local = {**NEW_PORT, "type": "internal", "managed": False}
    empty: State = {"fail_mode": None, "rstp": False, "external_ids": {}, "other_config": {}}
    return {"name": name, "datapath_type": "system", **empty, "ports": {name: local}, "bonds": {}}


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


def _with_ports(params: State, state: State) -> State:
    """The state with the declared ports and bonds, and without ours (or, asked so, anybody's) that are not declared."""
    name = params["name"]
    after = {**state}
    for kind, other, new in (("ports", "bonds", NEW_PORT), ("bonds", "ports", NEW_BOND)):
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
            start = {**new, "type": "internal", "managed": False} if item["name"] == name else new
            kept[item["name"]] = _laid_over(kept.get(item["name"], start), item, managed=item["name"] != name)
        after[kind] = kept
        # A port may turn into a bond of the same name, and the other way round.
        after[other] = {port: item for port, item in after[other].items() if port not in declared or port == name}
    members = {member for bond in params["bonds"] or [] for member in bond["members"] or []}
    gone = {
        port for port in members & after["ports"].keys() if after["ports"][port]["managed"] or params["purge_ports"]
    }
    after["ports"] = {port: item for port, item in after["ports"].items() if port not in gone}
    return after


def _laid_over(present: State, given: State, managed: bool) -> State:
    """A port or bond with the given options. The VLAN options belong together: one given clears the others."""
    values = {key: value for key, value in given.items() if value is not None and key in present}
    if any(key in values for key in VLAN_KEYS):
        present = {**present, **{key: NEW_PORT[key] for key in VLAN_KEYS}}
    if values.get("type", "patch") != "patch":
        present = {**present, "peer": None}
    for key in ("external_ids", "other_config"):
        if key in values:
            values[key] = merged(present[key], values[key])
    return {**present, **values, "managed": managed}


def _check_bridge(name: str, before: State | None, state: State, snapshot: Snapshot) -> None:
    guests = vm_ports(snapshot, name)
    if before and before["datapath_type"] != state["datapath_type"] and guests:
        raise Refused(
            f"a new datapath_type cuts off the virtual machines on bridge {name} ({', '.join(guests)}); "
            "move or stop them first",
            ports=guests,
        )
    # What others wrote into their own ports is not judged.
    for port, item in ((port, item) for port, item in state["ports"].items() if item["managed"] or port == name):
        where = f"port {port} of bridge {name}"
        _check_vlans(where, item)
        if (item["type"] == "patch") != (item["peer"] is not None) or item["peer"] == port:
            raise Invalid(f"{where}: a patch port, and only a patch port, has a peer: the port at its other end")
        if port == name and item["type"] != "internal":
            raise Invalid(f"{where}: the bridge's own port is always internal")
    for bond, item in ((bond, item) for bond, item in state["bonds"].items() if item["managed"]):
        where = f"bond {bond} of bridge {name}"
        _check_vlans(where, item)
        if len(item["members"]) < 2:
            raise Invalid(f"{where}: a new bond needs members, at least two")
        if item["mode"] == "balance-tcp" and item["lacp"] == "off":
            raise Invalid(f"{where}: mode balance-tcp needs LACP; set lacp: active, or take mode balance-slb")
        if LACP_TIME in item["other_config"]:
            raise Invalid(f"{where}: set option lacp_time instead of other_config {LACP_TIME}")


def _check_vlans(where: str, port: State) -> None:
    tag, trunks, mode = port["tag"], port["trunks"], port["vlan_mode"]
    native = mode in ("native-tagged", "native-untagged")
    if tag is not None and trunks and not native:
        raise Invalid(f"{where}: tag and trunks together need vlan_mode native-tagged or native-untagged")
    if tag is None and (native or mode == "access"):
        raise Invalid(f"{where}: vlan_mode {mode} needs a tag")
    if mode == "access" and trunks:
        raise Invalid(f"{where}: an access port has a tag and no trunks")
    if mode == "trunk" and tag is not None:
        raise Invalid(f"{where}: a trunk port has trunks and no tag; native-untagged has both")


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


def words(before: State | None, after: State | None, name: str) -> list[str]:
    """One sentence for each thing that changes from `before` to `after`; none when nothing does."""
    if before == after:
        return []
    if after is None:
        return [f"remove bridge {name}"]
    found = []
    if before is None:
        found.append(f"create bridge {name}")
        before = _new_bridge(name)
    found += [
        f"set {key} of bridge {name}: {shown(before[key])} -> {shown(after[key])}"
        for key in ("datapath_type", "fail_mode", "rstp", "external_ids", "other_config")
        if before[key] != after[key]
    ]
    for kind, word in (("ports", "port"), ("bonds", "bond")):
        old, new = before[kind], after[kind]
        found += [f"remove {word} {port} from bridge {name}" for port in sorted(old.keys() - new.keys())]
        found += [
            f"add {word} {port}{_told(word, new[port])} to bridge {name}" for port in sorted(new) if port not in old
        ]
        found += [
            f"change {word} {port} of bridge {name}: {'; '.join(_changes(old[port], new[port]))}"
            for port in sorted(old.keys() & new.keys())
            if old[port] != new[port]
        ]
    return found


def _told(word: str, item: State) -> str:
    start = NEW_PORT if word == "port" else NEW_BOND
    told = [f"{key} {shown(value)}" for key, value in item.items() if value != start[key] and key != "managed"]
    return f" ({', '.join(told)})" if told else ""


def _changes(old: State, new: State) -> Sequence[str]:
    return [
        f"marked as {MARK}" if key == "managed" else f"{key} {shown(old[key])} -> {shown(new[key])}"
        for key in new
        if old[key] != new[key]
    ]


def shown(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={value[key]}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return "none" if value is None else str(value)
