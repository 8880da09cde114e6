# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster as this node sees it: who the nodes are, and what each says of some VMs. Every question is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .._errors import NotFound, Refused, Unreachable
from .._leases import Leases
from .._libvirt import Node
from .._peers import CLUSTER, Cluster, ask, read_cluster
from .copies import PAUSED_BY_A_MIGRATION
from .ends import End
from .recovery import LOOK_SECONDS, Nodes


@dataclass(frozen=True)
class Site:
    """The cluster, and this node in it."""

    cluster: Cluster

    @classmethod
    def load(cls) -> Site:
        """What role hypervisor wrote. Raises NotFound or Failed."""
        cluster = read_cluster()
        if cluster.node not in cluster.uris:
            raise NotFound(f"{CLUSTER} names no cluster: apply role drover.kvm.hypervisor to this node first")
        return cls(cluster)

    @property
    def here(self) -> str:
        """This node's name."""
        return self.cluster.node

    @property
    def uris(self) -> dict[str, str]:
        """The libvirt URIs by node."""
        return self.cluster.uris

    @property
    def leases(self) -> Leases:
        """Where the VMs of this node have their leases, if they have any."""
        return self.cluster.own_leases

    def nodes(self) -> Nodes:
        """For recovery."""
        return Nodes(self.uris, self.here)

    def address(self, target: str) -> str:
        """A node's address in the migration network. Raises Refused when the node is unknown."""
        address = self.cluster.addresses.get(target)
        if not address:
            known = ", ".join(sorted(self.cluster.addresses))
            raise Refused(f"{target} is no node of this cluster that runs VMs; known are {known}")
        return address

    def stream(self, target: str) -> str:
        """Where QEMU sends the memory to. Raises Refused when the node is unknown."""
        address = self.address(target)
        return f"tcp://[{address}]" if ":" in address else f"tcp://{address}"

    def ask(
        self, question: Callable[[End], Any], nodes: Iterable[str] | None = None, seconds: float = LOOK_SECONDS
    ) -> dict[str, Any]:
        """Ask nodes (all when not said) something, each in a child process; an Unreachable where none answers."""
        uris = self.nodes().uris
        chosen = {node: uris[node] for node in sorted(uris if nodes is None else nodes)}

        def call(node: Node) -> Any:
            return question(End(node))

        return ask(chosen, call, seconds, readonly=False)


@dataclass(frozen=True)
class Sight:
    """What all nodes say of one VM, by node: a dict, `absent`, or a dict whose state is `unreachable`."""

    name: str
    uuid: str | None
    said: dict[str, Any]

    def on(self, *states: str) -> list[str]:
        """The nodes that say one of these states."""
        return [node for node, one in self.said.items() if isinstance(one, dict) and one.get("state") in states]

    @property
    def holders(self) -> list[str]:
        """The nodes that have the domain in any state."""
        return [node for node, one in self.said.items() if isinstance(one, dict) and one["state"] != "unreachable"]

    @property
    def silent(self) -> list[str]:
        """The nodes that gave no answer."""
        return self.on("unreachable")

    @property
    def marker(self) -> dict[str, Any] | None:
        """The marker of a migration of ours that did not end."""
        return next((self.said[node]["marker"] for node in self.holders if self.said[node].get("marker")), None)

    def words(self) -> str:
        """For a message: `running on hv1, no answer from hv3`."""
        texts = [f"{self.said[node]['state']} on {node}" for node in self.holders]
        texts += [f"no answer from {node}" for node in self.silent]
        return ", ".join(texts) or "on no node"


def survey(site: Site, names: list[str] | None) -> dict[str, Sight]:
    """What all nodes say of these VMs; with None, of all VMs that an interrupted migration may have left."""
    answers = site.ask(lambda end: end.find(names))
    chosen = set(names) if names is not None else _left_over(answers)
    return {name: _sight(name, answers) for name in sorted(chosen)}


def _left_over(answers: dict[str, Any]) -> set[str]:
    """The names of VMs with our marker; and, since other tools set none, of such as a migration has left paused, or
    that are on on several nodes. A migration of another tool that goes on is left alone.
    """
    seen = [look for answer in answers.values() if isinstance(answer, dict) for look in answer.items()]
    marked = {name for name, look in seen if look["marker"]}
    quiet = [(name, look) for name, look in seen if look["state"] != "shutoff" and not look["job"]]
    paused = {name for name, look in quiet if look["state"] == "paused" and look["reason"] in PAUSED_BY_A_MIGRATION}
    # A name may be that of two VMs.
    on = Counter((name, look["uuid"]) for name, look in quiet)
    return marked | paused | {name for (name, _uuid), count in on.items() if count > 1}


def _sight(name: str, answers: dict[str, Any]) -> Sight:
    said: dict[str, Any] = {}
    uuid = None
    for node, answer in answers.items():
        if isinstance(answer, Unreachable):
            said[node] = {"state": "unreachable", "why": str(answer)}
            continue
        said[node] = answer.get(name, "absent")
        if said[node] != "absent":
            if uuid not in (None, said[node]["uuid"]):
                raise Refused(f"{name} is another VM on {node}: it has the UUIDs {uuid} and {said[node]['uuid']}")
            uuid = said[node]["uuid"]
    return Sight(name, uuid, said)
