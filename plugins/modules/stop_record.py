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
  reason:
    description:
      - Why. V(outage) is what C(start_vms) starts, V(maintenance) is for machines that a drain of their node shuts down
        (O(drover.kvm.vm#module:on_maintenance)) and that C(undrain_node) starts. C(metadata.stopped) says it.
    type: str
    choices: [outage, maintenance]
    default: outage
  state:
    description: Whether they are remembered. V(absent) leaves one alone that is remembered for the other reason.
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

- name: Remember one that is off until its node returns
  drover.kvm.stop_record:
    vms: [gpu1]
    reason: maintenance

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
  description: Those of the machines that are remembered after the task, for O(reason).
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
    Field("reason", choices=("outage", "maintenance"), default="outage"),
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
        """For what each is remembered, if it is. Raises NotFound naming those that are not here."""
        self.domains = self.client.domains(self.params["vms"])
        missing = [name for name in self.params["vms"] if name not in self.domains]
        if missing:
            raise NotFound(f"{self.client.name} has no VM {', '.join(missing)}", vms=missing)
        trees = {name: parse(domain.xml) for name, domain in self.domains.items()}
        return {name: metadata.read(trees[name]).get("stopped") for name in sorted(trees)}

    def wanted(self, before: State) -> State:
        """The reason for all; or, of those that have it, none."""
        reason = self.params["reason"]
        if self.params["state"] == "present":
            return dict.fromkeys(before or {}, reason)
        return {name: None if said == reason else said for name, said in (before or {}).items()}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """One for each that differs."""
        verb = "remember" if self.params["state"] == "present" else "forget"
        differ = [name for name, value in (wanted or {}).items() if (before or {})[name] != value]
        words = {name: f"{verb} that {name} is stopped for {self.why()}" for name in differ}
        return [Step(words[name], partial(self.write, name, (wanted or {})[name])) for name in differ]

    def why(self) -> str:
        """The reason in words."""
        return "maintenance of its node" if self.params["reason"] == "maintenance" else "a while"

    def write(self, name: str, value: str | None) -> None:
        """Write it into the definition, and into what runs."""
        domain = self.domains[name]
        for xml, live in ((domain.xml, False), (domain.live_xml, True)):
            if xml and (live or domain.persistent):
                root = parse(xml)
                metadata.edit(root, {"stopped": value})
                record = metadata.record_xml(root)
                self.client.set_metadata(name, metadata.PREFIX, metadata.NAMESPACE, record, live=live, config=not live)

    def result(self, state: State) -> dict[str, Any]:
        """Those that are remembered for the reason."""
        return {"remembered": [name for name, said in (state or {}).items() if said == self.params["reason"]]}


def main() -> None:
    """Run the module."""
    run_module(StopRecord, FIELDS)


if __name__ == "__main__":
    main()
