# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backups of one VM in one folder: looked at, read and proved, and removed when there are newer good ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path

from .._errors import Failed
from .._files import locked
from . import store
from .store import Backup


def age(backup: Backup) -> float:
    """The seconds since a backup was begun."""
    return (datetime.now(timezone.utc) - store.moment(backup.id)).total_seconds()


class Shelf:
    """`keep` is how many good histories stay."""

    def __init__(self, root: Path, vm: str, keep: int) -> None:
        self.root, self.vm, self.keep = root, vm, keep
        self.backups: list[Backup] = []
        self.verdicts: dict[str, str] | None = None
        self.proven: set[str] = set()

    def look(self) -> list[Backup]:
        """What is there now."""
        self.backups = store.read(self.root, self.vm)
        return self.backups

    def lock(self) -> AbstractContextManager[None]:
        """One run at a time, on whichever node, changes what is there."""
        return locked(self.root / self.vm, "mount the folder of backups", store.LOCK)

    def surplus(self) -> list[list[Backup]]:
        """The histories that go, the oldest first; none of a folder that is only read."""
        return []

    def remove(self, history: Sequence[Backup]) -> None:
        """Remove a history, once all that stays was read and is good. Raises Failed."""
        with self.lock():
            self.look()
            now = {one.id for gone in self.surplus() for one in gone}
            if not {one.id for one in history} <= now:
                raise Failed(
                    f"{history[0].history} stays: less than {self.keep} good histories would be left. See which are "
                    "damaged (playbook verify_backups), and make a new backup"
                )
            for backup in self.backups:
                if backup.id not in now and backup.complaint is None and backup.id not in self.proven:
                    self._prove(backup, history)
            gone = {one.id for one in history}
            for backup in reversed([one for one in self.backups if one.id in gone]):
                store.remove(backup)

    def _prove(self, backup: Backup, history: Sequence[Backup]) -> None:
        complaint = store.verify(backup)
        if complaint:
            store.note(backup, complaint)
            raise Failed(
                f"{backup.id} is damaged ({complaint}), so the older history {history[0].history} stays. Look at the "
                f"storage of {self.root}; when there are {self.keep} good histories again, the older ones go"
            )
        self.proven.add(backup.id)

    def verify(self) -> dict[str, str]:
        """What is wrong with which backup, by reading all of them, once.

        It takes no lock, which would hold up backups for hours: one that another run removes has lost its name first,
        and nothing is said of it then.
        """
        if self.verdicts is None:
            found: dict[str, str] = {}
            read: set[str] = set()
            for backup in self.backups:
                complaint = store.verify(backup)
                base = backup.manifest["base"]
                if complaint is None and base is not None and (base in found or base not in read):
                    complaint = f"{base}, on which it is based, is {'not good' if base in found else 'gone'}"
                read.add(backup.id)
                if complaint and store.is_there(backup):
                    found[backup.id] = complaint
            self.verdicts = found
        return self.verdicts

    def note(self, backup: str) -> None:
        """Write down what was found, unless it was removed meanwhile."""
        found = next(one for one in self.backups if one.id == backup)
        with self.lock():
            if store.is_there(found):
                store.note(found, self.verify().get(backup))
