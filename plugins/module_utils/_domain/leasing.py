# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM's lease says of its start, and what becomes of the file when the VM goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .._errors import Failed, Refused
from .._leases import ELSEWHERE, HERE, Leases
from .._libvirt import Domain
from .._xml import parse
from . import leases

MENDS = {
    ELSEWHERE: "Either it runs there, or that node died a moment ago: a file server takes a lock from a dead node "
    "after some 90 s; run this again then",
    HERE: "virtlockd was killed while it ran here. Drain this node, then restart virtlockd",
}


def check_free(client: Leases, name: str, uuid: str, resumed: bool) -> None:
    """Raise Refused when somebody holds the VM's lease; one that is paused and shall be `resumed` may do so itself."""
    holder, path = client.holder(uuid), client.path(uuid)
    if holder is None or (resumed and holder == HERE):
        return
    raise Refused(f"{name} is not started: {holder} holds its lease {path}. {MENDS[holder]}", lease=path, holder=holder)


def fault(client: Leases, domain: Domain | None) -> str | None:
    """What is wrong with the lease of a VM that runs, in words; None when nothing is, or it runs without one."""
    if domain is None or domain.state != "running" or domain.live_xml is None or not client.directory:
        return None
    path = leases.read(parse(domain.live_xml))
    # One of another directory waits for the VM's next start.
    holder = client.holder(domain.uuid) if path == client.path(domain.uuid) else HERE
    if holder == HERE:
        return None
    return f"{domain.name} runs, and {'nobody' if holder is None else holder} holds its lease {path}"


def check_held(client: Leases, domain: Domain | None) -> None:
    """Raise Failed when a VM that was started does not hold its lease."""
    words = fault(client, domain)
    if words:
        raise Failed(f"{words}: see what virtlockd of this node says (journalctl -u virtlockd)")


def forget(client: Leases, uuid: str, peers: Mapping[str, list[dict[str, Any]]], silent: Collection[str]) -> None:
    """Delete the file of a VM that is no longer defined here, unless another node has it, or may have it."""
    claims = [tuple(claim) for domains in peers.values() for domain in domains for claim in domain["claims"]]
    if not silent and ("UUID", uuid) not in claims:
        client.remove(uuid)
