#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_freeze: a VM holds still while somebody else makes snapshots of its disks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_freeze
short_description: Hold a VM still while its storage makes snapshots
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Lets the guest agent of a machine write out and hold still its file systems, and pauses the machine if asked to, so
    that the storage (a SAN, an array) can make snapshots of its disks. Then lets it go on.
  - A timer of systemd on the node lets it go on after O(hold) seconds in any case, also when Ansible was killed. So
    look whether RV(was) still has what RV(vm) had when the machine was frozen; else it has written meanwhile, and the
    snapshots are not of one moment.
  - M(drover.kvm.snapshot) and M(drover.kvm.backup) do that by themselves where libvirt, QEMU or Ceph make the snapshot.
    This is for storage that they can't ask.
options:
  name:
    description: The machine. It must be on this node.
    type: str
    required: true
  state:
    description:
      - V(frozen) holds it still, V(thawed) lets it go on. A machine that is off, or that somebody paused, writes
        nothing and stays as it is.
      - V(thawed) never touches what somebody else froze or paused.
    type: str
    choices: [frozen, thawed]
    default: frozen
  quiesce:
    description:
      - Whether the guest agent is asked. V(auto) asks where there is one. V(required) refuses, or fails, without.
        V(never) does not ask.
    type: str
    choices: [auto, required, never]
    default: auto
  pause:
    description:
      - Whether its processors stand still too, after QEMU has written out all that it had. Without a guest agent, that
        is what makes snapshots of several disks one moment.
    type: bool
    default: false
  hold:
    description: After how many seconds it goes on by itself, from 1 to 300.
    type: int
    default: 8
  uri:
    description: Libvirt's URI on this node.
    type: str
    default: qemu:///system
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - libvirt 9.0 or later, and its Python library (C(python3-libvirt))
  - systemd
seealso:
  - module: drover.kvm.backup
    description: Option C(from_snapshot) reads such snapshots.
  - module: drover.kvm.iscsi_volume
    description: Makes snapshots on a SAN of your own.
"""

EXAMPLES = r"""
- name: Hold it still
  drover.kvm.vm_freeze: {name: web1, quiesce: required}
  register: frozen

- name: Snapshot on the SAN
  drover.kvm.iscsi_volume:
    name: drover-web1-0-backup
    iqn: iqn.2026-11.org.example:drover-web1-0-backup
    snapshot_of: drover-web1-0
    backend: lio
    store: lvm_thin
    vg: data
    thin_pool: volumes
    initiators: [iqn.2026-01.org.drover:vm-web1]
    chap_user: ""
  delegate_to: san1

- name: Let it go on, and fail if it did so before
  drover.kvm.vm_freeze: {name: web1, state: thawed}
  register: thawed
  failed_when: thawed is failed or (frozen.vm.frozen and not thawed.was.frozen)

- name: A machine without an agent, with several disks
  drover.kvm.vm_freeze: {name: db1, quiesce: never, pause: true, hold: 5}
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["freeze web1 for 8 s at most"]
vm:
  description: What holds it still now.
  returned: always
  type: dict
  contains:
    name: {description: The machine., type: str, returned: always}
    frozen: {description: Whether its file systems are held still., type: bool, returned: always}
    paused: {description: Whether its processors stand still., type: bool, returned: always}
was:
  description: The same before this task.
  returned: always
  type: dict
moment:
  description: When this task ended, in UTC.
  returned: always
  type: str
  sample: 20261122T030000Z
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _later
from ansible_collections.drover.kvm.plugins.module_utils._backup.moments import check_quiesce
from ansible_collections.drover.kvm.plugins.module_utils._backup.store import STAMP
from ansible_collections.drover.kvm.plugins.module_utils._domain import power, stillness
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._quiesce import Freeze, why_not
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

FIELDS = (
    Field("name", required=True, check=check_name),
    Field("state", choices=("frozen", "thawed"), default="frozen"),
    Field("quiesce", choices=("auto", "required", "never"), default="auto"),
    Field("pause", type="bool", default=False),
    Field("hold", type="int", default=8, check=between(1, 300)),
    URI,
)


class VmFreeze(Resource):
    """What holds one VM still."""

    def __init__(self, params: dict[str, Any], client: Node) -> None:
        super().__init__(params, client)
        self.was: State = None
        self.mute = params["quiesce"] == "never"
        self.failed = False

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Node]:
        """The node."""
        return connect(str(params["uri"]))

    def read(self) -> State:
        """Whether our timers still wait, so that it has stood still since."""
        domain = self.client.domain(self.name)
        if domain is None:
            raise NotFound(f"there is no VM {self.name} on {self.client.name}; run this where it is")
        self.domain, self.uuid = domain, domain.uuid
        self.freeze = Freeze(self.client, self.name, self.uuid, self.params["hold"])
        paused = domain.state == "paused" and _later.waits(stillness.resume_unit(self.uuid))
        # After a freeze that was given up the timer stays, as the guest may still do it.
        frozen = not self.failed and _later.waits(self.freeze.unit)
        state = {"name": self.name, "frozen": frozen, "paused": paused}
        self.was = self.was or state
        return state

    def wanted(self, before: State) -> State:
        """What shall hold it still."""
        have = before or {}
        if self.params["state"] == "thawed":
            return {**have, "frozen": False, "paused": False}
        if self.domain.state != "running":
            return have  # off, or it stands still already
        power.guard(domain_facts(self.domain))
        check_quiesce(self.domain, self.params["quiesce"])
        asked = not self.mute and why_not(parse(self.domain.live_xml)) is None
        return {**have, "frozen": have["frozen"] or asked, "paused": have["paused"] or self.params["pause"]}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Freeze, then pause; or go on."""
        have, asked, hold = before or {}, wanted or {}, self.params["hold"]
        if self.params["state"] == "thawed":
            return [Step(f"let {self.name} go on", partial(self._let_go, have))] if have != asked else []
        steps = []
        if asked["frozen"] and not have["frozen"]:
            steps.append(Step(f"freeze {self.name} for {hold} s at most", self._freeze))
        if asked["paused"] and not have["paused"]:
            steps.append(Step(f"pause {self.name} for {hold} s at most", self._pause))
        return steps

    def _freeze(self) -> None:
        try:
            self.freeze.begin()
        except DroverError as error:
            if self.params["quiesce"] == "required":
                raise
            self.mute = self.failed = True
            self.warnings.append(f"{self.name} is not frozen: {error.message}")

    def _pause(self) -> None:
        stillness.arm(self.name, self.uuid, self.params["hold"])
        try:
            self.client.suspend(self.name)
        except DroverError:
            stillness.let_go(self.client, self.name, self.uuid)
            raise

    def _let_go(self, held: Mapping[str, Any]) -> None:
        if held["paused"]:
            stillness.let_go(self.client, self.name, self.uuid)
        if held["frozen"]:
            self.freeze.end()

    def result(self, state: State) -> dict[str, Any]:
        """What holds it still, and did."""
        return {"vm": state, "was": self.was, "moment": datetime.now(timezone.utc).strftime(STAMP)}


def main() -> None:
    """Run the module."""
    run_module(VmFreeze, FIELDS)


if __name__ == "__main__":
    main()
