# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module backup does with the backups of one VM: look, take, prove, remove."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path

from .._domain import power
from .._domain.facts import domain_facts
from .._errors import Failed, NotFound, Refused
from .._files import locked
from .._libvirt import Domain, Node
from .._node import cordon
from . import job, store
from .moments import check_quiesce
from .store import Backup
from .taking import Order, Taking, base_of, check_room, disks_of, recover, room_needed


class Acts:
    """The backups of one VM in one folder."""

    def __init__(self, node: Node, order: Order, keep: int, newer_than: int | None) -> None:
        self.node, self.order, self.keep, self.newer_than = node, order, keep, newer_than
        self.backups: list[Backup] = []
        self.made: Backup | None = None
        self.base: Backup | None = None
        self.reason = ""
        self.warnings: list[str] = []
        self.verdicts: dict[str, str] | None = None
        self.proven: set[str] = set()

    def look(self) -> list[Backup]:
        """What is there now."""
        self.backups = store.read(self.order.root, self.order.vm)
        return self.backups

    def is_young(self) -> bool:
        """Whether the last good backup is young enough to leave it at that."""
        good = [backup for backup in self.backups if backup.complaint is None]
        if self.newer_than is None or not good:
            return False
        begun = datetime.strptime(good[-1].id, store.STAMP).replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - begun).total_seconds() < self.newer_than

    def plan(self) -> None:
        """Look at the VM, and choose what is copied. Raises NotFound and Refused."""
        domain = self._domain()
        disks, spared = disks_of(self.node, domain)
        if not disks:
            raise Refused(
                f"{domain.name} has no disk that it writes to ({', '.join(spared) or 'none at all'}), so there is "
                "nothing to back up; leave it out"
            )
        far = [disk.target for disk in disks if disk.path is None]
        if far and not domain.active:
            raise Refused(f"{domain.name} is off, and {', '.join(far)} can be read while it runs only; start it first")
        if self.order.mode == "stop" and cordon() is not None:
            raise Refused(f"this node is cordoned, so {domain.name} could not be started again; take another mode")
        check_quiesce(domain, self.order.quiesce if self.order.mode == "snapshot" else "auto")
        if domain.has_managed_save:
            self.warnings.append(f"{domain.name} has saved memory, which is not in the backup")
        self.base, self.reason = base_of(self.order, domain, disks, self.backups)
        self.disks = disks
        check_room(self.order.root, room_needed(self.node, self.order, disks, self.base))

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
        kind = f"full ({self.reason})" if self.base is None else f"what has changed since {self.base.id}"
        return f"{', '.join(disk.target for disk in self.disks)}; {kind}"

    def clear(self, folder: Path) -> None:
        """Undo what a killed run has begun."""
        with self._lock():
            if folder.exists():
                recover(self.node, self.order.vm, folder)

    def _lock(self) -> AbstractContextManager[None]:
        return locked(self.order.root / self.order.vm, "mount the folder of backups")

    def take(self) -> None:
        """Make the backup."""
        self.made = Taking(self.node, self.order, self._domain()).run(self.base, self.reason)

    def surplus(self) -> list[list[Backup]]:
        """The histories that go when the backup is there."""
        uuid = self._uuid()
        own = [backup for backup in self.backups if backup.uuid == uuid]
        return store.surplus(own, self.keep, coming=self.base is None and self.made is None)

    def _uuid(self) -> str | None:
        domain = self.node.domain(self.order.vm)
        return None if domain is None else domain.uuid

    def remove(self, history: list[Backup]) -> None:
        """Remove a history, once all that stays was read and is good. Raises Failed."""
        with self._lock():
            self.look()
            now = {one.id for gone in self.surplus() for one in gone}
            if not {one.id for one in history} <= now:
                raise Failed(
                    f"{history[0].history} stays: less than {self.keep} good histories would be left. See which are "
                    "damaged (playbook verify_backups), and make a new backup"
                )
            for backup in self.backups:
                proven = backup == self.made or backup.id in self.proven
                if backup.id not in now and backup.complaint is None and not proven:
                    self._prove(backup, history)
            for backup in reversed(history):
                store.remove(backup)

    def _prove(self, backup: Backup, history: list[Backup]) -> None:
        complaint = store.verify(backup)
        if complaint:
            store.note(backup, complaint)
            raise Failed(
                f"{backup.id} is damaged ({complaint}), so the older history {history[0].history} stays. Look at the "
                f"storage of {self.order.root}; when there are {self.keep} good histories again, the older ones go"
            )
        self.proven.add(backup.id)

    def verify(self) -> dict[str, str]:
        """What is wrong with which backup, by reading all of them, once."""
        if self.verdicts is None:
            found: dict[str, str] = {}
            for backup in self.backups:
                complaint = store.verify(backup)
                base = backup.manifest["base"]
                if complaint is None and base is not None and base in found:
                    complaint = f"{base}, on which it is based, is not good"
                if complaint:
                    found[backup.id] = complaint
            self.verdicts = found
        return self.verdicts

    def note(self, backup: str) -> None:
        """Write down what was found."""
        found = next(one for one in self.backups if one.id == backup)
        store.note(found, self.verify().get(backup))
