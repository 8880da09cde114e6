# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory, vCPUs and CPU time that a running VM gets or gives back at once. Pure.

Memory goes into and out of the balloon (virtio-balloon), vCPUs are plugged in and out, both within the most that it was
started with. How much time a vCPU may take is the node's affair.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.etree.ElementTree import Element

from .._fields import size_text
from .._xml import find, make
from .cpu import QUOTA, VCPUS, maximum
from .memory import MEMORY, most

BORN = "the vCPUs that it started with can't be taken away"


class Scaling(NamedTuple):
    """What to set at once: `memory` in bytes, the number of `vcpus`, or the `cpu_quota` in per cent (0 for none)."""

    what: str
    value: int
    words: str


def memory(live: Element, before: Element, after: Element) -> Scaling | None:
    """The memory, where its definition changes in this run; writes it into `live`.

    What the guest really has may stay another: it gives memory back when it can, and not without a driver. So one run
    asks for it once.
    """
    wanted = MEMORY.get(after)
    if wanted == MEMORY.get(before) or not wanted or wanted > most(live):
        return None
    element = make(live, "currentMemory")
    element.set("unit", "KiB")
    element.text = str(wanted // 1024)
    return Scaling("memory", wanted, f"set the memory at once to {size_text(wanted)}")


def vcpus(live: Element, after: Element) -> Scaling | None:
    """The number of vCPUs, where it differs from the definition's; writes it into `live`."""
    has, wanted = _vcpus(live), _vcpus(after)
    if wanted == has or wanted > maximum(live) or _kept(live, after):
        return None
    make(live, "vcpu").set("current", str(wanted))
    return Scaling("vcpus", wanted, f"set the vCPUs at once from {has} to {wanted}")


def quota(live: Element, after: Element) -> Scaling | None:
    """The limit of each vCPU's time, where it differs from the definition's; writes it into `live`."""
    has, wanted = QUOTA.get(live), QUOTA.get(after)
    if wanted == has:
        return None
    QUOTA.put(live, wanted)
    words = [f"{number} %" if number else "none" for number in (has, wanted)]
    return Scaling("cpu_quota", wanted or 0, f"limit the time of each vCPU at once: {words[0]} -> {words[1]}")


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
