# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The change of rows that leads from one state of a bridge to another: one transaction."""

from __future__ import annotations

from typing import Any, Optional

from .._ovs import Change, Row, Snapshot
from . import queues
from .options import BOND, BRIDGE, MARK, MIRROR, NEW_BOND, NEW_PORT, PORT, State, row_of

# Of a port or bond: its Port row, its Interface rows by name, and its QoS.
Rows = tuple[Row, dict[str, Row], Optional[State]]

# A member that was a port before leaves the settings of that port behind, but keeps who and what it is.
NEW_MEMBER = {
    key: cell for key, cell in row_of(PORT, "Interface", NEW_PORT).items() if key not in ("external_ids", "mac")
}


def change(snapshot: Snapshot, name: str, before: State | None, wanted: State | None) -> Change:
    """The one transaction that makes `wanted` of `before`; the two must differ."""
    result = Change(snapshot)
    bridge = snapshot.find("Bridge", name)
    root = snapshot.root["_uuid"]
    if bridge is None or before is None:
        if wanted is not None:
            result.mutate("Open_vSwitch", root, "bridges", add=[_insert_bridge(result, name, wanted)], remove=[])
    elif wanted is None:
        result.guard("Bridge", bridge["_uuid"], ["ports"])
        result.mutate("Open_vSwitch", root, "bridges", add=[], remove=[bridge["_uuid"]])
        names = {port["name"] for port in snapshot.rows("Port", bridge["ports"])}
        for port in sorted(names):
            _release(result, port)
        queues.collect(result, names)
    else:
        _update_bridge(result, bridge, before, wanted)
    return result


def _insert_bridge(result: Change, name: str, wanted: State) -> str:
    ports = {port: _insert_port(result, port, rows) for port, rows in _ports(wanted).items()}
    row = {"name": name, **row_of(BRIDGE, "Bridge", wanted), "ports": list(ports.values())}
    row["controller"] = [result.insert("Controller", {"target": target}) for target in wanted["controllers"]]
    row["mirrors"] = [_insert_mirror(result, mirror, ports, item) for mirror, item in wanted["mirrors"].items()]
    queues.collect(result, set())
    return result.insert("Bridge", row)


def _update_bridge(result: Change, bridge: Row, before: State, wanted: State) -> None:
    columns = _columns(bridge, row_of(BRIDGE, "Bridge", before), row_of(BRIDGE, "Bridge", wanted))
    if before["controllers"] != wanted["controllers"]:
        columns["controller"] = _controllers(result, bridge, wanted["controllers"])
    if columns:
        result.update("Bridge", bridge["_uuid"], columns)
    old, new = _ports(before), _ports(wanted)
    for port in sorted(old.keys() & new.keys()):
        _update_port(result, port, old[port], new[port])
    added = {port: _insert_port(result, port, new[port]) for port in sorted(new.keys() - old.keys())}
    gone = [_guarded_port(result, port) for port in sorted(old.keys() - new.keys())]
    result.mutate("Bridge", bridge["_uuid"], "ports", add=list(added.values()), remove=gone)
    _update_mirrors(result, bridge, added, before["mirrors"], wanted["mirrors"])
    queues.collect(result, {port for port, rows in old.items() if port not in new or rows[2] != new[port][2]})


def _controllers(result: Change, bridge: Row, targets: list[str]) -> list[str]:
    """References to the controllers; those that stay keep their row, with what else it says."""
    present = {result.snapshot.tables["Controller"][ref]["target"]: ref for ref in bridge["controller"]}
    return [present.get(target) or result.insert("Controller", {"target": target}) for target in targets]


def _ports(state: State) -> dict[str, Rows]:
    rows: dict[str, Rows] = {}
    for name, port in state["ports"].items():
        interfaces = {name: row_of(PORT, "Interface", port)}
        rows[name] = (_port_row(PORT, port), interfaces, port["qos"])
    for name, bond in state["bonds"].items():
        row = {**NEW_MEMBER, **row_of(BOND, "Interface", bond)}
        interfaces = dict.fromkeys(bond["members"], row)
        rows[name] = (_port_row(BOND, bond), interfaces, bond["qos"])
    return rows


def _port_row(fields: Any, item: State) -> Row:
    """The Port row of a port or bond. It names the columns of both kinds, so that one may turn into the other."""
    blank = {**row_of(BOND, "Port", NEW_BOND), **row_of(PORT, "Port", NEW_PORT)}
    mark = {MARK: "true"} if item["managed"] else {}
    return {**blank, **row_of(fields, "Port", item), "external_ids": mark}


def _columns(row: Row, old: Row, new: Row) -> Row:
    """What is to be written over the row; of a map only the entries that our options know are changed."""
    found: Row = {}
    for column, value in new.items():
        if column not in old:
            if row[column] != value:
                found[column] = value
        elif old[column] != value and isinstance(value, dict):
            found[column] = {**{key: item for key, item in row[column].items() if key not in old[column]}, **value}
        elif old[column] != value:
            found[column] = value
    return found


def _insert_port(result: Change, name: str, rows: Rows) -> str:
    columns, interfaces, qos = rows
    members = [_interface(result, member, {}, row) for member, row in sorted(interfaces.items())]
    own = {"interfaces": members, "qos": queues.insert(result, qos)}
    return result.insert("Port", {"name": name, **columns, **own})


def _interface(result: Change, name: str, old: Row, new: Row) -> str:
    """A reference to the interface, made or changed; one that leaves another port is taken over as it is."""
    row = result.snapshot.find("Interface", name)
    if row is None:
        return result.insert("Interface", {"name": name, **new})
    columns = _columns(row, old, new)
    if columns:
        result.update("Interface", row["_uuid"], columns)
    return str(row["_uuid"])


def _update_port(result: Change, name: str, old: Rows, new: Rows) -> None:
    if old == new:
        return
    row = result.snapshot.get("Port", name)
    columns = _columns(row, old[0], new[0])
    members = [_interface(result, member, old[1].get(member, {}), ids) for member, ids in sorted(new[1].items())]
    if sorted(members) != sorted(row["interfaces"]):
        columns["interfaces"] = members
    if old[2] != new[2]:
        columns["qos"] = queues.insert(result, new[2])
    if columns:
        result.update("Port", row["_uuid"], columns)


def _guarded_port(result: Change, name: str) -> str:
    row = result.snapshot.get("Port", name)
    result.guard("Port", row["_uuid"], ["external_ids", "interfaces"])
    _release(result, name)
    return str(row["_uuid"])


def _release(result: Change, name: str) -> None:
    """Let a port that goes let go of its QoS: references count until the end of the transaction."""
    row = result.snapshot.get("Port", name)
    if row["qos"]:
        result.update("Port", row["_uuid"], {"qos": []})


def _mirror_row(result: Change, ports: dict[str, str], mirror: State) -> Row:
    """The row of a mirror; `ports` are those that this transaction makes."""

    def refs(names: list[str]) -> list[str]:
        return [ports.get(name) or str(result.snapshot.get("Port", name)["_uuid"]) for name in names]

    return {
        **row_of(MIRROR, "Mirror", mirror),
        "select_src_port": refs(mirror["select_src"]),
        "select_dst_port": refs(mirror["select_dst"]),
        "output_port": refs([mirror["output_port"]] if mirror["output_port"] else []),
        "external_ids": {MARK: "true"} if mirror["managed"] else {},
    }


def _insert_mirror(result: Change, name: str, ports: dict[str, str], mirror: State) -> str:
    return result.insert("Mirror", {"name": name, **_mirror_row(result, ports, mirror)})


def _update_mirrors(result: Change, bridge: Row, ports: dict[str, str], old: State, new: State) -> None:
    present = {mirror["name"]: mirror for mirror in result.snapshot.rows("Mirror", bridge["mirrors"])}
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            row = _mirror_row(result, ports, new[name])
            row["external_ids"] = {**present[name]["external_ids"], **row["external_ids"]}
            result.update("Mirror", present[name]["_uuid"], row)
    added = [_insert_mirror(result, name, ports, new[name]) for name in sorted(new.keys() - old.keys())]
    gone = [present[name]["_uuid"] for name in sorted(old.keys() - new.keys())]
    result.mutate("Bridge", bridge["_uuid"], "mirrors", add=added, remove=gone)
