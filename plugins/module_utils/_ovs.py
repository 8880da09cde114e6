# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of Open vSwitch's database (OVSDB, RFC 7047) through Open vSwitch's own Python bindings.

One read is one `transact` of selects, so all tables are of the same moment; one change is one `transact` with guards:
it is applied as a whole, or, when somebody changed the same rows meanwhile, not at all. The bindings' IDL would copy
the database and follow it; a module reads once.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import Failed, NotFound, Unreachable

try:
    from ovs import jsonrpc, poller, stream

    HAS_BINDINGS = True
except ImportError:
    HAS_BINDINGS = False

Row = dict[str, Any]
DATABASE = "Open_vSwitch"
SOCKET = "/run/openvswitch/db.sock"
CONTROL_ANSWER = 2.0  # seconds; ovs-vswitchd's own word is worth having, not worth waiting for
# A line of `lacp/show`; versions before 2.16 write the older word.
LACP_MEMBER = re.compile(r"^(?:member|slave): (\S+): (\w+ \w+)", re.MULTILINE)
ANSWER = 8.0  # seconds; with the time to start a module a frozen server is reported within 10
# What the server says when what was read is no longer so.
MEANWHILE = ("timed out", "constraint violation", "referential integrity violation")

# What is read, and how OVSDB writes it: one value, an optional one, a set, a map, references to rows, or numbered ones.
COLUMNS: dict[str, dict[str, str]] = {
    "Open_vSwitch": {
        "bridges": "refs",
        "next_cfg": "one",
        "cur_cfg": "one",
        "ovs_version": "optional",
        "external_ids": "map",
        "other_config": "map",
    },
    "Bridge": {
        "name": "one",
        "ports": "refs",
        "datapath_type": "one",
        "fail_mode": "optional",
        "stp_enable": "one",
        "rstp_enable": "one",
        "rstp_status": "map",
        "mcast_snooping_enable": "one",
        "flood_vlans": "set",
        "protocols": "set",
        "controller": "refs",
        "mirrors": "refs",
        "external_ids": "map",
        "other_config": "map",
    },
    "Port": {
        "name": "one",
        "interfaces": "refs",
        "tag": "optional",
        "trunks": "set",
        "cvlans": "set",
        "vlan_mode": "optional",
        "bond_mode": "optional",
        "bond_updelay": "one",
        "bond_downdelay": "one",
        "lacp": "optional",
        "qos": "refs",
        "rstp_status": "map",
        "external_ids": "map",
        "other_config": "map",
    },
    "Interface": {
        "name": "one",
        "type": "one",
        "options": "map",
        "mac": "optional",
        "mtu_request": "optional",
        "ingress_policing_rate": "one",
        "ingress_policing_burst": "one",
        "lldp": "map",
        "external_ids": "map",
        "error": "optional",
        "ofport": "optional",
        "mtu": "optional",
        "link_state": "optional",
    },
    "Controller": {"target": "one", "is_connected": "one"},
    "Mirror": {
        "name": "one",
        "select_all": "one",
        "select_src_port": "refs",
        "select_dst_port": "refs",
        "select_vlan": "set",
        "output_port": "refs",
        "output_vlan": "optional",
        "external_ids": "map",
    },
    "QoS": {"type": "one", "queues": "numbered", "other_config": "map", "external_ids": "map"},
    "Queue": {"other_config": "map", "external_ids": "map"},
}


@dataclass(frozen=True)
class Snapshot:
    """All rows that the collection looks at, of one moment: table -> row id -> row. Plain data."""

    tables: dict[str, dict[str, Row]]

    @property
    def root(self) -> Row:
        """The one row of table Open_vSwitch."""
        return next(iter(self.tables["Open_vSwitch"].values()))

    @property
    def applied(self) -> bool:
        """Whether ovs-vswitchd has taken over all that was asked for."""
        return bool(self.root["cur_cfg"] >= self.root["next_cfg"])

    def find(self, table: str, name: str) -> Row | None:
        """The row of that name (its id is in `_uuid`), or None. Names are unique in OVSDB's schema."""
        return next((row for row in self.tables[table].values() if row["name"] == name), None)

    def get(self, table: str, name: str) -> Row:
        """The row of that name. Raises NotFound."""
        row = self.find(table, name)
        if row is None:
            raise NotFound(f"Open vSwitch has no {table.lower()} {name}")
        return row

    def rows(self, table: str, ids: Sequence[str]) -> list[Row]:
        """The rows of these ids, sorted by name."""
        return sorted((self.tables[table][row_id] for row_id in ids), key=lambda row: str(row["name"]))


class Change:
    """The operations of one transaction, in the order in which they were added."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.operations: list[Row] = []
        self._inserted = 0

    def insert(self, table: str, row: Row) -> str:
        """Insert a row; returns its name within this transaction, to be used as a reference."""
        self._inserted += 1
        name = f"row{self._inserted}"
        self.operations.append({"op": "insert", "table": table, "row": _encode_row(table, row), "uuid-name": name})
        return name

    def update(self, table: str, row_id: str, row: Row) -> None:
        """Set columns; guarded by what these columns held when they were read."""
        self.guard(table, row_id, list(row))
        self.operations.append(
            {"op": "update", "table": table, "where": _where(row_id), "row": _encode_row(table, row)}
        )

    def guard(self, table: str, row_id: str, columns: Sequence[str]) -> None:
        """Let the whole transaction fail when these columns are no longer as they were read."""
        seen = self.snapshot.tables[table][row_id]
        self.operations.append(
            {
                "op": "wait",
                "timeout": 0,
                "table": table,
                "where": _where(row_id),
                "columns": list(columns),
                "until": "==",
                "rows": [_encode_row(table, {column: seen[column] for column in columns})],
            }
        )

    def delete(self, table: str, row_id: str) -> None:
        """Delete a row that nothing refers to; if something does by then, the whole transaction fails."""
        self.operations.append({"op": "delete", "table": table, "where": _where(row_id)})

    def mutate(self, table: str, row_id: str, column: str, add: Sequence[str], remove: Sequence[str]) -> None:
        """Add and remove references; what others add or remove at the same time stays untouched."""
        mutations = [
            [column, mutator, _encode("refs", ids)] for mutator, ids in (("delete", remove), ("insert", add)) if ids
        ]
        if mutations:
            self.operations.append({"op": "mutate", "table": table, "where": _where(row_id), "mutations": mutations})


class Ovs:
    """A connection to ovsdb-server. Every call ends within ANSWER seconds or raises Unreachable."""

    def __init__(self, socket: str) -> None:
        if not HAS_BINDINGS:
            raise NotFound(
                "the Python bindings of Open vSwitch are missing on this machine; install the package "
                "python3-openvswitch (role drover.kvm.open_vswitch does it)"
            )
        self.socket = socket
        self._server = _Peer("ovsdb-server", socket, ANSWER)

    def close(self) -> None:
        """End the connection."""
        self._server.close()

    def transact(self, operations: Sequence[Row]) -> list[Row]:
        """The results of one transaction. Raises Failed with the server's words, or Unreachable."""
        results: list[Row] = self._server.call("transact", [DATABASE, *operations])
        for result in results:
            if result and "error" in result:
                words = ": ".join(str(result[key]) for key in ("error", "details") if result.get(key))
                raise Failed(f"Open vSwitch's database refused the change: {words}", error=result["error"])
        return results

    def schema(self) -> dict[str, Any]:
        """The tables of the database with their columns, as this version of Open vSwitch describes them."""
        return dict(self._server.call("get_schema", [DATABASE])["tables"])

    def lacp(self) -> dict[str, str]:
        """Of each member of a bond that speaks LACP: current, expired or defaulted, and attached or detached.

        ovs-vswitchd itself is asked: the database says lacp_current for seconds before any partner has spoken. Empty
        when it does not answer.
        """
        return dict(LACP_MEMBER.findall(self.ask_switch("lacp/show")))

    def ask_switch(self, command: str, *words: str) -> str:
        """What ovs-vswitchd says to a command of ovs-appctl; empty when it does not answer or refuses."""
        folder = Path(self.socket).parent
        try:
            pid = (folder / "ovs-vswitchd.pid").read_text(encoding="ascii").strip()
            switch = _Peer("ovs-vswitchd", str(folder / f"ovs-vswitchd.{pid}.ctl"), CONTROL_ANSWER)
        except (OSError, Unreachable):
            return ""
        try:
            return str(switch.call(command, words))
        except (Failed, Unreachable):
            return ""
        finally:
            switch.close()

    def snapshot(self, more: Mapping[str, Mapping[str, str]] | None = None) -> Snapshot:
        """Read all tables in one transaction, with `more` tables and columns in the manner of COLUMNS."""
        columns = {
            table: {**COLUMNS.get(table, {}), **(more or {}).get(table, {})} for table in {**COLUMNS, **(more or {})}
        }
        asked = [
            {"op": "select", "table": table, "where": [], "columns": ["_uuid", *kinds]}
            for table, kinds in columns.items()
        ]
        tables = {}
        for (table, kinds), result in zip(columns.items(), self.transact(asked)):
            rows = [_decode_row(kinds, row) for row in result["rows"]]
            tables[table] = {row["_uuid"]: row for row in rows}
        if not tables["Open_vSwitch"]:
            raise NotFound(
                f"the database at {self.socket} is empty: Open vSwitch has never been started on this machine; "
                "start the service openvswitch-switch (openvswitch on EL)"
            )
        return Snapshot(tables)

    def commit(self, change: Change) -> int:
        """Apply the change as a whole and ask ovs-vswitchd to take it over; returns the number to wait for."""
        operations = [
            *change.operations,
            # ovs-vswitchd might not notice a change of trunks alone; the counter makes it look.
            {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]},
            {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"]},
        ]
        try:
            return int(self.transact(operations)[-1]["rows"][0]["next_cfg"])
        except Failed as error:
            if error.details.get("error") not in MEANWHILE:
                raise
            raise Failed(
                "somebody else changed the same bridge or port at this moment; nothing was changed, run it again "
                f"({error.message})"
            ) from None

    def applied(self, number: int) -> bool | str:
        """True when ovs-vswitchd has taken over change `number`; waits up to a second for it."""
        seen = self._cur_cfg()
        if seen < number:
            unlike = {"table": "Open_vSwitch", "columns": ["cur_cfg"], "until": "!=", "rows": [{"cur_cfg": seen}]}
            with suppress(Failed):  # the second is over
                self.transact([{"op": "wait", "timeout": 1000, "where": [], **unlike}])
            seen = self._cur_cfg()
        return seen >= number or f"ovs-vswitchd is at change {seen} of {number}; is ovs-vswitchd running?"

    def _cur_cfg(self) -> int:
        result = self.transact([{"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"]}])
        return int(result[0]["rows"][0]["cur_cfg"])


class _Peer:
    """One of Open vSwitch's daemons on its socket; both speak JSON-RPC."""

    def __init__(self, daemon: str, socket: str, seconds: float) -> None:
        self.daemon, self.socket, self.seconds = daemon, socket, seconds
        error, opened = stream.Stream.open_block(stream.Stream.open(f"unix:{socket}"), int(seconds * 1000))
        if error:
            raise Unreachable(
                f"no connection to Open vSwitch at {socket}: {os.strerror(error)}; is {daemon} running?", socket=socket
            )
        self._rpc = jsonrpc.Connection(opened)

    def close(self) -> None:
        """End the connection."""
        self._rpc.close()

    def call(self, method: str, params: Sequence[Any]) -> Any:
        """The result of a call. Raises Failed with the daemon's words, or Unreachable."""
        request = jsonrpc.Message.create_request(method, list(params))
        self._rpc.send(request)
        reply = self._reply(request.id)
        if reply.error is not None:
            raise Failed(f"{self.daemon} refused the request: {reply.error}", socket=self.socket)
        return reply.result

    def _reply(self, request_id: int) -> Any:
        end = time.monotonic() + self.seconds
        while True:
            self._rpc.run()
            error, message = self._rpc.recv()
            if message is not None and message.id == request_id:
                return message
            if message is not None:
                continue
            left = end - time.monotonic()
            if error not in (0, errno.EAGAIN) or left <= 0:
                why = "closed the connection" if left > 0 else f"gave no answer within {self.seconds:g} s"
                raise Unreachable(
                    f"{self.daemon} at {self.socket} {why}; nothing is known about the switch", socket=self.socket
                )
            waiter = poller.Poller()
            self._rpc.wait(waiter)
            self._rpc.recv_wait(waiter)
            waiter.timer_wait(int(left * 1000) + 1)
            waiter.block()


@contextmanager
def connect(socket: str) -> Iterator[Ovs]:
    """A connection that is closed at the end. Raises NotFound (no bindings) or Unreachable."""
    client = Ovs(socket)
    try:
        yield client
    finally:
        client.close()


def _where(row_id: str) -> list[Any]:
    return [["_uuid", "==", ["uuid", row_id]]]


def _reference(item: str) -> list[str]:
    return ["uuid" if "-" in item else "named-uuid", item]


def _encode_row(table: str, row: Mapping[str, Any]) -> Row:
    return {column: _encode(COLUMNS[table][column], value) for column, value in row.items()}


def _encode(kind: str, value: Any) -> Any:
    if kind == "map":
        return ["map", [[key, value[key]] for key in sorted(value) if value[key] is not None]]
    if kind == "set":
        return ["set", list(value)]
    if kind == "refs":
        return ["set", [_reference(item) for item in value]]
    if kind == "numbered":
        return ["map", [[number, _reference(value[number])] for number in sorted(value)]]
    return ["set", []] if value is None else value


def _decode_row(kinds: Mapping[str, str], row: Mapping[str, Any]) -> Row:
    decoded = {column: _decode(kind, row[column]) for column, kind in kinds.items()}
    return {"_uuid": row["_uuid"][1], **decoded}


def _decode(kind: str, value: Any) -> Any:
    if kind == "one":
        return value
    if kind == "map":
        return dict(value[1])
    if kind == "numbered":
        return {number: reference[1] for number, reference in value[1]}
    # A set of one is written as the bare value; a reference is the pair of "uuid" and the id.
    items = value[1] if isinstance(value, list) and value[0] == "set" else [value]
    if kind == "refs":
        return [item[1] for item in items]
    if kind == "optional":
        return items[0] if items else None
    return sorted(items)
