#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module backup_info: the backups that are in a folder."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List the backups of VMs
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Reads which backups of M(drover.kvm.backup) are in a folder, and looks whether their files are there and as long as
    they were. It reads no content; O(drover.kvm.backup#module:state=verified) does.
  - It needs no libvirt, so it runs on any machine that has the folder.
options:
  path:
    description: The folder of all backups, as an absolute path.
    type: path
    required: true
  names:
    description: Only these machines. The default is all of which there are backups.
    type: list
    elements: str
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.info]
seealso:
  - module: drover.kvm.backup
  - module: drover.kvm.restore
"""

EXAMPLES = r"""
- name: List all backups
  drover.kvm.backup_info:
    path: /mnt/backup
  register: found

- name: Show the newest of each machine
  ansible.builtin.debug:
    msg: "{{ item.key }}: {{ (item.value | last).id }}"
  loop: "{{ found.backups | dict2items }}"
  loop_control: {label: "{{ item.key }}"}

- name: Fail where a machine has no good backup
  drover.kvm.backup_info:
    path: /mnt/backup
    names: [web1, db1]
  register: found
  failed_when: found.backups.values() | map('selectattr', 'good') | map('length') | min == 0
"""

RETURN = r"""
backups:
  description: For each machine its backups, the oldest first; each as RV(drover.kvm.backup#module:backup).
  returned: success
  type: dict
  sample: {web1: [{id: 20261122T030000Z, type: full, good: true, size: 1073741824}]}
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._backup import store
from ansible_collections.drover.kvm.plugins.module_utils._disks.file import check_path
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info

FIELDS = (
    Field("path", type="path", required=True, check=check_path),
    Field("names", type="list", elements="str"),
)


def listed(params: dict[str, Any], _client: None) -> dict[str, Any]:
    """The backups by VM."""
    root = store.check_root(params["path"])
    names = store.vms(root) if params["names"] is None else params["names"]
    return {"backups": {name: [one.facts() for one in store.read(root, name)] for name in names}}


def connected(_params: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nobody is asked."""
    return nullcontext()


def main() -> None:
    """Run the module."""
    run_info(listed, FIELDS, connected)


if __name__ == "__main__":
    main()
