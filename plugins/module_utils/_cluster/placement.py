# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the guests are now, where the rules want them, and what the nodes carry. Nothing is planned."""

from __future__ import annotations

from typing import Any

from . import choose
from .board import Board
from .model import MIGRATE, Blocker, Cluster, Guest, Plan, size_text

# Of what keeps a guest where it is, these are faults; the others are how it was made.
DOUBTFUL = frozenset({"interrupted", "defined_twice", "state"})


def placement(cluster: Cluster) -> tuple[list[dict[str, Any]], Plan]:
    """A row for each guest, and a plan without moves whose blockers are the rules that are broken now."""
    board = Board(cluster)
    targets = board.targets()
    guests = [guest for guest in cluster.guests if guest.node]
    broken = [blocker for guest in guests for blocker in _broken(board, guest)]
    broken += [_too_full(board, name) for name in sorted(cluster.nodes) if name in targets and board.free(name) < 0]
    rows = [_row(board, guest, targets) for guest in guests]
    return rows, Plan(blockers=tuple(broken), warnings=choose.left_out(board))


def _broken(board: Board, guest: Guest) -> list[Blocker]:
    """The rules that the guest breaks where it is; of two that must be kept apart, the second by name."""
    found = choose.blockers(guest, (obstacle for obstacle in guest.fixed if obstacle.reason in DOUBTFUL))
    pins = board.cluster.rules.pins.get(guest.name, (guest.node,))
    if guest.node not in pins:
        text = f"{guest.name} is pinned to {', '.join(sorted(pins)) or 'none'}"
        found.append(Blocker(guest.name, guest.node, "pinned", text, "move it there (module migrate)"))
    rivals = [rival for rival in board.rivals(guest, guest.node) if rival.key < guest.key]
    if rivals:
        tags = ", ".join(sorted(board.cluster.groups(guest) & board.cluster.groups(rivals[0])))
        text = f"{guest.name} and {rivals[0].name} must be kept apart (tag {tags})"
        found.append(Blocker(guest.name, guest.node, "anti_affinity", text, "rebalance takes them apart"))
    return found


def _too_full(board: Board, name: str) -> Blocker:
    text = f"{name} has promised {size_text(-board.free(name))} of memory more than VMs may take"
    return Blocker("", name, "memory", text, "move VMs away (rebalance), or shut some down")


def _row(board: Board, guest: Guest, targets: list[str]) -> dict[str, Any]:
    others = [name for name in targets if name != guest.node]
    hindrances = {name: board.hindrance(guest, name) for name in others}
    can = [name for name, hindrance in hindrances.items() if hindrance is None and not guest.fixed]
    against = guest.fixed or [found for found in hindrances.values() if found and not can]
    return {
        "name": guest.name,
        "node": guest.node,
        "active": guest.active and not guest.waits,
        "memory": guest.memory,
        "home": guest.home,
        "on_maintenance": guest.verb,
        "could_go_to": can,
        "tied": sorted({obstacle.reason for obstacle in against}),
    }


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as cells of a text: name, node, size, state and what it does on maintenance, home, where it could go."""
    found = []
    for row in rows:
        away = "" if row["home"] in (None, row["node"]) else f"home {row['home']}"
        ways = ", ".join(row["could_go_to"])
        where = f"could go to {ways}" if ways else f"can go nowhere: {', '.join(row['tied']) or 'no other node'}"
        state = "on" if row["active"] else "off"
        state += "" if row["on_maintenance"] == MIGRATE else f" ({row['on_maintenance']})"
        found.append([row["name"], row["node"], size_text(row["memory"]), state, away, where])
    return found
