# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices and folders of the node that a VM has; with one of them it can't move while it runs.

https://libvirt.org/formatdomain.html#usb-pci-scsi-devices, https://libvirt.org/kbase/virtiofs.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._blocks import Blocks
from .._disks.file import check_path, of_system
from .._errors import Refused
from .._fields import Field, between
from .._xml import Property, add_device, devices, drop, make
from .facts import hostdev_name, hostdev_options

ROOT = Path("/")
PCI = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])", re.ASCII)
USB_ID = re.compile(r"(?:0x)?([0-9a-fA-F]{4})", re.ASCII)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}", re.ASCII)  # virtio has 36 bytes for it
WAYS = {"pci": ({"address"},), "usb": ({"vendor", "product"}, {"bus", "device"})}


class Hostdevs:
    """PCI and USB devices of the node; others (mediated, SCSI) stay as they are."""

    def get(self, root: Element) -> list[dict[str, Any]] | None:
        """Type and address of each, or vendor and product; None without any."""
        return [options for _device, options in _hostdevs(root)] or None

    def put(self, root: Element, value: Sequence[Mapping[str, Any]]) -> None:
        """Write exactly these."""
        parent, missing = make(root, "devices"), [dict(one) for one in value]
        for device, options in list(_hostdevs(root)):
            if options in missing:
                missing.remove(options)
            else:
                drop(parent, device)
        for options in missing:
            if options["type"] == "usb":
                _give_usb(root)
            add_device(root, _new_hostdev(options))


def _hostdevs(root: Element) -> Iterator[tuple[Element, dict[str, Any]]]:
    for device in devices(root, "hostdev"):
        options = hostdev_options(device)
        if options is not None:
            yield device, options


def _new_hostdev(options: Mapping[str, Any]) -> Element:
    device = Element("hostdev", {"mode": "subsystem", "type": options["type"], "managed": "yes"})
    source = SubElement(device, "source")
    if options["type"] == "pci":
        numbers = re.split("[:.]", options["address"])
        names = ("domain", "bus", "slot", "function")
        SubElement(source, "address", {name: f"0x{number}" for name, number in zip(names, numbers)})
    elif "vendor" in options:
        for name in ("vendor", "product"):
            SubElement(source, name, {"id": f"0x{options[name]}"})
    else:
        SubElement(source, "address", {name: str(options[name]) for name in ("bus", "device")})
    return device


def _give_usb(root: Element) -> None:
    """A new VM is told to have no USB."""
    for controller in devices(root, "controller"):
        if controller.get("type") == "usb" and controller.get("model") == "none":
            controller.attrib.update({"index": "0", "model": "qemu-xhci"})


class Filesystems:
    """Folders of the node that the guest mounts by virtiofs; others (9p) stay as they are."""

    def get(self, root: Element) -> list[dict[str, str]] | None:
        """Folder and the name that the guest mounts; None without any."""
        return [options for _device, options in _filesystems(root)] or None

    def put(self, root: Element, value: Sequence[Mapping[str, str]]) -> None:
        """Write exactly these. virtiofs needs memory that its daemon shares; that stays when the folders go."""
        parent, missing = make(root, "devices"), [dict(one) for one in value]
        for device, options in list(_filesystems(root)):
            if options in missing:
                missing.remove(options)
            else:
                drop(parent, device)
        for options in missing:
            device = Element("filesystem", {"type": "mount", "accessmode": "passthrough"})
            SubElement(device, "driver", {"type": "virtiofs"})
            SubElement(device, "source", {"dir": options["source"]})
            SubElement(device, "target", {"dir": options["target"]})
            add_device(root, device)
        if missing:
            for path, word in (("memoryBacking/source/@type", "memfd"), ("memoryBacking/access/@mode", "shared")):
                Property(path).put(root, word)


def _filesystems(root: Element) -> Iterator[tuple[Element, dict[str, str]]]:
    for device in devices(root, "filesystem"):
        names = {"source": Property("source/@dir").get(device), "target": Property("target/@dir").get(device)}
        if Property("driver/@type").get(device) == "virtiofs" and all(names.values()):
            yield device, names


def check_there(before: Element | None, after: Element) -> None:
    """Raise Refused for what a definition gets and this node does not have, or needs itself."""
    for options in _new(HOSTDEVS, before, after):
        problem = _pci_problem(options["address"]) if options["type"] == "pci" else _usb_problem(options)
        if problem:
            raise Refused(f"hostdevs: {hostdev_name(options)}: {problem}", option="hostdevs")
    for options in _new(FILESYSTEMS, before, after):
        folder = ROOT / options["source"].lstrip("/")
        if of_system(Path(os.path.realpath(options["source"])), False):
            raise Refused(f"filesystems: {options['source']} belongs to the operating system", option="filesystems")
        if not folder.is_dir():
            raise Refused(f"filesystems: this node has no folder {options['source']}", option="filesystems")


def _new(place: Hostdevs | Filesystems, before: Element | None, after: Element) -> list[dict[str, Any]]:
    old = [] if before is None else place.get(before) or []
    return [options for options in place.get(after) or [] if options not in old]


def _pci_problem(address: str) -> str | None:
    """Why a PCI device can't be given away: libvirt would take it from the node without a question."""
    folder = ROOT / "sys/bus/pci/devices" / address
    if not folder.exists():
        return "this node has none at that address (lspci -D shows them)"
    if not (folder / "iommu_group").exists():
        return "it has no IOMMU group; turn the IOMMU on in the node's firmware and kernel (intel_iommu=on)"
    real = os.path.realpath(folder)
    for kind in ("net", "block"):
        for entry in sorted((ROOT / "sys/class" / kind).glob("*")):
            below = os.path.realpath(entry).startswith(f"{real}/")
            if below and (words := _net_use(entry) if kind == "net" else ", ".join(Blocks(ROOT).users(entry.name))):
                return f"this node uses it: {entry.name} ({words})"
    return None


def _net_use(entry: Path) -> str:
    if (entry / "master").exists():
        return f"a port of {os.path.basename(os.path.realpath(entry / 'master'))}"
    try:
        state = (entry / "operstate").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "it is up" if state not in ("down", "notpresent") else ""


def _usb_problem(options: Mapping[str, Any]) -> str | None:
    wanted = {"idVendor": options.get("vendor"), "idProduct": options.get("product")}
    wanted.update({"busnum": options.get("bus"), "devnum": options.get("device")})
    for entry in sorted((ROOT / "sys/bus/usb/devices").glob("*")):
        if all(value is None or _word(entry / name) == str(value) for name, value in wanted.items()):
            return None
    return "this node has none (lsusb shows them)"


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""


def _check_pci(value: str) -> str:
    match = PCI.fullmatch(value)
    if not match:
        raise ValueError(f"{value!r} is not a PCI address; write it as lspci -D does, such as 0000:03:00.0")
    return f"{match[1] or '0000'}:{match[2]}:{match[3]}.{match[4]}".lower()


def _check_usb_id(value: str) -> str:
    match = USB_ID.fullmatch(value)
    if not match:
        raise ValueError(f"{value!r} is not an id of USB; write its four hexadecimal digits in quotes, such as '046d'")
    return match[1].lower()


def _check_hostdevs(value: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [{name: word for name, word in one.items() if word is not None} for one in value]
    for one in found:
        if set(one) - {"type"} not in WAYS[one["type"]]:
            ways = " or ".join(" and ".join(sorted(way, reverse=True)) for way in WAYS[one["type"]])
            raise ValueError(f"a device of type {one['type']} is named by {ways}, and by nothing else")
    if any(found.count(one) > 1 for one in found):
        raise ValueError("a device is listed twice")
    return found


def _check_tag(value: str) -> str:
    if not TAG.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a share: 1 to 36 letters, digits and . _ -")
    return value


def _check_filesystems(value: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    targets = [one["target"] for one in value]
    if len(set(targets)) != len(targets):
        raise ValueError("a target is listed twice")
    return [dict(one) for one in value]


def _same(value: Sequence[Any], present: Sequence[Any] | None) -> bool:
    return list(value) == list(present or [])


HOSTDEVS, FILESYSTEMS = Hostdevs(), Filesystems()
HOSTDEV_FIELDS = (
    Field("type", choices=tuple(WAYS), required=True),
    Field("address", check=_check_pci),
    Field("vendor", check=_check_usb_id),
    Field("product", check=_check_usb_id),
    Field("bus", type="int", check=between(1, 255)),
    Field("device", type="int", check=between(1, 127)),
)
FILESYSTEM_FIELDS = (
    Field("source", type="path", check=check_path, required=True),
    Field("target", check=_check_tag, required=True),
)
PASSTHROUGH_FIELDS = (
    Field(
        "hostdevs",
        type="list",
        elements="dict",
        fields=HOSTDEV_FIELDS,
        check=_check_hostdevs,
        place=HOSTDEVS,
        same=_same,
    ),
    Field(
        "filesystems",
        type="list",
        elements="dict",
        fields=FILESYSTEM_FIELDS,
        check=_check_filesystems,
        place=FILESYSTEMS,
        same=_same,
    ),
)
