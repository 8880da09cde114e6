# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a guest when its node is emptied: option `on_maintenance` of vm, which is kept with the guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .model import LEAVE, MIGRATE, REFUSE, RESTART, SHUTDOWN, STAYING, Blocker, Cluster, Guest, Obstacle, Plan

VERBS = (MIGRATE, RESTART, SHUTDOWN, LEAVE, REFUSE)
# What hinders a guest from being shut down where it is.
UNREADY = ("job", "interrupted", "state", "defined_twice")


def verb(domain: Mapping[str, Any]) -> str:
    """What the domain (as node_info describes it) says; a word that is not known here is a refusal."""
    said = (domain.get("metadata") or {}).get("on_maintenance") or MIGRATE
    return said if said in VERBS else REFUSE


def recorded(domain: Mapping[str, Any]) -> bool:
    """Whether a drain wrote down that it shut the domain down, or was about to."""
    return (domain.get("metadata") or {}).get("stopped") == "maintenance"


def obstacles(domain: Mapping[str, Any]) -> list[Obstacle]:
    """What keeps the running domain from moving by its own word; one that is off disturbs nobody by moving."""
    name, state, said = domain["name"], domain.get("state"), verb(domain)
    found: list[Obstacle] = []
    if state == "stopped" or said == MIGRATE:
        return found
    if said != RESTART:
        text = f"{name} is not to be moved while it runs (on_maintenance: {said})"
        mend = "shut it down, move it by hand (module migrate), or give it another on_maintenance (module vm)"
        found.append(Obstacle("on_maintenance", text, mend))
    if said in (RESTART, SHUTDOWN) and state == "paused":
        text = f"{name} is paused and can't shut down, which it is to do (on_maintenance: {said})"
        found.append(Obstacle("state", text, "resume it first"))
    if said == RESTART and (files := domain.get("state_elsewhere")):
        text = f"{name} has {' and '.join(files)} state in a place of its own, which a restart elsewhere leaves behind"
        found.append(Obstacle("state_file", text, "set its on_maintenance to migrate or shutdown (module vm)"))
    return found


def against(guest: Guest) -> tuple[Obstacle, ...]:
    """What hinders that its node is emptied: one that stays only has to be fit for what is done with it."""
    if guest.verb == LEAVE:
        return ()
    if guest.verb == SHUTDOWN:
        return tuple(obstacle for obstacle in guest.fixed if obstacle.reason in UNREADY)
    return guest.fixed


def calm(cluster: Cluster) -> Cluster:
    """The cluster as plans see it that are about load or power: only guests that move live, or are off, may go."""
    return replace(cluster, guests=tuple(map(_tied, cluster.guests)))


def _tied(guest: Guest) -> Guest:
    if guest.verb not in STAYING and guest.mode != "restart":
        return guest
    text = f"{guest.name} moves only when its node is drained, if then (on_maintenance: {guest.verb})"
    tie = Obstacle("on_maintenance", text, "drain its node, or set its on_maintenance to migrate (module vm)")
    return replace(guest, verb=MIGRATE, fixed=(*guest.fixed, tie))


def starts(cluster: Cluster, plan: Plan, opened: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """The guests that were shut down for maintenance and start where they are; also those whose mark is left over.

    One that waits for the return of its node starts when that is `opened`; one that was only to change its node starts
    wherever VMs may.
    """
    moved = {(move.vm, move.source) for move in plan.moves}
    opened = frozenset(opened)
    found = []
    for guest in cluster.guests:
        node = cluster.nodes.get(guest.node)
        shut = node is None or guest.node in plan.emptied or not node.reachable or node.cordon is not None
        here = guest.node in opened or not (shut or guest.verb in STAYING)
        left_over = not guest.waits and guest.node not in plan.emptied
        if guest.recorded and guest.key not in moved and (here or left_over):
            found.append(guest.key)
    return tuple(sorted(found))


def bring_back(dark: Sequence[str]) -> str:
    """What helps while one of the `dark` nodes, which don't answer, may run a guest."""
    return f"bring {', '.join(dark)} back, or name it in fenced (playbooks: drover_fenced) if it is certainly off"


def not_started(cluster: Cluster, plan: Plan, dark: Sequence[str]) -> list[Blocker]:
    """A blocker for each guest that is to start again, and that one of the `dark` nodes may run: they don't answer."""
    text = f"is to start again, and may run on {', '.join(dark)}"
    return [
        Blocker(g.name, g.node, "node_unreachable", f"{g.name} {text}", bring_back(dark))
        for g in cluster.guests
        if dark and g.waits and g.key in plan.starts
    ]


def after(cluster: Cluster, plan: Plan) -> Cluster:
    """The cluster with what the plan shuts down and starts; its moves are not made yet."""
    started = {*plan.starts, *((move.vm, move.source) for move in plan.moves)}
    guests = []
    for guest in cluster.guests:
        shut = guest.key in plan.staying and guest.verb == SHUTDOWN and guest.active
        waits = shut or (guest.waits and guest.key not in started)
        guests.append(replace(guest, waits=waits, recorded=waits))
    return replace(cluster, guests=tuple(guests))


def still_on(cluster: Cluster, plan: Plan) -> list[Blocker]:
    """A blocker for each guest that would run on an emptied node that is to be rebooted or switched off."""
    mend = "shut it down, or set its on_maintenance to migrate, restart or shutdown (module vm)"
    return [
        Blocker(guest.name, guest.node, "on_maintenance", f"{guest.name} would be left running on {guest.node}", mend)
        for guest in cluster.guests
        if guest.key in plan.staying and guest.verb == LEAVE and guest.active
    ]
