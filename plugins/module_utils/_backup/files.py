# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a backup: images of disks, what the VM keeps beside them, and what says how all of it belongs together.

All of it can be used without this collection: qemu-img follows from an incremental image to the one it is based on.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple
from xml.etree.ElementTree import Element

from .._disks.template import sync
from .._domain import state_files
from .._errors import Failed
from .._run import run, run_json
from .._xml import Property
from . import secrecy, store
from .store import Backup

DEFINITION, CHECKPOINT = "domain.xml", "checkpoint.xml"
NVRAM, TPM = "nvram.fd", "tpm.tar"
NVRAM_FOLDER, TPM_FOLDER = Path(state_files.NVRAM), Path(state_files.TPM)
# What qemu-img is told that it reads from its standard input.
LOGIN = "login"


class Style(NamedTuple):
    """How images are made: with which compression, or encrypted with which key; at so many bytes a second (0: all)."""

    compression: str
    seconds: float
    bandwidth: int
    key: str | None = None


def image_name(target: str) -> str:
    """The image of a disk."""
    return f"{target}.qcow2"


def is_free(image: Path) -> bool:
    """Whether nobody writes to it: QEMU closes what it has copied only some time after libvirt says that it is done."""
    try:
        run(["qemu-img", "info", "-f", "qcow2", str(image)])
    except Failed as error:
        if " lock" not in error.message:
            raise
        return False
    return True


@contextmanager
def watched(copies: Iterable[Path]) -> Iterator[Callable[[Path], None]]:
    """These files are being written by others. What is given raises Failed where the disk has lost some of that.

    The kernel tells of it those who had the file open then, once, see fsync(2): whoever opens it later may find holes
    where data was, and hears nothing.
    """
    with ExitStack() as stack:
        opened = {copy: stack.enter_context(copy.open("rb")) for copy in copies}

        def check(copy: Path) -> None:
            try:
                os.fsync(opened[copy].fileno())
            except OSError as error:
                raise Failed(
                    f"{copy.parent.parent} has lost what was written to it: {error.strerror}. Look at its storage or "
                    "server, and run this again"
                ) from None

        yield check


def create(copy: Path, size: int, key: str | None, options: Sequence[str] = ()) -> None:
    """An image of so many bytes with nothing in it."""
    made = [] if key is None else ["-o", secrecy.ENCRYPT]
    with secrecy.told(key) as told:
        secrecy.making(["qemu-img", "create", "-q", "-f", "qcow2", *told, *made, *options, str(copy), str(size)])


def pack(copy: Path, image: Path, base: str | None, style: Style) -> None:
    """Make the image of what QEMU has copied. `base` is the folder, beside that of the image, of what it is based on.

    Raises Failed when what was packed is not what was copied.
    """
    below = [] if base is None else ["-F", "qcow2"]
    if base is not None:
        link = ["-u", "-f", "qcow2", "-b", f"../{base}/{image.name}", *below]
        with secrecy.told(style.key) as words:
            run(["qemu-img", "rebase", "-q", *words, *link, secrecy.alone(copy, style.key)])
    if style.compression == "none":
        copy.rename(image)
        return
    options = [] if base is None else ["-B", f"../{base}/{image.name}", *below]
    convert(Source(str(copy), "qcow2"), image, style, options)
    store.written(image)
    # An incremental image is compared by itself: with all that it is based on it would be as long as a full one.
    alone = [secrecy.alone(one, None) for one in (copy, image)]
    _compare([], alone, style.seconds)
    # What of it is not on the disk yet is not wanted there any more.
    os.truncate(copy, 0)


def copy_places(source: str, copy: Path, size: int, places: Sequence[tuple[int, int]], style: Style) -> None:
    """Make a qcow2 image that holds of `source` (raw, of `size` bytes) only these places, rounded up to clusters.

    Places are offsets and lengths in bytes. QEMU copies what is read through an empty image above the source, see
    https://qemu.org/docs/master/interop/live-block-operations.html. Raises Failed.
    """
    image, limit = {"driver": "copy-on-read", "file": secrecy.node(str(copy), style.key)}, []
    if style.bandwidth:
        image = {"driver": "throttle", "throttle-group": "limit", "file": image}
        limit = ["--object", f"throttle-group,id=limit,x-bps-read={style.bandwidth}"]
    asked = "".join(f"read -q {offset} {length}\n" for offset, length in places)
    with secrecy.told(style.key) as told:
        create(copy, size, style.key, ["-b", source, "-F", "raw"])
        run(["qemu-io", *told, *limit, f"json:{json.dumps(image)}"], stdin=asked, timeout=style.seconds)
        look = ["qemu-img", "map", "--output=json", *told, secrecy.alone(copy, style.key)]
        mapped = run_json(look, timeout=style.seconds)
    held = [(one["start"], one["start"] + one["length"]) for one in mapped if one["present"]]
    if lost := lacking(places, held):
        raise Failed(f"{copy} lacks what has changed at byte {lost[0]} of {source}; run this again", lacking=len(lost))


def lacking(places: Sequence[tuple[int, int]], held: Sequence[tuple[int, int]]) -> list[int]:
    """The offsets of the places (offset and length) that are not wholly in what is held (begin and end). Pure."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(held):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    begins = [begin for begin, _end in joined]
    found = []
    for offset, length in places:
        number = bisect_right(begins, offset) - 1
        if number < 0 or joined[number][1] < offset + length:
            found.append(offset)
    return found


class Source(NamedTuple):
    """What is copied: a file, a device, or what else qemu-img takes. `secret` is its password, None without."""

    address: str
    format: str = "raw"
    secret: str | None = None

    def login(self) -> list[str]:
        """What qemu-img is told of the password, which itself never is in its arguments."""
        return [] if self.secret is None else ["--object", f"secret,id={LOGIN},file=/dev/stdin"]


def copy(source: Source, image: Path, style: Style) -> None:
    """All that a disk holds in a new image, compared."""
    convert(source, image, style, ["-r", str(style.bandwidth)] if style.bandwidth else [])
    store.written(image)
    compare(source, image, style.seconds, style.key)


def convert(source: Source, image: Path, style: Style, options: list[str]) -> None:
    """Copy what a disk holds into a new image."""
    packed = ["-c", "-o", f"compression_type={style.compression}"] if style.compression != "none" else []
    made = packed if style.key is None else ["-o", secrecy.ENCRYPT]
    words = ["-q", "-m", "8", "-W", "-f", source.format, "-O", "qcow2", *made, *options]
    with secrecy.told(style.key) as told:
        argv = ["qemu-img", "convert", *source.login(), *told, *words, source.address, str(image)]
        secrecy.making(argv, source.secret, timeout=style.seconds, tied=True)


def compare(source: Source, image: Path, seconds: float, key: str | None) -> None:
    """Raise Failed unless the image, which `key` opens, holds what the disk holds."""
    with secrecy.told(key) as told:
        words = [*source.login(), *told, "-f", source.format, "-F", "qcow2"]
        _compare(words, [source.address, secrecy.address(image, key)], seconds, source.secret)


def _compare(words: list[str], pair: list[str], seconds: float, secret: str | None = None) -> None:
    try:
        run(["qemu-img", "compare", "-q", *words, *pair], secret, timeout=seconds, tied=True)
    except Failed as error:
        if error.details.get("rc") != 1:
            raise
        raise Failed(
            f"{pair[1]} does not hold what was copied into it, so it is not kept. Look at its storage and at the "
            "memory of this node, and run this again",
            compared=pair,
        ) from None


def state_of(root: Element, vm: str, uuid: str) -> dict[str, bytes]:
    """The variables of UEFI and the keys of a TPM, if it has any, as files of a backup."""
    found: dict[str, bytes] = {}
    named = Property("os/nvram").get(root)
    variables = Path(named) if named else NVRAM_FOLDER / f"{vm}_VARS.fd"
    if variables.is_file() and (named or Property("os/@firmware").get(root) == "efi"):
        found[NVRAM] = variables.read_bytes()
    if (TPM_FOLDER / uuid).is_dir():
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(TPM_FOLDER / uuid, arcname=".")
        found[TPM] = packed.getvalue()
    return found


def keep(parts: Mapping[str, bytes], folder: Path, passphrase: str | None, key: str | None) -> None:
    """Write what is beside the disks into a backup; of an encrypted one the key of its images too."""
    if passphrase is None or key is None:
        for name, data in parts.items():
            (folder / name).write_bytes(data)
    else:
        secrecy.lock({secrecy.KEY: key.encode(), **parts}, folder / secrecy.STATE, passphrase)


def kept(backup: Backup, passphrase: str | None) -> dict[str, bytes]:
    """What is beside the disks in a backup, by its name. Raises Refused where the passphrase does not open it."""
    if backup.encrypted:
        return secrecy.unlock(backup.folder / secrecy.STATE, passphrase)
    names = [name for name in (DEFINITION, CHECKPOINT, NVRAM, TPM) if name in backup.manifest["files"]]
    return {name: (backup.folder / name).read_bytes() for name in names}


def key_of(parts: Mapping[str, bytes]) -> str | None:
    """What opens the images of a backup, of what is beside them; None where they are in clear."""
    return parts[secrecy.KEY].decode() if secrecy.KEY in parts else None


def seal(folder: Path, manifest: dict[str, Any], readme: str) -> None:
    """Write manifest and checksums, when all else is there; then nobody but root can look into it."""
    (folder / "README.txt").write_text(readme, encoding="utf-8")
    names = sorted(one.name for one in folder.iterdir() if one.name != store.BEGUN)
    sync(str(folder / name) for name in names)
    manifest["files"] = {name: (folder / name).stat().st_size for name in names}
    text = json.dumps({"format": store.FORMAT, "version": store.VERSION, **manifest}, indent=2) + "\n"
    (folder / store.MANIFEST).write_text(text, encoding="utf-8")
    sums = {name: store.digest_of(folder / name) for name in (*names, store.MANIFEST)}
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (folder / store.SUMS).write_text("".join(lines), encoding="utf-8")
    for one in folder.iterdir():
        one.chmod(0o600)
    sync([str(folder / store.MANIFEST), str(folder / store.SUMS), str(folder)])
    folder.chmod(0o700)
