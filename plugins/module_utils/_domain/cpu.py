# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPUs of a VM: how many, how they are arranged, what they can do, and their share of the node's. Pure.

https://libvirt.org/formatdomain.html#cpu-allocation and #cpu-model-and-topology.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Refused
from .._fields import Field, between, zero_or
from .._xml import Nonzero, Property, add, drop, find, make
from .most import Most

MODES = ("host-model", "host-passthrough", "maximum")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
FEATURE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
POLICIES = ("require", "disable")
LEVELS = ("sockets", "dies", "clusters", "cores", "threads")
MOST = 4096
# Microseconds; it is the default of libvirt, too.
PERIOD = 100000


class Vcpus:
    """The number of virtual CPUs that the guest starts with."""

    def get(self, root: Element) -> int | None:
        """How many."""
        element = find(root, "vcpu")
        return None if element is None else int(element.get("current") or element.text or 1)

    def put(self, root: Element, value: int) -> None:
        """Write the number; a maximum that was never given, or is too small, follows. Raises Refused."""
        most = maximum(root)
        given = GIVEN.is_given(root, most, self.get(root)) and value <= most
        _count(root, value, most if given else value)
        GIVEN.mark(root, given and value == most)


class MaxVcpus:
    """The most that the guest can have without a power cycle; None where it was never given."""

    def get(self, root: Element) -> int | None:
        """How many."""
        most = maximum(root)
        return most if GIVEN.is_given(root, most, VCPUS.get(root)) else None

    def put(self, root: Element, value: int) -> None:
        """Write it and keep the number. Raises Refused."""
        number = VCPUS.get(root) or value
        if value < number:
            raise Refused(f"max_vcpus={value} is less than the {number} vCPUs")
        _count(root, number, value)
        GIVEN.mark(root, value == number)


class Topology:
    """How the CPUs are arranged; their product is the maximum of them."""

    def get(self, root: Element) -> dict[str, int] | None:
        """Sockets, cores and threads; dies where there are several in a socket."""
        element = find(root, "cpu/topology")
        if element is None:
            return None
        found = {name: int(element.get(name, "1")) for name in LEVELS if name != "clusters"}
        return {name: number for name, number in found.items() if name != "dies" or number > 1}

    def put(self, root: Element, value: Mapping[str, int]) -> None:
        """Write it, without sockets as many as the CPUs fill; {} removes it."""
        cpu, element = make(root, "cpu"), find(root, "cpu/topology")
        if not value:
            if element is not None:
                drop(cpu, element)
            return
        element = add(cpu, "topology") if element is None else element
        wanted = {"sockets": 0, "dies": 1, "cores": 1, "threads": 1, **value}
        for name, number in wanted.items():
            if name != "dies" or number > 1 or element.get(name):
                element.set(name, str(number))
        if not wanted["sockets"]:
            element.set("sockets", str(max(1, maximum(root) // _per_socket(element))))


class Features:
    """What the CPU must have and must not have beside its model; other policies stay."""

    def get(self, root: Element) -> dict[str, list[str]] | None:
        """The names by policy."""
        cpu = find(root, "cpu")
        named = [(child.get("policy", "require"), child) for child in ([] if cpu is None else cpu)]
        found = {
            policy: sorted(child.get("name", "") for own, child in named if child.tag == "feature" and own == policy)
            for policy in POLICIES
        }
        return {policy: names for policy, names in found.items() if names} or None

    def put(self, root: Element, value: Mapping[str, Sequence[str]]) -> None:
        """Write exactly these. Raises Refused for a VM without a CPU model."""
        cpu = make(root, "cpu")
        if value and CPU.get(root) is None:
            raise Refused("cpu_features need a CPU model; give cpu, too")
        wanted = {name: policy for policy, names in value.items() for name in names}
        for child in [child for child in cpu if child.tag == "feature"]:
            name, policy = child.get("name", ""), child.get("policy", "require")
            if wanted.get(name) == policy:
                del wanted[name]
            elif name in wanted or policy in POLICIES:
                drop(cpu, child)
        for name, policy in wanted.items():
            add(cpu, "feature", {"policy": policy, "name": name})


class Cpu:
    """The CPU model: one of MODES, or a name that QEMU knows."""

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
        if value in MODES:
            cpu.set("mode", value)
            return
        cpu.attrib.update({"mode": "custom", "match": "exact", "check": "partial"})
        model = Element("model", {"fallback": "forbid"})
        model.text = value
        cpu.insert(0, model)


class Quota:
    """The most CPU time that each vCPU may take, in per cent of a CPU of the node; None or 0 for no limit."""

    def get(self, root: Element) -> int | None:
        """Per cent, rounded, as other tools may have written anything."""
        period, quota = (Property(f"cputune/{name}", int).get(root) for name in ("period", "quota"))
        return max(1, round(100 * quota / (period or PERIOD))) if quota and quota > 0 else None

    def put(self, root: Element, value: int | None) -> None:
        """Write quota and period; both go with the limit."""
        for name, number in (("period", PERIOD), ("quota", quota_of(value or 0))):
            Property(f"cputune/{name}").put(root, number if value else None)


def quota_of(percent: int) -> int:
    """What libvirt calls the quota, in microseconds of each period; -1 for no limit."""
    return PERIOD * percent // 100 or -1


def check_arrangement(root: Element) -> None:
    """Raise Refused where the arrangement of the CPUs does not give as many as there may be."""
    element, most = find(root, "cpu/topology"), maximum(root)
    has = most if element is None else int(element.get("sockets", "1")) * _per_socket(element)
    if element is not None and has != most:
        number = f"vcpus={most}" if most == VCPUS.get(root) else f"max_vcpus={most}"
        layout = f"{_per_socket(element)} per socket, {has} in all"
        raise Refused(f"{number} does not fit the VM's CPU topology of {layout}")


def compared(running: Element, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The maximum of a running VM, as it is to be compared with its sheet: not whether it was given, but what it is."""
    same = maximum(running) == (definition["max_vcpus"] or definition["vcpus"])
    return {"max_vcpus": definition["max_vcpus"] if same else MAX_VCPUS.get(running)}


def has_features(running: Element, wanted: Mapping[str, Sequence[str]]) -> bool:
    """Whether a running VM's CPU is by name what is wanted; libvirt adds what else its model means on the node."""
    found = Features().get(running) or {}
    return all(set(names) <= set(found.get(policy, ())) for policy, names in wanted.items())


def maximum(root: Element) -> int:
    """The most vCPUs that the VM can have until its next start."""
    element = find(root, "vcpu")
    return 1 if element is None else int(element.text or element.get("current") or 1)


def _per_socket(topology: Element) -> int:
    return prod(int(topology.get(name, "1")) for name in LEVELS if name != "sockets")


def _count(root: Element, number: int, most: int) -> None:
    """Write both numbers; the sockets follow where they can."""
    if find(root, "vcpus") is not None or find(root, "cpu/numa") is not None:
        raise Refused("vcpus can't be changed yet for a VM whose CPUs are laid out one by one (<vcpus> or <numa>)")
    element, topology = make(root, "vcpu"), find(root, "cpu/topology")
    element.text = str(most)
    element.attrib.pop("current", None)
    if number != most:
        element.set("current", str(number))
    if topology is not None and most % _per_socket(topology) == 0:
        topology.set("sockets", str(most // _per_socket(topology)))


def _check_vcpus(value: int) -> int:
    if not 1 <= value <= MOST:
        raise ValueError(f"{value} is not a number of virtual CPUs; write 1 to {MOST}")
    return value


def _check_cpu(value: str) -> str:
    if not MODEL.fullmatch(value):
        raise ValueError(f"{value!r} is not a CPU model; write host-model, host-passthrough or a name such as Nehalem")
    return value


def _check_topology(value: Mapping[str, int | None]) -> dict[str, int]:
    """What is given of it; a thread per core and a core per socket where the one of them is not said."""
    given = {name: number for name, number in value.items() if number is not None}
    given = {"cores": 1, "threads": 1, **given} if given else {}
    return {name: number for name, number in given.items() if name != "dies" or number > 1}


def _check_features(value: Mapping[str, Sequence[str] | None]) -> dict[str, list[str]]:
    """Names that QEMU may know, each once."""
    given = {policy: sorted(names) for policy, names in value.items() if names}
    names = [name for listed in given.values() for name in listed]
    for name in names:
        if not FEATURE.fullmatch(name):
            raise ValueError(f"{name!r} is not a CPU feature; write a name such as pcid or vmx")
    if len(set(names)) != len(names):
        raise ValueError("a feature is listed twice")
    return given


GIVEN = Most("max_vcpus")
VCPUS, MAX_VCPUS, CPU, QUOTA = Vcpus(), MaxVcpus(), Cpu(), Quota()
LEVEL_FIELDS = tuple(Field(name, type="int", check=between(1, MOST)) for name in LEVELS if name != "clusters")
FEATURE_FIELDS = tuple(Field(policy, type="list", elements="str") for policy in POLICIES)
CPU_FIELDS = (
    Field("vcpus", type="int", check=_check_vcpus, place=VCPUS, when="live"),
    Field("max_vcpus", type="int", check=_check_vcpus, place=MAX_VCPUS),
    Field("cpu", check=_check_cpu, place=CPU),
    Field("cpu_features", type="dict", fields=FEATURE_FIELDS, check=_check_features, place=Features()),
    Field("cpu_topology", type="dict", fields=LEVEL_FIELDS, check=_check_topology, place=Topology()),
    Field("cpu_shares", type="int", check=zero_or(between(2, 10000)), place=Nonzero("cputune/shares", int)),
    Field("cpu_quota", type="int", check=between(0, 100), place=QUOTA, when="live"),
)
