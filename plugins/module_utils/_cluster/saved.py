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
from .attempt import move
from .model import Cluster, Plan, size_text
from .rebalance import Limits

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


def restore(plan: Mapping[str, Any], operation: str, now: Mapping[str, str], cluster: Cluster, fresh: Plan) -> Plan:
    """The moves of the saved plan (a result of the action plan) and what it noted, with all else as in the `fresh` one.

    Only who goes where, and the order, is taken from it: what else it says of a VM follows from the facts, which are
    those it was made from. Raises Refused when it was made for another operation or from other facts than those of
    `now` (`marks`), or was altered, and Invalid when it is no plan.
    """
    try:
        before, made_for, notes = dict(plan["facts"]), plan["operation"], list(plan["notes"])
        moves = [(each["vm"], each["from"], each["to"]) for stage in plan["stages"] for each in stage]
        strange = [
            word for word in (*before, *notes, *(name for each in moves for name in each)) if not isinstance(word, str)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"saved: this is not a plan that was saved ({error!r})", option="saved") from None
    if strange:
        raise Invalid(f"saved: this is not a plan that was saved ({strange[0]!r} is no text)", option="saved")
    if made_for != operation:
        raise Refused(f"the saved plan is for {made_for}, not for {operation}")
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        raise Refused(f"the facts changed since the plan was saved ({', '.join(changed)}): make a new one")
    guests = {guest.key: guest for guest in cluster.guests}
    wrong = [f"{vm} is not on {source}" for vm, source, _target in moves if (vm, source) not in guests]
    wrong += [f"{target} is no node of this cluster" for _vm, _source, target in moves if target not in cluster.nodes]
    if wrong:
        raise Refused(f"the saved plan was altered: {'; '.join(wrong)}")
    made = tuple(move(guests[vm, source], target, "as saved") for vm, source, target in moves)
    return replace(fresh, moves=made, warnings=tuple(notes))


def keep_budget(made: Plan, cluster: Cluster, limits: Limits, free: bool) -> None:
    """Refuse a saved plan that moves more than the budgets allow by now; with `free`, the way home costs nothing."""
    homes = {guest.key: guest.home for guest in cluster.guests} if free else {}
    counted = [each for each in made.moves if homes.get((each.vm, each.source)) != each.target]
    memory = sum(each.memory for each in counted)
    if not limits.allow(len(counted), memory):
        moved = f"{len(counted)} VMs with {size_text(memory)}"
        raise Refused(f"the saved plan moves {moved}, more than max_moves or max_memory_moved allows: make a new one")
