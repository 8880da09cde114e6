# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VLANs that belong to the hosts: what a VM's NIC may not ask for. Pure but for the one file that says which."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._errors import Failed
from ._fields import check_vlan

# Written by role drover.kvm.open_vswitch: {"version": 1, "reserved_vlans": {"br0": [5, "10-19"]}}, "*" for all bridges.
FILE = Path("/etc/drover/network.json")
RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)
EVERY = "*"
MEND = " (variable open_vswitch_reserved_vlans of the hosts)"


def expand(items: Sequence[Any]) -> list[int]:
    """VLANs from numbers and ranges such as "10-19", sorted. Raises ValueError."""
    found: set[int] = set()
    for item in items:
        match = RANGE.fullmatch(str(item).strip())
        if isinstance(item, bool) or not match:
            raise ValueError(f"{item!r} is neither a VLAN nor a range such as 10-19")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{item!r}: a range begins with its lower end")
        found.update(range(check_vlan(first), check_vlan(last) + 1))
    return sorted(found)


def read() -> dict[str, list[int]]:
    """The VLANs of the hosts by bridge. Without the file there are none. Raises Failed when it can't be read."""
    try:
        reserved = json.loads(FILE.read_text(encoding="utf-8"))["reserved_vlans"]
        return {str(bridge): expand(items) for bridge, items in reserved.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            f"{FILE} can't be read, so it is not known which VLANs are the hosts' own: {error}; run playbook "
            "drover.kvm.site"
        ) from None


def of_bridge(reserved: Mapping[str, Sequence[int]], bridge: str) -> list[int]:
    """The VLANs that no VM may have on this bridge."""
    return sorted({*reserved.get(bridge, ()), *reserved.get(EVERY, ())})


def trespass(nic: Mapping[str, Any], own: Collection[int]) -> str | None:
    """Why a NIC of Open vSwitch (its `bridge`, `vlan`, `trunks`) may not be, with the mend; None when it may."""
    asked = {int(vlan) for vlan in ([nic["vlan"]] if nic.get("vlan") else nic.get("trunks") or ())}
    named = ", ".join(map(str, sorted(own)))
    if not own or (asked and not asked & set(own)):
        return None
    if not asked:
        return (
            f"on {nic['bridge']} without a VLAN would carry all of them, also those of the hosts ({named}): say which "
            f"it shall have with vlan or trunks, or free theirs{MEND}"
        )
    taken = ", ".join(map(str, sorted(asked & set(own))))
    return (
        f"on {nic['bridge']} asks for VLAN {taken}, which belongs to the hosts (they keep {named}): choose another, or "
        f"free it{MEND}"
    )
