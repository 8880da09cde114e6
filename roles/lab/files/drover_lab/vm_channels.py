# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two lines into a VM node that need no network: QEMU's monitor (QMP) and the guest agent."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .run import LabError

STREAMS = ("out-data", "err-data")


class Channel:
    """JSON commands and answers, a line each, over a socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._end = time.monotonic() + seconds
        self._rest = b""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise LabError(f"{path}: {error.strerror}") from error

    def close(self) -> None:
        """Let the next one talk: each of these lines serves one at a time."""
        self._socket.close()

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            self._socket.settimeout(max(0.01, self._end - time.monotonic()))
            try:
                more = self._socket.recv(65536)
            except OSError as error:
                raise LabError(f"{self.path}: no answer in time") from error
            if not more:
                raise LabError(f"{self.path}: closed")
            self._rest += more
        line, _newline, self._rest = self._rest.partition(b"\n")
        return line

    def send(self, data: bytes) -> None:
        """Send as it is."""
        self._socket.settimeout(max(0.01, self._end - time.monotonic()))
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LabError(f"{self.path}: {error}") from error

    def receive(self) -> dict[str, Any]:
        """The next line."""
        # The agent begins its first answer with this byte, which ends whatever was half said before.
        found: dict[str, Any] = json.loads(self._line().rpartition(b"\xff")[2])
        return found

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The value that a command returns; LabError with what was said instead. Events are passed over."""
        words: dict[str, Any] = {"execute": command}
        if arguments:
            words["arguments"] = arguments
        self.send(json.dumps(words).encode() + b"\n")
        while True:
            answer = self.receive()
            if "error" in answer:
                raise LabError(f"{self.path}: {command}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]


@contextlib.contextmanager
def monitor(path: Path, seconds: float = 30) -> Iterator[Channel]:
    """QEMU's monitor, ready for commands."""
    with contextlib.closing(Channel(path, seconds)) as channel:
        channel.receive()
        channel.ask("qmp_capabilities")
        yield channel


@contextlib.contextmanager
def agent(path: Path, seconds: float = 60) -> Iterator[Channel]:
    """The guest agent, with nothing left over from an earlier talk."""
    with contextlib.closing(Channel(path, seconds)) as channel:
        token = secrets.randbelow(1 << 31)
        words = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        channel.send(b"\xff" + json.dumps(words).encode() + b"\n")
        while channel.receive().get("return") != token:
            continue
        yield channel


def execute(path: Path, script: str, *words: str, feed: bytes = b"", seconds: float = 60) -> str:
    """Run a shell script as root in the node through its agent; returns its output, LabError when it fails."""
    arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-ec", script, "sh", *words], "capture-output": True}
    if feed:
        arguments["input-data"] = base64.b64encode(feed).decode("ascii")
    end = time.monotonic() + seconds
    with agent(path, seconds) as channel:
        pid = channel.ask("guest-exec", arguments)["pid"]
        while not (done := channel.ask("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > end:
                raise LabError(f"{path}: a command did not end within {seconds:g} s")
            time.sleep(0.02)
    output, errors = (base64.b64decode(done.get(key, "")).decode("utf-8", "replace") for key in STREAMS)
    if done.get("exitcode") != 0:
        said = (errors or output).strip()[-500:]
        raise LabError(f"a command in the node: exit status {done.get('exitcode')}: {said}")
    return output
