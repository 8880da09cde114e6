# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A raw or qcow2 file on the node: described, made, grown, and removed only when it carries our mark.

The mark is the extended attribute `user.drover.vm` with the VM's UUID. It lives with the data, so it is right when the
domain is gone; where a file system has no such attributes, a file has no mark and is never removed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._errors import Failed, Invalid, Refused
from .._fields import Field
from .._files import free_space
from .._identity import seed_name, volume_name
from .._run import run, run_json
from .._xml import Property
from . import imported, template
from .kind import Kind, Store, Volume

MARK = "user.drover.vm"
# Beside the mark: the file is a copy that no VM uses yet.
UNFINISHED = "user.drover.copy"
DIRECTORY = "/var/lib/libvirt/images"
FORMATS = ("raw", "qcow2")
SYSTEM = ("", "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys", "usr")

# Folders below /var that hold no images, whatever else is kept there.
SYSTEM_VAR = (
    "backups",
    "cache",
    "lib/apt",
    "lib/dpkg",
    "lib/rpm",
    "lib/systemd",
    "lock",
    "log",
    "mail",
    "run",
    "spool",
)
SWAPS, LOOPS = Path("/proc/swaps"), Path("/sys/block")


def check_medium(value: str) -> str:
    """A path; empty for a drive without a medium."""
    return check_path(value) if value else value


def check_path(value: str) -> str:
    """An absolute path without detours; so it can be neither an option nor a protocol (`json:`, `nbd:`) to QEMU."""
    parts = value.split("/")
    if parts[0] or len(parts) < 2 or set(parts[1:]) & {"", ".", ".."} or not value.isprintable() or len(value) > 1000:
        raise ValueError(f"{value!r} is not the path of a file: write it absolute, without . and .. and double slashes")
    return value


@dataclass(frozen=True)
class Medium(Property):
    """The path of the file; an empty drive has none."""

    def put(self, root: Element, value: Any) -> None:
        """Write it; an empty one takes the medium out."""
        super().put(root, value or None)


FIELDS = (Field("path", type="path", check=check_medium, place=Medium("source/@file"), when="live"),)


def seed_path(vm: str) -> str:
    """Where the seed of a VM lies, which is no disk of its sheet."""
    return f"{DIRECTORY}/{seed_name(vm)}"


def _recognises(disk: Element) -> bool:
    return disk.get("type", "file") == "file"


def _source() -> Element:
    disk = Element("disk", {"type": "file"})
    SubElement(disk, "driver", {"name": "qemu", "discard": "unmap"})
    return disk


def _fill(options: dict[str, Any], vm: str, number: int) -> dict[str, Any]:
    filled = dict(options)
    if filled.get("device") == "cdrom":
        filled["format"] = filled.get("format") or "raw"
    elif filled.get("format") and filled.get("path") is None:
        filled["path"] = f"{DIRECTORY}/{volume_name(vm, number)}.{filled['format']}"
    if filled.get("source") and not filled.get("clone"):
        linked = filled.get("format") == "qcow2" and not filled.get("source_format")
        filled["clone"] = "linked" if linked else "full"
    return filled


def _identity(options: dict[str, Any]) -> str | None:
    return f"file:{options['path']}" if options.get("path") else None


def _complaint(options: dict[str, Any]) -> str | None:
    if options.get("path") == "" and options.get("device") != "cdrom":
        return "path is empty; only a cdrom can be without a file"
    if options.get("clone") == "linked" and options.get("format") != "qcow2":
        return "a linked clone has the format qcow2"
    if options.get("clone") == "linked" and options.get("source_format"):
        return "a linked clone is made of a template, and source_format is for images that are none"
    if options.get("checksum") and not options.get("source_format"):
        return "checksum goes with source_format; a template has been proved when it was made"
    if options.get("source_format") and not options.get("source"):
        return "source_format says how source is read, and there is none"
    try:
        check_path(options.get("source") or "/template")
    except ValueError as error:
        return str(error)
    return None


def inspect(options: Mapping[str, Any]) -> Volume | None:
    """The image behind a disk; None when there is no file.

    Raises Refused for what must not become a disk: devices, the operating system's files. The format is never guessed:
    a guest can write any header into a raw disk.
    """
    path, image_format = options.get("path"), options.get("format") or "raw"
    if not path:
        return None
    status = _status(path, options.get("device") == "cdrom")
    if status is None:
        return None
    identity, mark, is_template = f"file:{path}", read_mark(path), template.read(path) is not None
    if image_format == "raw":
        return Volume(identity, status.st_size, mark, template=is_template)
    facts = run_json(
        [*template.LIMITED, "qemu-img", "info", "--force-share", "-f", image_format, "--output=json", path]
    )
    data = facts.get("format-specific", {}).get("data", {})
    backing = facts.get("backing-filename") or data.get("data-file")
    clone = bool(backing and template.read(backing))
    return Volume(identity, int(facts["virtual-size"]), mark, backing, is_template, clone)


def _status(path: str, cdrom: bool) -> os.stat_result | None:
    real = Path(path).resolve()
    if of_system(real, cdrom):
        raise Refused(f"{path} is {real}, which belongs to the operating system; keep disks in a folder of their own")
    try:
        status = real.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"{path} can't be looked at: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file")
    if not cdrom and str(real) in _of_host():
        raise Refused(
            f"{path} is in use by this node itself, as swap space or as a loop device (losetup -a shows them)"
        )
    return status


def of_system(real: Path, cdrom: bool) -> bool:
    """Whether it lies where no disk may; images of installation media come with packages, below /usr."""
    top = (real.parts[1:2] or ("",))[0]
    below = {"/".join(real.parts[2 : 2 + depth]) for depth in (1, 2)} if top == "var" else set()
    return (top in SYSTEM and not (cdrom and top == "usr")) or bool(below & set(SYSTEM_VAR))


def _of_host() -> set[str]:
    """The files that the node swaps to or has made a loop device of, such as to mount what is in them."""
    found = set()
    for source in [SWAPS, *LOOPS.glob("loop*/loop/backing_file")]:
        with suppress(OSError):  # a loop device may go meanwhile
            lines = source.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            # The kernel writes blanks in names of swap files as \040.
            found |= {line.split(" ")[0].replace("\\040", " ") if source == SWAPS else line for line in lines}
    return found


def check_new(options: Mapping[str, Any]) -> int | None:
    """The size of the template, where it is made from one. Raises Invalid where no file can be made, and Refused."""
    _folder(options["path"])
    if options.get("source_format"):
        return imported.checked(options)
    return template.checked(options).size if options.get("source") else None


def _folder(path: str) -> Path:
    """Where a file is to be made. Raises Invalid where that is not there."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise Invalid(f"the folder {folder} does not exist; make it, or mount what belongs there")
    return folder


def create(options: Mapping[str, Any], size: int | None, uuid: str, unfinished: bool = False) -> bool:
    """Make an image that carries our mark; never over a file that is there. False when it can't be marked."""
    path = options["path"]
    part = str(_folder(path) / f".{Path(path).name}.drover-part")
    Path(part).unlink(missing_ok=True)
    if options.get("source_format"):
        imported.fill(options, part, size)
    elif options.get("source"):
        template.fill(options, part, size)
    else:
        run(["qemu-img", "create", "-q", "-f", options["format"], part, str(size)])
    # libvirt gives the file to QEMU's user when the VM starts; nobody else has to read a guest's data.
    Path(part).chmod(0o600)
    marked = _write_mark(part, MARK, uuid) and (not unfinished or _write_mark(part, UNFINISHED, "1"))
    try:
        # A hard link fails where a file appeared meanwhile; a rename would replace it.
        os.link(part, path)
    except FileExistsError:
        raise Refused(f"{path} appeared while it was being made; look at who else uses this name") from None
    finally:
        Path(part).unlink(missing_ok=True)
    return marked


def grow(options: Mapping[str, Any], size: int) -> None:
    """Make an image bigger that no guest uses."""
    run(["qemu-img", "resize", "-q", "-f", options["format"], options["path"], str(size)])


def read_mark(path: str) -> str | None:
    """The UUID of the VM for which we made the file; None for any other file."""
    try:
        return os.getxattr(path, MARK).decode("ascii", "replace")
    except OSError:
        return None


def is_unfinished(path: str, uuid: str) -> bool:
    """Whether the file is a copy for this VM that was begun and not finished."""
    try:
        return read_mark(path) == uuid and bool(os.getxattr(path, UNFINISHED))
    except OSError:
        return False


def finish(path: str) -> None:
    """The copy is a VM's disk now. Raises Failed."""
    try:
        os.removexattr(path, UNFINISHED)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise Failed(f"{path} can't be marked as finished: {error.strerror}") from None


def room(path: str) -> int:
    """The bytes that are free where the file lies, or would lie. Raises Invalid."""
    return free_space(_folder(path))


def _write_mark(path: str, name: str, text: str) -> bool:
    try:
        os.setxattr(path, name, text.encode())
    except OSError:
        return False
    return True


def marked(vm: str, uuid: str, disks: Iterable[Mapping[str, Any]]) -> list[Volume]:
    """The files with this VM's mark: of the disks given, and those named after the VM in our own folder.

    A copy that somebody made of one (cp -a) carries the mark too; only whole names as ours are taken.
    """
    paths = [str(disk["path"]) for disk in disks if disk.get("path")]
    name = re.compile(re.escape(volume_name(vm, 0)[:-1]) + rf"[0-9]+\.({'|'.join(FORMATS)})")
    named = [str(path) for path in Path(DIRECTORY).glob("drover-*") if name.fullmatch(path.name)]
    real = {str(Path(path).resolve()) for path in [*paths, *named]}
    return [Volume(f"file:{path}", Path(path).stat().st_size, uuid) for path in sorted(real) if read_mark(path) == uuid]


def remove(identity: str, uuid: str) -> None:
    """Delete a file; looks once more at the mark, and at what is based on it."""
    path = identity[len("file:") :]
    if read_mark(path) != uuid:
        raise Refused(f"{path} no longer carries the mark of this VM; it was left as it is")
    if found := based(identity):
        raise Refused(f"{path} is what {', '.join(found)} is based on; it was left as it is", based=found)
    Path(path).unlink()


def canonical(identity: str) -> str:
    """The file itself, whatever links lead to it."""
    return f"file:{Path(identity[len('file:') :]).resolve()}"


def based(identity: str) -> list[str]:
    """The files that are based on this one."""
    return template.clones(identity[len("file:") :])


STORE = Store(inspect, check_new, create, grow, marked, remove, canonical, based=based)
FILE = Kind("file", FIELDS, ("format", "path"), _recognises, _source, _fill, _identity, _complaint, STORE)
