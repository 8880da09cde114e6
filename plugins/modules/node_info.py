#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a hypervisor has and what runs on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Read what a hypervisor has and what runs on it
version_added: "0.1.0"
description:
  - Returns the capacity of a node, what its CPU and QEMU offer, its bridges and storage pools, whether it is cordoned,
    and every VM that it holds. M(drover.kvm.plan) plans with these facts.
  - Reads through one connection with few calls, whatever the number of VMs. A daemon that hangs costs at most
    10 seconds.
  - Sizes are bytes. See U(https://libvirt.org/formatcaps.html) for where they come from.
options:
  cpus:
    description:
      - CPUs of VMs that this node shall compare with its own, such as those that a drain would bring here. The answers
        are in RV(node.cpu_matrix). Filter P(drover.kvm.guest_cpus#filter) makes the list from the facts of nodes.
    type: list
    elements: dict
    default: []
    suboptions:
      vms:
        description: Names of the VMs that have this CPU. They are asked for once.
        type: list
        elements: str
        required: true
      cpu:
        description: The XML of the CPU, such as C(cpu) of one of the RV(node.domains) of another node.
        type: str
        required: true
      virt_type:
        description: With which kind of virtualisation the VM runs.
        type: str
        choices: [kvm, qemu]
      machine:
        description: The VM's machine type.
        type: str
      host:
        description:
          - Whether O(cpus[].cpu) is the CPU of a machine, RV(node.host_cpu), which the VMs see as it is
            (C(host-passthrough)). They can only run where the CPU has all of it.
        type: bool
        default: false
  baseline:
    description:
      - The RV(node.cpu_model) of all nodes of a cluster, one after the other. This node's libvirt computes from them
        what they have in common, RV(node.cpu_baseline). Playbook C(drover.kvm.cpu_baseline) does that for all nodes.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
  - drover.kvm.libvirt
seealso:
  - module: drover.kvm.vm_info
  - module: drover.kvm.plan
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Ask every hypervisor what it has
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read the node
      drover.kvm.node_info:
      register: answer

    - name: Show what runs here
      ansible.builtin.debug:
        msg: "{{ answer.node.domains | selectattr('state', 'eq', 'running') | map(attribute='name') | list }}"

- name: Fail when a bridge that the VMs need is missing
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read the node
      drover.kvm.node_info:
      register: answer
      failed_when: "'br0' not in answer.node.bridges | map(attribute='name')"

- name: Which CPU can machines have that move to any node
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read all nodes
      drover.kvm.node_info:
      register: answer

    - name: Let one of them compute what all have in common
      drover.kvm.node_info:
        baseline: "{{ answers | map(attribute='node.cpu_model') | list }}"
      vars:
        answers: "{{ ansible_play_hosts | map('extract', hostvars, 'answer') }}"
      register: common
      run_once: true

    - name: Show what to write into the variables of the machines
      ansible.builtin.debug:
        msg:
          vm_cpu: "{{ common.node.cpu_baseline.cpu }}"
          vm_cpu_features: "{{ common.node.cpu_baseline.cpu_features }}"
      run_once: true

- name: Can hv2 run the VMs of hv1
  hosts: hv2
  gather_facts: false
  tasks:
    - name: Compare the CPUs of what runs on hv1 with this node's
      drover.kvm.node_info:
        cpus: "{{ [hostvars.hv1.answer] | drover.kvm.guest_cpus }}"
      register: compared
"""

RETURN = r"""
node:
  description: The node.
  returned: success
  type: dict
  contains:
    name:
      description: Its name in the cluster, or its host name where it belongs to none.
      type: str
      sample: hv1
    hostname:
      description: Its host name.
      type: str
      sample: hv1
    uuid:
      description: The UUID by which libvirt knows the machine.
      type: str
      sample: 2f0b1c52-6c1b-4e0e-9a64-1d1d6b0c5f3e
    arch:
      description: Its architecture.
      type: str
      sample: x86_64
    clock:
      description: Its time in seconds since 1970-01-01 UTC, when it was asked, which is not one moment for all nodes.
      type: float
      sample: 1768469400.25
    libvirt_version:
      description: The version of libvirt.
      type: str
      sample: 11.3.0
    qemu_version:
      description: The version of QEMU.
      type: str
      sample: 10.0.2
    vm_capable:
      description: Whether the cluster lets VMs run here.
      type: bool
      sample: true
    memory:
      description:
        - Memory in bytes; C(free) is what programs can still get. C(merged) is what the kernel saves by keeping equal
          pages once, see M(drover.kvm.ksm); null where it can't.
      type: dict
      sample: {total: 68719476736, free: 51539607552, merged: 2147483648}
    hugepages:
      description: The number of huge pages by their size in bytes.
      type: dict
      sample: {"2097152": 1024}
    cpus:
      description: The CPU; C(threads) counts what runs at the same time.
      type: dict
      sample: {threads: 32, model: Skylake-Server, vendor: Intel}
    cpu_model:
      description: The CPU that V(host-model) means here, as XML for comparisons.
      type: str
      sample: "<cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu>"
    host_cpu:
      description: The machine's own CPU, which V(host-passthrough) means here, as XML for comparisons.
      type: str
      sample: "<cpu><arch>x86_64</arch><model>Skylake-Server</model><vendor>Intel</vendor></cpu>"
    firmware:
      description: What VMs can have of V(efi) (UEFI) and V(tpm) (an emulated one); null where libvirt does not say.
      type: list
      elements: str
      sample: [efi, tpm]
    cpu_baseline:
      description:
        - The CPU that all nodes of O(baseline) can give a machine, with C(cpu) and C(cpu_features) as
          O(drover.kvm.vm#module:cpu) and O(drover.kvm.vm#module:cpu_features) take them, and C(xml) for O(cpus). Null
          without O(baseline).
      type: dict
      sample:
        cpu: Cascadelake-Server-noTSX
        cpu_features: {require: [pcid, ssbd], disable: [avx512vnni]}
        xml: "<cpu mode='custom' match='exact'><model fallback='forbid'>Cascadelake-Server-noTSX</model></cpu>"
    cpu_matrix:
      description: Which of the O(cpus) this node can run, as O(drover.kvm.plan#module:cpu_matrix) takes it.
      type: list
      elements: dict
      contains:
        vm:
          description: The name that was given.
          type: str
          sample: web1
        node:
          description: The name of this node.
          type: str
          sample: hv2
        compatible:
          description: Whether the node can run it.
          type: bool
          sample: false
        reason:
          description: What libvirt says when it can't; null when it can.
          type: str
          sample: "the CPU is incompatible with host CPU: Host CPU does not provide required features: avx512f"
    machine_types:
      description: The machine types that QEMU offers, aliases among them.
      type: list
      elements: str
      sample: [pc-q35-10.0, q35]
    virt_types:
      description: V(kvm) where the hardware helps, V(qemu) for emulation.
      type: list
      elements: str
      sample: [kvm, qemu]
    bridges:
      description:
        - Where NICs can be plugged in, each with the VLANs that are the hosts' own there, and with those that its
          uplinks carry (C(vlans), null where that is all of them, or where it can't be told, as without an uplink).
      type: list
      elements: dict
      sample: [{name: br0, type: ovs, reserved_vlans: [5, 6], vlans: [5, 6, 100]}]
    pools:
      description: Storage pools; the sizes are null while a pool is inactive.
      type: list
      elements: dict
      sample:
        - {name: images, type: dir, state: active, path: /srv/images, capacity: 107374182400, available: 53687091200}
    lease_directory:
      description: Where the leases of its VMs are; null where there are none.
      type: str
      sample: /srv/leases
    cordon:
      description: Since when, by whom and why no VM may come here; null when there is no cordon.
      type: dict
      sample: {since: "2026-01-15T09:30:00Z", by: alice, reason: new memory}
    domains:
      description:
        - The VMs that the node holds, as M(drover.kvm.vm_info) returns them, and for how many seconds each runs there
          (C(age), null where that is not known).
      type: list
      elements: dict
      sample: [{name: web1, state: running, reason: booted, memory: {current: 4294967296, maximum: 4294967296}}]
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from xml.etree.ElementTree import Element

from ansible_collections.drover.kvm.plugins.module_utils import _ksm
from ansible_collections.drover.kvm.plugins.module_utils._bridge.uplinks import carried
from ansible_collections.drover.kvm.plugins.module_utils._bridges import bridges, filtering
from ansible_collections.drover.kvm.plugins.module_utils._disks.lvm import shared_places
from ansible_collections.drover.kvm.plugins.module_utils._domain.cpu import CPU, Features
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Pool, node_facts
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._node import age, available_memory, cordon, shared_mounts
from ansible_collections.drover.kvm.plugins.module_utils._peers import read_cluster
from ansible_collections.drover.kvm.plugins.module_utils._reserved import of_bridge
from ansible_collections.drover.kvm.plugins.module_utils._reserved import read as read_reserved
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

FIELDS = (
    Field(
        "cpus",
        type="list",
        elements="dict",
        default=[],
        fields=(
            Field("vms", type="list", elements="str", required=True),
            Field("cpu", required=True),
            Field("virt_type", choices=("kvm", "qemu")),
            Field("machine"),
            Field("host", type="bool", default=False),
        ),
    ),
    Field("baseline", type="list", elements="str", default=[]),
    URI,
)


def opened(params: Mapping[str, Any]) -> AbstractContextManager[Node]:
    """A connection that may also ask for QEMU's capabilities and compare CPUs; libvirt lets no reader do that."""
    return connect(params["uri"])


def pool_facts(pool: Pool) -> dict[str, Any]:
    """What a plan needs of a storage pool."""
    return {name: getattr(pool, name) for name in ("name", "type", "state", "path", "capacity", "available")}


def compared(node: Node, name: str, guests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whether this node can run one CPU; one that its libvirt does not know is one that it can't run."""
    reason = None
    try:
        if guests["host"]:
            node.check_host_cpu(guests["cpu"])
        else:
            node.compare_cpu(guests["cpu"], guests["virt_type"], guests["machine"])
    except Failed as error:
        reason = error.details["libvirt"]
    return [{"vm": vm, "node": name, "compatible": reason is None, "reason": reason} for vm in guests["vms"]]


def common_cpu(node: Node, models: Sequence[str]) -> dict[str, Any] | None:
    """The CPU that all machines with these models can run, in the words of module vm."""
    if not models:
        return None
    xml, root = node.baseline_cpu(models), Element("domain")
    root.append(parse(xml))
    return {"cpu": CPU.get(root), "cpu_features": Features().get(root) or {}, "xml": xml}


def by_name(domain: Mapping[str, Any]) -> str:
    """The name of a VM."""
    return str(domain["name"])


def read_node(params: dict[str, Any], node: Node) -> dict[str, Any]:
    """All facts of the node."""
    cluster = read_cluster()
    facts = node_facts(node.host())
    name = cluster.node or facts["hostname"]
    facts["memory"].update(free=available_memory() or facts["memory"]["free"], merged=_ksm.merged())
    mounts, reserved, out = [*shared_mounts(), *shared_places()], read_reserved(), carried(filtering())
    domains = node.domains().values()
    facts.update(
        name=name,
        clock=time.time(),
        vm_capable=not cluster.node or cluster.node in cluster.uris,
        bridges=[
            {
                "name": bridge,
                "type": kind,
                "reserved_vlans": of_bridge(reserved, bridge) if kind == "ovs" else [],
                "vlans": out.get(bridge),
            }
            for bridge, kind in sorted(bridges().items())
        ],
        pools=[pool_facts(pool) for _name, pool in sorted(node.pools().items())],
        cordon=cordon(),
        cpu_baseline=common_cpu(node, params["baseline"]),
        lease_directory=cluster.own_leases.directory or None,
        cpu_matrix=[row for guests in params["cpus"] for row in compared(node, name, guests)],
        domains=sorted(({**domain_facts(domain, mounts), "age": age(domain.name)} for domain in domains), key=by_name),
    )
    return {"node": facts}


def main() -> None:
    """Run the module."""
    run_info(read_node, FIELDS, opened)


if __name__ == "__main__":
    main()
