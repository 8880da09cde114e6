# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM starts with: the firmware, secure boot, the TPM, its clock and timers. Pure.

https://libvirt.org/formatdomain.html#bios-bootloader, https://libvirt.org/kbase/secureboot.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._errors import Refused
from .._fields import Field
from .._xml import Property, add, add_device, devices, drop, find, make
from .boot import BOOT_FIELD
from .machine import machine_family

# What QEMU can: https://libvirt.org/formatdomain.html#time-keeping.
POLICIES = {"rtc": ("catchup", "delay"), "pit": ("delay", "discard")}
SWITCHED = ("hpet", "kvmclock", "hypervclock")
KEPT = "the guest was installed for the one that it has; remove the VM and build it again"


class Firmware:
    """BIOS, or UEFI. libvirt itself finds the file on the node that starts the VM."""

    def get(self, root: Element) -> str:
        """The kind; a flash image that was named by hand is UEFI."""
        named = Property("os/@firmware").get(root)
        return named or ("efi" if Property("os/loader/@type").get(root) == "pflash" else "bios")

    def put(self, root: Element, value: str) -> None:
        """Write it into a new definition."""
        Property("os/@firmware").put(root, None if value == "bios" else value)


class SecureBoot:
    """Whether the firmware starts only what is signed, with Microsoft's keys enrolled."""

    def get(self, root: Element) -> bool:
        """What is asked of libvirt, or what a firmware that was named by hand does."""
        asked = [child.get("enabled") == "yes" for child in _features(root) if child.get("name") == "secure-boot"]
        return asked[0] if asked else Property("os/loader/@secure").get(root) == "yes"

    def put(self, root: Element, value: bool) -> None:
        """Ask libvirt for it in a new definition, or for none of it. Raises Refused without UEFI on q35."""
        efi = FIRMWARE.get(root) == "efi"
        if value and not (efi and machine_family(Property("os/type/@machine").get(root) or "") == "q35"):
            raise Refused("secure_boot needs firmware=efi and machine=q35")
        # Where nothing is asked for, libvirt takes the first UEFI of the node, which mostly starts only what is signed.
        for name in ("secure-boot", "enrolled-keys") if value else ("secure-boot",) if efi else ():
            add(make(root, "os/firmware"), "feature", {"enabled": "yes" if value else "no", "name": name})


def _features(root: Element) -> list[Element]:
    parent = find(root, "os/firmware")
    return [] if parent is None else [child for child in parent if child.tag == "feature"]


class Tpm:
    """An emulated TPM; None without one."""

    def get(self, root: Element) -> str | None:
        """Its version; the kind of one that is not emulated."""
        tpm = next(iter(devices(root, "tpm")), None)
        if tpm is None:
            return None
        kind = Property("backend/@type").get(tpm)
        return Property("backend/@version").get(tpm) or "2.0" if kind == "emulator" else kind

    def put(self, root: Element, value: str) -> None:
        """Write it; none takes it out."""
        parent = make(root, "devices")
        for tpm in devices(root, "tpm"):
            drop(parent, tpm)
        if value != "none":
            tpm = Element("tpm", {"model": "tpm-crb"})
            SubElement(tpm, "backend", {"type": "emulator", "version": value})
            add_device(root, tpm)


class Clock:
    """What the clock of the computer is set to at a start."""

    def get(self, root: Element) -> str:
        """libvirt's word for it."""
        return Property("clock/@offset").get(root) or "utc"

    def put(self, root: Element, value: str) -> None:
        """Write it; timers stay."""
        clock = make(root, "clock")
        clock.attrib.clear()
        clock.set("offset", value)


class Timers:
    """The timers of the computer: how ticks are caught up that the guest missed, or whether there is one at all."""

    def get(self, root: Element) -> dict[str, Any] | None:
        """What is said of each; None where nothing is."""
        found: dict[str, Any] = {}
        for timer in _timers(root):
            name = timer.get("name", "")
            if name in SWITCHED and timer.get("present"):
                found[name] = timer.get("present") == "yes"
            elif name in POLICIES and timer.get("tickpolicy"):
                found[name] = timer.get("tickpolicy")
        return found or None

    def put(self, root: Element, value: Mapping[str, Any]) -> None:
        """Write what is given; other timers, and what else is said of these, stay."""
        for name, word in value.items():
            timer = next((one for one in _timers(root) if one.get("name") == name), None)
            timer = add(make(root, "clock"), "timer", {"name": name}) if timer is None else timer
            if name in SWITCHED:
                timer.set("present", "yes" if word else "no")
            else:
                timer.set("tickpolicy", str(word))


def _timers(root: Element) -> list[Element]:
    clock = find(root, "clock")
    return [] if clock is None else [child for child in clock if child.tag == "timer"]


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


FIRMWARE = Firmware()
TIMER_FIELDS = (
    *(Field(name, choices=words) for name, words in POLICIES.items()),
    *(Field(name, type="bool") for name in SWITCHED),
)
FIRMWARE_FIELDS = (
    Field("firmware", choices=("bios", "efi"), place=FIRMWARE, fixed=KEPT),
    Field("secure_boot", type="bool", place=SecureBoot(), fixed=KEPT),
    Field("tpm", choices=("none", "2.0"), place=Tpm()),
    BOOT_FIELD,
    Field("clock", choices=("utc", "localtime"), place=Clock()),
    Field("timers", type="dict", fields=TIMER_FIELDS, check=_given, place=Timers()),
)
