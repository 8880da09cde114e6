#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module stop_record: which VMs are stopped for a while, remembered with the VMs themselves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stop_record
short_description: Remember which VMs are stopped for a while
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Writes into the metadata of machines of this node that they are stopped to be started again, or takes that away. It
    starts and stops nothing.
  - Playbook C(drover.kvm.stop_vms) does that with the machines that run, before it stops them, so that
    C(drover.kvm.start_vms) starts exactly these. It is C(metadata.stopped) of M(drover.kvm.node_info).
  - It stays with a machine that moves, and through restarts of libvirt and the node.
options:
  vms:
    description: Names of the machines. One that is not on this node is refused.
    type: list
    elements: str
    required: true
  state:
    description: Whether they are remembered.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - libvirt 9.0 or later, and its Python library (C(python3-libvirt))
seealso:
  - module: drover.kvm.vm
"""

EXAMPLES = r"""
- name: Remember them
  drover.kvm.stop_record:
    vms: [web1, db1]

- name: Stop them
  drover.kvm.vm:
    vms: [{name: web1}, {name: db1}]
    state: stopped

- name: Forget one that shall stay off
  drover.kvm.stop_record:
    vms: [db1]
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["remember that web1 is stopped for a while"]
remembered:
  description: Those of the machines that are remembered after the task.
  returned: always
  type: list
  elements: str
  sample: [db1, web1]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse


def check_names(value: list[str]) -> list[str]:
    """Names of VMs, each once."""
    return sorted({check_name(name) for name in value})


FIELDS = (
    Field("vms", type="list", elements="str", required=True, check=check_names),
    Field("state", choices=("present", "absent"), default="present"),
)


class StopRecord(Resource):
    """What is remembered of some VMs of this node."""

    key = "vms"

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Node]:
        """libvirt on this node."""
        return connect()

    def read(self) -> State:
        """Whether each is remembered. Raises NotFound naming those that are not here."""
        self.domains = self.client.domains(self.params["vms"])
        missing = [name for name in self.params["vms"] if name not in self.domains]
        if missing:
            raise NotFound(f"{self.client.name} has no VM {', '.join(missing)}", vms=missing)
        trees = {name: parse(domain.xml) for name, domain in self.domains.items()}
        return {name: bool(metadata.read(trees[name]).get("stopped")) for name in sorted(trees)}

    def wanted(self, before: State) -> State:
        """The same for all."""
        return dict.fromkeys(before or {}, self.params["state"] == "present")

    def steps(self, before: State, wanted: State) -> list[Step]:
        """One for each that differs."""
        verb = "remember" if self.params["state"] == "present" else "forget"
        differ = [name for name, value in (wanted or {}).items() if (before or {})[name] != value]
        return [Step(f"{verb} that {name} is stopped for a while", partial(self.write, name)) for name in differ]

    def write(self, name: str) -> None:
        """Write it into the definition, and into what runs."""
        domain, value = self.domains[name], "yes" if self.params["state"] == "present" else None
        for xml, live in ((domain.xml, False), (domain.live_xml, True)):
            if xml and (live or domain.persistent):
                root = parse(xml)
                metadata.edit(root, {"stopped": value})
                record = metadata.record_xml(root)
                self.client.set_metadata(name, metadata.PREFIX, metadata.NAMESPACE, record, live=live, config=not live)

    def result(self, state: State) -> dict[str, Any]:
        """Those that are remembered."""
        return {"remembered": [name for name, value in (state or {}).items() if value]}


def main() -> None:
    """Run the module."""
    run_module(StopRecord, FIELDS)


if __name__ == "__main__":
    main()
