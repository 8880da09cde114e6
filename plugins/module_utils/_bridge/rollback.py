# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that takes itself back unless somebody confirms it in time.

A timer of systemd starts the program `restore` with the rows as they were. The confirmation renames the file with these
rows; it comes from the controller, over a connection of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import _errors, _fields, _files, _ovs, _program, _run
from .._errors import Failed, Invalid, NotFound, Refused
from . import checks, options, queues, restore, rows

BOOTED = Path("/run/systemd/system")
PACKAGE = "drover_restore"
LATE = 60  # seconds after which a timer that has not come never will
PATIENCE = "600"  # seconds in which the program tries again when the database does not answer
PARTS = {
    "": {"_errors": _errors, "_fields": _fields, "_ovs": _ovs},
    "_bridge/": {"checks": checks, "options": options, "queues": queues, "restore": restore, "rows": rows},
}


def check(name: str, seconds: int | None, wait: int, directory: Path | None = None) -> None:
    """Refuse a change that can't be protected, and any change while another one waits for its confirmation."""
    for file in (directory or _program.DIRECTORY).glob(f"ovs-{name}@*.json"):
        left = json.loads(file.read_text(encoding="utf-8"))["until"] - time.time()
        if left > -LATE:
            raise Refused(
                f"the last change of bridge {name} waits for its confirmation; without, it is taken back in "
                f"{max(0, left):.0f} s; try again then",
                file=str(file),
            )
    if seconds is None:
        return
    if seconds <= wait:
        raise Invalid(f"bridge {name}: confirm_timeout must be longer than wait_lacp, {wait} s")
    if not BOOTED.is_dir() or shutil.which("systemd-run") is None:
        raise NotFound(
            f"bridge {name}: confirm_timeout needs systemd on the machine, for the timer that takes the change back"
        )


@contextmanager
def protected(client: _ovs.Ovs, name: str, seconds: int | None, directory: Path | None = None) -> Iterator[Any]:
    """Arm the timer around a change; gives what the confirmation needs to know, None without `seconds`.

    A change that the database refused leaves no timer behind. Where it is not known whether it was made, one stays.
    """
    if seconds is None:
        yield None
        return
    armed = _arm(client, name, seconds, directory or _program.DIRECTORY)
    try:
        yield armed
    except Failed:
        with suppress(FileNotFoundError):
            Path(armed["file"]).unlink()
        _run.run(["systemctl", "stop", f"{armed['unit']}.timer"], timeout=30)
        armed.clear()
        raise


def _arm(client: _ovs.Ovs, name: str, seconds: int, directory: Path) -> dict[str, Any]:
    program = _program.install("ovs-restore", _program.archive(PACKAGE, PARTS, "_bridge.restore"), directory)
    for old in directory.glob(f"ovs-{name}@*.confirmed"):
        old.unlink()
    number = uuid.uuid4().hex[:16]
    file, unit = directory / f"ovs-{name}@{number}.json", f"drover-ovs-restore-{number}"
    saved = {**restore.save(client, name), "until": time.time() + seconds}
    _files.replace_file(file, json.dumps(saved).encode())
    command = ["systemd-run", "--collect", "--quiet", f"--unit={unit}", f"--on-active={seconds}s"]
    command += ["--timer-property=AccuracySec=100ms", f"--description=drover: take back the change of bridge {name}"]
    try:
        _run.run([*command, sys.executable, "-B", str(program), str(file), PATIENCE], timeout=30)
    except BaseException:
        file.unlink()
        raise
    return {"file": str(file), "unit": unit, "seconds": seconds}
