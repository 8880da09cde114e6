# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM stands still for a moment, and goes on whatever happens to this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from .._libvirt import LOCAL, Node
from .._run import run

STILL_SECONDS = 15
RESUME = ("virsh", "--connect", LOCAL, "resume")
NOT_LOADED = 5  # systemctl: the timer has done its work already


@contextmanager
def still(node: Node, name: str, uuid: str, stop: Callable[[], object]) -> Iterator[None]:
    """`stop` pauses the VM, or starts it paused. A timer of systemd resumes it should this process be killed."""
    timer = f"drover-resume-{uuid}"
    limit = f"--on-active={STILL_SECONDS}s"
    run(["systemd-run", "--collect", "--quiet", f"--unit={timer}", limit, *RESUME, uuid])
    stop()
    try:
        yield
    finally:
        node.resume(name)
        run(["systemctl", "stop", f"{timer}.timer"], ok=(0, NOT_LOADED))
