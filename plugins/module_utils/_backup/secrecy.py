# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a backup only its passphrase opens, with QEMU's own LUKS: qemu-img alone reads it, anywhere.

The images are qcow2 with LUKS inside, all of a history with one random key. That key, and what is beside the disks, are
in a small LUKS container (state.luks), which the passphrase opens. So it costs its seconds once and not for each image
of a chain, and QEMU, which stands still while it opens an image, opens these at once. See
https://www.qemu.org/docs/master/system/images.html and qemu-img(1).
"""

from __future__ import annotations

import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._errors import Failed, Refused
from .._run import run, run_json

STATE, KEY = "state.luks", "disks.key"
NAME = "key"  # what QEMU's programs call it
# The key is 256 random bits, so that nothing is won by making it slow to try; milliseconds.
ENCRYPT = f"encrypt.format=luks,encrypt.key-secret={NAME},encrypt.iter-time=10"
# A try at the passphrase costs whoever guesses as long as us; milliseconds, as qemu-img has it by itself.
SLOW = 2000
PATIENCE = 900  # seconds until then, on a node that has much else to do
WRONG = "Invalid password"
# QEMU measures how fast the node is when it makes LUKS, and 7.2.22 fails at that now and then on a fast one.
UNMEASURED, TRIES = "Unable to get accurate CPU usage", 20


def check_passphrase(value: str) -> str:
    """One that is there, on one line, so that it can be typed where everything else is gone."""
    if not value or not value.isprintable():
        raise ValueError("a passphrase is a text of one line, and not empty")
    return value


@contextmanager
def in_memory(data: bytes = b"") -> Iterator[str]:
    """A file that no disk ever has, and that is gone with this process, also when that is killed; its path."""
    number = os.memfd_create("drover")
    try:
        with open(number, "wb", closefd=False) as stream:
            stream.write(data)
        yield f"/proc/{os.getpid()}/fd/{number}"
    finally:
        os.close(number)


@contextmanager
def told(key: str | None) -> Iterator[list[str]]:
    """How QEMU's programs are told a key, which itself is in no argument; nothing where there is none."""
    if key is None:
        yield []
        return
    with in_memory(key.encode()) as path:
        yield ["--object", f"secret,id={NAME},file={path}"]


def making(argv: Sequence[str], stdin: str | None = None, timeout: float = PATIENCE, tied: bool = False) -> None:
    """Run what makes an image that may be encrypted. Raises as `run` does."""
    for left in reversed(range(TRIES)):
        try:
            run(argv, stdin, timeout=timeout, tied=tied)
            return
        except Failed as error:
            if UNMEASURED not in error.message or not left:
                raise


def new_key() -> str:
    """The key of the images of a history."""
    return secrets.token_hex(32)


def address(image: Path, key: str | None) -> str:
    """An image, with all that it is based on, for QEMU's programs that are told the key."""
    if key is None:
        return str(image)
    found = None
    for path in reversed(chain(image)):
        found = {**node(path, key), "backing": found}
    return "json:" + json.dumps(found)


def chain(image: Path) -> list[str]:
    """An image and what it is based on, the lowest last."""
    links = run_json(["qemu-img", "info", "--backing-chain", "--output=json", "-f", "qcow2", str(image)])
    return [link["filename"] for link in links]


def alone(image: Path, key: str | None) -> str:
    """An image without what it is based on."""
    return "json:" + json.dumps({**node(str(image), key), "backing": None})


def node(path: str, key: str | None) -> dict[str, Any]:
    """An image as QEMU describes it; what it is based on, it says itself, where nothing else is said."""
    encrypt = {} if key is None else {"encrypt": {"format": "luks", "key-secret": NAME}}
    return {"driver": "qcow2", **encrypt, "file": {"driver": "file", "filename": path}}


def lock(parts: Mapping[str, bytes], place: Path, passphrase: str) -> None:
    """Write these files into a container that the passphrase opens."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    with told(passphrase) as words, in_memory(packed.getvalue()) as source:
        options = ["-f", "raw", "-O", "luks", "-o", f"key-secret={NAME},iter-time={SLOW}"]
        making(["qemu-img", "convert", "-q", *words, *options, source, str(place)])


def unlock(place: Path, passphrase: str | None) -> dict[str, bytes]:
    """The files in a container. Raises Refused where the passphrase does not open it."""
    backup = place.parent.name
    if passphrase is None:
        raise Refused(f"{backup} is encrypted; say the passphrase that it was made with", option="passphrase")
    container = f"driver=luks,key-secret={NAME},file.filename={place}"
    try:
        with told(passphrase) as words, in_memory() as to:
            run(["qemu-img", "convert", "-q", *words, "--image-opts", container, "-O", "raw", to], timeout=PATIENCE)
            packed = Path(to).read_bytes()
    except Failed as error:
        if WRONG not in error.message:
            raise
        raise Refused(f"{backup} was made with another passphrase; this one does not open it") from None
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {one.name: archive.extractfile(one) for one in archive}
        return {name: stream.read() for name, stream in found.items() if stream is not None}
