# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery as a state: no VM carries the marker of a migration that did not end."""

from __future__ import annotations

import uuid as uuids
from typing import Any

from .._errors import Failed, NotFound
from .._resource import State, Step
from .client import Client
from .copies import Decision
from .order import Order
from .pace import DEFAULTS
from .recovery import VERBS
from .rules import decide
from .site import Sight
from .unit import Unit

# The VM is known to run, and what is left of its migration waits for a node that gives no answer (see rules.py).
WAITING = ("4", "11")


class Mending:
    """One VM, or all of the cluster that carry the marker."""

    def __init__(self, params: dict[str, Any], client: Client) -> None:
        self.params, self.client = params, client
        self.sights: dict[str, Sight] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []

    def read(self, fresh: bool) -> State:
        """What the rules say of each VM that is not finished."""
        name = self.params["name"]
        seen = self.client.look([name] if name else None, fresh)
        if name and seen[name].uuid is None:
            raise NotFound(f"there is no VM {name} on any node that answers")
        self.sights = {vm: sight for vm, sight in seen.items() if sight.uuid}
        return {vm: self.decision(sight).as_dict() for vm, sight in self.sights.items() if self.open(sight)}

    def decision(self, sight: Sight) -> Decision:
        """The rule that applies to the VM."""
        return decide(sight.said, self.params["fenced"], self.params["keep"])

    def open(self, sight: Sight) -> bool:
        """Whether there is something to decide: a marker, a copy that a migration left, or nobody knows where it is."""
        decision = self.decision(sight)
        verbs = {action.verb for action in decision.actions}
        return bool(sight.marker or verbs & (VERBS | {"wait"}) or decision.where == "unknown")

    def wanted(self, before: State) -> State:
        """Nothing that can be decided is left; what a person must decide stays and is reported."""
        return {vm: case for vm, case in (before or {}).items() if not self.actions(case)}

    @staticmethod
    def actions(case: dict[str, Any]) -> list[str]:
        """What the rules ask to do about a case, in words."""
        return [action["text"] for action in case["actions"] if action["verb"] in VERBS | {"wait"}]

    def steps(self, before: dict[str, Any], wanted: dict[str, Any]) -> list[Step]:
        """One step for each VM."""
        found = []
        for vm, case in before.items():
            if vm not in wanted:
                text = f"recover {vm} by rule {case['rule']}: {'; '.join(self.actions(case))}"
                found.append(Step(text, self._mend(vm)))
        return found

    def _mend(self, vm: str) -> Any:
        return lambda: self.mend(vm)

    def mend(self, vm: str) -> None:
        """Let a helper recover the VM, or wait for the one that works on it. Raises Failed."""
        unit = Unit(str(self.sights[vm].uuid))
        if unit.running():
            self.results[vm] = unit.wait(None)
            return
        result = self.client.carry_out(self.order(vm))
        self.results[vm] = result
        if not result["complete"] and result.get("rule") not in WAITING:
            raise Failed(f"{vm} is not recovered: {result.get('text') or result['error']}", where=result["where"])

    def order(self, vm: str) -> Order:
        """The helper's order."""
        site, sight = self.client.site, self.sights[vm]
        marker = sight.marker or {}
        return Order(
            id=str(uuids.uuid4()),
            kind="recover",
            vm=vm,
            uuid=str(sight.uuid),
            source=str(marker.get("from") or site.here),
            target=str(marker.get("to") or site.here),
            here=site.here,
            nodes=site.uris,
            timeout=self.params["timeout"] or 600,
            stall_timeout=self.params["stall_timeout"] or DEFAULTS["stall_timeout"],
            keep=self.params["keep"],
            fenced=self.params["fenced"],
        )

    def result(self, state: State) -> dict[str, Any]:
        """What is left for a person, and where the VMs are."""
        left = {vm: case["text"] for vm, case in (state or {}).items()}
        places = {vm: self.decision(sight).where for vm, sight in self.sights.items()}
        name = self.params["name"]
        one = {"where": places.get(name), "vm_state": self.sights[name].words()} if name in self.sights else {}
        return {"open": left, "places": places, "verified": not left, **one}
