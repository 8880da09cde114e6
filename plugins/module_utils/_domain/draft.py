# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VM's definition as it is, as it shall be, and what runs of it. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from time import monotonic
from typing import Any
from xml.etree.ElementTree import Element

from .._disks import booting
from .._disks import plan as storage
from .._disks.kind import Store, Volume
from .._errors import Invalid, Refused
from .._fields import size_text
from .._identity import vm_uuid
from .._libvirt import Domain
from .._reserved import of_bridge, trespass
from .._resource import Step
from .._xml import parse, text_of
from . import chains, disks, leases, leasing, live, passthrough, power, seeding, sheet
from .facts import domain_facts
from .live import Live
from .machine import MACHINE, check_offered, same_machine
from .memory import MEMORY_FIELDS
from .nics import read_all as nic_options
from .site import FRESH_SECONDS, Site

NEXT = "from its next start"


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
        # What QEMU has, for as long as it is not shut down first.
        self.now = self.running
        self.act: str | None = None
        self.awake = bool(self.facts and self.facts["state"] == "running")
        # For what it is restarted.
        self.waited: list[str] = []
        self.volumes: list[storage.Change] = []
        self.seen: dict[str, int | None] = {}
        self.attached = {disk["target"] for disk in disks.read_all(self.running)} if self.running is not None else set()
        self.live = Live()
        self.ahead: list[Step] = []
        self.defined: float | None = None

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
        # The running machine's value may be another one than the definition had.
        later = {sheet.subject(change): when for change, when in self.later(self.after).items()}
        changes = [
            (change, later.get(sheet.subject(change))) for change in sheet.changes(sheet.read(self.before), after)
        ]
        texts = [f"{change} ({when})" if when else change for change, when in changes]
        return f"change {name}: {', '.join(texts) or 'keep its definition'}"

    def removable(self, others: Mapping[str, list[dict[str, Any]]]) -> list[tuple[Store, Volume]]:
        """The volumes that were made for this VM, of its disks as defined and as declared. Raises Refused."""
        defined = [] if self.before is None else disks.read_all(self.before)
        declared = disks.filled(self.params["disks"] or [], self.params["name"])
        return storage.removable(disks.KINDS, self.params["name"], self.uuid, [*defined, *declared], others)

    def check_free(self, own: bool) -> None:
        """Raise Refused when somebody holds the VM's lease, or a store says that somebody has one of its disks open.

        While its `own` process is there, that holds its lease and has its disks open.
        """
        leasing.check_free(self.site.leases, self.params["name"], self.uuid, own)
        self.check_stores(set() if own else {disk["target"] for disk in disks.read_all(self.after)})

    def check_stores(self, targets: set[str]) -> None:
        """Raise Refused when a store says that somebody has one of these disks open, or that it is another volume."""
        for disk in [disk for disk in disks.read_all(self.after) if disk["target"] in targets]:
            kind = disks.KINDS[disk["type"]]
            if kind.store and not disk["readonly"]:
                kind.store.check_free(disk)
            kind.check_start(disk, self.uuid, self.site.node.password)

    def doubts(self, state: Mapping[str, Any]) -> list[str]:
        """What speaks against a start from a first disk that becomes a copy of another machine's."""
        first = [disk["target"] for disk in state["disks"] if disk["device"] == "disk"][:1]
        made = [one.disk for one in self.volumes if one.verb == "create" and one.disk["target"] in first]
        found = [
            booting.mismatch(disk["source"], booting.read(disk["source"], disk["source_format"]), state["firmware"])
            for disk in made
            if disk.get("source_format")
        ]
        return [words for words in found if words]

    def define(self) -> None:
        """Write the definition; the file of its lease must be there before anything starts it."""
        self.site.leases.make(self.uuid)
        self.site.node.define(text_of(self.after))
        self.defined = monotonic()

    @property
    def patience(self) -> float:
        """How many seconds old the peers' answers may be: of two nodes that define a VM at once one sees the other."""
        return FRESH_SECONDS if self.defined is None else min(FRESH_SECONDS, monotonic() - self.defined)

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

    def later(self, definition: Element) -> dict[str, str]:
        """What the running VM does not have yet of its definition, each with the words that it counts from when."""
        if self.running is None:
            return {}
        reasons = live.reasons(self.running, definition, self.awake)
        words = sheet.pending(self.running, sheet.read(definition))
        return {word: f"from its next start: {reasons[word]}" if word in reasons else NEXT for word in words}

    def pending(self, definition: Element) -> list[str]:
        """The same as the module tells it."""
        return [word + words[len(NEXT) :] for word, words in self.later(definition).items()]

    def capacity(self, target: str) -> int | None:
        """How big, in bytes, the running VM takes a disk for; asked only where sizes are declared."""
        if not any(disk["size"] for disk in self.params["disks"] or []) or target not in self.attached:
            return None
        if target not in self.seen:
            self.seen[target] = self.site.node.block_sizes(self.params["name"], target).get("capacity")
        return self.seen[target]

    def state(self, root: Element, power_state: str, autostart: bool) -> dict[str, Any]:
        """The sheet of a definition with the power state, autostart, and what waits for the next start."""
        options = sheet.read(root)
        pending = self.pending(root)
        if self.params["disks"] is not None:
            storage.measure(disks.KINDS, options["disks"], self.capacity)
        name = self.params["name"]
        return {"name": name, "state": power_state, **options, "autostart": autostart, "pending_restart": pending}

    def edit(self, act: str | None) -> dict[str, Any]:
        """Write the options into a copy of the definition (`after`); `act` is what will be done to its power.

        Returns the state that the VM will have; fills `volumes`, what is done `ahead` of the definition, and what
        changes live, and makes `act` a restart where that is allowed and something waits. Raises Invalid, Refused.
        """
        self.act, self.awake = act, self.awake or act == "resume"
        self._check_host()
        if self.before is None:
            self.after = sheet.create(self.params, self.site.offer)
        else:
            self.after = deepcopy(self.before)
        bridges = self.site.bridges if self.params["nics"] else {}
        declared = sheet.edit(self.after, self.params, bridges)
        self._check_bridges(bridges)
        present = {disk["target"] for disk in ([] if self.before is None else disks.read_all(self.before))}
        chains.write(self.after, declared, present)
        leases.write(self.after, self.site.leases.path(self.uuid))
        passthrough.check_there(self.before, self.after)
        self._plan_live()
        options = sheet.read(self.after)
        if self.params["nics"] or self.act in power.STARTS:
            self._check_vlans(options["nics"])
        self._check_networks(options["nics"])
        state = self.state(self.after, self._power_after(), self._autostart())
        if self.params["disks"] is not None:
            self.volumes = storage.plan(disks.KINDS, state["disks"], declared, present, options["uuid"], self.capacity)
            full = {target for target, given in declared.items() if given["clone"] == "full"}
            self.ahead = chains.flatten(self.site.node, self.after, self.now, state["disks"], full)
        self.ahead += seeding.making(self.params["cloud_init"], self.before, self.after, self.running)
        return state

    def _plan_live(self) -> None:
        """What changes at once: nothing where it goes off, or would be off for a moment for the rest all the same."""
        if self.running is not None and self.before is not None and self.act in (None, "resume", "pause"):
            given = {name for name, value in self.params.items() if value is not None}
            self.live = live.plan(self.running, self.before, self.after, given, self.awake)
            self.waited = self.pending(self.after) if self.act is None and self._may_restart() else []
            self.act = "restart" if self.waited else self.act
        if self.act in power.OFF.values() or self.act == "destroy":
            self.attached, self.now = set(), None
        if self.act not in (None, "resume", "pause"):
            self.running, self.live = None, Live()

    def _may_restart(self) -> bool:
        wanted = self.params["restart"] == "allowed" and self.params["state"] == "running"
        return wanted and self.facts is not None and self.facts["state"] == "running"

    def _check_bridges(self, bridges: Mapping[str, str]) -> None:
        """Refuse those of new NICs, and of NICs that are plugged in otherwise, that this node does not have."""
        before = {} if self.before is None else {nic["mac"]: nic for nic in nic_options(self.before)}
        for place, nic in enumerate(nic_options(self.after) if self.params["nics"] else ()):
            same = all(nic[key] == before.get(nic["mac"], {}).get(key) for key in ("bridge", "vlan", "trunks"))
            if nic["bridge"] and nic["bridge"] not in bridges and not same:
                have, where = ", ".join(sorted(bridges)) or "none", f"nics[{place}]"
                raise Invalid(
                    f"{where} of {self.params['name']}: {self.site.node.name} has no bridge {nic['bridge']} (it has: "
                    f"{have}); name one that it has, or make this one first (linux_bridge_bridges or "
                    "open_vswitch_bridges of the node, and playbook drover.kvm.site)",
                    option=where,
                )

    def _check_networks(self, nics: Sequence[Mapping[str, Any]]) -> None:
        """Refuse new ones that are not there, or that lead around the guard of the hosts' VLANs."""
        has = [] if self.before is None else [nic["network"] for nic in nic_options(self.before)]
        named = [(place, nic["network"]) for place, nic in enumerate(nics)]
        for place, network in [(place, network) for place, network in named if network and network not in has]:
            where, known = f"nics[{place}] of {self.params['name']}", self.site.networks
            if network not in known:
                have = ", ".join(sorted(known)) or "none"
                raise Invalid(f"{where}: this node has no network {network} (it has: {have})", option="nics")
            if self.site.bridges.get(str(known[network])) == "ovs":
                raise Refused(f"{where}: network {network} is {known[network]} of Open vSwitch; give bridge and vlan")

    def _check_vlans(self, nics: Sequence[Mapping[str, Any]]) -> None:
        """Refuse VLANs that are the hosts' own."""
        reserved = self.site.reserved
        for place, nic in enumerate(nics if reserved else ()):
            own = of_bridge(reserved, nic["bridge"]) if self.site.bridges.get(nic["bridge"]) == "ovs" else []
            words = trespass(nic, own)
            if words:
                raise Refused(f"nics[{place}] of {self.params['name']} {words}", vlans=own)

    def _check_host(self) -> None:
        """Refuse what this node can't give."""
        machine, present = self.params["machine"], None if self.before is None else MACHINE.get(self.before)
        if machine is not None and not same_machine(machine, present):
            check_offered(machine, self.site.offer["machine_types"])
        for field in MEMORY_FIELDS:
            size, name = self.params[field.name], field.name
            # The node is asked only for what is new.
            if field.type != "size" or size in (None, None if self.before is None else field.place.get(self.before)):
                continue
            if size > (has := self.site.offer["memory"]["total"]):
                raise Invalid(
                    f"{name}={size_text(size)} of {self.params['name']} is more than {self.site.node.name} has "
                    f"({has // 2**20}MiB); write less, or choose a node that has more",
                    option=name,
                )

    def _power_after(self) -> str:
        if self.act is None:
            return self.facts["state"] if self.facts else power.STOPPED
        if self.act == "pause" or (self.act == "start" and self.params["state"] == "paused"):
            return "paused"
        return "running" if self.act in power.ON else power.STOPPED

    def _autostart(self) -> bool:
        if self.params["autostart"] is not None:
            return bool(self.params["autostart"])
        return bool(self.domain and self.domain.autostart)
