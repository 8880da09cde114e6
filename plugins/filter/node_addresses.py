# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter node_addresses: the addresses of the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.drover.kvm.plugins.filter.shared_addresses import addresses_of


def node_addresses(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The addresses or names of the management and of migrations that the nodes (their variables) have, each once."""
    return sorted({address for node in nodes for address in addresses_of(node).values()})


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"node_addresses": node_addresses}
