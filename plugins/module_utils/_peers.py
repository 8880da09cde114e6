# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other nodes of the cluster: who they are, and one question to all of them at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ._errors import Failed
from ._leases import Leases
from ._libvirt import Node, connect
from ._run import bounded

CLUSTER = Path("/etc/drover/cluster.json")


@dataclass(frozen=True)
class Cluster:
    """What role hypervisor wrote to this node; `uris` holds the nodes that can run VMs, this one among them.

    `addresses` are where the memory of a VM that migrates to a node is sent, `leases` the lease directories of
    the nodes that have one, `lease_id` what the mark in this node's says.
    """

    name: str = ""
    node: str = ""
    uris: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)
    lease_id: str = ""

    @property
    def own_leases(self) -> Leases:
        """Where the VMs of this node have their leases, if they have any."""
        return Leases(self.leases.get(self.node, ""), self.lease_id)

    @property
    def peers(self) -> dict[str, str]:
        """The libvirt URI of each other node."""
        return {name: uri for name, uri in self.uris.items() if name != self.node}


def read_cluster(path: Path | None = None) -> Cluster:
    """The cluster of this node; one without nodes where the file is missing (a single server).

    Raises Failed when the file is there and can't be understood: a cluster of nobody would let a VM start twice.
    """
    path = path or CLUSTER
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nodes = {name: node for name, node in data["nodes"].items() if node.get("vm_capable", True)}
        uris = {name: str(node["uri"]) for name, node in nodes.items()}
        addresses = {
            name: str(node["migration_address"]) for name, node in nodes.items() if "migration_address" in node
        }
        leases = {name: str(node["lease_directory"]) for name, node in nodes.items() if node.get("lease_directory")}
        return Cluster(
            str(data["cluster"]), str(data["node"]), uris, addresses, leases, str(data.get("lease_id") or "")
        )
    except FileNotFoundError:
        return Cluster()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{path} can't be read ({error!r}): apply role drover.kvm.hypervisor to this node again") from None


def ask(
    uris: dict[str, str], call: Callable[[Node], Any], seconds: float = 10, readonly: bool = True
) -> dict[str, Any]:
    """Ask several nodes at once: per name what `call` returns (plain data), or an Unreachable in its place.

    Each node is asked in a child process that ends after `seconds`, so a frozen node costs no more than that.
    """

    def one(name: str, uri: str) -> Any:
        with connect(uri, readonly=readonly, name=name, probe=False) as node:
            return call(node)

    return bounded({name: partial(one, name, uri) for name, uri in uris.items()}, seconds)


def ask_peers(
    call: Callable[[Node], Any], seconds: float = 10, readonly: bool = True, cluster: Cluster | None = None
) -> dict[str, Any]:
    """Ask all other nodes of the cluster, as `ask` does. Unreachable is not absent."""
    return ask((cluster or read_cluster()).peers, call, seconds, readonly)
