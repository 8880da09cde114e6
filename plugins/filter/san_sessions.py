# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter san_sessions: the targets to log in to for a list of volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: san_sessions
short_description: The targets to log in to, for a list of volumes
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Makes the list O(drover.kvm.iscsi_session#module:sessions) of volumes. Volumes that are logical units of one target
    share its item.
options:
  _input:
    description: The volumes, as P(drover.kvm.san_volumes#filter) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Log in to the volumes of the site
  drover.kvm.iscsi_session:
    portals: ["10.231.5.10:3260"]
    sessions: "{{ san_initiator_volumes | drover.kvm.san_volumes(prefix) | drover.kvm.san_sessions }}"

- name: Two logical units of one target are one login
  ansible.builtin.debug:
    msg: "{{ volumes | drover.kvm.san_volumes | drover.kvm.san_sessions }}"
  vars:
    volumes:
      - {name: a, target: "iqn.2026-11.org.example:array1", lun: 1}
      - {name: b, target: "iqn.2026-11.org.example:array1", lun: 2}

- name: A volume to log out from
  ansible.builtin.debug:
    msg: "{{ [{'name': 'old', 'state': 'absent'}] | drover.kvm.san_volumes(prefix) | drover.kvm.san_sessions }}"
"""

RETURN = r"""
_value:
  description: One dictionary for each target, of C(target), C(state) and, where they were given, C(portals).
  type: list
  elements: dict
  sample: [{target: "iqn.2026-11.org.example:web1", state: present}]
"""


def san_sessions(volumes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One item for each target. Raises ValueError where two volumes of one target say different things of it."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for volume in volumes:
        item = {key: volume[key] for key in ("target", "portals", "state") if key in volume}
        other, known = found.setdefault(item["target"], (volume["name"], item))
        if known != item:
            raise ValueError(
                f"the volumes {other} and {volume['name']} share the target {item['target']} and its sessions, "
                "yet differ in portals or state"
            )
    return [item for _name, item in found.values()]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"san_sessions": san_sessions}
