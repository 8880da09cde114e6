# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM becomes a second one: its disks are copied as they are at one moment, as for a backup, and given to the new VM.

The copy is a backup in a folder of its own beside the new disks, and gone when these have their names. It needs no
overlay, so nothing is ever added to the chain of the source's disks, and no checkpoint, so QEMU keeps no notes.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .._domain import metadata
from .._errors import Failed, Refused
from .._fields import size_text
from .._libvirt import Node
from .._resource import Step
from .._xml import parse, text_of
from . import files, restoring, store
from .acts import Acts
from .restoring import Place
from .store import Backup
from .taking import Order, check_room

CLONE_OF = "clone_of"


class Wish(NamedTuple):
    """A clone that is asked for: `name` of the VM `source`, in `directory`; `nics` as `restoring.adapt` has it."""

    name: str
    source: str
    directory: Path
    nics: str
    quiesce: str
    bandwidth: int
    timeout: float


class Copying(Acts):
    """The copy of which a clone is made, beside the disks of the clone."""

    def check_room(self, needed: int) -> None:
        """Raise Refused where the clone might not fit: a raw disk is made of its copy, which is there until then."""
        again = sum(disk.allocation for disk in self.disks if disk.format == "raw")
        check_room(self.order.root.parent, needed + again, f"a clone of {self.vm}", "say another directory")


class Cloning:
    """One clone on the node of its source."""

    def __init__(self, node: Node, wish: Wish) -> None:
        self.node, self.wish = node, wish
        self.scratch = wish.directory / f".drover-clone-{wish.name}"
        copied = {name: getattr(wish, name) for name in ("quiesce", "bandwidth", "timeout")}
        order = Order(self.scratch, wish.source, compression="none", checkpoint=False, **copied)
        self.acts = Copying(node, order, 1, None)
        self.copy: Backup | None = None
        self.said: dict[str, Any] = {}

    def origin(self) -> str | None:
        """Of which VM the one that is there is a clone. Raises Refused for one that is no clone of the source."""
        domain = self.node.domain(self.wish.name)
        if domain is None:
            return None
        found = metadata.read(parse(domain.xml)).get(CLONE_OF)
        if found != self.wish.source:
            kind = f"a clone of {found}" if found else f"no clone of {self.wish.source}"
            raise Refused(f"there is a VM {self.wish.name} on this node, which is {kind}; it stays as it is")
        return str(found)

    def look(self) -> None:
        """Whether the disks have been copied already, by a run that was cut off then."""
        good = [one for one in self.acts.look() if one.complaint is None]
        self.copy = good[-1] if good else None
        self.said = self.copy.manifest if self.copy else self.said

    def plan(self) -> None:
        """What shall be there. Raises NotFound and Refused."""
        copy = self.copy or self._plan_copy()
        self.places = self._places(copy)
        restoring.check_names(self.places)
        self.definition = self._definition()
        self.uuid = restoring.uuid_of(copy, self.wish.name)

    def _plan_copy(self) -> Backup:
        """The copy as it will be."""
        restoring.check_marks(str(self.wish.directory))
        self.acts.plan()
        vm = {"name": self.wish.source, "uuid": ""}
        return Backup(self.scratch, {"vm": vm, "disks": [disk.facts() for disk in self.acts.disks]})

    def _places(self, copy: Backup) -> list[Place]:
        return restoring.places(copy, self.wish.name, str(self.wish.directory), None)

    def _definition(self) -> Element:
        """That of the moment of the copy, for the new VM."""
        domain = self.node.domain(self.wish.source) if self.copy is None else None
        if domain is not None:
            root = parse(domain.xml)
        else:
            root = parse(files.kept(self.whole(), None)[files.DEFINITION].decode())
        restoring.adapt(root, self.wish.name, self.places, self.wish.nics)
        metadata.edit(root, {CLONE_OF: self.wish.source, restoring.RESTORED: None})
        return root

    def whole(self) -> Backup:
        """The copy that was made."""
        if self.copy is None:
            self.look()
        if self.copy is None:
            raise Failed(f"the copy of {self.wish.source} in {self.scratch} is gone; run this again")
        return self.copy

    def steps(self, clone: bool) -> list[Step]:
        """What is to do; without `clone` the VM is there, and only what was left of making it goes."""
        wish, steps = self.wish, []
        if clone:
            for folder in store.left(self.scratch, wish.source):
                words = f"clear {folder}, which a run left"
                steps.append(Step(words, partial(self.acts.clear, folder)))
            if self.copy is None:
                targets = ", ".join(disk.target for disk in self.acts.disks)
                steps.append(Step(f"copy {targets} of {wish.source} as they are at one moment", self.take))
            for place in self.places:
                if self.copy is None or not restoring.is_done(place):
                    words = f"make {place.path} ({size_text(place.size)}) of {place.target} of {wish.source}"
                    steps.append(Step(words, partial(self.bring, place.target)))
            steps.append(Step(f"define {wish.name}", self.define))
        return [*steps, Step(f"delete {self.scratch}", self.clear)]

    def take(self) -> None:
        """Copy the disks."""
        self.scratch.mkdir(exist_ok=True)
        self.scratch.chmod(0o711)  # QEMU, which is another user, writes in it
        self.acts.take()

    def bring(self, target: str) -> None:
        """Make one disk of the copy."""
        place = next(one for one in self._places(self.whole()) if one.target == target)
        restoring.bring(place, self.wish.timeout, whole=True)

    def define(self) -> None:
        """The new VM, with what the source keeps beside its disks."""
        kept = files.kept(self.whole(), None)
        root = self._definition()
        for part in restoring.check_state(kept, self.wish.name, self.uuid):
            restoring.put_back(part, kept, self.wish.name, self.uuid)
        self.node.define(text_of(root))

    def clear(self) -> None:
        """The disks are the VM's own now; the copy goes, and nothing else that somebody may have put beside it."""
        for folder in store.left(self.scratch, self.wish.source):
            self.acts.clear(folder)
        for copy in self.acts.look():
            restoring.finish(self._places(copy))
            store.remove(copy)
        place = self.scratch / self.wish.source
        (place / store.LOCK).unlink(missing_ok=True)
        for folder in (place, self.scratch):
            with suppress(FileNotFoundError):
                folder.rmdir()
