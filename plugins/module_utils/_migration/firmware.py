# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UEFI and the TPM of a VM that moves: whether the destination has them, and what is left of it where it was. Pure.

A VM that runs takes the variables of UEFI and the keys of its TPM along, by QEMU. libvirt then removes the keys where
it was, and leaves the file of the variables: a VM that is built there under its name would start with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from .._hypervisor import offered_firmware
from .._xml import Property, devices, find

FOLDER = PurePosixPath("/var/lib/libvirt/qemu/nvram")
# File systems that no other node sees; on one that is not listed the variables may be those of the VM that has moved.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs"})
MEND = (
    "install it there (hypervisor_firmware of role hypervisor); where it is installed, restart libvirtd, which looks "
    "once (VMs run on)"
)


def needs(root: Element, listed: Collection[str]) -> dict[str, Any]:
    """What of it a VM has: the file of its UEFI where its node lists that, an emulated TPM, its variables."""
    loader = Property("os/loader").get(root)
    tpm = any(Property("backend/@type").get(device) == "emulator" for device in devices(root, "tpm"))
    return {"loader": loader if loader in listed else None, "tpm": tpm, "variables": variables(root)}


def loaders(capabilities: Element) -> list[str]:
    """The files of UEFI that a node lists in its domain capabilities."""
    found = find(capabilities, "os/loader")
    return [] if found is None else [child.text or "" for child in found if child.tag == "value"]


def lacking(need: Mapping[str, Any], capabilities: Element) -> dict[str, str]:
    """What a node does not have of it (https://libvirt.org/formatdomaincaps.html)."""
    found = {}
    if need["loader"] and need["loader"] not in loaders(capabilities):
        found["firmware"] = f"it has no UEFI {need['loader']}"
    if need["tpm"] and "tpm" not in offered_firmware(capabilities):
        found["tpm"] = "it has no emulated TPM (swtpm)"
    return found


def variables(root: Element) -> str | None:
    """The file of UEFI's variables, where it is libvirt's own; libvirt 9.0 does not name it for a VM that is off."""
    if find(root, "os/nvram") is None and Property("os/@firmware").get(root) != "efi":
        return None
    path = Property("os/nvram").get(root) or str(FOLDER / f"{Property('name').get(root)}_VARS.fd")
    return path if PurePosixPath(path).parent == FOLDER else None


def is_local(path: str, mounts: str) -> bool:
    """Whether only this node sees a file; `mounts` is what /proc/self/mounts says."""
    lines = [line.split() for line in mounts.splitlines()]
    kinds = {words[1]: words[2] for words in lines if len(words) > 2}
    places = (str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents))
    return next((kinds[place] for place in places if place in kinds), "") in LOCAL


def remove_variables(path: str, mounts: Path) -> None:
    """Delete the file that a VM has left on this machine."""
    if is_local(path, mounts.read_text(encoding="utf-8")):
        Path(path).unlink(missing_ok=True)
