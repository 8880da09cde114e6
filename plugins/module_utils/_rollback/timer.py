# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arm a timer of systemd that starts a program with the state as it was, unless the change is confirmed before.

The confirmation renames the file with that state; it comes from the controller, over a connection of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from .. import _files, _program, _run
from .._errors import Failed, Invalid, NotFound, Refused

BOOTED = Path("/run/systemd/system")
LATE = 60  # seconds after which a timer that has not come never will
PATIENCE = "600"  # seconds in which the program tries again when what it talks to does not answer


@dataclass(frozen=True)
class Undo:
    """What can be taken back: `kind` and `name` name the files, `what` is the thing in sentences.

    The program is made of `parts` (see `_program.archive`); it calls the main of `start`. `whole` says that a change
    that failed (Failed) was not made at all.
    """

    kind: str
    name: str
    what: str
    parts: _program.Parts
    start: str
    whole: bool = True
    directory: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the program and the states are."""
        return self.directory or _program.DIRECTORY

    def check(self, seconds: int | None, wait: int) -> None:
        """Refuse a change that can't be protected, and any change while another one waits for its confirmation."""
        for file in self.folder.glob(f"{self.kind}-{self.name}@*.json"):
            left = json.loads(file.read_text(encoding="utf-8"))["until"] - time.time()
            if left > -LATE:
                raise Refused(
                    f"the last change of {self.what} waits for its confirmation; without, it is taken back in "
                    f"{max(0, left):.0f} s; try again then",
                    file=str(file),
                )
        if seconds is None:
            return
        if seconds <= wait:
            raise Invalid(f"{self.what}: confirm_timeout must be longer than wait_lacp, {wait} s")
        if not BOOTED.is_dir() or shutil.which("systemd-run") is None:
            raise NotFound(
                f"{self.what}: confirm_timeout needs systemd on the machine, for the timer that takes the change back"
            )

    @contextmanager
    def protected(self, seconds: int | None, save: Callable[[], Mapping[str, Any]]) -> Iterator[Any]:
        """Arm the timer around a change; gives what the confirmation needs to know, None without `seconds`.

        `save` gives the state to come back to, as plain data. A change that failed and is not made in part leaves no
        timer behind. Where it is not known whether it was made, one stays.
        """
        if seconds is None:
            yield None
            return
        armed = self._arm(seconds, save())
        try:
            yield armed
        except Failed:
            if not self.whole:
                raise
            with suppress(FileNotFoundError):
                Path(armed["file"]).unlink()
            _run.run(["systemctl", "stop", f"{armed['unit']}.timer"], timeout=30)
            armed.clear()
            raise

    def _arm(self, seconds: int, state: Mapping[str, Any]) -> dict[str, Any]:
        program = _program.archive("drover_restore", self.parts, self.start)
        path = _program.install(f"{self.kind}-restore", program, self.folder)
        for old in self.folder.glob(f"{self.kind}-{self.name}@*.confirmed"):
            old.unlink()
        number = uuid.uuid4().hex[:16]
        file, unit = self.folder / f"{self.kind}-{self.name}@{number}.json", f"drover-{self.kind}-restore-{number}"
        _files.replace_file(file, json.dumps({**state, "until": time.time() + seconds}).encode())
        command = ["systemd-run", "--collect", "--quiet", f"--unit={unit}", f"--on-active={seconds}s"]
        command += ["--timer-property=AccuracySec=100ms", f"--description=drover: take back the change of {self.what}"]
        try:
            _run.run([*command, sys.executable, "-B", str(path), str(file), PATIENCE], timeout=30)
        except BaseException:
            file.unlink()
            raise
        return {"file": str(file), "unit": unit, "seconds": seconds}
