# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM gets its power, or goes on after an I/O error had paused it; whether it may is asked before, and once more."""

from __future__ import annotations

from functools import partial
from time import monotonic, sleep

from .._errors import Failed
from .._libvirt import Node
from .._resource import Step
from . import leasing, power
from .admission import Admission
from .draft import Draft
from .neighbours import claims_of

# A request that fails again does so at once; where the storage hangs, it is waited for as by a VM that runs.
STEADY_SECONDS = 2.0
POLL = 0.1


def admit(act: str | None, admission: Admission, draft: Draft) -> None:
    """Ask whether the VM may start or be resumed (`act`); nothing for other acts. Raises Refused."""
    if act in power.ON:
        admission.start(claims_of(draft.after), draft.uuid, partial(draft.check_free, resumed=act == "resume"))


def steps(act: str | None, admission: Admission, draft: Draft) -> list[Step]:
    """The step that starts or resumes it; none for other acts."""
    if act not in power.ON:
        return []
    node, name = admission.site.node, admission.name
    saved = " from its saved memory" if draft.domain and draft.domain.has_managed_save else ""
    words, call = f"start {name}{saved}", partial(node.start, name)
    if act == "resume":
        words, call = f"resume {name}, which an I/O error had paused", partial(resume, node, name)

    def run() -> None:
        # What the peers said may be old by now, when many VMs are started one after the other.
        admit(act, admission, draft)
        # Another node may have removed the VM, and the file of its lease with it.
        admission.site.leases.make(draft.uuid)
        call()
        leasing.check_held(admission.site.leases, node.domain(name))

    return [Step(words, run)]


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
