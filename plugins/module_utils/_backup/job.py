# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job with which QEMU copies the disks of a running VM as they are at one moment, and its checkpoints.

libvirt's backup in push mode (https://libvirt.org/formatbackup.html): QEMU writes a qcow2 file for each disk. The
checkpoint that begins with it (https://libvirt.org/formatcheckpoint.html) is a bitmap in each qcow2 disk of what the
guest writes from then on, and with it the next backup copies only that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Callable
from xml.etree.ElementTree import Element, SubElement

from .._errors import DroverError, Failed, TimedOut
from .._libvirt import Node
from .._xml import devices, find, parse, target_of, text_of

BACKUP, COMPLETED = 9, 3  # VIR_DOMAIN_JOB_OPERATION_BACKUP, VIR_DOMAIN_JOB_COMPLETED
POLL = 0.3


def checkpoint_name(backup: str) -> str:
    """The checkpoint that begins with a backup."""
    return f"drover-{backup}"


def backup_xml(
    files: Mapping[str, str], spared: Sequence[str], base: str | None, noted: Collection[str], secret: str | None = None
) -> str:
    """What libvirt is asked for: `files` by disk; of the `noted` ones only what has changed since checkpoint `base`.

    `secret` is the UUID of the secret that opens the files, where they are encrypted.
    """
    root = Element("domainbackup", {"mode": "push"})
    disks = SubElement(root, "disks")
    for name, path in files.items():
        since = {"backupmode": "incremental", "incremental": base} if base and name in noted else {}
        disk = SubElement(disks, "disk", {"name": name, "type": "file", "backup": "yes", **since})
        target = SubElement(disk, "target", {"file": path})
        if secret is not None:
            encryption = SubElement(target, "encryption", {"format": "luks"})
            SubElement(encryption, "secret", {"type": "passphrase", "uuid": secret})
        SubElement(disk, "driver", {"type": "qcow2"})
    for name in spared:
        SubElement(disks, "disk", {"name": name, "backup": "no"})
    return text_of(root)


@contextmanager
def known_key(node: Node, uuid: str, key: str | None) -> Iterator[str | None]:
    """libvirt knows the key of the files while it lets QEMU begin: in its memory only, and nobody can read it back."""
    if key is None:
        yield None
        return
    root = Element("secret", {"ephemeral": "yes", "private": "yes"})
    SubElement(root, "uuid").text = uuid
    SubElement(root, "description").text = "drover.kvm: the key of a backup that begins"
    node.define_secret(text_of(root))
    try:
        node.set_secret_value(uuid, key.encode())
        yield uuid
    finally:
        node.undefine_secret(uuid)


def checkpoint_xml(name: str, targets: Sequence[str], spared: Sequence[str]) -> str:
    """The checkpoint of these disks, which are qcow2."""
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name
    disks = SubElement(root, "disks")
    for target in targets:
        SubElement(disks, "disk", {"name": target, "checkpoint": "bitmap"})
    for target in spared:
        SubElement(disks, "disk", {"name": target, "checkpoint": "no"})
    return text_of(root)


def targets_of(xml: str) -> list[str]:
    """The files that a backup which runs writes to."""
    found = [find(disk, "target") for disk in find(parse(xml), "disks") or ()]
    return [str(target.get("file")) for target in found if target is not None and target.get("file")]


def changed(node: Node, vm: str, checkpoint: str) -> int | None:
    """Bytes that have changed since a checkpoint; None where libvirt can't tell."""
    try:
        disks = find(parse(node.checkpoint(vm, checkpoint, sizes=True)), "disks")
    except DroverError:
        return None
    return sum(int(disk.get("size", 0)) for disk in (() if disks is None else disks))


def wait(node: Node, vm: str, seconds: float, is_held: Callable[[], bool]) -> None:
    """Wait for the end of the job. Raises Failed with QEMU's words, and TimedOut, when it has been ended.

    It is ended, too, when the guest is held up by it (`is_held`), which else would last until the job itself comes to
    what can't be copied.
    """
    end = time.monotonic() + seconds
    while node.backup(vm) is not None:
        if is_held():
            _end(node, vm)
            raise Failed(
                f"{vm} could not write, as what it writes over could not be copied before, or its own disk failed; the "
                "copy was ended. Is the folder of backups full, or out of reach? Mend that, and run this again"
            )
        if time.monotonic() > end:
            _end(node, vm)
            raise TimedOut(
                f"the copy of the disks of {vm} took more than {seconds:g} s and was ended. Give it longer (timeout), "
                "or look what is slow: the folder of backups, or the disks"
            )
        time.sleep(POLL)
    seen = node.ended_job(vm)
    if (seen.get("operation"), seen.get("type")) != (BACKUP, COMPLETED):
        words = f"{seen['errmsg']}." if seen.get("errmsg") else "is the folder of backups full, or out of reach?"
        raise Failed(
            f"QEMU could not copy the disks of {vm}: {words} Nothing of it is left. See "
            f"/var/log/libvirt/qemu/{vm}.log, and run this again",
            job=seen,
        )


def _end(node: Node, vm: str) -> None:
    with suppress(Failed):  # it may have ended just now
        node.abort_job(vm)


def drop(node: Node, vm: str, checkpoint: str) -> None:
    """Delete a checkpoint; where its bitmap is broken, libvirt forgets it at least."""
    with suppress(DroverError):
        node.delete_checkpoint(vm, checkpoint)
        return
    node.delete_checkpoint(vm, checkpoint, known_only=True)


def drop_all(node: Node, vm: str, checkpoints: Sequence[str]) -> None:
    """Delete those of these that are there."""
    for checkpoint in sorted(set(checkpoints) & set(node.checkpoints(vm)), reverse=True):
        drop(node, vm, checkpoint)


def copied_disks(root: Element) -> tuple[list[Element], list[str]]:
    """The disks of a VM that are backed up, and the targets of those that are not: media, and what it only reads."""
    kept, spared = [], []
    for disk in devices(root, "disk"):
        writes = disk.get("device", "disk") in ("disk", "lun") and find(disk, "readonly") is None
        if writes and find(disk, "source") is not None:
            kept.append(disk)
        else:
            spared.append(target_of(disk))
    return kept, spared
