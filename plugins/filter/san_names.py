# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter san_names: the WWID behind the name of each volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.drover.kvm.plugins.filter.san_volumes import WWID

DOCUMENTATION = r"""
name: san_names
short_description: Which disk each name of a volume means
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Matches volumes with the disks that M(drover.kvm.iscsi_session) found, by target and logical unit.
  - Two volumes of one WWID (a clone that kept its serial number), a volume without its disk and a disk of another WWID
    than declared are errors, before any name is made.
options:
  _input:
    description:
      - The volumes, as P(drover.kvm.san_volumes#filter) returns them. One that is not C(present) has no name.
    type: list
    elements: dict
    required: true
  results:
    description: RV(drover.kvm.iscsi_session#module:results).
    type: list
    elements: dict
    required: true
  lenient:
    description:
      - Take the declared WWID of a volume whose disk is not there, and leave out one without; for check mode before the
        first login.
    type: bool
    default: false
positional: [results, lenient]
"""

EXAMPLES = r"""
- name: Names and WWIDs of the volumes
  ansible.builtin.debug:
    msg: "{{ volumes | drover.kvm.san_names(logged_in.results) }}"

- name: The same in check mode
  ansible.builtin.debug:
    msg: "{{ volumes | drover.kvm.san_names(logged_in.results, ansible_check_mode) }}"

- name: The names only
  ansible.builtin.debug:
    msg: "{{ volumes | drover.kvm.san_names(logged_in.results) | map(attribute='name') }}"
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
    """Name and WWID of each volume that is present. Raises ValueError."""
    disks = {
        (result["name"], device["lun"]): str(device["wwid"])
        for result in results
        for device in (result.get("session") or {}).get("devices", [])
    }
    names: dict[str, str] = {}
    for volume in volumes:
        if volume["state"] != "present":
            continue
        wwid = _wwid(volume, disks.get((volume["target"], volume["lun"]), ""), lenient)
        if wwid in names:
            raise ValueError(
                f"the volumes {names[wwid]} and {volume['name']} have the same WWID {wwid}, so they are taken for one "
                "disk; log out of one of them, and give it a serial of its own on the SAN"
            )
        if wwid:
            names[wwid] = volume["name"]
    return sorted(({"name": name, "wwid": wwid} for wwid, name in names.items()), key=lambda item: item["name"])


def _wwid(volume: Mapping[str, Any], found: str, lenient: bool) -> str:
    name, declared = volume["name"], str(volume.get("wwid", ""))
    if not found and lenient:
        return declared
    if not found:
        raise ValueError(f"volume {name}: {volume['target']} has no logical unit {volume['lun']} here, or no WWID")
    # It is the SAN that says it, and it goes into rules for udev and multipath.
    if not WWID.fullmatch(found):
        raise ValueError(f"volume {name}: the SAN gives it the WWID {found!r}, which can't be a name's key")
    if declared and found != declared:
        raise ValueError(f"volume {name}: its disk is {found}, not {declared}; it is another one")
    return found


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"san_names": san_names}
