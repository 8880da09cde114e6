# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes, locks, waits: the only place that starts programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class LabError(Exception):
    """The lab could not do what was asked; the message says what was seen."""


def say(text: str) -> None:
    """A line of progress for people; standard output stays for the result."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    *,
    feed: str = "",
    check: bool = True,
    timeout: float = 60,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. LabError when it fails (unless ``check`` is off) or takes over ``timeout`` seconds."""
    try:
        done = subprocess.run(
            list(argv),
            input=feed,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise LabError(f"program {argv[0]!r} is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: no end within {timeout:g} s") from error
    if check and done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: " + "\n".join(lines[-15:]))
    return done


def hand_over(argv: Sequence[str]) -> int:
    """Run a program on our own terminal; returns its exit status."""
    return subprocess.run(list(argv), check=False).returncode


def spawn(argv: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
    """Start a program that outlives us, its output in ``log``."""
    with log.open("ab") as output:
        subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            cwd="/",
        )


def wait_for(what: str, probe: Callable[[], tuple[bool, str]], seconds: float, step: float = 0.1) -> None:
    """Wait until ``probe`` says done; LabError with what it saw last after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        done, seen = probe()
        if done:
            return
        if time.monotonic() > end:
            raise LabError(f"{what}: not reached within {seconds:g} s; seen last: {seen}")
        time.sleep(step)


@contextlib.contextmanager
def lock(path: Path, seconds: float) -> Iterator[None]:
    """Hold an exclusive lock file; it is free as soon as its holder dies. LabError after ``seconds``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # ``down`` removes the file while it holds it: make sure that what we hold is what others see.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                break
        except BlockingIOError:
            pass
        os.close(handle)
        if time.monotonic() > end:
            raise LabError(f"another run holds {path} for over {seconds:g} s")
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(handle)
