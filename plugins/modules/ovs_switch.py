#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of Open vSwitch as a whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ovs_switch
short_description: Manage the settings of Open vSwitch that belong to no bridge
version_added: "0.1.0"
author: "The drover.kvm contributors (@drover)"
description:
  - Sets the keys of C(other_config) and C(external_ids) of the one row of table C(Open_vSwitch), in one transaction,
    and waits until C(ovs-vswitchd) has taken them over.
  - Some keys, such as C(userspace-tso-enable), are read only when C(ovs-vswitchd) starts. This module restarts nothing.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
requirements:
  - Open vSwitch 2.15 or later, running
  - its Python bindings (package C(python3-openvswitch)) for the Python that Ansible uses on the machine
options:
  other_config:
    description:
      - Settings of the switch. Keys that are not given stay; a key without a value (V(null)) is removed.
    type: dict
  external_ids:
    description:
      - External ids of the switch, in the manner of O(other_config).
    type: dict
  timeout:
    description: Seconds, 1 to 600, to wait until C(ovs-vswitchd) has taken over the change.
    type: int
    default: 30
  socket:
    description: Path of the socket of C(ovsdb-server).
    type: path
    default: /run/openvswitch/db.sock
seealso:
  - module: drover.kvm.ovs_bridge
  - name: Open vSwitch database schema
    description: The keys of C(other_config), and which of them need a restart.
    link: https://docs.openvswitch.org/en/latest/ref/ovs-vswitchd.conf.db.5/
"""

EXAMPLES = r"""
- name: Let guests on the userspace datapath send large segments (before the first bridge)
  drover.kvm.ovs_switch:
    other_config:
      userspace-tso-enable: true

- name: Keep the flows for a while when the daemon restarts
  drover.kvm.ovs_switch:
    other_config:
      flow-restore-wait: false
      max-idle: 30000

- name: Say in which rack the switch stands, and forget the old key
  drover.kvm.ovs_switch:
    external_ids:
      rack: b7
      room:

- name: Read the settings and the names of the bridges
  drover.kvm.ovs_switch:
  register: switch
"""

RETURN = r"""
actions:
  description: What was done, or in check mode what would be done, in words.
  returned: always
  type: list
  elements: str
  sample: ["set other_config of Open vSwitch: {} -> {userspace-tso-enable=true}"]
resource:
  description: C(other_config) and C(external_ids) after the task, in check mode as they would be.
  returned: always
  type: dict
bridges:
  description: The names of all bridges.
  returned: always
  type: list
  elements: str
version:
  description: The version of Open vSwitch as its start script wrote it; V(null) when it did not.
  returned: always
  type: str
  sample: 3.5.0
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import checks, rules, words
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

MAPS = ("other_config", "external_ids")
FIELDS = (
    Field("other_config", type="dict", check=checks.check_map),
    Field("external_ids", type="dict", check=checks.check_map),
    Field("timeout", type="int", default=30, check=between(1, 600)),
    Field("socket", type="path", default="/run/openvswitch/db.sock"),
)


class Switch(Resource):
    """The row of table Open_vSwitch; `client` is an Ovs."""

    snapshot: _ovs.Snapshot
    number = 0

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[_ovs.Ovs]:
        """One connection to the database server."""
        return _ovs.connect(params["socket"])

    @property
    def name(self) -> str:
        """There is one."""
        return "Open vSwitch"

    def read(self) -> State:
        """The two maps of settings."""
        self.snapshot = self.client.snapshot()
        return {key: self.snapshot.root[key] for key in MAPS}

    def wanted(self, before: State) -> State:
        """The given keys laid over what is there."""
        return {key: rules.merged((before or {})[key], self.params[key]) for key in MAPS}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each map; the first commits both."""
        old, new = before or {}, wanted or {}
        changed = {key: new[key] for key in MAPS if old[key] != new[key]}
        texts = [f"set {key} of {self.name}: {words.shown(old[key])} -> {words.shown(new[key])}" for key in changed]
        if not texts:
            return []
        first = Step(texts[0], lambda: self._commit(changed), self._applied, self.params["timeout"])
        return [first, *(Step(text, lambda: None) for text in texts[1:])]

    def result(self, state: State) -> dict[str, Any]:
        """The settings, and what stands beside them."""
        bridges = sorted(row["name"] for row in self.snapshot.tables["Bridge"].values())
        return {"resource": state, "bridges": bridges, "version": self.snapshot.root["ovs_version"]}

    def _commit(self, row: dict[str, Any]) -> None:
        change = _ovs.Change(self.snapshot)
        change.update("Open_vSwitch", self.snapshot.root["_uuid"], row)
        self.number = self.client.commit(change)

    def _applied(self) -> object:
        return self.client.applied(self.number)


def main() -> None:
    """Run the module."""
    run_module(Switch, FIELDS)


if __name__ == "__main__":
    main()
