# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that follow from a VM's name: its UUID, its MAC addresses, its volumes, its initiator. Pure.

The same name gives the same answer on every machine and for ever: a VM that is built again is the same VM.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from typing import Any

NAMESPACE = uuid.UUID("7c1d0a52-6c1b-5e0e-9a64-1d1d6b0c5f3e")
INITIATOR_PREFIX = "iqn.2026-01.org.drover"
# Folders of /dev that are no volume groups; md has the arrays of mdadm. Not looked at: a name is one on all nodes.
NOT_GROUPS = {"mapper", "disk", "block", "san", "md"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def vm_uuid(name: str) -> str:
    """The UUID of the VM of this name."""
    return str(uuid.uuid5(NAMESPACE, name))


def vm_mac(name: str, number: int) -> str:
    """The MAC address of the VM's NIC of this number (from 0), in the range of QEMU/KVM (52:54:00)."""
    digest = hashlib.sha256(f"{NAMESPACE}/{name}/{number}".encode()).hexdigest()
    return ":".join(["52:54:00", digest[0:2], digest[2:4], digest[4:6]])


def volume_name(name: str, number: int) -> str:
    """The name of the VM's volume of this number (from 0)."""
    return f"drover-{name}-{number}"


def disk_name(name: str, target: str) -> str:
    """The name of the volume behind a disk of the VM, by its target alone: the number of vda is 0; sda stays a word."""
    number = target_number(target) if re.fullmatch("vd[a-z]{1,3}", target) else target
    return f"drover-{name}-{number}"


def logical_of(path: str) -> tuple[str, str] | None:
    """Volume group and logical volume of a path such as /dev/vg0/web1; None for other devices."""
    parts = path.split("/")
    if len(parts) != 4 or parts[:2] != ["", "dev"] or parts[2] in NOT_GROUPS or not all(parts[2:]):
        return None
    return parts[2], parts[3]


def seed_name(name: str) -> str:
    """The name of the file with what cloud-init is given at the VM's first boot."""
    return f"drover-{name}-seed.iso"


def iqn_part(name: str) -> str:
    """The name in the letters that an iSCSI qualified name may have; different names stay different."""
    plain = re.sub(r"[^a-z0-9.-]", "-", name.lower())
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def volume_iqn(prefix: str, name: str, number: int) -> str:
    """The IQN of the VM's volume of this number."""
    return f"{prefix}:{volume_name(iqn_part(name), number)}"


def initiator_iqn(name: str) -> str:
    """The IQN under which the VM's QEMU logs in; it belongs to the VM, so it is the same on every node."""
    return f"{INITIATOR_PREFIX}:vm-{iqn_part(name)}"


def target_name(prefix: str, number: int) -> str:
    """The name of a guest's disk: vda for 0, vdz for 25, vdaa for 26 (`prefix` is vd, sd or the like)."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(LETTERS))
        letters = LETTERS[rest] + letters
    return prefix + letters


def disk_target(disk: Mapping[str, Any], number: int) -> str:
    """The name of a guest's disk of this number, by its options `target` and `bus`."""
    return str(disk.get("target") or target_name("vd" if disk.get("bus", "virtio") == "virtio" else "sd", number))


def target_number(target: str) -> int:
    """The number of a target name: 0 for vda."""
    number = 0
    for letter in target[2:]:
        number = number * len(LETTERS) + LETTERS.index(letter) + 1
    return number - 1
