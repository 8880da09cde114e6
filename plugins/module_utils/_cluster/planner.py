# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner's front: options in, a proven plan out, both as plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from .._errors import Failed, Invalid, Refused
from .._fields import normalise
from . import facts, maintenance, mends, proof, report, saved
from .board import Board
from .consolidate import consolidate, spread
from .drain import drain
from .model import Blocker, Cluster, Guest, Move, Plan, Rules, size_text
from .options import ONLY, SHEET_FIELDS
from .pins import bind, idle
from .place import place
from .placement import lines, placement
from .rebalance import Limits, rebalance
from .rolling import rolling
from .stages import stages
from .undrain import one_way, undrain

# What a cycle has of all its steps.
SUMS = ("moves", "stages", "blockers", "enough", *report.POWER)


def plan(params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the action plan for normalised options.

    Raises Invalid, Refused when a saved plan no longer fits, and Failed if the plan does not hold.
    """
    operation = params["operation"]
    _check(params)
    try:
        now = facts.cluster(params["nodes"], params["unreachable"], _rules(params), _dark(params))
    except ValueError as error:
        raise Invalid(f"nodes: {error}", option="nodes") from None
    sheets = _sheets(now, params["vms"])
    now = bind(now, sheets, params["pins"], params["avoid"])
    if operation == "rolling":
        return _cycle(now, params)
    if operation == "report":
        return _report(now, idle(now, params["pins"], params["avoid"]))
    cluster, made = _make(now, params, sheets)
    marks = saved.marks(now, params["node"])
    if params["saved"] is not None:
        made = saved.restore(params["saved"], operation, marks, cluster, made)
        saved.keep_budget(made, cluster, _limits(params), free=operation == "spread")
    result = _proven(now, cluster, made, params, params["node"] if operation == "undrain" else ())
    return {**result, "operation": operation, "facts": marks}


def _dark(params: Mapping[str, Any]) -> list[str]:
    """The nodes that give no answer, and of which nobody says that they are off."""
    return sorted(set(params["unreachable"]) - set(params["fenced"]))


def _check(params: Mapping[str, Any]) -> None:
    """Refuse options that the operation has no use for, and say which it needs."""
    operation, nodes = params["operation"], params["node"]
    for option, operations in ONLY.items():
        if params[option] not in (None, []) and operation not in operations:
            words = f"operation {operation} has no use for it, only {' and '.join(operations)}"
            raise Invalid(f"{option}: {words}", option=option)
    if operation == "place" and not params["vms"]:
        raise Invalid("vms is missing: operation place wants the sheets of the VMs", option="vms")
    if operation in ("drain", "undrain") and not nodes:
        raise Invalid(f"node is missing: operation {operation} wants to know which", option="node")


def _rules(params: Mapping[str, Any]) -> Rules:
    cpu = {
        (row["vm"], row["node"]): row["compatible"] or row["reason"] or "incompatible" for row in params["cpu_matrix"]
    }
    return Rules(
        reserve=params["memory_reserve"],
        overhead=params["memory_overhead"],
        anti_affinity=frozenset(params["anti_affinity"]),
        affinity=frozenset(params["affinity"]),
        failure_domains=params["failure_domains"],
        cpu=cpu,
        check_return=params["check_return"],
        copy_storage=params["copy_storage"],
        eject_cdrom=params["eject_cdrom"],
        hold_off=params["hold_off"] or 0,
    )


def _make(now: Cluster, params: Mapping[str, Any], sheets: Sequence[Guest]) -> tuple[Cluster, Plan]:
    operation, nodes = params["operation"], params["node"]
    if operation == "place":
        return place(now, sheets, params["fenced"])
    if operation == "drain":
        return now, drain(now, nodes, params["make_room"], params["names"])
    if operation == "undrain":
        return one_way(now), undrain(now, nodes, params["come_home"] is not False)
    now = maintenance.calm(now)
    if operation == "consolidate":
        return now, consolidate(now, params["require_n_minus_1"] is not False)
    if operation == "spread":
        return now, spread(now, _limits(params))
    _check_weights(params["weights"], Board(now).targets())
    return now, rebalance(now, _limits(params), params["weights"])


def _check_weights(weights: Mapping[str, float] | None, nodes: Sequence[str]) -> None:
    """Refuse weights that leave out one of the nodes that take VMs, or are zero for all of them."""
    if not weights or not nodes:
        return
    missing = [name for name in nodes if name not in weights]
    if missing:
        raise Invalid(f"weights: say it of every node that takes VMs, also of {', '.join(missing)}", option="weights")
    if not any(weights[name] for name in nodes):
        text = f"weights: one of the nodes that take VMs must have a weight above 0 ({', '.join(nodes)})"
        raise Invalid(text, option="weights")


def _limits(params: Mapping[str, Any]) -> Limits:
    return Limits(**{field.name: params[field.name] for field in fields(Limits) if params[field.name] is not None})


def _proven(
    now: Cluster, cluster: Cluster, made: Plan, params: Mapping[str, Any], opened: Sequence[str] = ()
) -> dict[str, Any]:
    """The result for a plan that was replayed; `opened` are nodes that take guests although they are cordoned."""
    steps = stages(cluster, made.moves)
    wrong = proof.violations(cluster, made, steps, opened)
    if wrong and params["saved"] is not None:
        raise Refused(f"the saved plan was altered, it does not hold: {'; '.join(wrong)}")
    if wrong:
        raise Failed(f"the plan does not hold, nothing was done; this is a fault of the planner: {'; '.join(wrong)}")
    made = replace(made, blockers=(*made.blockers, *maintenance.not_started(cluster, made, _dark(params))))
    enough: list[str] = []
    if made.emptied and made.blockers:
        nodes, room, only = sorted(made.emptied), params["make_room"], made.leaving
        enough = mends.enough(cluster, made, lambda other: drain(other, nodes, room, only))
    lost = proof.not_borne(cluster, made, opened)
    if params["require_n_minus_1"]:
        worse = _worse(cluster, made, opened, lost) if params["operation"] == "place" else lost
        made = replace(made, blockers=(*made.blockers, *(_not_borne(node, vms) for node, vms in worse.items())))
    if params["require_off"]:
        made = replace(made, blockers=(*made.blockers, *maintenance.still_on(cluster, made)))
    return _result((now, cluster), made, steps, lost, (enough, params["bandwidth"]))


def _report(now: Cluster, notes: Sequence[str]) -> dict[str, Any]:
    """The result for what is, without a plan, with these notes on it."""
    guests, seen = placement(now)
    seen = replace(seen, warnings=(*seen.warnings, *notes))
    lost = proof.not_borne(now, seen)
    result = _result((now, now), seen, [], lost, ((), None))
    text = report.placement_text(seen, lines(guests), result["nodes"], lost)
    return {**result, "operation": "report", "guests": guests, "text": text}


def _worse(
    cluster: Cluster, made: Plan, opened: Sequence[str], lost: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Of what is lost with a node only what would not be without the new guests; none of the others is to blame."""
    known = replace(cluster, guests=tuple(guest for guest in cluster.guests if guest.node))
    before = proof.not_borne(known, made, opened)
    found = {node: [name for name in vms if name not in before.get(node, [])] for node, vms in lost.items()}
    return {node: vms for node, vms in found.items() if vms}


def _not_borne(node: str, vms: Sequence[str]) -> Blocker:
    text = f"after it the loss of {node} could not be borne: no place for {', '.join(vms)}"
    return Blocker("", node, "n_minus_1", text, "add memory or a node, shut VMs down, or require_n_minus_1: false")


def _cycle(now: Cluster, params: Mapping[str, Any]) -> dict[str, Any]:
    """The result for a whole cycle: that of each step, and over all of them the moves and the blockers."""
    nodes = params["node"] or Board(now).targets()
    cycle, parts = [], []
    home, filled = params["come_home"] is not False, params["only_fill"] or ()
    for step in rolling(now, nodes, params["make_room"], home, filled):
        one = _proven(step.cluster, step.cluster, step.plan, params, [step.node] if step.what == "undrain" else ())
        cycle.append({"node": step.node, "operation": step.what, **one})
        parts.append(f"{step.what} {step.node}:\n" + "\n".join(f"  {line}" for line in one["text"].splitlines()))
    total = sum(one["memory_moved"] for one in cycle)
    count = sum(len(one["moves"]) for one in cycle)
    head = f"{len(nodes)} nodes one after the other, {count} moves, {size_text(total)} in all."
    return {
        "operation": "rolling",
        "cycle": cycle,
        **{key: [each for one in cycle for each in one[key]] for key in SUMS},
        "memory_moved": total,
        "minutes": None if params["bandwidth"] is None else sum(one["minutes"] for one in cycle),
        "n_minus_1": all(one["n_minus_1"] for one in cycle),
        "text": "\n".join([head, *parts]),
    }


def _sheets(now: Cluster, vms: Sequence[Mapping[str, Any]]) -> list[Guest]:
    """The guests that the sheets describe; a VM that exists may leave out its memory."""
    known = {guest.name for guest in now.guests} | {guest.uuid for guest in now.guests}
    guests = []
    for number, values in enumerate(vms):
        checked = normalise(SHEET_FIELDS, values, f"vms[{number}].")
        guests.append(facts.sheet(checked))
        if not guests[-1].memory and not {guests[-1].name, guests[-1].uuid or guests[-1].name} & known:
            raise Invalid(f"vms[{number}].memory is missing ({guests[-1].name} is new)", option=f"vms[{number}].memory")
    for kind in ("name", "uuid"):
        names = [getattr(guest, kind) for guest in guests if getattr(guest, kind)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise Invalid(f"vms: {kind} given twice: {', '.join(twice)}", option="vms")
    return guests


def _result(
    clusters: tuple[Cluster, Cluster],
    made: Plan,
    steps: Sequence[Sequence[Move]],
    lost: Mapping[str, Sequence[str]],
    more: tuple[Sequence[str], int | None],
) -> dict[str, Any]:
    """As plain data. `clusters`: now, and with the guests that are to be placed; `more`: mends, bytes per second."""
    now, cluster = clusters
    enough, bandwidth = more
    rows = report.node_rows(now, cluster, made)
    new = [guest.name for guest in cluster.guests if not guest.node]
    power = report.power(cluster, made)
    minutes = None if bandwidth is None else round(report.minutes(steps, bandwidth), 1)
    return {
        "moves": [move.as_dict() for move in made.moves],
        "stages": [[move.as_dict() for move in stage] for stage in steps],
        "memory_moved": report.live_memory(made.moves),
        "minutes": minutes,
        "blockers": [blocker.as_dict() for blocker in made.blockers],
        "enough": list(enough),
        **power,
        "placements": dict(made.placements),
        "emptied": sorted(made.emptied),
        "nodes": rows,
        "n_minus_1": not lost,
        "not_borne": [{"node": node, "vms": list(vms)} for node, vms in lost.items()],
        "notes": list(made.warnings),
        "text": report.text(made, steps, rows, lost, {**power, "new": new, "enough": enough, "minutes": minutes}),
    }
