# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM stands still for a moment, and goes on whatever happens to this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from .. import _later
from .._errors import Failed
from .._libvirt import LOCAL, Node

STILL_SECONDS = 15
TRIES = 10
VIRSH = ("virsh", "--quiet", "--connect", LOCAL)


def resume_unit(uuid: str) -> str:
    """The unit of systemd that resumes a VM which is paused for a moment."""
    return f"drover-resume-{uuid}"


def arm(name: str, uuid: str, seconds: float) -> None:
    """From before it is paused on, a timer of systemd resumes the VM in so many seconds, whatever becomes of us."""
    _later.arm(resume_unit(uuid), seconds, (*VIRSH, "resume", uuid), f"resume {name}", TRIES, every=2)


def let_go(node: Node, name: str, uuid: str) -> None:
    """The VM goes on, and the timer is not needed any more."""
    domain = node.domain(name)
    if domain is not None and domain.state == "paused":
        node.resume(name)
    _later.disarm(resume_unit(uuid))


@contextmanager
def still(node: Node, name: str, uuid: str, stop: Callable[[], object]) -> Iterator[None]:
    """`stop` pauses the VM, or starts it paused. A timer of systemd resumes it should this process be killed.

    Raises Failed when the timer came before the end: then the VM did not stand still for all of it.
    """
    until = time.monotonic() + STILL_SECONDS
    arm(name, uuid, STILL_SECONDS)
    try:
        stop()
        yield
        held = time.monotonic() < until
    finally:
        let_go(node, name, uuid)
    if not held:
        raise Failed(
            f"{name} ran again before all was done, as that took more than {STILL_SECONDS} s; the node is too busy: "
            "run this again"
        )
