# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only place that starts processes: argument lists, C locale, a time limit for everything."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Callable

from ._errors import Failed, NotFound, TimedOut, Unreachable

# The kernel ends what this starts when who started it ends; prctl(2), PR_SET_PDEATHSIG.
TIED = ("setpriv", "--pdeathsig", "KILL")
# After so long beyond its time a child that nobody has ended ends by itself.
ORPHAN_SECONDS = 5.0
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}


class _Command(subprocess.Popen[str]):
    """A command in a session of its own, so that its time limit ends what it started too.

    AnsibleModule's run_command has no time limit.
    """

    def __init__(self, argv: Sequence[str], reads: bool, tied: bool) -> None:
        super().__init__(
            [*(TIED if tied else ()), *argv],
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )

    def talk(self, stdin: str | None, timeout: float) -> tuple[str, str]:
        """Standard output and error. Raises TimeoutExpired; nothing of the command is left running then."""
        try:
            return self.communicate(stdin, timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise


def run(
    argv: Sequence[str], stdin: str | None = None, timeout: float = 60, ok: Sequence[int] = (0,), tied: bool = False
) -> str:
    """Standard output of a command. `timeout` is in seconds; secrets go through `stdin`, never through `argv`.

    A `tied` command does not outlive this process, should that be killed: it holds something that the next run needs.
    Raises NotFound (no such program), TimedOut, or Failed with the command's own words.
    """
    try:
        with _Command(argv, stdin is not None, tied) as done:
            out, err = done.talk(stdin, timeout)
    except FileNotFoundError:
        raise NotFound(f"the program {argv[0]} is not installed on this machine", command=list(argv)) from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{argv[0]} gave no answer within {timeout:g} s", command=list(argv)) from None
    if done.returncode not in ok:
        words = (err.strip() or out.strip())[-2000:]
        raise Failed(f"{argv[0]} failed: {words}", command=list(argv), rc=done.returncode, stderr=words)
    return out


def run_json(argv: Sequence[str], stdin: str | None = None, timeout: float = 60) -> Any:
    """The JSON that a command prints. Raises as `run` does, and Failed when it is not JSON."""
    text = run(argv, stdin, timeout)
    try:
        return json.loads(text or "null")
    except ValueError:
        raise Failed(f"{argv[0]} did not print JSON: {text[:200]!r}", command=list(argv)) from None


def run_list(argv: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON list that `ip` or `bridge` prints, without the empty objects of what it does not show. As `run_json`."""
    return [item for item in run_json(argv) or [] if item]


def bounded(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Call all functions at once, each in a child process; plain data per name, or an Unreachable in its place.

    A library call that hangs inside C code (libvirt towards a frozen daemon) can't be interrupted by a thread, so
    each runs in a child that is killed when the `seconds` are over. What a call raises comes back as Unreachable too.
    """
    children: dict[int, tuple[str, int, list[bytes]]] = {}
    answers: dict[str, Any] = {}
    for name, call in calls.items():
        reader, pid = _child(call, seconds)
        children[reader] = (name, pid, [])
    end = time.monotonic() + seconds
    while children and time.monotonic() < end:
        ready, _w, _x = select.select(list(children), [], [], max(0.0, end - time.monotonic()))
        for reader in ready:
            data = os.read(reader, 1 << 20)
            children[reader][2].append(data)
            # A child that another thread forked meanwhile may hold this pipe open: an answer is whole with its line.
            if not data or data.endswith(b"\n"):
                name, pid, chunks = children.pop(reader)
                answers[name] = _answer(name, b"".join(chunks))
                _reap(reader, pid)
    for reader, (name, pid, _chunks) in children.items():
        answers[name] = Unreachable(f"{name} gave no answer within {seconds:g} s", node=name)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        _reap(reader, pid)
    return {name: answers[name] for name in calls}


def _child(call: Callable[[], Any], seconds: float) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    # Nothing of the parent (locks, at-exit handlers, buffered output) may run here: leave by _exit on every path. Nor
    # are its objects finalized here: an open connection of libvirt would be closed for the parent, on its own socket.
    gc.disable()
    try:
        # When the parent is killed nobody ends this one: its time does. And while it had the end that is read itself,
        # an answer of more than a pipe holds (64 KiB) would wait for ever for somebody to read it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
        os.close(reader)
        # A session of its own: what it starts (an ssh) ends with it, and can't ask at the user's terminal.
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            text = json.dumps({"value": call()})
        except Exception as error:  # the parent must hear of anything that went wrong
            text = json.dumps({"error": str(error)})
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
    finally:
        os._exit(0)


def _answer(name: str, data: bytes) -> Any:
    try:
        answer = json.loads(data)
    except ValueError:
        return Unreachable(f"{name}: the probe ended without an answer", node=name)
    if "error" in answer:
        return Unreachable(f"{name}: {answer['error']}", node=name)
    return answer["value"]


def _reap(reader: int, pid: int) -> None:
    os.close(reader)
    os.waitpid(pid, 0)
