# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter san_volumes: a list of volumes, complete and judged."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: san_volumes
short_description: The volumes of a node, completed and checked
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Completes what role P(drover.kvm.san_initiator#role) is given as volumes, and refuses what can't be told apart. Two
    volumes of one name, of one logical unit or of one WWID are an error that names both.
options:
  _input:
    description:
      - The volumes, as dictionaries of C(name) and, where they differ from the usual, C(target), C(lun), C(wwid),
        C(portals) and C(state). Other keys are left out.
    type: list
    elements: dict
    required: true
  iqn_prefix:
    description: What comes before a colon and the name in the IQN of a volume without C(target).
    type: str
    default: ""
positional: [iqn_prefix]
"""

EXAMPLES = r"""
- name: Volumes of our own SAN
  ansible.builtin.debug:
    msg: "{{ [{'name': 'web1'}, {'name': 'ldap1'}] | drover.kvm.san_volumes('iqn.2026-11.org.example') }}"

- name: Two logical units of one target of an array
  ansible.builtin.debug:
    msg: "{{ array | drover.kvm.san_volumes }}"
  vars:
    array:
      - {name: a, target: "iqn.2026-11.org.example:array1", lun: 1}
      - {name: b, target: "iqn.2026-11.org.example:array1", lun: 2}

- name: Refuse two volumes of one name before anything is done
  ansible.builtin.assert:
    that: san_initiator_volumes | drover.kvm.san_volumes(san_initiator_iqn_prefix) | length >= 0
"""

RETURN = r"""
_value:
  description: The volumes with C(name), C(target), C(lun), C(state), and C(wwid) and C(portals) where they were given.
  type: list
  elements: dict
  sample: [{name: web1, target: "iqn.2026-11.org.example:web1", lun: 1, state: present}]
"""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
WWID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,126}", re.ASCII)
LUNS = range(16384)


def san_volumes(volumes: Sequence[Mapping[str, Any]], iqn_prefix: str = "") -> list[dict[str, Any]]:
    """The volumes, complete. Raises ValueError where one is none, or two are not told apart."""
    found = [_complete(volume, iqn_prefix) for volume in volumes]
    _refuse_same(found, "are one logical unit, {0[0]} number {0[1]}", lambda one: (one["target"], one["lun"]))
    _refuse_same(found, "have the same name; it would be one link, to one of them", lambda one: one["name"])
    _refuse_same(found, "have the same WWID {0}; give one of them a serial of its own", lambda one: one.get("wwid"))
    return found


def _complete(volume: Mapping[str, Any], iqn_prefix: str) -> dict[str, Any]:
    name, lun, wwid = str(volume.get("name", "")), volume.get("lun", 1), volume.get("wwid")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a volume: letters, digits, hyphens and underscores, at most 63")
    target = volume.get("target") or (f"{iqn_prefix}:{name}" if iqn_prefix else "")
    if not target:
        raise ValueError(f"the volume {name} has no target, and there is no IQN prefix (san_initiator_iqn_prefix)")
    if not str(lun).isdecimal() or int(lun) not in LUNS:
        raise ValueError(f"the volume {name}: {lun!r} is no logical unit; it is a number from 0 to {LUNS[-1]}")
    if wwid and not WWID.fullmatch(str(wwid)):
        raise ValueError(f"the volume {name}: {wwid!r} is no WWID such as 36001405ee27ff29e2f44851b1dc257c9")
    state = volume.get("state") or "present"
    rest = {key: volume[key] for key in ("wwid", "portals") if volume.get(key)}
    return {"name": name, "target": str(target), "lun": int(lun), "state": state, **rest}


def _refuse_same(
    volumes: Sequence[dict[str, Any]], words: str, key: Callable[[dict[str, Any]], Hashable | None]
) -> None:
    seen: dict[Hashable, dict[str, Any]] = {}
    for one in volumes:
        value = key(one)
        if value and value in seen:
            both = " and ".join(f"{each['name']} ({each['target']}, {each['lun']})" for each in (seen[value], one))
            raise ValueError(f"the volumes {both} {words.format(value)}")
        if value:
            seen[value] = one


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters of this file."""
        return {"san_volumes": san_volumes}
