# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all items of one run share: the cluster, what was seen of it, the places of the queue."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .._errors import Failed, Unreachable
from . import prechecks
from .order import Order
from .site import Sight, Site, survey
from .unit import Unit

HEARTBEAT_SECONDS = 20.0
# What a helper may take beyond its time for the migration and its time for the recovery.
HELPER_SECONDS = 600.0
LOOK_AGAIN = 1.0
STDOUT = 1


def unheard(descriptor: int = STDOUT) -> bool:
    """Whether nobody reads any more what is written there: ssh closes it as soon as the controller's side has ended."""
    poll = select.poll()
    # No event is asked for: errors and hang-ups are told all the same (poll(2)).
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _descriptor, events in poll.poll(0))


@dataclass
class Client:
    """One run. `slots` are the places of the queue; a thread that looks or plans holds `lock`.

    `inbound` is how many VMs a destination takes in at once, `everywhere` how many move in the whole cluster (None: no
    limit). `begun` are those of this run that have a place (UUID, destination); `gate` is held by who looks for one.
    """

    site: Site
    slots: threading.Semaphore
    heartbeat: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    sights: dict[str, Sight] = field(default_factory=dict)
    needs: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    inbound: int | None = None
    everywhere: int | None = None
    begun: dict[str, str] = field(default_factory=dict)
    gate: threading.Lock = field(default_factory=threading.Lock)
    copying: set[str] = field(default_factory=set)
    ejecting: set[str] = field(default_factory=set)
    taken: dict[tuple[str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def of(cls, params: Mapping[str, Any]) -> Iterator[Client]:
        """The client of a run with these options. Raises NotFound and Failed without a usable cluster.json."""
        heartbeat = Path(params["heartbeat"]) if params["heartbeat"] else None
        slots = threading.Semaphore(params["parallel"])
        limits = {"inbound": params["parallel_inbound"], "everywhere": params["parallel_cluster"]}
        yield cls(Site.load(), slots, heartbeat, params["destinations"] or {}, **limits)
        if heartbeat:
            heartbeat.unlink(missing_ok=True)

    def look(self, names: list[str] | None, fresh: bool = True) -> dict[str, Sight]:
        """What all nodes say of the VMs. Raises Unreachable when this node's own libvirt is silent."""
        with self.lock:
            if names is None:
                # First who is marked anywhere, then what every node says of those, marked there or not.
                names = sorted({*survey(self.site, None), *self.sights})
            missing = names if fresh else [name for name in names if name not in self.sights]
            if missing:
                self.sights.update(survey(self.site, missing))
            found = {name: self.sights[name] for name in names}
        for sight in found.values():
            if self.site.here in sight.silent:
                raise Unreachable(f"libvirt on {self.site.here} does not answer: {sight.said[self.site.here]['why']}")
        return found

    def study(self, moves: Mapping[str, list[str]]) -> None:
        """Read what VMs of this node need (UUIDs by destination) and what the destinations say to it."""
        uuids = [uuid for wanted in moves.values() for uuid in wanted]
        here = self.site.here
        if uuids:
            own = self.site.ask(lambda end: {uuid: prechecks.traits(end, uuid) for uuid in uuids}, [here])[here]
            if isinstance(own, Unreachable):
                raise own
            for uuid, need in own.items():
                copying = uuid in self.copying
                files = {"copying": copying, "copies": need["copies"] if copying else []}
                self.needs[uuid] = {**need, **files, "ejecting": uuid in self.ejecting}
        questions = {
            target: partial(
                prechecks.answer, needs=[self.needs[uuid] for uuid in wanted], address=self.site.address(target)
            )
            for target, wanted in moves.items()
        }
        self.answers.update(self.site.ask(lambda end: questions[end.node](end), questions, prechecks.SECONDS))

    def blockers(self, uuid: str, target: str) -> list[dict[str, str]]:
        """All that speaks against the move, counting the memory and the files of those that were planned before it."""
        need, said = self.needs[uuid], self.answers.get(target)
        if isinstance(said, Mapping):
            room = {folder: self.room(target, folder, one) for folder, one in said["room"].items()}
            said = {**said, "free": said["free"] - self.reserved.get(target, 0), "room": room}
        found = prechecks.blockers(need, target, said, self.facts.get(target), self.site.cluster.leases)
        if not found and need["running"]:
            self.reserved[target] = self.reserved.get(target, 0) + prechecks.beside(need)
            for copy in need["copies"]:
                place = (target, str(Path(copy["path"]).parent))
                self.taken[place] = self.taken.get(place, 0) + prechecks.space(copy)
        return [blocker.as_dict() for blocker in found]

    def room(self, target: str, folder: str, room: Mapping[str, Any]) -> dict[str, Any]:
        """What a folder has free beside the copies that were planned before."""
        return {**room, **({"free": room["free"] - self.taken.get((target, folder), 0)} if "free" in room else {})}

    def beating(self) -> bool:
        """Whether the controller is still there; without a heartbeat file nobody asked for it to be watched."""
        if self.heartbeat is None:
            return True
        try:
            fresh = time.time() - self.heartbeat.stat().st_mtime < HEARTBEAT_SECONDS
        except OSError:
            return False
        return fresh and not unheard()

    def carry_out(self, order: Order) -> dict[str, Any]:
        """Start a helper when a place is free, and wait for its end. Raises Failed when the controller is gone."""
        with self.slots, self.place(order):
            if not self.beating():
                raise Failed(f"{order.vm} was not begun: the controller is gone", where=order.source)
            unit = Unit(order.uuid)
            unit.start(order)
            return unit.wait(order.id, seconds=2 * order.timeout + HELPER_SECONDS)

    @contextmanager
    def place(self, order: Order) -> Iterator[None]:
        """Have a place at the destination and in the cluster meanwhile. Raises Failed.

        It is waited for as long as the migration itself may take.
        """
        limited = order.kind == "live" and (self.inbound or self.everywhere)
        end = time.monotonic() + order.timeout
        while limited and self.beating() and (full := self.full(order)):
            if time.monotonic() > end:
                raise Failed(f"{order.vm} was not begun: {full} for {order.timeout:g} s", where=order.source)
            time.sleep(LOOK_AGAIN)
        try:
            yield
        finally:
            self.begun.pop(order.uuid, None)

    def full(self, order: Order) -> str:
        """The limit that is reached, in words; empty when the place was free, and is taken now."""
        nodes = [order.target] if self.everywhere is None else sorted(self.site.uris)
        with self.gate:
            coming: dict[str, set[str]] = {}
            for node, said in self.site.ask(lambda node: node.incoming(), nodes).items():
                # What comes to one that gives no answer now is not known; the helper tells it better.
                seen = set() if isinstance(said, Unreachable) else said
                coming[node] = seen | {uuid for uuid, target in self.begun.items() if target == node}
            there, all_ = len(coming[order.target]), sum(map(len, coming.values()))
            if self.inbound is not None and there >= self.inbound:
                return f"{order.target} took in {there} other VMs"
            if self.everywhere is not None and all_ >= self.everywhere:
                return f"{all_} other VMs moved in the cluster"
            self.begun[order.uuid] = order.target
        return ""
