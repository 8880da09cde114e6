# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter node_faults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

# A new kernel keeps a little more or less for itself.
MEMORY_SHARE = 0.98


def node_faults(
    node: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
    services: Mapping[str, Mapping[str, Any]] | None = None,
    ignored: Iterable[str] = (),
) -> list[str]:
    """In words, what the node (facts of node_info) lacks of what it had `before`, and the services that have failed.

    `services` are those of ansible.builtin.service_facts, `ignored` patterns of names. Memory is bytes.
    """
    now, past = _has(node), _has(before or {})
    found = [f"{kind} {name} is gone" for kind in past for name in sorted(past[kind] - now[kind])]
    size, old = ((facts.get("memory") or {}).get("total") or 0 for facts in (node, before or {}))
    if size < old * MEMORY_SHARE:
        found.append(f"it has {size / 2**30:.4g} GiB of memory, and had {old / 2**30:.4g}")
    patterns = list(ignored)
    failed = [name for name, facts in (services or {}).items() if facts.get("status") == "failed"]
    loud = (name for name in sorted(failed) if not any(fnmatch(name, pattern) for pattern in patterns))
    return [*found, *(f"{name} has failed" for name in loud)]


def _has(node: Mapping[str, Any]) -> dict[str, set[str]]:
    """What VMs may need of the node, by kind."""
    return {
        "bridge": {one["name"] for one in node.get("bridges") or []},
        "active pool": {one["name"] for one in node.get("pools") or [] if one.get("state") == "active"},
        "virtualisation type": set(node.get("virt_types") or []),
    }


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"node_faults": node_faults}
