# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt says of a snapshot. Pure; see https://libvirt.org/formatsnapshot.html."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple
from xml.etree.ElementTree import Element

from .._xml import Property, devices, find, parse

FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class Snapshot(NamedTuple):
    """One snapshot: `time` in seconds since the epoch, `state` as libvirt's (running, shutoff, disk-snapshot).

    `kind` is internal or external, `memory` whether it holds the memory, `memory_file` where that is not in the disk.
    `overlays` are the files that were begun with it, by disk; `definition` is the VM's of that moment.
    """

    name: str
    description: str
    time: int
    state: str
    kind: str
    memory: bool
    memory_file: str | None
    parent: str | None
    current: bool
    overlays: dict[str, str]
    definition: Element


def volumes(snapshot: Snapshot) -> list[str]:
    """The disks over which it put files and which are none themselves: volumes of a SAN, images of RBD."""
    disks = [disk for disk in devices(snapshot.definition, "disk") if disk.get("type") != "file"]
    targets = [str(Property("target/@dev").get(disk)) for disk in disks]
    return [target for target in targets if target in snapshot.overlays]


def read(text: str, current: bool) -> Snapshot:
    """A snapshot from its XML."""
    root = parse(text)
    disks, memory = find(root, "disks"), find(root, "memory")
    # Of a machine that ran there are two: as it ran, and as it was defined.
    defined, ran = find(root, "inactiveDomain"), find(root, "domain")
    domain = ran if defined is None else defined
    known = [] if disks is None else list(disks)
    saved = "no" if memory is None else memory.get("snapshot", "no")
    outside = saved == "external" or any(disk.get("snapshot") == "external" for disk in known)
    return Snapshot(
        name=str(Property("name").get(root)),
        description=Property("description").get(root) or "",
        time=int(Property("creationTime").get(root) or 0),
        state=Property("state").get(root) or "unknown",
        kind="external" if outside else "internal",
        memory=saved != "no",
        memory_file=None if memory is None else memory.get("file"),
        parent=Property("parent/name").get(root),
        current=current,
        overlays={disk.get("name", ""): path for disk in known if (path := Property("source/@file").get(disk))},
        definition=Element("domain") if domain is None else domain,
    )


def stamp(moment: float) -> str:
    """A moment in UTC, such as 2026-11-22T06:00:00Z."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime(FORMAT)


def age_text(seconds: float) -> str:
    """An age for people: 2 d 3 h, 3 h 12 min, 40 s."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    left = max(0, int(seconds))
    for unit, length in units:
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def bytes_text(size: int) -> str:
    """A size for people, in the unit in which it is short."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
