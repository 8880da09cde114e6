# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are images of RBD: the moment is a snapshot of each, and RBD tells what has changed since the last one.

QEMU can keep no notes in such an image. RBD knows the difference of two snapshots, as `rbd export-diff` reads it,
whether the VM ran in between, was off, moved, or lost its node. What has changed becomes a qcow2 image like that of any
other disk. The last backup's snapshot stays in the images, as the ground of the next one.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._disks import rbd
from . import files
from .disks import Disk


def snapshot_name(backup: str) -> str:
    """One that nobody else has: whoever finds it in his notes may remove the snapshot."""
    return f"{rbd.BACKUP}{backup}-{secrets.token_hex(4)}"


def are_images(disks: Sequence[Disk]) -> bool:
    """Whether RBD can do it for all disks, so that they are of one moment."""
    return all(rbd.is_known(disk.identity) for disk in disks)


def identities(disks: Sequence[Disk]) -> list[str]:
    """The images."""
    return [str(disk.identity) for disk in disks]


def lacks(disks: Sequence[Disk], snapshot: str) -> str:
    """The first image that has no such snapshot; nothing when all have it."""
    for identity in identities(disks):
        with rbd.named(identity) as (images, image):
            if images.snapshot(image, snapshot) is None:
                return f"{images.pool}/{image}"
    return ""


def changed(disks: Sequence[Disk], snapshot: str) -> int:
    """About how many bytes have changed since a snapshot, in whole objects."""
    found = 0
    for disk in disks:
        with rbd.named(str(disk.identity)) as (images, image):
            more = images.used(image, snapshot, None)
        found += disk.size if more is None else more
    return found


def take(disks: Sequence[Disk], snapshot: str) -> None:
    """Make it in all images."""
    for identity in identities(disks):
        with rbd.named(identity) as (images, image):
            images.take(image, snapshot)


def drop(images_of: Iterable[str], snapshots: Collection[str]) -> None:
    """Remove these where they are there. What somebody protected, who has clones of it then, stays."""
    for identity in images_of:
        with rbd.named(identity) as (images, image):
            there = images.look(image, "")["snapshots"] if image in images.names() else []
            for one in there:
                if one["name"] in snapshots and not one["protected"]:
                    images.drop(image, one["name"])


def forget(manifest: Mapping[str, Any]) -> None:
    """Remove the snapshot that was kept for the next backup of a VM that is gone, where its images are still there."""
    if manifest["checkpoint"]:
        found = [disk["identity"] for disk in manifest["disks"] if rbd.is_known(disk["identity"])]
        drop(found, [manifest["checkpoint"]])


def copy(disk: Disk, snapshot: str, image: Path, style: files.Style) -> None:
    """All of a disk as it is in a snapshot."""
    files.copy(files.Source(rbd.address(str(disk.identity), snapshot)), image, style)


def copy_changed(disk: Disk, pair: tuple[str, str], to: Path, style: files.Style) -> None:
    """What has changed between two snapshots, as a qcow2 image that holds nothing else."""
    with rbd.named(str(disk.identity)) as (images, image):
        places = [(offset, length) for offset, length, _there in images.written(image, *pair)]
    files.copy_places(rbd.address(str(disk.identity), pair[1]), to, disk.size, places, style)
