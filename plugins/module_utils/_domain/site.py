# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One node and its peers as module vm sees them: read once for all VMs of a task, what is costly only when needed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, Callable

from .. import _bridges, _reserved
from .._errors import DroverError
from .._leases import Leases
from .._libvirt import Domain, Node
from .._peers import ask_peers, read_cluster
from .neighbours import Survey, survey

FRESH_SECONDS = 15.0
PEER_SECONDS = 10.0
# A node on which much starts at once takes longer; nothing is refused for that.
PATIENT_SECONDS = 45.0
LIBVIRT_VLANS = 11  # the first version that gives a port of a Linux bridge its VLAN


def survey_node(node: Node) -> list[dict[str, Any]]:
    """What all domains of a node hold; runs in a child for each peer."""
    return survey(node.domains(brief=True).values())


class Site:
    """What `vm` asks a node and its peers. Sizes in bytes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._looked_at: set[str] = set()
        self._lock = threading.Lock()
        self._asked: tuple[float, dict[str, Any]] = (-math.inf, {})
        self._limit, self._hopeless = PEER_SECONDS, -math.inf

    @cached_property
    def known(self) -> dict[str, Domain]:
        """All domains of the node as they were at the beginning."""
        return self.node.domains()

    @cached_property
    def surveyed(self) -> Survey:
        """What the domains of the node held at the beginning."""
        return survey(self.known.values())

    @cached_property
    def bridges(self) -> dict[str, str]:
        """The node's bridges with their type: ovs, linux, or filtering, a Linux one whose VLANs libvirt can set."""
        found, able = _bridges.bridges(), _bridges.filtering()
        if able and int(self.offer["libvirt_version"].split(".")[0]) < LIBVIRT_VLANS:
            able = set()
        return {name: "filtering" if kind == "linux" and name in able else kind for name, kind in found.items()}

    @cached_property
    def networks(self) -> dict[str, str | None]:
        """libvirt's virtual networks with the bridge of each."""
        return self.node.networks()

    @cached_property
    def reserved(self) -> dict[str, list[int]]:
        """The VLANs of the hosts by bridge."""
        return _reserved.read()

    @cached_property
    def offer(self) -> dict[str, Any]:
        """What the node can run: `arch`, `virt_types`, `machine_types`, `memory` (see `Node.host`)."""
        return self.node.host()

    @cached_property
    def leases(self) -> Leases:
        """Where the VMs of this node have their leases, if they have any."""
        return read_cluster().own_leases

    def domain(self, name: str) -> Domain | None:
        """One domain: as it was at the beginning when it is asked for the first time, after that as it is."""
        if name in self._looked_at:
            return self.node.domain(name)
        self._looked_at.add(name)
        return self.known.get(name)

    def peers(
        self, seconds: float = FRESH_SECONDS, needed: Callable[[str], bool] | None = None
    ) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
        """What the domains of each peer hold, not older than `seconds`, and the peers that gave no answer.

        Where one is silent whose answer is `needed`, all are asked again, and from then on, with more patience; when
        that does not help either, not for a minute.
        """
        with self._lock:
            if time.monotonic() - self._asked[0] > seconds:
                self._ask()
            if self._missing(needed) and self._limit == PEER_SECONDS and time.monotonic() > self._hopeless:
                self._limit = PATIENT_SECONDS
                self._ask()
                if self._missing(needed):
                    self._limit, self._hopeless = PEER_SECONDS, time.monotonic() + 60
            silent = self._silent
            return {name: one for name, one in self._asked[1].items() if name not in silent}, silent

    def _ask(self) -> None:
        """What each peer says within the limit, and when the question began."""
        began, told = time.monotonic(), ask_peers(survey_node, self._limit)
        self._asked = began, {name: one if isinstance(one, DroverError) else Survey(one) for name, one in told.items()}

    @property
    def _silent(self) -> list[str]:
        return sorted(name for name, answer in self._asked[1].items() if isinstance(answer, DroverError))

    def _missing(self, needed: Callable[[str], bool] | None) -> bool:
        return needed is not None and any(map(needed, self._silent))


@contextmanager
def opened(connection: AbstractContextManager[Node]) -> Iterator[Site]:
    """A node, and through it its peers, for as long as the connection is open."""
    with connection as node:
        yield Site(node)
