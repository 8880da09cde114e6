# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block devices of a VM that shall move: what they are, and by what the other node knows them.

A device is the same on two nodes when its WWID is, whatever it is called, and its size: the other node may not have
seen yet that it grew. A logical volume lies on devices of its group, and moves only in a shared group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .._blocks import Blocks
from .._disks import block
from .._errors import DroverError
from .._identity import logical_of
from .._lvm import Lvm
from .._xml import Property, target_of


class Disk(NamedTuple):
    """A disk as its node sees it; `size` is in bytes, 0 where only a part of it is used."""

    wwid: str | None
    size: int


def read(disks: Iterable[Element], lvm: Lvm) -> list[dict[str, Any]]:
    """The block devices of a definition: target, path, identity, size, and `lock` or a `fault` of a logical volume.

    `disks` are WWID (None where it has none) and size of all that it lies on.
    """
    found = []
    for disk in disks:
        path = Property("source/@dev").get(disk)
        if disk.get("type") == "block" and path and disk.get("device", "disk") == "disk":
            logical = logical_of(path)
            facts = _logical(lvm, *logical) if logical and not block.is_other(path) else _plain(path)
            found.append({"target": target_of(disk), "path": path, **facts})
    return found


def _plain(path: str) -> dict[str, Any]:
    disk = _disk(path)
    return {"identity": disk.wwid or "", "size": disk.size, "disks": [disk], "lock": "", "fault": ""}


def _disk(path: str) -> Disk:
    found = block.look(path)
    if found is None:
        return Disk(None, 0)
    return Disk(found.wwid or None, 0 if Blocks().is_part(found.name) else found.size)


def _logical(lvm: Lvm, vg: str, lv: str) -> dict[str, Any]:
    try:
        group, volume = lvm.group(vg), lvm.volumes().get((vg, lv))
        disks = [_disk(path) for path in lvm.physical(vg)]
    except DroverError as error:
        return {"identity": "", "size": 0, "disks": [Disk(None, 0)], "lock": "", "fault": error.message}
    fault = "" if group.shared else f"volume group {vg} is not shared between nodes"
    # As device mapper writes it.
    identity = "LVM-" + (group.uuid + (volume.uuid if volume else "")).replace("-", "")
    lock = f"{vg}/{lv}" if group.shared else ""
    return {"identity": identity, "size": 0, "disks": disks, "lock": lock, "fault": fault}
