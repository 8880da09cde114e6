# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a pool puts its copies: CRUSH rules and erasure code profiles.

The monitors make a rule over racks also where there is no rack, and a pool of such a rule holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._errors import Invalid, NotFound, Refused
from .facts import PLACE, TYPES


def rule_of(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a CRUSH rule puts copies, in the words of PLACE; None for one that is more than one take and one choose."""
    takes = [step for step in rule["steps"] if step["op"] == "take"]
    chooses = [step for step in rule["steps"] if step["op"].startswith("choose")]
    if len(takes) != 1 or len(chooses) != 1:
        return None
    root, _tilde, device_class = takes[0]["item_name"].partition("~")
    return {"failure_domain": chooses[0]["type"], "device_class": device_class or None, "crush_root": root}


def profile_of(profile: Mapping[str, str]) -> dict[str, Any]:
    """An erasure code profile in the words of the options."""
    return {
        "erasure_k": int(profile["k"]),
        "erasure_m": int(profile["m"]),
        "failure_domain": profile.get("crush-failure-domain", "host"),
        "device_class": profile.get("crush-device-class") or None,
        "crush_root": profile.get("crush-root", "default"),
    }


def placement(
    params: Mapping[str, Any], kind: str, rules: Mapping[str, Mapping[str, Any]], profile: Mapping[str, str] | None
) -> dict[str, Any] | None:
    """Where the rule or profile that is named puts copies; None when none is named. `profile` is the one that is there.

    Raises Invalid or NotFound when it is not there and can't be made, Refused when it is there and another one.
    """
    return (_erasure_placement if kind == "erasure" else _replicated_placement)(params, rules, profile)


def asked_place(params: Mapping[str, Any]) -> dict[str, Any]:
    return {**{option: params[option] for option in PLACE}, "crush_root": params["crush_root"] or "default"}


def _erasure_placement(
    params: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]], profile: Mapping[str, str] | None
) -> dict[str, Any] | None:
    name, rule = params["erasure_profile"], rules.get(params["crush_rule"])
    given = [option for option in ("erasure_k", "erasure_m", *PLACE) if params[option] is not None]
    if not name and given:
        raise Invalid(
            f"{given[0]} needs erasure_profile, the name that the profile has or gets", option="erasure_profile"
        )
    if rule and TYPES.get(rule["type"]) != "erasure":
        raise Invalid(f"CRUSH rule {params['crush_rule']} is for replicated pools", option="crush_rule")
    if not name:
        return rule_of(rule) if rule else None
    if profile:
        known = profile_of(profile)
        _refuse_other(f"erasure code profile {name}", known, params, known)
    elif not (params["erasure_k"] and params["erasure_m"]):
        raise NotFound(f"there is no erasure code profile {name}; it is made when erasure_k and erasure_m are given")
    else:
        asked = asked_place(params)
        known = {**asked, "failure_domain": asked["failure_domain"] or "host", "erasure_k": params["erasure_k"]}
        known["erasure_m"] = params["erasure_m"]
    return {**known, **((rule_of(rule) if rule else None) or {}), "copies": known["erasure_k"] + known["erasure_m"]}


def _replicated_placement(
    params: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]], _profile: Mapping[str, str] | None
) -> dict[str, Any] | None:
    name, rule = params["crush_rule"], rules.get(params["crush_rule"])
    given = [option for option in PLACE if params[option] is not None]
    if not name and given:
        raise Invalid(f"{given[0]} needs crush_rule, the name that the rule has or gets", option="crush_rule")
    if not name:
        return None
    if rule is None:
        if params["failure_domain"] is None:
            raise NotFound(f"there is no CRUSH rule {name}; it is made when failure_domain is given")
        return asked_place(params)
    if TYPES.get(rule["type"]) != "replicated":
        raise Invalid(f"CRUSH rule {name} is for erasure coded pools", option="crush_rule")
    known = rule_of(rule)
    _refuse_other(f"CRUSH rule {name}", known, params, PLACE)
    return known


def _refuse_other(
    what: str, known: Mapping[str, Any] | None, params: Mapping[str, Any], options: Iterable[str]
) -> None:
    """A rule or profile of that name is never changed: other pools may use it. Raises Refused naming what differs."""
    for option in options:
        if params[option] is not None and (known is None or params[option] != known[option]):
            has = f"has {option} {known[option]}" if known else "is one of several steps"
            raise Refused(f"{what} {has}, not {params[option]}; it is not changed, so give another name", option=option)


def places(tree: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> int:
    """How many things of the kind of the failure domain hold OSDs of that class; `tree`: `nodes` of `osd tree`."""
    nodes = {node["id"]: node for node in tree}

    def holds(node: Mapping[str, Any]) -> bool:
        if node["type"] == "osd":
            return place["device_class"] in (None, node.get("device_class")) and node.get("crush_weight", 1) > 0
        return any(holds(nodes[child]) for child in node.get("children", ()) if child in nodes)

    def below(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield node
        for child in node.get("children", ()):
            if child in nodes:
                yield from below(nodes[child])

    roots = [node for node in tree if node["name"] == place["crush_root"]]
    found = {node["id"] for root in roots for node in below(root)}
    return sum(1 for key in found if nodes[key]["type"] == place["failure_domain"] and holds(nodes[key]))


def judge_places(name: str, count: int, copies: int | None, place: Mapping[str, Any]) -> list[str]:
    """Raises Refused when there is nowhere to put a copy; warns of too few places."""
    device = f" with OSDs of class {place['device_class']}" if place["device_class"] else ""
    what = f"{place['failure_domain']}{device}"
    if count == 0:
        raise Refused(f"pool {name} could hold nothing: there is no {what} below {place['crush_root']}")
    if copies is not None and count < copies:
        return [
            f"pool {name} wants {copies} copies or parts, each on another {what}; there is {count}, so it stays short"
        ]
    return []
