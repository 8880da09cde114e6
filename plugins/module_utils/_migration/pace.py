# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How hard a live migration may press: what a task and its policies say, and what follows from the job's figures. Pure.

QEMU switches when what is left would go over within the downtime that it is allowed. A VM that changes its memory
faster than the network carries it never comes to that; so the allowed downtime grows with each pass, and at the end of
its time the migration is aborted, or the VM stands still once for as long as the task allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import Invalid
from .order import Order

# QEMU's own default, in ms.
FIRST_DOWNTIME = 300
# What libvirt needs to end a migration once all is sent, in seconds.
SWITCH_SECONDS = 10.0
SECONDS_PER_GIB = 150
SHORTEST = 120
DEFAULTS: dict[str, Any] = {
    "stall_timeout": 60,
    "timeout_per_gib": SECONDS_PER_GIB,
    "auto_converge": True,
    "max_downtime": 1000,
    "when_stuck": "abort",
    "max_pause": 10,
    "compression": "none",
}
# What QEMU compresses in the threads of parallel connections; with xbzrle there can be only one.
IN_THREADS = ("zlib", "zstd")


def chosen(params: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """What applies to a VM: the task's own options, then the first policy for one of its tags, then the defaults."""
    policies: list[Mapping[str, Any]] = params.get("policies") or []
    policy: Mapping[str, Any] = next((one for one in policies if one["tag"] in tags), {})
    names = {*DEFAULTS, "bandwidth", "timeout", "parallel_connections"}
    found = {}
    for name in names:
        values = (params.get(name), policy.get(name), DEFAULTS.get(name))
        found[name] = next((value for value in values if value is not None), None)
    return found


def check_compression(params: Mapping[str, Any]) -> None:
    """Raise Invalid where, for the VMs of any tag, the compression and the connections do not go together."""
    for policy in ({}, *(params.get("policies") or [])):
        options = chosen(params, [policy["tag"]] if policy else [])
        way, connections = options["compression"], options["parallel_connections"]
        whose = f" (VMs with the tag {policy['tag']})" if policy else ""
        if way in IN_THREADS and not connections:
            raise Invalid(f"compression {way} needs parallel_connections: 2 or more{whose}")
        if way == "xbzrle" and connections:
            raise Invalid(f"compression xbzrle goes over one connection only, leave out parallel_connections{whose}")


def seconds(options: Mapping[str, Any], amount: int) -> float:
    """The time limit of a migration of so many bytes."""
    return float(options["timeout"] or max(SHORTEST, options["timeout_per_gib"] * amount / 2**30))


def downtime(limit: int, passes: int) -> int:
    """How long the VM may stand still in this pass over its memory, in ms: as QEMU has it twice, then doubled."""
    return min(limit, FIRST_DOWNTIME << min(max(0, passes - 2), 16))


def speed(order: Order, number: int) -> int | None:
    """What the migration may take while so many leave its node, in MiB/s, of which there is at least one.

    None where nothing limits it.
    """
    limits = [order.bandwidth or 0, (order.together or 0) // number]
    given = [limit for limit, said in zip(limits, (order.bandwidth, order.together)) if said]
    return max(1, min(given) >> 20) if given else None


class Pace:
    """Decides what a migration that runs needs. Times are monotonic seconds."""

    def __init__(self, order: Order, now: float) -> None:
        self.order = order
        self.start = self.moved = now
        self.end = now + order.timeout
        self.last: Any = None
        self.aborted = 0.0
        self.allowed = FIRST_DOWNTIME
        self.paused = False
        # In MiB/s: what was set, and what was free at the last look.
        self.speed: int | None = None
        self.free = 0

    def judge(self, progress: Mapping[str, Any], now: float) -> str:
        """Why it must be aborted now, or nothing. Says it once."""
        sent = progress.get("sent")
        if sent != self.last:
            self.last, self.moved = sent, now
        if self.aborted:
            return ""
        reason = ""
        if now > self.end:
            reason = self._late(progress, now)
        elif now - self.moved > self.order.stall_timeout:
            reason = f"no progress for {self.order.stall_timeout:g} s"
        self.aborted = now if reason else 0.0
        return reason

    def _late(self, progress: Mapping[str, Any], now: float) -> str:
        """Its time is over: a last pause, if the task wants that and the rest would go over in it, or the end."""
        limit = self.order.max_pause
        words = f"not done after {now - self.start:.0f} s"
        rest, rate = progress.get("remaining") or 0, progress.get("rate") or 0
        if not limit or not progress.get("total"):
            return words
        if self.paused:
            return f"{words}, the last with a pause of up to {limit:g} s"
        if rest > rate * limit:
            return f"{words}, and its last {rest >> 20} MiB would take more than a pause of {limit:g} s"
        self.paused, self.end = True, now + limit + SWITCH_SECONDS
        return ""

    def downtime(self, progress: Mapping[str, Any]) -> int | None:
        """The downtime to allow from now on, in ms; None when that is so already, or no memory goes yet."""
        passes = int(progress.get("pass") or 0)
        if not passes:
            return None
        wanted = int(self.order.max_pause * 1000) if self.paused else downtime(self.order.max_downtime, passes)
        return None if wanted == self.allowed else wanted

    def hopeless(self, now: float, patience: float) -> bool:
        """The abort itself has had no effect for so many seconds."""
        return bool(self.aborted) and now - self.aborted > patience
