# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices of a VM that are neither disks nor NICs. What is in it else, such as further ports, stays. Pure.

https://libvirt.org/formatdomain.html#devices.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._errors import Refused
from .._fields import Field
from .._xml import Property, add, add_device, devices, drop, find, make, parse

LOOPBACK = "127.0.0.1"
LOGS = PurePosixPath("/var/log")
# A machine of type q35 has one of these by itself, which libvirt 9.1 and later write into its definition.
BUILT_IN = "itco"


@dataclass(frozen=True)
class Device:
    """A device that is there or not: `kind` is its element, `name` that of its target, `xml` that of a new one."""

    kind: str
    xml: str
    name: str | None = None

    def _found(self, root: Element) -> list[Element]:
        return [one for one in devices(root, self.kind) if Property("target/@name").get(one) == self.name]

    def get(self, root: Element) -> bool:
        """Whether it is there."""
        return bool(self._found(root))

    def put(self, root: Element, value: bool) -> None:
        """Add it, or take all of them out."""
        parent = make(root, "devices")
        for one in [] if value else self._found(root):
            drop(parent, one)
        if value and not self._found(root):
            add_device(root, parse(self.xml))


class Watchdog:
    """What acts when the guest no longer shows that it lives; None without one."""

    def get(self, root: Element) -> dict[str, str] | None:
        """Model and action."""
        own = _watchdogs(root)
        return {"model": own[0].get("model", ""), "action": own[0].get("action", "reset")} if own else None

    def put(self, root: Element, value: Mapping[str, str]) -> None:
        """Write it; the model none takes it out."""
        parent, own = make(root, "devices"), _watchdogs(root)
        if value["model"] == "none":
            for one in own:
                drop(parent, one)
            return
        if not own:
            add_device(root, Element("watchdog", {"model": "i6300esb", "action": "reset"}))
        dog = (own or _watchdogs(root))[0]
        if dog.get("model") != value["model"]:
            dog.set("model", str(value["model"]))
            for child in list(dog):
                drop(dog, child)
        # QEMU knows one action for all of them.
        for one in devices(root, "watchdog"):
            one.set("action", str(value.get("action") or dog.get("action", "reset")))


def _watchdogs(root: Element) -> list[Element]:
    return [one for one in devices(root, "watchdog") if one.get("model") != BUILT_IN]


class ConsoleLog:
    """The file of the node to which all that the serial console says is appended; None without one."""

    def get(self, root: Element) -> str | None:
        """Its path."""
        path: str | None = Property("devices/serial/log/@file").get(root)
        return path

    def put(self, root: Element, value: str | None) -> None:
        """Write it. Raises Refused for a VM without a serial console."""
        serial = next(iter(devices(root, "serial")), None)
        if serial is None:
            raise Refused("the VM has no serial console whose words could be logged")
        # libvirt shows the first serial port a second time, as console.
        for port in [serial, *devices(root, "console")[:1]]:
            log = find(port, "log")
            if log is not None:
                drop(port, log)
        if value:
            add(serial, "log", {"file": value, "append": "on"})


class Graphics:
    """A screen that can be seen over the network; None without one."""

    def get(self, root: Element) -> dict[str, str] | None:
        """Type, and the address on which it listens where it does."""
        screen = next(iter(devices(root, "graphics")), None)
        if screen is None:
            return None
        kind = Property("listen/@type").get(screen) or "address"
        address = Property("listen/@address").get(screen) or screen.get("listen") or LOOPBACK
        found = {"type": screen.get("type", "")}
        return {**found, "listen": address} if kind == "address" else found

    def put(self, root: Element, value: Mapping[str, str]) -> None:
        """Write it; the type none takes all screens out, another type takes the place of the one that is there."""
        parent, screens = make(root, "devices"), devices(root, "graphics")
        for screen in screens:
            if screen.get("type") != value["type"]:
                drop(parent, screen)
        if value["type"] == "none":
            return
        if not any(screen.get("type") == value["type"] for screen in screens):
            screen = Element("graphics", {"type": value["type"], "port": "-1", "autoport": "yes"})
            SubElement(screen, "listen", {"type": "address", "address": LOOPBACK})
            add_device(root, screen)
        if not devices(root, "video"):
            VIDEO.put(root, "vga")
        screen = devices(root, "graphics")[0]
        if value.get("listen") and value != self.get(root):
            for child in [child for child in screen if child.tag == "listen"]:
                drop(screen, child)
            screen.attrib.pop("listen", None)
            screen.attrib.pop("socket", None)
            add(screen, "listen", {"type": "address", "address": value["listen"]})


class Video:
    """The graphics card; None without one."""

    def get(self, root: Element) -> str | None:
        """Its model."""
        card = next(iter(devices(root, "video")), None)
        model = None if card is None else Property("model/@type").get(card)
        return None if model == "none" else model

    def put(self, root: Element, value: str) -> None:
        """Write it; none takes it out. A screen without a card is said so, as libvirt adds one otherwise."""
        parent, cards = make(root, "devices"), devices(root, "video")
        if value == "none" and not devices(root, "graphics"):
            for card in cards:
                drop(parent, card)
        elif (self.get(root) or "none") != value or not cards:
            for card in cards:
                drop(parent, card)
            card = Element("video")
            SubElement(card, "model", {"type": value})
            add_device(root, card)


def _check_log(value: str) -> str:
    path = PurePosixPath(value)
    if value and (LOGS not in path.parents or ".." in path.parts or str(path) != value or not value.isprintable()):
        raise ValueError(f"{value!r} is not the path of a file below {LOGS}")
    return value


def _check_listen(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address of the node, such as {LOOPBACK}") from None


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


AGENT = Device(
    "channel",
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "org.qemu.guest_agent.0",
)
RNG = Device("rng", "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>")
VIDEO = Video()
WATCHDOG_FIELDS = (
    Field("model", choices=("none", "i6300esb", "ib700"), required=True),
    Field("action", choices=("reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi")),
)
GRAPHICS_FIELDS = (
    Field("type", choices=("none", "vnc", "spice"), required=True),
    Field("listen", check=_check_listen),
)
PERIPHERAL_FIELDS = (
    Field("agent", type="bool", place=AGENT),
    Field("rng", type="bool", place=RNG),
    Field("watchdog", type="dict", fields=WATCHDOG_FIELDS, check=_given, place=Watchdog()),
    Field("console_log", type="path", check=_check_log, place=ConsoleLog()),
    Field("graphics", type="dict", fields=GRAPHICS_FIELDS, check=_given, place=Graphics()),
    Field("video", choices=("none", "vga", "virtio", "qxl", "bochs", "cirrus"), place=VIDEO),
)
