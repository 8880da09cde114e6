# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical volume of LVM behind a volume of the SAN: thick or thin, our mark in its tags, new space wiped.

A volume gets its name only when it is complete; until then it is called NAME.part, and a run that finds one with our
mark begins anew. The manual is lvmthin(7).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _volume_file as files
from . import _volume_rules as rules
from ._errors import Invalid, NotFound, Refused
from ._lvm import Lvm, check_volume_name, device, grow_wiped, wipe


class LvmStore:
    """The logical volume behind one volume; `thin_pool` is None for a thick one."""

    plugin = "block"

    def __init__(self, lvm: Lvm, name: str, asked: Mapping[str, Any]) -> None:
        self.lvm, self.name, self.asked = lvm, name, asked
        self.vg, self.pool, self.wipe = asked["vg"], asked["thin_pool"], asked["wipe"]
        self.origin: str | None = None
        self.part = f"{name}.part"
        self.path = device(self.vg, name)

    def look(self) -> dict[str, Any] | None:
        """Size in bytes and our mark; None when there is no such volume. Raises Invalid."""
        for option, needed in (("vg", True), ("thin_pool", self.asked["store"] == "lvm_thin")):
            if bool(self.asked[option]) != needed:
                what = "is missing" if needed else "has no effect"
                raise Invalid(f"{self.name}: {option} {what} with store {self.asked['store']}", option=option)
        found = self.lvm.volumes().get((self.vg, self.name))
        if found is None:
            return None
        kind = "lvm_thin" if "thin" in found.layout else "lvm"
        if found.mark and kind != self.asked["store"]:
            raise Refused(f"{self.path} is of store {kind}, not {self.asked['store']}; a volume keeps it for its life")
        return {"size": found.size, "mark": found.mark or None}

    def plan(self, have: int, size: int | None) -> int:
        """The size that it will have, in whole extents, for the size asked for. Raises NotFound, Invalid, Refused."""
        check_volume_name(self.name)
        self.origin = rules.origin_of(self.name, self.asked)
        extent, free = self.lvm.group(self.vg)[:2]
        if self.origin and not have:
            size = files.copy_size(self.name, self.origin, self._origin_size(), size)
        size = -(-(size or 0) // extent) * extent
        if self.pool:
            self._check_pool()
        elif size - have > free:
            raise Refused(f"volume group {self.vg} has {free} bytes free; {self.name} needs {size - have}", free=free)
        return size

    def _origin_size(self) -> int:
        found = self.lvm.volumes().get((self.vg, str(self.origin)))
        if found is None or found.mark.get("name") != self.origin:
            raise NotFound(f"{self.vg} has no volume {self.origin} of ours; {self.name} can't be made of it")
        if found.pool != self.pool:
            raise Refused(f"{self.origin} is not in the thin pool {self.pool}; only there a volume can be made of it")
        return found.size

    def _check_pool(self) -> None:
        found = self.lvm.volumes().get((self.vg, self.pool))
        if found is None or "pool" not in found.layout:
            raise NotFound(f"{self.vg} has no thin pool {self.pool}")
        if not found.zeroes and self.wipe != "none":
            raise Refused(
                f"the thin pool {self.vg}/{self.pool} hands out blocks with old data; lvchange --zero y "
                f"{self.vg}/{self.pool}, or wipe: none if that is meant"
            )

    def make(self, size: int, mark: Mapping[str, Any], source: str | None) -> None:
        """The volume with its content, under its name only when it is complete."""
        self._remove_part()
        if self.origin:
            self.lvm.snapshot(self.vg, self.origin, self.part, mark)
            if self.lvm.volumes()[self.vg, self.part].size < size:
                self.lvm.extend(self.vg, self.part, size)
        else:
            self.lvm.create(self.vg, self.part, size, mark, self.pool)
            self._wipe(self.part)
            if source:
                # What was not wiped may hold anything: then the zeroes of the image are written as well.
                zeroed = self.wipe == "zero" or (self.pool is not None and self.wipe != "none")
                files.copy_to_device(source, device(self.vg, self.part), holes=zeroed)
        self.lvm.rename(self.vg, self.part, self.name)

    def _remove_part(self) -> None:
        left = self.lvm.volumes().get((self.vg, self.part))
        if left is not None and left.mark.get("name") != self.name:
            raise Refused(f"{self.vg}/{self.part} exists and is not ours; it is left alone")
        if left is not None:
            self.lvm.remove(self.vg, self.part)

    def _wipe(self, name: str) -> None:
        if not self.pool and self.wipe != "none":
            wipe(self.vg, name, self.wipe)

    def grow(self, size: int) -> None:
        """Make it bigger. The new extents are wiped before they are its own: afterwards a guest may write to them."""
        found = self.lvm.volumes()[self.vg, self.name]
        if found.size >= size:
            return
        if self.pool:
            self.lvm.extend(self.vg, self.name, size)
            return
        self._remove_part()
        grow_wiped(self.lvm, self.vg, self.name, size, self.wipe)

    def prepare(self) -> None:
        """Its device must be there before it is exported."""
        if not os.path.exists(self.path):
            self.lvm.activate(self.vg, self.name)

    def set_mark(self, mark: Mapping[str, Any]) -> None:
        """Whose it is."""
        self.lvm.tag(self.vg, self.name, mark)

    def check_remove(self) -> None:
        """Raise Refused while somebody has a snapshot of it, which would go too."""
        self.lvm.check_remove(self.vg, self.name)

    def remove(self) -> None:
        """The volume and what is in it."""
        self.lvm.remove(self.vg, self.name)
