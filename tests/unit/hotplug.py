# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's test driver lacks: running VMs whose devices come, go and change, and whose limits do, as in QEMU's.

A definition gets PCI addresses as libvirt gives them, one root port of a q35 machine for each device, and a new port
where none is free. What is plugged in needs a port that the running machine has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Domain, Node
from ansible_collections.drover.kvm.plugins.module_utils._xml import Property, devices, find, parse, text_of

PORT = "pcie-root-port"


def key_of(device: Element) -> str:
    """What libvirt finds a device by."""
    path, name = ("target", "dev") if device.tag == "disk" else ("mac", "address")
    return str(inner(device, path).get(name))


def inner(device: Element, name: str) -> Element:
    """A child; an empty one where it is missing."""
    found = find(device, name)
    return Element(name) if found is None else found


def bus_of(device: Element) -> int | None:
    """The PCI bus on which it sits."""
    place = inner(device, "address")
    return int(place.get("bus", "0"), 0) if place.get("type") == "pci" else None


def ports(root: Element) -> set[int]:
    """The buses that are root ports."""
    return {int(one.get("index", "0")) for one in devices(root, "controller") if one.get("model") == PORT}


def free_ports(root: Element) -> list[int]:
    """Those on which nothing sits."""
    return sorted(ports(root) - {bus_of(device) for device in inner(root, "devices")})


def place(device: Element, bus: int) -> None:
    """Give it that address."""
    SubElement(device, "address", {"type": "pci", "domain": "0x0000", "bus": f"{bus:#04x}", "slot": "0x00"})


def needs_port(device: Element) -> bool:
    """Whether it is a PCI device."""
    virtio_disk = device.tag == "disk" and inner(device, "target").get("bus") == "virtio"
    return virtio_disk or device.tag in ("interface", "memballoon", "rng")


def addressed(text: str) -> str:
    """A definition as libvirt keeps it."""
    root = parse(text)
    if not ports(root):
        return text
    for device in list(inner(root, "devices")):
        if needs_port(device) and find(device, "address") is None:
            if not free_ports(root):
                new = {"type": "pci", "index": str(max(ports(root)) + 1), "model": PORT}
                SubElement(inner(root, "devices"), "controller", new)
            place(device, free_ports(root)[0])
    return text_of(root)


class CpuLimits:
    """What the vCPUs of running VMs may take, as QEMU's driver keeps it: period and quota in microseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        self.now: dict[tuple[str, int | None], tuple[int, int]] = {}
        really, limits = Node._domain, self

        def limit(node: Node, name: str, period: int, quota: int) -> None:
            domain = node.domain(name)
            assert domain is not None and domain.active, f"{name} does not run"
            limits.calls.append((period, quota))
            limits.now[name, domain.id] = period, quota

        def seen(node: Node, *args: Any, **named: Any) -> Domain | None:
            domain = really(node, *args, **named)
            if domain is None or domain.live_xml is None or (domain.name, domain.id) not in limits.now:
                return domain
            root = parse(domain.live_xml)
            for name, number in zip(("period", "quota"), limits.now[domain.name, domain.id]):
                Property(f"cputune/{name}").put(root, number)
            return replace(domain, live_xml=text_of(root))

        monkeypatch.setattr(Node, "set_cpu_quota", limit)
        monkeypatch.setattr(Node, "_domain", seen)


class Hotplug:
    """The running VMs of a node. `deaf`: their guests let go of nothing; `locked`: drives whose tray is locked."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: dict[tuple[str, int | None], Element] = {}
        self.calls: list[tuple[str, str]] = []
        self.deaf, self.locked = False, set[str]()
        self.really, self.node = Node._domain, node
        define, self.look = Node.define, Node.domain
        hotplug = self

        def seen(node: Node, *args: Any, **named: Any) -> Domain | None:
            return hotplug.seen(hotplug.really(node, *args, **named))

        def start(node: Node, name: str, paused: bool = False) -> None:
            """The test driver can't start a VM that is paused."""
            begin(node, name)
            if paused:
                node.suspend(name)

        begin = Node.start
        monkeypatch.setattr(Node, "start", start)
        monkeypatch.setattr(Node, "_domain", seen)
        monkeypatch.setattr(Node, "define", lambda node, xml, *rest: define(node, addressed(xml), *rest))
        for verb in ("attach", "detach", "update"):
            call = self._call(verb)
            monkeypatch.setattr(Node, f"{verb}_device", call)

    def seen(self, domain: Domain | None) -> Domain | None:
        """The VM with the devices that it has now."""
        if domain is None or (domain.name, domain.id) not in self.running or domain.live_xml is None:
            return domain
        return replace(domain, live_xml=text_of(self._tree(domain)))

    def live(self, name: str) -> Element:
        """The running VM's tree; changing its devices changes the VM."""
        domain = self.look(self.node, name)
        assert domain is not None and domain.live_xml is not None, f"{name} does not run"
        return self._tree(domain)

    def _tree(self, domain: Domain) -> Element:
        root = parse(str(domain.live_xml))
        place = [child.tag for child in root].index("devices")
        root[place] = self.running.setdefault((domain.name, domain.id), root[place])
        return root

    def _call(self, verb: str) -> Any:
        def call(node: Node, name: str, xml: str, live: bool, config: bool) -> None:
            assert (live, config) == (True, False), "the definition is written as a whole"
            device = parse(xml)
            self.calls.append((verb, key_of(device)))
            getattr(self, f"_{verb}")(self.live(name), device)

        return call

    @staticmethod
    def _find(root: Element, device: Element) -> Element | None:
        return next((one for one in devices(root, device.tag) if key_of(one) == key_of(device)), None)

    def _attach(self, root: Element, device: Element) -> None:
        bus = inner(device, "target").get("bus")
        if self._find(root, device) is not None:
            raise Failed(f"operation failed: target {key_of(device)} already exists")
        if device.tag == "disk" and bus not in ("virtio", "scsi"):
            raise Failed(f"unsupported configuration: disk bus '{bus}' cannot be hotplugged.")
        if needs_port(device) and ports(root):
            wanted = bus_of(device)
            if wanted is None:
                if not free_ports(root):
                    raise Failed("internal error: No more available PCI slots")
                place(device, free_ports(root)[0])
            elif wanted not in free_ports(root):
                raise Failed(f"XML error: Attempted double use of PCI Address 0000:{wanted:02x}:00.0")
        inner(root, "devices").append(device)

    def _detach(self, root: Element, device: Element) -> None:
        found = self._find(root, device)
        assert found is not None, f"{key_of(device)} is not there"
        if inner(device, "target").get("bus") == "sata":
            raise Failed("Operation not supported: This type of disk cannot be hot unplugged")
        if not self.deaf:
            inner(root, "devices").remove(found)

    def _update(self, root: Element, device: Element) -> None:
        found = self._find(root, device)
        assert found is not None, f"{key_of(device)} is not there"
        if key_of(device) in self.locked:
            raise Failed("internal error: unable to execute QEMU command 'blockdev-open-tray': Device 'sata0-0-0' is "
                         "locked and force was not specified, wait for tray to open and try again")  # fmt: skip
        assert bus_of(found) == bus_of(device), "cannot modify network device guest PCI address"
        children = inner(root, "devices")
        place = list(children).index(found)
        children.remove(found)
        children.insert(place, device)
