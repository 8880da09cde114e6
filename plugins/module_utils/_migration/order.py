# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a helper is asked to do, and what it tells of its work: two small files under /run/drover."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from .._errors import NotFound
from .._files import replace_file

DIRECTORY = Path("/run/drover")
UNIT = "drover-migrate-{uuid}"
# A helper whose migration goes on tells of it each second.
SILENT = 30.0


class End(Protocol):
    """What every move needs of both nodes."""

    def state(self, uuid: str) -> tuple[str, str] | None: ...
    def marker(self, uuid: str) -> dict[str, Any] | None: ...
    def set_marker(self, uuid: str, marker: dict[str, Any] | None) -> None: ...
    def set_autostart(self, uuid: str, on: bool) -> None: ...
    def home(self, uuid: str) -> str | None: ...
    def set_home(self, uuid: str, home: str) -> None: ...
    def rehome(self, uuid: str, home: str) -> None: ...


@dataclass(frozen=True)
class Order:
    """One helper's task. Times are in seconds, `bandwidth` is in bytes per second (None: no limit).

    `together` is what all live migrations that leave the node may take at once, in the same unit.
    `kind` is live, offline or recover. `nodes` are the libvirt URIs of all nodes by name, `stream` is the URI that
    QEMU sends the memory to. `early` resumes on the death of the source's QEMU instead of waiting for libvirt's call
    to return. `keep` is the node that a person chose between two copies, `fenced` are nodes that are certainly off.
    `home` says what to remember as the VM's home: keep, source or destination. `copies` are the disks that only the
    source has and that go along: target, path, format, size. `auto_converge` slows a VM down that changes its memory
    too fast, `max_downtime` (ms) is what the downtime may grow to, `max_pause` how long it may stand still when its
    time is over (0: abort). `connections` is the number of connections that the memory is sent over (None: one),
    `compression` QEMU's way to make it smaller (None: as it is). `devices` are its block devices: path, identity, and
    the `lock` (VG/LV) of one in a shared group. `state` are the files of UEFI and of a TPM that the source would keep
    when the VM has left; one that is off takes them along.
    """

    id: str
    kind: str
    vm: str
    uuid: str
    source: str
    target: str
    here: str
    nodes: dict[str, str] = field(default_factory=dict)
    stream: str = ""
    bandwidth: int | None = None
    together: int | None = None
    timeout: float = 600
    stall_timeout: float = 60
    home: str = "keep"
    early: bool = True
    auto_converge: bool = True
    max_downtime: int = 1000
    max_pause: float = 0
    connections: int | None = None
    compression: str | None = None
    keep: str | None = None
    fenced: list[str] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    state: list[str] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """The destination's libvirt URI."""
        return self.nodes[self.target]

    @property
    def new_home(self) -> str | None:
        """The node that is the VM's home when it is there; None when that does not change by the move."""
        return self.target if self.home == "destination" else None


def unit_name(uuid: str) -> str:
    """The transient unit that is the VM's lock on this node."""
    return UNIT.format(uuid=uuid)


def order_path(order: Order, directory: Path = DIRECTORY) -> Path:
    """Where the helper finds its order."""
    return directory / f"order-{order.uuid}-{order.id}.json"


def state_path(uuid: str, directory: Path = DIRECTORY) -> Path:
    """Where the helper tells its state."""
    return directory / f"migrate-{uuid}.json"


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the file as a whole, so that a reader never sees half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, json.dumps(data).encode())


def read(path: Path) -> dict[str, Any] | None:
    """What the file holds, or None when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def save(order: Order, directory: Path = DIRECTORY) -> Path:
    """Write the order for the helper."""
    path = order_path(order, directory)
    write(path, asdict(order))
    return path


def load(path: Path) -> Order:
    """The order in a file. Raises NotFound."""
    data = read(path)
    if data is None:
        raise NotFound(f"there is no order in {path}")
    known = {option.name for option in fields(Order)}
    return Order(**{key: value for key, value in data.items() if key in known})


def under_way(directory: Path = DIRECTORY) -> int:
    """How many live migrations leave this node, by what their helpers told within the last seconds; at least one."""
    states = [read(path) or {} for path in directory.glob("migrate-*.json")]
    live = [state for state in states if state.get("kind") == "live" and state.get("result") is None]
    # A helper that was killed told nothing of its end.
    return max(1, len([state for state in live if time.time() - state.get("updated", 0) < SILENT]))


def forget_others(path: Path, order: Order) -> None:
    """Remove what helpers of this VM left that were killed; for the one that has the VM's lock and this order."""
    for other in path.parent.glob(f"order-{order.uuid}-*.json"):
        if other != path:
            other.unlink(missing_ok=True)


class Journal:
    """The helper's state file: phase, progress, and at the end the result. Also a line in the journal per phase."""

    def __init__(self, order: Order, directory: Path = DIRECTORY) -> None:
        self.path = state_path(order.uuid, directory)
        before = read(self.path) or {}
        # After the helper has replaced itself for the recovery the file goes on where it was.
        self.data: dict[str, Any] = before if before.get("id") == order.id else self._fresh(order)

    @staticmethod
    def _fresh(order: Order) -> dict[str, Any]:
        names = {"id": order.id, "vm": order.vm, "uuid": order.uuid, "from": order.source, "to": order.target}
        return {**names, "kind": order.kind, "pid": os.getpid(), "started": time.time(), "phase": "", "result": None}

    def phase(self, name: str, **more: Any) -> None:
        """A new phase; `more` is kept in the file."""
        self.say(" ".join([name, *(f"{key}={value}" for key, value in more.items())]))
        self.update(phase=name, **more)

    def update(self, **more: Any) -> None:
        """Note something without a line in the journal (progress)."""
        self.data.update(more, updated=time.time())
        write(self.path, self.data)

    def finish(self, **result: Any) -> None:
        """The last words of the helper."""
        self.say(f"ended: {json.dumps(result)}")
        self.update(phase="ended", ended=time.time(), result=result)

    def say(self, words: str) -> None:
        """A line in the unit's journal."""
        sys.stdout.write(f"{self.data['vm']}: {words}\n")
        sys.stdout.flush()
