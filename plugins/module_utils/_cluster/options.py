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


def _pins(value: dict[str, Any]) -> dict[str, frozenset[str]]:
    """One node, or a list of nodes, for each VM."""
    pins = {}
    for vm, nodes in value.items():
        names = [nodes] if isinstance(nodes, str) else nodes
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{vm}: write one node or a list of nodes")
        pins[str(vm)] = frozenset(names)
    return pins


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
    Field("uuid"),
    Field("machine"),
    Field("virt_type"),
    Field("state", default="running"),
)

FIELDS = (
    Field("operation", choices=("place", "drain", "undrain"), required=True),
    Field("nodes", type="list", elements="dict", required=True),
    Field("unreachable", type="list", elements="str", default=[]),
    Field("fenced", type="list", elements="str", default=[]),
    Field("node", type="list", elements="str", default=[]),
    Field("names", type="list", elements="str"),
    Field("vms", type="list", elements="dict", default=[]),
    Field("anti_affinity", type="list", elements="str", default=[]),
    Field("pins", type="dict", default={}, check=_pins),
    Field("cpu_matrix", type="list", elements="dict", default=[], fields=CPU_FIELDS),
    Field("check_return", type="bool", default=True),
    Field("copy_storage", type="bool", default=False),
    Field("make_room", type="bool", default=True),
    Field("memory_reserve", type="size", default="2GiB"),
    Field("memory_overhead", type="size", default="128MiB"),
    Field("fail_on_blockers", type="bool", default=True),
)
