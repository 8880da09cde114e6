# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A template comes into being: fetched and proved beside its place, named only when all of it is right."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Callable, NamedTuple

from .. import _download
from .._checksum import hash_of
from .._errors import Failed, Invalid, Refused
from .._run import run
from . import imported, template

MODE = 0o444  # root and libvirt can't write by mistake either: QEMU runs as another user


class Order(NamedTuple):
    """What shall be at `path`: the `source` with this `checksum` (ALGORITHM:HEX), as `format`; `timeout` in seconds."""

    path: str
    source: str
    checksum: str
    source_format: str
    format: str
    timeout: float


def parts(path: str) -> list[str]:
    """The files beside a template while it is made: what was fetched, and what it was converted to."""
    place = Path(path)
    return [str(place.with_name(f".{place.name}.{word}")) for word in ("download", "part")]


def left(path: str) -> list[str]:
    """What a run left that was killed."""
    return [part for part in parts(path) if Path(part).exists()]


def make(order: Order, check: Callable[[], object]) -> None:
    """Make it; one that is there is replaced, once `check` raises nothing. Raises Failed, Refused and Unreachable."""
    fetched, converted = parts(order.path)
    if not Path(order.path).parent.is_dir():
        raise Invalid(f"the folder {Path(order.path).parent} does not exist; make it, or mount what belongs there")
    for part in (fetched, converted):
        _let_go(part)
    with _alone(fetched) as stream:
        try:
            seen = _download.fetch(order.source, stream, order.checksum.partition(":")[0], order.timeout)
            if seen != order.checksum:
                raise Failed(f"{order.source} has the checksum {seen}, not {order.checksum}", seen=seen)
            stream.flush()
            size = imported.prove(fetched, order.source_format, order.source)
            made = fetched
            if order.format != order.source_format:
                made = converted
                words = ["-t", "writeback", "-f", order.source_format, "-O", order.format, fetched, converted]
                run(["qemu-img", "convert", "-q", *words], timeout=template.seconds(size))
            _finish(made, order, size)
            _place(made, order.path, check)
        finally:
            for part in (fetched, converted):
                Path(part).unlink(missing_ok=True)


def _let_go(part: str) -> None:
    """A run that was killed just after it had named the template has left a second name: who wrote there would write
    into the template, and into all clones of it.
    """
    with suppress(FileNotFoundError):
        if os.stat(part).st_nlink > 1:
            os.unlink(part)


@contextmanager
def _alone(path: str) -> Iterator[IO[bytes]]:
    """An empty file that no other run works on. Raises Refused and Failed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Failed(f"{path} can't be written: {error.strerror}") from None
    with os.fdopen(descriptor, "r+b") as stream:
        there = None
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(path).st_ino
        if there != os.fstat(descriptor).st_ino:
            raise Refused(f"another run makes this image just now ({path}); run this again when it is done")
        os.ftruncate(descriptor, 0)
        yield stream


def _finish(made: str, order: Order, size: int) -> None:
    """Have it on the disk, for reading only, and marked."""
    os.chmod(made, MODE)
    status = Path(made).stat()
    digest = hash_of(made)
    template.mark(
        made, template.Template(order.format, size, order.checksum, digest, status.st_size, status.st_mtime_ns)
    )
    template.sync([made])


def _place(made: str, path: str, check: Callable[[], object]) -> None:
    """Give it its name. Raises Refused for a file that appeared meanwhile, and what `check` raises."""
    if template.read(path):
        with template.held(path, alone=True):
            check()
            os.replace(made, path)
    else:
        try:
            # A link fails where a rename would replace.
            os.link(made, path)
        except FileExistsError:
            raise Refused(f"{path} appeared while it was being made; look who else uses this name") from None
    template.sync([str(Path(path).parent)])


def remove(path: str, check: Callable[[], object]) -> None:
    """Delete a template, once `check` raises nothing."""
    with template.held(path, alone=True):
        check()
        Path(path).unlink()
    template.sync([str(Path(path).parent)])


def renew(path: str) -> None:
    """Write the file's present time into its mark: its content is as it was made."""
    if found := template.read(path):
        status = Path(path).stat()
        template.mark(path, found._replace(length=status.st_size, mtime=status.st_mtime_ns))
