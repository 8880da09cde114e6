# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that speaks against a migration, all of it at once, before anything is changed.

`traits` reads what the VM needs at its source, `answer` what the destination says to that, `blockers` compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from .._cluster.fixed import holds_medium
from .._domain import leases, metadata
from .._domain.facts import disk_facts, hostdev_facts, nic_facts, shares, size_of
from .._fields import UNITS, size_text
from .._node import shared_mounts
from .._xml import devices, find, parse, text_of
from . import devices as block_devices
from . import firmware, stream
from .ends import End
from .volumes import CLAIM

OVERHEAD = 128 * UNITS["M"]
AWAY = "take it away (hostdevs, filesystems of module vm) and restart the VM, or shut it down"
# What the destination may take for its answer, the time in which the memory's way is tried included.
SECONDS = stream.SECONDS + 10.0


@dataclass(frozen=True)
class Blocker:
    """One reason against the migration, and what mends it."""

    reason: str
    text: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        """As data for a result."""
        return {"reason": self.reason, "text": self.text, "mend": self.mend}


def at_work(job: str) -> list[dict[str, str]]:
    """What speaks against moving a VM that has this job; for the end of one that is no migration libvirt would wait."""
    mend = "wait until it ends (virsh domjobinfo shows it)"
    found = Blocker("job", "it has a job that runs, of another operation: a backup, a snapshot or a dump", mend)
    return [found.as_dict()] if job == "other" else []


def traits(end: End, uuid: str) -> dict[str, Any]:
    """What the VM is made of, as plain data, from the definition that libvirt would send to the other node."""
    root = parse(end.definition(uuid, live=True))
    mounts = shared_mounts()
    disks = [disk_facts(disk, mounts) for disk in devices(root, "disk")]
    running = (end.state(uuid) or ("stopped",))[0] != "stopped"
    kind = find(root, "os/type")
    cpu = find(root, "cpu")
    basic = {
        "arch": kind.get("arch") if kind is not None else None,
        "machine": kind.get("machine") if kind is not None else None,
        "virt_type": root.get("type"),
    }
    return {
        **basic,
        **firmware.needs(root, end.loaders(basic) if find(root, "os/loader") is not None else []),
        "name": find_text(root, "name"),
        "tags": metadata.read(root)["tags"],
        "uuid": uuid,
        "running": running,
        **_memory(root),
        "cpu": text_of(cpu) if cpu is not None else None,
        "passthrough": cpu is not None and cpu.get("mode") == "host-passthrough",
        "host_cpu": end.host_cpu(),
        "disks": disks,
        "copies": [copy for disk in devices(root, "disk") if running for copy in _copy(end, uuid, disk, mounts)],
        "copying": False,
        "ejecting": False,
        "devices": block_devices.read(devices(root, "disk"), end.lvm),
        "lease": leases.read(root),
        "secrets": _secrets(root),
        "bridges": sorted({b for b in (nic_facts(nic)["bridge"] for nic in devices(root, "interface")) if b}),
        "hostdevs": [hostdev_facts(device)["name"] for device in devices(root, "hostdev")],
        "filesystems": [name or "without a name" for name in shares(root)],
        "kept": firmware.kept(root, running),
        "state": firmware.kept(root, running=False),
        "unmoved": firmware.unmoved(root),
        "snapshots": end.snapshots(uuid),
        "managed_save": end.has_managed_save(uuid),
    }


def _copy(end: End, uuid: str, disk: Element, mounts: list[str]) -> list[dict[str, Any]]:
    """What it takes to copy a disk of one that runs; nothing for a disk that is shared, or that can't be copied."""
    facts = disk_facts(disk, mounts)
    source = find(disk, "source")
    plain = facts["type"] == "file" and facts["device"] == "disk" and facts["format"] in ("raw", "qcow2")
    if source is None or not plain or facts["backing"] or facts["readonly"] or facts["shared_storage"]:
        return []
    size = end.capacity(uuid, facts["target"])
    return [{"target": facts["target"], "path": source.get("file"), "format": facts["format"], "size": size}]


def _memory(root: Element) -> dict[str, Any]:
    return {
        "memory": size_of(find(root, "memory")) or 0,
        "paged": find(root, "memoryBacking/hugepages") is not None,
    }


def find_text(root: Element, path: str) -> str:
    """The text of an element, or nothing."""
    element = find(root, path)
    return "" if element is None else (element.text or "")


def _secrets(root: Element) -> list[dict[str, str]]:
    elements = [element for disk in devices(root, "disk") for element in disk.iter("secret")]
    return [{key: value for key, value in element.items() if key in ("type", "usage", "uuid")} for element in elements]


def answer(end: End, needs: list[dict[str, Any]], address: str) -> dict[str, Any]:
    """What the destination says: its names and UUIDs, free memory, and per VM its own words against it.

    `silent` is why no memory can be sent to its migration `address` from this machine.
    """
    return {
        "silent": stream.silent(address) if any(need["running"] for need in needs) else "",
        "domains": end.names(),
        "free": end.free_memory(),
        "room": end.volumes.room(str(Path(path).parent) for need in needs for path in _files(need)),
        "taken": end.volumes.taken(path for need in needs for path in need["state"]),
        "paths": end.paths() if any(need["devices"] for need in needs) else {},
        "against": {need["uuid"]: _against(end, need) for need in needs},
    }


def _files(need: Mapping[str, Any]) -> list[str]:
    """The files whose folders the destination is asked for."""
    return [*(copy["path"] for copy in need["copies"]), *([need["lease"]] if need["lease"] else [])]


def _against(end: End, need: Mapping[str, Any]) -> dict[str, str]:
    words = end.refuses_machine(need)
    # Its CPU is compared for its machine type, so without that the answer would be the same words once more.
    if need["running"] and need["cpu"] and not need["passthrough"] and "machine" not in words:
        words["cpu"] = end.refuses_cpu(need)
    if need["passthrough"]:
        words["cpu"] = end.refuses_host_cpu(need["host_cpu"])
    for secret in need["secrets"]:
        name = secret.get("usage") or secret.get("uuid", "")
        words[f"secret {name}"] = "" if end.has_secret(secret) else f"it has no secret {name}"
    return {what: text for what, text in words.items() if text}


def blockers(
    need: Mapping[str, Any], target: str, said: Any, known: Mapping[str, Any] | None, leases: Mapping[str, str]
) -> list[Blocker]:
    """All that speaks against moving the VM.

    `said` is the destination's answer, `known` its node facts if given, `leases` the lease directories by node.
    """
    found = _own(need) + _storage(need)
    if not isinstance(said, Mapping):
        return [*found, Blocker("unreachable", f"{target} gives no answer: {said}", "bring the node or its TLS back")]
    found += (
        _state(need, target, said)
        + _devices(need, target, said)
        + _there(need, target, said)
        + _room(need, target, said)
        + _lease(need, target, said, leases)
    )
    return found + _known(need, target, known or {})


def _own(need: Mapping[str, Any]) -> list[Blocker]:
    """What the VM itself has that can't travel."""
    found = []
    if need["hostdevs"] and need["running"]:
        found.append(Blocker("hostdev", f"it has {', '.join(need['hostdevs'])} of the node", AWAY))
    if need["filesystems"] and need["running"]:
        text = f"it shares folders with the node: {', '.join(need['filesystems'])}"
        found.append(Blocker("filesystem", text, AWAY))
    if need["snapshots"]:
        text = f"{need['snapshots']} snapshot(s), which libvirt leaves behind"
        found.append(Blocker("snapshots", text, "remove them first (drover.kvm.snapshot)"))
    if need["managed_save"]:
        found.append(Blocker("managed_save", "its memory is saved on the node", "start it here first"))
    if not need["running"] and need["unmoved"]:
        what = " and ".join(need["unmoved"])
        text = f"it is shut off and has {what} state in a place of its own, which only a VM that runs takes along"
        found.append(Blocker("state_file", text, "start it and move it while it runs"))
    return found


def _storage(need: Mapping[str, Any]) -> list[Blocker]:
    found = []
    for disk in need["disks"]:
        if disk["identity"] is None or disk["shared_storage"]:
            continue
        if holds_medium(disk):
            text = f"{disk['target']} holds a medium that only this node has ({disk['identity']})"
            found += [] if need["ejecting"] else [Blocker("local_medium", text, "let it be ejected (eject_cdrom)")]
        elif disk["device"] in ("cdrom", "floppy"):
            continue
        elif disk["target"] not in {one["target"] for one in (*need["copies"], *need["devices"])}:
            text = f"disk {disk['target']} is on storage of this node alone ({disk['identity']})"
            found.append(Blocker("local_disk", text, _mend(need)))
    return found


def _state(need: Mapping[str, Any], target: str, said: Mapping[str, Any]) -> list[Blocker]:
    """What the destination has of UEFI and TPM of such a VM already: somebody's, and nobody can tell whose.

    Of one that runs libvirt would put its own in their place.
    """
    taken = sorted({*need["state"]} & {*said["taken"]})
    mend = "look whose it is, and move it out of the way"
    return [Blocker("file_exists", f"{target} has a file {path} already", mend) for path in taken]


def media(need: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The drives of a VM with media that only its node has."""
    return [disk for disk in need["disks"] if holds_medium(disk)]


def _devices(need: Mapping[str, Any], target: str, said: Mapping[str, Any]) -> list[Blocker]:
    """Whether the destination has the block devices, by what they are."""
    found = []
    for device in need["devices"]:
        name = f"the disk of {device['target']}, {device['path']}"
        for wwid, size in device["disks"]:
            found += _same(name, wwid, size, target, said["paths"].get(wwid, []))
        missing = [wwid or "no WWID" for wwid, _size in device["disks"] if wwid not in said["paths"]]
        if missing:
            text = f"{target} does not have {name} ({', '.join(missing)})"
            mend = "log in to it there (role san_initiator), or move it to shared storage first"
            found.append(Blocker("local_disk", text, mend))
        elif device["fault"]:
            mend = "move the disk to a shared group (module volume_group), or to other shared storage"
            found.append(Blocker("local_disk", f"disk {device['target']}: {device['fault']}", mend))
    return found


def _same(name: str, wwid: str, size: int, target: str, paths: list[Mapping[str, Any]]) -> list[Blocker]:
    """Whether what has the WWID at the destination is one disk, and this one.

    Two logical units of one target are two volumes, whatever WWID the array says: a clone may keep that of its origin.
    """
    ends: dict[str, Mapping[str, Any]] = {}
    for path in (path for path in paths if path["place"].startswith("scsi_")):
        first = ends.setdefault(path["place"].rpartition("_")[0], path)
        if first["place"] != path["place"]:
            text = f"{name}: {target} has two volumes of the WWID {wwid}, {first['name']} and {path['name']}"
            mend = "is one a clone that kept the serial of the other? Give it one of its own on the SAN"
            return [Blocker("local_disk", text, mend)]
    sizes = {path["size"] for path in paths} - {0}
    if size and sizes and size not in sizes:
        text = f"{name} has {size_text(size)}, on {target} {' or '.join(map(size_text, sorted(sizes)))}"
        mend = "let that node see that the volume grew (role san_initiator); or is it another volume of the same WWID?"
        return [Blocker("local_disk", text, mend)]
    return []


def _mend(need: Mapping[str, Any]) -> str:
    if not need["copying"]:
        return "move it to shared storage first, or have it copied with storage=copy"
    if not need["running"]:
        return "start it: only a running VM is copied"
    return (
        "move it to shared storage first, or, a linked clone, flatten it (clone: full): only a raw or qcow2 file that "
        "is based on no other is copied"
    )


def _room(need: Mapping[str, Any], target: str, said: Mapping[str, Any]) -> list[Blocker]:
    """What the destination says to the files that would be copied to it."""
    found: list[Blocker] = []
    sizes: dict[str, int] = {}
    for copy in need["copies"]:
        path = Path(copy["path"])
        room = said["room"][str(path.parent)]
        names = room.get("names", ())
        if "error" in room:
            mend = f"make the folder {path.parent} there, or mount what belongs there"
            found.append(Blocker("folder", f"{target} has no place for {path}: {room['error']}", mend))
        elif path.name in names and path.name + CLAIM not in names:
            text = f"{target} has a file {path} already"
            found.append(Blocker("file_exists", text, "look whose it is, and move it out of the way"))
        else:
            sizes[str(path.parent)] = sizes.get(str(path.parent), 0) + space(copy)
    for folder, size in sizes.items():
        if size > (free := said["room"][folder]["free"]):
            text = f"{folder} on {target} has {free >> 20} MiB free, the disks may take {size >> 20}"
            found.append(Blocker("room", text, "make room there, or choose another node"))
    return found


def _lease(
    need: Mapping[str, Any], target: str, said: Mapping[str, Any], directories: Mapping[str, str]
) -> list[Blocker]:
    """Whether the VM will have the same lease at the destination. libvirt does not ask that by itself."""
    # Without a directory on any node, the lease in a definition is a rest that nobody looks at.
    if not need["lease"] or not directories:
        return []
    path = Path(need["lease"])
    room = said["room"][str(path.parent)]
    words = room.get("error") or ("" if path.name in room["names"] else f"{path.parent} there holds no {path.name}")
    if directories.get(target) != str(path.parent):
        words = f"its lease directory is {directories.get(target) or 'not set'}"
    mend = "mount it there and apply role drover.kvm.hypervisor; stop and start a VM whose lease is in an older one"
    return [Blocker("lease", f"{target} does not have the lease {path}: {words}", mend)] if words else []


def space(copy: Mapping[str, Any]) -> int:
    """The bytes that a copy may take, with what a format adds."""
    return int(copy["size"]) * 105 // 100


def beside(need: Mapping[str, Any]) -> int:
    """The bytes that a VM takes of what a node has free; huge pages are no part of that, and QEMU asks for them."""
    return OVERHEAD + (0 if need["paged"] else int(need["memory"]))


def _there(need: Mapping[str, Any], target: str, said: Mapping[str, Any]) -> list[Blocker]:
    """What the destination says."""
    found = []
    if need["running"] and said["silent"]:
        text = f"{target} does not answer on the migration network ({said['silent']})"
        found.append(Blocker("migration_network", text, stream.mend("this node", target)))
    for name, uuid in said["domains"].items():
        if (name == need["name"]) != (uuid == need["uuid"]):
            text = f"{target} has another VM {name} with the UUID {uuid}"
            found.append(Blocker("exists", text, "rename or remove one of the two"))
    if need["running"] and said["free"] < beside(need):
        text = f"{target} has {said['free'] >> 20} MiB of memory free, the VM takes {beside(need) >> 20}"
        found.append(Blocker("memory", text, "move something away from there, or choose another node"))
    mends = {"cpu": "give the VM a CPU model that both nodes have", "machine": "choose a node with the newer QEMU"}
    mends.update(dict.fromkeys(("firmware", "tpm"), firmware.MEND))
    for what, words in said["against"].get(need["uuid"], {}).items():
        mend = mends.get(what, "define the secret there (module drover.kvm.secret)")
        found.append(Blocker(what.split(" ", maxsplit=1)[0], f"{target}: {words}", mend))
    return found


def _known(need: Mapping[str, Any], target: str, known: Mapping[str, Any]) -> list[Blocker]:
    """What libvirt's connection does not tell, but the node's facts do."""
    found = []
    cordon = known.get("cordon")
    if cordon:
        text = f"{target} is cordoned since {cordon.get('since')} by {cordon.get('by')} ({cordon.get('reason')})"
        found.append(Blocker("cordoned", text, "choose another node, or end the cordon"))
    bridges = {bridge["name"] for bridge in known.get("bridges") or []}
    missing = [bridge for bridge in need["bridges"] if bridges and bridge not in bridges]
    mend = "make it there (module drover.kvm.ovs_bridge)"
    return found + [Blocker("bridge", f"{target} has no bridge {bridge}", mend) for bridge in missing]
