# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring guests back to a node that was emptied."""

from __future__ import annotations

from dataclasses import replace

from . import choose
from .attempt import move
from .board import Board
from .model import Blocker, Cluster, Move, Plan


def undrain(cluster: Cluster, node: str) -> Plan:
    """Exactly the guests whose home is the node and that are elsewhere, the largest first.

    A guest that was moved on purpose since has got another home by that, and stays. The node may still be cordoned:
    lifting the cordon is part of bringing the guests back.
    """
    # The way back from home to the present node is not needed: it was only a stay.
    cluster = replace(cluster, rules=replace(cluster.rules, check_return=False))
    board = Board(cluster, opened=[node])
    warnings = tuple(text for text in choose.left_out(board) if "cordoned" not in text)
    missing = choose.missing_node(board, node)
    if missing:
        return Plan(blockers=tuple(missing), warnings=warnings)
    moves: list[Move] = []
    blockers: list[Blocker] = []
    away = [guest for guest in cluster.guests if guest.home == node != guest.node and guest.node]
    for guest in choose.by_size(board, away):
        hindrance = board.hindrance(guest, node)
        blockers += choose.fixed(guest) + (choose.nowhere(board, guest, {node: hindrance}) if hindrance else [])
        if not hindrance and not guest.fixed:
            board.put(guest, node, out_of=guest.node)
            moves.append(move(guest, node, "home"))
    return Plan(tuple(moves), tuple(sorted(blockers, key=lambda b: (b.vm, b.reason, b.text))), warnings=warnings)
