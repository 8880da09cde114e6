# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration as a state: this VM is on that node. What is, what shall be, and the steps between."""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import _seed
from .._disks import file
from .._errors import DroverError, Failed, NotFound, Refused, Unreachable
from .._resource import State, Step
from .client import Client
from .copies import Decision
from .order import Order
from .pace import check_compression, chosen, seconds
from .prechecks import at_work, media
from .recovery import VERBS
from .rules import decide
from .site import Sight
from .unit import Unit

# libvirt asks the guest for the tray, and asks again.
EJECT_SECONDS = 60.0
# What a helper measures: see RETURN of module migrate.
MEASURED = ("downtime_ms", "proof_ms", "sent", "passes")


class Moving:
    """One VM and the node where it shall be."""

    def __init__(self, params: dict[str, Any], client: Client) -> None:
        check_compression(params)
        self.params, self.client = params, client
        self.name, self.to = str(params["name"]), str(params["to"])
        self.measured: dict[str, Any] = {}
        self.sight = Sight(self.name, None, {})
        self.decision = Decision("", "unknown", "")
        self.helper_to: str | None = None
        self.begun = 0.0
        self.left: str | None = None
        self.warnings: list[str] = []

    @classmethod
    def review(cls, tasks: Sequence[Moving]) -> None:
        """One look for all VMs, and one question to each destination for all that shall come to it."""
        if not tasks:
            return
        client = tasks[0].client
        sights = client.look([task.name for task in tasks])
        moves: dict[str, list[str]] = {}
        for task in tasks:
            task.client.site.stream(task.to)
            sight = sights[task.name]
            task.choose(sight)
            here = client.site.here in sight.holders and task.to != client.site.here
            if here and task.to not in sight.on("running", "paused"):
                moves.setdefault(task.to, []).append(str(sight.uuid))
        client.study(moves)

    def choose(self, sight: Sight) -> None:
        """Remember whether the VM's local disks may be copied, and its local media ejected."""
        if self.params["storage"] == "copy":
            self.client.copying.add(str(sight.uuid))
        if self.params["eject_cdrom"]:
            self.client.ejecting.add(str(sight.uuid))

    def look(self, fresh: bool) -> None:
        """See what all nodes say now, and what the rules make of it. Raises NotFound, Refused, Unreachable."""
        self.sight = sight = self.client.look([self.name], fresh)[self.name]
        wanted = self.params["uuid"]
        if sight.uuid is None:
            also = f"; no answer from {', '.join(sight.silent)}, it may be there" if sight.silent else ""
            raise NotFound(f"there is no VM {self.name} on any node that answers{also}")
        if wanted and wanted != sight.uuid:
            raise Refused(f"{self.name} has the UUID {sight.uuid}, not {wanted}: it is another VM")
        # Of what an interrupted move left only state=recovered takes it for proof that a node is off.
        self.decision = decide(sight.said, () if sight.marker else self.params["fenced"])

    @property
    def where(self) -> str:
        """The node that has the VM, `none` or `unknown`."""
        return self.decision.where

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return str(self.sight.uuid)

    @property
    def state(self) -> str:
        """The state of the VM where it is."""
        return str(self.sight.said[self.where]["state"]) if self.where in self.sight.holders else "unknown"

    @property
    def unfinished(self) -> bool:
        """Whether a migration is under way or was interrupted."""
        verbs = {action.verb for action in self.decision.actions}
        return bool(self.sight.marker or verbs & (VERBS | {"wait"}))

    def read(self, fresh: bool) -> State:
        """Where the VM is, and whether a migration of it is under way or was interrupted."""
        self.look(fresh)
        unit = Unit(self.uuid)
        self.helper_to = unit.state().get("to") if unit.running() else None
        busy = self.unfinished or self.helper_to is not None
        return {"name": self.name, "uuid": self.uuid, "where": self.where, "state": self.state, "unfinished": busy}

    def wanted(self, before: dict[str, Any]) -> State:
        """The VM on its node, with nothing left open. Raises Refused with all blockers."""
        self.client.site.stream(self.to)
        here, place = self.client.site.here, self.place_after()
        if self.helper_to not in (None, self.to):
            raise Refused(f"{self.name} is on its way to {self.helper_to} now; wait for that first")
        if place in ("unknown", "none"):
            raise Refused(f"{self.name}: {self.decision.text}", rule=self.decision.rule)
        if place not in (self.to, here):
            raise Refused(f"{self.name} is on {place}, not on {here}: run this task on {place}", where=place)
        if place == here != self.to:
            if self.params["from"] not in (None, here):
                raise Refused(f"{self.name} is on {here}, not on {self.params['from']}: the plan is out of date")
            self.check()
        return {**before, "where": self.to, "unfinished": False}

    def check(self) -> None:
        """Refuse with everything that speaks against the move."""
        if self.decision.rule == "4":
            raise Refused(f"{self.name} can't move before its last migration is finished: {self.decision.text}")
        kind = "offline" if self.state == "shutoff" else "live"
        if self.params["mode"] not in (None, kind):
            self.warnings = [f"{self.name} is {self.state} now, so it moves {kind}, not as the plan says"]
        if self.uuid not in self.client.needs or self.to not in self.client.answers:
            self.client.study({self.to: [self.uuid]})
        job = self.sight.said[self.client.site.here].get("job") or ""
        found = at_work(job) + self.client.blockers(self.uuid, self.to)
        if found:
            texts = "; ".join(f"{blocker['text']} ({blocker['mend']})" for blocker in found)
            raise Refused(f"{self.name} can't go from {self.where} to {self.to}: {texts}", blockers=found)

    def place_after(self) -> str:
        """Where the VM will be once what is under way has ended."""
        if self.helper_to:
            return self.helper_to
        if self.decision.rule in ("1", "B4.2"):
            incoming = [node for node in self.sight.holders if self.sight.said[node].get("job") == "incoming"]
            return incoming[0] if incoming else self.where
        return self.where

    def steps(self, before: dict[str, Any], wanted: dict[str, Any]) -> list[Step]:
        """Finish what is under way, then migrate unless that brought it here."""
        found = []
        place = self.place_after()
        if self.helper_to:
            found.append(Step(f"wait for the migration of {self.name} to {place}, which runs", self.adopt))
        elif self.unfinished:
            found.append(Step(f"finish the interrupted migration of {self.name}: {self.decision.text}", self.mend))
        if place != self.to:
            for drive in media(self.client.needs.get(self.uuid, {"disks": []})):
                words = f"eject {drive['identity']} from {drive['target']} of {self.name}"
                found.append(Step(words, partial(self.eject, drive["target"])))
            found.append(Step(f"migrate {self.name} from {place} to {self.to}", self.move))
        return found

    def adopt(self) -> None:
        """Wait for the helper that works on the VM. Raises Failed with the truth when it does not bring it here."""
        self.begun = time.monotonic()
        self.conclude(Unit(self.uuid).wait(None))

    def mend(self) -> None:
        """Recover, on this node, under the VM's lock."""
        result = self.client.carry_out(self.order("recover"))
        if not result["complete"]:
            raise Failed(f"{self.name} is not recovered: {result.get('text') or result['error']}", **self.truth())

    def eject(self, target: str) -> None:
        """Empty a drive. Raises Failed with the words of libvirt, as when the guest has locked the tray."""
        here = self.client.site.here
        said = self.client.site.ask(lambda end: end.eject(self.uuid, target), [here], EJECT_SECONDS)[here]
        if isinstance(said, Unreachable):
            raise Failed(f"{target} of {self.name} was not ejected, and {self.name} stays on {here}: {said}")

    def move(self) -> None:
        """Migrate. A helper that was killed is followed by a recovery. Raises Failed with the truth."""
        self.begun = time.monotonic()
        self.look(fresh=True)
        if self.where == self.to and not self.unfinished:
            return
        result = self.client.carry_out(self.order("offline" if self.state == "shutoff" else "live"))
        if result["where"] == "unknown" and not result["complete"]:
            after = self.client.carry_out(self.order("recover"))
            result = {**after, "error": result["error"]}
        self.conclude(result)

    def conclude(self, result: dict[str, Any]) -> None:
        """Keep what was measured; raise Failed when the VM is not where it shall be."""
        times = {name: result.get(name) for name in MEASURED}
        left = result.get("left") or []
        if left:
            words = f"{', '.join(left)} of {self.name} stayed on {self.client.site.here}, where nobody uses it now"
            self.warnings.append(f"{words}: it has no mark that it was made for this VM")
        self.measured = {"seconds": round(time.monotonic() - self.begun, 1), **times}
        if result["where"] != self.to or not result["complete"]:
            truth = self.truth()
            words = f"{result['error'] or 'the migration ended without it'}; {self.name} is {truth['vm_state']}"
            raise Failed(f"{self.name} was not migrated to {self.to}: {words}", **truth, rule=result.get("rule"))
        self.left = self.client.site.here
        self.check_lease()
        # A guest that runs has read it; what is in it should not stay where nobody looks for it.
        for path in _seed.left(file.seed_path(self.name), self.uuid) if self.to != self.client.site.here else []:
            _seed.remove(path, self.uuid)

    def check_lease(self) -> None:
        """Raise Failed when the VM runs where it shall be and nobody holds the lease that it took along."""
        path = self.client.needs.get(self.uuid, {}).get("lease")
        leases = self.client.site.leases
        if not path or path != leases.path(self.uuid) or leases.holder(self.uuid) is not None:
            return
        self.look(fresh=True)
        if self.state == "running" and leases.holder(self.uuid) is None:
            words = f"{self.name} was migrated and runs on {self.where}, and nobody holds its lease {path}"
            raise Failed(f"{words}: see what virtlockd says there (journalctl -u virtlockd)", where=self.where)

    def truth(self) -> dict[str, Any]:
        """What the nodes say now, for a message: `vm_state` and `where`."""
        try:
            self.look(fresh=True)
        except DroverError as error:
            return {"vm_state": f"unknown ({error.message})", "where": "unknown"}
        return {"vm_state": self.sight.words(), "where": self.where}

    def order(self, kind: str) -> Order:
        """The helper's order."""
        site, params = self.client.site, self.params
        need = self.client.needs.get(self.uuid, {})
        copies = need.get("copies", []) if kind == "live" else []
        amount = (params["memory"] or need.get("memory", 0)) + sum(copy["size"] for copy in copies)
        options = chosen(params, need.get("tags", ()))
        return Order(
            id=str(uuids.uuid4()),
            kind=kind,
            vm=self.name,
            uuid=self.uuid,
            source=site.here,
            target=self.to,
            here=site.here,
            nodes=site.uris,
            stream=site.stream(self.to),
            bandwidth=options["bandwidth"],
            together=params["bandwidth_per_node"],
            timeout=seconds(options, amount),
            stall_timeout=options["stall_timeout"],
            home=params["set_home"],
            early=params["early_resume"],
            auto_converge=options["auto_converge"],
            max_downtime=options["max_downtime"],
            max_pause=options["max_pause"] if options["when_stuck"] == "pause" else 0,
            connections=options["parallel_connections"],
            compression=None if options["compression"] == "none" else options["compression"],
            copies=copies,
            devices=need.get("devices", []),
            state=need.get("kept", []),
        )

    def result(self, state: State) -> dict[str, Any]:
        """Where the VM is, as all nodes say."""
        sight = self.sight
        return {
            "name": self.name,
            "uuid": self.uuid,
            "where": (state or {}).get("where"),
            "vm_state": sight.words(),
            "verified": sight.holders == [self.to] and not sight.marker,
            "unseen": sight.silent,
            "from": self.left,
            **{name: self.measured.get(name) for name in ("seconds", *MEASURED)},
        }
