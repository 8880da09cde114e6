# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quality of service of a port: a QoS row and its queues.

Both are root tables: OVSDB keeps such a row although nothing refers to it, so that we remove what we made. Ours carry
the mark; the rows of others, which may serve several ports, are never changed.
"""

from __future__ import annotations

from .._ovs import Change, Row, Snapshot
from .options import MARK, QOS, QUEUE, State, read, row_of

OURS = {"external_ids": {MARK: "true"}}


def describe(snapshot: Snapshot, port: Row) -> State | None:
    """The QoS of a port as the option says it, None when it has none."""
    if not port["qos"]:
        return None
    row = snapshot.tables["QoS"][port["qos"][0]]
    queues = snapshot.tables["Queue"]
    listed = [{"id": number, **read(QUEUE, "Queue", queues[ref])} for number, ref in sorted(row["queues"].items())]
    return {**read(QOS, "QoS", row), "queues": listed}


def insert(change: Change, state: State | None) -> list[str]:
    """References to the QoS row that is to be made; none for a port without."""
    if state is None:
        return []
    queues = {
        queue["id"]: change.insert("Queue", {**row_of(QUEUE, "Queue", queue), **OURS}) for queue in state["queues"]
    }
    return [change.insert("QoS", {**row_of(QOS, "QoS", state), "queues": queues, **OURS})]


def collect(change: Change, changed: set[str]) -> None:
    """Delete the rows with our mark that no port uses any more; `changed` are the ports that lose what they have."""
    tables = change.snapshot.tables
    used = {ref for port in tables["Port"].values() if port["name"] not in changed for ref in port["qos"]}
    kept = {row_id: row for row_id, row in tables["QoS"].items() if row_id in used or MARK not in row["external_ids"]}
    for row_id in tables["QoS"].keys() - kept.keys():
        change.delete("QoS", row_id)
    queues = {ref for row in kept.values() for ref in row["queues"].values()}
    for row_id, row in tables["Queue"].items():
        if row_id not in queues and MARK in row["external_ids"]:
            change.delete("Queue", row_id)
