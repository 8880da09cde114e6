# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a snapshot of a VM is kept: in its disks or beside them, and why neither goes. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Refused
from .._xml import add, text_of

AUTO, INTERNAL, RBD, EXTERNAL = "auto", "internal", "rbd", "external"
Disk = Mapping[str, Any]


def written(facts: Mapping[str, Any]) -> list[Disk]:
    """The disks whose state is saved: those that the guest can write to."""
    return [one for one in facts["disks"] if one["device"] == "disk" and not one["readonly"] and one["identity"]]


def on_volumes(facts: Mapping[str, Any]) -> list[Disk]:
    """Those of them that are no files."""
    return [disk for disk in written(facts) if path_of(disk) is None]


def path_of(disk: Disk) -> str | None:
    """The file of a disk; None for other storage."""
    kind, _colon, path = str(disk["identity"]).partition(":")
    return path if kind == "file" else None


def choose(facts: Mapping[str, Any], memory: bool, asked: str, present: Collection[str], folder: str | None) -> str:
    """One of the kinds, by what the disks are and what `present` snapshots of the VM are. Raises Refused.

    Two kinds in one VM can't be undone: libvirt then deletes neither (seen with 11.3), and what an external one holds
    of an RBD image is worth nothing when that is set back.
    """
    if len(set(present)) > 1:
        both = " and ".join(kind for kind in (INTERNAL, RBD, EXTERNAL) if kind in present)
        raise Refused(
            f"{facts['name']} has {both} snapshots, and neither can go beside the other, so "
            f"no more are made. Look at them (virsh snapshot-list {facts['name']} --tree); docs/snapshots.md says "
            "how they go by hand"
        )
    against = {
        INTERNAL: _against_internal(facts, memory),
        RBD: _against_rbd(facts, memory),
        EXTERNAL: _against_external(facts, folder),
    }
    if asked == AUTO and folder is not None:
        against[RBD] = against[RBD] or "a directory is for external ones"
    kinds = sorted(present) or [INTERNAL, RBD, EXTERNAL]
    possible = [kind for kind in kinds if asked in (AUTO, kind) and not against[kind]]
    if len(kinds) == 1 and asked not in (AUTO, kinds[0]):
        raise Refused(
            f"{facts['name']} has {kinds[0]} snapshots; an {asked} one beside them could not be deleted again, or they "
            "could not be gone back to. Remove them first"
        )
    if possible:
        return possible[0]
    why = "; ".join(f"no {kind} one, as {against[kind]}" for kind in kinds if asked in (AUTO, kind))
    has = f", and it has {kinds[0]} ones already" if len(kinds) == 1 else ""
    raise Refused(f"{facts['name']} can't have this snapshot: {why}{has}", reasons=against)


def _against_internal(facts: Mapping[str, Any], memory: bool) -> str:
    for disk in written(facts):
        if disk["format"] != "qcow2" or path_of(disk) is None:
            return f"{disk['target']} ({disk['identity']}) is no qcow2 file"
    runs = facts["state"] != "stopped"
    if runs and not memory:
        return "a running machine's disks alone are kept by external ones (or say memory: true)"
    if runs and facts["state_files"]:
        return f"its {' and '.join(facts['state_files'])} state is in a file of the node"
    return "" if written(facts) else "it has no disk to keep it in"


def _against_rbd(facts: Mapping[str, Any], memory: bool) -> str:
    disks = written(facts)
    for disk in disks:
        if disk["type"] != RBD:
            return f"{disk['target']} ({disk['identity']}) is no RBD image"
    if memory:
        return "RBD keeps the disks alone (leave memory out)"
    if len(disks) > 1 and facts["state"] not in ("running", "stopped"):
        return f"it is {facts['state']}, and might go on between two of its images: let it run, or stop it"
    return "" if disks else "it has no disk"


def _against_external(facts: Mapping[str, Any], folder: str | None) -> str:
    for disk in on_volumes(facts):
        on_server = ", or keep the volume on its server (iscsi_volume with snapshot_of)"
        other = on_server if disk["type"] == "iscsi" else ""
        what = f"{disk['target']} ({disk['identity']}) is no file"
        if facts["state"] == "stopped":
            return f"{what}, and only QEMU puts one over it: start it first{other}"
        if folder is None:
            where = "say directory (in playbooks drover_snapshot_directory), a folder of the node for its changes"
            return f"{what}; {where}{other}"
    return "" if written(facts) else "it has no disk"


def overlays(facts: Mapping[str, Any], name: str, folder: str | None) -> dict[str, str]:
    """The file that each disk writes to after an external snapshot."""
    found = {}
    for disk in written(facts):
        own = PurePosixPath(path_of(disk) or "/")
        place = PurePosixPath(folder) if folder else own.parent
        found[str(disk["target"])] = str(place / f"{facts['name']}-{disk['target']}.{name}.qcow2")
    return found


def memory_path(facts: Mapping[str, Any], name: str, folder: str | None) -> str:
    """The file of the memory beside the first of them."""
    first = next(iter(overlays(facts, name, folder).values()))
    return str(PurePosixPath(first).parent / f"{facts['name']}.{name}.memory")


def xml(facts: Mapping[str, Any], name: str, description: str, kind: str, memory: bool, folder: str | None) -> str:
    """The snapshot as libvirt takes it. Disks that are not saved are named, so that nothing is left to a default."""
    root = Element("domainsnapshot")
    add(root, "name").text = name
    if description:
        add(root, "description").text = description
    if facts["state"] != "stopped":
        saved = {"snapshot": kind if memory else "no"}
        if memory and kind == EXTERNAL:
            saved["file"] = memory_path(facts, name, folder)
        add(root, "memory", saved)
    disks, files = add(root, "disks"), overlays(facts, name, folder)
    for disk in facts["disks"]:
        target = str(disk["target"])
        saves = target in files
        element = add(disks, "disk", {"name": target, "snapshot": kind if saves else "no"})
        if saves and kind == EXTERNAL:
            element.set("type", "file")
            add(element, "driver", {"type": "qcow2"})
            add(element, "source", {"file": files[target]})
    return text_of(root)


def too_long(chains: Mapping[str, Sequence[str]], most: int) -> str:
    """Which disk would have more files than `most` after one more snapshot; nothing when none has."""
    return next((f"{target} lies in {len(files)} files" for target, files in chains.items() if len(files) >= most), "")
