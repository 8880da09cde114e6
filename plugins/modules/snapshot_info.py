#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot_info: the snapshots of the VMs of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_info
short_description: List the snapshots of VMs
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Reads which snapshots the machines of a node have, how old and how big they are, and in how many files each disk
    lies. Those that other tools made are among them.
  - It asks also while a snapshot, a backup or a migration of the machine is under way.
options:
  names:
    description: Only these machines, which must be there. The default is all of the node.
    type: list
    elements: str
    aliases: [name]
  uri:
    description: libvirt's URI.
    type: str
    default: qemu:///system
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.info]
notes:
  - What it reads is root's. Where Ansible comes as another user, use C(become=true).
  - The files of each disk are read, so that it takes some 30 ms for each.
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
seealso:
  - module: drover.kvm.snapshot
  - module: drover.kvm.vm_info
"""

EXAMPLES = r"""
- name: List the snapshots of a machine
  drover.kvm.snapshot_info:
    name: web1
  register: found

- name: Show them
  ansible.builtin.debug:
    msg: "{{ item.name }} ({{ item.kind }}) of {{ item.time }}: {{ item.description }}"
  loop: "{{ found.vms[0].snapshots }}"
  loop_control: {label: "{{ item.name }}"}

- name: Fail where a machine of this node has one that is older than a week
  drover.kvm.snapshot_info:
  register: found
  failed_when: found.vms | map(attribute='snapshots') | flatten | selectattr('age', '>', 604800) | list | length > 0
"""

RETURN = r"""
vms:
  description: The machines by their names, each as RV(drover.kvm.snapshot#module:vms).
  returned: success
  type: list
  elements: dict
  sample: [{name: web1, chain_length: 1, snapshots: [{name: before-upgrade, kind: internal, age: 86400}]}]
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from time import time
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info
from ansible_collections.drover.kvm.plugins.module_utils._snapshot.machine import Machine
from ansible_collections.drover.kvm.plugins.module_utils._snapshot.volumes import Handles

FIELDS = (Field("names", type="list", elements="str", aliases=("name",)), URI)


def listed(params: dict[str, Any], client: tuple[Site, Handles]) -> dict[str, Any]:
    """The VMs with their snapshots. Raises NotFound for one that is named and not there."""
    found, now, names = [], time(), params["names"]
    for name in sorted(client[0].node.domains()) if names is None else names:
        # One that leaves just now is missed by nobody who did not name it.
        with suppress(*([NotFound] if names is None else [])):
            found.append(Machine(*client, name).look().told(now))
    return {"vms": found}


@contextmanager
def connected(params: Mapping[str, Any]) -> Iterator[tuple[Site, Handles]]:
    """The node, and the volumes of its VMs."""
    with connect(params["uri"]) as node, ExitStack() as stack:
        yield Site(node), Handles(stack)


def main() -> None:
    """Run the module."""
    run_info(listed, FIELDS, connected)


if __name__ == "__main__":
    main()
