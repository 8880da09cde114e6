# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what each node says of its VMs to inventory hosts: where each VM is, and what is wrong about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._fields import CONTROLLER, check_name

# What a VM is when several nodes know it: the one that runs counts, then the one with a process, then a definition.
RANK = {"running": 0, "stopped": 2, "unknown": 2}
FACTS = (
    "uuid",
    "state",
    "reason",
    "persistent",
    "autostart",
    "vcpus",
    "memory",
    "machine",
    "arch",
    "virt_type",
    "disks",
    "nics",
    "marker",
)
RECORD = ("managed", "tags", "home", "owner", "description")


@dataclass
class Guest:
    """One VM as an inventory host."""

    name: str
    variables: dict[str, Any] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)


def group_name(prefix: str, text: str) -> str:
    """A valid group name; what Ansible does not allow in it becomes an underscore."""
    return f"{prefix}_{re.sub(r'[^A-Za-z0-9_]', '_', text)}"


def duplicates(answers: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """VMs that run on more than one node, by name and by UUID: the name with the nodes."""
    nodes: dict[tuple[str, str], set[str]] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for node, domains in answers.items():
        for domain in domains:
            if domain["state"] == "running":
                for key in (("name", domain["name"]), ("uuid", domain["uuid"])):
                    nodes.setdefault(key, set()).add(node)
                    names.setdefault(key, set()).add(domain["name"])
    found: dict[str, set[str]] = {}
    for key, where in nodes.items():
        if len(where) > 1:
            for name in names[key]:
                found.setdefault(name, set()).update(where)
    return {name: sorted(where) for name, where in sorted(found.items())}


def guests(
    answers: Mapping[str, Iterable[Mapping[str, Any]]], twice: Mapping[str, list[str]], taken: Iterable[str]
) -> tuple[list[Guest], list[str]]:
    """The VMs of all nodes, and warnings. `twice` are duplicates that were seen again, `taken` names of nodes."""
    seen: dict[str, dict[str, Mapping[str, Any]]] = {}
    for node, domains in sorted(answers.items()):
        for domain in domains:
            seen.setdefault(str(domain["name"]), {})[node] = domain
    found: list[Guest] = []
    warnings = [
        f"VM {name!r} runs on {' and '.join(nodes)} at the same time: its disks are in danger; see group "
        "drover_duplicate_running"
        for name, nodes in twice.items()
    ]
    reserved = {*taken, *CONTROLLER}
    for name, places in sorted(seen.items()):
        if len({domain["uuid"] for domain in places.values()}) > 1:
            warnings.append(f"{name!r} is the name of different VMs on {' and '.join(places)}: their UUIDs differ")
        problem = "it is also the name of a node or means the controller" if name in reserved else _name_problem(name)
        if problem:
            warnings.append(f"VM {name!r} on {', '.join(places)} is left out of the inventory: {problem}")
        else:
            found.append(_guest(name, places, name in twice))
    return found, warnings


def _name_problem(name: str) -> str | None:
    try:
        check_name(name)
    except ValueError as error:
        return str(error)
    return None


def _guest(name: str, places: Mapping[str, Mapping[str, Any]], twice: bool) -> Guest:
    node, domain = min(places.items(), key=lambda place: (RANK.get(str(place[1]["state"]), 1), place[0]))
    record = domain["metadata"]
    variables = {f"drover_{fact}": domain[fact] for fact in FACTS}
    variables.update({f"drover_{fact}": record.get(fact) for fact in RECORD})
    variables["drover_node"] = node
    variables["drover_seen"] = {place: seen["state"] for place, seen in places.items()}
    groups = ["drover_vms", group_name("drover", str(domain["state"])), group_name("drover_on", node)]
    groups += [group_name("drover_tag", str(tag)) for tag in record["tags"]]
    if twice:
        running = [place for place, seen in places.items() if seen["state"] == "running"]
        groups += ["drover_duplicate_running", *(group_name("drover_on", place) for place in running)]
    return Guest(name, variables, list(dict.fromkeys(groups)))
