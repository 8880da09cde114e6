# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LIO and LVM for tests: what the module asks of rtslib and of LVM's commands, with a state, and their traps.

As rtslib: making what exists is an error, deleting a backstore takes the units of all targets with it, deleting an
access rule ends the session, and what a portal group holds is listed newest first, as configfs has it.
As LVM: sizes are whole extents, new space holds what was in it before.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CHAP = ("userid", "password", "mutual_userid", "mutual_password")
MIB = 2**20
ALL = str(ipaddress.IPv4Address(0))


class LioError(Exception):
    """RTSLibError."""


class NotInCFS(LioError):
    """RTSLibNotInCFS."""


class BrokenLink(LioError):
    """RTSLibBrokenLink."""


class Place:
    """A portal group or an access rule."""

    def __init__(self):
        self.attributes: dict[str, str] = {}
        for key in CHAP:
            setattr(self, f"chap_{key}", "")

    def set_attribute(self, name, value):
        self.attributes[name] = str(value)

    def get_attribute(self, name):
        return self.attributes[name]

    def dump(self):
        chap = {f"chap_{key}": getattr(self, f"chap_{key}") for key in CHAP if getattr(self, f"chap_{key}")}
        return {"attributes": dict(self.attributes), **chap}


class Kernel:
    """The state; `module` is what stands in for rtslib_fb. `addresses` are those of the machine."""

    def __init__(self, base: Path):
        self.base = base
        self.stores: dict[tuple[str, str], Any] = {}
        self.targets: dict[str, Any] = {}
        self.addresses = {ALL, "127.0.0.1", "127.0.0.2", "[::1]"}
        self.kicked: list[str] = []
        self.module = _module(self)

    def group(self, iqn):
        return self.targets[iqn].groups[1]

    def log_in(self, iqn, initiator, user="", password=""):
        """What the initiator may do: None when it is not let in, else whether it may write."""
        group = self.group(iqn)
        rule = group.rules.get(initiator)
        asked = group.get_attribute("authentication") == "1"
        if rule is None or not group.enable or not group.nps:
            return None
        if asked and ((rule.chap_userid, rule.chap_password) != (user, password) or not user):
            return None
        rule.at = "127.0.0.1"
        return not rule.maps[1].write_protect if 1 in rule.maps else None

    def log_out(self, iqn, initiator):
        self.group(iqn).rules[initiator].at = ""

    def restart(self, config):
        """A reboot: everything is gone but what is in the file."""
        self.stores.clear()
        self.targets.clear()
        lib = self.module
        for item in config["storage_objects"]:
            kind = lib.FileIOStorageObject if item["plugin"] == "fileio" else lib.BlockStorageObject
            more = {"size": item["size"]} if item["plugin"] == "fileio" else {}
            kind(item["name"], dev=item["dev"], wwn=item["wwn"], **more)
        for item in config["targets"]:
            group = lib.TPG(lib.Target(None, item["wwn"]), 1)
            _restore(lib, group, item["tpgs"][0])

    def state(self):
        """All of it, to compare."""
        return json.dumps([[item.dump() for item in kind.values()] for kind in (self.stores, self.targets)])


def _restore(lib, group, saved):
    group.attributes.update(saved["attributes"])
    for unit in saved["luns"]:
        lib.LUN(group, unit["index"], lib.by_path(unit["storage_object"]))
    for portal in saved["portals"]:
        lib.NetworkPortal(group, portal["ip_address"], portal["port"], "any")
    for rule in saved["node_acls"]:
        made = lib.NodeACL(group, rule["node_wwn"])
        for mapped in rule["mapped_luns"]:
            lib.MappedLUN(made, mapped["index"], mapped["tpg_lun"], mapped["write_protect"])
        for key in CHAP:
            setattr(made, f"chap_{key}", rule.get(f"chap_{key}", ""))
    for key in CHAP:
        setattr(group, f"chap_{key}", saved.get(f"chap_{key}", ""))
    group.enable = saved["enable"]


class Store:
    """FileIOStorageObject and BlockStorageObject: a name alone looks it up."""

    kernel: Kernel
    plugin: str

    def __new__(cls, name, dev=None, **_options):
        if dev is None:
            if (cls.plugin, name) not in cls.kernel.stores:
                raise NotInCFS(name)
            return cls.kernel.stores[cls.plugin, name]
        if (cls.plugin, name) in cls.kernel.stores:
            raise LioError(f"Storage object {cls.plugin}/{name} exists")
        return super().__new__(cls)

    def __init__(self, name, dev=None, size=None, wwn=None, write_back=False):
        if dev is None:
            return
        if not Path(dev).is_file():
            raise LioError(f"{dev} is no file or device")
        self.name, self.udev_path, self.wwn, self.configured = name, dev, wwn, True
        self.path = str(self.kernel.base / f"{self.plugin}_{name}")
        Path(self.path).mkdir(exist_ok=True)
        Path(self.path, "control").write_text(f"fd_dev_size={size}")
        self.kernel.stores[self.plugin, name] = self

    @property
    def size(self):
        if self.plugin == "block":
            return Path(self.udev_path).stat().st_size
        return int(Path(self.path, "control").read_text().partition("=")[2])

    @property
    def attached_luns(self):
        groups = [group for target in self.kernel.targets.values() for group in target.groups.values()]
        return (unit for group in groups for unit in list(group.units.values()) if unit.store is self)

    def is_configured(self):
        return self.configured

    def delete(self):
        for unit in list(self.attached_luns):
            unit.delete()
        del self.kernel.stores[self.plugin, self.name]

    def dump(self):
        if not self.configured:
            raise LioError("Cannot read a T10 WWN Unit Serial from an unconfigured StorageObject")
        shown = {"name": self.name, "plugin": self.plugin, "dev": self.udev_path, "wwn": self.wwn}
        return {**shown, "size": self.size} if self.plugin == "fileio" else shown


def _target_class(kernel):
    class Target:
        def __new__(cls, _fabric, wwn, mode="any"):
            if wwn in kernel.targets:
                return kernel.targets[wwn]
            if mode == "lookup":
                raise NotInCFS(wwn)
            if wwn.count(".") < 3:
                raise LioError("WWN not valid as: iqn, naa, eui")
            made = super().__new__(cls)
            made.wwn, made.groups = wwn, {}
            kernel.targets[wwn] = made
            return made

        @property
        def tpgs(self):
            return iter(list(self.groups.values()))

        def delete(self):
            for group in self.groups.values():
                kernel.kicked += [rule.node_wwn for rule in group.rules.values() if rule.at]
            del kernel.targets[self.wwn]

        def dump(self):
            return {"wwn": self.wwn, "fabric": "iscsi", "tpgs": [group.dump() for group in self.groups.values()]}

    return Target


class Group(Place):
    """TPG."""

    def __init__(self, target, tag):
        super().__init__()
        self.target, self.tag, self.enable = target, tag, False
        self.attributes = {"authentication": "0", "generate_node_acls": "0", "prod_mode_write_protect": "0"}
        self.units: dict[int, Any] = {}
        self.nps: dict[str, Any] = {}
        self.rules: dict[str, Any] = {}

    luns = property(lambda self: reversed(list(self.units.values())))
    network_portals = property(lambda self: reversed(list(self.nps.values())))
    node_acls = property(lambda self: reversed(list(self.rules.values())))

    def dump(self):
        parts = {"luns": self.luns, "portals": self.network_portals, "node_acls": self.node_acls}
        shown = {key: [item.dump() for item in items] for key, items in parts.items()}
        return {**super().dump(), "tag": self.tag, "enable": self.enable, **shown}


def _group(target, tag, mode="any"):
    if tag not in target.groups:
        if mode == "lookup":
            raise NotInCFS(tag)
        target.groups[tag] = Group(target, tag)
    return target.groups[tag]


class Unit:
    """LUN."""

    def __init__(self, group, number, store):
        if number in group.units:
            raise LioError("This LUN already exists in configFS")
        self.group, self.lun, self.store = group, number, store
        group.units[number] = self

    @property
    def storage_object(self):
        if self.store is None:
            raise BrokenLink("Broken LUN in configFS, no storage object")
        return self.store

    def delete(self):
        del self.group.units[self.lun]
        for rule in self.group.rules.values():
            rule.maps.pop(self.lun, None)

    def dump(self):
        store = self.storage_object
        return {"index": self.lun, "storage_object": f"/backstores/{store.plugin}/{store.name}"}


class Mapped:
    """MappedLUN."""

    def __init__(self, rule, number, unit, write_protect):
        if number in rule.maps:
            raise LioError("This MappedLUN already exists in configFS")
        if unit not in rule.group.units:
            raise LioError(f"LUN {unit} does not exist in this TPG")
        self.rule, self.mapped_lun, self.unit, self.write_protect, self.link = rule, number, unit, write_protect, "link"
        rule.maps[number] = self

    @property
    def alias(self):
        if not self.link:
            raise BrokenLink("Broken LUN in configFS, no storage object")
        return self.link

    def delete(self):
        del self.rule.maps[self.mapped_lun]

    def dump(self):
        shown = {"index": self.mapped_lun, "alias": self.alias, "tpg_lun": self.unit}
        return {**shown, "write_protect": self.write_protect}


class Rule(Place):
    """NodeACL."""

    def __init__(self, kernel, group, wwn):
        super().__init__()
        self.kernel, self.group, self.node_wwn, self.at = kernel, group, wwn, ""
        self.maps: dict[int, Any] = {}
        group.rules[wwn] = self

    mapped_luns = property(lambda self: iter(list(self.maps.values())))

    @property
    def session(self):
        return {"connections": [{"address": self.at}]} if self.at else None

    def delete(self):
        self.kernel.kicked += [self.node_wwn] if self.at else []
        del self.group.rules[self.node_wwn]

    def dump(self):
        mapped = [item.dump() for item in self.maps.values()]
        return {**super().dump(), "node_wwn": self.node_wwn, "mapped_luns": mapped}


class Portal:
    """NetworkPortal."""

    def __init__(self, group, address, port):
        self.group, self.ip_address, self.port = group, address, port

    def delete(self):
        del self.group.nps[f"{self.ip_address}:{self.port}"]

    def dump(self):
        return {"ip_address": self.ip_address, "port": self.port}


def _portal(kernel, group, address, port, _mode):
    known = group.nps.get(f"{address}:{port}")
    clash = (ALL in {item.ip_address for item in group.nps.values()}) != (address == ALL) and group.nps
    if known is None and (address not in kernel.addresses or clash):
        raise LioError("Could not create NetworkPortal in configFS")
    return group.nps.setdefault(f"{address}:{port}", Portal(group, address, port))


def _module(kernel):
    """The names of rtslib_fb that the module uses."""
    kinds = {plugin: type("Kind", (Store,), {"kernel": kernel, "plugin": plugin}) for plugin in ("fileio", "block")}
    return SimpleNamespace(
        RTSLibError=LioError,
        RTSLibNotInCFS=NotInCFS,
        RTSLibBrokenLink=BrokenLink,
        RTSRoot=lambda: SimpleNamespace(storage_objects=list(kernel.stores.values())),
        FabricModule=lambda _name: SimpleNamespace(targets=list(kernel.targets.values())),
        FileIOStorageObject=kinds["fileio"],
        BlockStorageObject=kinds["block"],
        Target=_target_class(kernel),
        TPG=_group,
        LUN=Unit,
        NetworkPortal=lambda *args: _portal(kernel, *args),
        NodeACL=lambda group, wwn: group.rules.get(wwn) or Rule(kernel, group, wwn),
        MappedLUN=Mapped,
        by_path=lambda path: kernel.stores[tuple(path.split("/")[2:])],
    )
