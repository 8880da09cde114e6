# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a VM boots: kinds of devices, or single devices in an order of their own; never both. Pure.

https://libvirt.org/formatdomain.html#bios-bootloader, https://libvirt.org/formatdomain.html#boot-order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Invalid
from .._fields import Field, between
from .._xml import Nonzero, add, devices, drop, find, make

KINDS = {"disk": "hd", "cdrom": "cdrom", "network": "network"}
ORDER = Nonzero("boot/@order", int)


class Boot:
    """From what the firmware boots, in this order."""

    def get(self, root: Element) -> list[str] | None:
        """The kinds of devices; None where single devices have an order of their own."""
        names = {word: name for name, word in KINDS.items()}
        words = [child.get("dev", "") for child in _kinds(root)]
        return [names.get(word, word) for word in words] or None

    def put(self, root: Element, value: Sequence[str]) -> None:
        """Write the order in the place of that of single devices."""
        for device in _ordered(root):
            ORDER.put(device, None)
        _clear(root)
        for name in value:
            add(make(root, "os"), "boot", {"dev": KINDS[name]})
        for nic in devices(root, "interface") if "network" in value else ():
            _give_rom(nic)


class BootOrder:
    """The place of a disk or NIC among those from which the firmware boots; None for one that is not among them."""

    def get(self, device: Element) -> int | None:
        """From 1 on."""
        order: int | None = ORDER.get(device)
        return order

    def put(self, device: Element, value: int | None) -> None:
        """Write it; 0 takes it away."""
        ORDER.put(device, value)
        if value and device.tag == "interface":
            _give_rom(device)


def has_order(root: Element) -> bool:
    """Whether single devices have an order."""
    return any(True for _device in _ordered(root))


def arrange_boot(root: Element, params: Mapping[str, Any], before: bool) -> None:
    """Let kinds give way to single devices, or come back when those of `before` are gone. Raises Invalid."""
    orders = [ORDER.get(device) for device in _ordered(root)]
    for order in orders:
        if orders.count(order) > 1:
            raise Invalid(f"boot_order {order} is given to two devices of {params['name']}", option="boot_order")
    if not orders:
        if before and not _kinds(root):
            BOOT.put(root, ["disk"])
        return
    if params["boot"] is not None:
        raise Invalid("boot and boot_order don't go together: leave boot out, or write boot_order: 0", option="boot")
    _clear(root)


def _kinds(root: Element) -> list[Element]:
    system = find(root, "os")
    return [child for child in ([] if system is None else system) if child.tag == "boot"]


def _clear(root: Element) -> None:
    for child in _kinds(root):
        drop(make(root, "os"), child)


def _ordered(root: Element) -> Iterator[Element]:
    parent = find(root, "devices")
    for device in () if parent is None else parent:
        if find(device, "boot") is not None:
            yield device


def _give_rom(nic: Element) -> None:
    """A NIC that nobody boots from has been made without its boot ROM."""
    rom = find(nic, "rom")
    if rom is not None and rom.get("enabled") == "no":
        drop(nic, rom)


def check_boot(value: list[str]) -> list[str]:
    """Kinds of devices, each once."""
    if not value or set(value) - set(KINDS) or len(set(value)) != len(value):
        raise ValueError(f"write one or more of {', '.join(KINDS)}, each once")
    return value


BOOT = Boot()
BOOT_FIELD = Field("boot", type="list", elements="str", check=check_boot, place=BOOT)
BOOT_ORDER = Field("boot_order", type="int", check=between(0, 99), place=BootOrder())
