# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UEFI and the TPM of a VM that moves: whether the destination has them, and which files of this node are the VM's.

A VM that runs takes the variables of UEFI and the keys of its TPM along, by QEMU. libvirt then removes the keys where
it was, and leaves the file of the variables: a VM that is built there under its name would start with them. Of a VM
that is off libvirt takes nothing along.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from .._domain import state_files
from .._hypervisor import offered_firmware
from .._xml import Property, find

MOUNTS = Path("/proc/self/mounts")
# File systems that no other node sees; on one that is not listed the variables may be those of the VM that has moved.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs"})
MEND = (
    "install it there (hypervisor_firmware of role hypervisor); where it is installed, restart libvirtd, which looks "
    "once (VMs run on)"
)


def needs(root: Element, listed: Collection[str]) -> dict[str, Any]:
    """What of it a VM has: the file of its UEFI where its node lists that, an emulated TPM."""
    loader = Property("os/loader").get(root)
    return {"loader": loader if loader in listed else None, "tpm": "tpm" in state_files.kinds(root)}


def kept(root: Element, running: bool, mounts: Path = MOUNTS) -> list[str]:
    """The files of this node that stay behind when the VM leaves, unless somebody takes them along; sorted.

    Of one that runs only the variables: QEMU takes their content along, and libvirt deletes the keys.
    """
    variables, keys = state_files.variables(root), None if running else state_files.keys(root)
    found = [Path(variables)] if variables else []
    if keys and Path(keys).is_dir():
        found += [path for path in Path(keys).iterdir() if path.name != state_files.LOCK]
    seen = mounts.read_text(encoding="utf-8") if found else ""
    return sorted(str(path) for path in found if path.is_file() and is_local(str(path), seen))


def unmoved(root: Element, mounts: Path = MOUNTS) -> list[str]:
    """What of it a VM that is off can't take along: it is not in libvirt's own places, or not on this node alone."""
    places = {"nvram": state_files.variables(root), "tpm": state_files.keys(root)}
    seen = mounts.read_text(encoding="utf-8")
    shared = [kind for kind, place in places.items() if place and not is_local(place, seen)]
    return sorted({*state_files.elsewhere(root), *shared})


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


def is_local(path: str, mounts: str) -> bool:
    """Whether only this node sees a file; `mounts` is what /proc/self/mounts says."""
    lines = [line.split() for line in mounts.splitlines()]
    kinds = {words[1]: words[2] for words in lines if len(words) > 2}
    places = (str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents))
    return next((kinds[place] for place in places if place in kinds), "") in LOCAL
