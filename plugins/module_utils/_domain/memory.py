# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory of a VM: what it has, what it can have while it runs, and the pages that the node gives it. Pure.

https://libvirt.org/formatdomain.html#memory-allocation and #memory-backing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Refused
from .._fields import Field, parse_size, size_text, zero_or
from .._xml import Flag, add, drop, find, make
from . import metadata
from .facts import size_of
from .most import Most

KIB, MIB = 2**10, 2**20
BACKING = Flag("memoryBacking/hugepages")


class Memory:
    """Bytes that the guest starts with; the rest up to the maximum is in its balloon."""

    def get(self, root: Element) -> int | None:
        """Bytes."""
        return size_of(find(root, "currentMemory")) or size_of(find(root, "memory"))

    def put(self, root: Element, value: int) -> None:
        """Write it. A maximum that was never given, or is too small, follows. Raises Refused."""
        _check_layout(root)
        given = GIVEN.is_given(root, most(root), self.get(root)) and value <= most(root)
        if not given:
            _write(root, "memory", value)
        _write(root, "currentMemory", value)
        GIVEN.mark(root, given and value == most(root))


class MaxMemory:
    """The most, in bytes, that the guest can have without a power cycle; None where it was never given."""

    def get(self, root: Element) -> int | None:
        """Bytes."""
        return most(root) if GIVEN.is_given(root, most(root), MEMORY.get(root)) else None

    def put(self, root: Element, value: int) -> None:
        """Write it and keep the memory. Raises Refused."""
        _check_layout(root)
        memory = MEMORY.get(root) or value
        if value < memory:
            raise Refused(f"max_memory={size_text(value)} is less than the memory of {size_text(memory)}")
        _write(root, "currentMemory", memory)
        _write(root, "memory", value)
        GIVEN.mark(root, value == memory)


class MinMemory:
    """The least, in bytes, that the node's program for balloons may leave the guest; None where it leaves it all.

    It is in the VM's own record: of libvirt's `min_guarantee` its driver for QEMU wants to know nothing.
    """

    def get(self, root: Element) -> int | None:
        """Bytes."""
        text = str(metadata.read(root).get("min_memory"))
        return int(text) if text.isdecimal() else None

    def put(self, root: Element, value: int | None) -> None:
        """Write it; 0 takes it away. `check_minimum` says whether it fits."""
        if (value or None) != self.get(root):
            metadata.edit(root, {"min_memory": value})


class Hugepages:
    """Whether the node backs the memory with huge pages: True (its default size), a size in bytes, or None."""

    def get(self, root: Element) -> Any:
        """The size; "mixed" where NUMA nodes have pages of their own."""
        element = find(root, "memoryBacking/hugepages")
        pages = [] if element is None else [child for child in element if child.tag == "page"]
        if element is None or not pages:
            return None if element is None else True
        return "mixed" if len(pages) > 1 or pages[0].get("nodeset") else _page_size(pages[0])

    def put(self, root: Element, value: Any) -> None:
        """Write it. Raises Refused where NUMA nodes have pages of their own."""
        if self.get(root) == "mixed":
            raise Refused("hugepages can't be changed yet for a VM whose NUMA nodes have pages of their own")
        BACKING.put(root, bool(value))
        pages = make(root, "memoryBacking/hugepages") if value else Element("none")
        for page in list(pages):
            drop(pages, page)
        if value and value is not True:
            add(pages, "page", {"size": str(value // KIB), "unit": "KiB"})


def most(root: Element) -> int:
    """The maximum in bytes."""
    return size_of(find(root, "memory")) or 0


def check_minimum(root: Element) -> None:
    """Raise Refused for a minimum that is more than the memory."""
    memory, least = MEMORY.get(root), MIN_MEMORY.get(root)
    if memory and least and least > memory:
        raise Refused(f"min_memory={size_text(least)} is more than the memory of {size_text(memory)}")


def compared(running: Element, definition: Mapping[str, Any]) -> dict[str, Any]:
    """Both options of a running VM, as they are to be compared with its sheet.

    How far the balloon is matters to nobody: a guest takes its time for it, or has no driver. libvirt asks it at each
    start. Where it was never given, the maximum is a part of the memory. With a minimum, the node's program moves the
    balloon: the VM counts as having what it can have.
    """
    if most(running) == (definition["max_memory"] or definition["memory"]):
        return {"memory": definition["memory"], "max_memory": definition["max_memory"]}
    if definition["max_memory"] is None:
        return {"memory": most(running), "max_memory": None}
    memory = min(definition["memory"], most(running)) if definition["min_memory"] else MEMORY.get(running)
    return {"memory": memory, "max_memory": most(running)}


def _page_size(page: Element) -> int | None:
    size = Element("size", {"unit": page.get("unit", "KiB")})
    size.text = page.get("size")
    return size_of(size)


def _check_layout(root: Element) -> None:
    for path in ("cpu/numa", "devices/memory", "maxMemory"):
        if find(root, path) is not None:
            raise Refused(f"memory can't be changed yet for a VM with <{path.rpartition('/')[2]}> in its definition")


def _write(root: Element, name: str, value: int) -> None:
    element = make(root, name)
    if size_of(element) != value:
        element.set("unit", "KiB")
        element.text = str(value // KIB)


def check_memory(value: int) -> int:
    """Whole mebibytes, in bytes."""
    if value % MIB or not 16 * MIB <= value <= 2**44:
        raise ValueError(f"{value} bytes are not whole mebibytes from 16MiB to 16TiB")
    return value


def check_hugepages(value: Any) -> Any:
    """A boolean, or the size of a page in bytes."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if str(value).strip().lower() in words:
        return words[str(value).strip().lower()]
    size = parse_size(value)
    if size & (size - 1) or not 64 * KIB <= size <= 2**34:
        raise ValueError(f"{value!r} is not the size of a page; write true, false, or a size such as 2MiB or 1GiB")
    return size


GIVEN = Most("max_memory")
MEMORY, MAX_MEMORY, MIN_MEMORY = Memory(), MaxMemory(), MinMemory()
MEMORY_FIELDS = (
    Field("memory", type="size", check=check_memory, place=MEMORY, when="live"),
    Field("max_memory", type="size", check=check_memory, place=MAX_MEMORY),
    Field("min_memory", type="size", check=zero_or(check_memory), place=MIN_MEMORY, when="unseen"),
    Field("hugepages", type="raw", check=check_hugepages, place=Hugepages()),
    Field("nosharepages", type="bool", place=Flag("memoryBacking/nosharepages")),
)
