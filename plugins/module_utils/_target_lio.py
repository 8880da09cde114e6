# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of LIO, the target in the Linux kernel: verbs in, plain data out. The only file that imports rtslib.

Each target has one portal group, and in it one logical unit. The group's own CHAP attributes are read by the kernel
only for initiators without an access rule, which are never let in. So they hold what all rules of the target shall
have, also while there is no rule. Its `prod_mode_write_protect` does the same for the write protection.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ._errors import Failed, NotFound, Refused
from ._files import replace_file

try:
    import rtslib_fb as rtslib
except ImportError:
    rtslib = None

DIRECTORY = "/etc/rtslib-fb-target"
GROUP = 1
LUN = 1
CHAP = ("userid", "password", "mutual_userid", "mutual_password")
# Only initiators with a rule of their own come in. CHAP is asked for from the first moment on.
CLOSED = {"generate_node_acls": 0, "cache_dynamic_acls": 0, "demo_mode_write_protect": 1, "authentication": 1}


@dataclass(frozen=True)
class Chap:
    """What an initiator must say, and what the target says in return; all empty: no CHAP."""

    user: str = ""
    password: str = ""
    mutual_user: str = ""
    mutual_password: str = ""


@dataclass(frozen=True)
class Backstore:
    """What stands behind a logical unit. `size` in bytes as LIO serves it."""

    plugin: str
    name: str
    path: str
    size: int
    serial: str


@dataclass(frozen=True)
class Rule:
    """An access rule: its CHAP, whether the unit is write-protected (None: not mapped), the address logged in from."""

    chap: Chap
    readonly: bool | None
    sessions: tuple[str, ...] = ()


@dataclass
class Target:
    """A target; `unit` is (plugin, name) of the backstore behind the logical unit.

    `others` are the logical units that it has beside that one: what is behind each, by its number.
    """

    iqn: str
    online: bool = False
    asks_chap: bool = True
    chap: Chap = Chap()
    readonly: bool = False
    unit: tuple[str, str] | None = None
    portals: list[str] = field(default_factory=list)
    rules: dict[str, Rule] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    @property
    def sessions(self) -> list[dict[str, str]]:
        """Who is logged in; of an initiator with several sessions LIO shows the newest."""
        return [{"initiator": name, "address": at} for name, rule in self.rules.items() for at in rule.sessions]

    @property
    def even(self) -> bool:
        """Whether all rules have the group's CHAP and write protection."""
        asks = self.asks_chap == bool(self.chap.user)
        return asks and all((rule.chap, rule.readonly) == (self.chap, self.readonly) for rule in self.rules.values())


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (rtslib.RTSLibError, OSError) as error:
        raise Failed(f"LIO could not {what}: {error}") from None


class Lio:
    """LIO on this machine. Every method raises Failed with the words of rtslib or the kernel."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self.file = Path(directory, "saveconfig.json")
        if rtslib is None:
            raise NotFound("rtslib is not installed on this machine (package python3-rtslib-fb, role san_target)")
        with _translated("be reached; are its kernel modules there, and does this run as root?"):
            self._root = rtslib.RTSRoot()
        self._fabric = rtslib.FabricModule("iscsi")
        self._targets: dict[str, Target] | None = None
        self._backstores: dict[tuple[str, str], Backstore] | None = None
        self._saved: dict[str, Any] | None = None

    def backstores(self) -> dict[tuple[str, str], Backstore]:
        """All backstores by plugin and name, as they were after the last change that was made here."""
        if self._backstores is None:
            found = [_backstore(item) for item in self._root.storage_objects]
            self._backstores = {(item.plugin, item.name): item for item in found}
        return self._backstores

    def targets(self) -> dict[str, Target]:
        """All targets by IQN, as they were after the last change that was made here."""
        if self._targets is None:
            self._targets = {found.wwn: _target(found) for found in self._fabric.targets}
        return self._targets

    def make_backstore(self, plugin: str, name: str, path: str, size: int, serial: str) -> None:
        """A backstore of a file (`fileio`) or a block device (`block`); one that nobody uses yet is made anew."""
        with self._changing(f"use {path}", backstore=(plugin, name)):
            self._delete(self._object(plugin, name))
            # Without a write cache in between: what an initiator was told is written, is on the disk.
            if plugin == "fileio":
                rtslib.FileIOStorageObject(name, dev=path, size=size, wwn=serial, write_back=False)
            else:
                rtslib.BlockStorageObject(name, dev=path, wwn=serial)

    def delete_backstore(self, plugin: str, name: str) -> None:
        """The backstore; the data stays."""
        with self._changing(f"delete the backstore {name}", backstore=(plugin, name)):
            self._delete(self._object(plugin, name))

    def resize_file(self, name: str, size: int) -> None:
        """Serve the grown file's size; a block device's is followed by LIO itself. Sessions go on."""
        with self._changing(f"grow {name}", backstore=("fileio", name)):
            Path(self._object("fileio", name).path, "control").write_text(f"fd_dev_size={size}", encoding="ascii")

    def export(self, iqn: str, plugin: str, name: str) -> None:
        """A target, offline, whose logical unit is the backstore. It lets nobody in yet."""
        with self._changing(f"make the target {iqn}", target=iqn):
            group = rtslib.TPG(rtslib.Target(self._fabric, iqn), GROUP)
            for attribute, value in CLOSED.items():
                group.set_attribute(attribute, value)
            for unit in [unit for unit in group.luns if unit.lun == LUN]:
                unit.delete()
            rtslib.LUN(group, LUN, self._object(plugin, name))

    def set_portals(self, iqn: str, portals: Sequence[str]) -> None:
        """Answer on these and no others. Sessions that exist go on."""
        # The kernel binds a port on all addresses, or on some of them: also not for different targets on both.
        with self._changing(f"listen on {', '.join(portals)} (are they on this machine, and free?)", target=iqn):
            group = self._group(iqn)
            extra = [item for item in group.network_portals if _portal(item) not in portals]
            # All addresses and one of them can't be bound at the same time.
            wide = any(_is_wide(portal) for portal in (*portals, *map(_portal, extra)))
            for item in extra if wide else []:
                item.delete()
            for portal in portals:
                address, _colon, port = portal.rpartition(":")
                rtslib.NetworkPortal(group, address, int(port), "any")
            for item in extra if not wide else []:
                item.delete()

    def set_chap(self, iqn: str, chap: Chap) -> None:
        """What all initiators of the target must say at their next login. Sessions that exist go on."""
        with self._changing(f"set the CHAP secrets of {iqn}", target=iqn):
            group = self._group(iqn)
            if chap.user:
                group.set_attribute("authentication", 1)
            for place in (group, *group.node_acls):
                _put_chap(place, chap)
            if not chap.user:
                group.set_attribute("authentication", 0)

    def set_readonly(self, iqn: str, readonly: bool) -> None:
        """Write-protect the logical unit for all initiators, or not."""
        with self._changing(f"set the write protection of {iqn}", target=iqn):
            group = self._group(iqn)
            group.set_attribute("prod_mode_write_protect", int(readonly))
            for rule in group.node_acls:
                _map(rule, readonly)

    def set_initiators(self, iqn: str, initiators: Sequence[str]) -> None:
        """Let in these and no others. Raises Refused when one would go that is logged in."""
        with self._changing(f"set who may log in to {iqn}", target=iqn):
            group = self._group(iqn)
            target = self._target(iqn)
            rules = {rule.node_wwn: rule for rule in group.node_acls}
            for name in sorted(rules.keys() - set(initiators)):
                if rules[name].session:
                    raise Refused(f"{name} is logged in to {iqn}; LIO would end its session", initiator=name)
                rules[name].delete()
            for name in initiators:
                rule = rtslib.NodeACL(group, name)
                _put_chap(rule, target.chap)
                _map(rule, target.readonly)

    def set_online(self, iqn: str) -> None:
        """Accept logins."""
        with self._changing(f"enable {iqn}", target=iqn):
            self._group(iqn).enable = True

    def delete_target(self, iqn: str) -> None:
        """Raises Refused when somebody is logged in: no login is possible between the look and the deletion."""
        with self._changing(f"delete the target {iqn}", target=iqn):
            portals = self.targets()[iqn].portals
            for portal in self._group(iqn).network_portals:
                portal.delete()
            users = self._target(iqn).sessions
            if users:
                self.set_portals(iqn, portals)
                names = ", ".join(item["initiator"] for item in users)
                raise Refused(f"{iqn} is in use by {names}; it is not deleted", sessions=users)
            rtslib.Target(self._fabric, iqn, "lookup").delete()

    def is_saved(self, iqn: str, plugin: str, name: str) -> bool:
        """Whether the target and its backstore come back after a reboot as they are now (or stay away)."""
        try:
            running = self._running(iqn, plugin, name)
        except Failed:  # left half made by a run that was killed: nothing that could be saved
            return False
        return bool(_sorted(self._parts(self.saved(), iqn, plugin, name)) == _sorted(running))

    def remembers(self, plugin: str, name: str) -> bool:
        """Whether the backstore is in the file that is restored at boot."""
        return bool(self._parts(self.saved(), "", plugin, name)["storage_objects"])

    def save(self, iqn: str, plugin: str, name: str) -> None:
        """Write the target and its backstore, as they are now, to the file that is restored at boot; no others."""
        saved = {"fabric_modules": [], **self.saved()}
        mine, now = self._parts(saved, iqn, plugin, name), self._running(iqn, plugin, name)
        for part, items in now.items():
            saved[part] = [item for item in saved.get(part, []) if item not in mine[part]] + items
        replace_file(self.file, (json.dumps(saved, sort_keys=True, indent=2) + "\n").encode())
        self._saved = saved

    def saved(self) -> dict[str, Any]:
        """What the file holds that is restored at boot; nobody else of us changes it while this runs."""
        if self._saved is None:
            try:
                self._saved = json.loads(self.file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                self._saved = {}
            except (OSError, ValueError) as error:
                raise Failed(f"{self.file} can't be read: {error}; mend it, or nothing comes back at boot") from None
        return dict(self._saved or {})

    def _parts(self, config: Mapping[str, Any], iqn: str, plugin: str, name: str) -> dict[str, list[Any]]:
        stores = config.get("storage_objects", [])
        return {
            "storage_objects": [item for item in stores if (item.get("plugin"), item.get("name")) == (plugin, name)],
            "targets": [item for item in config.get("targets", []) if item.get("wwn") == iqn],
        }

    def _running(self, iqn: str, plugin: str, name: str) -> dict[str, list[Any]]:
        with _translated(f"tell how {name} is set up"):
            stores = [self._object(plugin, name)] if (plugin, name) in self.backstores() else []
            targets = [rtslib.Target(self._fabric, iqn, "lookup")] if iqn in self.targets() else []
            dumped = {"storage_objects": [item.dump() for item in stores], "targets": [item.dump() for item in targets]}
        return {part: json.loads(json.dumps(items)) for part, items in dumped.items()}

    @contextmanager
    def _changing(self, what: str, target: str = "", backstore: tuple[str, str] | None = None) -> Iterator[None]:
        """Afterwards only what was changed is read again: a list for each volume would take their square."""
        # Both lists exist before the change, so that what it made is told from what was there.
        targets, backstores = self.targets(), self.backstores()
        try:
            with _translated(what):
                yield
        finally:
            if target:
                targets.pop(target, None)
                with suppress(rtslib.RTSLibError):
                    targets[target] = self._target(target)
            if backstore:
                backstores.pop(backstore, None)
                found = self._object(*backstore)
                if found is not None:
                    backstores[backstore] = _backstore(found)

    @staticmethod
    def _delete(backstore: Any) -> None:
        """rtslib itself would take the units of all targets with it."""
        if backstore is None:
            return
        if any(True for _unit_of in backstore.attached_luns):
            raise Refused(f"the backstore {backstore.name} is a logical unit of a target that is not ours")
        backstore.delete()

    def _target(self, iqn: str) -> Target:
        return _target(rtslib.Target(self._fabric, iqn, "lookup"))

    def _group(self, iqn: str) -> Any:
        return rtslib.TPG(rtslib.Target(self._fabric, iqn, "lookup"), GROUP, "lookup")

    def _object(self, plugin: str, name: str) -> Any:
        kind = rtslib.FileIOStorageObject if plugin == "fileio" else rtslib.BlockStorageObject
        try:
            return kind(name)
        except rtslib.RTSLibNotInCFS:
            return None


def _sorted(value: Any) -> Any:
    """The same with every list in one order: configfs lists newest first, so each boot turns round what was saved."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=partial(json.dumps, sort_keys=True))
    return value


def _backstore(found: Any) -> Backstore:
    """One that a killed run left half made has no path, no size and no serial."""
    if not found.is_configured() or found.plugin not in ("block", "fileio"):
        return Backstore(found.plugin, found.name, "", 0, "")
    return Backstore(found.plugin, found.name, found.udev_path, found.size, found.wwn)


def _target(found: Any) -> Target:
    group = next((group for group in found.tpgs if group.tag == GROUP), None)
    if group is None:
        return Target(found.wwn, others=_others(found))
    return Target(
        iqn=found.wwn,
        online=group.enable,
        asks_chap=group.get_attribute("authentication") == "1",
        chap=_chap(group),
        readonly=group.get_attribute("prod_mode_write_protect") == "1",
        unit=next((_unit(unit) for unit in group.luns if unit.lun == LUN), None),
        portals=sorted(_portal(item) for item in group.network_portals),
        rules={rule.node_wwn: _rule(rule) for rule in group.node_acls},
        others=_others(found),
    )


def _others(found: Any) -> dict[str, str]:
    """The units that are not ours; also of portal groups that are not."""
    units = [(group.tag, unit) for group in found.tpgs for unit in group.luns]
    return {
        f"{unit.lun}" if tag == GROUP else f"{unit.lun} of group {tag}": (_unit(unit) or ("", "broken"))[1]
        for tag, unit in units
        if (tag, unit.lun) != (GROUP, LUN)
    }


def _unit(unit: Any) -> tuple[str, str] | None:
    try:
        return unit.storage_object.plugin, unit.storage_object.name
    except rtslib.RTSLibBrokenLink:  # left by a run that was killed
        return None


def _rule(rule: Any) -> Rule:
    session = rule.session
    at = tuple(item.get("address", "") for item in session["connections"]) or ("",) if session else ()
    mapped = next((item for item in rule.mapped_luns if item.mapped_lun == LUN and _is_whole(item)), None)
    return Rule(_chap(rule), None if mapped is None else mapped.write_protect, at)


def _is_whole(mapped: Any) -> bool:
    try:
        return bool(mapped.alias)
    except rtslib.RTSLibBrokenLink:  # left by a run that was killed
        return False


def _portal(found: Any) -> str:
    return f"{found.ip_address}:{found.port}"


def _is_wide(portal: str) -> bool:
    return ipaddress.ip_address(portal.rpartition(":")[0].strip("[]")).is_unspecified


def _chap(place: Any) -> Chap:
    return Chap(*(getattr(place, f"chap_{key}") or "" for key in CHAP))


def _put_chap(place: Any, chap: Chap) -> None:
    for key, value in zip(CHAP, (chap.user, chap.password, chap.mutual_user, chap.mutual_password)):
        if (getattr(place, f"chap_{key}") or "") != value:
            setattr(place, f"chap_{key}", value)


def _map(rule: Any, readonly: bool) -> None:
    """The logical unit for the initiator, under its own number."""
    for mapped in [item for item in rule.mapped_luns if item.mapped_lun == LUN]:
        if _is_whole(mapped):
            mapped.write_protect = readonly
            return
        mapped.delete()
    rtslib.MappedLUN(rule, LUN, LUN, readonly)
