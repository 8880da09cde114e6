# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second folder with the same backups of a VM: each is copied whole, and proved there, before it has its name.

What the first folder has lost is not removed from the second: each keeps its own last good histories.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from .._disks.template import sync
from .._errors import Failed, Refused
from .._files import replace_file
from . import store
from .shelf import Shelf
from .store import Backup
from .taking import SPARE, check_room


class Copies(Shelf):
    """The copies of the backups of one VM in a second folder; `source` are those of the first."""

    def __init__(self, root: Path, vm: str, keep: int, source: Shelf) -> None:
        super().__init__(root, vm, keep)
        self.source = source

    def lacking(self) -> list[Backup]:
        """The good backups of the first folder that are not here, or not good here; the oldest first.

        One whose history would go at once is left out. Raises Refused for one that is here and is another.
        """
        here = {one.id: one for one in self.backups}
        good = [one for one in self.source.backups if one.complaint is None]
        gone = {one.id for history in self._after() for one in history}
        for one in good:
            twin = here.get(one.id)
            if twin is not None and twin.complaint is None and not store.same(one, twin):
                raise Refused(f"{twin.folder} is no copy of {one.folder}, though both are whole; take another folder")
        return [one for one in good if one.id not in gone and (one.id not in here or here[one.id].complaint)]

    def surplus(self) -> list[list[Backup]]:
        """The histories here that are older than the last good ones that are here."""
        return store.surplus(self._own(self.backups), self.keep, coming=False)

    def outdated(self) -> list[list[Backup]]:
        """The histories here that go once all is copied."""
        here = {one.id: one for one in self.backups}
        found = [[here[one.id] for one in own if one.id in here] for own in self._after()]
        return [own for own in found if own]

    def _after(self) -> list[list[Backup]]:
        there = {one.id: one for one in self.backups}
        there.update({one.id: one for one in self.source.backups if one.complaint is None})
        return store.surplus(self._own([there[one] for one in sorted(there)]), self.keep, coming=False)

    def _own(self, backups: Sequence[Backup]) -> list[Backup]:
        """Those of the machine that has the name now, as the newest backup says; those of an older one all stay."""
        last = max([*self.source.backups, *self.backups], key=lambda one: one.id, default=None)
        return [one for one in backups if last is not None and one.uuid == last.uuid]

    def clear(self, folder: Path) -> None:
        """Delete what a killed run has begun."""
        with self.lock():
            if folder.exists():
                store.clear(folder)

    def bring(self, backup: Backup) -> None:
        """Copy one. Raises Failed, and nothing of it is left then."""
        place = self.root / self.vm
        if not place.is_dir():
            place.mkdir()
            place.chmod(0o711)
        check_room(self.root, backup.size + SPARE)
        with self.lock():
            part = place / f".{backup.id}.part"
            try:
                self._copy(backup, part)
                self._name(part, place / backup.id)
            except OSError as error:
                raise Failed(f"{backup.folder} can't be copied to {place}: {error.strerror}; run this again") from None
            finally:
                if part.exists():
                    store.clear(part)

    def _copy(self, backup: Backup, part: Path) -> None:
        part.mkdir(mode=0o700)
        replace_file(part / store.BEGUN, json.dumps({"id": backup.id, "vm": self.vm, "copy": True}).encode())
        names = [store.MANIFEST, store.SUMS, *backup.manifest["files"]]
        for name in names:
            shutil.copyfile(backup.folder / name, part / name)
            (part / name).chmod(0o600)
        sync([*(str(part / name) for name in names), str(part)])
        complaint = store.verify(Backup(part, backup.manifest))
        if complaint:
            raise Failed(
                f"the copy of {backup.id} in {self.root} is not good ({complaint}); it is not kept. See whether "
                f"{backup.folder} is (state: verified), and at the storage of both"
            )

    def _name(self, part: Path, folder: Path) -> None:
        damaged = next((one for one in self.look() if one.folder == folder), None)
        if damaged is not None:
            store.remove(damaged)
        (part / store.BEGUN).unlink()
        part.rename(folder)
        sync([str(folder.parent)])
        self.proven.add(folder.name)
