# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move a VM that is shut off: its definition, and what it keeps in files of UEFI and a TPM. Its disks are shared.

The marker makes it repeatable: as long as it stands, a recovery brings the move to its end, and at no time is the VM
defined nowhere. The files are deleted at the source when their content was seen at the destination and the VM is
defined there alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from .._errors import Failed, Refused
from .order import End, Journal, Order


class Files(Protocol):
    """The files of a node."""

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, content: bytes) -> None: ...
    def release(self, paths: Iterable[str]) -> None: ...


class OfflineEnd(End, Protocol):
    """What the move of a definition also needs of both."""

    @property
    def volumes(self) -> Files: ...
    def kept(self, uuid: str) -> list[str]: ...
    def forget(self, paths: Iterable[str]) -> None: ...
    def autostart(self, uuid: str) -> bool: ...
    def has_managed_save(self, uuid: str) -> bool: ...
    def definition(self, uuid: str) -> str: ...
    def define(self, text: str) -> None: ...
    def undefine(self, uuid: str) -> None: ...


def move_definition(order: Order, source: OfflineEnd, target: OfflineEnd, journal: Journal) -> dict[str, Any]:
    """Define it at the destination, see it there, then undefine it at the source. Raises DroverError."""
    uuid = order.uuid
    _refuse(order, source, target)
    autostart = source.autostart(uuid)
    journal.phase("marking")
    source.set_marker(uuid, _marker(order, autostart))
    if order.home == "source" and source.home(uuid) is None:
        source.set_home(uuid, order.source)
    if autostart:
        source.set_autostart(uuid, False)
    sent = {path: source.volumes.read(path) for path in order.state}
    for path, content in sent.items():
        journal.phase("copying", path=path)
        target.volumes.write(path, content)
    journal.phase("defining")
    target.define(source.definition(uuid))
    if (target.state(uuid) or ("absent",))[0] != "stopped":
        raise Failed(f"{order.vm} was defined on {order.target}, which then does not show it as shut off")
    _still(order, source, sent)
    source.undefine(uuid)
    target.volumes.release(order.state)
    source.forget(order.state)
    if autostart:
        target.set_autostart(uuid, True)
    if order.new_home:
        target.rehome(uuid, order.new_home)
    target.set_marker(uuid, None)
    return {"downtime_ms": None, "resumed_early": False}


def _still(order: Order, source: OfflineEnd, sent: dict[str, bytes]) -> None:
    """See that nobody has used it meanwhile. libvirt would undefine one that runs, too, and leave it transient."""
    kept = {path: source.volumes.read(path) for path in source.kept(order.uuid)}
    if (source.state(order.uuid) or ("absent",))[0] != "stopped" or kept != sent:
        raise Failed(f"{order.vm} is no longer shut off as it was on {order.source}")


def _refuse(order: Order, source: OfflineEnd, target: OfflineEnd) -> None:
    seen = source.state(order.uuid)
    if seen is None or seen[0] != "stopped":
        raise Refused(f"{order.vm} is {seen[0] if seen else 'absent'} on {order.source}, not shut off")
    if source.marker(order.uuid) is not None:
        raise Refused(f"{order.vm} carries the marker of a migration that did not end; recover it first")
    if source.has_managed_save(order.uuid):
        raise Refused(f"the memory of {order.vm} is saved on {order.source}; start it there first, then migrate it")
    if source.kept(order.uuid) != order.state:
        raise Refused(f"the files of {order.vm} for UEFI or a TPM are not those that were seen; run it again")
    if target.state(order.uuid) is not None:
        raise Refused(f"{order.target} has a domain with the UUID of {order.vm} already")


def _marker(order: Order, autostart: bool) -> dict[str, Any]:
    return {
        "id": order.id,
        "from": order.source,
        "to": order.target,
        "was": "shutoff",
        "autostart": autostart,
        "started": int(time.time()),
        "copies": order.state,
        "state": order.state,
        "home": order.new_home,
    }
