# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must not be done to a pool, and what the user should know.

The monitors check less than one would think: they make pools of 99 copies, and rename a pool that is not there
"successfully".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._errors import Invalid, NotFound, Refused
from .facts import PGS, State

ERASURE = ("erasure_profile", "erasure_k", "erasure_m", "allow_ec_overwrites")
# RBD's own notes of a pool; they stay when its last image is gone.
NOTES = frozenset(
    "rbd_" + name
    for name in (
        *(
            "children",
            "directory",
            "info",
            "mirror_leader",
            "mirror_snapshot_schedule",
            "mirroring",
            "namespace",
            "task",
        ),
        *("trash", "trash_purge_schedule"),
    )
)


def find_pool(pools: Iterable[Mapping[str, Any]], params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The pool that is meant, by its name or by the one that it shall lose.

    Raises Refused when both are there or it has another id than it should have, NotFound when neither is.
    """
    known = {raw["pool_name"]: raw for raw in pools}
    name, old = params["name"], params["rename_from"] if params["state"] == "present" else None
    if old and name in known and old in known:
        raise Refused(f"pool {old} can't become {name}: both are there", ids={old: known[old]["pool_id"]})
    found = known.get(name) or known.get(old)
    if found is None and (old or params["id"] is not None) and params["state"] == "present":
        raise NotFound(f"no pool {' or '.join(filter(None, (old, name)))}; an empty one would not be what is meant")
    if found is not None and params["id"] not in (None, found["pool_id"]):
        raise Refused(
            f"pool {found['pool_name']} has id {found['pool_id']}, not {params['id']}; it is left alone",
            id=found["pool_id"],
        )
    return found


def judge(before: State, wanted: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """What must not be done raises Invalid or Refused; what the user should know is returned."""
    _judge_type(before, wanted, params)
    _judge_sizes(wanted, params)
    _judge_pgs(before, wanted)
    _judge_flags(before or {}, wanted)
    return [*_risks(wanted, params), *_left_to_ceph(before, wanted, params)]


def _judge_type(before: State, wanted: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    name, kind = wanted["name"], wanted["type"]
    if before and params["type"] not in (None, kind):
        raise Refused(
            f"pool {name} is {kind} and can't become {params['type']}; make another pool and copy its content"
        )
    profile = params["erasure_profile"]
    if before and profile and profile != before["erasure_profile"]:
        raise Refused(
            f"pool {name} has the erasure code profile {before['erasure_profile']} for its life, not {profile}"
        )
    if before and before["allow_ec_overwrites"] and not wanted["allow_ec_overwrites"]:
        raise Refused(f"pool {name} allows overwrites, which can't be taken back")
    given = [option for option in ERASURE if params[option]]
    if kind == "replicated" and given:
        raise Invalid(f"{given[0]} is for pools of type erasure; pool {name} is replicated", option=given[0])
    if kind == "erasure" and params["size"] is not None:
        raise Invalid("size is for replicated pools; an erasure coded one has k + m parts", option="size")


def _judge_sizes(wanted: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    name, size, least = wanted["name"], wanted.get("size"), wanted.get("min_size")
    parts = (params["erasure_k"] or 0) + (params["erasure_m"] or 0)
    if params["erasure_k"] and params["erasure_m"] and least is not None and least > parts:
        raise Invalid(f"min_size {least} of pool {name} is more than its {parts} parts (k + m)", option="min_size")
    if params["size"] == 1 and not params["accept_risk"]:
        raise Refused(
            f"pool {name} with size 1 loses data with the first disk that breaks; give accept_risk if that is meant"
        )
    if params["min_size"] == 1 and wanted["type"] == "replicated" and not params["accept_risk"]:
        raise Refused(
            f"pool {name} with min_size 1 takes writes that only one disk has, and loses them when it breaks; give "
            "accept_risk if that is meant"
        )
    if params["min_size"] is not None and size is None and wanted["type"] == "replicated":
        raise Invalid(f"min_size of the new pool {name} needs its size beside it", option="min_size")
    if size is not None and least is not None and least > size:
        raise Invalid(f"min_size {least} of pool {name} is more than its size {size}; give both", option="min_size")


def _judge_pgs(before: State, wanted: Mapping[str, Any]) -> None:
    name, number = wanted["name"], wanted.get("pg_num")
    least, most = wanted.get("pg_num_min") or 0, wanted.get("pg_num_max") or 0
    if most and least > most:
        raise Invalid(f"pg_num_min {least} of pool {name} is more than pg_num_max {most}", option="pg_num_min")
    changed = any((before or {}).get(option) != wanted.get(option) for option in PGS)
    if changed and number is not None and not least <= number <= (most or number):
        raise Invalid(f"pg_num {number} of pool {name} is not between pg_num_min and pg_num_max", option="pg_num")


def _judge_flags(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    stay = set(before.get("flags", ())) & set(wanted.get("flags", ()))
    for flag, options in (("nosizechange", ("size", "min_size")), ("nopgchange", ("pg_num",))):
        changed = [option for option in options if before.get(option) != wanted.get(option)]
        if flag in stay and changed:
            raise Refused(
                f"pool {wanted['name']} has the flag {flag}, so {changed[0]} can't be changed; remove the flag in the "
                "same task, with flags",
                flag=flag,
            )


def _risks(wanted: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    asked = params["size"] is not None and not params["accept_risk"]
    if asked and wanted["type"] == "replicated" and wanted.get("min_size") == 1:
        yield (
            f"pool {wanted['name']} takes writes with one copy left (it has min_size 1): if that one breaks too, they "
            "are lost; give min_size 2, or accept_risk if that is meant"
        )


def _left_to_ceph(before: State, wanted: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    number, name = params["pg_num"], wanted["name"]
    if number is None:
        return
    if wanted.get("pg_autoscale_mode") == "on" and not (before and before["pg_num"] == number):
        yield (
            f"pool {name}: the autoscaler is on and decides pg_num; it counts for a new pool only. Set pg_num_min and "
            "pg_num_max, or pg_autoscale_mode off"
        )
    elif number & (number - 1):
        yield f"pool {name}: pg_num {number} is no power of two, so some PGs hold twice as much as others"


def refuse_removal(state: Mapping[str, Any], confirm: str | None, allowed: str | None) -> None:
    """Raises Refused unless the name was typed again and nothing protects the pool."""
    name = state["name"]
    if confirm != name:
        raise Refused(f"pool {name} is removed with all that is in it only when confirm_name is {name} too")
    if "nodelete" in state["flags"]:
        raise Refused(
            f"pool {name} is protected by its flag nodelete; take it away first, with flags: {{remove: nodelete}}"
        )
    if allowed == "false":
        raise Refused(
            f"the monitors don't let anybody remove pool {name} (mon_allow_pool_delete is false); allow it for as "
            "long as it takes with `ceph config set mon mon_allow_pool_delete true`"
        )


def refuse_content(name: str, objects: Sequence[str]) -> None:
    """Raises Refused when there is anything in the pool, naming images of RBD if those are what it is."""
    if not objects:
        return
    images = sorted(found[len("rbd_id.") :] for found in objects if found.startswith("rbd_id."))
    shown = f"images {', '.join(images[:5])}" if images else f"objects such as {', '.join(sorted(objects)[:3])}"
    trash = any(found.startswith("rbd_header.") for found in objects) and not images
    more = " (of images in the trash: rbd trash ls)" if trash else ""
    raise Refused(f"pool {name} is not empty: it holds {shown}{more}. Remove them first", images=images)
