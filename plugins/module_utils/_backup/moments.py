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

from .._domain.stillness import still
from .._errors import DroverError, Failed, Refused, TimedOut
from .._libvirt import Domain, Node
from .._quiesce import Freeze, why_not
from .._xml import parse

POLL = 0.3


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
            node.shutdown(name)
            until(partial(is_off, node, name), seconds, f"{name} did not shut down within {seconds:g} s")
        stop = partial(node.start, name, paused=True) if mode == "stop" else partial(node.suspend, name)
        with still(node, name, domain.uuid, stop):
            yield seen


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
