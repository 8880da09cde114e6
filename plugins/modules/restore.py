#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module restore: a VM, or some of its disks, from a backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: restore
short_description: Restore a VM, or single disks, from a backup
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Makes a machine on this node from a backup of M(drover.kvm.backup), with the disks, the variables of UEFI and the
    keys of the TPM that it had. It is defined, not started. With O(disks) only these disks are written, and no machine
    is defined.
  - All of the backup is read and compared with its checksums first, and each disk with the backup afterwards.
  - Nothing is written over. A machine of that name, UUID or MAC address on any node of the cluster, a file in the way
    or too little room are refused before anything is done.
  - If the module is killed, run it again; it goes on with the disks that are missing.
options:
  path:
    description: The folder of all backups, as an absolute path on the node.
    type: path
    required: true
  name:
    description: The machine that was backed up.
    type: str
    required: true
  id:
    description:
      - Which backup, see M(drover.kvm.backup_info). The default is the newest good one of the machine that had the name
        last.
    type: str
  new_name:
    description:
      - Name of the machine that is made. Another one than O(name) gets a new UUID and new MAC addresses, and disks in
        files named after it, such as V(drover-NAME-0.qcow2) for C(vda) and V(drover-NAME-sda.qcow2) for C(sda). The
        default is O(name).
    type: str
  directory:
    description:
      - The folder for the disks. The default for a machine of the same name is where a disk was, if it was a file.
        Else it is V(/var/lib/libvirt/images). Disks that were no files become qcow2 files; M(drover.kvm.vm_storage)
        moves them to other storage as the machine runs.
    type: path
  disks:
    description:
      - Restore only these, such as V(vdb), to files, and define no machine. The files belong to no machine, so none
        takes them along when it is removed. A file that was restored so is left as it is by the next run; one that
        was written to since is in its way.
    type: list
    elements: str
  passphrase:
    description:
      - What opens the backup, where it is encrypted. A wrong one is refused before anything is done. Of one that is not
        encrypted it has no effect. The disks are in clear when they are back.
    type: str
  nics:
    description: With V(none) the machine has no network, such as for a trial.
    type: str
    choices: [keep, none]
    default: keep
  fenced:
    description:
      - Peers that are certainly powered off, by their names in the cluster. Nothing is restored while another peer
        gives no answer, as the machine may be there.
    type: list
    elements: str
    default: []
  timeout:
    description: How long one disk may take, in seconds.
    type: int
    default: 86400
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm, drover.kvm.libvirt]
requirements:
  - libvirt 9.0 or later, and its Python library (C(python3-libvirt))
  - C(qemu-img)
  - a file system with extended attributes for the disks, such as ext4 or XFS
notes:
  - A machine that was restored from that very backup is left as it is. To go back to it once more, remove the machine
    first.
  - A drive whose medium is not on this node is empty then.
seealso:
  - module: drover.kvm.backup
  - module: drover.kvm.backup_info
  - module: drover.kvm.vm_storage
"""

EXAMPLES = r"""
- name: Bring a machine back that is gone, from its newest good backup
  drover.kvm.restore:
    path: /mnt/backup
    name: web1

- name: An older state beside the machine that runs, without network
  drover.kvm.restore:
    path: /mnt/backup
    name: web1
    id: 20261115T030000Z
    new_name: web1-look
    nics: none

- name: One from an encrypted backup
  drover.kvm.restore:
    path: /mnt/backup
    name: payroll1
    passphrase: "{{ vault_backup_passphrase }}"

- name: One disk as a file
  drover.kvm.restore:
    path: /mnt/backup
    name: db1
    disks: [vdb]
    directory: /srv/look
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["restore vda of web1 to /var/lib/libvirt/images/drover-web1-0.qcow2 (40GiB)", "define web1"]
restored:
  description: What was restored.
  returned: always
  type: dict
  contains:
    name: {description: Name of the machine., type: str, returned: always}
    backup: {description: The backup., type: str, returned: always}
    files: {description: The files of its disks., type: list, elements: str, returned: always}
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._backup import files, restoring, store
from ansible_collections.drover.kvm.plugins.module_utils._disks.file import check_path
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._domain.admission import Admission
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import claims_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site, opened
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_vm_name, size_text
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse, text_of

FIELDS = (
    Field("path", type="path", required=True, check=check_path),
    Field("name", required=True, check=check_vm_name),
    Field("id"),
    Field("new_name", check=check_vm_name),
    Field("directory", type="path", check=check_path),
    Field("disks", type="list", elements="str"),
    Field("passphrase", no_log=True),
    Field("nics", choices=("keep", "none"), default="keep"),
    Field("fenced", type="list", elements="str", default=[]),
    Field("timeout", type="int", default=86400, check=between(1)),
    URI,
)


class Restore(Resource):
    """One VM that comes back."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        self.target = params["new_name"] or self.name
        self.whole = params["disks"] is None
        root = store.check_root(params["path"])
        self.backups = store.read(root, self.name)
        self.backup = self._choose()
        self.chain = store.chain(self.backups, self.backup)
        self.kept = files.kept(self.backup, params["passphrase"])
        key = files.key_of(self.kept)
        self.places = restoring.places(self.backup, self.target, params["directory"], params["disks"], key)
        self.definition = restoring.definition(self.backup, self.kept, self.target, self.places, params["nics"])
        self.uuid = restoring.uuid_of(self.backup, self.target)

    def _choose(self) -> store.Backup:
        """The backup that is asked for. Raises NotFound and Refused."""
        wanted = self.params["id"]
        # The newest good one may be of a machine that had the name before.
        last = next((one.uuid for one in reversed(self.backups) if one.uuid), None)
        good = [one for one in self.backups if one.complaint is None and one.uuid == last]
        fit = good if wanted is None else [one for one in self.backups if one.id == wanted]
        if not fit:
            there = ", ".join(f"{one.id} (of {one.uuid or 'nobody knows'})" for one in self.backups) or "none at all"
            raise NotFound(
                f"there is no {f'backup {wanted}' if wanted else 'good backup'} of {self.name} in "
                f"{self.params['path']}; there is {there}. Say another one (id), or where they are (path)"
            )
        if fit[-1].complaint:
            raise Refused(f"{fit[-1].id} is not good: {fit[-1].complaint}. Choose another one (id)")
        return fit[-1]

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Site]:
        """The node, and through it its peers."""
        return opened(connect(str(params["uri"])))

    def read(self) -> State:
        """From which backup the VM is that is there; its disks that are there already."""
        domain = self.client.node.domain(self.target) if self.whole else None
        self.there = None if domain is None else metadata.read(parse(domain.xml)).get(restoring.RESTORED)
        done = [place.path for place in self.places if restoring.is_done(place)]
        if domain is not None and self.there != self.backup.id:
            raise Refused(
                f"there is a VM {self.target} on this node ({domain.state}), and a restore goes over none. Remove it "
                "first (vm, state: absent), or restore under another name (new_name)"
            )
        return {"name": self.target, "backup": self.there, "begun": done}

    def wanted(self, before: State) -> State:
        """The VM of that backup."""
        if self.whole:
            if self.there is None:
                self._check()
            return {"name": self.target, "backup": self.backup.id, "begun": []}
        restoring.check_new(self.places)
        return {"name": self.target, "backup": None, "begun": [place.path for place in self.places]}

    def _check(self) -> None:
        """Raise Refused where the VM, or something that it would hold, is elsewhere."""
        admission = Admission(self.client, self.target, self.params["fenced"])
        admission.arrival(claims_of(self.definition), self.uuid, "restored")
        restoring.check_new(self.places)
        self.state = restoring.check_state(self.kept, self.target, self.uuid)

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Prove the backup, bring its disks, and define the VM."""
        if before == wanted:
            return []
        finish = partial(restoring.finish, self.places)
        if self.there is not None:
            return [Step(f"finish the restore of {self.target}", finish)]
        names = ", ".join(one.id for one in self.chain)
        steps = [Step(f"compare {names} of {self.name} with the checksums", self.prove)]
        for place in self.places:
            if not restoring.is_done(place):
                words = f"restore {place.target} of {self.name} to {place.path} ({size_text(place.size)})"
                bring = partial(restoring.bring, place, self.params["timeout"])
                steps.append(Step(words, bring))
        if self.whole:
            for part in self.state:
                call = partial(restoring.put_back, part, self.kept, self.target, self.uuid)
                steps.append(Step(f"put back {part} of {self.target}", call))
            steps.append(Step(f"define {self.target}", self.define))
        return steps

    def prove(self) -> None:
        """Raise Failed where the backup is not what was written."""
        for one in self.chain:
            if complaint := store.verify(one):
                raise Failed(f"{one.id} is damaged: {complaint}; choose another one (id)")

    def define(self) -> None:
        """The VM is there with all it needs; from now on its disks are its own."""
        self.client.node.define(text_of(self.definition))
        restoring.finish(self.places)

    def result(self, state: State) -> dict[str, Any]:
        """What was restored."""
        made = [place.path for place in self.places]
        return {"restored": {"name": self.target, "backup": self.backup.id, "files": made}}


def main() -> None:
    """Run the module."""
    run_module(Restore, FIELDS)


if __name__ == "__main__":
    main()
