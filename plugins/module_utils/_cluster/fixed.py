# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a guest immovable, whatever the destination; read from what its node says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import maintenance
from .model import RESTART, Obstacle

# States in which libvirt refuses a migration or the guest would not survive it.
UNFIT = {
    "crashed": "destroy it or start it again",
    "in shutdown": "wait until it is off, then plan again",
    "pmsuspended": "wake it (virsh dompmwakeup), then plan again",
}
# In the words of `PAUSED` in _hypervisor.py.
FAULTY = ("I/O error", "watchdog", "crashed", "post-copy", "post-copy failed", "api error")
INTERRUPTED = ("migrating", "migration")


def obstacles(domain: Mapping[str, Any], copies: bool = False, ejects: bool = False) -> tuple[Obstacle, ...]:
    """All reasons why the domain (as node_info describes it) can't be moved.

    With `copies` its local files may be moved, with `ejects` its local media may be ejected.
    """
    own = maintenance.obstacles(domain)
    return (*_work(domain), *_state(domain), *_devices(domain), *_disks(domain, copies, ejects), *own)


def elsewhere(domain: Mapping[str, Any], dark: Sequence[str]) -> list[Obstacle]:
    """Why the domain stays while the `dark` nodes give no answer: it does not run here, and may run there.

    Modules migrate and vm refuse it, too.
    """
    seen = domain.get("state") == "running" and maintenance.verb(domain) != RESTART
    if seen or not dark:
        return []
    name, nodes = domain["name"], ", ".join(dark)
    if domain.get("state") != "running":
        text = f"{name} is {domain.get('state')} here, and may run on {nodes}, of which there is no answer"
    else:
        text = f"{name} would be shut down, and not be started while there is no answer of {nodes}"
    return [Obstacle("node_unreachable", text, maintenance.bring_back(dark))]


def copied(domain: Mapping[str, Any]) -> bool:
    """Whether the domain has disks that would have to be copied."""
    return any(_is_local(disk) and _can_be_copied(domain, disk) for disk in domain.get("disks") or [])


def _is_local(disk: Mapping[str, Any]) -> bool:
    return bool(disk.get("identity")) and not disk.get("shared_storage")


def _can_be_copied(domain: Mapping[str, Any], disk: Mapping[str, Any]) -> bool:
    plain = disk.get("type") == "file" and disk.get("format") in ("raw", "qcow2") and disk.get("device") == "disk"
    return (
        plain and not disk.get("readonly") and not disk.get("backing") and domain.get("state") in ("running", "paused")
    )


def interrupted(domain: Mapping[str, Any]) -> bool:
    """Whether a migration of it, ours or another's, has begun and has not been finished."""
    paused = domain.get("state") == "paused" and domain.get("reason") in INTERRUPTED
    return bool(domain.get("marker") or domain.get("job") or paused)


def _work(domain: Mapping[str, Any]) -> list[Obstacle]:
    name, job = domain["name"], domain.get("job")
    if job:
        kind = job.get("type", "other") if isinstance(job, Mapping) else str(job)
        mend = "wait until it ends (virsh domjobinfo shows it), then plan again"
        return [Obstacle("job", f"{name} has a running job ({kind})", mend)]
    if interrupted(domain):
        what = "carries the marker of a migration" if domain.get("marker") else "is paused by a migration"
        mend = "let the recovery decide (module migrate, state: recovered), then plan again"
        return [Obstacle("interrupted", f"{name} {what} that was not finished", mend)]
    return []


def _state(domain: Mapping[str, Any]) -> list[Obstacle]:
    name, state, reason = domain["name"], str(domain.get("state")), str(domain.get("reason"))
    if state in UNFIT:
        return [Obstacle("state", f"{name} is in state '{state}'", UNFIT[state])]
    if state == "paused" and reason in FAULTY:
        return [Obstacle("state", f"{name} is paused because of '{reason}'", "mend the cause and resume it first")]
    return []


def _devices(domain: Mapping[str, Any]) -> list[Obstacle]:
    name, found = domain["name"], []
    off = domain.get("state") == "stopped"
    for number, device in enumerate([] if off else domain.get("hostdevs") or []):
        mend = "detach it before the move, or shut the VM down: it comes home with the node"
        text = f"{name} uses a device of its node: {_label(device, number)}"
        found.append(Obstacle("host_device", text, mend))
    for number, share in enumerate([] if off else domain.get("filesystems") or []):
        mend = "unmount it in the guest and detach it; share the files over the network instead (NFS, CephFS)"
        text = f"{name} shares a folder with its node: {_label(share, number)}"
        found.append(Obstacle("filesystem", text, mend))
    if files := domain.get("state_elsewhere") if off else None:
        text = f"{name} is shut off and has {' and '.join(files)} state in a place of its own, which would stay behind"
        found.append(Obstacle("state_file", text, "start it: running, it takes that along"))
    if off and domain.get("managed_save"):
        text = f"{name} is shut off and its memory is saved on its node, where it would stay"
        found.append(Obstacle("managed_save", text, "start it, or remove what is saved (virsh managedsave-remove)"))
    if domain.get("has_snapshots"):
        mend = "remove them first (module snapshot)"
        found.append(Obstacle("snapshots", f"{name} has snapshots, which libvirt would leave behind", mend))
    return found


def holds_medium(disk: Mapping[str, Any]) -> bool:
    """Whether it is a drive with a medium of its node, without which libvirt would not let it move."""
    return disk.get("device") in ("cdrom", "floppy") and _is_local(disk) and not disk.get("optional")


def _disks(domain: Mapping[str, Any], copies: bool, ejects: bool) -> list[Obstacle]:
    name, found = domain["name"], []
    for disk in domain.get("disks") or []:
        identity, target = disk.get("identity"), disk.get("target")
        can = _can_be_copied(domain, disk)
        if not _is_local(disk) or (copies and can):
            continue
        if holds_medium(disk):
            mend = "let it be ejected (eject_cdrom), or put the image on shared storage"
            text = f"{name} has {identity} of its node in drive {target}"
            found += [] if ejects else [Obstacle("local_iso", text, mend)]
        elif disk.get("device") not in ("cdrom", "floppy"):
            mend = "copy it to shared storage (iSCSI, Ceph, NFS)"
            mend += ", or allow it to be copied along (copy_storage)" if can else ""
            mend += ", or flatten the linked clone (clone: full)" if disk.get("backing") else ""
            found.append(Obstacle("local_disk", f"{name} has disk {target} on its node only: {identity}", mend))
    return found


def _label(thing: Any, number: int) -> str:
    """The most telling name that the facts give of a device or a shared folder."""
    if isinstance(thing, Mapping):
        keys = ("address", "identity", "name", "source", "target", "type")
        return str(next((thing[key] for key in keys if thing.get(key)), f"number {number + 1}"))
    return str(thing)
