# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sentence for each change. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .live import FIXED

Facts = dict[str, Any]
State = Mapping[str, Mapping[str, Any]]


def words(before: State, after: State, prefix: str) -> list[str]:
    """What leads from one state to the other, devices first; what only the files show comes last."""
    found: list[str] = []
    old, new = before["links"], after["links"]
    for name in sorted(new, key=lambda name: (new[name]["kind"] != "nic", name)):
        found += _device(name, old.get(name), new[name])
    for name in sorted(old.keys() - new.keys()):
        found += _leaving(name, old[name])
    touched = {name.split(" ")[0] for name in _names(found, {*old, *new})}
    for name in sorted(before["files"].keys() | after["files"].keys()):
        link = name[len(prefix) :].rpartition(".")[0]
        if before["files"].get(name) != after["files"].get(name) and link not in touched:
            verb = "write" if name in after["files"] else "remove"
            found.append(f"{verb} {name}")
    return found


def _names(sentences: list[str], names: set[str]) -> set[str]:
    return {name for name in names for sentence in sentences if name in sentence.replace(",", "").split()}


def _device(name: str, old: Facts | None, new: Facts) -> Iterator[str]:
    if old is None:
        yield f"make {new['kind']} {name}{_described(new)}{_plugged(new)}"
        return
    fixed = [_change(key, old, new) for key in FIXED if key in new and old.get(key) != new[key]]
    if fixed:
        yield f"make {new['kind']} {name} anew ({'; '.join(fixed)}); what it carries stands still for some seconds"
    if old["master"] != new["master"]:
        yield f"put {name} into {new['master']}" if new["master"] else f"take {name} out of {old['master']}"
    for key, verb in (("addresses", "address"), ("routes", "route")):
        shown = [item if isinstance(item, str) else " via ".join(item) for item in new[key] if item not in old[key]]
        gone = [item if isinstance(item, str) else " via ".join(item) for item in old[key] if item not in new[key]]
        if shown:
            yield f"give {name} the {verb} {', '.join(shown)}"
        if gone:
            yield f"take the {verb} {', '.join(gone)} from {name}"
    plain = [key for key in new if key not in (*FIXED, "kind", "master", "addresses", "routes")]
    changes = [_change(key, old, new) for key in plain if old.get(key) != new[key]]
    if changes:
        yield f"set {name}: {'; '.join(changes)}"


def _leaving(name: str, old: Facts) -> Iterator[str]:
    if old["kind"] != "nic":
        yield f"remove {old['kind']} {name}"
    elif old["master"]:
        yield f"take {name} out of {old['master']}"
    elif old["addresses"]:
        yield f"take the address {', '.join(old['addresses'])} from {name}"


def _described(new: Facts) -> str:
    if new["kind"] == "vlan":
        return f" (VLAN {new['tag']} on {new['parent']})"
    if new["kind"] == "bond":
        lacp = f", LACP {new['lacp_time']}" if "lacp_time" in new else ""
        return f" ({new['mode']}{lacp})"
    return ""


def _plugged(new: Facts) -> str:
    place = f" in {new['master']}" if new["master"] else ""
    return place + (f" with {', '.join(new['addresses'])}" if new["addresses"] else "")


def _change(key: str, old: Facts, new: Facts) -> str:
    return f"{key} {_shown(old.get(key))} -> {_shown(new[key])}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        tagged = value["tagged"]
        count = f"{len(tagged)} tagged" if len(tagged) > 8 else ", ".join(map(str, tagged)) or "none tagged"
        return f"untagged {value['untagged'] or 'none'}, {count}"
    return str(value)
