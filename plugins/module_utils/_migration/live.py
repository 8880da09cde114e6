# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live migration: a destination that runs only when the source can never run again.

The VM is left paused at the destination and resumed there by this program, on one of two proofs: the source's QEMU
process is dead and the destination has finished, or the call has returned and the source has no such domain. So a
lost answer, a frozen daemon or a killed one can stop the VM for a while, but never makes two of it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from .._errors import DroverError, Failed, Refused
from . import stream
from .order import End, Journal, Order, under_way
from .pace import Pace, speed
from .volumes import remove_originals

TICK = 1.0
ABORT_PATIENCE = 40.0


class Source(End, Protocol):
    """What the live migration also needs of the node that the VM leaves."""

    def autostart(self, uuid: str) -> bool: ...
    def on_event(self, uuid: str, heard: Any) -> None: ...
    def undefine(self, uuid: str) -> None: ...
    def process(self, name: str, uuid: str) -> int | None: ...
    def reach(self, order: Order) -> None: ...
    def phase(self, name: str) -> str: ...
    def migrate(self, order: Order) -> None: ...
    def share(self, order: Order) -> None: ...
    def progress(self, uuid: str) -> dict[str, Any]: ...
    def abort(self, uuid: str) -> None: ...
    def allow_downtime(self, uuid: str, milliseconds: int) -> bool: ...
    def limit(self, uuid: str, speed: int) -> bool: ...
    def capacity(self, uuid: str, target: str) -> int: ...
    def uses(self, path: str) -> bool: ...
    def forget(self, paths: Iterable[str]) -> None: ...


class Files(Protocol):
    """The files of a node, where disks are copied to."""

    def make(self, copies: Iterable[Mapping[str, Any]]) -> None: ...
    def claim(self, paths: Iterable[str]) -> None: ...
    def release(self, paths: Iterable[str]) -> None: ...


class Target(End, Protocol):
    """What the live migration also needs of the node that the VM comes to."""

    @property
    def volumes(self) -> Files: ...
    def on_event(self, uuid: str, heard: Any) -> None: ...
    def resume(self, uuid: str) -> None: ...
    def totals(self, uuid: str) -> dict[str, Any]: ...
    def capacity(self, uuid: str, target: str) -> int: ...


class LiveMove:
    """One live migration, step by step. Raises DroverError; then nothing may be assumed, and recovery decides."""

    def __init__(self, order: Order, source: Source, target: Target, journal: Journal) -> None:
        self.order, self.source, self.target, self.journal = order, source, target, journal
        self.marker: dict[str, Any] = {}
        self.error: DroverError | None = None
        self.reason = ""
        self.returned = self.finished = self.source_dead = self.resumed = self.early = False
        self.stopped_at = self.finished_at = self.resumed_at = 0.0
        self._ear, self._mouth = os.pipe()

    def run(self) -> dict[str, Any]:
        """Mark, migrate, resume, clean up; returns what was measured. Raises DroverError."""
        self.source.on_event(self.order.uuid, self._heard_source)
        self.target.on_event(self.order.uuid, self._heard_target)
        process = self.source.process(self.order.vm, self.order.uuid)
        self.source.reach(self.order)
        self.mark()
        if self.order.copies:
            self.journal.phase("making room", copies=self.paths)
            self.target.volumes.make(self.order.copies)
        if self.order.state:
            self.target.volumes.claim(self.order.state)
        if any(device["lock"] for device in self.order.devices):
            self.journal.phase("sharing")
            self.source.share(self.order)
        self.check_marked()
        self.journal.phase("migrating", was=self.marker["was"])
        self.perform(process)
        if self.error is not None:
            raise Failed(f"{self.reason}: {self.error.message}") if self.reason else self.error
        self.prove()
        left = self.complete()
        measured = {"downtime_ms": self.until_resume(self.stopped_at), "proof_ms": self.until_resume(self.finished_at)}
        return {**measured, **self.target.totals(self.order.uuid), "resumed_early": self.early, "left": left}

    def until_resume(self, begin: float) -> float | None:
        """Milliseconds from a moment to the resume; None when one of both was not seen."""
        return round((self.resumed_at - begin) * 1000, 1) if begin and self.resumed_at else None

    def mark(self) -> None:
        """Write the marker at the source, before anything else is changed: recovery reads all it must know from it."""
        uuid, order = self.order.uuid, self.order
        seen = self.source.state(uuid)
        if seen is None or seen[0] not in ("running", "paused"):
            raise Refused(f"{order.vm} does not run on {order.source}: {seen[0] if seen else 'no such domain'}")
        if self.source.marker(uuid) is not None:
            raise Refused(f"{order.vm} carries the marker of a migration that did not end; recover it first")
        self.marker = {
            "id": order.id,
            "from": order.source,
            "to": order.target,
            "was": seen[0],
            "autostart": self.source.autostart(uuid),
            "started": int(time.time()),
            "copies": self.brought,
            "devices": order.devices,
            "state": order.state,
            "home": order.new_home,
        }
        self.journal.phase("marking")
        self.source.set_marker(uuid, self.marker)
        if order.home == "source" and self.source.home(uuid) is None:
            self.source.set_home(uuid, order.source)
        # A stale definition with autostart would start a second copy at the source's next boot.
        if self.marker["autostart"]:
            self.source.set_autostart(uuid, False)

    def check_marked(self) -> None:
        """Raise Failed when the marker is not as it was written.

        A recovery on another node does not see this helper, and may have taken it away. Nobody could tell then what a
        copy is that this migration leaves paused.
        """
        seen = self.source.marker(self.order.uuid)
        if seen is None or seen["id"] != self.order.id or seen.get("ran"):
            raise Failed(f"{self.order.vm} no longer carries the marker of this migration: another recovery ended it")

    def perform(self, process: int | None) -> None:
        """Migrate, watching for stalls, and resume as soon as there is proof. Keeps the call's error in `error`."""
        threading.Thread(target=self._call, daemon=True).start()
        pace = Pace(self.order, time.monotonic())
        while not self.returned:
            ears = [self._ear] + ([process] if process is not None and not self.source_dead else [])
            ready, _w, _x = select.select(ears, [], [], TICK)
            if self._ear in ready:
                self._listen()
            if process in ready:
                self.source_dead = True
            if self.source_dead and self.finished and self.order.early and not self.resumed:
                self.resume()
            elif not ready:
                self._tick(pace)

    def resume(self) -> None:
        """Start the vCPUs at the destination; only called with proof that the source never runs it again."""
        if self.marker["was"] != "running":
            return
        state = self.target.state(self.order.uuid)
        if state != ("paused", "user"):
            raise Failed(f"{self.order.vm} is {state} on {self.order.target} after the migration, not paused")
        self.target.resume(self.order.uuid)
        self.resumed_at, self.resumed, self.early = time.monotonic(), True, not self.returned

    def prove(self) -> None:
        """After the call returned well: the source must have no such domain; only then resume what is not resumed."""
        uuid = self.order.uuid
        left = self.source.state(uuid)
        if left is not None and left[0] != "stopped":
            raise Failed(f"the migration returned well, but {self.order.vm} is still {left[0]} on {self.order.source}")
        if not self.resumed:
            self.resume()
        if left is not None:
            self.source.undefine(uuid)
        self.journal.phase("resumed")

    def complete(self) -> list[str]:
        """What the VM takes along; the marker goes last, for as long as it stands recovery finishes the rest.

        Returns the files of its disks that stay at the source.
        """
        uuid, order = self.order.uuid, self.order
        if self.marker["autostart"]:
            self.target.set_autostart(uuid, True)
        if order.new_home:
            self.target.rehome(uuid, order.new_home)
        self.source.forget(order.state)
        left = self.settle() if order.copies else []
        if self.brought:
            self.target.volumes.release(self.brought)
        self.target.set_marker(uuid, None)
        return left

    @property
    def paths(self) -> list[str]:
        """The files of disks that go along."""
        return [str(copy["path"]) for copy in self.order.copies]

    @property
    def brought(self) -> list[str]:
        """The files that the destination gets."""
        return self.paths + self.order.state

    def settle(self) -> list[str]:
        """The copies are the VM's disks now: see that they are whole, and delete our own files at the source."""
        uuid, order = self.order.uuid, self.order
        for copy in order.copies:
            size = self.target.capacity(uuid, copy["target"])
            if size != copy["size"]:
                where = f"{copy['target']} of {order.vm} has {size} bytes on {order.target}"
                raise Failed(f"{where}, not {copy['size']}; its file on {order.source} stays")
        return remove_originals(self.paths, uuid, self.source.uses)

    def _call(self) -> None:
        try:
            self.source.migrate(self.order)
        except DroverError as error:
            self.error = error
        except Exception as error:  # a thread's exception would be lost, and the loop would wait for ever
            self.error = Failed(f"the migration call failed: {error!r}")
        os.write(self._mouth, b"R")

    def _listen(self) -> None:
        heard = os.read(self._ear, 64)
        self.returned = self.returned or b"R" in heard
        self.finished = self.finished or b"F" in heard

    def _heard_source(self, event: str, detail: str) -> None:
        if (event, detail) == ("suspended", "migrated"):
            self.stopped_at = time.monotonic()

    def _heard_target(self, event: str, detail: str) -> None:
        if (event, detail) == ("suspended", "paused"):
            self.finished_at = time.monotonic()
            os.write(self._mouth, b"F")

    def _share(self, pace: Pace) -> None:
        """Take as much of the link as the others that leave this node leave over; more only when it is free twice."""
        wanted = speed(self.order, under_way())
        sure = wanted is not None and (pace.speed is None or wanted <= max(pace.speed, pace.free))
        pace.free = wanted or 0
        if wanted is not None and sure and wanted != pace.speed and self.source.limit(self.order.uuid, wanted):
            pace.speed = wanted

    def _tick(self, pace: Pace) -> None:
        if self.order.together:
            self._share(pace)
        progress = self.source.progress(self.order.uuid)
        if progress:
            self.journal.update(progress=progress)
        verdict = pace.judge(progress, time.monotonic())
        if pace.hopeless(time.monotonic(), ABORT_PATIENCE):
            raise Failed(f"the migration of {self.order.vm} did not end although it was aborted: {self.reason}")
        if verdict:
            where = stream.standing(self.order, self.source.phase(self.order.vm), progress)
            self.reason = f"{verdict}: {where}"
            self.journal.phase("aborting", reason=self.reason)
            self.source.abort(self.order.uuid)
        elif (allowed := pace.downtime(progress)) is not None and self.source.allow_downtime(self.order.uuid, allowed):
            pace.allowed = allowed
            self.journal.update(downtime_allowed=allowed)
            self.journal.say(f"may stand still for {allowed} ms")
