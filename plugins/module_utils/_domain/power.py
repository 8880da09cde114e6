# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which act leads from a domain's state to the one that is wanted, and what must not be done to it. Pure."""

from __future__ import annotations

from typing import Any

from .._errors import Refused

STOPPED = "stopped"
IO_ERROR = "I/O error"
USER = "user"  # what libvirt says of one that was paused by request
ON = ("start", "resume", "restart")
STARTS = ("start", "restart")
UP = ("running", "paused", "restarted")
OFF = {"running": "shutdown", "in shutdown": "wait"}
RECOVER = "run drover.kvm.migrate with state=recovered first, which knows which copy of the VM is the good one"


def guard(facts: dict[str, Any]) -> None:
    """Raise Refused where somebody else is at work on the domain: a migration that runs or was cut off, another job."""
    name, marker = facts["name"], facts["marker"]
    if marker is not None:
        raise Refused(
            f"{name} carries the marker of a migration from {marker['from']} to {marker['to']}, another operation that "
            f"runs or was cut off; {RECOVER}",
            marker=marker,
        )
    if facts["state"] == "paused" and "migrat" in str(facts["reason"]):
        raise Refused(f"{name} is paused by a migration ({facts['reason']}); {RECOVER}")
    if facts["job"] is not None:
        raise Refused(
            f"{name} has a job that runs ({facts['job'].get('type')}), of another operation; wait until it is done",
            job=facts["job"],
        )


def act(facts: dict[str, Any] | None, wanted: str, force: bool) -> str | None:
    """`start`, `resume`, `pause`, `restart`, `shutdown`, `destroy` or `wait`; None where nothing is to do.

    `facts` are None for a VM that is not there; `wanted` is a state of module vm. A VM that its storage
    stopped may be resumed: QEMU tries again what failed, and the guest never knew. So may one that was paused by
    request. Raises Refused with the reason.
    """
    if facts is None:
        return "start" if wanted in UP else None
    state = facts["state"]
    if wanted == "present" or (state == STOPPED and wanted in ("stopped", "absent")):
        return None
    if wanted == "running" and state == "running":
        return None
    guard(facts)
    if wanted in UP:
        return "start" if state == STOPPED else _up(facts, wanted, force)
    if wanted == "absent" and not force:
        raise Refused(f"{facts['name']} is {state}; stop it first (state=stopped), or cut its power with force=true")
    return "destroy" if force else _off(facts)


def _up(facts: dict[str, Any], wanted: str, force: bool) -> str | None:
    """What leads a VM that has its power to running, paused or restarted."""
    name, state, reason = facts["name"], facts["state"], facts["reason"]
    if wanted == "restarted":
        if not force:
            _off(facts)
        return "restart"
    if wanted == "paused" and state == "running":
        return "pause"
    asked = state == "paused" and reason == USER
    if wanted == "paused" and asked:
        return None
    if wanted == "running" and (asked or (state == "paused" and reason == IO_ERROR)):
        return "resume"
    act = "resumed blindly" if wanted == "running" else "taken for a machine that was paused by request"
    raise Refused(f"{name} is {state} ({reason}); it is not {act}: {_mend(state)}")


def _off(facts: dict[str, Any]) -> str:
    """How the guest goes down by itself."""
    state = facts["state"]
    if state not in OFF:
        raise Refused(
            f"{facts['name']} is {state} ({facts['reason']}) and can't shut down by itself; force=true cuts its power"
        )
    return OFF[state]


def _mend(state: str) -> str:
    if state == "in shutdown":
        return "it is shutting down; run again when it has stopped"
    if state == "paused":
        return "look why, then resume it with virsh resume, or stop it with state=stopped, force=true"
    return "look at its console, then stop it with state=stopped, force=true"
