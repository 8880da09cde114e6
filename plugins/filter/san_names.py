# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter san_names: the WWID behind the name of each volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: san_names
short_description: Which disk each name of a volume means
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Matches volumes with the disks that M(drover.kvm.iscsi_session) found, by target and logical unit.
  - Two names for one WWID, two volumes of one WWID (a clone that kept its serial number), a volume without its disk and
    a disk of another WWID than declared are errors, before any name is made.
options:
  _input:
    description:
      - The volumes, as dictionaries of C(name), C(target), C(lun) (1 when left out) and, to have it checked, C(wwid).
        One with C(state) other than C(present) has no name.
    type: list
    elements: dict
    required: true
  results:
    description: RV(drover.kvm.iscsi_session#module:results).
    type: list
    elements: dict
    required: true
  lenient:
    description: Leave out a volume whose disk is not there, as in check mode before the first login.
    type: bool
    default: false
positional: [results, lenient]
"""

EXAMPLES = r"""
- name: Names and WWIDs of the volumes
  ansible.builtin.debug:
    msg: "{{ san_initiator_volumes | drover.kvm.san_names(logged_in.results) }}"

- name: The same in check mode
  ansible.builtin.debug:
    msg: "{{ san_initiator_volumes | drover.kvm.san_names(logged_in.results, ansible_check_mode) }}"

- name: The names only
  ansible.builtin.debug:
    msg: "{{ san_initiator_volumes | drover.kvm.san_names(logged_in.results) | map(attribute='name') }}"
"""

RETURN = r"""
_value:
  description: The volumes that have a disk, sorted by name, as dictionaries of C(name) and C(wwid).
  type: list
  elements: dict
  sample: [{name: web1, wwid: 36001405ee27ff29e2f44851b1dc257c9}]
"""


def san_names(
    volumes: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], lenient: bool = False
) -> list[dict[str, str]]:
    """Name and WWID of each volume. Raises ValueError."""
    disks = {}
    for result in results:
        for device in (result.get("session") or {}).get("devices", []):
            disks[result["name"], device["lun"]] = device["wwid"]
    found: dict[str, str] = {}
    for volume in volumes:
        if volume.get("state", "present") != "present":
            continue
        name, lun = str(volume["name"]), int(volume.get("lun", 1))
        wwid = disks.get((volume["target"], lun), "")
        if not wwid and not lenient:
            raise ValueError(f"volume {name}: {volume['target']} has no logical unit {lun} here, or one without a WWID")
        if wwid and volume.get("wwid", wwid) != wwid:
            raise ValueError(f"volume {name}: its disk is {wwid}, not {volume['wwid']}; it is another one")
        if wwid in found.values():
            other = next(known for known, value in found.items() if value == wwid)
            raise ValueError(f"volumes {other} and {name} have the same WWID {wwid}; give one of them its own serial")
        if wwid:
            found[name] = wwid
    return [{"name": name, "wwid": found[name]} for name in sorted(found)]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"san_names": san_names}
