# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What we write of snapshots into a VM's metadata: which are ours, with their tags, and the last act of setting back.

`<drover:snapshots xmlns:drover="urn:drover:snapshot:1">` with `<snapshot name= made= quiesced= allocated=
description=>`, its `<tag>` children, and `<reverted snapshot= id= safety= state=begun|rolling|carried|done time=
was=/>`.
To set a VM back is to give it the metadata of that moment too, so it is written again afterwards. Pure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from xml.etree.ElementTree import Element

from .._xml import add, find, text_of

PREFIX = "drover"
NAMESPACE = "urn:drover:snapshot:1"
YES = {"yes": True, "no": False}


@dataclass(frozen=True)
class Note:
    """What libvirt does not keep of a snapshot of ours.

    `made`: it is complete; `quiesced`: the guest's file systems stood still (None: no question, or not known);
    `allocated`: the bytes that the disks took then.
    """

    description: str = ""
    tags: tuple[str, ...] = ()
    made: bool = False
    quiesced: bool | None = None
    allocated: int | None = None


@dataclass(frozen=True)
class Act:
    """The last time that the VM was set back: to what, of which run, and what was saved before.

    `state`: begun (it will be), rolling (its volumes are half set back: the hook drover-devices lets nobody start it),
    carried (it was, and its clock and notes are left to do), or done. `was`: running, where it is to run again then.
    """

    snapshot: str
    id: str
    safety: str = ""
    state: str = "begun"
    time: str = ""
    was: str = ""


@dataclass(frozen=True)
class Record:
    """All of it."""

    notes: dict[str, Note] = field(default_factory=dict)
    act: Act | None = None

    def noting(self, name: str, note: Note) -> Record:
        """With another note."""
        return replace(self, notes={**self.notes, name: note})

    def without(self, *names: str) -> Record:
        """Without notes of these snapshots."""
        return replace(self, notes={name: note for name, note in self.notes.items() if name not in names})


def read(definition: Element) -> Record:
    """The record of a domain tree; an empty one where there is none."""
    parent = find(definition, "metadata")
    for child in [] if parent is None else parent:
        if _local(child) == "snapshots" and NAMESPACE in child.attrib.values():
            notes = {one.get("name", ""): _note(one) for one in child if _local(one) == "snapshot"}
            acts = [_act(one) for one in child if _local(one) == "reverted"]
            return Record(notes, acts[-1] if acts else None)
    return Record()


def _local(element: Element) -> str:
    return element.tag.rpartition(":")[2]


def _note(element: Element) -> Note:
    size = element.get("allocated", "")
    return Note(
        description=element.get("description", ""),
        tags=tuple(sorted((tag.text or "").strip() for tag in element if _local(tag) == "tag")),
        made=element.get("made") == "yes",
        quiesced=YES.get(element.get("quiesced", "")),
        allocated=int(size) if size.isdecimal() else None,
    )


def _act(element: Element) -> Act:
    return Act(**{name: element.get(name, "") for name in ("snapshot", "id", "safety", "state", "time", "was")})


def text(record: Record) -> str | None:
    """The record as libvirt's metadata call wants it; None where there is nothing to say."""
    if not record.notes and record.act is None:
        return None
    root = Element("snapshots")
    for name, note in sorted(record.notes.items()):
        said = {"name": name, "made": "yes" if note.made else "no", "description": note.description}
        if note.quiesced is not None:
            said["quiesced"] = "yes" if note.quiesced else "no"
        if note.allocated is not None:
            said["allocated"] = str(note.allocated)
        child = add(root, "snapshot", {key: value for key, value in said.items() if value})
        for tag in note.tags:
            add(child, "tag").text = tag
    if (act := record.act) is not None:
        add(root, "reverted", {key: value for key, value in asdict(act).items() if value})
    return text_of(root)
