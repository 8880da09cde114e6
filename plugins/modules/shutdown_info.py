#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module shutdown_info: what speaks against shutting a machine down."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shutdown_info
short_description: Tell what speaks against shutting a machine down
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Names what would be cut off, whatever libvirt says of it; C(/proc) and systemd are asked. It changes nothing.
  - Processes of QEMU, machines as well as programs that copy or serve a disk (C(qemu-img), C(qemu-nbd)), and migrations
    of this collection that are under way.
  - Services that other machines have from this one, namely OSDs, monitors, metadata servers and gateways of Ceph, also
    those of cephadm, Corosync, Pacemaker, etcd, Consul, ZooKeeper, GlusterFS, DRBD, and servers of iSCSI (LIO and tgt),
    NFS and SMB.
  - Playbook C(drover.kvm.consolidate) switches no node off of which it names anything.
options:
  needed:
    description: Names of further services that others need, with wildcards, such as V(haproxy.service) or V(named*).
    type: list
    elements: str
    default: []
  ignored:
    description:
      - Names of services that may stop all the same, with wildcards, such as V(smbd.service).
      - It does not hold for servers in the kernel (LIO, NFS, DRBD), nor for QEMU and migrations.
    type: list
    elements: str
    default: []
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.info]
notes:
  - What it reads is root's. Where Ansible comes as another user, use C(become=true).
requirements:
  - systemd 246 or later
seealso:
  - module: drover.kvm.node_info
    description: The machines that libvirt knows, running or not.
  - module: drover.kvm.fence
"""

EXAMPLES = r"""
- name: Look whether hv3 can be switched off
  drover.kvm.shutdown_info:
  register: hv3

- name: Say what speaks against it
  ansible.builtin.debug:
    msg: "{{ hv3.reasons }}"

- name: Refuse where others need it; its shares of files may stop, its load balancer may not
  drover.kvm.shutdown_info:
    needed: [haproxy.service]
    ignored: [smbd.service]
  register: hv3
  failed_when: hv3.reasons | length > 0
"""

RETURN = r"""
reasons:
  description: One text for each of them; empty when nothing of that kind was found.
  returned: success
  type: list
  elements: str
  sample: [qemu-system-x86_64 runs for web1, ceph-osd@3.service runs]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _shutdown
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info

FIELDS = (
    Field("needed", type="list", elements="str", default=[]),
    Field("ignored", type="list", elements="str", default=[]),
)


def connect(_params: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nothing is opened."""
    return nullcontext()


def read_reasons(params: dict[str, Any], _client: None) -> dict[str, Any]:
    """All of them."""
    return {"reasons": _shutdown.reasons(params["needed"], params["ignored"])}


def main() -> None:
    """Run the module."""
    run_info(read_reasons, FIELDS, connect)


if __name__ == "__main__":
    main()
