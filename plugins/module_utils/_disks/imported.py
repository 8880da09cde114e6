# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that others made: of a physical machine, of another hypervisor. Nothing in them is believed.

An image can name other files (a backing file, a data file, extents), which QEMU would open, so that a VM had the
content of /etc/shadow on its disk (CVE-2024-4467 was of that kind). So the format is declared and never guessed, what
the file is by its first bytes must be just that, and these are read here before QEMU sees the file.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .._checksum import hash_of, is_digest
from .._errors import Failed, Invalid, Refused
from .._files import free_space
from .._run import run, run_json
from . import template

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")
# Where what says the format lies: docs/interop of QEMU, and the specifications that its block/*.c name.
SIGNATURES = (
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
)
HEAD, FOOTER = 512, 512
# struct of a qcow2 header up to its incompatible features, of which bit 2 says that the data is in another file.
QCOW2, DATA_FILE = struct.Struct(">4sIQI52xQ"), 4
VMDK_CAPACITY, VHD_TYPE, DIFFERENCING = struct.Struct("<12xQ"), struct.Struct(">60xI"), 4


def check_checksum(value: str) -> str:
    """`sha256:HEX`, `sha384:HEX` or `sha512:HEX`."""
    algorithm, _colon, digits = value.lower().partition(":")
    if not is_digest(algorithm, digits):
        raise ValueError(f"{value!r} is no checksum; write sha256: or sha512: and its hexadecimal digits")
    return value.lower()


def prove(path: str, declared: str, name: str) -> int:
    """The bytes of the disk in an image, which is called `name`. Raises Refused for one of another format than was
    declared, and for one that needs other files.
    """
    with open(path, "rb") as stream:
        _look(stream, declared, name)
    words = [*template.LIMITED, "qemu-img", "info", "-f", declared, "--output=json", path]
    try:
        facts = run_json(words)
    except Failed as error:
        raise Refused(f"{name} is not {declared}: {error.details.get('stderr', error)}") from None
    data: dict[str, Any] = facts.get("format-specific", {}).get("data", {})
    extents = [one["filename"] for one in data.get("extents", []) if one.get("filename") != path]
    if needs := facts.get("backing-filename") or data.get("data-file") or ", ".join(extents):
        raise Refused(_based(name, needs))
    if facts.get("encrypted") or data.get("corrupt"):
        raise Refused(
            f"{name} is {'encrypted' if facts.get('encrypted') else 'corrupt'}; export it anew where it is from"
        )
    return int(facts["virtual-size"])


def _based(name: str, needs: str) -> str:
    return f"{name} is not whole: it is based on {needs}; make one file of it where it comes from"


def _look(stream: IO[bytes], declared: str, name: str) -> None:
    """Raise Refused for what QEMU must not open."""
    head = stream.read(HEAD).ljust(HEAD, b"\0")
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - FOOTER))
    footer = stream.read(FOOTER).ljust(FOOTER, b"\0")
    marks = [(kind, head[at : at + len(mark)] == mark) for kind, at, mark in SIGNATURES]
    marks.append(("vpc", footer.startswith(b"conectix")))
    seen = next((kind for kind, is_it in marks if is_it), "raw")
    if seen != declared:
        known = f"{seen}, not {declared}" if seen != "raw" else f"not {declared}"
        raise Refused(f"{name} is {known}; say what it is with source_format (raw: the plain content of a disk)")
    if seen == "qcow2":
        _magic, version, backing, length, features = QCOW2.unpack_from(head)
        stream.seek(backing)
        if backing:
            raise Refused(_based(name, os.fsdecode(stream.read(min(length, template.LONGEST_NAME)))))
        if version > 2 and features & DATA_FILE:
            raise Refused(_based(name, "a data file"))
    elif seen == "vmdk" and not (head.startswith(b"KDMV") and VMDK_CAPACITY.unpack_from(head)[0]):
        raise Refused(
            f"{name} is a description that names other files. Its disk is the big file beside it: give NAME-flat.vmdk "
            "with source_format: raw, or export the machine as one file (OVA)"
        )
    elif seen == "vpc" and VHD_TYPE.unpack_from(footer)[0] == DIFFERENCING:
        raise Refused(_based(name, "another disk, of which it holds what differs"))


def checked(options: Mapping[str, Any]) -> int:
    """The bytes of the disk that a new one is a copy of (`options["source"]`). Raises Invalid and Refused."""
    source, declared, size = options["source"], options["source_format"], options.get("size")
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        raise Invalid(f"{source} can't be read on this node: {error.strerror}") from None
    if stat.S_ISBLK(mode):
        _check_idle(source, declared)
    elif not stat.S_ISREG(mode):
        raise Refused(f"{source} is neither a file nor a block device")
    found = prove(source, declared, source)
    if size and size < found:
        raise Refused(f"{options['path']}: {source} has {found} bytes, more than {size}; give a size of that")
    words = ["qemu-img", "measure", "--output=json", "-f", declared, "-O", options["format"], source]
    needs = int(run_json(words, timeout=600)["required"])
    if needs > (free := free_space(Path(options["path"]).parent)):
        raise Refused(f"{options['path']}: a copy of {source} takes {needs >> 20} MiB, and {free >> 20} MiB are free")
    return found


def _check_idle(device: str, declared: str) -> None:
    """Raise Refused for a block device that somebody on this node uses, as the kernel says (O_EXCL)."""
    if declared != "raw":
        raise Invalid(f"{device} is a block device; its source_format is raw")
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        raise Refused(f"{device} is in use on this node ({error.strerror}); unmount what is on it first") from None


def fill(options: Mapping[str, Any], part: str, size: int | None) -> None:
    """Make the file `part` a copy of the source, and compare both. Raises Refused and Failed."""
    source, kinds = options["source"], ("-f", options["source_format"])
    found = checked(options)
    if wanted := options.get("checksum"):
        seen = hash_of(source, wanted.partition(":")[0])
        if seen != wanted:
            raise Failed(f"{source} has the checksum {seen}, not {wanted}", seen=seen)
    words = ["-q", "-m", "8", "-W", "-t", "writeback", *kinds, "-O", options["format"], source, part]
    run(["qemu-img", "convert", *words], timeout=template.seconds(found))
    run(["qemu-img", "compare", "-q", *kinds, "-F", options["format"], source, part], timeout=template.seconds(found))
    if size and size > found:
        run(["qemu-img", "resize", "-q", "-f", options["format"], part, str(size)])
    template.sync([part])
