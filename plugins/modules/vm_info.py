#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the VMs of a hypervisor."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Read the VMs of a hypervisor
version_added: "0.1.0"
description:
  - Returns state, hardware and metadata of the VMs that a node holds, running or not.
  - With O(sheet=true) it writes the options with which M(drover.kvm.vm) finds nothing to change, so that a VM that was
    made by other means can be taken over.
  - Sizes are bytes. See U(https://libvirt.org/formatdomain.html) for what libvirt calls these things.
options:
  names:
    description:
      - Names of the VMs to read. A VM that is not on this node is left out of the result.
      - Without it, all VMs of the node.
    type: list
    elements: str
    aliases: [name]
  sheet:
    description: Whether to write the options of M(drover.kvm.vm) for each VM.
    type: bool
    default: false
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
  - drover.kvm.libvirt
seealso:
  - module: drover.kvm.node_info
  - module: drover.kvm.vm
  - plugin: drover.kvm.vm_variables
    plugin_type: filter
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Where does web1 run
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read web1
      drover.kvm.vm_info:
        names: web1
      register: answer

    - name: Say it
      ansible.builtin.debug:
        msg: "{{ inventory_hostname }}: {{ answer.vms[0].state }} ({{ answer.vms[0].reason }})"
      when: answer.vms

- name: Refuse to go on while a VM is paused after an I/O error
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read all VMs
      drover.kvm.vm_info:
      register: answer
      failed_when: answer.vms | selectattr('reason', 'eq', 'I/O error')

- name: Take over the VMs that are there
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read their sheets
      drover.kvm.vm_info:
        sheet: true
      register: answer

    - name: Prove that the sheets describe the VMs
      drover.kvm.vm:
        vms: "{{ answer.vms | map(attribute='sheet') }}"
      check_mode: true
      register: proof
      failed_when: proof is failed or proof is changed
"""

RETURN = r"""
vms:
  description: The VMs, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: web1
    uuid:
      description: Its UUID.
      type: str
      sample: 0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10
    id:
      description: libvirt's number of the running VM; null when it is off.
      type: int
      sample: 12
    state:
      description: One of running, paused, stopped, crashed, in shutdown, pmsuspended, unknown.
      type: str
      sample: running
    reason:
      description: Why it is in that state, such as booted, migrated, user, migrating, I/O error.
      type: str
      sample: booted
    job:
      description: What goes on with it; C(type) is incoming, outgoing (a migration) or other. Null when nothing does.
      type: dict
      sample: {type: outgoing}
    persistent:
      description: Whether it has a definition that outlives its run.
      type: bool
      sample: true
    autostart:
      description: Whether it starts with the node.
      type: bool
      sample: true
    vcpus:
      description: Number of virtual CPUs.
      type: dict
      sample: {current: 4, maximum: 4}
    memory:
      description: Memory in bytes.
      type: dict
      sample: {current: 4294967296, maximum: 4294967296}
    machine:
      description: Machine type.
      type: str
      sample: pc-q35-10.0
    arch:
      description: Architecture.
      type: str
      sample: x86_64
    virt_type:
      description: How it is virtualised, kvm or qemu.
      type: str
      sample: kvm
    cpu:
      description: The CPU of the running VM as XML, for comparisons; null when it is off.
      type: str
      sample: "<cpu mode='custom' match='exact'><model fallback='forbid'>Nehalem</model></cpu>"
    disks:
      description:
        - Disks and drives; C(identity) names the storage in the same way on every node, C(backing) the files that a
          disk is based on, such as the template of a linked clone.
      type: list
      elements: dict
      sample:
        - {target: vda, device: disk, type: iscsi, identity: "iscsi:iqn.2026-01.org.example:web1/1@10.1.5.10:3260"}
    nics:
      description: NICs.
      type: list
      elements: dict
      sample: [{mac: "52:54:00:12:34:56", bridge: br0, vlan: 100, trunks: [], model: virtio, target: vnet0}]
    hostdevs:
      description: Devices of the node that are passed through; C(name) is for people.
      type: list
      elements: dict
      sample: []
    filesystems:
      description: Folders of the node that are shared with it.
      type: list
      elements: str
      sample: []
    hugepages:
      description:
        - The size in bytes of the huge pages that back its memory, V(true) for the node's usual size, null for none.
      type: raw
      sample: 2097152
    lease:
      description: The file of its lease; null where it has none.
      type: str
      sample: /srv/leases/0a1b2c3d-0000-4000-8000-000000000001
    has_snapshots:
      description:
        - Whether libvirt has snapshots of it, so that it can't be moved. M(drover.kvm.snapshot_info) lists them.
      type: bool
      sample: false
    managed_save:
      description: Whether its memory is saved on its node (C(virsh managedsave)), so that it can't be moved.
      type: bool
      sample: false
    state_files:
      description: What it keeps in files of its node beside disks, C(nvram) of UEFI and C(tpm); it goes along.
      type: list
      elements: str
      sample: []
    state_elsewhere:
      description:
        - Those of them that are not in libvirt's own folders, or whose reading takes a secret of the node. While it is
          shut off, they would not go along.
      type: list
      elements: str
      sample: []
    metadata:
      description: What this collection keeps with the VM, such as tags and the node that it returns to.
      type: dict
      sample: {managed: true, tags: [web], home: null, owner: null, description: null}
    marker:
      description: The mark of a migration that has not ended; null when there is none.
      type: dict
      sample: null
    sheet:
      description:
        - Options of M(drover.kvm.vm) that describe the VM. C(size) of a disk is there where it can be told.
        - As variables of the inventory they hold only what the VM has; what a group says beside them still counts.
          Filter P(drover.kvm.vm_variables#filter) makes variables of them that also undo what a group says.
      returned: when O(sheet=true)
      type: dict
      sample: {name: web1, state: running, memory: 4294967296, vcpus: 4}
    sheet_left_out:
      description:
        - What the VM has that M(drover.kvm.vm) has no option for, such as sound; it leaves that as it is.
        - A disk or NIC of which only one option can't be written is in the sheet without that option.
      returned: when O(sheet=true)
      type: list
      elements: str
      sample: ["disks[0].bus: ide is none of virtio, scsi, sata", "sound (ich9)"]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks.lvm import shared_places
from ansible_collections.drover.kvm.plugins.module_utils._domain import disks
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import adoption
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._node import shared_mounts
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

FIELDS = (
    Field("names", type="list", elements="str", aliases=("name",)),
    Field("sheet", type="bool", default=False),
    URI,
)


def opened(params: Mapping[str, Any]) -> AbstractContextManager[Node]:
    """A read-only connection."""
    return connect(params["uri"], readonly=True)


def disk_sizes(node: Node, domain: Domain) -> dict[str, int]:
    """Bytes of the disks by target, without those of which nobody can tell, or the store and the running VM differ."""
    found: dict[str, int] = {}
    for disk in disks.read_all(parse(domain.xml)):
        try:
            sizes = _sizes(node, domain, disk) if disk["device"] == "disk" else set()
        except DroverError:
            continue
        if len(sizes) == 1:
            found[disk["target"]] = sizes.pop()
    return found


def _sizes(node: Node, domain: Domain, disk: dict[str, Any]) -> set[int]:
    store = disks.KINDS[disk["type"]].store
    volume = store.inspect(disk) if store else None
    sizes = {volume.size} if volume else set()
    return sizes | ({node.block_sizes(domain.name, disk["target"])["capacity"]} if domain.live_xml else set())


def read_vms(params: dict[str, Any], node: Node) -> dict[str, Any]:
    """The facts of the VMs."""
    mounts = [*shared_mounts(), *shared_places()]

    def facts(domain: Domain) -> dict[str, Any]:
        found = domain_facts(domain, mounts)
        if params["sheet"]:
            found["sheet"], found["sheet_left_out"] = adoption(domain, disk_sizes(node, domain))
        return found

    domains = node.domains(params["names"])
    return {"vms": [facts(domains[name]) for name in sorted(domains)]}


def main() -> None:
    """Run the module."""
    run_info(read_vms, FIELDS, opened)


if __name__ == "__main__":
    main()
