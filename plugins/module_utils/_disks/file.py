# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A raw or qcow2 file on the node: described, made, grown, and removed only when it carries our mark.

The mark is the extended attribute `user.drover.vm` with the VM's UUID. It lives with the data, so it is right when the
domain is gone; where a file system has no such attributes, a file has no mark and is never removed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._errors import Failed, Invalid, Refused
from .._fields import Field
from .._identity import seed_name, volume_name
from .._run import run, run_json
from .._xml import Property
from .kind import Kind

MARK = "user.drover.vm"
DIRECTORY = "/var/lib/libvirt/images"
SYSTEM = ("", "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys", "usr")


def check_path(value: str) -> str:
    """An absolute path without detours; so it can be neither an option nor a protocol (`json:`, `nbd:`) to QEMU."""
    parts = value.split("/")
    if parts[0] or len(parts) < 2 or set(parts[1:]) & {"", ".", ".."} or not value.isprintable() or len(value) > 1000:
        raise ValueError(f"{value!r} is not the path of a file: write it absolute, without . and .. and double slashes")
    return value


FIELDS = (Field("path", type="path", check=check_path, place=Property("source/@file")),)


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
    elif filled.get("format") and not filled.get("path"):
        filled["path"] = f"{DIRECTORY}/{volume_name(vm, number)}.{filled['format']}"
    return filled


def _identity(options: dict[str, Any]) -> str | None:
    return f"file:{options['path']}" if options.get("path") else None


FILE = Kind("file", FIELDS, ("format", "path"), _recognises, _source, _fill, _identity)


def inspect(path: str, image_format: str, cdrom: bool = False) -> dict[str, Any] | None:
    """Size in bytes, backing file and mark of an image; None when there is no file.

    Raises Refused for what must not become a disk: devices, the operating system's files. The format is never guessed:
    a guest can write any header into a raw disk.
    """
    real = Path(path).resolve()
    # Images of installation media come with packages, below /usr.
    if (real.parts[1:2] or ("",))[0] in [name for name in SYSTEM if not (cdrom and name == "usr")]:
        raise Refused(f"{path} is {real}, which belongs to the operating system; keep disks in a folder of their own")
    try:
        status = real.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"{path} can't be looked at: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file")
    if image_format == "raw":
        return {"size": status.st_size, "backing": None, "mark": read_mark(path)}
    facts = run_json(["qemu-img", "info", "--force-share", "-f", image_format, "--output=json", path])
    data = facts.get("format-specific", {}).get("data", {})
    backing = facts.get("backing-filename") or data.get("data-file")
    return {"size": facts["virtual-size"], "backing": backing, "mark": read_mark(path)}


def create(path: str, image_format: str, size: int, uuid: str) -> bool:
    """Make an empty image that carries our mark; never over a file that is there. False when it can't be marked."""
    part = f"{path}.part"
    if not Path(path).parent.is_dir():
        raise Invalid(f"the folder {Path(path).parent} does not exist; make it, or mount what belongs there")
    Path(part).unlink(missing_ok=True)
    run(["qemu-img", "create", "-q", "-f", image_format, part, str(size)])
    # libvirt gives the file to QEMU's user when the VM starts; nobody else has to read a guest's data.
    Path(part).chmod(0o600)
    marked = _write_mark(part, uuid)
    try:
        # A hard link fails where a file appeared meanwhile; a rename would replace it.
        os.link(part, path)
    except FileExistsError:
        raise Refused(f"{path} appeared while it was being made; look at who else uses this name") from None
    finally:
        Path(part).unlink(missing_ok=True)
    return marked


def grow(path: str, image_format: str, size: int) -> None:
    """Make an image bigger that no guest uses."""
    run(["qemu-img", "resize", "-q", "-f", image_format, path, str(size)])


def read_mark(path: str) -> str | None:
    """The UUID of the VM for which we made the file; None for any other file."""
    try:
        return os.getxattr(path, MARK).decode("ascii", "replace")
    except OSError:
        return None


def _write_mark(path: str, uuid: str) -> bool:
    try:
        os.setxattr(path, MARK, uuid.encode())
    except OSError:
        return False
    return True


def marked_files(vm: str, uuid: str, paths: list[str]) -> list[str]:
    """The files with this VM's mark: of the paths given, and those named after the VM in our own folder."""
    named = [str(path) for path in Path(DIRECTORY).glob(f"{volume_name(vm, 0)[:-1]}*")]
    real = {str(Path(path).resolve()) for path in [*paths, *named]}
    return sorted(path for path in real if read_mark(path) == uuid)


def remove(path: str, uuid: str) -> None:
    """Delete a file; looks at the mark once more."""
    if read_mark(path) != uuid:
        raise Refused(f"{path} no longer carries the mark of this VM; it was left as it is")
    Path(path).unlink()
