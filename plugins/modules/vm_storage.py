#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_storage: move a running VM's disks to other storage: files, volumes of a SAN, images of Ceph."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_storage
short_description: Move the disks of a running VM to other storage
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - A disk lies on the storage that you name, while the machine runs on. That is a file of the node, raw or qcow2, an
    iSCSI volume, or an image of Ceph. What it lies on now may be any of them.
  - The disk is copied, then the machine changes over to the copy, see
    U(https://libvirt.org/kbase/live_full_disk_backup.html) and
    U(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCopy). Until the change it uses the old
    storage. If the module is killed, it still does; run the task again, and the copy goes on.
  - To move a machine to another node is the work of M(drover.kvm.migrate).
  - Write the new place into the machine's sheet too. M(drover.kvm.vm) refuses a disk that lies elsewhere than its sheet
    says.
options:
  name:
    description: The machine. It must run on this node.
    type: str
    required: true
  disks:
    description: The disks that shall lie elsewhere. Others stay where they are.
    type: list
    elements: dict
    required: true
    suboptions:
      target:
        description: Name of the disk on the bus, such as V(vda).
        type: str
        required: true
      type:
        description:
          - The kind of storage that it shall lie on; see M(drover.kvm.vm).
          - With V(file) and V(rbd) the file or image is made. One that is there already is never written to.
          - With V(iscsi) the volume must be there, see M(drover.kvm.iscsi_volume), and let the machine in. It must be
            as big as the disk; where it is bigger, a disk on a file or image is grown to its size, and one on iSCSI is
            refused. It must read as zeroes at its beginning, unless O(overwrite=true).
          - A storage that another machine has, here or on a peer, is refused.
        type: str
        choices: [iscsi, file, rbd]
        default: file
      path:
        description:
          - Path of the file. Its folder must be there, with room for 1.05 times the size of the disk while the old
            storage still counts. Required with O(disks[].type=file).
        type: path
      format:
        description: Format of the file. The default is the one that the disk has. It is V(raw) for iSCSI and RBD.
        type: str
        choices: [raw, qcow2]
      iqn:
        description: IQN of the iSCSI target. Required with O(disks[].type=iscsi).
        type: str
      lun:
        description: Number of the logical unit. The default is V(1).
        type: int
      portal:
        description: Address and port of the target, such as V(10.231.5.10:3260). Required with O(disks[].type=iscsi).
        type: str
      initiator:
        description: IQN with which the machine logs in. The default is the one of M(drover.kvm.vm).
        type: str
      user:
        description: CHAP user, or the user of Ceph; see M(drover.kvm.vm).
        type: str
      secret:
        description: Usage name of the libvirt secret with the password or key; see M(drover.kvm.vm).
        type: str
      pool:
        description: Pool of Ceph. Required with O(disks[].type=rbd).
        type: str
      namespace:
        description: Namespace in the pool. By default there is none.
        type: str
      image:
        description: Name of the image. The default is C(drover-NAME-NUMBER), with the number of the disk by its target.
        type: str
      monitors:
        description: Addresses of the cluster's monitors. The default are those of the node's C(/etc/ceph).
        type: list
        elements: str
  overwrite:
    description:
      - Whether an iSCSI volume is written to that has data at its beginning (its first mebibyte). It is needed for a
        volume on which a copy was begun that can't go on, since the machine was restarted meanwhile.
      - B(Danger:) what is on the volume is lost.
    type: bool
    default: false
  remove_source:
    description:
      - Whether to delete the old file, once the machine uses the copy; an image of Ceph is moved to the trash of its
        pool. Only what carries the mark of M(drover.kvm.vm) for this machine, and that neither another machine has
        nor another file beside it is based on, is deleted. Volumes of a SAN stay. Of what
        stays a warning says why.
    type: bool
    default: false
  bandwidth:
    description: The most that a copy may take, in bytes per second, such as V(100MiB). The default is no limit.
    type: str
  timeout:
    description:
      - How long to wait for one disk, in seconds. When they are over, the task fails, and the copy goes on in the
        background until the task is run again.
      - The default is 150 s for each GiB, and at least 120 s.
    type: int
  fenced:
    description:
      - Peers that are certainly powered off, by their names in the cluster. A volume or image is not written to while
        a peer gives no answer, as a machine there may use it; these peers are not waited for.
    type: list
    elements: str
    default: []
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img)
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.iscsi_volume
  - module: drover.kvm.migrate
"""

EXAMPLES = r"""
- name: Move a disk to a faster folder of the node and make it raw
  drover.kvm.vm_storage:
    name: db1
    disks:
      - target: vdb
        path: /srv/fast/db1-data.raw
        format: raw
    remove_source: true

- name: Make the volume for a local disk that shall go to the SAN
  drover.kvm.iscsi_volume:
    name: drover-db1-0
    iqn: iqn.2026-11.org.example:drover-db1-0
    size: 40GiB
    initiators: [iqn.2026-01.org.drover:vm-db1]
    chap_user: drover
    chap_password: "{{ vault_san_secret }}"
  delegate_to: san1

- name: Move the disk there as its machine runs
  drover.kvm.vm_storage:
    name: db1
    disks:
      - target: vda
        type: iscsi
        iqn: iqn.2026-11.org.example:drover-db1-0
        portal: 10.231.5.10:3260
        user: drover
        secret: san1

- name: Move a disk to Ceph, and delete the old file
  drover.kvm.vm_storage:
    name: web1
    disks:
      - {target: vda, type: rbd, pool: vms}
    remove_source: true

- name: See whether it would fit
  drover.kvm.vm_storage:
    name: db1
    disks:
      - target: vdb
        path: /srv/fast/db1-data.raw
  check_mode: true

- name: Move two disks in the night, and leave the old files for a while
  drover.kvm.vm_storage:
    name: files1
    bandwidth: 50MiB
    timeout: 28800
    disks:
      - target: vda
        path: /srv/pool2/files1-system.qcow2
      - target: vdb
        path: /srv/pool2/files1-data.qcow2
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample:
    - copy vdb of db1 from /srv/slow/a.qcow2 to /srv/fast/a.raw (raw, 100GiB)
    - change vdb of db1 to /srv/fast/a.raw
disks:
  description: The disks that were named, as they are after the task.
  returned: always
  type: list
  elements: dict
  contains:
    target: {description: Name of the disk on the bus., type: str, returned: always}
    storage: {description: "What it lies on, such as C(file:/srv/fast/a.raw).", type: str, returned: always}
    format: {description: Its format., type: str, returned: always}
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks.landing import LANDINGS, Place
from ansible_collections.drover.kvm.plugins.module_utils._domain import transfer
from ansible_collections.drover.kvm.plugins.module_utils._domain.copying import Copy, Guest
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import KINDS, check_target
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import names_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site, opened
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name, size_text
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

TO = {name: kind for name, kind in KINDS.items() if name in LANDINGS}
FIELDS = (
    Field("name", required=True, check=check_name),
    Field(
        "disks",
        type="list",
        elements="dict",
        required=True,
        fields=(
            Field("target", required=True, check=check_target),
            Field("type", choices=tuple(TO), default="file"),
            Field("format", choices=("raw", "qcow2")),
            *(field for kind in TO.values() for field in kind.fields),
        ),
    ),
    Field("overwrite", type="bool", default=False),
    Field("remove_source", type="bool", default=False),
    Field("bandwidth", type="size"),
    Field("timeout", type="int"),
    Field("fenced", type="list", elements="str", default=[]),
)


class VmStorage(Resource):
    """The disks of one running VM."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        self.guest = Guest(client, self.name, params["fenced"])
        self.old: dict[str, transfer.Disk] = {}
        self.looked_at: set[str] = set()

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Site]:
        """The node, and through it its peers."""
        return opened(connect())

    def read(self) -> State:
        """Where the disks are that were named."""
        self.known = self.guest.disks()
        self.disks = [transfer.check_options(options, self.known, self.name) for options in self.params["disks"]]
        self.old = self.old or {disk.target: disk for disk in self.disks}
        shown = [{"target": disk.target, "storage": disk.identity, "format": disk.format} for disk in self.disks]
        return {"name": self.name, "disks": shown}

    def wanted(self, before: State) -> State:
        """Where they shall be."""
        pairs = list(zip(self.params["disks"], self.disks))
        self.copies = [Copy(self.guest, disk, transfer.filled(options, disk, self.name)) for options, disk in pairs]
        self.guest.check_moves([copy.disk for copy in self.copies if copy.identity != copy.disk.identity])
        transfer.check_twins({copy.disk.target: copy.identity for copy in self.copies}, self.known, self.name, names_of)
        self.places = [copy.look() for copy in self.copies]
        there = zip(self.disks, self.places)
        shown = [{"target": disk.target, "storage": at.identity, "format": at.format} for disk, at in there]
        return {"name": self.name, "disks": shown}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Copy, change over, and delete."""
        steps: list[Step] = []
        taken: dict[Path, int] = {}
        for copy, place in zip(self.copies, self.places):
            folder = Path(place.name).parent
            left = None if place.free is None else place.free - taken.get(folder, 0)
            verbs = transfer.verbs(copy.disk, place._replace(free=left), copy.size, self.params["overwrite"])
            taken[folder] = taken.get(folder, 0) + (transfer.space(copy.size) if "copy" in verbs else 0)
            steps += [self.step(verb, copy, place) for verb in verbs]
            old = self.old[copy.disk.target]
            if self.params["remove_source"] and old.identity != place.identity:
                steps += self.removal(old)
        return steps

    def removal(self, old: transfer.Disk) -> list[Step]:
        """The deletion of what the disk lay on; where that stays, a warning says why."""
        kept, again = self.guest.why_kept(old), old.target in self.looked_at
        self.looked_at.add(old.target)
        if kept is None:
            return [Step(f"delete {old.name}", partial(self.guest.remove, old))]
        if not again:
            self.warnings.append(f"{old.name}, where {old.target} was, stays: {kept}")
        return []

    def step(self, verb: str, copy: Copy, place: Place) -> Step:
        """One change."""
        disk, size = copy.disk, place.size or copy.size
        seconds = self.params["timeout"] or max(120, 150 * size // 2**30)
        what, copied = f"{disk.target} of {self.name}", str(disk.copy).partition(":")[2]
        grown = f"grow {what} as it runs to {size_text(size)}, the size of {place.name}"
        words = f"{what} from {disk.name} to {place.name} ({place.format}, {size_text(size)})"
        return {
            "abort": Step(f"end the copy of {what} to {copied}", lambda: self.guest.abort(disk)),
            "clear": Step(f"delete {place.name}, which an unfinished copy left", copy.landing.clean),
            "grow": Step(grown, lambda: copy.grow(size)),
            "copy": Step(f"copy {words}", lambda: self.start(copy, place), copy.ready, seconds),
            "pivot": Step(f"change {what} to {place.name}", copy.pivot),
            "finish": Step(f"mark {place.name} as finished", copy.landing.finish),
        }[verb]

    def start(self, copy: Copy, place: Place) -> None:
        """Begin a copy."""
        if not copy.start(self.params["bandwidth"] or 0):
            self.warnings.append(f"{place.name} could not be marked as ours; remove_disks will not remove it")

    def result(self, state: State) -> dict[str, Any]:
        """The disks."""
        return {"disks": (state or {}).get("disks", [])}


def main() -> None:
    """Run the module."""
    run_module(VmStorage, FIELDS)


if __name__ == "__main__":
    main()
