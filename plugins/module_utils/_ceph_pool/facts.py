# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pool as the monitors tell it, by the names of the options; and what the values of options may be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from .._fields import Field, between, check_name, names_after

State = Optional[Mapping[str, Any]]
TYPES = {1: "replicated", 3: "erasure"}
FLAGS = ("nodelete", "nopgchange", "nosizechange", "noscrub", "nodeep-scrub")
PGS = ("pg_num", "pg_num_min", "pg_num_max")
QUOTAS = {"quota_bytes": "max_bytes", "quota_objects": "max_objects"}
PLACE = ("failure_domain", "device_class", "crush_root")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}", re.ASCII)
COUNT = re.compile(r"(\d{1,15}) ?([kMGT]?)", re.ASCII)
COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def check_pool_name(value: str) -> str:
    """A name that every tool can write: Ceph itself takes blanks and slashes, of which rbd makes something else."""
    if not NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name for a pool: 1 to 63 letters, digits, dots, hyphens or underscores; pools with "
            "a dot first are Ceph's own"
        )
    return value


def check_names(change: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Names of applications. Raises ValueError."""
    for name in (name for names in change.values() for name in names):
        check_pool_name(name)
    return change


def check_flags(change: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Flags of a pool that are for people to set. Raises ValueError."""
    for name in (name for names in change.values() for name in names):
        if name not in FLAGS:
            raise ValueError(f"{name!r} is no flag of a pool; write some of {', '.join(FLAGS)}")
    return change


def parse_count(value: str) -> int:
    """A number such as 10k or 2M (units are powers of 1000; the monitors take none). Raises ValueError."""
    match = COUNT.fullmatch(value.strip())
    if not match:
        raise ValueError(f"{value!r} is not a number of objects; write digits, with k, M, G or T such as 10k")
    return int(match[1]) * COUNT_UNITS[match[2]]


def ratio(most: float = 1e6) -> Callable[[float], float]:
    """A check for a share; with ratios of several pools only their proportion counts."""

    def check(value: float) -> float:
        if not 0 <= value <= most:
            raise ValueError(f"{value:g} is out of range; write a number from 0 to {most:g}")
        return value

    return check


def check_bias(value: float) -> float:
    """A factor of the autoscaler. With 0 the monitors forget what was set, and none means 1. Raises ValueError."""
    return ratio(1000.0)(value) or 1.0


class Variable(NamedTuple):
    """How `osd pool set` calls an option.

    One that is `optional` is shown by the monitors only once it was set: `unset` is what Ceph does without it.
    """

    name: str
    optional: bool = False
    unset: Any = None


def _optional(option: str, unset: Any, name: str = "", **about: Any) -> Field:
    return Field(option, place=Variable(name or option, True, unset), **about)


def _always(option: str, **about: Any) -> Field:
    return Field(option, place=Variable(option), **about)


# Options that `osd pool set` takes, in an order in which each finds what it needs.
SETTINGS = (
    _always("pg_autoscale_mode", choices=("on", "off", "warn")),
    _always("size", type="int", check=between(1, 10)),
    _always("min_size", type="int", check=between(1, 64)),
    _always("crush_rule", check=check_name),
    _always("allow_ec_overwrites", type="bool"),
    _always("bulk", type="bool"),
    _optional("pg_autoscale_bias", 1.0, type="float", check=check_bias),
    _optional("target_size_ratio", 0.0, type="float", check=ratio()),
    _optional("target_size", 0, "target_size_bytes", type="size"),
    _optional("compression_mode", None, choices=("none", "passive", "aggressive", "force")),
    _optional("compression_algorithm", None, choices=("none", "snappy", "zlib", "zstd", "lz4")),
    _optional("compression_required_ratio", 0.0, type="float", check=ratio(1.0)),
    _optional("compression_min_blob_size", 0, type="size"),
    _optional("compression_max_blob_size", 0, type="size"),
)
VARIABLES: dict[str, Variable] = {field.name: field.place for field in SETTINGS}
# What a pool has only when it was set.
OPTIONAL = {
    **{option: Variable(option, True, 0) for option in ("pg_num_min", "pg_num_max")},
    **{option: variable for option, variable in VARIABLES.items() if variable.optional},
}
UNSET: dict[str, Any] = {option: variable.unset for option, variable in OPTIONAL.items()}


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to Ceph, which keeps some ratios in 32 bits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)


def state_of(raw: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A pool of `osd pool ls detail` by the names of the options; `pg_num` is the aim while PGs split or merge."""
    flags = set(raw["flags_names"].split(","))
    unset = {option: raw["options"].get(variable.name, variable.unset) for option, variable in OPTIONAL.items()}
    return {
        "name": raw["pool_name"],
        "id": raw["pool_id"],
        "type": TYPES.get(raw["type"], str(raw["type"])),
        "size": raw["size"],
        "min_size": raw["min_size"],
        "crush_rule": next((rule["rule_name"] for rule in rules if rule["rule_id"] == raw["crush_rule"]), None),
        "erasure_profile": raw["erasure_code_profile"] or None,
        "allow_ec_overwrites": "ec_overwrites" in flags,
        "pg_num": raw["pg_num_target"],
        "pg_autoscale_mode": raw["pg_autoscale_mode"],
        "bulk": "bulk" in flags,
        **{name: float(value) if isinstance(UNSET[name], float) else value for name, value in unset.items()},
        "quota_bytes": raw["quota_max_bytes"],
        "quota_objects": raw["quota_max_objects"],
        "applications": sorted(raw["application_metadata"]),
        "flags": sorted(flags & set(FLAGS)),
    }


def wish(before: State, params: Mapping[str, Any]) -> dict[str, Any]:
    """The pool with what was given; of a new one only that is known."""
    kind = params["type"] or ("erasure" if params["erasure_profile"] else "replicated")
    state = {**(before or {"type": kind}), "name": params["name"]}
    for option in (*VARIABLES, *PGS, *QUOTAS, "erasure_profile"):
        value = params[option]
        if value is not None and not (option in state and alike(state[option], value)):
            state[option] = value
    for option in ("applications", "flags"):
        if params[option] is not None:
            state[option] = names_after(state.get(option, []), params[option])
    # The monitors take no bound that the present number breaks.
    least, most = state.get("pg_num_min") or 0, state.get("pg_num_max") or 0
    if before and state["pg_autoscale_mode"] == "on":
        state["pg_num"] = max(least, min(before["pg_num"], most or before["pg_num"]))
    elif not before and least:
        state.setdefault("pg_num", least)
    return state
