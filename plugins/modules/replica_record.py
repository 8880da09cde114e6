#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module replica_record: what a node knows of the replicas of VMs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: replica_record
short_description: Keep what is known of the replicas of VMs
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Writes a file for each replica on a node that will be there when the first SAN and the first nodes are gone, and
    reads all of them. The files are C(VM.SLOT.json), for root only (0600). They hold no secret.
  - Before a replica is written again, its record must say so (O(records[].whole=false)), on every node that has one;
    see playbook C(drover.kvm.replicate_vms). So a run that is killed never leaves a record that lies.
  - It follows no specification of others. The format is JSON (U(https://www.rfc-editor.org/rfc/rfc8259)).
options:
  records:
    description: The records to write. Others stay as they are.
    type: list
    elements: dict
    default: []
    suboptions:
      vm:
        description: The machine.
        type: str
        required: true
      slot:
        description: Which of its two replicas.
        type: str
        choices: [a, b]
        required: true
      whole:
        description: Whether the replica is complete. Without it the record keeps neither time nor sheet.
        type: bool
        required: true
      time:
        description:
          - The moment of the copy in UTC, such as V(2026-11-21T20:15:00Z). Required with O(records[].whole=true).
        type: str
      uuid:
        description: UUID of the machine.
        type: str
      sheet:
        description:
          - Options of M(drover.kvm.vm) with which the machine starts from the replica;
            RV(drover.kvm.vm_replica#module:replica) has them. Required with O(records[].whole=true).
        type: dict
      run:
        description:
          - Any name of the run that writes the replica. One that another run has begun to write since is not noted as
            whole by this one, which warns of it.
        type: str
  directory:
    description: The folder with the records. It is made, for root only.
    type: path
    default: /var/lib/drover/replicas
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
seealso:
  - module: drover.kvm.vm_replica
"""

EXAMPLES = r"""
- name: Read all records of a node
  drover.kvm.replica_record:
  register: replicas

- name: Say that a replica is being written
  drover.kvm.replica_record:
    records:
      - {vm: db1, slot: a, whole: false, run: nightly-20261121}

- name: Say that it is complete
  drover.kvm.replica_record:
    records:
      - vm: db1
        slot: a
        whole: true
        time: "{{ copied.replica.time }}"
        uuid: "{{ copied.replica.uuid }}"
        sheet: "{{ copied.replica.sheet }}"
        run: nightly-20261121
"""

RETURN = r"""
records:
  description: All records of the node, as they are after the task.
  returned: success
  type: list
  elements: dict
  sample:
    - vm: db1
      slot: a
      whole: true
      time: "2026-11-21T20:15:00Z"
      uuid: 7d4da458-de51-4138-9921-aae15234a969
      sheet: {name: db1}
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: [write that replica a of db1 is of 2026-11-21T20:15:00Z]
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._domain.replicas import SLOTS, check_moment
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._files import replace_file
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

RECORD = (
    Field("vm", required=True, check=check_name),
    Field("slot", choices=SLOTS, required=True),
    Field("whole", type="bool", required=True),
    Field("time", check=check_moment),
    Field("uuid"),
    Field("sheet", type="dict"),
    Field("run"),
)
FIELDS = (
    Field("records", type="list", elements="dict", default=[], fields=RECORD),
    Field("directory", type="path", default="/var/lib/drover/replicas"),
)


class ReplicaRecord(Resource):
    """The records of one node."""

    key = "directory"

    def read(self) -> State:
        """All records by the names of their files. Raises Failed for one that can't be understood."""
        found = {}
        for path in sorted(Path(self.name).glob("*.json")):
            try:
                record = {"run": None, **json.loads(path.read_text(encoding="utf-8"))}
                found[path.name] = {field.name: record[field.name] for field in RECORD}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Failed(f"{path} is no record of a replica ({error!r}); move it away") from None
        return found

    def wanted(self, before: State) -> State:
        """The same with those that were given. Raises Invalid for a complete one without time or sheet."""
        new, old = {}, before or {}
        for record in self.params["records"]:
            if record["whole"] and not (record["time"] and record["sheet"]):
                raise Invalid(f"{record['vm']}: a replica that is whole has a time and a sheet", option="records")
            rest = {} if record["whole"] else {"time": None, "sheet": None}
            name = f"{record['vm']}.{record['slot']}.json"
            if record["whole"] and record["run"] and record["run"] != (old.get(name) or {}).get("run"):
                words = f"another run writes replica {record['slot']} of {record['vm']}, so it is not whole"
                self.warnings = [*self.warnings, words]
                continue
            new[name] = {**record, **rest}
        return {**old, **new}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Write each that differs."""
        steps = []
        for name, record in (wanted or {}).items():
            if record != (before or {}).get(name):
                what = f"is of {record['time']}" if record["whole"] else "is being written"
                words = f"write that replica {record['slot']} of {record['vm']} {what}"
                steps.append(Step(words, partial(self.write, name, record)))
        return steps

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Write one. Raises Failed."""
        folder = Path(self.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(folder / name, json.dumps({"version": 1, **record}, indent=1, sort_keys=True).encode())

    def result(self, state: State) -> dict[str, Any]:
        """The records."""
        return {"records": list((state or {}).values())}


def main() -> None:
    """Run the module."""
    run_module(ReplicaRecord, FIELDS)


if __name__ == "__main__":
    main()
