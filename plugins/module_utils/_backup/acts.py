# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module backup does with a VM: choose what is copied, make the backup, and see which of them go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._domain import power
from .._domain.facts import domain_facts
from .._errors import NotFound, Refused
from .._libvirt import Domain, Node
from .._node import cordon
from . import files, job, origins, rbd, store
from .disks import Disk, disks_of
from .moments import check_quiesce
from .shelf import Shelf, age
from .store import Backup
from .taking import Order, Taking, base_of, check_clock, check_room, recover, room_needed


class Acts(Shelf):
    """The backups of one VM in one folder, and the VM on this node."""

    def __init__(self, node: Node, order: Order, keep: int, newer_than: int | None) -> None:
        super().__init__(order.root, order.vm, keep)
        self.node, self.order, self.newer_than = node, order, newer_than
        self.made: Backup | None = None
        self.base: Backup | None = None
        self.kept: dict[str, bytes] = {}
        self.reason = ""
        self.warnings: list[str] = []

    def is_young(self) -> bool:
        """Whether the last good backup of this very VM is young enough to leave it at that."""
        if self.newer_than is None:
            return False
        uuid = self._uuid()
        good = [backup for backup in self.backups if backup.complaint is None and backup.uuid == uuid]
        if not good:
            return False
        # One of the future, made when a clock was wrong, must not stand for those that are due until then.
        return abs(age(good[-1])) < self.newer_than

    def plan(self) -> None:
        """Look at the VM, and choose what is copied. Raises NotFound and Refused."""
        domain = self._domain()
        disks, spared = disks_of(self.node, domain)
        if not disks:
            raise Refused(
                f"{domain.name} has no disk that it writes to ({', '.join(spared) or 'none at all'}), so there is "
                "nothing to back up; leave it out"
            )
        if self.order.from_snapshot is None:
            self._check_reading(domain, disks)
        elif rbd.are_images(disks):
            raise Refused(f"the disks of {domain.name} are images of RBD, which have snapshots of their own")
        else:
            origins.of_disks(self.node, domain, self.order.from_snapshot)
        if domain.has_managed_save:
            self.warnings.append(f"{domain.name} has saved memory, which is not in the backup")
        check_clock(self.node, self.backups)
        self.base, self.reason = base_of(self.order, domain, disks, self.backups)
        self.kept = files.kept(self.base, self.order.passphrase) if self.base else {}
        self.disks = disks
        store.check_owner(self.order.root if self.order.root.is_dir() else self.order.root.parent)
        self.check_room(room_needed(self.node, self.order, disks, self.base))

    def _check_reading(self, domain: Domain, disks: Sequence[Disk]) -> None:
        """Raise Refused where the disks can't be read, or not as the guest shall leave them."""
        far = [disk.target for disk in disks if disk.path is None]
        if far and not domain.active and not rbd.are_images(disks):
            raise Refused(f"{domain.name} is off, and {', '.join(far)} can be read while it runs only; start it first")
        if self.order.mode == "stop" and cordon() is not None:
            raise Refused(f"this node is cordoned, so {domain.name} could not be started again; take another mode")
        check_quiesce(domain, self.order.quiesce if self.order.mode == "snapshot" else "auto")

    def check_room(self, needed: int) -> None:
        """Raise Refused where so many bytes might not fit."""
        check_room(self.order.root, needed)

    def _domain(self) -> Domain:
        domain = self.node.domain(self.order.vm)
        if domain is None:
            raise NotFound(
                f"there is no VM {self.order.vm} on {self.node.name}; run this where it is. Playbook backup finds it"
            )
        facts = domain_facts(domain)
        running = self.node.backup(domain.name) if domain.active else None
        own = tuple(f"{folder}/" for folder in store.left(self.order.root, domain.name))
        if running and any(path.startswith(own) for path in job.targets_of(running)):
            facts["job"] = None  # a run of ours that was killed; it is ended first
        power.guard(facts)
        return domain

    def words(self) -> str:
        """What will be copied, for people."""
        if self.base is None:
            kind = f"full ({self.reason})"
        else:
            kind = f"what has changed since {self.base.id}" + (f", {self.reason}" if self.reason else "")
        return f"{', '.join(disk.target for disk in self.disks)}; {kind}"

    def clear(self, folder: Path) -> None:
        """Undo what a killed run has begun."""
        with self.lock():
            if folder.exists():
                recover(self.node, self.order.vm, folder)

    def take(self) -> None:
        """Make the backup."""
        self.made = Taking(self.node, self.order, self._domain()).run(self.base, self.reason, self.kept)
        self.proven.add(self.made.id)

    def surplus(self) -> list[list[Backup]]:
        """The histories that go when the backup is there."""
        uuid = self._uuid()
        own = [backup for backup in self.backups if backup.uuid == uuid]
        return store.surplus(own, self.keep, coming=self.base is None and self.made is None)

    def _uuid(self) -> str | None:
        domain = self.node.domain(self.order.vm)
        return None if domain is None else domain.uuid

    def orphans(self, older_than: int) -> list[list[Backup]]:
        """The histories of VMs of this name that are gone, where the last backup is older than so many seconds.

        Raises Refused where such a VM is on this node.
        """
        uuid = self._uuid()
        others = {backup.uuid for backup in self.backups} - {uuid}
        if uuid is not None and not others and self.backups:
            raise Refused(
                f"{self.vm} is on {self.node.name}, and keep says how many of its backups stay; state: absent is for a "
                "VM that is gone"
            )
        found: list[list[Backup]] = []
        for other in sorted(others):
            own = [backup for backup in self.backups if backup.uuid == other]
            if age(own[-1]) > older_than:
                found += store.histories(own)
            else:
                self.warnings = [f"the last backup of {self.vm}, {own[-1].id}, is younger than older_than: all stay"]
        return found

    def forget(self, history: list[Backup]) -> None:
        """Remove a history of a VM that is gone."""
        with self.lock():
            for backup in reversed(history):
                rbd.forget(backup.manifest)
                store.remove(backup)
