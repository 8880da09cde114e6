#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_storage: move a running VM's disks to other files of its node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_storage
short_description: Move the disks of a running VM to other storage of its node
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - A disk lies in a file of the node that you name, raw or qcow2, while the machine runs on. It can come from another
    folder (another pool, a mounted NFS export), from an iSCSI volume, or be of the other format.
  - The disk is copied, then the machine changes over to the copy, see
    U(https://libvirt.org/kbase/live_full_disk_backup.html) and U(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCopy).
    Until the change it uses the old storage. If the module is killed, it still does; run the task again, and the copy
    goes on.
  - To move a machine to another node is the work of M(drover.kvm.migrate).
  - Write the new O(disks[].path) into the machine's sheet too. M(drover.kvm.vm) refuses a disk that lies elsewhere than
    its sheet says.
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
      path:
        description:
          - Path of the file. Its folder must be there, with room for 1.05 times the size of the disk while the old
            storage still counts. A file that is there already is never written to.
        type: path
        required: true
      format:
        description: Format of the file. The default is the one that the disk has.
        type: str
        choices: [raw, qcow2]
  remove_source:
    description:
      - Whether to delete the old file, once the machine uses the copy. Only a file that carries the mark of
        M(drover.kvm.vm) for this machine, and that no other machine of the node has, is deleted. Volumes of a SAN stay.
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
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img)
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.migrate
"""

EXAMPLES = r"""
- name: Move a disk to the new array and make it raw
  drover.kvm.vm_storage:
    name: db1
    disks:
      - target: vdb
        path: /srv/fast/db1-data.raw
        format: raw
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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain import power, transfer
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import check_target
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Failed, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name, size_text
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

FIELDS = (
    Field("name", required=True, check=check_name),
    Field(
        "disks",
        type="list",
        elements="dict",
        required=True,
        fields=(
            Field("target", required=True, check=check_target),
            Field("path", type="path", required=True, check=file.check_path),
            Field("format", choices=("raw", "qcow2")),
        ),
    ),
    Field("remove_source", type="bool", default=False),
    Field("bandwidth", type="size"),
    Field("timeout", type="int"),
)


class VmStorage(Resource):
    """The disks of one running VM."""

    def __init__(self, params: dict[str, Any], client: Node) -> None:
        super().__init__(params, client)
        self.node = client
        self.old: dict[str, transfer.Disk] = {}

    @classmethod
    @contextmanager
    def connect(cls, params: Mapping[str, Any]) -> Iterator[Node]:
        """The node."""
        with connect() as node:
            yield node

    def known(self) -> dict[str, transfer.Disk]:
        """The disks as they run. Raises NotFound and Refused."""
        domain = self.node.domain(self.name)
        if domain is None:
            raise NotFound(f"there is no VM {self.name} on this node")
        power.guard(domain_facts(domain))
        if domain.live_xml is None or domain.state not in ("running", "paused"):
            raise Refused(f"{self.name} is {domain.state}; its disks move while it runs: start it first")
        self.uuid = domain.uuid
        return transfer.disks(parse(domain.live_xml), parse(domain.xml))

    def read(self) -> State:
        """Where the disks are that were named."""
        known = self.known()
        self.disks = [transfer.check_options(options, known, self.name) for options in self.params["disks"]]
        self.old = self.old or {disk.target: disk for disk in self.disks}
        shown = [{"target": disk.target, "storage": disk.identity, "format": disk.format} for disk in self.disks]
        return {"name": self.name, "disks": shown}

    def wanted(self, before: State) -> State:
        """Where they shall be."""
        pairs = zip(self.params["disks"], self.disks)
        self.places = [self.place(options["path"], options["format"] or disk.format) for options, disk in pairs]
        there = zip(self.disks, self.places)
        shown = [{"target": disk.target, "storage": f"file:{at.path}", "format": at.format} for disk, at in there]
        return {"name": self.name, "disks": shown}

    def place(self, path: str, image_format: str) -> transfer.Place:
        """What is at a path. Raises Refused for what must not be a disk, Invalid without a folder."""
        exists = file.inspect({"path": path, "format": "raw"}) is not None
        return transfer.Place(path, image_format, exists, file.is_unfinished(path, self.uuid), file.room(path))

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Copy, change over, and delete."""
        steps: list[Step] = []
        taken: dict[Path, int] = {}
        for disk, place in zip(self.disks, self.places):
            size, folder = self.node.block_sizes(self.name, disk.target)["capacity"], Path(place.path).parent
            verbs = transfer.verbs(disk, place._replace(free=place.free - taken.get(folder, 0)), size)
            taken[folder] = taken.get(folder, 0) + (transfer.space(size) if "copy" in verbs else 0)
            steps += [self.step(verb, disk, place, size) for verb in verbs]
            old = self.old[disk.target]
            if self.params["remove_source"] and old.identity != f"file:{place.path}" and self.is_ours(old):
                steps.append(Step(f"delete {old.name}", partial(file.remove, str(old.identity), self.uuid)))
        return steps

    def step(self, verb: str, disk: transfer.Disk, place: transfer.Place, size: int) -> Step:
        """One change."""
        target, path, name = disk.target, place.path, self.name
        seconds = self.params["timeout"] or max(120, 150 * size // 2**30)
        words = f"{target} of {name} from {disk.name} to {path} ({place.format}, {size_text(size)})"
        return {
            "abort": Step(f"end the copy of {target} of {name} to {disk.copy}", partial(self.abort, disk)),
            "clear": Step(
                f"delete {path}, which an unfinished copy left", partial(file.remove, f"file:{path}", self.uuid)
            ),
            "copy": Step(
                f"copy {words}", partial(self.copy, disk, place, size), partial(self.ready, disk, path), seconds
            ),
            "pivot": Step(f"change {target} of {name} to {path}", partial(self.pivot, target, path)),
            "finish": Step(f"mark {path} as finished", partial(file.finish, path)),
        }[verb]

    def abort(self, disk: transfer.Disk) -> None:
        """End a copy, and delete what it made."""
        self.node.abort_block_job(self.name, disk.target)
        self.clean(str(disk.copy))

    def clean(self, path: str) -> None:
        """Delete an unfinished copy."""
        if file.is_unfinished(path, self.uuid):
            file.remove(f"file:{path}", self.uuid)

    def copy(self, disk: transfer.Disk, place: transfer.Place, size: int) -> None:
        """Begin, unless the copy runs already."""
        if disk.copy == place.path:
            return
        if not file.create({"path": place.path, "format": place.format}, size, self.uuid, unfinished=True):
            self.warnings.append(f"{place.path} could not be marked as ours; remove_disks will not remove it")
        try:
            xml = transfer.disk_xml(place)
            self.node.start_block_copy(self.name, disk.target, xml, self.params["bandwidth"] or 0)
        except DroverError:
            self.clean(place.path)
            raise

    def ready(self, disk: transfer.Disk, path: str) -> bool | str:
        """Whether the copy has caught up, else how far it is. Raises Failed when it has ended by an error."""
        now = self.known()[disk.target]
        if now.copy is None and now.identity == disk.identity:
            self.clean(path)
            raise Failed(
                f"the copy of {disk.target} to {path} broke off; is it full? {self.name} still uses {disk.name}"
            )
        job = {} if now.ready else self.node.block_job(self.name, disk.target)
        return now.ready or f"{job.get('cur', 0)} of {job.get('end', 0)} bytes are copied"

    def pivot(self, target: str, path: str) -> None:
        """Change over. Raises Failed when libvirt then shows another disk."""
        self.node.pivot(self.name, target)
        now = self.known()[target]
        if {now.identity, now.defined} != {f"file:{path}"}:
            raise Failed(f"{target} of {self.name} runs on {now.identity} and is defined as {now.defined}, not {path}")
        file.finish(path)

    def is_ours(self, disk: transfer.Disk) -> bool:
        """Whether a disk's old file was made for this VM, and no other VM of the node has it."""
        if file.read_mark(disk.name) != self.uuid or not str(disk.identity).startswith("file:"):
            return False
        others = [facts for facts in map(domain_facts, self.node.domains().values()) if facts["name"] != self.name]
        return disk.identity not in {other["identity"] for facts in others for other in facts["disks"]}

    def result(self, state: State) -> dict[str, Any]:
        """The disks."""
        return {"disks": (state or {}).get("disks", [])}


def main() -> None:
    """Run the module."""
    run_module(VmStorage, FIELDS)


if __name__ == "__main__":
    main()
