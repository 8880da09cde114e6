#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module clone: a second VM with what is on the disks of one that runs, or is off."""

from __future__ import annotations

DOCUMENTATION = r"""
module: clone
short_description: Make a new VM of one that is there, while it runs
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Makes a second machine with all that is on the disks of the first one at one moment. It is defined on the node of
    the first one, not started. Playbook C(drover.kvm.clone_vm) finds that node.
  - Of a machine that runs, QEMU copies the disks as for a backup (M(drover.kvm.backup)). Its guest agent holds the file
    systems still for the part of a second in which that begins. No overlay and no snapshot is made, so the disks of
    the first machine stay the files that they are. Of a machine that is off, C(qemu-img) copies.
  - The new machine has a new UUID, new MAC addresses, disks in files of its own that are based on nothing, its own
    variables of UEFI and keys of a TPM, and neither devices nor folders of the node (hostdevs, filesystems). A
    cloud-init seed of the first machine is not in its drive.
  - What is inside the disks is the same. The new guest has the host name, the machine-id, the keys of the SSH server
    and fixed addresses of the first one. Change these before both are in one network; O(nics=none) helps.
  - Nothing is written over. A machine of that name or UUID on any node of the cluster, a file in the way or too little
    room are refused before anything is done.
  - If the module is killed, run it again. What QEMU has copied is used when all of it is there. Else it is deleted and
    copied anew.
options:
  name:
    description: The new machine.
    type: str
    required: true
  source:
    description: The machine to clone. It must be on this node.
    type: str
    required: true
  directory:
    description:
      - The folder for the new disks, as an absolute path on the node. It must exist, and everybody must be able to pass
        through it, as QEMU, which is another user, writes there.
      - Raw files become raw files. All other disks become qcow2 files, which M(drover.kvm.vm_storage) moves to other
        storage as the machine runs.
    type: path
    default: /var/lib/libvirt/images
  nics:
    description: With V(none) the new machine has no network.
    type: str
    choices: [keep, none]
    default: keep
  quiesce:
    description:
      - What the guest agent of a machine that runs does. With V(auto) it holds the file systems still, where there is
        an agent. With V(required) the module fails without. With V(never) it is not asked. Without it the disks are as
        after a power cut.
    type: str
    choices: [auto, required, never]
    default: auto
  bandwidth:
    description:
      - How many bytes are copied in a second at most, such as V(100MiB).
      - The default is no limit.
    type: str
  timeout:
    description: How long the copy of all disks may take, and then the making of each, in seconds.
    type: int
    default: 86400
  fenced:
    description:
      - Peers that are certainly powered off, by their names in the cluster. Nothing is cloned while another peer gives
        no answer, as a machine of that name may be there.
    type: list
    elements: str
    default: []
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm, drover.kvm.libvirt]
requirements:
  - libvirt 7.6 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img)
  - C(systemd-run), to thaw a guest should the module be killed
  - a file system with extended attributes for the disks, such as ext4 or XFS
notes:
  - A machine that was made as a clone of O(source) is left as it is.
  - A raw disk takes its room twice for a while.
  - Media, and disks that the machine only reads, are not copied. Both machines have them.
  - For many machines of one kind make a template, see M(drover.kvm.image). Its linked clones are there at once.
seealso:
  - module: drover.kvm.backup
  - module: drover.kvm.image
  - module: drover.kvm.vm_storage
"""

EXAMPLES = r"""
- name: A second machine with what web1 has on its disks now, without network
  drover.kvm.clone:
    source: web1
    name: web1-test
    nics: none

- name: One of a moment at which the file systems were at rest, for which the guest agent runs
  drover.kvm.clone:
    source: db1
    name: db1-test
    quiesce: required

- name: Slowly, to another folder, so that the guests feel nothing of it
  drover.kvm.clone:
    source: files1
    name: files2
    directory: /srv/vms
    bandwidth: 50MiB

- name: Connect it to a network where the first one is not, and start it
  drover.kvm.vm:
    name: web1-test
    nics: [{bridge: br-test}]
    state: running
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample:
    - copy vda of web1 as they are at one moment
    - make /var/lib/libvirt/images/drover-web2-0.qcow2 (40GiB) of vda of web1
    - define web2
    - delete /var/lib/libvirt/images/.drover-clone-web2
clone:
  description: The new machine.
  returned: always
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    clone_of: {description: The machine of which it is a clone., type: str, returned: always}
    moment:
      description:
        - Of which moment the disks are (UTC). Null when the machine was there already.
      type: str
      returned: always
      sample: 20261122T030000Z
    quiesced:
      description: Whether the file systems were held still at that moment. Null when the machine was there already.
      type: bool
      returned: always
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._backup.cloning import Cloning, Wish
from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain.admission import Admission
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import claims_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site, opened
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name, check_vm_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("name", required=True, check=check_vm_name),
    Field("source", required=True, check=check_name),
    Field("directory", type="path", default=file.DIRECTORY, check=file.check_path),
    Field("nics", choices=("keep", "none"), default="keep"),
    Field("quiesce", choices=("auto", "required", "never"), default="auto"),
    Field("bandwidth", type="size"),
    Field("timeout", type="int", default=86400, check=between(1)),
    Field("fenced", type="list", elements="str", default=[]),
    URI,
)


class Clone(Resource):
    """One VM that is a clone."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        if self.name == params["source"]:
            raise Invalid("a machine can't be a clone of itself; say another name", option="name")
        given = {name: params[name] for name in ("source", "nics", "quiesce", "timeout")}
        file.room(f"{params['directory']}/x")
        directory, bandwidth = Path(params["directory"]), params["bandwidth"] or 0
        self.cloning = Cloning(client.node, Wish(self.name, directory=directory, bandwidth=bandwidth, **given))

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Site]:
        """The node, and through it its peers."""
        return opened(connect(str(params["uri"])))

    def read(self) -> State:
        """Of what the VM that is there is a clone, and whether something is left of making one."""
        origin = self.cloning.origin()
        self.cloning.look()
        left = self.cloning.scratch.exists()
        return {"name": self.name, "clone_of": origin, "left": left} if origin or left else None

    def wanted(self, before: State) -> State:
        """The clone."""
        if before is None or before["clone_of"] is None:
            self.cloning.plan()
            self.warnings = self.cloning.acts.warnings
            admission = Admission(self.client, self.name, self.params["fenced"])
            admission.arrival(claims_of(self.cloning.definition), self.cloning.uuid, "made")
        return {"name": self.name, "clone_of": self.params["source"], "left": False}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Copy the disks, give them to the new VM, and define it."""
        return [] if before == wanted else self.cloning.steps(before is None or before["clone_of"] is None)

    def result(self, state: State) -> dict[str, Any]:
        """The clone."""
        moment = {name: self.cloning.said.get(name) for name in ("moment", "quiesced")}
        return {"clone": {"name": self.name, "clone_of": self.params["source"], **moment}}


def main() -> None:
    """Run the module."""
    run_module(Clone, FIELDS)


if __name__ == "__main__":
    main()
