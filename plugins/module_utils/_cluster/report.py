# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as data for a result, and as a text that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .model import SHUTDOWN, Cluster, Move, Plan, size_text

# What a plan does with guests beside moving them.
POWER = ("shutdowns", "left", "starts")


def node_rows(now: Cluster, cluster: Cluster, plan: Plan) -> list[dict[str, Any]]:
    """For each node that answers: what guests may take there, and what they take now and after, in bytes.

    `cluster` differs from `now` by the guests that the plan places.
    """
    target = {(move.vm, move.source): move.target for move in plan.moves}
    off = {guest.key for guest in cluster.guests if guest.waits} - {*target, *plan.starts}
    off |= {guest.key for guest in cluster.guests if guest.key in plan.staying and guest.verb == SHUTDOWN}
    rows = []
    for name in sorted(name for name, node in cluster.nodes.items() if node.reachable):
        before = [guest for guest in now.guests if guest.node == name]
        after = [g for g in cluster.guests if target.get(g.key, g.node or plan.placements.get(g.name)) == name]
        memory = {
            "total": cluster.nodes[name].memory,
            "usable": max(0, cluster.capacity(name)),
            "before": sum(now.need(guest) for guest in before if not guest.waits),
            "after": sum(cluster.need(guest) for guest in after if guest.key not in off),
        }
        vcpus = {
            "threads": cluster.nodes[name].threads,
            "before": sum(guest.vcpus for guest in before if guest.active and not guest.waits),
            "after": sum(guest.vcpus for guest in after if guest.active and guest.key not in off),
        }
        vms = {"before": len(before), "after": len(after)}
        rows.append({"name": name, "memory": memory, "vcpus": vcpus, "vms": vms})
    return rows


def power(cluster: Cluster, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """By the names of `POWER`: what is shut down until its node returns, what is left there, what starts."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in POWER}
    for guest in cluster.guests:
        running = guest.active and not guest.waits
        row = {"vm": guest.name, "uuid": guest.uuid, "node": guest.node, "running": running}
        if guest.key in plan.staying:
            found["shutdowns" if guest.verb == SHUTDOWN and guest.active else "left"].append(row)
        elif guest.key in plan.starts:
            found["starts"].append(row)
    return found


def _power_sections(extra: Mapping[str, Any]) -> list[str]:
    heads = {
        "shutdowns": ("Shut down, and started again by undrain_node", "is on", "is off already"),
        "left": ("Left on the node", "runs on", "is off"),
        "starts": ("Started again after maintenance", "is on already", "is off"),
    }
    parts = []
    for name, (head, on, off) in heads.items():
        lines = [[row["vm"], row["node"], on if row["running"] else off] for row in extra[name]]
        parts += [_section(f"{head} ({len(lines)}):", _columns(lines))] if lines else []
    return parts


def move_lines(stages: Sequence[Sequence[Move]]) -> list[str]:
    """The moves in their order, one a line."""
    lines = []
    for number, stage in enumerate(stages, 1):
        for move in stage:
            said = {move.why: move.why != "drain", "with its disks": move.copies, "its medium is ejected": move.ejects}
            why = [words for words, applies in said.items() if applies]
            reason = f"  ({', '.join(why)})" if why else ""
            size = size_text(move.memory)
            lines.append(f"{number}  {move.vm}  {move.source} -> {move.target}  {move.mode}  {size}{reason}")
    return lines


def minutes(stages: Sequence[Sequence[Move]], bandwidth: int) -> float:
    """How long the moves take at least: memory once over links of so many bytes per second and node.

    In each stage the node that sends or receives most is the one that is waited for. Guests that write while they move
    send some of it again, so it is a lower limit.
    """
    seconds = 0.0
    for stage in stages:
        links: Counter[tuple[str, str]] = Counter()
        for move in (each for each in stage if each.mode == "live"):
            links["out", move.source] += move.memory
            links["in", move.target] += move.memory
        seconds += max(links.values(), default=0) / max(1, bandwidth)
    return seconds / 60


def live_memory(moves: Iterable[Move]) -> int:
    """The bytes of memory that the moves send."""
    return sum(move.memory for move in moves if move.mode == "live")


def text(
    plan: Plan,
    stages: Sequence[Sequence[Move]],
    rows: Sequence[Mapping[str, Any]],
    lost: Mapping[str, Sequence[str]],
    extra: Mapping[str, Any],
) -> str:
    """The whole plan as a text: what hinders it, the moves or places, the memory of the nodes, what is left of N-1.

    `extra` has `new` (names of guests that are to be placed), `enough` (mends), `minutes` (None: not known) and what
    `power` tells.
    """
    parts = []
    if plan.blockers:
        parts.append(_section("It can't be done:", blocker_lines(plan)))
    if extra["enough"]:
        parts.append(_section("It is enough to mend:", extra["enough"]))
    if plan.moves:
        what = "Moves that are possible all the same" if plan.blockers else "Moves"
        amount = [f"{len(plan.moves)}, {size_text(live_memory(plan.moves))}", *_time(extra["minutes"])]
        head = f"{what} ({', '.join(amount)}; the number is the stage, stages run one after the other):"
        parts.append(_section(head, _columns([line.split("  ") for line in move_lines(stages)])))
    parts += _power_sections(extra)
    if plan.placements:
        places = [[vm, node, "new" if vm in extra["new"] else "is there"] for vm, node in plan.placements.items()]
        parts.append(_section("Places:", _columns(places)))
    if not parts:
        parts.append("Nothing to do.")
    parts.append(_section("Memory of the nodes (running VMs, of what they may take):", _memory(rows)))
    parts.append(_n_minus_1(lost))
    parts += [f"Note: {warning}." for warning in plan.warnings]
    return "\n".join(parts)


def placement_text(
    plan: Plan,
    cells: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    lost: Mapping[str, Sequence[str]],
) -> str:
    """Where everything is, as a text: broken rules, VMs (`cells`), what the nodes carry, N-1."""
    parts = [_section("Rules that are broken:", blocker_lines(plan))] if plan.blockers else ["No rule is broken."]
    parts.append(_section("VMs:", _columns(cells)))
    parts.append(_section("Nodes (running VMs; memory of what they may take, vCPUs of threads):", _carried(rows)))
    parts.append(_n_minus_1(lost).replace("N-1 after it:", "N-1:"))
    parts += [f"Note: {warning}." for warning in plan.warnings]
    return "\n".join(parts)


def _carried(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How full each node is; a vCPU for each thread is 1.0, more is over-commitment."""
    lines = []
    for row in rows:
        memory, vcpus = row["memory"], row["vcpus"]
        share = f"{100 * memory['before'] / memory['usable']:.0f} %" if memory["usable"] else "-"
        taken = f"{size_text(memory['before'])} of {size_text(memory['usable'])}"
        ratio = f"{vcpus['before']} vCPUs of {vcpus['threads']}"
        load, vms = f"{vcpus['before'] / vcpus['threads']:.1f}", f"{row['vms']['before']} VMs"
        lines.append([row["name"], taken, share, ratio, load, vms])
    return _columns(lines)


def _time(expected: float | None) -> list[str]:
    return [] if expected is None else [f"at least {expected:.1f} min"]


def blocker_lines(plan: Plan) -> list[str]:
    """Each blocker with what mends it."""
    return [f"{blocker.text}. Mend: {blocker.mend}." for blocker in plan.blockers]


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        memory = row["memory"]
        sizes = f"{size_text(memory['before'])} -> {size_text(memory['after'])}"
        share = f"{100 * memory['after'] / memory['usable']:.0f} %" if memory["usable"] else "-"
        vms = f"{row['vms']['before']} -> {row['vms']['after']} VMs"
        lines.append([row["name"], sizes, f"of {size_text(memory['usable'])}", share, vms])
    return _columns(lines)


def _n_minus_1(lost: Mapping[str, Sequence[str]]) -> str:
    if not lost:
        return "N-1 after it: yes, the loss of any one node can be borne."
    words = "; ".join(f"without {node} there is no place for {_some(vms)}" for node, vms in lost.items())
    return f"N-1 after it: no: {words}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _section(head: str, lines: Iterable[str]) -> str:
    return "\n".join([head, *(f"  {line}" for line in lines)])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with their cells under each other."""
    count = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
