# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster as this node sees it: who the nodes are, and what each says of some VMs. Every question is bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import Failed, NotFound, Refused, Unreachable
from .._run import bounded
from .ends import End
from .recovery import LOOK_SECONDS, Nodes

CLUSTER = Path("/etc/drover/cluster.json")


@dataclass(frozen=True)
class Site:
    """The nodes by name with their libvirt URIs and migration addresses; `here` is this node."""

    here: str
    uris: dict[str, str]
    addresses: dict[str, str]

    @classmethod
    def load(cls, path: Path = CLUSTER) -> Site:
        """Read what role hypervisor wrote. Raises NotFound or Failed."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            nodes = data["nodes"]
            uris = {name: str(node["uri"]) for name, node in nodes.items()}
            addresses = {name: str(node["migration_address"]) for name, node in nodes.items()}
            return cls(str(data["node"]), uris, addresses)
        except FileNotFoundError:
            raise NotFound(f"{path} is missing: apply role drover.kvm.hypervisor to this node first") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failed(f"{path} can't be read ({error!r}): apply role drover.kvm.hypervisor again") from None

    def nodes(self) -> Nodes:
        """For recovery."""
        return Nodes(self.uris, self.here)

    def stream(self, target: str) -> str:
        """Where QEMU sends the memory to. Raises Refused when the node is unknown."""
        if target not in self.addresses:
            raise Refused(f"{target} is no node of this cluster; known are {', '.join(sorted(self.addresses))}")
        address = self.addresses[target]
        return f"tcp://[{address}]" if ":" in address else f"tcp://{address}"

    def ask(self, question: Callable[[End], Any], nodes: Iterable[str] | None = None) -> dict[str, Any]:
        """Ask nodes (all when not said) something, each in a child process; an Unreachable where none answers."""
        uris = self.nodes().uris
        asked = sorted(uris if nodes is None else nodes)
        return bounded({node: self._call(question, node, uris[node]) for node in asked}, LOOK_SECONDS)

    @staticmethod
    def _call(question: Callable[[End], Any], node: str, uri: str) -> Callable[[], Any]:
        return lambda: question(End(node, uri))


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
    """What all nodes say of these VMs; with None, of all VMs that carry our marker."""
    answers = site.ask(lambda end: end.find(names))
    found = {name for answer in answers.values() if isinstance(answer, dict) for name in answer}
    return {name: _sight(name, answers) for name in sorted(found if names is None else set(names))}


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
