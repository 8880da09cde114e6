# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks and NICs that a running VM gets and loses at once, media in its drives, and why others have to wait. Pure.

What libvirt can plug in, and where, follows https://libvirt.org/pci-hotplug.html: a machine of type q35 needs a root
port that is free for each device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple
from xml.etree.ElementTree import Element

from .._identity import logical_of, target_number
from .._xml import Property, add_device, devices, drop, find, make, target_of, text_of
from . import disks, nics

# The slots of a bus into which a device can be plugged. libvirt keeps the first ones of pci-root for the chip set and
# a graphics card.
EXPRESS = {"pcie-root-port": range(1), "pcie-switch-downstream-port": range(1)}
CONVENTIONAL = {"pci-root": range(3, 32), "pci-bridge": range(1, 32), "pcie-to-pci-bridge": range(1, 32)}
OLD_NICS = ("e1000", "rtl8139")
SCSI_UNITS = 15  # libvirt puts that many disks on one controller
BUS, MODEL = Property("target/@bus"), Property("model/@type")
WORDS = {"disk": "disk", "interface": "nic"}


class Change(NamedTuple):
    """What is to do at once: `attach`, `detach` or `load` (a medium) a device; `xml` is the live one, but to attach."""

    verb: str
    kind: str
    key: str
    xml: str

    @property
    def words(self) -> str:
        """The device as in the words of a sheet."""
        return f"{WORDS[self.kind]} {self.key}"


class Slots:
    """The PCI slots of a running VM that are free for one more device."""

    def __init__(self, live: Element) -> None:
        buses = [one for one in devices(live, "controller") if one.get("type") == "pci"]
        self.models = {int(one.get("index", "0")): one.get("model", "") for one in buses}
        parent = find(live, "devices")
        places = [_address(device) for device in (parent if parent is not None else ())]
        self.used = {place for place in places if place is not None}
        # Those that this run attaches: libvirt gives them a slot then.
        self.waiting = [
            _is_express(device, self.models)
            for kind in WORDS
            for device in _known(live, kind).values()
            if _needs_slot(device) and find(device, "address") is None
        ]

    def lacks(self, device: Element) -> bool:
        """Whether there is none for this device; a machine without PCI needs none."""
        if not self.models or not _needs_slot(device):
            return False
        express = _is_express(device, self.models)
        return len(list(self.free(express))) <= self.waiting.count(express)

    def free(self, express: bool) -> Iterator[tuple[int, int]]:
        """Bus and slot."""
        for bus, model in sorted(self.models.items()):
            for slot in (EXPRESS if express else CONVENTIONAL).get(model, ()):
                if (bus, slot) not in self.used:
                    yield bus, slot


def _address(device: Element) -> tuple[int, int] | None:
    found = find(device, "address")
    if found is None or found.get("type") != "pci":
        return None
    return int(found.get("bus", "0"), 0), int(found.get("slot", "0"), 0)


def _needs_slot(device: Element) -> bool:
    return device.tag == "interface" or BUS.get(device) == "virtio"


def _is_express(device: Element, models: Mapping[int, str]) -> bool:
    return "pcie-root" in models.values() and MODEL.get(device) not in OLD_NICS


def _known(root: Element, kind: str) -> dict[str, Element]:
    """The devices that a sheet names, by target or MAC address."""
    found = devices(root, kind)
    if kind == "disk":
        return {str(target_of(disk)): disk for disk in found if disks.read(disk) is not None}
    return {nics.nic_mac(nic) or "": nic for nic in found if nics.known(nic)}


def _is_drive(device: Element) -> bool:
    return device.get("device", "disk") != "disk"


def _gone(live: Element, after: Element, kind: str) -> dict[str, Element]:
    """What runs and is defined no more. A disk that lies elsewhere than defined stays: its data may be the newer."""
    wanted = _known(after, kind)
    return {key: device for key, device in _known(live, kind).items() if key not in wanted}


def _missing(live: Element, after: Element, kind: str) -> dict[str, Element]:
    running = _known(live, kind)
    return {key: device for key, device in _known(after, kind).items() if key not in running}


def astray(live: Element, after: Element) -> list[str]:
    """The disks, with their storage, that run from another one than they are defined on."""
    defined = {target: _storage(disk) for target, disk in _known(after, "disk").items()}
    return [
        f"{target} runs on {_storage(disk)} and is defined on {defined[target]}"
        for target, disk in _known(live, "disk").items()
        if not _is_drive(disk) and defined.get(target) not in (None, _storage(disk))
    ]


def _stays(device: Element, awake: bool) -> str | None:
    """Why a running VM can't lose it at once."""
    if device.tag == "disk" and (_is_drive(device) or BUS.get(device) not in ("virtio", "scsi", "usb")):
        return _rigid(device)
    if _is_logical(device):
        return "a logical volume is given back when its machine ends"
    return None if awake or BUS.get(device) == "scsi" else "a guest that stands still can't let go of it"


def _is_logical(device: Element) -> bool:
    """Whether it is a logical volume: those become active before their VM starts, and are given back when it has ended.

    libvirt calls its hooks then, and not when a disk comes or goes.
    """
    return logical_of(Property("source/@dev").get(device) or "") is not None


def _rigid(device: Element) -> str:
    return f"a {'drive' if _is_drive(device) else 'disk'} on the bus {BUS.get(device)} can't be changed while it runs"


def _waits(device: Element, live: Element, slots: Slots) -> str | None:
    """Why a running VM can't get it at once."""
    if device.tag == "disk" and (_is_drive(device) or BUS.get(device) not in ("virtio", "scsi")):
        return _rigid(device)
    if _is_logical(device):
        return "a logical volume becomes active when its machine starts"
    if device.tag == "disk" and BUS.get(device) == "scsi":
        number = str(target_number(str(target_of(device))) // SCSI_UNITS)
        here = {one.get("index") for one in devices(live, "controller") if one.get("type") == "scsi"}
        return None if number in here else "it has no SCSI controller for it yet"
    return "no PCI port is free" if slots.lacks(device) else None


def plan(live: Element, after: Element, kinds: Sequence[str], awake: bool) -> list[Change]:
    """What makes the devices of these `kinds` (disk, interface) of a running VM those of its definition, in order.

    What can be done at once is written into `live`; the rest stays different there. `awake` says whether the guest's
    CPUs run.
    """
    parent = make(live, "devices")
    changes = list(_media(live, after)) if "disk" in kinds else []
    for kind in kinds:
        for key, device in _gone(live, after, kind).items():
            if _stays(device, awake) is None:
                changes.append(Change("detach", kind, key, text_of(device).strip()))
                drop(parent, device)
    for kind in kinds:
        for key, device in _missing(live, after, kind).items():
            if _waits(device, live, Slots(live)) is None:
                changes.append(Change("attach", kind, key, text_of(_bare(device)).strip()))
                add_device(live, _bare(device))
    return changes


def _media(live: Element, after: Element) -> Iterator[Change]:
    wanted = _known(after, "disk")
    for target, drive in _known(live, "disk").items():
        new = wanted.get(target)
        if new is None or not _is_drive(drive) or not _is_drive(new) or _storage(drive) == _storage(new):
            continue
        drive.set("type", new.get("type", "file"))
        for name in ("source", "backingStore", "driver"):
            old, given = find(drive, name), find(new, name)
            if old is not None:
                drop(drive, old)
            if given is not None:
                drive.insert(0, deepcopy(given))
        yield Change("load", "disk", target, text_of(drive).strip())


def _storage(disk: Element) -> str | None:
    return disks.identity(disks.read(disk) or {})


def _bare(device: Element) -> Element:
    copy = _unordered(device)
    place = find(copy, "address")
    if place is not None and place.get("type") == "pci":
        drop(copy, place)
    return copy


def _unordered(device: Element) -> Element:
    """A machine that runs has no use for a boot order, and may have been started with another one."""
    copy = deepcopy(device)
    order = find(copy, "boot")
    if order is not None:
        drop(copy, order)
    return copy


def placed(live: Element, definition: Element, change: Change) -> str:
    """The XML with which a device is attached: at the PCI address of the definition, if it is free as the VM runs."""
    device = _known(definition, change.kind)[change.key]
    slots, place = Slots(live), _address(device)
    free = [*slots.free(True), *slots.free(False)]
    return text_of((_unordered if place is None or place in free else _bare)(device)).strip()


def has(live: Element, change: Change) -> bool:
    """Whether the running VM has the device."""
    return change.key in _known(live, change.kind)


def reasons(live: Element, after: Element, awake: bool) -> dict[str, str]:
    """Why a device that is another in the definition waits for the next start, by the words of the sheet's changes."""
    found: dict[str, str | None] = {}
    for kind, word in WORDS.items():
        for key, device in _gone(live, after, kind).items():
            found[f"{word} {key} removed"] = _stays(device, awake)
        for key, device in _missing(live, after, kind).items():
            found[f"{word} {key} added"] = _waits(device, live, Slots(live))
    return {words: reason for words, reason in found.items() if reason}
