#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module backup_copy: a second folder with the same backups of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_copy
short_description: Keep the backups of a VM in a second folder too
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Copies the good backups of a machine from one folder of M(drover.kvm.backup) to another one, such as on another
    server, and removes older histories there. Both folders can be used alike by M(drover.kvm.restore),
    M(drover.kvm.backup_info) and O(drover.kvm.backup#module:state=verified).
  - Each copy is read once more and compared with its checksums before it has its name. One that is damaged is copied
    anew.
  - What the first folder has lost is not removed from the second. There, too, a history goes only when there are
    O(keep) newer good ones, and all of these were read and found to be good. What this module did not make is never
    removed.
  - It runs on any machine that has both folders, and needs no libvirt. If it is killed, run it again.
options:
  path:
    description: The first folder of all backups, as an absolute path.
    type: path
    required: true
  to:
    description: The second one. It must exist, and should be on storage that does not fail together with the first.
    type: path
    required: true
  name:
    description: The machine, whether it still exists or not.
    type: str
    required: true
  keep:
    description: How many good histories are kept in the second folder.
    type: int
    default: 2
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - C(qemu-img)
seealso:
  - module: drover.kvm.backup
  - module: drover.kvm.backup_info
"""

EXAMPLES = r"""
- name: What is in /mnt/backup is in the other room too
  drover.kvm.backup_copy:
    name: web1
    path: /mnt/backup
    to: /mnt/backup-room2

- name: A year of monthly histories on the second one
  drover.kvm.backup_copy:
    name: db1
    path: /mnt/backup
    to: /mnt/archive
    keep: 12

- name: Ask what the second one lacks, and copy nothing
  drover.kvm.backup_copy:
    name: web1
    path: /mnt/backup
    to: /mnt/backup-room2
  check_mode: true
  register: copy
  failed_when: copy.lacking | length > 0
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["copy 20261122T030000Z of web1 to /mnt/backup-room2 (149 MiB)"]
lacking:
  description: The backups that the second folder lacked, or had damaged, when this began.
  returned: always
  type: list
  elements: str
  sample: ["20261122T030000Z"]
backups:
  description: The backups in the second folder.
  returned: always
  type: list
  elements: str
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._backup import store
from ansible_collections.drover.kvm.plugins.module_utils._backup.copies import Copies
from ansible_collections.drover.kvm.plugins.module_utils._backup.shelf import Shelf
from ansible_collections.drover.kvm.plugins.module_utils._disks.file import check_path
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("path", type="path", required=True, check=check_path),
    Field("to", type="path", required=True, check=check_path),
    Field("name", required=True, check=check_name),
    Field("keep", type="int", default=2, check=between(1, 1000)),
)


class BackupCopy(Resource):
    """The backups of one VM in two folders."""

    def __init__(self, params: dict[str, Any], client: None) -> None:
        super().__init__(params, client)
        path, to = (store.check_root(params[name]) for name in ("path", "to"))
        if path.resolve() == to.resolve():
            raise Invalid(f"path and to are the same folder, {path.resolve()}; a copy is in another one", option="to")
        self.source = Shelf(path, self.name, params["keep"])
        self.copies = Copies(to, self.name, params["keep"], self.source)
        self.lacking: list[str] | None = None

    def read(self) -> State:
        """What is in the second folder."""
        self.source.look()
        self.copies.look()
        there = {one.id: one.complaint for one in self.copies.backups}
        return {"name": self.name, "backups": list(there), "damaged": {one: why for one, why in there.items() if why}}

    def wanted(self, before: State) -> State:
        """The good ones of both, without the histories that are too old."""
        known = before or {}
        lacking = [one.id for one in self.copies.lacking()]
        self.lacking = lacking if self.lacking is None else self.lacking
        gone = {one.id for history in self.copies.outdated() for one in history}
        there = sorted({*known["backups"], *lacking} - gone)
        left = {one: why for one, why in known["damaged"].items() if one in there and one not in lacking}
        return {**known, "backups": there, "damaged": left}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Clear what a killed run left, copy, then remove."""
        to, name, lacking = self.params["to"], self.name, self.copies.lacking()
        steps = [
            Step(f"clear {one.name} of {name} in {to}, which a run left", partial(self.copies.clear, one))
            for one in store.left(self.copies.root, name)
        ]
        for one in lacking:
            words = f"copy {one.id} of {name} to {to} ({one.size >> 20} MiB)"
            steps.append(Step(words, partial(self.copies.bring, one)))
        for history in self.copies.outdated():
            words = f"remove the history {history[0].history} of {name} from {to} ({len(history)})"
            steps.append(Step(words, partial(self.copies.remove, history)))
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """What it lacks."""
        return {"lacking": self.lacking, "backups": (state or {"backups": []})["backups"]}


def main() -> None:
    """Run the module."""
    run_module(BackupCopy, FIELDS)


if __name__ == "__main__":
    main()
