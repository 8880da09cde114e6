# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan that was made earlier, looked at by people, and is carried out exactly or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._errors import Invalid, Refused
from .model import Cluster, Move, Plan

RULES = "the rules"  # No name of a node has a blank.


def marks(cluster: Cluster, nodes: Sequence[str]) -> dict[str, str]:
    """A hash for each node and what is on it, and one for the rules: SHA-256 of all that the planner knows of it.

    The cordons of `nodes`, which the operation itself sets or lifts, are left out.
    """
    found = {RULES: _hash(cluster.rules)}
    for name, node in cluster.nodes.items():
        known = replace(node, cordon=None) if name in nodes else node
        # Guests grow older by themselves.
        guests = [replace(guest, fresh=False) for guest in cluster.guests if guest.node == name]
        found[name] = _hash((known, guests))
    return found


def _hash(value: object) -> str:
    return hashlib.sha256(_plain(value).encode()).hexdigest()


def _plain(value: object) -> str:
    """The value as a text that does not depend on the order of sets and dicts."""
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_plain(key)}: {_plain(each)}' for key, each in value.items()))}}}"
    if hasattr(value, "__dataclass_fields__"):
        return f"{type(value).__name__}{_plain(vars(value))}"
    return repr(value)


def restore(plan: Mapping[str, Any], operation: str, now: Mapping[str, str], fresh: Plan) -> Plan:
    """The moves of the saved plan (a result of the action plan), with all else as in the `fresh` one.

    Raises Refused when it was made for another operation or from other facts than those of `now` (`marks`), and
    Invalid when it is no plan.
    """
    try:
        before, moves = dict(plan["facts"]), [_move(each) for stage in plan["stages"] for each in stage]
        made_for = plan["operation"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"saved: this is not a plan that was saved ({error!r})", option="saved") from None
    if made_for != operation:
        raise Refused(f"the saved plan is for {made_for}, not for {operation}")
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        raise Refused(f"the facts changed since the plan was saved ({', '.join(changed)}): make a new one")
    strange = sorted({each.target for each in moves} - set(now))
    if strange:
        raise Refused(f"the saved plan was altered: {', '.join(strange)} is no node of this cluster")
    return replace(fresh, moves=tuple(moves))


def _move(each: Mapping[str, Any]) -> Move:
    return Move(
        vm=each["vm"],
        uuid=each["uuid"],
        source=each["from"],
        target=each["to"],
        mode=each["mode"],
        memory=int(each["memory"]),
        why="as saved",
        copies=each.get("storage") == "copy",
        ejects=bool(each.get("eject_cdrom")),
    )
