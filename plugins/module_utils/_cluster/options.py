# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the action plan; the checks that Ansible's own argument spec can't make."""

from __future__ import annotations

from typing import Any

from .._fields import Field, check_name


def _number(value: Any) -> int:
    """A whole number above zero, also as a text (templates give texts)."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise ValueError(f"{value!r} is not a whole number above 0")
    return number


def _nodes(value: dict[str, Any]) -> dict[str, frozenset[str]]:
    """One node, or a list of nodes, for each VM or tag."""
    found = {}
    for word, nodes in value.items():
        names = [nodes] if isinstance(nodes, str) else nodes
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{word}: write one node or a list of nodes")
        found[str(word)] = frozenset(names)
    return found


def _domains(value: dict[str, Any]) -> dict[str, str]:
    """The name of a domain for each node."""
    if not all(isinstance(domain, (str, int)) and not isinstance(domain, bool) for domain in value.values()):
        raise ValueError("write one name for each node, such as {hv1: room-a, hv2: room-b}")
    return {str(node): str(domain) for node, domain in value.items()}


def _count(value: int) -> int:
    """A whole number that is not below zero."""
    if value < 0:
        raise ValueError(f"{value} is below 0")
    return value


def _percent(value: float) -> float:
    """A share of 100, as a share of 1."""
    if not 0 <= value <= 100:
        raise ValueError(f"{value:g} is not between 0 and 100")
    return value / 100


def _weights(value: dict[str, Any]) -> dict[str, float]:
    """A number for each node, not all of them zero."""
    weights = {}
    for node, weight in value.items():
        try:
            weights[str(node)] = float("no" if isinstance(weight, bool) else weight)
        except (TypeError, ValueError):
            raise ValueError(f"{node}: {weight!r} is not a number") from None
        if not 0 <= weights[str(node)] < float("inf"):
            raise ValueError(f"{node}: {weight} is not a number from 0 on")
    if not any(weights.values()):
        raise ValueError("at least one node must have a weight above 0")
    return weights


def _speed(value: int) -> int | None:
    """Bytes per second; 0 is no limit for a move, so nothing is known of it."""
    return value or None


CPU_FIELDS = (
    Field("vm", required=True),
    Field("node", required=True),
    Field("compatible", type="bool", required=True),
    Field("reason"),
)

# A sheet may hold more than the planner reads: what it does not know it leaves alone.
SHEET_FIELDS = (
    Field("name", required=True, check=check_name),
    Field("memory", type="size"),
    Field("max_memory", type="size"),
    Field("vcpus", type="raw", default=1, check=_number),
    Field("tags", type="names"),
    Field("nics", type="list"),
    Field("hugepages", type="raw"),
    Field("uuid"),
    Field("machine"),
    Field("virt_type"),
    Field("firmware"),
    Field("tpm"),
    Field("state", default="running"),
)

OPERATIONS = ("place", "drain", "undrain", "rolling", "rebalance", "spread", "consolidate", "report")
EVENING = ("rebalance", "spread")

# The operations that have a use for an option; given with another one it is refused.
ONLY = {
    "node": ("drain", "undrain", "rolling"),
    "names": ("drain",),
    "vms": ("place",),
    "come_home": ("undrain", "rolling"),
    "only_fill": ("rolling",),
    "require_off": ("drain", "rolling"),
    "weights": ("rebalance",),
    "max_moves": EVENING,
    "max_memory_moved": EVENING,
    "threshold": EVENING,
    "hold_off": EVENING,
    "saved": ("drain", "undrain", *EVENING, "consolidate"),
}

FIELDS = (
    Field("operation", choices=OPERATIONS, required=True),
    Field("nodes", type="list", elements="dict", required=True),
    Field("unreachable", type="list", elements="str", default=[]),
    Field("fenced", type="list", elements="str", default=[]),
    Field("node", type="list", elements="str", default=[]),
    Field("names", type="list", elements="str"),
    Field("vms", type="list", elements="dict", default=[]),
    Field("anti_affinity", type="list", elements="str", default=[]),
    Field("affinity", type="list", elements="str", default=[]),
    Field("failure_domains", type="dict", default={}, check=_domains),
    Field("pins", type="dict", default={}, check=_nodes),
    Field("avoid", type="dict", default={}, check=_nodes),
    Field("cpu_matrix", type="list", elements="dict", default=[], fields=CPU_FIELDS),
    Field("check_return", type="bool", default=True),
    Field("copy_storage", type="bool", default=False),
    Field("eject_cdrom", type="bool", default=False),
    Field("make_room", type="bool", default=True),
    Field("come_home", type="bool"),
    Field("only_fill", type="list", elements="str"),
    Field("weights", type="dict", check=_weights),
    Field("max_moves", type="int", check=_count),
    Field("max_memory_moved", type="size"),
    Field("threshold", type="float", check=_percent),
    Field("hold_off", type="int", check=_count),
    Field("require_n_minus_1", type="bool"),
    Field("require_off", type="bool"),
    Field("bandwidth", type="size", check=_speed),
    Field("saved", type="dict"),
    Field("memory_reserve", type="size", default="2GiB"),
    Field("memory_overhead", type="size", default="128MiB"),
    Field("fail_on_blockers", type="bool", default=True),
)
