# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Save the rows of a bridge as they are, and put exactly these back.

It works on whole rows as the database's own schema describes them, so that it brings back also what no option of ours
knows. The ports of virtual machines are libvirt's: they come and go meanwhile, and are left as they are found.

This is also the program that a timer starts when nobody confirms a change: no Ansible here.
"""

from __future__ import annotations

from typing import Any

from .._ovs import Change, Ovs, connect
from .._rollback import claim
from . import queues
from .rows import vm_ports

Row = dict[str, Any]
Rows = dict[str, dict[str, Row]]
# What ovs-vswitchd itself writes into columns that outlive it.
WRITTEN_BY_SWITCH = {"ofport", "error", "datapath_version", "bond_active_slave", "cfm_flap_count"}
WAIT = 20  # times of a second at most


class Database:
    """All rows of one moment in the database's own notation, and the columns that hold configuration."""

    def __init__(self, client: Ovs) -> None:
        self.tables = {name: table["columns"] for name, table in client.schema().items()}
        results = client.transact([{"op": "select", "table": name, "where": []} for name in self.tables])
        self.rows: Rows = {
            name: {row["_uuid"][1]: row for row in result["rows"]} for name, result in zip(self.tables, results)
        }

    def columns(self, table: str, row: Row) -> Row:
        """The configuration in a row."""
        kept = {
            column
            for column, kind in self.tables[table].items()
            if not kind.get("ephemeral") and column not in WRITTEN_BY_SWITCH
        }
        return {column: row[column] for column in sorted(kept) if column in row}

    def referred(self, table: str, column: str) -> str | None:
        """The table that a column refers to."""
        kind = self.tables[table][column]["type"]
        parts = [kind.get("key"), kind.get("value")] if isinstance(kind, dict) else []
        return next((part["refTable"] for part in parts if isinstance(part, dict) and "refTable" in part), None)

    def named(self, table: str, name: Any) -> str | None:
        """The id of the row of that name, in a table where each name is once."""
        if table not in ("Bridge", "Port", "Interface"):
            return None
        return next((row_id for row_id, row in self.rows[table].items() if row["name"] == name), None)


def ids_in(value: Any) -> list[str]:
    """The row ids in a cell: one, a set, or a map of any to ids."""
    if value[0] == "map":
        return [item[1] for _key, item in value[1]]
    return [item[1] for item in (value[1] if value[0] == "set" else [value])]


def with_ids(value: Any, ids: dict[str, list[str]]) -> Any:
    """The cell with other references in the place of the ids; what has none is left out."""
    if value[0] == "map":
        return ["map", [[key, ids[item[1]]] for key, item in value[1] if item[1] in ids]]
    return ["set", [ids[item] for item in ids_in(value) if item in ids]]


def save(client: Ovs, name: str) -> Row:
    """The bridge with all rows that it refers to, without the ports of virtual machines. Plain data."""
    database, guests = Database(client), set(vm_ports(client.snapshot(), name))
    bridge = database.named("Bridge", name)
    saved: Rows = {}
    left = [("Bridge", bridge)] if bridge else []
    while left:
        table, row_id = left.pop()
        row = database.rows[table][row_id]
        if row_id in saved.setdefault(table, {}) or (table == "Port" and row["name"] in guests):
            continue
        saved[table][row_id] = database.columns(table, row)
        for column, value in saved[table][row_id].items():
            target = database.referred(table, column)
            left += [(target, item) for item in ids_in(value)] if target else []
    return {"bridge": name, "socket": client.socket, "row": bridge, "rows": saved}


class Restorer:
    """The operations that bring saved rows back into the database as it is now."""

    def __init__(self, database: Database, saved: Row, guests: list[str]) -> None:
        self.database, self.saved = database, saved
        self.operations: list[Row] = []
        # The ports of virtual machines that are there now stay; those that were there then are not made anew.
        self.guests = [row_id for row_id, row in database.rows["Port"].items() if row["name"] in guests]
        self.references = {row_id: ["uuid", row_id] for row_id in self.guests}

    def put(self, table: str, row_id: str) -> None:
        """Make the row what it was, or make it anew; `references` knows it then."""
        if row_id in self.references or row_id not in self.saved["rows"].get(table, {}):
            return
        row = self.saved["rows"][table][row_id]
        rows = self.database.rows[table]
        present = self.database.named(table, row.get("name")) or (row_id if row_id in rows else None)
        made = f"made{len(self.references)}"
        self.references[row_id] = ["uuid", present] if present else ["named-uuid", made]
        cells = {column: self._cell(table, column, value) for column, value in row.items()}
        if table == "Bridge":
            cells["ports"][1].extend(
                ["uuid", guest] for guest in self.guests if ["uuid", guest] not in cells["ports"][1]
            )
        if present is None:
            self.operations.append({"op": "insert", "table": table, "row": cells, "uuid-name": made})
            return
        mutable = {column for column, kind in self.database.tables[table].items() if kind.get("mutable", True)}
        changed = {
            column: value for column, value in cells.items() if column in mutable and rows[present][column] != value
        }
        if changed:
            where = [["_uuid", "==", ["uuid", present]]]
            self.operations.append({"op": "update", "table": table, "where": where, "row": changed})

    def _cell(self, table: str, column: str, value: Any) -> Any:
        target = self.database.referred(table, column)
        if target is None:
            return value
        for item in ids_in(value):
            self.put(target, item)
        return with_ids(value, self.references)

    def bridge(self) -> None:
        """Bring back the bridge, or take away the one that was not there."""
        name = self.saved["bridge"]
        present = self.database.named("Bridge", name)
        if self.saved["row"]:
            self.put("Bridge", self.saved["row"])
            reference = self.references[self.saved["row"]]
            if reference != ["uuid", present]:
                self._bridges("insert", reference)
        elif present and self.guests:
            own = self.database.named("Port", name)
            ports = [["uuid", row_id] for row_id in [*self.guests, *([own] if own else [])]]
            where = [["_uuid", "==", ["uuid", present]]]
            self.operations.append(
                {"op": "update", "table": "Bridge", "where": where, "row": {"ports": ["set", ports]}}
            )
        elif present:
            self._bridges("delete", ["uuid", present])

    def _bridges(self, verb: str, reference: list[str]) -> None:
        mutation = ["bridges", verb, ["set", [reference]]]
        self.operations.append({"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [mutation]})


def restore(client: Ovs, saved: Row) -> int:
    """Put the saved rows back in one transaction; returns the number to wait for."""
    snapshot = client.snapshot()
    restorer = Restorer(Database(client), saved, vm_ports(snapshot, saved["bridge"]))
    restorer.bridge()
    change = Change(snapshot)
    change.operations = restorer.operations
    number = client.commit(change)
    # The QoS rows of the change are root rows: nobody refers to them now, and they would stay.
    leavings = Change(client.snapshot())
    queues.collect(leavings, set())
    return client.commit(leavings) if leavings.operations else number


def taken_over(saved: Row) -> bool:
    """Restore; whether the switch has taken it over."""
    with connect(saved["socket"]) as client:
        number = restore(client, saved)
        return any(client.applied(number) is True for _time in range(WAIT))


def words(saved: Row, done: bool) -> str:
    """What is said at the end."""
    return f"bridge {saved['bridge']} is as before{'' if done else ', but ovs-vswitchd has not taken it over'}"


def main(argv: list[str]) -> None:
    """Restore from the file `argv[1]`."""
    claim.take_back(argv, taken_over, words)
