# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner's front: options in, a proven plan out, both as plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import Failed, Invalid
from .._fields import normalise
from . import facts, proof, report
from .drain import drain
from .model import Cluster, Guest, Move, Plan, Rules
from .options import SHEET_FIELDS
from .place import place
from .stages import stages
from .undrain import undrain


def plan(params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the action plan for normalised options. Raises Invalid, and Failed if the plan does not hold."""
    try:
        now = facts.cluster(params["nodes"], params["unreachable"], _rules(params))
    except ValueError as error:
        raise Invalid(f"nodes: {error}", option="nodes") from None
    cluster, made = _make(now, params)
    steps = stages(cluster, made.moves)
    opened = params["node"] if params["operation"] == "undrain" else ()
    wrong = proof.violations(cluster, made, steps, opened)
    if wrong:
        raise Failed(f"the plan does not hold, nothing was done; this is a fault of the planner: {'; '.join(wrong)}")
    return _result(now, cluster, made, steps)


def _rules(params: Mapping[str, Any]) -> Rules:
    cpu = {
        (row["vm"], row["node"]): row["compatible"] or row["reason"] or "incompatible" for row in params["cpu_matrix"]
    }
    return Rules(
        reserve=params["memory_reserve"],
        overhead=params["memory_overhead"],
        anti_affinity=frozenset(params["anti_affinity"]),
        pins=params["pins"],
        cpu=cpu,
        check_return=params["check_return"],
        copy_storage=params["copy_storage"],
    )


def _make(now: Cluster, params: Mapping[str, Any]) -> tuple[Cluster, Plan]:
    operation, nodes = params["operation"], params["node"]
    if params["names"] is not None and operation != "drain":
        raise Invalid(f"names: operation {operation} has no use for it, only drain", option="names")
    if operation == "place":
        if not params["vms"]:
            raise Invalid("vms is missing: operation place wants the sheets of the VMs", option="vms")
        return place(now, _sheets(now, params["vms"]), params["fenced"])
    if not nodes:
        raise Invalid(f"node is missing: operation {operation} wants to know which", option="node")
    if operation == "drain":
        return now, drain(now, nodes, params["make_room"], params["names"])
    if len(nodes) > 1:
        raise Invalid("node: undrain brings the VMs of one node back at a time", option="node")
    return now, undrain(now, nodes[0])


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


def _result(now: Cluster, cluster: Cluster, made: Plan, steps: Sequence[Sequence[Move]]) -> dict[str, Any]:
    lost = proof.not_borne(cluster, made)
    rows = report.node_rows(now, cluster, made)
    new = [guest.name for guest in cluster.guests if not guest.node]
    return {
        "moves": [move.as_dict() for move in made.moves],
        "stages": [[move.as_dict() for move in stage] for stage in steps],
        "blockers": [blocker.as_dict() for blocker in made.blockers],
        "placements": dict(made.placements),
        "nodes": rows,
        "n_minus_1": not lost,
        "not_borne": [{"node": node, "vms": list(vms)} for node, vms in lost.items()],
        "notes": list(made.warnings),
        "text": report.text(made, steps, rows, lost, new),
    }
