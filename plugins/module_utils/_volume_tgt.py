# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume on tgt: its file, its target in tgtd, and its file in tgt's configuration, seen as one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

from . import _volume_file as files
from . import _volume_rules as rules
from ._errors import Invalid, Refused
from ._target_tgt import LUN, Target, megabytes
from ._target_tgt_conf import Store, render

Volume = Mapping[str, Any]
Change = tuple[str, Callable[[], object]]
FRESH = {"serial": None, "online": True, "readonly": False, **dict.fromkeys(("chap_user", "mutual_chap_user"), "")}
FRESH = {**FRESH, **dict.fromkeys(("chap_password", "mutual_chap_password"))}
MARKS = ("name", "owner", "vm_uuid")
LIO_ONLY = ("store", "vg", "thin_pool")
KEPT = ("serial", "chap_user", "chap_password", "mutual_chap_user", "mutual_chap_password")


class TgtVolume:
    """One volume; `asked` are the module's options."""

    def __init__(self, store: Store, asked: Volume) -> None:
        self.store, self.asked, self.name = store, asked, str(asked["name"])
        self.tgt = store.tgt
        self.others = store.volumes()
        self.saved = self.others.pop(self.name, {})
        self.file: dict[str, Any] | None = None
        self.target: Target | None = None
        self.origin: str | None = None
        prefix = asked["iqn_prefix"]
        self.iqn: str = asked["iqn"] or self.saved.get("iqn") or (f"{prefix}:{self.name}" if prefix else "")
        path = asked["path"] or self.saved.get("path") or Path(asked["directory"], f"{self.name}.img")
        self.path = str(path)

    def look(self) -> dict[str, Any] | None:
        """What tgtd serves, completed by what our files say of it; None when there is nothing. Raises Refused."""
        self.others = self.store.volumes()
        saved = self.saved = self.others.pop(self.name, {})
        self.file = files.look(files.inside(self.path, self.asked["directory"]))
        self.target = self.tgt.targets().get(self.iqn)
        mark = (self.file and self.file["mark"]) or saved
        rules.refuse_changed_identity(self.name, self.asked, {**mark, **saved})
        stays = self.asked["state"] == "absent" and not self.asked["remove_data"]
        if not saved and self.target is None and (self.file is None or stays):
            return None
        rules.refuse_foreign_data(self.name, self.path, self.file, bool(saved))
        served = self.target.luns[LUN].path if self.target and LUN in self.target.luns else None
        rules.refuse_foreign_target(self.name, self.iqn, bool(saved) or self.target is None or served == self.path)
        return {
            "name": self.name,
            "iqn": self.iqn,
            "lun": LUN,
            "path": self.path,
            "size": self.file and self.file["size"],
            "owner": mark.get("owner"),
            "vm_uuid": mark.get("vm_uuid"),
            "portals": self.portals(),
            **(self._served() or self._not_served()),
        }

    @property
    def has_data(self) -> bool:
        """Whether there is a file already."""
        return self.file is not None

    @property
    def lost(self) -> bool:
        """Whether the volume was made and its file is gone."""
        return bool(self.saved) and self.file is None

    def portals(self) -> list[str]:
        """Where tgtd answers: the same for all its targets."""
        return self.store.portals()

    def size(self, have: int, size: int | None) -> int:
        """The size that the volume will have for the size that is asked for. Raises Invalid, NotFound, Refused."""
        origin = rules.origin_of(self.name, self.asked)
        if origin and not self.has_data:
            self.origin = self.others.get(origin, {}).get("path")
            size = files.copy_size(self.name, origin, files.origin_size(self.name, origin, self.origin), size)
        return size or 0

    def complete(self, wanted: dict[str, Any]) -> None:
        """Fill in what follows from the rest, and what is the default of a new volume."""
        # A run that was cut off while access was closed leaves nobody allowed; what was saved is meant then.
        if not wanted["initiators"] and self.asked["initiators"] is None:
            wanted["initiators"] = list(self.saved.get("initiators", []))
        wanted["serial"] = wanted["serial"] or rules.serial_of(self.iqn)
        if wanted["readonly"] is None:
            wanted["readonly"] = bool(self.asked["snapshot_of"])
        wanted["wwid"] = rules.tgt_wwid(wanted["serial"])
        wanted["portals"] = wanted["portals"] or self.portals()

    def check(self, wanted: Volume, have: Volume, batch: Sequence[Volume]) -> None:
        """What tgtd can't do, or what would lose something. Raises Invalid or Refused."""
        asked, targets = self.asked, self.tgt.targets().values()
        rules.refuse_options(self.name, {**asked, "store": asked["store"] != "file"}, "backend tgt", LIO_ONLY)
        rules.refuse_other_portals(self.name, wanted["portals"], self.portals())
        if "-" in wanted["serial"]:
            raise Invalid(f"{self.name}: serial: tgtd takes hexadecimal digits without hyphens", option="serial")
        rules.refuse_same_serial(wanted, targets)
        rules.refuse_stolen_account(wanted, batch, self.others.values(), targets)
        if have.get("sessions") and wanted["serial"] != have["serial"]:
            users = ", ".join(item["initiator"] for item in have["sessions"])
            raise Refused(f"{self.name} is in use by {users}; its serial can't be changed", sessions=have["sessions"])
        rules.refuse_ending_sessions(self.name, wanted, have, kicks=False)

    def _not_served(self) -> dict[str, Any]:
        kept = {key: self.saved.get(key) for key in KEPT}
        kept.update(wwid=None, readonly=self.saved.get("readonly"), initiators=list(self.saved.get("initiators", [])))
        return {**kept, "exported": False, "online": False, "sessions": []}

    def _served(self) -> dict[str, Any] | None:
        target = self.target
        if target is None or LUN not in target.luns or target.luns[LUN].path != self.path:
            return None
        lun, user = target.luns[LUN], ",".join(target.accounts)
        served: dict[str, Any] = {
            "exported": True,
            "online": target.online,
            "serial": lun.serial,
            "wwid": rules.tgt_wwid(lun.serial),
            "initiators": target.initiators,
            "chap_user": user,
            "chap_password": self.saved.get("chap_password") if self.saved.get("chap_user") == user else None,
            "mutual_chap_user": target.outgoing,
            "mutual_chap_password": self.saved.get("mutual_chap_password")
            if self.saved.get("mutual_chap_user") == target.outgoing
            else None,
            "readonly": lun.readonly,
            "sessions": [{"initiator": item.initiator, "address": item.address} for item in target.sessions],
        }
        # What tgtd serves counts, not what the file has: a growth may have been interrupted between the two.
        if self.file and megabytes(self.file["size"]) != lun.megabytes:
            served["size"] = lun.megabytes * 10**6
        return served

    def changes(self, before: Volume | None, wanted: Volume) -> list[Change]:
        """From the file to the target; who may log in comes last."""
        made = before is None or before["size"] is None
        new = before is None or not before["exported"]
        unsaved = self.store.text(self.name) != render(wanted)
        save: Change = (f"save it in {self.store.path(self.name)}", lambda: self.store.save(wanted))
        changes = self._making(wanted) if made else self._file_changes(before or {}, wanted)
        if new:
            # Saved first: a target that tgtd has and we did not save would not be known as ours.
            changes += [save] if unsaved else []
            changes.append((f"export it as {self.iqn}", lambda: self.tgt.export(self.iqn, self.path)))
        fresh: Volume = {**FRESH, "initiators": []}
        changes += self._target_changes(fresh if new else before or {}, wanted)
        return changes + ([save] if unsaved and not new else [])

    def _mark(self, volume: Volume) -> dict[str, Any]:
        return {key: volume[key] for key in MARKS}

    def _making(self, wanted: Volume) -> list[Change]:
        source = self.asked["source"]
        origin = source or self.asked["clone_of"] or self.asked["snapshot_of"]
        text = f"make {self.path} with {wanted['size']} bytes" + (f" from {origin}" if origin else "")
        return [(text, lambda: files.make(self.path, wanted["size"], self._mark(wanted), source, self.origin))]

    def _file_changes(self, before: Volume, wanted: Volume) -> list[Change]:
        changes: list[Change] = []
        if before["size"] != wanted["size"]:
            changes.append((f"grow it to {wanted['size']} bytes", lambda: self._grow(wanted["size"])))
        if self._mark(before) != self._mark(wanted):
            words = ", ".join(f"{key} {wanted[key]}" for key in MARKS[1:] if before[key] != wanted[key])
            changes.append((f"mark it with {words}", lambda: files.set_mark(self.path, self._mark(wanted))))
        return changes

    def _target_changes(self, before: Volume, wanted: Volume) -> list[Change]:
        changes: list[Change] = []
        if before["serial"] != wanted["serial"]:
            text = f"set its serial to {wanted['serial']}"
            changes.append((text, lambda: self.tgt.set_serial(self.iqn, wanted["serial"])))
        user, old = wanted["chap_user"], before["chap_user"]
        if user != old or before["chap_password"] != wanted["chap_password"]:
            text = f"set the CHAP secret of {user}" if user == old else f"ask for CHAP of {user or 'nobody'}"
            changes.append((text, lambda: self._set_account(old, wanted)))
        changes += self._mutual_changes(before, wanted)
        if before["readonly"] != wanted["readonly"]:
            text = "write-protect it" if wanted["readonly"] else "allow writing"
            changes.append((text, lambda: self.tgt.set_readonly(self.iqn, wanted["readonly"])))
        if before["initiators"] != wanted["initiators"]:
            text = f"let in {', '.join(wanted['initiators']) or 'nobody'}"
            changes.append((text, lambda: self.tgt.set_initiators(self.iqn, wanted["initiators"])))
        if not before["online"]:
            changes.append(("put it online", lambda: self.tgt.set_online(self.iqn, True)))
        return changes

    def _mutual_changes(self, before: Volume, wanted: Volume) -> list[Change]:
        user, old = wanted["mutual_chap_user"], before["mutual_chap_user"]
        if user == old and before["mutual_chap_password"] == wanted["mutual_chap_password"]:
            return []
        text = f"set its own CHAP secret of {user}" if user == old else f"answer to CHAP as {user or 'nobody'}"
        return [(text, lambda: self._set_outgoing(old, wanted))]

    def _set_outgoing(self, old: str, wanted: Volume) -> None:
        user, password = wanted["mutual_chap_user"], wanted["mutual_chap_password"]
        self.store.doubt(self.name)
        known = user and self._has_account(user, password, "mutual_")
        self.tgt.set_outgoing(self.iqn, user, None if known else password)
        self.tgt.delete_account(old)
        self.store.save(wanted)

    def _grow(self, size: int) -> None:
        files.grow(self.path, size)
        if self.target and LUN in self.target.luns:
            self.tgt.reopen_lun(self.iqn, self.path)

    def _set_account(self, old: str, wanted: Volume) -> None:
        user, password = wanted["chap_user"], wanted["chap_password"]
        self.store.doubt(self.name)
        if user and self._has_account(user, password):
            self.tgt.bind_account(self.iqn, user)
        else:
            self.tgt.set_account(self.iqn, user, password)
        for user in old.split(","):
            self.tgt.delete_account(user)
        self.store.save(wanted)

    def _has_account(self, user: str, password: str, kind: str = "") -> bool:
        """Whether tgtd has the account with this secret, as another volume of ours has it."""
        volumes = [item for name, item in self.store.volumes().items() if name != self.name]
        sharing = [item for item in volumes if item[f"{kind}chap_user"] == user]
        targets = [item for item in self.tgt.targets().values() if user in (*item.accounts, item.outgoing)]
        known = {item["iqn"] for item in sharing} & {target.iqn for target in targets}
        return bool(known) and all(item[f"{kind}chap_password"] == password for item in sharing)

    def removal(self, before: Volume) -> list[Change]:
        """The changes that take it away; the data only when asked for."""
        conf = self.store.path(self.name)
        changes: list[Change] = []
        if self.target is not None:
            others = {str(lun.number): lun.path for lun in self.target.luns.values() if lun.number not in (0, LUN)}
            rules.refuse_other_units(self.name, self.iqn, others)
            changes.append((f"remove the target {self.iqn}", lambda: self.tgt.delete_target(self.iqn)))
        for user in filter(None, (before["chap_user"], before["mutual_chap_user"])):
            text = f"remove the CHAP user {user} unless another volume has it"
            changes.append((text, partial(self.tgt.delete_account, user)))
        if self.asked["remove_data"] and self.file is not None:
            changes.append((f"delete {self.path} and what is in it", Path(self.path).unlink))
        if self.saved:
            # The last one: without it a run that was interrupted would no longer know that the rest is ours.
            changes.append((f"remove {conf}", lambda: self.store.forget(self.name)))
        return changes
