# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .options import BRIDGE, MARK, NEW_BOND, NEW_BRIDGE, NEW_MIRROR, NEW_PORT, State

PARTS = {"ports": ("port", NEW_PORT), "bonds": ("bond", NEW_BOND), "mirrors": ("mirror", NEW_MIRROR)}
NEW_OWN_PORT: State = {**NEW_PORT, "type": "internal", "managed": False}


def new_bridge(name: str) -> State:
    """A bridge of which nothing was said but its name."""
    return {"name": name, **NEW_BRIDGE, "ports": {name: NEW_OWN_PORT}, "bonds": {}, "mirrors": {}}


def words(before: State | None, after: State | None, name: str) -> list[str]:
    """One sentence for each thing that changes from `before` to `after`; none when nothing does."""
    if before == after:
        return []
    if after is None:
        return [f"remove bridge {name}"]
    found = []
    if before is None:
        found.append(f"create bridge {name}")
        before = new_bridge(name)
    found += [
        f"set {key} of bridge {name}: {shown(before[key])} -> {shown(after[key])}"
        for key in (field.name for field in BRIDGE)
        if before[key] != after[key]
    ]
    for kind, (word, start) in PARTS.items():
        old, new = before[kind], after[kind]
        found += [f"remove {word} {port} from bridge {name}" for port in sorted(old.keys() - new.keys())]
        found += [
            f"add {word} {port}{_told(new[port], start)} to bridge {name}" for port in sorted(new) if port not in old
        ]
        found += [
            f"change {word} {port} of bridge {name}: {'; '.join(_changes(old[port], new[port]))}"
            for port in sorted(old.keys() & new.keys())
            if old[port] != new[port]
        ]
    return found


def _told(item: State, start: State) -> str:
    told = [f"{key} {shown(value)}" for key, value in item.items() if value != start[key] and key != "managed"]
    return f" ({', '.join(told)})" if told else ""


def _changes(old: State, new: State) -> Sequence[str]:
    return [
        f"marked as {MARK}" if key == "managed" else f"{key} {shown(old[key])} -> {shown(new[key])}"
        for key in new
        if old[key] != new[key]
    ]


def shown(value: Any) -> str:
    """A value in a sentence."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={value[key]}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return "none" if value is None else str(value)
