# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume on LIO: its file or logical volume, its backstore and its target, seen as one thing.

Our mark is with the data (a file's attribute, a logical volume's tags) and names the target.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from . import _units
from . import _volume_file as files
from . import _volume_rules as rules
from ._errors import Refused, Unreachable
from ._files import locked
from ._lvm import Lvm
from ._target_lio import DIRECTORY, LUN, Chap, Lio, Target
from ._volume_lvm import LvmStore

Volume = Mapping[str, Any]
Change = tuple[str, Callable[[], object]]
MARKS = ("name", "iqn", "owner", "vm_uuid")
ALL_ADDRESSES = ["0.0.0.0:3260"]
# What puts the saved targets in the place of those that are there, and takes all away when it is stopped.
SERVICE = "rtslib-fb-targetctl.service"
NAMESPACE = uuid.UUID("0f7a3c0e-5d0e-5b0c-8f5b-3b1a2f8a6a11")


def check_restored() -> None:
    """Raise Unreachable while the service starts or stops, or is about to: what LIO has then is not what it serves.

    It waits for addresses and devices first. Its initiators are not logged in meanwhile, and what is made then is
    cleared away when it restores what it has read.
    """
    if how := _units.changing(SERVICE):
        raise Unreachable(
            f"{SERVICE} is {how} just now, and LIO does not have all targets; run this again when it is done "
            f"(systemctl status {SERVICE})"
        )


class Server:
    """LIO and LVM of this machine, for one run."""

    def __init__(self, directory: str) -> None:
        self.lio = Lio(directory)
        self.lvm = Lvm()

    @classmethod
    @contextmanager
    def locked(cls, directory: str | None) -> Iterator[Server]:
        """One run at a time changes the volumes of a machine."""
        with locked(Path(directory or DIRECTORY), "is python3-rtslib-fb installed (role san_target)?"):
            check_restored()
            yield cls(directory or DIRECTORY)


class FileStore:
    """The file behind one volume; `others` are the files of those that LIO has."""

    plugin = "fileio"

    def __init__(self, name: str, asked: Volume, others: Mapping[str, str]) -> None:
        self.name, self.asked, self.others = name, asked, others
        self.origin: str | None = None
        self.path = str(asked["path"] or Path(asked["directory"], f"{name}.img"))

    def look(self) -> dict[str, Any] | None:
        """Size in bytes and our mark; None when there is no file. Raises Refused, Invalid."""
        rules.refuse_options(self.name, self.asked, "store file", ("vg", "thin_pool"))
        return files.look(files.inside(self.path, self.asked["directory"]))

    def plan(self, have: int, size: int | None) -> int:
        """The size that it will have, which is the one asked for, or that of what it is a copy of. Raises Refused."""
        origin = rules.origin_of(self.name, self.asked)
        if origin and not have:
            self.origin = self.others.get(origin)
            size = files.copy_size(self.name, origin, files.origin_size(self.name, origin, self.origin), size)
        if not have and not files.keeps_marks(self.path):
            raise Refused(f"the file system of {self.path} keeps no extended attributes; our mark is one (user_xattr)")
        return size or 0

    def make(self, size: int, mark: Mapping[str, Any], source: str | None) -> None:
        """The file with its content."""
        files.make(self.path, size, dict(mark), source, self.origin)

    def grow(self, size: int) -> None:
        """Make it bigger."""
        files.grow(self.path, size)

    def prepare(self) -> None:
        """A file is always there."""

    def set_mark(self, mark: Mapping[str, Any]) -> None:
        """Whose it is."""
        files.set_mark(self.path, dict(mark))

    def check_remove(self) -> None:
        """Nothing goes with a file."""

    def remove(self) -> None:
        """The file and what is in it."""
        os.unlink(self.path)


class LioVolume:
    """One volume; `asked` are the module's options. What its methods are for is told in docs/storage.md."""

    def __init__(self, server: Server, asked: Volume) -> None:
        self.lio, self.asked, self.name = server.lio, asked, str(asked["name"])
        others = {key[1]: one.path for key, one in self.lio.backstores().items() if key[0] == FileStore.plugin}
        self.store: FileStore | LvmStore = (
            FileStore(self.name, asked, others) if asked["store"] == "file" else LvmStore(server.lvm, self.name, asked)
        )
        self.path = self.store.path
        self.data = self.store.look()
        mark = self.saved
        prefix = asked["iqn_prefix"]
        self.iqn: str = asked["iqn"] or mark.get("iqn") or (f"{prefix}:{self.name}" if prefix else "")
        self.key = (self.store.plugin, self.name)

    @property
    def saved(self) -> dict[str, Any]:
        """Our mark on the data; empty when it is not ours."""
        mark = (self.data and self.data["mark"]) or {}
        return mark if mark.get("name") == self.name else {}

    @property
    def lost(self) -> bool:
        """Whether LIO, or the file that it is restored from at boot, has the volume, and its data is gone."""
        return self.data is None and (self.key in self.lio.backstores() or self.lio.remembers(*self.key))

    @property
    def has_data(self) -> bool:
        """Whether there is a file or logical volume already."""
        return self.data is not None

    def look(self) -> dict[str, Any] | None:
        """What LIO serves, completed by the mark; None when there is nothing. Raises Refused."""
        self.data = self.store.look()
        mark, target = self.saved, self.lio.targets().get(self.iqn)
        backstore = self.lio.backstores().get(self.key)
        rules.refuse_changed_identity(self.name, {**self.asked, "path": None}, mark)
        stays = self.asked["state"] == "absent" and not self.asked["remove_data"]
        if not target and not backstore and (self.data is None or stays) and self._forgotten():
            return None
        self._refuse_foreign(mark, target)
        return {
            "name": self.name,
            "iqn": self.iqn,
            "lun": LUN,
            "path": self.path,
            "size": self.data and self.data["size"],
            "owner": mark.get("owner"),
            "vm_uuid": mark.get("vm_uuid"),
            "saved": not self.iqn or self.lio.is_saved(self.iqn, *self.key),
            **self._served(target),
        }

    def _forgotten(self) -> bool:
        """Nothing of it would come back at boot."""
        return not self.iqn or self.lio.is_saved(self.iqn, *self.key)

    def _refuse_foreign(self, mark: Volume, target: Target | None) -> None:
        ours = bool(mark) or (self.data is None and (target is None or target.unit == self.key))
        rules.refuse_foreign_data(self.name, self.path, self.data, bool(mark))
        rules.refuse_foreign_target(self.name, self.iqn, ours)
        backstore = self.lio.backstores().get(self.key)
        if backstore and backstore.path not in ("", self.path):
            raise Refused(f"the backstore {self.name} serves {backstore.path}, not {self.path}; it is left alone")
        if target and target.unit not in (None, self.key):
            raise Refused(f"logical unit {LUN} of {self.iqn} is {target.unit[1]}, not {self.name}; it is left alone")

    def _served(self, target: Target | None) -> dict[str, Any]:
        backstore = self.lio.backstores().get(self.key)
        if target is None or target.unit is None or backstore is None:
            nothing = dict.fromkeys(("serial", "wwid", "chap_user", "readonly"))
            return {**nothing, "initiators": [], "portals": [], "exported": False, "online": False, "sessions": []}
        chap = target.chap
        served: dict[str, Any] = {
            "exported": True,
            "online": target.online,
            "serial": backstore.serial,
            "wwid": rules.lio_wwid(backstore.serial),
            "portals": target.portals,
            "initiators": sorted(target.rules),
            "chap_user": chap.user,
            "chap_password": chap.password or None,
            "mutual_chap_user": chap.mutual_user,
            "mutual_chap_password": chap.mutual_password or None,
            "readonly": target.readonly,
            "even": target.even,
            "sessions": target.sessions,
        }
        # What LIO serves counts, not what the file has: a growth may have been interrupted between the two.
        if self.data and backstore.plugin == "fileio":
            served["size"] = backstore.size
        return served

    def complete(self, wanted: dict[str, Any]) -> None:
        """Fill in what follows from the rest, and what is the default of a new volume."""
        wanted.update(saved=True, even=True, portals=wanted["portals"] or list(ALL_ADDRESSES))
        if wanted["readonly"] is None:
            wanted["readonly"] = bool(self.asked["snapshot_of"])
        wanted["serial"] = wanted["serial"] or str(uuid.uuid5(NAMESPACE, self.iqn))
        wanted["wwid"] = rules.lio_wwid(wanted["serial"])

    def size(self, have: int, size: int | None) -> int:
        """The size that the volume will have for the size that is asked for. Raises Invalid, NotFound, Refused."""
        return self.store.plan(have, size)

    def check(self, wanted: Volume, have: Volume, batch: Sequence[Volume]) -> None:
        """What LIO can't do, or what would lose something. Raises Invalid or Refused."""
        rules.refuse_on_lio(wanted)
        others = {key[1]: item.serial for key, item in self.lio.backstores().items() if key != self.key and item.serial}
        present = (item for item in batch if item["state"] == "present" and item["name"] != self.name)
        planned = {item["name"]: item["serial"] for item in present if item["serial"]}
        rules.refuse_same_wwid(wanted, {**planned, **others})
        if have.get("exported") and wanted["serial"] != have["serial"]:
            raise Refused(f"{self.name} has serial {have['serial']}; LIO changes it only when nothing is exported")
        rules.refuse_ending_sessions(self.name, wanted, have, kicks=True)

    def changes(self, before: Volume | None, wanted: Volume) -> list[Change]:
        """From the data to the target; it goes online last."""
        have = before or {}
        made, new = have.get("size") is None, not have.get("exported")
        changes = self._making(wanted) if made else self._data_changes(have, wanted)
        if new:
            changes.append((f"export it as {self.iqn}", lambda: self._export(wanted)))
        fresh: Volume = {"portals": [], "initiators": [], "chap_user": None, "even": True, "readonly": False}
        changes += self._target_changes(fresh if new else have, wanted)
        if changes or not have["saved"]:
            changes.append((f"save it in {self.lio.file}", self._save))
        return changes

    def _mark(self, volume: Volume) -> dict[str, Any]:
        return {key: volume[key] for key in MARKS}

    def _making(self, wanted: Volume) -> list[Change]:
        origin = self.asked["source"] or self.asked["clone_of"] or self.asked["snapshot_of"]
        text = f"make {self.path} with {wanted['size']} bytes" + (f" from {origin}" if origin else "")
        return [(text, lambda: self.store.make(wanted["size"], self._mark(wanted), self.asked["source"]))]

    def _data_changes(self, before: Volume, wanted: Volume) -> list[Change]:
        changes: list[Change] = []
        if before["size"] != wanted["size"]:
            changes.append((f"grow it to {wanted['size']} bytes", lambda: self._grow(wanted["size"])))
        mark = {**dict.fromkeys(MARKS), **self.saved}
        if mark != self._mark(wanted):
            words = ", ".join(f"{key} {wanted[key]}" for key in MARKS[1:] if mark[key] != wanted[key])
            changes.append((f"mark it with {words}", lambda: self.store.set_mark(self._mark(wanted))))
        return changes

    def _grow(self, size: int) -> None:
        self.store.grow(size)
        if self.store.plugin == "fileio" and self.key in self.lio.backstores():
            self.lio.resize_file(self.name, size)

    def _export(self, wanted: Volume) -> None:
        self.store.prepare()
        plugin, name = self.key
        self.lio.make_backstore(plugin, name, self.path, wanted["size"], wanted["serial"])
        self.lio.export(self.iqn, plugin, name)

    def _target_changes(self, before: Volume, wanted: Volume) -> list[Change]:
        changes: list[Change] = []
        chap, old = _chap(wanted), _chap(before)
        if before["chap_user"] is None or chap != old or not before["even"]:
            same = chap.user == old.user and chap.user
            text = f"set the CHAP secret of {chap.user}" if same else f"ask for CHAP of {chap.user or 'nobody'}"
            changes.append((text, lambda: self.lio.set_chap(self.iqn, chap)))
        if before["readonly"] != wanted["readonly"] or not before["even"]:
            text = "write-protect it" if wanted["readonly"] else "allow writing"
            changes.append((text, lambda: self.lio.set_readonly(self.iqn, wanted["readonly"])))
        if before["portals"] != wanted["portals"]:
            text = f"listen on {', '.join(wanted['portals'])}"
            changes.append((text, lambda: self.lio.set_portals(self.iqn, wanted["portals"])))
        if before["initiators"] != wanted["initiators"]:
            text = f"let in {', '.join(wanted['initiators']) or 'nobody'}"
            changes.append((text, lambda: self.lio.set_initiators(self.iqn, wanted["initiators"])))
        if not before.get("online"):
            changes.append(("put it online", lambda: self.lio.set_online(self.iqn)))
        return changes

    def _save(self) -> None:
        self.lio.save(self.iqn, *self.key)

    def removal(self, before: Volume) -> list[Change]:
        """The changes that take it away; the data, with our mark, goes last and only when asked for."""
        changes: list[Change] = []
        if target := self.lio.targets().get(self.iqn):
            rules.refuse_other_units(self.name, self.iqn, target.others)
            changes.append((f"remove the target {self.iqn}", lambda: self.lio.delete_target(self.iqn)))
        if self.key in self.lio.backstores():
            changes.append((f"remove the backstore {self.name}", lambda: self.lio.delete_backstore(*self.key)))
        if changes or not before["saved"]:
            changes.append((f"remove it from {self.lio.file}", self._save))
        if self.asked["remove_data"] and self.data is not None:
            self.store.check_remove()
            changes.append((f"delete {self.path} and what is in it", self.store.remove))
        return changes


def _chap(volume: Volume) -> Chap:
    keys = ("chap_user", "chap_password", "mutual_chap_user", "mutual_chap_password")
    return Chap(*(volume.get(key) or "" for key in keys))
