# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linked clones: the template in the definition, so that nothing is probed, and how a clone becomes its own base."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._disks import file, template
from .._errors import Failed, Refused
from .._libvirt import Node
from .._resource import Step
from .._xml import Property, devices, find, parse, target_of

# The end of a job and the new chain in the definition are not of one moment.
LATE_LOOKS = 20


def disk_of(root: Element, target: str) -> Element | None:
    """The disk of this target."""
    return next((disk for disk in devices(root, "disk") if target_of(disk) == target), None)


def base_of(root: Element | None, target: str) -> str | None:
    """What the definition says that a disk is based on."""
    disk = None if root is None else disk_of(root, target)
    return None if disk is None else Property("backingStore/source/@file").get(disk)


def write(root: Element, declared: Mapping[str, Mapping[str, Any]], present: set[str]) -> None:
    """Write into the definition what each disk that is not `present` yet is based on, to the end of the chain.

    `declared` are the disks' options by target. A file that is there says it itself, by its header.
    """
    for target, given in declared.items():
        disk = disk_of(root, target)
        path = None if disk is None else Property("source/@file").get(disk)
        if disk is None or target in present or not path or Property("driver/@type").get(disk) != "qcow2":
            continue
        base = template.backing_of(path) if Path(path).exists() else given["clone"] == "linked" and given["source"]
        if base and given["clone"] != "full":
            found = template.read(base)
            below = SubElement(disk, "backingStore", {"type": "file"})
            SubElement(below, "format", {"type": found.format if found else "raw"})
            SubElement(below, "source", {"file": os.path.realpath(base)})
            SubElement(below, "backingStore")


class Flattening:
    """One linked clone that shall be based on nothing; `live`: its VM runs."""

    def __init__(self, node: Node, name: str, disk: Mapping[str, Any], live: bool) -> None:
        self.node, self.name, self.live = node, name, live
        self.path, self.target, self.size = disk["path"], disk["target"], disk["size"]
        self.misses = 0

    def check(self) -> None:
        """Raise Refused where it would not fit, or a snapshot in the file would lose what is below."""
        domain = self.node.domain(self.name)
        if domain is not None and domain.has_snapshots:
            raise Refused(
                f"{self.path} has snapshots, which hold only what differs from its base; remove them before it is "
                "flattened (drover.kvm.snapshot)"
            )
        needs = sum(template.space(base) for base in template.chain(self.path) if Path(base).exists())
        if needs > (free := file.room(self.path)):
            raise Refused(f"{self.path} may take {needs >> 20} MiB more on its own; {free >> 20} MiB are free")

    def step(self, base: str) -> Step:
        """What is done about it."""
        words = f"flatten {self.path}, which is based on {base}"
        if not self.live:
            return Step(words, self.rebase)
        return Step(words, self.pull, self.is_flat, template.seconds(self.size))

    def rebase(self) -> None:
        """The VM is off: QEMU's tool does it."""
        if template.backing_of(self.path):
            template.flatten(self.path, self.size)

    def pull(self) -> None:
        """The VM runs: its own QEMU does it; a job that runs already goes on."""
        if not self.node.block_job(self.name, self.target):
            self.node.pull(self.name, self.target)

    def is_flat(self) -> bool | str:
        """Whether the VM uses nothing but the file now. Raises Failed when the job ended before that."""
        domain = self.node.domain(self.name)
        if domain is None or domain.live_xml is None:
            raise Failed(f"{self.path} was not flattened: {self.name} was stopped meanwhile; run this again")
        if base_of(parse(domain.live_xml), self.target) is None:
            return True
        job = self.node.block_job(self.name, self.target)
        self.misses = 0 if job else self.misses + 1
        if self.misses > LATE_LOOKS:
            raise Failed(f"{self.path} was not flattened: the job ended before its time; is the disk full?")
        return f"{job.get('cur', 0)} of {job.get('end', 0)} bytes are copied"


def flatten(
    node: Node, after: Element, running: Element | None, disks: Iterable[Mapping[str, Any]], full: set[str]
) -> list[Step]:
    """The steps that make the disks of the targets `full` copies of their own.

    `after` is the definition that shall be, out of which their templates are taken; `running` what runs and goes on.
    """
    steps = []
    for disk in disks:
        element, target = disk_of(after, disk["target"]), disk["target"]
        if target not in full or element is None or disk["format"] != "qcow2":
            continue
        seen = base_of(running, target)
        base = template.backing_of(disk["path"]) or seen or base_of(after, target)
        below = find(element, "backingStore")
        if base_of(after, target) and below is not None:
            # Empty, it says that there is nothing; without one it would be looked for.
            tail = below.tail
            below.clear()
            below.tail = tail
        if base:
            one = Flattening(node, str(Property("name").get(after)), disk, seen is not None)
            one.check()
            steps.append(one.step(base))
    return steps
