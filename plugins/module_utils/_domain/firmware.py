# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM starts with: the firmware, secure boot, the TPM, its clock, and from what it boots. Pure.

https://libvirt.org/formatdomain.html#bios-bootloader, https://libvirt.org/kbase/secureboot.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from .._errors import Refused
from .._fields import Field
from .._xml import Property, add, add_device, devices, drop, find, make

BOOT = {"disk": "hd", "cdrom": "cdrom", "network": "network"}
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
        """Ask libvirt for it in a new definition. Raises Refused without UEFI on q35."""
        if not value:
            return
        if FIRMWARE.get(root) != "efi" or machine_family(Property("os/type/@machine").get(root) or "") != "q35":
            raise Refused("secure_boot needs firmware=efi and machine=q35")
        parent = make(root, "os/firmware")
        for name in ("secure-boot", "enrolled-keys"):
            add(parent, "feature", {"enabled": "yes", "name": name})


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


class Boot:
    """From what the firmware boots, in this order."""

    def get(self, root: Element) -> list[str] | None:
        """The kinds of devices; None where single devices have an order of their own."""
        system = find(root, "os")
        names = {word: name for name, word in BOOT.items()}
        words = [child.get("dev", "") for child in ([] if system is None else system) if child.tag == "boot"]
        return [names.get(word, word) for word in words] or None

    def put(self, root: Element, value: Sequence[str]) -> None:
        """Write the order. Raises Refused where devices have a boot order."""
        parent = find(root, "devices")
        if any(find(device, "boot") is not None for device in ([] if parent is None else parent)):
            raise Refused("boot can't be changed yet for a VM whose devices have a boot order of their own")
        system = make(root, "os")
        for child in [child for child in system if child.tag == "boot"]:
            drop(system, child)
        for name in value:
            add(system, "boot", {"dev": BOOT[name]})


def machine_family(machine: str) -> str:
    """q35 or pc for the versioned names of x86 machines (pc-q35-10.0, pc-i440fx-7.2), else the name itself."""
    if machine == "q35" or machine.startswith("pc-q35-"):
        return "q35"
    return "pc" if machine == "pc" or machine.startswith("pc-i440fx-") else machine


def check_boot(value: list[str]) -> list[str]:
    """Kinds of devices, each once."""
    if not value or set(value) - set(BOOT) or len(set(value)) != len(value):
        raise ValueError(f"write one or more of {', '.join(BOOT)}, each once")
    return value


FIRMWARE = Firmware()
FIRMWARE_FIELDS = (
    Field("firmware", choices=("bios", "efi"), place=FIRMWARE, fixed=KEPT),
    Field("secure_boot", type="bool", place=SecureBoot(), fixed=KEPT),
    Field("tpm", choices=("none", "2.0"), place=Tpm()),
    Field("boot", type="list", elements="str", check=check_boot, place=Boot()),
    Field("clock", choices=("utc", "localtime"), place=Clock()),
)
