# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the helper as a transient unit, adopt one that runs already, and wait for its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import (
    _checksum,
    _errors,
    _fields,
    _files,
    _hypervisor,
    _identity,
    _leases,
    _libvirt,
    _lvm,
    _peers,
    _program,
    _run,
    _xml,
)
from .._disks import file, imported, kind, template
from .._domain import metadata, state_files
from .._errors import TimedOut
from . import (
    copies,
    ends,
    firmware,
    foreign,
    helper,
    live,
    locks,
    offline,
    order,
    pace,
    recovery,
    rules,
    stream,
    volumes,
)
from .order import DIRECTORY, Order, read, save, state_path, unit_name

PACKAGE = "drover_migration"
PARTS = {
    "": {
        "_checksum": _checksum,
        "_errors": _errors,
        "_fields": _fields,
        "_files": _files,
        "_hypervisor": _hypervisor,
        "_identity": _identity,
        "_leases": _leases,
        "_libvirt": _libvirt,
        "_lvm": _lvm,
        "_peers": _peers,
        "_run": _run,
        "_xml": _xml,
    },
    "_disks/": {"file": file, "imported": imported, "kind": kind, "template": template},
    "_domain/": {"metadata": metadata, "state_files": state_files},
    "_migration/": {
        "copies": copies,
        "ends": ends,
        "firmware": firmware,
        "foreign": foreign,
        "helper": helper,
        "live": live,
        "locks": locks,
        "offline": offline,
        "order": order,
        "pace": pace,
        "recovery": recovery,
        "rules": rules,
        "stream": stream,
        "volumes": volumes,
    },
}
POLL = 0.5


def program() -> bytes:
    """The helper as a zip file that Python runs: the sources of the few modules that it is made of."""
    return _program.archive(PACKAGE, PARTS, "_migration.helper")


def install(directory: Path = DIRECTORY) -> Path:
    """Write the program where only root can read and change it."""
    return _program.install("migrate", program(), directory)


@dataclass
class Unit:
    """The helper of one VM on this node."""

    uuid: str
    directory: Path = DIRECTORY
    sleep: Callable[[float], None] = time.sleep

    def running(self) -> bool:
        """Whether a helper works on the VM now."""
        command = ["systemctl", "show", "--property=ActiveState", "--value", f"{unit_name(self.uuid)}.service"]
        return _run.run(command).strip() in ("active", "activating", "deactivating", "reloading")

    def state(self) -> dict[str, Any]:
        """What the helper told last; empty when none ever did."""
        return read(state_path(self.uuid, self.directory)) or {}

    def start(self, wanted: Order) -> None:
        """Start a helper. Raises Failed when one holds the lock already."""
        path = save(wanted, self.directory)
        command = ["systemd-run", "--collect", "--quiet", f"--unit={unit_name(wanted.uuid)}"]
        command += [f"--description=drover: {wanted.kind} {wanted.vm}", "--property=PrivateTmp=no"]
        _run.run([*command, "/usr/bin/python3", "-B", str(install(self.directory)), str(path)], timeout=30)

    def wait(self, wanted_id: str | None, seconds: float = 7200) -> dict[str, Any]:
        """The result of the helper that runs now. A helper that was killed gives `ok: false` and no `where`.

        Raises TimedOut when it still works after so many `seconds`; it goes on all the same.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.running()
            seen = self.state()
            mine = wanted_id is None or seen.get("id") == wanted_id
            if mine and seen.get("result") is not None and not alive:
                return dict(seen["result"])
            if not alive:
                fate = "was killed" if mine and seen else "did not start"
                words = f"its helper {fate} (journalctl -u {unit_name(self.uuid)})"
                return {"ok": False, "error": words, "where": "unknown", "complete": False, "actions": []}
            self.sleep(POLL)
        raise TimedOut(f"{unit_name(self.uuid)} still works after {seconds:g} s: {self.state().get('phase')}")
