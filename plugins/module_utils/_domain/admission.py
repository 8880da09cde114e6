# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a VM may be defined, started or deprived of its disks here: asks the node and its peers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable

from .._errors import Refused
from .neighbours import BESIDE, Claim, check_definition, check_elsewhere, check_start
from .site import FRESH_SECONDS, Site

HERE = "this node"


class Admission:
    """The questions for one VM. `fenced`: the peers that are known to be off."""

    def __init__(self, site: Site, name: str, fenced: Collection[str]) -> None:
        self.site = site
        self.name = name
        self.fenced = fenced

    def definition(self, before: set[Claim], after: set[Claim], uuid: str, new: bool) -> None:
        """Raise Refused when the definition claims what belongs to another domain, here or on a peer that answers."""
        if not after - before:
            return
        peers, _silent = self.site.peers()
        if new:
            check_elsewhere(self.name, uuid, peers)
        check_definition(self.name, after - before, {HERE: self.site.surveyed, **peers})

    def arrival(self, claims: set[Claim], uuid: str, act: str) -> None:
        """Raise Refused when a clone, or a VM restored, may exist elsewhere, or claims what another domain holds."""
        peers = self.answers(act)
        check_elsewhere(self.name, uuid, peers, BESIDE)
        check_definition(self.name, claims, {HERE: self.site.surveyed, **peers})

    def start(
        self,
        held: set[Claim],
        uuid: str,
        check: Callable[[], object],
        seconds: float = FRESH_SECONDS,
        *,
        act: str = "started",
    ) -> None:
        """Raise Refused when the VM may exist elsewhere, or another one uses what it holds; `check` asks its stores."""
        peers = self.answers(act, seconds)
        check_elsewhere(self.name, uuid, peers)
        check_start(self.name, held, {HERE: self.site.surveyed, **peers})
        check()

    def answers(self, act: str, seconds: float = FRESH_SECONDS) -> dict[str, list[dict[str, Any]]]:
        """What the peers hold. Raises Refused when one gave no answer and is not known to be off."""
        peers, silent = self.site.peers(seconds, lambda peer: peer not in self.fenced)
        silent = [peer for peer in silent if peer not in self.fenced]
        if silent:
            raise Refused(
                f"{self.name} is not {act}: {', '.join(silent)} gave no answer, and it may run there. Run this again "
                "when they answer, or, when you know that they are powered off, with their names in fenced "
                "(playbooks: drover_fenced)",
                unreachable=silent,
            )
        return peers

    def plan(self, claims: set[Claim], runs: bool) -> None:
        """Remember what this VM will hold, so that no other VM of the same task may claim it."""
        self.site.surveyed.append({"name": self.name, "active": runs, "claims": sorted(map(list, claims))})
