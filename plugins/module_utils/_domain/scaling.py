# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the machine itself a running VM gets or gives back at once: one row of `ROWS` for each option. Pure.

Memory goes into and out of the balloon (virtio-balloon), vCPUs are plugged in and out, both within the most that it was
started with. How much time a vCPU may take is the node's affair.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, NamedTuple
from xml.etree.ElementTree import Element

from .._errors import Failed
from .._fields import size_text
from .._xml import find, make
from .cpu import PERIOD, QUOTA, VCPUS, maximum, quota_of
from .memory import KIB, MEMORY, MIN_MEMORY, most

if TYPE_CHECKING:
    from .._libvirt import Node

BORN = "the vCPUs that it started with can't be taken away"
RESTART = "power the machine off and on (state=restarted)"
UNPLUG = "unplug"


class Change(NamedTuple):
    """What a running VM gets at once: in words, the call for a node and the VM's name, and whether its ports are new.

    A port that is new to the switch has to be told what the VM's record says of it.
    """

    words: str
    call: Callable[[Node, str], object]
    ports: bool = False


@dataclass(frozen=True)
class Row:
    """How an option of the machine changes as it runs; a value that does not fit waits for the next start.

    `words` take the old value and the new one, as `shown` writes them. `put` writes the new one into the running tree,
    so that nothing waits for it, and `call` tells libvirt. `old` and `fits` have the trees of the running VM and of its
    definition before and after the task. What goes `ahead` of the definition is asked for once, in the run that
    changes it.
    """

    name: str
    words: str
    get: Callable[[Element], Any]
    put: Callable[[Element, Any], None]
    call: Callable[[Node, str, Any], object]
    shown: Callable[[Any], str] = str
    fits: Callable[[Element, Element], bool] = lambda _live, _after: True
    ahead: bool = False

    def change(self, live: Element, before: Element, after: Element) -> Change | None:
        """The change, where there is one that can be at once; writes it into `live`."""
        old, new = self.get(before if self.ahead else live), self.get(after)
        if old == new or not self.fits(live, after):
            return None
        self.put(live, new)
        words = self.words.format(self.shown(old), self.shown(new))
        return Change(words, lambda node, name: self.call(node, name, new))


def changes(live: Element, before: Element, after: Element, given: Collection[str], ahead: bool) -> list[Change]:
    """What the options that were given change at once, ahead of the definition or after it."""
    rows = [row for row in ROWS if row.ahead == ahead and row.name in given]
    return [change for row in rows if (change := row.change(live, before, after)) is not None]


def reasons(live: Element, after: Element) -> dict[str, str]:
    """Why vCPUs wait for the next start, by the words of the sheet's changes."""
    kept = _kept(live, after)
    return {f"vcpus {_vcpus(live)} -> {_vcpus(after)}": kept} if kept else {}


def _kept(live: Element, after: Element) -> str | None:
    fewer = _vcpus(live) - _vcpus(after)
    listed = find(live, "vcpus")
    # Without a list all of them were there from the beginning.
    each = [] if listed is None else list(listed)
    plugged = [one for one in each if one.get("hotpluggable") == one.get("enabled") == "yes"]
    return BORN if fewer > len(plugged) else None


def _vcpus(root: Element) -> int:
    return VCPUS.get(root) or 1


def _put_memory(live: Element, value: int) -> None:
    element = make(live, "currentMemory")
    element.set("unit", "KiB")
    element.text = str(value // KIB)


def _set_memory(node: Node, name: str, value: int) -> None:
    node.set_memory(name, value, live=True, config=False)


def _sure(root: Element) -> int:
    """What the VM has whatever its node runs short of, in bytes."""
    return MIN_MEMORY.get(root) or MEMORY.get(root) or 0


def _lacks(live: Element, after: Element) -> bool:
    """Whether the node has taken memory that nobody would give back any more, as there is no minimum now."""
    return not MIN_MEMORY.get(after) and (MEMORY.get(live) or 0) < _sure(after) <= most(live)


def _plug_vcpus(node: Node, name: str, count: int) -> None:
    try:
        node.set_vcpus(name, count, live=True, config=False)
    except Failed as error:
        if UNPLUG not in error.message:
            raise
        raise Failed(f"{error.message}: the guest keeps them; run this again, or {RESTART}", **error.details) from None


ROWS = (
    # What the guest really has may stay another: it gives memory back when it can, and not without a driver. So it is
    # asked for where the definition changes, and comes before that, from which a run that was cut off sees it.
    Row(
        "memory",
        "set the memory at once to {1}",
        MEMORY.get,
        _put_memory,
        _set_memory,
        size_text,
        lambda live, after: (MEMORY.get(after) or 0) <= most(live),
        ahead=True,
    ),
    Row(
        "min_memory",
        "give back all of its memory at once, {1}",
        _sure,
        _put_memory,
        _set_memory,
        size_text,
        _lacks,
        ahead=True,
    ),
    Row(
        "vcpus",
        "set the vCPUs at once from {0} to {1}",
        _vcpus,
        lambda live, value: make(live, "vcpu").set("current", str(value)),
        _plug_vcpus,
        fits=lambda live, after: _vcpus(after) <= maximum(live) and not _kept(live, after),
    ),
    Row(
        "cpu_quota",
        "limit the time of each vCPU at once: {0} -> {1}",
        QUOTA.get,
        QUOTA.put,
        lambda node, name, value: node.set_cpu_quota(name, PERIOD, quota_of(value or 0)),
        lambda percent: f"{percent} %" if percent else "none",
    ),
)
