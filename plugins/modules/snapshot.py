#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot: make, remove and keep snapshots of VMs, and set a VM back to one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot
short_description: Snapshots of VMs, and the way back
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Makes and removes snapshots of one machine, or of several at the same moment, keeps the newest, and sets a machine
    back to one of them. They are libvirt's snapshots, so that C(virsh) shows them too, see
    U(https://libvirt.org/formatsnapshot.html), or those that Ceph keeps of its images, which C(rbd) shows.
  - A snapshot lies on the same storage as the disks. It is the way back from a change; it is no backup.
  - It holds all disks that the machine can write to, or none is made. Media and disks that are read-only are left out.
  - A machine that has snapshots of libvirt is not migrated, as libvirt would leave them behind; M(drover.kvm.migrate)
    says so. One with snapshots of RBD images moves like any other.
  - A run that is killed leaves no guest frozen (a timer of systemd thaws it after 8 seconds) and no half snapshot; run
    it again. What libvirt has begun then it ends by itself.
options:
  name:
    description: The machine. It must be on this node. One of O(name) and O(vms) is needed.
    type: str
  vms:
    description:
      - Several machines of this node. All are frozen, then all snapshots are made, then all go on. When one of them
        fails, none is kept. With O(memory=true) each has a moment of its own. With O(kind=rbd) they are paused too
        meanwhile, so that all their images are of one moment whether their agents answer or not.
    type: list
    elements: str
  snapshot:
    description: Name of the snapshot. Required but with O(state=retained).
    type: str
  state:
    description:
      - V(present) makes the snapshot unless there is one of this name.
      - V(absent) removes it. An external one is merged, as the machine runs. What other tools made is refused.
      - V(retained) removes the snapshots that this module made, that have all of O(tags), and that are neither among
        the newest O(keep) nor younger than O(max_age). The oldest goes first, so that a run that is cut off leaves the
        newest; one on which several branches stand goes after them.
      - V(reverted) sets the machine back. It is an act, not a state, and happens in each run, unless O(id) says which
        act is meant. Newer snapshots stay. One of O(kind=rbd) is set back while it is off; a machine that runs is
        switched off for it and started again.
    type: str
    choices: [present, absent, retained, reverted]
    default: present
  description:
    description: A line of text.
    type: str
  tags:
    description: Words. With O(state=retained) it means the snapshots that have all of them, otherwise exactly these.
    type: list
    elements: str
  memory:
    description:
      - Whether the memory of a running machine is saved too, so that it goes on from that very moment. One that is off
        has none.
    type: bool
    default: false
  quiesce:
    description:
      - Whether the guest agent holds the file systems still meanwhile. Not needed with O(memory=true), nor for a
        machine that is off.
      - With V(auto) it is asked where it runs; else there is a warning, and the snapshot is as after a power cut.
      - With V(required) there is no snapshot without it.
    type: str
    choices: [auto, required, never]
    default: auto
  kind:
    description:
      - V(internal) keeps it in the disks, which must be qcow2 files. Of a machine that runs it always has the memory,
        and the machine stands still until that is written.
      - V(rbd) has Ceph keep it, for machines whose disks are all images of Ceph, which run or are off. A machine with
        several images is paused until all have it, for about a second. It holds no memory, and neither the
        machine's definition nor its UEFI and TPM state. What was made of the images by others is listed and left alone.
      - V(external) lets the machine write to new files, one for each disk, from then on. It works for all disks, takes
        no time, and the way back needs libvirt 9.10 (Debian 13). Over disks that are no files libvirt knows no way
        back; the module warns, and refuses O(state=reverted) for them.
      - V(auto) takes the kind that the machine has already; otherwise the first of V(internal), V(rbd) (not where a
        O(directory) is given) and V(external) that is possible. A machine never has two of them, as libvirt could
        delete neither.
    type: str
    choices: [auto, internal, rbd, external]
    default: auto
  directory:
    description:
      - Folder of the files of external snapshots. The default is that of each disk. Required for external snapshots
        of disks that are no files, such as volumes of a SAN.
    type: path
  max_chain:
    description: The most files in which a disk may lie one above the other before an external snapshot is refused.
    type: int
    default: 8
  keep:
    description: How many of the newest are kept in any case. The default is V(0), which keeps none of them.
    type: int
  max_age:
    description: The age up to which others are kept, as V(30d), V(12h), V(90min) or in seconds. The default is none.
    type: str
  discard_changes_since:
    description:
      - The name of the snapshot once more. Without it O(state=reverted) is refused, with what would be lost.
      - B(Danger:) what was written since the snapshot is gone from the machine.
    type: str
  safety_snapshot:
    description:
      - Whether the machine as it is now is kept in a snapshot before it is set back. It is called
        C(before-SNAPSHOT-ID) and has the tag C(safety).
    type: bool
    default: true
  id:
    description:
      - A word for this act of setting back, such as the number of a change. A run with the same one finishes an act
        that was interrupted, and changes nothing after one that is done.
    type: str
  i_know:
    description:
      - Names of machines that are set back although their sheet says C(rollback_safe=false), see M(drover.kvm.vm).
    type: list
    elements: str
    default: []
  timeout:
    description:
      - How long to wait for one removal, in seconds. When they are over, the task fails, and the merge goes on.
      - The default is 150 s for each GiB of the disks, and at least 120 s.
    type: int
  fenced:
    description:
      - Peers that are certainly powered off, by their names in the cluster. A machine that is off is not set back to a
        snapshot in which it runs while a peer gives no answer, as it may run there.
    type: list
    elements: str
    default: []
  uri:
    description: libvirt's URI.
    type: str
    default: qemu:///system
extends_documentation_fragment: [drover.kvm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=reverted) without O(id) is an act; each run sets the machine back.
  action_group:
    support: full
notes:
  - What it reads and changes is root's. Where Ansible comes as another user, use C(become=true).
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(virsh) and systemd, for machines that are quiesced or paused
  - C(python3-rados) and C(python3-rbd), and the files of role P(drover.kvm.ceph_client#role), for machines with images
    of Ceph
seealso:
  - module: drover.kvm.snapshot_info
  - module: drover.kvm.vm
  - module: drover.kvm.migrate
  - module: drover.kvm.vm_storage
"""

EXAMPLES = r"""
- name: Before a risky change, with memory
  drover.kvm.snapshot:
    name: web1
    snapshot: before-upgrade
    memory: true
    description: Before Debian 13

- name: The application and its database, of one moment, with file systems at rest
  drover.kvm.snapshot:
    vms: [app1, db1]
    snapshot: nightly-{{ now(utc=true).strftime("%Y%m%d") }}
    quiesce: required
    tags: [nightly]

- name: Keep the last seven of these
  drover.kvm.snapshot:
    vms: [app1, db1]
    state: retained
    tags: [nightly]
    keep: 7

- name: Ask what would be lost
  drover.kvm.snapshot:
    name: web1
    snapshot: before-upgrade
    state: reverted
    discard_changes_since: before-upgrade
  check_mode: true

- name: Go back, once for this change
  drover.kvm.snapshot:
    name: web1
    snapshot: before-upgrade
    state: reverted
    discard_changes_since: before-upgrade
    id: CHG-1234

- name: All is well, the snapshot can go
  drover.kvm.snapshot:
    name: web1
    snapshot: before-upgrade
    state: absent

- name: All images of a machine on Ceph, frozen and of one moment; tomorrow the machine may be on another node
  drover.kvm.snapshot:
    name: mail1
    snapshot: before-upgrade
    kind: rbd
    quiesce: required

- name: Set it back with its disks alone; it runs afterwards as it did before
  drover.kvm.snapshot:
    name: mail1
    snapshot: before-upgrade
    state: reverted
    discard_changes_since: before-upgrade
    id: CHG-1235

- name: A volume of a SAN, with what is written from now on in a local folder
  drover.kvm.snapshot:
    name: db1
    snapshot: before-schema-change
    directory: /srv/overlays
    quiesce: required
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample:
    - make the internal snapshot before-upgrade of web1 (memory and disks)
vms:
  description: The machines with all of their snapshots, as they are after the task; in check mode as they are before.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The machine., type: str, returned: always}
    chain:
      description: The files in which each disk lies, the one that is written to first.
      type: dict
      returned: always
    chain_length: {description: The most files of a disk., type: int, returned: always}
    snapshots:
      description: All of them, the oldest first, also those that other tools made.
      type: list
      elements: dict
      returned: always
      contains:
        name: {description: Its name., type: str, returned: always}
        description: {description: Its description., type: str, returned: always}
        tags: {description: Its tags., type: list, elements: str, returned: always}
        time: {description: When it was made in UTC., type: str, returned: always, sample: "2026-11-22T06:00:00Z"}
        age: {description: How long ago in seconds., type: int, returned: always}
        kind: {description: "V(internal), V(rbd) or V(external).", type: str, returned: always}
        complete:
          description:
            - Whether it is one of all disks that the machine has now. One of RBD is not after a run that was killed,
              and when the machine got a disk since.
          type: bool
          returned: always
        memory: {description: Whether it holds the memory., type: bool, returned: always}
        quiesced:
          description: Whether the file systems stood still; null where that was no question, or is not known.
          type: bool
          returned: always
        managed: {description: Whether this module made it., type: bool, returned: always}
        parent: {description: The snapshot before it; RBD tells none., type: str, returned: always}
        current:
          description: Whether it is the last one that was made or gone back to; RBD tells none.
          type: bool
          returned: always
        size:
          description:
            - Bytes of its own files. For an internal one those of the memory; what it holds of the disks no tool tells.
              For one of RBD what C(rbd du) says of it, in whole objects; null for images without the feature fast-diff.
          type: int
          returned: always
        files:
          description: Its own files; for one of RBD those of its images, as C(POOL/IMAGE@SNAPSHOT).
          type: list
          elements: str
          returned: always
lost:
  description: What setting it back loses, by machine.
  returned: with O(state=reverted), when something is done
  type: dict
  contains:
    since: {description: The moment of the snapshot in UTC., type: str, returned: always}
    age: {description: Seconds since then., type: int, returned: always}
    bytes: {description: The least that was written since; null where nothing tells., type: int, returned: always}
    kept: {description: Newer snapshots that stay., type: list, elements: str, returned: always}
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import time
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks.file import check_path
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import check_text
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name, parse_age
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._snapshot import making
from ansible_collections.drover.kvm.plugins.module_utils._snapshot.item import Item
from ansible_collections.drover.kvm.plugins.module_utils._snapshot.machine import Machine
from ansible_collections.drover.kvm.plugins.module_utils._snapshot.volumes import Handles

FIELDS = (
    Field("name", check=check_name),
    Field("vms", type="list", elements="str", check=lambda names: [check_name(name) for name in names]),
    Field("snapshot", check=check_name),
    Field("state", choices=("present", "absent", "retained", "reverted"), default="present"),
    Field("description", check=check_text),
    Field("tags", type="list", elements="str", check=lambda tags: sorted({check_name(tag) for tag in tags})),
    Field("memory", type="bool", default=False),
    Field("quiesce", choices=("auto", "required", "never"), default="auto"),
    Field("kind", choices=("auto", "internal", "rbd", "external"), default="auto"),
    Field("directory", type="path", check=check_path),
    Field("max_chain", type="int", default=8),
    Field("keep", type="int"),
    Field("max_age", check=parse_age),
    Field("discard_changes_since"),
    Field("safety_snapshot", type="bool", default=True),
    Field("id", check=lambda value: check_name(value, 40)),
    Field("i_know", type="list", elements="str", default=[]),
    Field("timeout", type="int"),
    Field("fenced", type="list", elements="str", default=[]),
    URI,
)


class Snapshot(Resource):
    """The snapshots of one VM, or of several of one moment."""

    def __init__(self, params: dict[str, Any], client: tuple[Site, Handles]) -> None:
        super().__init__(params, client)
        self.now = time()
        self.items = [Item(Machine(*client, name), params, self.now) for name in params["vms"] or [params["name"]]]
        self._check()

    @property
    def name(self) -> str:
        """The VMs, for messages."""
        return ", ".join(item.name for item in self.items)

    @classmethod
    @contextmanager
    def connect(cls, params: Mapping[str, Any]) -> Iterator[tuple[Site, Handles]]:
        """The node, through it its peers, and the volumes of its VMs."""
        with connect(params["uri"]) as node, ExitStack() as stack:
            yield Site(node), Handles(stack)

    def _check(self) -> None:
        if len({item.name for item in self.items}) != len(self.items):
            raise Invalid("vms: name each VM once", option="vms")
        for option, least in (("keep", 0), ("max_chain", 1), ("timeout", 1)):
            if self.params[option] is not None and self.params[option] < least:
                raise Invalid(f"{option}={self.params[option]} is less than {least}", option=option)
        if self.params["state"] == "retained" and self.params["snapshot"]:
            raise Invalid("state=retained is for all snapshots that have the tags; leave snapshot out")

    def read(self) -> State:
        """The snapshots of each."""
        for item in self.items:
            item.machine.read()
        return {"vms": {item.name: item.shown() for item in self.items}}

    def wanted(self, before: State) -> State:
        """What shall be of each. A VM for which it can't be refuses it for all."""
        return {"vms": {item.name: item.wanted() for item in self.items}}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Make them for all VMs together, or remove, or set back."""
        plans = [item.plan for item in self.items if item.plan]
        words = "; ".join(plan.words for plan in plans)
        first = [Step(words, lambda: self.warnings.extend(making.make(plans)))] if plans else []
        return first + [step for item in self.items for step in item.steps()]

    def result(self, state: State) -> dict[str, Any]:
        """The snapshots, and what was lost."""
        self.warnings += [words for item in self.items for words in (*item.warnings, *item.revert.warnings)]
        lost = {item.name: item.revert.lost for item in self.items if item.revert.lost}
        told = [item.machine.told(self.now) for item in self.items] if state else []
        return {"vms": told, **({"lost": lost} if lost else {})}


def main() -> None:
    """Run the module."""
    needed = [("state", state, ["snapshot"]) for state in ("present", "absent", "reverted")]
    run_module(
        Snapshot,
        FIELDS,
        required_if=[*needed, ("state", "retained", ["keep", "max_age"], True)],
        required_one_of=[["name", "vms"]],
        mutually_exclusive=[["name", "vms"]],
    )


if __name__ == "__main__":
    main()
