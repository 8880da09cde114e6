#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm: one VM of a node, or many."""

from __future__ import annotations

DOCUMENTATION = r"""
@@DOC@@
"""

EXAMPLES = r"""
@@EX@@
"""

RETURN = r"""
@@RET@@
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks import file, plan
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata, power
from ansible_collections.drover.kvm.plugins.module_utils._domain.admission import HERE, Admission
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import DISKS
from ansible_collections.drover.kvm.plugins.module_utils._domain.draft import Draft
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import HARDWARE, check_seconds, check_tags
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import claims_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.nics import NICS
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import text_of

FIELDS = (
    Field("name", required=True, check=check_name),
    Field("state", choices=("present", "running", "stopped", "absent"), default="present"),
    *HARDWARE,
    Field("disks", type="list", elements="dict", fields=DISKS),
    Field("nics", type="list", elements="dict", fields=NICS),
    Field("tags", type="names", check=check_tags),
    Field("autostart", type="bool"),
    Field("force", type="bool", default=False),
    Field("shutdown_timeout", type="int", default=180, check=check_seconds),
    Field("remove_disks", type="bool", default=False),
    Field("unreachable_peers", choices=("refuse", "assume_off"), default="refuse"),
)


class Vm(Resource):
    """One VM on this node."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        self.site = client
        self.admission = Admission(client, self.name, params["unreachable_peers"] == "assume_off")
        self.planned = False

    @classmethod
    @contextmanager
    def connect(cls, params: Mapping[str, Any]) -> Iterator[Site]:
        """The node, and through it its peers."""
        with connect() as node:
            yield Site(node)

    def read(self) -> State:
        """The VM's sheet, power state, and what waits for the next start; or the files that it left."""
        self.domain = self.site.domain(self.name)
        self.draft = Draft(self.params, self.site, self.domain)
        if self.draft.before is not None and self.domain is not None:
            return self.draft.state(self.draft.before, self.domain.state, self.domain.autostart)
        files = self._files()
        return {"name": self.name, "state": "absent", "files": files} if files else None

    def wanted(self, before: State) -> State:
        """The definition edited in place. Asks the node and its peers whether it may be, and may start."""
        self.act = power.act(self.draft.facts, self.params["state"], self.params["force"])
        if self.params["state"] == "absent":
            return None
        state = self.draft.edit(self.act)
        held = claims_of(self.draft.after)
        if not self.planned:
            old = set() if self.draft.before is None else claims_of(self.draft.before)
            self.admission.definition(old, held, state["uuid"], new=self.domain is None)
            if self.act == "start":
                self.admission.start(held, state["uuid"])
            self.admission.plan(held, runs=state["state"] == "running")
            self.planned = True
        return state

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Power off, files, definition, live changes, power on; or the removal."""
        steps = self._power_off()
        if wanted is None:
            steps += self._removal()
        else:
            steps += self._make_files() + self._define(wanted) + self._change_live()
            if self.act == "start":
                steps.append(self._start(wanted["uuid"]))
        if steps and self.draft.facts:
            power.guard(self.draft.facts)
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """The VM, and what waits for its next start."""
        vm = None if state is None or state["state"] == "absent" else dict(state)
        return {"vm": vm, "pending_restart": vm.pop("pending_restart") if vm else []}

    def _power_off(self) -> list[Step]:
        node, name = self.site.node, self.name
        if self.act == "destroy":
            return [Step("cut its power", partial(node.destroy, name), self._is_off)]
        if self.act in ("shutdown", "wait"):
            ask = partial(node.shutdown, name) if self.act == "shutdown" else lambda: None
            return [Step("shut it down", ask, self._is_off, self.params["shutdown_timeout"])]
        return []

    def _is_off(self) -> bool | str:
        domain = self.site.node.domain(self.name)
        return domain is None or domain.state == power.STOPPED or domain.state

    def _removal(self) -> list[Step]:
        steps = []
        if self.domain is not None and self.domain.persistent:
            steps.append(Step("remove its definition", partial(self.site.node.undefine, self.name)))
        return steps + [Step(f"delete {path}", partial(file.remove, path, self.draft.uuid)) for path in self._files()]

    def _files(self) -> list[str]:
        if self.params["state"] != "absent" or not self.params["remove_disks"]:
            return []
        others = {HERE: self.site.surveyed, **self.admission.answers("deprived of its disks")}
        return plan.removable(self.name, self.draft.uuid, self.draft.paths(), others)

    def _make_files(self) -> list[Step]:
        return [Step(change.words, partial(self._make_file, change)) for change in self.draft.files]

    def _make_file(self, change: plan.Change) -> None:
        if self.draft.uses(change.target):
            self.site.node.block_resize(self.name, change.target, change.size)
        elif not change.apply(self.draft.uuid):
            self.warnings.append(f"{change.path} could not be marked as ours; remove_disks will not remove it")

    def _define(self, wanted: Mapping[str, Any]) -> list[Step]:
        node, steps = self.site.node, []
        if self.draft.redefined:
            steps.append(Step(self.draft.words(), partial(node.define, text_of(self.draft.after))))
        if wanted["autostart"] != (self.domain is not None and self.domain.autostart):
            words = f"{'start' if wanted['autostart'] else 'do not start'} it with the node"
            steps.append(Step(words, partial(node.set_autostart, self.name, wanted["autostart"])))
        return steps

    def _change_live(self) -> list[Step]:
        node, name = self.site.node, self.name
        steps = [Step(words, partial(node.update_device, name, xml, True, False)) for words, xml in self.draft.vlans]
        if self.draft.record:
            call = partial(node.set_metadata, name, metadata.PREFIX, metadata.NAMESPACE, self.draft.record, True, False)
            steps.append(Step("change the tags of the running VM", call))
        return steps

    def _start(self, uuid: str) -> Step:
        words = "start it (from its saved memory)" if self.domain and self.domain.has_managed_save else "start it"
        return Step(words, partial(self._really_start, uuid))

    def _really_start(self, uuid: str) -> None:
        # What the peers said may be old by now, when many VMs are started one after the other.
        self.admission.start(claims_of(self.draft.after), uuid)
        self.site.node.start(self.name)


def main() -> None:
    """Run the module."""
    run_module(Vm, FIELDS, items="vms", required_one_of=[("name", "vms")], mutually_exclusive=[("name", "vms")])


if __name__ == "__main__":
    main()
