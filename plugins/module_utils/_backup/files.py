# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a backup: images of disks, what the VM keeps beside them, and what says how all of it belongs together.

All of it can be used without this collection: qemu-img follows from an incremental image to the one it is based on.
"""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .._disks.template import sync
from .._errors import Failed
from .._run import run, run_json
from .._xml import Property
from . import store

NVRAM, TPM = "nvram.fd", "tpm.tar"
# What qemu-img is told that it reads from its standard input.
LOGIN = "login"
NVRAM_FOLDER, TPM_FOLDER = Path("/var/lib/libvirt/qemu/nvram"), Path("/var/lib/libvirt/swtpm")
README = """\
Backup {id} of the virtual machine {vm}, made by drover.kvm. docs/backups.md of the collection says more.

  qemu-img info --backing-chain {disk}    what it is based on (keep those folders beside this one)
  sha256sum -c SHA256SUMS                 here and in each of those folders: is everything as it was written?

Without the collection: make each disk anew, and define the machine from domain.xml, in which the paths must fit.

{commands}
  virsh define domain.xml
"""
COMMAND = "  qemu-img convert -p -O qcow2 {file} /var/lib/libvirt/images/{vm}-{target}.qcow2"
EXTRAS = {
    NVRAM: f"\n  cp {NVRAM} {NVRAM_FOLDER}/{{vm}}_VARS.fd",
    TPM: f"\n  mkdir -p {TPM_FOLDER}/{{uuid}}; tar -xpf {TPM} -C {TPM_FOLDER}/{{uuid}}",
}


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


def pack(copy: Path, image: Path, base: str | None, compression: str, seconds: float) -> None:
    """Make the image of what QEMU has copied. `base` is the folder, beside that of the image, of what it is based on.

    Raises Failed when what was packed is not what was copied.
    """
    below = [] if base is None else ["-F", "qcow2"]
    if base is not None:
        run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", f"../{base}/{image.name}", *below, str(copy)])
    if compression == "none":
        copy.rename(image)
        return
    options = [] if base is None else ["-B", f"../{base}/{image.name}", *below]
    convert(Source(str(copy), "qcow2"), image, compression, seconds, options)
    # An incremental image is compared by itself: with all that it is based on it would be as long as a full one.
    alone = [_alone(one) for one in (copy, image)]
    _compare([], alone, seconds)
    copy.unlink()


def _alone(path: Path) -> str:
    inner = {"driver": "file", "filename": str(path)}
    return "json:" + json.dumps({"driver": "qcow2", "file": inner, "backing": None})


def copy_places(
    source: str, copy: Path, size: int, places: Sequence[tuple[int, int]], bandwidth: int, seconds: float
) -> None:
    """Make a qcow2 image that holds of `source` (raw, of `size` bytes) only these places, rounded up to clusters.

    Places are offsets and lengths in bytes; `bandwidth` in bytes per second. QEMU copies what is read through an empty
    image above the source, see https://qemu.org/docs/master/interop/live-block-operations.html. Raises Failed.
    """
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", source, "-F", "raw", str(copy), str(size)])
    image: dict[str, Any] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(copy)}}
    image, limit = {"driver": "copy-on-read", "file": image}, []
    if bandwidth:
        image = {"driver": "throttle", "throttle-group": "limit", "file": image}
        limit = ["--object", f"throttle-group,id=limit,x-bps-read={bandwidth}"]
    asked = "".join(f"read -q {offset} {length}\n" for offset, length in places)
    run(["qemu-io", *limit, f"json:{json.dumps(image)}"], stdin=asked, timeout=seconds)
    mapped = run_json(["qemu-img", "map", "--output=json", _alone(copy)], timeout=seconds)
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


def copy(source: Source, image: Path, compression: str, seconds: float, bandwidth: int) -> None:
    """All that a disk holds in a new image, compared; read at so many bytes a second at most (0: no limit)."""
    convert(source, image, compression, seconds, ["-r", str(bandwidth)] if bandwidth else [])
    compare(source, image, seconds)


def convert(source: Source, image: Path, compression: str, seconds: float, options: list[str]) -> None:
    """Copy what a disk holds into a new image."""
    packed = ["-c", "-o", f"compression_type={compression}"] if compression != "none" else []
    words = ["-q", "-m", "8", "-W", "-f", source.format, "-O", "qcow2", *packed, *options]
    argv = ["qemu-img", "convert", *source.login(), *words, source.address, str(image)]
    run(argv, source.secret, timeout=seconds, tied=True)


def compare(source: Source, image: Path, seconds: float) -> None:
    """Raise Failed unless the image holds what the disk holds."""
    words = [*source.login(), "-f", source.format, "-F", "qcow2"]
    _compare(words, [source.address, str(image)], seconds, source.secret)


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


def keep_state(root: Element, vm: str, uuid: str, folder: Path) -> None:
    """Copy the variables of UEFI and the keys of a TPM, if it has any."""
    named = Property("os/nvram").get(root)
    variables = Path(named) if named else NVRAM_FOLDER / f"{vm}_VARS.fd"
    if variables.is_file() and (named or Property("os/@firmware").get(root) == "efi"):
        (folder / NVRAM).write_bytes(variables.read_bytes())
    if (TPM_FOLDER / uuid).is_dir():
        with tarfile.open(folder / TPM, "w") as archive:
            archive.add(TPM_FOLDER / uuid, arcname=".")


def readme(manifest: Mapping[str, Any]) -> str:
    """How to come back without the collection."""
    vm, disks = manifest["vm"], manifest["disks"]
    lines = [COMMAND.format(vm=vm["name"], **disk) for disk in disks]
    lines += [
        words.strip("\n").format(**vm, vm=vm["name"]) for name, words in EXTRAS.items() if name in manifest["files"]
    ]
    return README.format(id=manifest["id"], vm=vm["name"], disk=disks[0]["file"], commands="\n".join(lines))


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest and checksums, when all else is there; then nobody but root can look into it."""
    manifest["files"] = dict.fromkeys(one.name for one in folder.iterdir() if one.name != store.BEGUN)
    (folder / "README.txt").write_text(readme(manifest), encoding="utf-8")
    names = sorted({*manifest["files"], "README.txt"})
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
