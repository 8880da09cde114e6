# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that others read while we write them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ._errors import Failed, NotFound, TimedOut

LOCK_SECONDS = 60


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write the file as a whole: a reader, or a crash, sees the old one or the new one, never half of it.

    Several writers don't disturb each other. The file can be read by root only until it is complete. Raises Failed.
    """
    try:
        descriptor, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(new, mode)
            os.replace(new, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
    except OSError as error:
        raise Failed(f"{path} could not be written: {error.strerror}", path=str(path)) from None


def raw(path: Path) -> bytes:
    """What a file of the kernel or of a daemon holds; nothing when it can't be read: its owner may just go."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def told(path: Path) -> str:
    """The same as text, without the blanks around it."""
    return raw(path).decode("utf-8", "replace").strip()


def free_space(folder: str | Path) -> int:
    """The bytes that a file may still take there, as statvfs(3) has them for everybody."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def locked(directory: Path, hint: str, file: str = "") -> Iterator[None]:
    """One run at a time works on what the directory describes; `hint` asks for what is missing when it is not there.

    With `file` a file of that name in it is made and locked, as NFS locks files only between machines, and only those
    that are opened for writing. Raises NotFound, Failed, or TimedOut when another run goes on.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if file else os.O_RDONLY | os.O_DIRECTORY
    try:
        descriptor = os.open(directory / file if file else directory, flags, 0o600)
    except OSError as error:
        raise NotFound(f"{directory}: {error.strerror}; {hint}") from None
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimedOut(
                    f"another run has held {directory} for {LOCK_SECONDS} s; wait for its end, and run this again"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            raise Failed(f"{directory} can't be locked: {error.strerror}. Has its NFS server no locks?") from None
