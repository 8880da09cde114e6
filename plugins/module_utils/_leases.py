# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The leases of VMs: one file each, in a directory that all nodes share; virtlockd locks it while the VM runs.

The file of a VM stays one and the same: a new one of its name would be a second lease, beside the one that somebody
holds. A file server may hang, so all that touches the directory happens in a child process with a time limit.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import Failed, Refused, Unreachable
from ._run import bounded

# Written by role hypervisor; what has another one, or none, is not the directory that the nodes share.
MARK = ".drover-leases"
SECONDS = 10.0
HERE, ELSEWHERE = "this node", "another node"
# struct flock of 64-bit Linux: type, whence, start, length, process. virtlockd locks the first byte.
FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True)
class Leases:
    """The lease directory of this node, and the id in its mark; without a directory there are no leases."""

    directory: str = ""
    id: str = ""

    def path(self, uuid: str) -> str | None:
        """The file of a VM's lease; None where there are no leases."""
        return f"{self.directory}/{uuid}" if self.directory else None

    def holder(self, uuid: str) -> str | None:
        """Who holds the VM's lease: HERE, ELSEWHERE, or None. Raises Unreachable."""
        return self.holders([uuid])[uuid]

    def holders(self, uuids: Iterable[str]) -> dict[str, str | None]:
        """The same for many VMs."""
        paths = {uuid: Path(self.directory, uuid) for uuid in uuids}
        if not self.directory:
            return dict.fromkeys(paths)
        answer: dict[str, str | None] = self._ask(lambda: {uuid: _holder(path) for uuid, path in paths.items()})
        return answer

    def make(self, uuid: str) -> None:
        """See to it that the file is there; nothing where there are no leases. Raises Unreachable."""
        if self.directory:
            self._ask(lambda: _make(Path(self.directory, uuid)))

    def remove(self, uuid: str) -> None:
        """Delete the file unless somebody holds the lease; fine when it is gone. Raises Unreachable."""
        if self.directory:
            self._ask(lambda: _remove(Path(self.directory, uuid)))

    def _ask(self, call: Callable[[], Any]) -> Any:
        def checked() -> Any:
            self._check()
            return call()

        name = f"the lease directory {self.directory}"
        answer = bounded({name: checked}, SECONDS)[name]
        if isinstance(answer, Unreachable):
            raise answer
        return answer

    def _check(self) -> None:
        mark = Path(self.directory, MARK)
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))["id"]
        except FileNotFoundError:
            raise Refused(f"{mark} is not there; is it mounted?") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failed(f"{mark} can't be read: {error!r}") from None
        if found != self.id:
            raise Refused(f"{mark} is that of another directory; apply role drover.kvm.hypervisor to all nodes")


def _holder(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _whence, _start, _length, process = FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    # The kernel names a process of its own only, so not one of another node.
    return None if kind == fcntl.F_UNLCK else HERE if process > 0 else ELSEWHERE


def _make(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def _remove(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        path.unlink()
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
