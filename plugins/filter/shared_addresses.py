# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter shared_addresses: addresses that more than one node of a cluster is said to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.drover.kvm.plugins.filter.plain_address import plain_address


def shared_addresses(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """One text for each address of the management or of migrations that several nodes (their variables) have."""
    holders: dict[str, dict[str, str]] = {}
    for node in nodes:
        for what, address in addresses_of(node).items():
            holders.setdefault(plain_address(address), {})[str(node["inventory_hostname"])] = what
    shared = {address: of for address, of in sorted(holders.items()) if len(of) > 1}
    return [f"{address} is the address of {_words(of)}" for address, of in shared.items()]


def addresses_of(node: Mapping[str, Any]) -> dict[str, str]:
    """Its addresses, or names, as the role takes them from its variables."""
    management = node.get("hypervisor_management_address", node.get("ansible_host", node["inventory_hostname"]))
    return {"migration": str(node.get("hypervisor_migration_address", management)), "management": str(management)}


def _words(of: Mapping[str, str]) -> str:
    return " and ".join(f"{name} (hypervisor_{what}_address)" for name, what in of.items())


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"shared_addresses": shared_addresses}
