# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The moment of which a backup is: what the guest does while it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Callable

from .. import _later
from .._domain.stillness import VIRSH, still
from .._errors import DroverError, Failed, Refused, TimedOut
from .._libvirt import Domain, Node
from .._quiesce import Freeze, why_not
from .._xml import parse

POLL = 0.3
# A guest that shuts down only after its time is started again in these seconds, tried this often.
SLACK, START_TRIES, START_EVERY = 15, 120, 5


def start_unit(uuid: str) -> str:
    """The unit of systemd that starts a VM again which is shut down for its backup."""
    return f"drover-start-{uuid}"


def until(there: Callable[[], bool], seconds: float, words: str) -> None:
    """Wait for it. Raises TimedOut with these words."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimedOut(words)
        time.sleep(POLL)


def is_off(node: Node, vm: str) -> bool:
    """Whether the VM is there and off."""
    domain = node.domain(vm)
    return domain is not None and not domain.active


def check_quiesce(domain: Domain, quiesce: str) -> None:
    """Raise Refused where the guest must be frozen and can't."""
    reason = why_not(parse(domain.live_xml)) if domain.live_xml else None
    if quiesce == "required" and domain.state == "running" and reason:
        raise Refused(f"{domain.name} can't be frozen, since {reason}; say quiesce: auto to do without")


@contextmanager
def moment_of(node: Node, domain: Domain, mode: str, quiesce: str, seconds: float) -> Iterator[dict[str, bool]]:
    """The guest as it shall be at that moment: `quiesced` is known at the end. `seconds` it has to shut down.

    A guest that was paused stays so.
    """
    name, seen = domain.name, {"quiesced": False}
    if domain.state != "running":
        yield seen
    elif mode == "snapshot":
        with _frozen(node, domain, quiesce, seen):
            yield seen
    else:
        if mode == "stop":
            _shut_down(node, domain, seconds)
        stop = partial(_start, node, domain) if mode == "stop" else partial(node.suspend, name)
        with still(node, name, domain.uuid, stop):
            yield seen


def _shut_down(node: Node, domain: Domain, seconds: float) -> None:
    """Shut the guest down. From before it is asked on, a timer of systemd starts it again, also one that is late."""
    name, unit = domain.name, start_unit(domain.uuid)
    _later.disarm(unit)  # that of an earlier run
    start = (*VIRSH, "start", domain.uuid)
    _later.arm(unit, seconds + SLACK, start, f"start {name} again", START_TRIES, START_EVERY)
    try:
        node.shutdown(name)
    except DroverError:
        _later.disarm(unit)
        raise
    until(
        partial(is_off, node, name),
        seconds,
        f"{name} did not shut down within {seconds:g} s and runs on. Should it go off in the next "
        f"{START_TRIES * START_EVERY // 60} min, {unit} starts it again. Give it longer (shutdown_timeout), or take "
        "mode: snapshot",
    )


def _start(node: Node, domain: Domain) -> None:
    node.start(domain.name, paused=True)
    _later.disarm(start_unit(domain.uuid))


@contextmanager
def _frozen(node: Node, domain: Domain, quiesce: str, seen: dict[str, bool]) -> Iterator[None]:
    """The guest's file systems are held still where that is asked for, and thawed again in any case."""
    if quiesce == "never" or (domain.live_xml and why_not(parse(domain.live_xml))):
        yield
        return
    freeze = Freeze(node, domain.name, domain.uuid)
    try:
        freeze.begin()
    except DroverError:
        if quiesce == "required":
            raise
        yield
        return
    try:
        yield
        seen["quiesced"] = freeze.held()
    finally:
        freeze.end()
    if quiesce == "required" and not seen["quiesced"]:
        raise Failed(f"{domain.name} wrote again before its backup had begun; the node is too busy: run this again")
