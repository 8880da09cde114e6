# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that lead from one state of a pool to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .._fields import size_text
from .facts import PGS, QUOTAS, UNSET, VARIABLES, State
from .placement import asked_place


class Command(NamedTuple):
    """One command for the monitors, and the words for the user."""

    text: str
    prefix: str
    arguments: dict[str, Any]


def commands(
    before: State, wanted: State, params: Mapping[str, Any], rules: Iterable[str], profile: Mapping[str, str] | None
) -> Iterator[Command]:
    """What leads from `before` to `wanted`, in an order in which the monitors accept it."""
    if wanted is None:
        if before:
            name = before["name"]
            sure = {"pool": name, "pool2": name, "yes_i_really_really_mean_it": True}
            yield Command(f"remove pool {name}", "osd pool delete", sure)
        return
    yield from _made_first(wanted, params, rules, profile)
    if before is None:
        yield _creation(wanted)
        before = {**UNSET, **{option: wanted.get(option) for option in ("size", "pg_num", "pg_autoscale_mode")}}
        before = {**before, "crush_rule": wanted.get("crush_rule"), "bulk": False, "allow_ec_overwrites": False}
        before = {**before, "quota_bytes": 0, "quota_objects": 0, "applications": [], "flags": []}
    elif before["name"] != wanted["name"]:
        names = {"srcpool": before["name"], "destpool": wanted["name"]}
        yield Command(f"rename pool {before['name']} to {wanted['name']}", "osd pool rename", names)
    yield from _flag_commands(wanted["name"], before["flags"], wanted.get("flags", before["flags"]), on=False)
    yield from _set_commands(before, wanted)
    yield from _pg_commands(before, wanted)
    for option, quota in QUOTAS.items():
        if wanted.get(option, before[option]) != before[option]:
            text = size_text(wanted[option]) if option == "quota_bytes" else str(wanted[option])
            words = f"set {option} of {wanted['name']} to {text}"
            arguments = {"pool": wanted["name"], "field": quota, "val": str(wanted[option])}
            yield Command(words, "osd pool set-quota", arguments)
    yield from _application_commands(wanted["name"], before["applications"], wanted.get("applications"))
    yield from _flag_commands(wanted["name"], before["flags"], wanted.get("flags", before["flags"]), on=True)


def _made_first(
    wanted: Mapping[str, Any], params: Mapping[str, Any], rules: Iterable[str], profile: Mapping[str, str] | None
) -> Iterator[Command]:
    """The erasure code profile and the rule, where they are declared and not there."""
    name, rule, asked = params["erasure_profile"], params["crush_rule"], asked_place(params)
    if name and not profile:
        words = {"k": params["erasure_k"], "m": params["erasure_m"], "crush-root": asked["crush_root"]}
        words.update({"crush-failure-domain": asked["failure_domain"], "crush-device-class": asked["device_class"]})
        text = [f"{key}={value}" for key, value in words.items() if value is not None]
        yield Command(
            f"make erasure code profile {name}", "osd erasure-code-profile set", {"name": name, "profile": text}
        )
    if not rule or rule in rules:
        return
    text_of_rule = f"make CRUSH rule {rule}"
    if wanted["type"] == "erasure":
        of = wanted.get("erasure_profile") or "default"
        yield Command(text_of_rule, "osd crush rule create-erasure", {"name": rule, "profile": of})
    else:
        arguments = {"name": rule, "root": asked["crush_root"], "type": asked["failure_domain"]}
        yield Command(text_of_rule, "osd crush rule create-replicated", {**arguments, "class": asked["device_class"]})


def _creation(wanted: Mapping[str, Any]) -> Command:
    arguments = {
        "pool": wanted["name"],
        "pool_type": wanted["type"],
        "pg_num": wanted.get("pg_num"),
        "autoscale_mode": wanted.get("pg_autoscale_mode"),
        "rule": wanted.get("crush_rule"),
        "size": wanted.get("size"),
        "erasure_code_profile": wanted.get("erasure_profile"),
    }
    return Command(f"make {wanted['type']} pool {wanted['name']}", "osd pool create", arguments)


def _set(name: str, option: str, variable: str, value: Any) -> Command:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    shown = size_text(value) if option == "target_size" or option.endswith("blob_size") else text
    arguments: dict[str, Any] = {"pool": name, "var": variable, "val": text}
    if option == "size" and value == 1:
        arguments["yes_i_really_mean_it"] = True
    return Command(f"set {option} of {name} to {shown}", "osd pool set", arguments)


def _set_commands(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Command]:
    resized = wanted.get("size") != before.get("size")
    for option, variable in VARIABLES.items():
        if option not in wanted:
            continue
        # With the size the monitors change min_size, without a word.
        if before.get(option) != wanted[option] or (resized and option == "min_size"):
            yield _set(wanted["name"], option, variable.name, wanted[option])


def _pg_commands(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Command]:
    """`pg_num` must lie between the two others at each moment: what gives way comes first, what closes in last."""
    changed = [option for option in PGS if option in wanted and wanted[option] != before.get(option)]

    def turn(option: str) -> int:
        if option == "pg_num":
            return 1
        wider = wanted[option] < before[option]
        if option == "pg_num_max":
            wider = wanted[option] == 0 or (bool(before[option]) and wanted[option] > before[option])
        return 0 if wider else 2

    for option in sorted(changed, key=turn):
        yield _set(wanted["name"], option, option, wanted[option])


def _application_commands(name: str, before: Sequence[str], wanted: Sequence[str] | None) -> Iterator[Command]:
    if wanted is None:
        return
    sure = {"pool": name, "yes_i_really_mean_it": True}
    for app in sorted(set(wanted) - set(before)):
        yield Command(f"mark {name} for application {app}", "osd pool application enable", {**sure, "app": app})
    for app in sorted(set(before) - set(wanted)):
        yield Command(f"unmark {name} for application {app}", "osd pool application disable", {**sure, "app": app})


def _flag_commands(name: str, before: Sequence[str], wanted: Sequence[str], on: bool) -> Iterator[Command]:
    flags = set(wanted) - set(before) if on else set(before) - set(wanted)
    for flag in sorted(flags):
        words = f"set flag {flag} of {name}" if on else f"take flag {flag} from {name}"
        arguments = {"pool": name, "var": flag, "val": str(on).lower()}
        yield Command(words, "osd pool set", arguments)
