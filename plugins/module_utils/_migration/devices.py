# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block devices of a VM that shall move: what they are, and by what the other node knows them.

A device is the same on two nodes when its WWID is, whatever it is called. A logical volume lies on devices of its
group, and moves only in a shared group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element

from .._disks import block
from .._errors import DroverError
from .._identity import logical_of
from .._lvm import Lvm
from .._xml import Property, target_of


def read(disks: Iterable[Element], lvm: Lvm) -> list[dict[str, Any]]:
    """The block devices of a definition: target, path, identity, WWIDs, and `lock` or a `fault` of a logical volume.

    `wwids` are those of all disks that it lies on; None stands for one that has none.
    """
    found = []
    for disk in disks:
        path = Property("source/@dev").get(disk)
        if disk.get("type") == "block" and path and disk.get("device", "disk") == "disk":
            logical = logical_of(path)
            facts = _logical(lvm, *logical) if logical else _plain(path)
            found.append({"target": target_of(disk), "path": path, **facts})
    return found


def _plain(path: str) -> dict[str, Any]:
    wwid = _wwid(path)
    return {"identity": wwid or "", "wwids": [wwid], "lock": "", "fault": ""}


def _wwid(path: str) -> str | None:
    found = block.look(path)
    return found.wwid or None if found else None


def _logical(lvm: Lvm, vg: str, lv: str) -> dict[str, Any]:
    try:
        group, volume = lvm.group(vg), lvm.volumes().get((vg, lv))
        wwids = [_wwid(path) for path in lvm.physical(vg)]
    except DroverError as error:
        return {"identity": "", "wwids": [None], "lock": "", "fault": error.message}
    fault = "" if group.shared else f"volume group {vg} is not shared between nodes"
    # As device mapper writes it.
    identity = "LVM-" + (group.uuid + (volume.uuid if volume else "")).replace("-", "")
    return {"identity": identity, "wwids": wwids, "lock": f"{vg}/{lv}" if group.shared else "", "fault": fault}
