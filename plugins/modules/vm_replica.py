#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_replica: copy all disks of a running VM to volumes of a second SAN, of one moment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_replica
short_description: Copy the disks of a running VM to a second SAN, all of one moment
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Copies all disks of a machine to iSCSI volumes while it runs, and ends all copies in one moment, see
    U(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockJobAbort). The machine stays on its own disks.
  - The replica is what the disks would be after a power cut of the machine at that moment. A machine with several disks
    stands still for a part of a second meanwhile; should the module be killed just then, a timer of systemd resumes it
    after 15 s.
  - While it works, the volumes hold neither the old replica nor a new one. Playbook C(drover.kvm.replicate_vms) writes
    two replicas by turn and keeps records of them (M(drover.kvm.replica_record)).
  - If the module is killed, the copies go on; run the task again, and they are ended then.
options:
  name:
    description: The machine. It must run on this node.
    type: str
    required: true
  disks:
    description: Where the copy of each disk is written. All disks that the machine can write to must be named.
    type: list
    elements: dict
    required: true
    suboptions:
      target:
        description: Name of the disk on the bus, such as V(vda).
        type: str
        required: true
      iqn:
        description:
          - IQN of the iSCSI target. Required. The volume must be there, be exactly as big as the disk, and let the
            machine in.
          - It must not be a disk of any machine.
        type: str
      lun:
        description: Number of the logical unit. The default is V(1).
        type: int
      portal:
        description: Address and port of the target, such as V(10.231.7.10:3260). Required.
        type: str
      initiator:
        description: IQN with which the machine logs in. The default is the one of M(drover.kvm.vm).
        type: str
      user:
        description: CHAP user. It goes with O(disks[].secret).
        type: str
      secret:
        description: Usage name of the libvirt secret (of type C(iscsi)) with the CHAP password.
        type: str
  slot:
    description: Which of the machine's two replicas this is. It is returned, for M(drover.kvm.replica_record).
    type: str
    choices: [a, b]
    default: a
  overwrite:
    description:
      - Whether a volume is written to that has data at its beginning, such as an older replica.
      - B(Danger:) what is on the volume is lost.
    type: bool
    default: false
  bandwidth:
    description: The most that each copy may take, in bytes per second, such as V(100MiB). The default is no limit.
    type: str
  timeout:
    description: How long to wait for one disk, in seconds. The default is 150 s for each GiB, and at least 120 s.
    type: int
  fenced:
    description:
      - Peers that are certainly powered off, by their names in the cluster. No volume is written to while another peer
        gives no answer, as a machine there may use it.
    type: list
    elements: str
    default: []
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
attributes:
  idempotent:
    support: none
    details: Each run makes a new copy.
notes:
  - Nothing inside the guest is asked to write its caches first. What it needs after a power cut it needs here, such as
    the journal of its file system or the log of its database.
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img)
seealso:
  - module: drover.kvm.replica_record
  - module: drover.kvm.vm_storage
  - module: drover.kvm.iscsi_volume
"""

EXAMPLES = r"""
- name: Make a volume for the replica on the second SAN
  drover.kvm.iscsi_volume:
    name: replica-db1-0-a
    iqn: iqn.2026-11.org.example:replica-db1-0-a
    size: 40GiB
    initiators: [iqn.2026-01.org.drover:vm-db1]
    chap_user: drover
    chap_password: "{{ vault_san2_secret }}"
  delegate_to: san2

- name: Copy a machine
  drover.kvm.vm_replica:
    name: db1
    disks:
      - target: vda
        iqn: iqn.2026-11.org.example:replica-db1-0-a
        portal: 10.231.7.10:3260
        user: drover
        secret: san2

- name: Copy it again, with a limit
  drover.kvm.vm_replica:
    name: db1
    bandwidth: 50MiB
    overwrite: true
    disks:
      - target: vda
        iqn: iqn.2026-11.org.example:replica-db1-0-a
        portal: 10.231.7.10:3260
        user: drover
        secret: san2
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample:
    - copy vda of db1 to iqn.2026-11.org.example:replica-db1-0-a/1@10.231.7.10:3260 (40GiB)
    - end the copies of db1 in one moment
replica:
  description: What was copied. Null in check mode, and after an error.
  returned: always
  type: dict
  contains:
    vm: {description: Name of the machine., type: str, returned: always}
    slot: {description: Which replica it is., type: str, returned: always}
    uuid: {description: Its UUID., type: str, returned: always}
    time: {description: The moment of the copy in UTC., type: str, returned: always, sample: "2026-11-21T20:15:00Z"}
    sheet:
      description: Options of M(drover.kvm.vm) with which the machine starts from the replica. It holds no secret.
      type: dict
      returned: always
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks.iscsi import FIELDS as ISCSI
from ansible_collections.drover.kvm.plugins.module_utils._disks.landing import Place
from ansible_collections.drover.kvm.plugins.module_utils._domain import replicas, transfer
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import adoption
from ansible_collections.drover.kvm.plugins.module_utils._domain.copying import Copy, Guest
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import check_target
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import names_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site, opened
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name, size_text
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("name", required=True, check=check_name),
    Field(
        "disks",
        type="list",
        elements="dict",
        required=True,
        fields=(Field("target", required=True, check=check_target), *ISCSI),
    ),
    Field("slot", choices=replicas.SLOTS, default="a"),
    Field("overwrite", type="bool", default=False),
    Field("bandwidth", type="size"),
    Field("timeout", type="int"),
    Field("fenced", type="list", elements="str", default=[]),
)


class VmReplica(Resource):
    """The copies of one running VM's disks."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        self.guest = Guest(client, self.name, params["fenced"])
        self.made: dict[str, Any] | None = None

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Site]:
        """The node, and through it its peers."""
        return opened(connect())

    def read(self) -> State:
        """The disks as they run, and when they were copied."""
        self.known = self.guest.disks()
        return {"name": self.name, "copied": self.made and self.made["time"]}

    def wanted(self, before: State) -> State:
        """A copy of all of them."""
        if self.made:
            return before
        self._check_whole()
        pairs = [(options, transfer.check_options(options, self.known, self.name)) for options in self.params["disks"]]
        whole = [({**options, "type": "iscsi", "format": "raw"}, disk) for options, disk in pairs]
        self.copies = [Copy(self.guest, disk, transfer.filled(options, disk, self.name)) for options, disk in whole]
        transfer.check_twins({copy.disk.target: copy.identity for copy in self.copies}, self.known, self.name, names_of)
        self.places = [self._look(copy) for copy in self.copies]
        return {"name": self.name, "copied": "now"}

    def _check_whole(self) -> None:
        """Raise Invalid when a disk that the VM can write to would be left out."""
        domain = self.guest.node.domain(self.name)
        seen = domain_facts(domain)["disks"] if domain else []
        named = [options["target"] for options in self.params["disks"]]
        left = [disk["target"] for disk in seen if disk["device"] == "disk" and not disk["readonly"]]
        if left := [target for target in left if target not in named]:
            raise Invalid(f"{self.name} also has {', '.join(left)}; a replica without all disks could not start")

    def _look(self, copy: Copy) -> Place:
        if copy.identity in (copy.disk.identity, copy.disk.defined):
            raise Refused(f"{self.name} runs from {copy.disk.name}, so that can't be its replica")
        place = copy.look()
        if place.size is not None and place.size > copy.size:
            raise Refused(
                f"{place.name} has {size_text(place.size)}, and {copy.disk.target} {size_text(copy.size)}: only the "
                "same size can be copied"
            )
        return place

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Copy each disk, and end all copies together."""
        steps: list[Step] = []
        for copy, place in zip([] if self.made else self.copies, self.places):
            disk, words = copy.disk, f"{copy.disk.target} of {self.name}"
            if "abort" in transfer.verbs(disk, place, copy.size, self.params["overwrite"]):
                ended = f"end the copy of {words} to {str(disk.copy).partition(':')[2]}"
                steps.append(Step(ended, partial(self.guest.abort, disk)))
            start = partial(copy.start, self.params["bandwidth"] or 0)
            seconds = self.params["timeout"] or max(120, 150 * copy.size // 2**30)
            words = f"copy {words} to {place.name} ({size_text(copy.size)})"
            steps.append(Step(words, start, copy.ready, seconds))
        return [*steps, Step(f"end the copies of {self.name} in one moment", self.end)] if steps else []

    def end(self) -> None:
        """End all copies. Raises Failed when one of them is not in step with its disk."""
        domain = self.guest.node.domain(self.name)
        if domain is None:
            raise NotFound(f"there is no VM {self.name} on this node any more")
        known = self.guest.disks()
        torn = [copy.disk.target for copy in self.copies if not known[copy.disk.target].ready]
        if torn:
            raise Failed(f"the copy of {', '.join(torn)} of {self.name} broke off; there is no replica")
        moment = datetime.now(timezone.utc)
        self.guest.end_together([copy.disk.target for copy in self.copies])
        options = {copy.disk.target: self._options(copy) for copy in self.copies}
        sheet = replicas.sheet_of(adoption(domain)[0], options)
        said = {"vm": self.name, "slot": self.params["slot"], "uuid": domain.uuid}
        self.made = {**said, "time": replicas.stamp(moment), "sheet": sheet}

    @staticmethod
    def _options(copy: Copy) -> dict[str, Any]:
        names = ("type", "format", *(field.name for field in ISCSI))
        return {name: copy.options[name] for name in names if copy.options.get(name) is not None}

    def result(self, state: State) -> dict[str, Any]:
        """The replica."""
        return {"replica": self.made}


def main() -> None:
    """Run the module."""
    run_module(VmReplica, FIELDS)


if __name__ == "__main__":
    main()
