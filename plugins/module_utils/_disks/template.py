# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Template images: what marks them, whether they are as they were made, and what is based on them.

The mark is the extended attribute `user.drover.image`. A linked clone names its template in its own header, so that
is the proof of what is based on a template. The folders in which clones were made stand in `user.drover.clones` of the
template: who looks for clones looks there.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import Failed, Invalid, Refused
from .._files import free_space
from .._run import run

MARK = "user.drover.image"
FOLDERS = "user.drover.clones"
# https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst: magic, version, backing file offset, size.
HEADER = struct.Struct(">4sIQI")
LONGEST_NAME = 1023
# An image of a stranger may be made to take all memory or time of what reads it (bytes, seconds).
LIMITED = ("prlimit", f"--as={2**30}", "--cpu=30")
COPY_SECONDS_PER_GIB = 150


class Template(NamedTuple):
    """What the mark of a template says.

    `size` is the disk's in bytes, `checksum` what its source had to have (sha256:HEX), `digest` the SHA-256 of the file
    as it was made, `length` and `mtime` (bytes, nanoseconds) are that file's.
    """

    format: str
    size: int
    checksum: str
    digest: str
    length: int
    mtime: int


def read(path: str) -> Template | None:
    """The mark of a file; None for one that is no template of ours, or is not there."""
    try:
        said = json.loads(os.getxattr(path, MARK))
        return Template(**{name: said[name] for name in Template._fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark(path: str, template: Template) -> None:
    """Write the mark. Raises Failed: a template without a mark would not be known for one."""
    try:
        os.setxattr(path, MARK, json.dumps(template._asdict(), sort_keys=True).encode())
    except OSError as error:
        raise Failed(
            f"{path} can't be marked as a template ({error.strerror}); keep templates on a file system with extended "
            "attributes, such as ext4 or XFS"
        ) from None


def is_as_made(path: str, template: Template) -> bool:
    """Whether the file's length and time are still those of the mark."""
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns) == (template.length, template.mtime)


def backing_of(path: str) -> str | None:
    """What a qcow2 file is based on, as its own header says; None for any other file."""
    try:
        with open(path, "rb") as stream:
            magic, _version, offset, length = HEADER.unpack(stream.read(HEADER.size))
            if magic != b"QFI\xfb" or not offset or not 0 < length <= LONGEST_NAME:
                return None
            stream.seek(offset)
            name = os.fsdecode(stream.read(length))
    except (OSError, struct.error):
        return None
    return os.path.join(os.path.dirname(path), name) if name else None


def chain(path: str) -> list[str]:
    """The files below an image, the nearest first, links followed."""
    found: list[str] = []
    here: str | None = backing_of(path)
    while here and (real := os.path.realpath(here)) not in found:
        found.append(real)
        here = backing_of(real)
    return found


def _folders(path: str) -> list[str]:
    try:
        said = json.loads(os.getxattr(path, FOLDERS))
    except (OSError, ValueError):
        return []
    return [str(folder) for folder in said]


def clones(path: str) -> list[str]:
    """The files that are based on this one, in its own folder and in those where clones of it were made.

    Raises Refused when one of these folders is not there: it may be a file system that is not mounted.
    """
    real = os.path.realpath(path)
    found = []
    for folder in sorted({os.path.dirname(real), *_folders(real)}):
        try:
            entries = [entry.path for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            raise Refused(
                f"clones of {path} were made in {folder}, which is not there; mount it, or make the folder anew if "
                "what was in it is gone"
            ) from None
        found += [one for one in entries if (base := backing_of(one)) and os.path.realpath(base) == real]
    return sorted(found)


@contextmanager
def held(path: str, alone: bool) -> Iterator[None]:
    """Nobody replaces or removes the file meanwhile; `alone`: nobody makes a clone of it either. Raises Refused."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{path} is being cloned, replaced or removed just now; run this again after that") from None
        except OSError as error:
            raise Failed(f"{path} can't be locked: {error.strerror}") from None
        yield
    finally:
        os.close(descriptor)


def checked(options: Mapping[str, Any]) -> Template:
    """The template that a new disk starts as (`options["source"]`). Raises Invalid and Refused."""
    source, size = options["source"], options.get("size")
    if not Path(source).is_file():
        raise Invalid(f"there is no template {source} on this node; make it with module drover.kvm.image")
    found = read(source)
    if found is None:
        raise Refused(f"{source} is no template; make one of it with module drover.kvm.image")
    if not is_as_made(source, found):
        raise Refused(f"{source} has changed since it was made; run drover.kvm.image for it, and look who did that")
    if size and size < found.size:
        raise Refused(f"{options['path']}: {source} has {found.size} bytes, more than {size}")
    needs = space(source) if options.get("clone") == "full" else 0
    if needs > (free := free_space(Path(options["path"]).parent)):
        raise Refused(f"{options['path']}: a copy of {source} takes {needs >> 20} MiB, and {free >> 20} MiB are free")
    return found


def space(path: str) -> int:
    """The bytes that a file takes on its disk."""
    return Path(path).stat().st_blocks * 512


def seconds(size: int) -> float:
    """How long to wait for a copy of so many bytes."""
    return max(120, COPY_SECONDS_PER_GIB * size // 2**30)


def fill(options: Mapping[str, Any], part: str, size: int | None) -> None:
    """Make the file `part` as a clone of the template: linked, or a copy of its own. Raises Refused and Failed."""
    source = os.path.realpath(options["source"])
    with held(source, alone=False):
        found = checked(options)
        if options["clone"] == "linked":
            _remember(source, str(Path(part).resolve().parent))
            argv = ["create", "-q", "-f", "qcow2", "-F", found.format, "-b", source, part, str(size or found.size)]
            run(["qemu-img", *argv])
        else:
            argv = ["convert", "-q", "-t", "writeback", "-f", found.format, "-O", options["format"], source, part]
            run(["qemu-img", *argv], timeout=seconds(found.size))
            if size and size > found.size:
                run(["qemu-img", "resize", "-q", "-f", options["format"], part, str(size)])
    sync([part])


def _remember(source: str, folder: str) -> None:
    """Write down that there are clones in a folder, before the first is made."""
    known = _folders(source)
    if folder not in (*known, os.path.dirname(source)):
        try:
            os.setxattr(source, FOLDERS, json.dumps(sorted([*known, folder])).encode())
        except OSError as error:
            raise Failed(f"{source}: a new folder of clones can't be noted: {error.strerror}") from None


def sync(paths: Iterable[str]) -> None:
    """Have the disk keep the files, and folders."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flatten(path: str, size: int) -> None:
    """Make a qcow2 file that no VM has open its own base; a run that was killed can be run again."""
    run(["qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", path], timeout=seconds(size))
