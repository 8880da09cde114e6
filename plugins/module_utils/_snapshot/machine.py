# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VM and its snapshots, as libvirt and the files say. Sizes in bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .._disks import template
from .._domain import metadata, power
from .._domain.facts import domain_facts
from .._domain.site import Site
from .._errors import DroverError, NotFound, Refused
from .._libvirt import Domain
from .._run import run_json
from .._xml import parse
from . import choose, facts, record, volumes
from .facts import Snapshot
from .record import Note, Record
from .volumes import Handles, Volumes


class Machine:
    """A VM of this node. `read` asks libvirt again; the rest tells what was read last."""

    def __init__(self, site: Site, handles: Handles, name: str) -> None:
        self.site, self.node, self.handles, self.name = site, site.node, handles, name
        self.snapshots: dict[str, Snapshot] = {}
        self.record = Record()
        self.notes: dict[str, Note] = {}

    def read(self) -> Machine:
        """Raises NotFound when there is no such VM, and Refused for one that somebody else is at work on."""
        domain = self._find()
        power.guard(self.facts)
        if not domain.persistent:
            raise Refused(f"{self.name} has no definition: when it stops it would be gone with them; define it first")
        return self._read(domain)

    def look(self) -> Machine:
        """The same, whoever is at work on it. Raises NotFound."""
        return self._read(self._find())

    def _find(self) -> Domain:
        domain = self.node.domain(self.name)
        if domain is None:
            raise NotFound(f"there is no VM {self.name} on this node; run this where it is (see playbook snapshot_vms)")
        self.facts = domain_facts(domain)
        return domain

    def _read(self, domain: Domain) -> Machine:
        self.domain = domain
        self.definition = parse(domain.xml)
        self.running = parse(domain.live_xml) if domain.live_xml else None
        root = self.definition if self.running is None else self.running
        self.volumes = Volumes(root, domain.uuid, self.handles).read()
        found = [facts.read(xml, current) for xml, current in self.node.snapshots(self.name)]
        every = {**self.volumes.snapshots, **{one.name: one for one in found}}
        self.snapshots = {one.name: one for one in sorted(every.values(), key=lambda one: (one.time, one.name))}
        said = record.read(self.definition)
        # A snapshot knows of itself, also when the VM was set back to one before it.
        own = {one.name: record.read(one.definition).notes for one in found}
        notes = {name: known[name] for name, known in own.items() if name in known}
        # One of ours was noted before it was made, so that it knows of itself as not made yet. Another tool's of the
        # name of one that was ours, and that somebody deleted by hand, has copied the note of that.
        foreign = {name for name, note in notes.items() if note.made}
        kept = {name: note for name, note in {**notes, **said.notes}.items() if name not in foreign}
        self.record = replace(said, notes=kept)
        self.notes = {**self.volumes.notes, **kept}
        return self

    @property
    def active(self) -> bool:
        """Whether it has its power."""
        return bool(self.facts["state"] != power.STOPPED)

    @property
    def kinds(self) -> set[str]:
        """The kinds of the snapshots that it has; what others made of its volumes stands in nobody's way."""
        return {one.kind for one in self.snapshots.values() if one.kind not in volumes.KINDS or one.name in self.notes}

    def chains(self) -> dict[str, list[str]]:
        """The files in which each disk lies, the one that is written to first; other storage by its identity."""
        found = {}
        for disk in choose.written(self.facts):
            path = choose.path_of(disk)
            found[str(disk["target"])] = [path, *template.chain(path)] if path else [disk["identity"], *disk["backing"]]
        return found

    def allocated(self) -> int | None:
        """The bytes that its disks take now; None when one of them is no file."""
        paths = [choose.path_of(disk) for disk in choose.written(self.facts)]
        sizes = [_allocated(path) for path in paths if path]
        return sum(sizes) if len(sizes) == len(paths) else None

    def lost(self, snapshot: Snapshot, now: float) -> dict[str, Any]:
        """What is gone when the VM is set back: since when, how long ago (s), how much was written (bytes, at least).

        `kept` are the newer snapshots, which stay.
        """
        size = self.volumes.lost(snapshot.name) if snapshot.kind in volumes.KINDS else self.allocated()
        if snapshot.kind == choose.INTERNAL:
            # A snapshot owns all that was there: whatever is written after it takes new room.
            then = self.notes[snapshot.name].allocated if snapshot.name in self.notes else None
            size = None if size is None or then is None else max(0, size - then)
        kept = [one.name for one in self.snapshots.values() if one.time >= snapshot.time and one is not snapshot]
        return {
            "since": facts.stamp(snapshot.time),
            "age": max(0, int(now - snapshot.time)),
            "bytes": size,
            "kept": kept,
        }

    def lacks(self, name: str) -> str:
        """Why a snapshot is not one of the whole VM; libvirt's always are."""
        return self.volumes.lacks(name) if self.snapshots[name].kind in volumes.KINDS else ""

    def is_torn(self, name: str) -> bool:
        """Whether it is only what a killed run left of it."""
        return name in self.snapshots and self.snapshots[name].kind in volumes.KINDS and self.volumes.is_torn(name)

    def note(self, name: str, note: Note, kind: str) -> None:
        """Keep the note of a snapshot: with its volumes, or in the VM's metadata."""
        if kind in volumes.KINDS:
            self.volumes.note(name, note)
        else:
            self.write(self.record.noting(name, note))

    def by_hand(self, name: str) -> str:
        """How somebody removes it who knows what it is."""
        if self.snapshots[name].kind in volumes.KINDS:
            return "; ".join(f"{self.snapshots[name].kind} snap rm {one}" for one in self.volumes.places(name))
        return f"virsh snapshot-delete {self.name} {name}"

    def drop(self, name: str) -> None:
        """Remove a snapshot."""
        if self.snapshots[name].kind in volumes.KINDS:
            self.volumes.drop(name)
        else:
            self.node.delete_snapshot(self.name, name)

    def write(self, changed: Record) -> None:
        """Keep the record in the VM's metadata: of the definition, and of the running machine."""
        self._say(record.NAMESPACE, record.text(changed))
        self.record = changed

    def write_policy(self, xml: str | None) -> None:
        """Keep the VM's own record (tags, home, rollback_safe): to set it back does not change what it is for."""
        self._say(metadata.NAMESPACE, xml)

    def _say(self, namespace: str, xml: str | None) -> None:
        domain = self.node.domain(self.name)
        live = domain is not None and domain.active
        self.node.set_metadata(self.name, record.PREFIX, namespace, xml, live=live, config=True)

    def told(self, now: float) -> dict[str, Any]:
        """The VM with all its snapshots, as the module returns it."""
        chains, inside = self.chains(), {**self._inside(), **self.volumes.held()}
        return {
            "name": self.name,
            "chain": chains,
            "chain_length": max(map(len, chains.values()), default=0),
            "snapshots": [self._told(one, inside, now) for one in self.snapshots.values()],
        }

    def _told(self, one: Snapshot, inside: Mapping[str, int | None], now: float) -> dict[str, Any]:
        note = self.notes.get(one.name, Note())
        files = [*one.overlays.values(), *([one.memory_file] if one.memory_file else [])]
        files = self.volumes.places(one.name) if one.kind in volumes.KINDS else files
        return {
            "name": one.name,
            "description": note.description or one.description,
            "tags": list(note.tags),
            "time": facts.stamp(one.time),
            "age": max(0, int(now - one.time)),
            "kind": one.kind,
            "memory": one.memory,
            "quiesced": note.quiesced,
            "managed": one.name in self.notes,
            "complete": not self.lacks(one.name),
            "parent": one.parent,
            "current": one.current,
            "size": sum(map(_allocated, files)) if one.kind == choose.EXTERNAL else inside.get(one.name),
            "files": files,
        }

    def _inside(self) -> dict[str, int]:
        """The bytes of memory that internal snapshots hold, by name; what they hold of disks no tool tells."""
        paths = [choose.path_of(disk) for disk in choose.written(self.facts) if disk["format"] == "qcow2"]
        found: dict[str, int] = {}
        for path in [path for path in paths if path] if choose.INTERNAL in self.kinds else []:
            try:
                said = run_json([*template.LIMITED, "qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path])
            except DroverError:
                continue
            for one in said.get("snapshots", []):
                found[one["name"]] = found.get(one["name"], 0) + int(one["vm-state-size"])
        return found


def _allocated(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0
