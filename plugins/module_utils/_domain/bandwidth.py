# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a NIC may carry, as people say it (bits per second) and as libvirt keeps it (kilobytes per second). Pure.

https://libvirt.org/formatdomain.html#quality-of-service
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._fields import Field, parse_rate, rate_text, size_text
from .._xml import drop, find, make

WAYS = ("inbound", "outbound")
KILOBYTE = 8000  # bits: libvirt's unit of a rate
KIB = 1024  # libvirt's unit of a burst
MOST = 2**32 - 1
Limits = dict[str, dict[str, int]]


def check_rate(value: Any) -> int:
    """Bits per second that libvirt can keep."""
    rate = parse_rate(value)
    if rate % KILOBYTE or not KILOBYTE <= rate <= 10**12:
        raise ValueError(f"{value!r} is not from 8kbit/s to 1000Gbit/s in steps of 8kbit/s")
    return rate


def check_burst(value: int) -> int:
    """Bytes that libvirt can keep."""
    if value % KIB or not KIB <= value <= KIB * MOST:
        raise ValueError(f"{value} bytes are not a whole number of KiB, 1KiB at least")
    return value


def check_way(value: Mapping[str, int | None]) -> dict[str, int]:
    """The limits of one direction, without those that were not given. The peak is the average where it is not said."""
    given = {name: number for name, number in value.items() if number}
    if not given:
        return {}
    if "average" not in given:
        raise ValueError("average is missing; a peak or a burst goes with it")
    if given.get("peak", given["average"]) < given["average"]:
        raise ValueError(f"the peak {rate_text(given['peak'])} is below the average {rate_text(given['average'])}")
    # libvirt gives Open vSwitch an average as the least and the peak as the most, so the one alone limits nothing.
    return {"peak": given["average"], **given}


def check_limits(value: Mapping[str, dict[str, int] | None]) -> Limits:
    """The limits of both directions; what is not limited is left out."""
    return {way: limits for way, limits in value.items() if limits}


RATES = (
    Field("average", check=check_rate),
    Field("peak", check=check_rate),
    Field("burst", type="size", check=check_burst),
)
FIELDS = tuple(Field(way, type="dict", fields=RATES, check=check_way) for way in WAYS)
UNITS = {"average": KILOBYTE, "peak": KILOBYTE, "burst": KIB}


class Bandwidth:
    """The limits of a NIC; empty when it has none."""

    def get(self, nic: Element) -> Limits:
        """Bits per second and bytes."""
        found = {}
        for way in WAYS:
            element = find(nic, f"bandwidth/{way}")
            said = {} if element is None else {name: element.get(name) for name in UNITS}
            limits = {name: int(text) * UNITS[name] for name, text in said.items() if text and text.isdecimal()}
            if limits:
                found[way] = limits
        return found

    def put(self, nic: Element, value: Limits) -> None:
        """Write exactly these."""
        for way in WAYS:
            old, parent = find(nic, f"bandwidth/{way}"), find(nic, "bandwidth")
            limits = value.get(way)
            if limits:
                element = make(nic, f"bandwidth/{way}")
                for name, unit in UNITS.items():
                    element.attrib.pop(name, None)
                    if name in limits:
                        element.set(name, str(limits[name] // unit))
            elif old is not None and parent is not None:
                drop(parent, old)
        empty = find(nic, "bandwidth")
        if empty is not None and not len(empty):
            drop(nic, empty)


BANDWIDTH = Bandwidth()


def words(limits: Limits) -> str:
    """The limits for people."""
    sentences = []
    for way, rates in limits.items():
        shown = [f"{name} {size_text(rate) if name == 'burst' else rate_text(rate)}" for name, rate in rates.items()]
        sentences.append(f"{way} {' '.join(sorted(shown))}")
    return ", ".join(sentences) or "no limit"


def parameters(limits: Limits) -> dict[str, int]:
    """The limits as libvirt's call for a running VM wants them; 0 takes a limit away."""
    return {f"{way}.{name}": limits.get(way, {}).get(name, 0) // unit for way in WAYS for name, unit in UNITS.items()}
