# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The emulated computer: a family, such as q35, in a version, such as pc-q35-9.2. Pure.

https://www.qemu.org/docs/master/system/target-i386.html. A definition that asks for a family gets the newest version of
the node, and that stays: another version may put devices elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from xml.etree.ElementTree import Element

from .._errors import Invalid, Refused
from .._xml import Property

NAME = re.compile(r"[a-z][a-z0-9]*([.-][a-z0-9]+){0,9}", re.ASCII)
VERSION = re.compile(r"-[a-z]*\d+(\.\d+)+$", re.ASCII)
FAMILIES = {"pc-q35": "q35", "pc-i440fx": "pc"}
PLACE = Property("os/type/@machine")
ANOTHER = "the guest would see another computer; remove the VM and build it again"


class Machine:
    """The name that the definition has, with its version where libvirt has found one."""

    def get(self, root: Element) -> str | None:
        """The name."""
        name: str | None = PLACE.get(root)
        return name

    def put(self, root: Element, value: str) -> None:
        """Write another version of the same family. Raises Refused for another family."""
        before = self.get(root) or value
        if machine_family(before) != machine_family(value):
            raise Refused(f"machine is {machine_family(before)} and can't become {value}: {ANOTHER}")
        PLACE.put(root, value)


def machine_family(machine: str) -> str:
    """q35 or pc for the versioned names of x86 machines (pc-q35-10.0, pc-i440fx-7.2), else the name without version."""
    name = VERSION.sub("", machine)
    return FAMILIES.get(name, name)


def same_machine(wanted: str, present: str | None) -> bool:
    """Whether a VM is the machine that is asked for; a family stands for each of its versions."""
    return present is not None and wanted in (present, machine_family(present))


def check_machine(value: str) -> str:
    """The name of a machine type of QEMU."""
    if not NAME.fullmatch(value) or len(value) > 63:
        raise ValueError(f"{value!r} is not a machine type; write q35, pc, or one with a version such as pc-q35-9.2")
    return value


def check_offered(wanted: str, offered: Collection[str]) -> None:
    """Raise Invalid for a version that this node does not have; what a family means there libvirt knows."""
    family = machine_family(wanted)
    if wanted in offered or wanted == family:
        return
    have = ", ".join(sorted(name for name in offered if machine_family(name) == family)) or "none of that family"
    raise Invalid(f"machine={wanted}: this node does not have it (it has: {have})", option="machine")


MACHINE = Machine()
