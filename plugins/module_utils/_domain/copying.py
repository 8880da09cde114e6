# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a running VM are copied by QEMU to other storage: what a node is asked and told for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from .._disks.kind import Options
from .._disks.landing import LANDINGS, FileLanding, Place
from .._errors import DroverError, Failed, NotFound, Refused
from .._xml import parse
from . import power, transfer
from .admission import HERE
from .disks import KINDS, source_xml
from .facts import domain_facts
from .neighbours import check_definition, names_of
from .site import Site, survey_node
from .stillness import still


class Guest:
    """One running VM and its disks. `fenced`: the peers that are known to be off."""

    def __init__(self, site: Site, name: str, fenced: Collection[str]) -> None:
        self.site, self.node, self.name, self.fenced = site, site.node, name, fenced
        self.uuid = ""
        self.has_snapshots = False

    def check_moves(self, disks: Sequence[transfer.Disk]) -> None:
        """Raise Refused where one of these must stay: a copy has nothing of its snapshots."""
        stores = [(KINDS[disk.options["type"]].store, disk.options) for disk in disks if disk.options]
        if self.has_snapshots or any(store.kept(options) for store, options in stores if store):
            raise Refused(
                f"{self.name} has snapshots, which a copy of its disks would not have; remove them first "
                "(drover.kvm.snapshot)"
            )

    def disks(self) -> dict[str, transfer.Disk]:
        """The disks as they run. Raises NotFound and Refused."""
        domain = self.node.domain(self.name)
        if domain is None:
            raise NotFound(f"there is no VM {self.name} on this node")
        power.guard(domain_facts(domain))
        if domain.live_xml is None or domain.state not in ("running", "paused"):
            raise Refused(f"{self.name} is {domain.state}; its disks are copied while it runs: start it first")
        self.uuid = domain.uuid
        self.has_snapshots = domain.has_snapshots
        return transfer.disks(parse(domain.live_xml), parse(domain.xml))

    def landing(self, options: Options) -> FileLanding:
        """What is done with a storage that is copied to."""
        return LANDINGS[options["type"]](options, self.uuid, self.node.password)

    def check_unused(self, kind: str, identity: str) -> None:
        """Raise Refused when another VM has the storage, here, or on a peer where it is the same storage there."""
        others = {HERE: survey_node(self.node)}
        if kind != "file":
            peers, silent = self.site.peers()
            if silent := [peer for peer in silent if peer not in self.fenced]:
                raise Refused(
                    f"{', '.join(silent)} gave no answer, and a VM there may use {identity.partition(':')[2]}. Run "
                    "this again when they answer, or, when you know that they are powered off, with their names in "
                    "fenced",
                    unreachable=silent,
                )
            others.update(peers)
        check_definition(self.name, {("disk", name) for name in names_of(identity)}, others)

    def why_kept(self, disk: transfer.Disk) -> str | None:
        """Why what a disk lies on is not deleted: not made for this VM, or needed by another; None when it may be."""
        store = KINDS[disk.options["type"]].store if disk.options else None
        if store is None or disk.options is None:
            return "only files of the node and images of Ceph are deleted"
        volume = store.inspect({**disk.options, "format": "raw"})
        if volume is None:
            return "it is not there"
        if volume.mark != self.uuid:
            return f"it does not carry the mark of {self.name}, so it was not made for it"
        if clones := store.based(str(disk.identity)):
            return f"{', '.join(clones)} is based on it"
        try:
            self.check_unused(disk.options["type"], str(disk.identity))
        except Refused as error:
            return error.message
        return None

    def end_together(self, targets: Sequence[str]) -> None:
        """End the copies of these disks without a change over, all of one moment: a running VM stands still for it."""
        domain = self.node.domain(self.name)
        running = domain is not None and domain.state == "running"
        pause = partial(self.node.suspend, self.name)
        with still(self.node, self.name, self.uuid, pause) if len(targets) > 1 and running else nullcontext():
            for target in targets:
                self.node.abort_block_job(self.name, target)

    def remove(self, disk: transfer.Disk) -> None:
        """Delete what a disk lay on. Raises Refused unless it carries the VM's mark."""
        store = KINDS[disk.options["type"]].store if disk.options else None
        if store:
            store.remove(str(disk.identity), self.uuid)

    def abort(self, disk: transfer.Disk) -> None:
        """End the copy that a disk has, and delete what was made for it."""
        self.node.abort_block_job(self.name, disk.target)
        if disk.copied:
            self.landing(disk.copied).clean()


class Copy:
    """One disk of a running VM, and what it is copied to (`options`, complete)."""

    def __init__(self, guest: Guest, disk: transfer.Disk, options: Mapping[str, Any]) -> None:
        self.guest, self.disk, self.options = guest, disk, dict(options)
        self.landing = guest.landing(self.options)
        self.identity = str(KINDS[options["type"]].identity(self.options))
        self.size = guest.node.block_sizes(guest.name, disk.target)["capacity"]

    def look(self) -> Place:
        """What is there. Raises Refused when somebody else uses it."""
        used = self.identity in (self.disk.identity, self.disk.copy)
        if not used:
            self.guest.check_unused(self.options["type"], self.identity)
        return self.landing.look(self.identity, used)

    def grow(self, size: int) -> None:
        """Make the disk as big as what it is copied to."""
        self.guest.node.block_resize(self.guest.name, self.disk.target, size)

    def start(self, rate: int) -> bool:
        """Begin, unless the copy runs already; False when what was made for it could not be marked as ours."""
        if self.disk.copy == self.identity:
            return True
        if self.options["type"] != "file":
            self.guest.check_unused(self.options["type"], self.identity)
        marked = self.landing.prepare(self.size)
        try:
            self.guest.node.start_block_copy(self.guest.name, self.disk.target, source_xml(self.options), rate)
        except DroverError:
            self.landing.clean()
            raise
        return marked

    def ready(self) -> bool | str:
        """Whether the copy has caught up, else how far it is. Raises Failed when it has ended by an error."""
        now = self.guest.disks()[self.disk.target]
        if now.copy is None and now.identity == self.disk.identity:
            self.landing.clean()
            raise Failed(
                f"the copy of {self.disk.target} to {self.identity.partition(':')[2]} broke off; is it full, or out of "
                f"reach? {self.guest.name} still uses {self.disk.name}"
            )
        job = {} if now.ready else self.guest.node.block_job(self.guest.name, self.disk.target)
        return now.ready or f"{job.get('cur', 0)} of {job.get('end', 0)} bytes are copied"

    def pivot(self) -> None:
        """Change over. Raises Failed when libvirt then shows another disk."""
        target, name = self.disk.target, self.guest.name
        self.guest.node.pivot(name, target)
        now = self.guest.disks()[target]
        if {now.identity, now.defined} != {self.identity}:
            raise Failed(
                f"{target} of {name} runs on {now.identity} and is defined as {now.defined}, not {self.identity}"
            )
        self.landing.finish()
