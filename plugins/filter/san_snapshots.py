# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter san_snapshots, for playbook backup."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import san_snapshots

DOCUMENTATION = r"""
name: san_snapshots
short_description: The snapshots of a SAN of which virtual machines are backed up
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Takes the sheets of virtual machines whose disks are volumes of a SAN (C(type) C(iscsi)). Gives for each what
    M(drover.kvm.iscsi_volume) needs to make snapshots of its volumes, and what M(drover.kvm.backup) needs to read them.
  - A snapshot is called like its volume, with C(-backup) after it, in name and IQN. It lets in the initiator of its
    machine only, by the same account.
positional: _input, variables
options:
  _input:
    description: The sheets, as filter P(drover.kvm.vm_sheet#filter) makes them.
    type: list
    elements: dict
    required: true
  variables:
    description: The variables of the machines by name (C(hostvars)), for their CHAP passwords.
    type: dict
"""

EXAMPLES = r"""
- name: Make the snapshots of one machine
  drover.kvm.iscsi_volume:
    volumes: "{{ ([hostvars['db1'] | drover.kvm.vm_sheet] | drover.kvm.san_snapshots(hostvars) | first).volumes }}"

- name: Back it up from them
  drover.kvm.backup:
    name: db1
    path: /mnt/backup
    from_snapshot:
      disks: "{{ ([hostvars['db1'] | drover.kvm.vm_sheet] | drover.kvm.san_snapshots | first).disks }}"

- name: Remove them
  drover.kvm.iscsi_volume:
    state: absent
    remove_data: true
    volumes: "{{ ([hostvars['db1'] | drover.kvm.vm_sheet] | drover.kvm.san_snapshots | first).volumes }}"
"""

RETURN = r"""
_value:
  description: For each machine C(name), C(volumes) (items of M(drover.kvm.iscsi_volume)) and C(disks).
  type: list
  elements: dict
"""


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"san_snapshots": san_snapshots}
