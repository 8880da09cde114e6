# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical volume of LVM behind a volume of the SAN: thick or thin, our mark in its tags, new space wiped.

A volume gets its name only when it is complete; until then it is called NAME.part, and a run that finds one with our
mark begins anew. The manual is lvmthin(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _volume_file as files
from ._errors import Invalid, NotFound, Refused
from ._run import run, run_json

COLUMNS = "vg_name,lv_name,lv_size,lv_tags,lv_layout,pool_lv,zero"
TAG = "drover."
DEVICES = "/dev"
WIPE_SECONDS = 12 * 3600
# Names that LVM keeps for itself, lvm(8).
RESERVED = re.compile(r"(snapshot|pvmove).*|.*_([crtv](data|meta)|[cv]vol|corig|vorigin|mlog|mimage|pmspare|rimage).*")
NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,100}", re.ASCII)


def check_lvm_name(value: str) -> str:
    """A name of a volume group, thin pool or logical volume."""
    if not NAME.fullmatch(value) or RESERVED.fullmatch(value):
        raise ValueError(f"{value!r} is not a name that LVM allows, lvm(8)")
    return value


def _check_volume_name(name: str) -> None:
    try:
        check_lvm_name(name)
    except ValueError as error:
        raise Invalid(str(error), option="name") from None


@dataclass(frozen=True)
class Logical:
    """A logical volume; `pool` is its thin pool, `zeroes` says of a pool whether it hands out zeroed blocks only."""

    size: int
    tags: tuple[str, ...]
    layout: tuple[str, ...]
    pool: str
    zeroes: bool

    @property
    def mark(self) -> dict[str, str]:
        """Our mark; empty when there is none."""
        words = [tag[len(TAG) :].partition("=") for tag in self.tags if tag.startswith(TAG)]
        return {key: value for key, _equals, value in words}


class Lvm:
    """LVM on this machine: verbs in, plain data out. Every method raises Failed with LVM's own words."""

    def __init__(self) -> None:
        self._volumes: dict[tuple[str, str], Logical] | None = None
        self._groups: dict[str, tuple[int, int]] | None = None

    def volumes(self) -> dict[tuple[str, str], Logical]:
        """All logical volumes by group and name, as they were after the last change that was made here."""
        if self._volumes is None:
            rows = _report("lvs", COLUMNS)
            self._volumes = {(row["vg_name"], row["lv_name"]): _logical(row) for row in rows}
        return self._volumes

    def group(self, name: str) -> tuple[int, int]:
        """Size of an extent, and free space, in bytes. Raises NotFound."""
        if self._groups is None:
            rows = _report("vgs", "vg_name,vg_extent_size,vg_free")
            self._groups = {row["vg_name"]: (int(row["vg_extent_size"]), int(row["vg_free"])) for row in rows}
        if name not in self._groups:
            raise NotFound(f"there is no volume group {name} on this machine", vg=name)
        return self._groups[name]

    def create(self, vg: str, name: str, size: int, mark: Mapping[str, Any], pool: str | None = None) -> None:
        """A new volume of so many bytes, thin when a pool is given."""
        space = ["--virtualsize", f"{size}b", "--thinpool", pool] if pool else ["--size", f"{size}b"]
        self._do("lvcreate", "--yes", *space, "--name", name, *_adding(mark), vg)

    def snapshot(self, vg: str, origin: str, name: str, mark: Mapping[str, Any]) -> None:
        """A thin volume that begins as the other one is now. It does not depend on it."""
        words = ["--snapshot", "--setactivationskip", "n", "--name", name, *_adding(mark)]
        self._do("lvcreate", "--yes", *words, f"{vg}/{origin}")
        # Whatever it has from the origin is not its own.
        self.tag(vg, name, mark)

    def tag(self, vg: str, name: str, mark: Mapping[str, Any]) -> None:
        """Our mark in the volume's tags; tags of others stay."""
        have, new = self.volumes()[vg, name].tags, _tags(mark)
        gone = [word for tag in have if tag.startswith(TAG) and tag not in new for word in ("--deltag", tag)]
        come = [word for tag in new if tag not in have for word in ("--addtag", tag)]
        if gone or come:
            self._do("lvchange", *gone, *come, f"{vg}/{name}")

    def extend(self, vg: str, name: str, size: int, ranges: str = "") -> None:
        """Make it bigger, on these extents if any are named."""
        self._do("lvextend", "--size", f"{size}b", f"{vg}/{name}", *ranges.split())

    def ranges(self, vg: str, name: str) -> str:
        """Where it lies, as `extend` takes it."""
        return " ".join(row["seg_pe_ranges"] for row in _report("lvs", "seg_pe_ranges", f"{vg}/{name}"))

    def rename(self, vg: str, old: str, new: str) -> None:
        """Another name."""
        self._do("lvrename", vg, old, new)

    def activate(self, vg: str, name: str) -> None:
        """Make its device appear."""
        self._do("lvchange", "--activate", "y", "--ignoreactivationskip", f"{vg}/{name}")

    def remove(self, vg: str, name: str) -> None:
        """The volume and what is in it; LVM refuses while it is open."""
        self._do("lvremove", "--yes", f"{vg}/{name}")

    def _do(self, *argv: str) -> None:
        try:
            run(argv, timeout=300)
        finally:
            self._volumes = self._groups = None


def _report(program: str, columns: str, *names: str) -> list[dict[str, str]]:
    argv = [program, "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", columns, *names]
    report = run_json(argv)["report"][0]
    return list(report["lv" if program == "lvs" else "vg"])


def _logical(row: Mapping[str, str]) -> Logical:
    tags = tuple(row["lv_tags"].split(",")) if row["lv_tags"] else ()
    layout = tuple(row["lv_layout"].split(","))
    return Logical(int(row["lv_size"]), tags, layout, row["pool_lv"], row["zero"] == "1")


def _tags(mark: Mapping[str, Any]) -> list[str]:
    return [f"{TAG}{key}={value}" for key, value in sorted(mark.items()) if value]


def _adding(mark: Mapping[str, Any]) -> list[str]:
    return [word for tag in _tags(mark) for word in ("--addtag", tag)]


class LvmStore:
    """The logical volume behind one volume; `thin_pool` is None for a thick one."""

    plugin = "block"

    def __init__(self, lvm: Lvm, name: str, asked: Mapping[str, Any]) -> None:
        self.lvm, self.name, self.asked = lvm, name, asked
        self.vg, self.pool, self.wipe = asked["vg"], asked["thin_pool"], asked["wipe"]
        self.origin: str | None = asked["clone_of"] or asked["snapshot_of"]
        self.part = f"{name}.part"
        self.path = f"{DEVICES}/{self.vg}/{name}"

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
        _check_volume_name(self.name)
        if sum(bool(self.asked[option]) for option in ("source", "clone_of", "snapshot_of")) > 1:
            raise Invalid(f"{self.name}: give one of source, clone_of and snapshot_of")
        extent, free = self.lvm.group(self.vg)
        least = self._origin_size() if self.origin and not have else 0
        if size is not None and size < least:
            raise Refused(f"{self.origin} has {least} bytes and does not fit into {self.name} with {size} bytes")
        size = -(-(size or least) // extent) * extent
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
                files.copy_to_device(source, f"{DEVICES}/{self.vg}/{self.part}", holes=zeroed)
        self.lvm.rename(self.vg, self.part, self.name)

    def _remove_part(self) -> None:
        left = self.lvm.volumes().get((self.vg, self.part))
        if left is not None and left.mark.get("name") != self.name:
            raise Refused(f"{self.vg}/{self.part} exists and is not ours; it is left alone")
        if left is not None:
            self.lvm.remove(self.vg, self.part)

    def _wipe(self, name: str) -> None:
        if not self.pool and self.wipe != "none":
            words = ["--zeroout"] if self.wipe == "zero" else []
            run(["blkdiscard", *words, f"{DEVICES}/{self.vg}/{name}"], timeout=WIPE_SECONDS)

    def grow(self, size: int) -> None:
        """Make it bigger. The new extents are wiped before they are its own: afterwards a guest may write to them."""
        found = self.lvm.volumes()[self.vg, self.name]
        if found.size >= size:
            return
        if self.pool:
            self.lvm.extend(self.vg, self.name, size)
            return
        self._remove_part()
        self.lvm.create(self.vg, self.part, size - found.size, found.mark)
        self._wipe(self.part)
        ranges = self.lvm.ranges(self.vg, self.part)
        self.lvm.remove(self.vg, self.part)
        self.lvm.extend(self.vg, self.name, size, ranges)

    def prepare(self) -> None:
        """Its device must be there before it is exported."""
        if not os.path.exists(self.path):
            self.lvm.activate(self.vg, self.name)

    def set_mark(self, mark: Mapping[str, Any]) -> None:
        """Whose it is."""
        self.lvm.tag(self.vg, self.name, mark)

    def remove(self) -> None:
        """The volume and what is in it."""
        self.lvm.remove(self.vg, self.name)
