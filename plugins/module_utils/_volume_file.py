# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file behind a volume: where it may lie, our mark on it, sparse copies. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._errors import Failed, Invalid, NotFound, Refused
from ._fields import check_iqn
from ._initiator import parse_portal

MIB = 2**20
MARK = "user.drover.volume"
PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+", re.ASCII)
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}", re.ASCII)
SECRET = re.compile(r"[A-Za-z0-9._:@+/,-]{12,16}", re.ASCII)
SERIAL = re.compile(r"[0-9a-f]{8,31}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "usr")
COPY_BYTES = 16 * MIB
# A file that shares the blocks of another one, which is copied as it is at one moment; ioctl_ficlone(2).
FICLONE = 0x40049409


def check_path(value: str) -> str:
    """An absolute path without the characters that tgt, QEMU or a shell take for something else."""
    if not PATH.fullmatch(value) or ".." in value or len(value) > 200:
        raise ValueError(
            f"{value!r} is not a path that all tools read alike: absolute, at most 200 letters, digits, dots, hyphens "
            "and underscores, no two dots in a row, no part that begins with a dot"
        )
    return value


def check_directory(value: str) -> str:
    """A directory that may hold images: not one of the operating system's own."""
    check_path(value)
    if os.path.realpath(value).split("/")[1] in ("", *SYSTEM):
        raise ValueError(f"{value} belongs to the operating system; use one such as /srv/drover")
    return value


def check_initiators(change: dict[str, list[str]]) -> dict[str, list[str]]:
    """IQNs, addresses and networks in the form in which tgt compares them."""
    return {key: [_initiator(item) for item in items] for key, items in change.items()}


def _initiator(value: str) -> str:
    if value == "ALL":
        return value
    if value.startswith("iqn."):
        return check_iqn(value)
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(f"{value!r} is neither an IQN, an address, a network such as 10.231.5.0/24, nor ALL") from None
    if network.prefixlen == 0:
        raise ValueError(f"{value} lets everybody in; write ALL if that is meant")
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def check_user(value: str) -> str:
    """A CHAP user name; empty means no CHAP."""
    if value and not USER.fullmatch(value):
        raise ValueError(f"{value!r} is not a CHAP user: 1 to 63 letters, digits and . _ : @ -")
    return value


def check_secret(value: str) -> str:
    """A CHAP secret; the message does not repeat it."""
    if not SECRET.fullmatch(value):
        raise ValueError(
            "a CHAP secret has 12 to 16 characters (most initiators take no others): "
            "letters, digits and . _ : @ + / , -"
        )
    return value


def check_serial(value: str) -> str:
    """Hexadecimal digits: the binary device id (NAA) is made of them, and others would make equal ids."""
    if not SERIAL.fullmatch(value.lower()):
        raise ValueError(f"{value!r} is not a serial: 8 to 31 hexadecimal digits, or a UUID")
    return value.lower()


def check_portals(change: dict[str, list[str]]) -> dict[str, list[str]]:
    """Addresses with ports, in the form in which they are compared."""
    return {key: [str(parse_portal(item)) for item in items] for key, items in change.items()}


def check_uuid(value: str) -> str:
    """A UUID in its usual form."""
    return str(uuid.UUID(value))


def check_size(value: int) -> int:
    """Whole mebibytes: tgt tells sizes rounded, and so each change of a size can be seen."""
    if value < MIB or value % MIB:
        raise ValueError(f"{value} bytes are not a size of a volume; write whole MiB, at least one")
    return value


def inside(path: str, directory: str) -> str:
    """The path, proved to be a plain file (or none) inside the directory, links followed. Raises Refused."""
    real, allowed = Path(path).parent.resolve() / Path(path).name, Path(directory).resolve()
    if allowed not in real.parents:
        raise Refused(f"{path} is {real}, which is not inside {directory}")
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise Refused(f"{path} is not a plain file; links, devices and directories are not used as volumes")
    return path


def look(path: str) -> dict[str, Any] | None:
    """Size in bytes and our mark (None when there is none) of a file; None when there is no file."""
    try:
        size = Path(path).stat().st_size
    except FileNotFoundError:
        return None
    try:
        mark = json.loads(os.getxattr(path, MARK))
    except (OSError, ValueError):
        mark = None
    return {"size": size, "mark": mark}


def source_size(source: str) -> int:
    """The size of a raw image, in bytes. Raises NotFound or Refused."""
    try:
        with Path(source).open("rb") as stream:
            if stream.read(4) == b"QFI\xfb":
                raise Refused(f"{source} is a qcow2 image; make it raw first: qemu-img convert -O raw")
            return os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise NotFound(f"the image {source} can't be read: {error.strerror}", source=source) from None


def new_size(name: str, params: Mapping[str, Any]) -> int:
    """The size of a new volume in bytes: what is asked for, or the source's, in whole MiB. Raises Invalid, Refused."""
    source, asked = params["source"], params["size"]
    if source is None:
        if asked is None:
            raise Invalid(f"{name} is a new volume: size is missing")
        return int(asked)
    size = source_size(inside(source, params["source_directory"]))
    if asked is not None and asked < size:
        raise Refused(f"{source} has {size} bytes and does not fit into {name} with {asked} bytes", source=source)
    return int(asked or max(-(-size // MIB), 1) * MIB)


def origin_size(name: str, origin: str, path: str | None) -> int:
    """The bytes of volume `origin` in the file `path`, of which `name` is to be a copy. Raises NotFound, Refused."""
    found = look(path) if path else None
    if path is None or found is None or (found["mark"] or {}).get("name") != origin:
        raise NotFound(f"there is no volume {origin} of ours in a file here; {name} can't be made of it")
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as one, tempfile.TemporaryFile(dir=Path(path).parent) as two:
            fcntl.ioctl(two.fileno(), FICLONE, one.fileno())
    except OSError:
        raise Refused(
            f"the file system of {path} makes no copies that share blocks, as XFS and Btrfs do; take one of these, or "
            "store: lvm_thin"
        ) from None
    return int(found["size"])


def copy_size(name: str, origin: str, least: int, size: int | None) -> int:
    """The bytes of a new volume that begins as `origin` with `least` bytes. Raises Refused."""
    if size is not None and size < least:
        raise Refused(f"{origin} has {least} bytes and does not fit into {name} with {size} bytes")
    return size or least


def make(path: str, size: int, mark: dict[str, Any], source: str | None = None, origin: str | None = None) -> None:
    """A sparse file of that size, beginning with the source's content, or sharing that of the file `origin`.

    It gets its name only when it is complete.
    """
    part = Path(path).with_name(f".{Path(path).name}.part")
    try:
        part.unlink(missing_ok=True)
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if source is not None:
                _copy(source, descriptor)
            if origin is not None:
                with Path(origin).open("rb") as stream:
                    fcntl.ioctl(descriptor, FICLONE, stream.fileno())
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        set_mark(str(part), mark)
        if os.path.lexists(path):
            raise Refused(f"{path} came into being meanwhile; it is not overwritten")
        part.rename(path)
    except OSError as error:
        raise Failed(f"{path} could not be made: {error.strerror}", path=path) from None


def copy_to_device(source: str, device: str, holes: bool) -> None:
    """The source's content at the beginning of a block device; `holes`: zeroes are left out (it has been zeroed)."""
    try:
        descriptor = os.open(device, os.O_WRONLY)
        try:
            _copy(source, descriptor, holes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Failed(f"{source} could not be copied to {device}: {error.strerror}", path=device) from None


def _copy(source: str, target: int, holes: bool = True) -> None:
    with Path(source).open("rb") as stream:
        origin = stream.fileno()
        position = 0
        while True:
            try:
                start = os.lseek(origin, position, os.SEEK_DATA) if holes else position
                position = os.lseek(origin, start, os.SEEK_HOLE) if holes else os.lseek(origin, 0, os.SEEK_END)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            if start == position:
                return
            while start < position:
                data = os.pread(origin, min(COPY_BYTES, position - start), start)
                if not data:
                    raise OSError(errno.EIO, f"{source} became shorter while it was copied")
                if not holes or data.count(0) != len(data):
                    _write(target, data, start)
                start += len(data)


def _write(target: int, data: bytes, position: int) -> None:
    """A disk that gets full takes only a part; the next call then says so."""
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], position + done)


def set_mark(path: str, mark: dict[str, Any]) -> None:
    """Mark the file as ours; where the file system keeps no such marks, the volume's configuration file has to do."""
    try:
        os.setxattr(path, MARK, json.dumps(mark, sort_keys=True).encode())
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise Failed(f"{path} could not be marked: {error.strerror}") from None


def keeps_marks(path: str) -> bool:
    """Whether the file system of the nearest directory that exists takes marks as ours."""
    place = next(place for place in Path(path).parents if place.exists())
    try:
        os.getxattr(place, MARK)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def grow(path: str, size: int) -> None:
    """Make the file bigger; never smaller, whatever was planned."""
    if Path(path).stat().st_size < size:
        os.truncate(path, size)
