# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM gets its power, loses it, or goes on after a pause; whether it may is asked before, and once more."""

from __future__ import annotations

from functools import partial
from time import monotonic, sleep
from typing import Callable

from .._errors import Failed, Refused
from .._libvirt import Node
from .._node import cordon
from .._resource import Step
from .._xml import parse
from . import attaching, leasing, power
from .admission import Admission
from .draft import Draft
from .neighbours import claims_of

# A request that fails again does so at once; where the storage hangs, it is waited for as by a VM that runs.
STEADY_SECONDS = 2.0
POLL = 0.1


def admit(act: str | None, admission: Admission, draft: Draft, own: bool | None = None) -> None:
    """Ask whether the VM may start or be resumed (`act`); nothing for other acts. Raises Refused.

    `own` says whether its own process is there, which has its disks; by default as the act finds it.
    """
    if act == "restart":
        _check_comes_back(admission.name, draft)
    if act in power.ON:
        own = act != "start" if own is None else own
        admission.start(claims_of(draft.after), draft.uuid, partial(draft.check_free, own=own), draft.patience)


def _check_comes_back(name: str, draft: Draft) -> None:
    """Raise Refused where the VM would go down and not come up, as libvirt's hook stops it, or with other data."""
    live = draft.domain.live_xml if draft.domain else None
    astray = attaching.astray(parse(live), draft.after) if live else []
    if astray:
        raise Refused(
            f"{name} is not restarted: {', '.join(astray)}, where its data may be old; end the copy with "
            "drover.kvm.vm_storage, or see which one is right and stop and start it"
        )
    found = cordon()
    if found is not None:
        since = f"since {found.get('since')} by {found.get('by')} ({found.get('reason')})"
        raise Refused(f"{name} is not restarted: this node is cordoned {since}, so it could not start again")


def steps(act: str | None, admission: Admission, draft: Draft) -> list[Step]:
    """The step that starts, resumes or pauses it; none for other acts."""
    node, name = admission.site.node, admission.name
    if act == "pause":
        return [Step(f"pause {name}", partial(node.suspend, name))]
    if act not in power.ON:
        return []
    paused = draft.params["state"] == "paused"
    saved = " from its saved memory" if draft.domain and draft.domain.has_managed_save else ""
    words = f"start {name}{saved}{' and pause it' if paused else ''}"
    call: Callable[[], object] = partial(node.start, name, paused)
    if act == "resume":
        words, call = _resuming(admission, draft)

    def run() -> None:
        # What the peers said may be old by now, when many VMs are started one after the other.
        admit(act, admission, draft, own=act == "resume")
        # Another node may have removed the VM, and the file of its lease with it.
        admission.site.leases.make(draft.uuid)
        call()
        leasing.check_held(admission.site.leases, node.domain(name))

    return [Step(words, run)]


def _resuming(admission: Admission, draft: Draft) -> tuple[str, Callable[[], object]]:
    node, name = admission.site.node, admission.name
    if draft.facts and draft.facts["reason"] == power.IO_ERROR:
        return f"resume {name}, which an I/O error had paused", partial(resume, node, name)
    return f"resume {name}", partial(node.resume, name)


def power_off(act: str | None, admission: Admission, draft: Draft) -> list[Step]:
    """The step that takes its power, and waits until it is off; none for other acts."""
    node, name = admission.site.node, admission.name

    def is_off() -> bool | str:
        domain = node.domain(name)
        return domain is None or domain.state == power.STOPPED or domain.state

    if act == "destroy" or (draft.params["state"] == "restarted" and act == "restart" and draft.params["force"]):
        return [Step(f"cut the power of {name}", partial(node.destroy, name), is_off)]
    if act not in ("shutdown", "wait", "restart"):
        return []

    def ask() -> None:
        # Better than that it can't start afterwards.
        admit(act, admission, draft)
        if draft.facts and draft.facts["state"] == "running":
            node.shutdown(name)

    words = f"shut {name} down" + (f", as this waits for a restart: {'; '.join(draft.waited)}" if draft.waited else "")
    return [Step(words, ask, is_off, draft.params["shutdown_timeout"])]


def resume(node: Node, name: str) -> None:
    """Let it run, and see that it stays so: QEMU tries again what failed, and the guest never knew. Raises Failed."""
    node.resume(name)
    end = monotonic() + STEADY_SECONDS
    while monotonic() < end:
        domain = node.domain(name)
        if domain is None or domain.state != "running":
            reason = domain.reason if domain else "gone"
            raise Failed(f"{name} was resumed and stopped again ({reason}): its storage is not back")
        sleep(POLL)
