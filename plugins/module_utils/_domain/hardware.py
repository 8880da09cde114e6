# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a VM that are neither disks nor NICs: one record each, for the module, the XML and the sheet."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from .._fields import Field
from .._xml import Property
from . import metadata
from .cpu import CPU_FIELDS
from .firmware import FIRMWARE_FIELDS
from .machine import ANOTHER, MACHINE, check_machine, same_machine
from .memory import MEMORY_FIELDS
from .passthrough import PASSTHROUGH_FIELDS
from .peripherals import PERIPHERAL_FIELDS

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=-]{0,62}", re.ASCII)
# As in _cluster/maintenance.py.
ON_MAINTENANCE = ("migrate", "restart", "shutdown", "leave", "refuse")
ANSWERS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Said:
    """A value of the VM's own record in its metadata: a text, or a boolean."""

    name: str
    boolean: bool = False

    def get(self, root: Element) -> Any:
        """The value; None where nothing is said."""
        text = metadata.read(root).get(self.name)
        return ANSWERS.get(str(text)) if self.boolean else text

    def put(self, root: Element, value: Any) -> None:
        """Write it."""
        metadata.edit(root, {self.name: ("yes" if value else "no") if self.boolean else value})


def _check_uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a UUID such as {uuid.UUID(int=0x52540000 << 96)}") from None


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


HARDWARE: tuple[Field, ...] = (
    Field("uuid", check=_check_uuid, place=Property("uuid"), fixed="a VM keeps its UUID; it is the same VM by it"),
    *MEMORY_FIELDS,
    *CPU_FIELDS,
    Field("virt_type", choices=("kvm", "qemu"), place=Property("@type"), fixed=ANOTHER),
    Field("machine", check=check_machine, place=MACHINE, same=same_machine),
    *FIRMWARE_FIELDS,
    *PERIPHERAL_FIELDS,
    *PASSTHROUGH_FIELDS,
    Field("title", check=check_text, place=Property("title"), when="unseen"),
    Field("description", check=check_text, place=Property("description"), when="unseen"),
    Field("owner", check=check_text, place=Said("owner"), when="unseen"),
    Field("rollback_safe", type="bool", place=Said("rollback_safe", boolean=True), when="unseen"),
    Field("on_maintenance", choices=ON_MAINTENANCE, place=Said("on_maintenance"), when="unseen"),
)
