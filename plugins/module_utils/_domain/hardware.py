# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a VM that are neither disks nor NICs: one record each, for the module, the XML and the sheet."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from .._errors import Refused
from .._fields import Field
from .._xml import Property, add, drop, find, make
from .facts import size_of

MIB = 2**20
CPU_MODES = ("host-model", "host-passthrough", "maximum")
CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=-]{0,62}", re.ASCII)
BOOT = {"disk": "hd", "cdrom": "cdrom", "network": "network"}


class Memory:
    """Memory in bytes: the most that the guest can have, and what it starts with."""

    def get(self, root: Element) -> int | None:
        """Bytes."""
        return size_of(find(root, "memory"))

    def put(self, root: Element, value: int) -> None:
        """Write both sizes. Raises Refused where the memory is also laid out elsewhere in the definition."""
        for path in ("cpu/numa", "devices/memory", "maxMemory"):
            if find(root, path) is not None:
                raise Refused(
                    f"memory can't be changed yet for a VM with <{path.rpartition('/')[2]}> in its definition"
                )
        for name in ("memory", "currentMemory"):
            element = make(root, name)
            element.set("unit", "KiB")
            element.text = str(value // 1024)


class Vcpus:
    """The number of virtual CPUs."""

    def get(self, root: Element) -> int | None:
        """How many the guest starts with."""
        element = find(root, "vcpu")
        return None if element is None else int(element.get("current") or element.text or 1)

    def put(self, root: Element, value: int) -> None:
        """Write the number; the sockets follow. Raises Refused where the definition can't have it."""
        if find(root, "vcpus") is not None or find(root, "cpu/numa") is not None:
            raise Refused("vcpus can't be changed yet for a VM whose CPUs are laid out one by one (<vcpus> or <numa>)")
        topology = find(root, "cpu/topology")
        if topology is not None:
            per_socket = 1
            for name in ("dies", "clusters", "cores", "threads"):
                per_socket *= int(topology.get(name, 1))
            if value % per_socket:
                raise Refused(f"vcpus={value} does not fit the VM's CPU topology of {per_socket} per socket")
            topology.set("sockets", str(value // per_socket))
        element = make(root, "vcpu")
        element.attrib.pop("current", None)
        element.text = str(value)


class Cpu:
    """The CPU model: one of CPU_MODES, or a name that QEMU knows."""

    def get(self, root: Element) -> str | None:
        """The mode, or the model's name."""
        cpu = find(root, "cpu")
        if cpu is None:
            return None
        mode = cpu.get("mode", "custom")
        return mode if mode != "custom" else Property("model").get(cpu)

    def put(self, root: Element, value: str) -> None:
        """Write the model; features that were listed for the old one go, topology and NUMA cells stay."""
        cpu = make(root, "cpu")
        cpu.attrib.clear()
        for child in [child for child in cpu if child.tag in ("model", "vendor", "feature", "maxphysaddr")]:
            drop(cpu, child)
        if value in CPU_MODES:
            cpu.set("mode", value)
            return
        cpu.attrib.update({"mode": "custom", "match": "exact", "check": "partial"})
        model = Element("model", {"fallback": "forbid"})
        model.text = value
        cpu.insert(0, model)


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


def _check_memory(value: int) -> int:
    if value % MIB or not 16 * MIB <= value <= 2**44:
        raise ValueError(f"{value} bytes are not whole mebibytes from 16MiB to 16TiB")
    return value


def _check_vcpus(value: int) -> int:
    if not 1 <= value <= 4096:
        raise ValueError(f"{value} is not a number of virtual CPUs; write 1 to 4096")
    return value


def _check_cpu(value: str) -> str:
    if not CPU_MODEL.fullmatch(value):
        raise ValueError(f"{value!r} is not a CPU model; write host-model, host-passthrough or a name such as Nehalem")
    return value


def _check_uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a UUID such as {uuid.UUID(int=0x52540000 << 96)}") from None


def check_boot(value: list[str]) -> list[str]:
    """Kinds of devices, each once."""
    if not value or set(value) - set(BOOT) or len(set(value)) != len(value):
        raise ValueError(f"write one or more of {', '.join(BOOT)}, each once")
    return value


def check_text(value: str) -> str:
    """A text that XML can hold, at most 1000 characters."""
    if len(value) > 1000 or not all(sign.isprintable() for sign in value):
        raise ValueError("write one line of at most 1000 printable characters")
    return value.strip()


def check_tags(change: dict[str, list[str]]) -> dict[str, list[str]]:
    """Words that can be names of groups."""
    for tag in [tag for tags in change.values() for tag in tags]:
        if not TAG.fullmatch(tag):
            raise ValueError(
                f"{tag!r} is not a tag: 1 to 63 letters, digits and . _ : = -, the first a letter or digit"
            )
    return change


def check_seconds(value: int) -> int:
    """A waiting time."""
    if not 1 <= value <= 86400:
        raise ValueError(f"{value} is not a waiting time; write 1 to 86400 seconds")
    return value


ANOTHER = "the guest would see another computer; remove the VM and build it again"
HARDWARE: tuple[Field, ...] = (
    Field("uuid", check=_check_uuid, place=Property("uuid"), fixed="a VM keeps its UUID; it is the same VM by it"),
    Field("memory", type="size", check=_check_memory, place=Memory()),
    Field("vcpus", type="int", check=_check_vcpus, place=Vcpus()),
    Field("cpu", check=_check_cpu, place=Cpu()),
    Field("virt_type", choices=("kvm", "qemu"), place=Property("@type"), fixed=ANOTHER),
    Field("machine", choices=("q35", "pc"), place=Property("os/type/@machine", machine_family), fixed=ANOTHER),
    Field("boot", type="list", elements="str", check=check_boot, place=Boot()),
    Field("title", check=check_text, place=Property("title"), unseen=True),
    Field("description", check=check_text, place=Property("description"), unseen=True),
)
