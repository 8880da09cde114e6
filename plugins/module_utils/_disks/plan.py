# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to do with the files behind a VM's disks: make, grow, remove. Looks at the node's files, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import Invalid, Refused
from .._fields import size_text
from . import file


class Change(NamedTuple):
    """A file to `create` or to `grow`, for the disk `target`; `size` in bytes."""

    verb: str
    target: str
    path: str
    format: str
    size: int

    @property
    def words(self) -> str:
        """The change in words."""
        return f"{self.verb} {self.path} ({self.format}, {size_text(self.size)})"

    def apply(self, uuid: str) -> bool:
        """Make or grow the file, which no running VM uses; False when a new one could not be marked."""
        if self.verb == "create":
            return file.create(self.path, self.format, self.size, uuid)
        file.grow(self.path, self.format, self.size)
        return True


def measure(disks: Iterable[dict[str, Any]]) -> None:
    """Write the size, in bytes, of each disk that is a file into its options; None where there is no file."""
    for disk in disks:
        if disk["type"] == "file":
            found = _inspect(disk)
            disk["size"] = found["size"] if found else None


def plan(disks: Iterable[dict[str, Any]], present: set[str], sizes: Mapping[str, int], uuid: str) -> list[Change]:
    """The changes that give each disk its declared size (`sizes` by target), which is written into its options.

    `present` are the targets that the VM already has. Raises Invalid and Refused.
    """
    changes = []
    for disk in disks:
        if disk["type"] == "file" and disk["path"]:
            disk["size"] = _size(disk, present, sizes.get(disk["target"]), uuid)
            found = _inspect(disk)
            verb = "create" if found is None else "grow"
            if found is None or found["size"] < disk["size"]:
                changes.append(Change(verb, disk["target"], disk["path"], disk["format"], disk["size"]))
    return changes


def _inspect(disk: Mapping[str, Any]) -> dict[str, Any] | None:
    if not disk["path"]:
        return None
    return file.inspect(disk["path"], disk["format"] or "raw", disk["device"] == "cdrom")


def _size(disk: Mapping[str, Any], present: set[str], wanted: int | None, uuid: str) -> int:
    path, found = disk["path"], _inspect(disk)
    if found is None:
        return _size_of_new(disk, present, wanted)
    if disk["target"] not in present:
        if found["backing"]:
            raise Refused(f"{path} is based on {found['backing']}; such a file can't be added to a VM yet")
        if found["mark"] not in (None, uuid):
            raise Refused(f"{path} was made for another VM, with the UUID {found['mark']}")
    if wanted is not None and wanted < found["size"]:
        raise Refused(f"{path} has {found['size']} bytes; to make it smaller ({wanted}) would cut off what is in it")
    return int(found["size"] if wanted is None else wanted)


def _size_of_new(disk: Mapping[str, Any], present: set[str], wanted: int | None) -> int:
    path = disk["path"]
    if disk["target"] in present:
        raise Refused(f"{path}, disk {disk['target']}, is missing; is the file system mounted on which it lies?")
    if disk["device"] == "cdrom":
        raise Invalid(f"{path} does not exist; a cdrom needs an image")
    if wanted is None:
        raise Invalid(f"{path} does not exist, and without size it can't be made", option="disks")
    if not Path(path).parent.is_dir():
        raise Invalid(f"the folder {Path(path).parent} does not exist; make it, or mount what belongs there")
    return wanted


def removable(vm: str, uuid: str, paths: Iterable[str], others: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The files that we made for this VM. Raises Refused when another domain (`others`: surveys by node) has one."""
    files = file.marked_files(vm, uuid, list(paths))
    for node, domains in others.items():
        for other in domains:
            held = {
                str(Path(name[len("file:") :]).resolve()) for kind, name in other["claims"] if name.startswith("file:")
            }
            shared = sorted(held & set(files))
            if shared and other["name"] != vm:
                raise Refused(f"{shared[0]} is also a disk of {other['name']} on {node}; it is not removed")
    return files
