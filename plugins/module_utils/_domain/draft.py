# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VM's definition as it is, as it shall be, and what runs of it. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any
from xml.etree.ElementTree import Element

from .._disks import plan as storage
from .._disks.kind import Store, Volume
from .._errors import Invalid, Refused
from .._identity import vm_uuid
from .._libvirt import Domain
from .._reserved import of_bridge, trespass
from .._resource import Step
from .._xml import parse, text_of
from . import chains, disks, leases, leasing, live, metadata, power, seeding, sheet
from .declare import declare
from .facts import domain_facts
from .site import Site


class Draft:
    """The trees of one VM. `before` is None for a new VM, `running` for one that is off."""

    def __init__(self, params: Mapping[str, Any], site: Site, domain: Domain | None) -> None:
        self.params = params
        self.site = site
        self.domain = domain
        self.facts = domain_facts(domain) if domain else None
        self.after: Element = Element("domain")
        self.before = parse(domain.xml) if domain else None
        self.running = parse(domain.live_xml) if domain and domain.live_xml else None
        self.volumes: list[storage.Change] = []
        self.seen: dict[str, int | None] = {}
        self.vlans: list[tuple[str, str]] = []
        self.limits: list[tuple[str, str, dict[str, int]]] = []
        self.noted: list[str] = []
        self.ahead: list[Step] = []

    @property
    def redefined(self) -> bool:
        """Whether the definition must be written."""
        if self.before is None or self.domain is None or not self.domain.persistent:
            return True
        return text_of(self.before) != text_of(self.after)

    def words(self) -> str:
        """What changes in the definition, and what of that the guest has only from its next start."""
        name, after = self.params["name"], sheet.read(self.after)
        if self.before is None:
            size = sheet.shown("memory", after["memory"])
            disks_nics = f"{len(after['disks'])} disks, {len(after['nics'])} NICs"
            return f"define {name}: {after['vcpus']} vCPUs, {size}, {disks_nics}"
        later = [] if self.running is None else sheet.pending(self.running, after)
        changes = sheet.changes(sheet.read(self.before), after)
        texts = [f"{change} (from its next start)" if change in later else change for change in changes]
        return f"change {name}: {', '.join(texts) or 'keep its definition'}"

    def removable(self, others: Mapping[str, list[dict[str, Any]]]) -> list[tuple[Store, Volume]]:
        """The volumes that were made for this VM, of its disks as defined and as declared. Raises Refused."""
        defined = [] if self.before is None else disks.read_all(self.before)
        declared = disks.filled(self.params["disks"] or [], self.params["name"])
        return storage.removable(disks.KINDS, self.params["name"], self.uuid, [*defined, *declared], others)

    def check_free(self, resumed: bool) -> None:
        """Raise Refused when somebody holds the VM's lease, or a store says that somebody has one of its disks open.

        One that is paused and shall be `resumed` may hold its own lease, and its disks are open.
        """
        leasing.check_free(self.site.leases, self.params["name"], self.uuid, resumed)
        for disk in [] if resumed else disks.read_all(self.after):
            store = disks.KINDS[disk["type"]].store
            if store and not disk["readonly"]:
                store.check_free(disk)

    def define(self) -> None:
        """Write the definition; the file of its lease must be there before anything starts it."""
        self.site.leases.make(self.uuid)
        self.site.node.define(text_of(self.after))

    def undefine(self) -> None:
        """Remove the definition, and the file of its lease with the last one. What the firmware keeps is like disks."""
        self.site.node.undefine(self.params["name"], keep_state=not self.params["remove_disks"])
        if self.site.leases.directory:
            leasing.forget(self.site.leases, self.uuid, *self.site.peers())

    @property
    def uuid(self) -> str:
        """The UUID that the VM has or will have."""
        return self.domain.uuid if self.domain else self.params["uuid"] or vm_uuid(self.params["name"])

    def left(self) -> list[str]:
        """The seed of a VM that shall be absent, if there is one."""
        return seeding.left(self.params["name"], self.uuid) if self.params["state"] == "absent" else []

    def capacity(self, target: str) -> int | None:
        """How big, in bytes, the running VM takes a disk for; asked only where sizes are declared."""
        if not any(disk["size"] for disk in self.params["disks"] or []) or self.running is None:
            return None
        if target not in self.seen:
            uses = target in {disk["target"] for disk in disks.read_all(self.running)}
            sizes = self.site.node.block_sizes(self.params["name"], target) if uses else {}
            self.seen[target] = sizes.get("capacity")
        return self.seen[target]

    def state(self, root: Element, power_state: str, autostart: bool) -> dict[str, Any]:
        """The sheet of a definition with the power state, autostart, and what waits for the next start."""
        options = sheet.read(root)
        pending = [] if self.running is None else sheet.pending(self.running, options)
        if self.params["disks"] is not None:
            storage.measure(disks.KINDS, options["disks"], self.capacity)
        name = self.params["name"]
        return {"name": name, "state": power_state, **options, "autostart": autostart, "pending_restart": pending}

    def edit(self, act: str | None) -> dict[str, Any]:
        """Write the options into a copy of the definition (`after`); `act` is what will be done to its power.

        Returns the state that the VM will have; fills `volumes`, what is done `ahead` of the definition, and what
        changes live. Raises Invalid, Refused.
        """
        self._check_host()
        if self.before is None:
            self.after = sheet.create(self.params, self.site.offer)
        else:
            self.after = deepcopy(self.before)
        bridges = self.site.bridges if self.params["nics"] else {}
        declared = sheet.edit(self.after, self.params, bridges)
        present = {disk["target"] for disk in ([] if self.before is None else disks.read_all(self.before))}
        chains.write(self.after, declared, present)
        leases.write(self.after, self.site.leases.path(self.uuid))
        if act in ("shutdown", "destroy", "wait"):
            self.running = None
        options = sheet.read(self.after)
        if self.params["nics"] or act == "start":
            self._check_vlans(options["nics"])
        if self.running is not None:
            self._change_live(self.running, options)
        state = self.state(self.after, self._power_after(act), self._autostart())
        if self.params["disks"] is not None:
            self.volumes = storage.plan(disks.KINDS, state["disks"], declared, present, options["uuid"], self.capacity)
            full = {target for target, given in declared.items() if given["clone"] == "full"}
            self.ahead = chains.flatten(self.site.node, self.after, self.running, state["disks"], full)
        self.ahead += seeding.making(self.params["cloud_init"], self.before, self.after, self.running)
        return state

    def _change_live(self, running: Element, options: Mapping[str, Any]) -> None:
        if self.params["nics"] is not None:
            self.vlans = live.vlans(running, options)
            self.limits = live.limits(running, options)
        said = [live.tags(running, self.after) if self.params["tags"] is not None else None]
        said.append(live.checks(running, self.after) if self.params["nics"] is not None else None)
        self.noted = [words for words in said if words]

    def write_record(self) -> None:
        """Write the record that the running VM shall have, and tell the switch what it says of its ports."""
        node, name = self.site.node, self.params["name"]
        record = None if self.running is None else metadata.record_xml(self.running)
        node.set_metadata(name, metadata.PREFIX, metadata.NAMESPACE, record, live=True, config=False)
        if live.CHECKS in self.noted:
            declare(node.domain(name))

    def _check_vlans(self, nics: Sequence[Mapping[str, Any]]) -> None:
        """Refuse VLANs that are the hosts' own."""
        reserved = self.site.reserved
        for place, nic in enumerate(nics if reserved else ()):
            own = of_bridge(reserved, nic["bridge"]) if self.site.bridges.get(nic["bridge"]) == "ovs" else []
            words = trespass(nic, own)
            if words:
                raise Refused(f"nics[{place}] of {self.params['name']} {words}", vlans=own)

    def _check_host(self) -> None:
        for name in ("memory", "max_memory"):
            memory = self.params[name]
            if memory is not None and memory > (has := self.site.offer["memory"]["total"]):
                raise Invalid(f"{name}={memory} is more than this node has ({has} bytes)", option=name)

    def _power_after(self, act: str | None) -> str:
        if act is None:
            return self.facts["state"] if self.facts else power.STOPPED
        return "running" if act in power.ON else power.STOPPED

    def _autostart(self) -> bool:
        if self.params["autostart"] is not None:
            return bool(self.params["autostart"])
        return bool(self.domain and self.domain.autostart)
