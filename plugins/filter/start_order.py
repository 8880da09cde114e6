# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter start_order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def start_order(
    vms: Iterable[Mapping[str, Any]], order: Sequence[str], variables: Mapping[str, Mapping[str, Any]] | None = None
) -> list[list[dict[str, Any]]]:
    """The VMs (facts of node_info) in groups: those of each tag of `order`, a VM with its first one, then the rest.

    With `variables` (hostvars), an item has the seconds of its vm_shutdown_timeout, where there are some.
    """
    groups: list[list[dict[str, Any]]] = [[] for _tag in (*order, None)]
    # One that a node has besides, as it died and is back, is the same VM.
    each = {str(vm["name"]): vm for vm in sorted(vms, key=lambda vm: vm.get("state") != "stopped")}
    for _name, vm in sorted(each.items()):
        tags = vm["metadata"]["tags"]
        place = next((number for number, tag in enumerate(order) if tag in tags), len(order))
        seconds = variables[vm["name"]].get("vm_shutdown_timeout") if variables and vm["name"] in variables else None
        groups[place].append({"name": vm["name"], **({} if seconds is None else {"shutdown_timeout": seconds})})
    return [group for group in groups if group]


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"start_order": start_order}
