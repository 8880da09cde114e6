# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a seed: a small ISO for one VM, which root (and its QEMU) can read. Its mark is inside of it.

What is in it may be secret: it comes over no command line, lies in a folder in memory while the ISO is made, and the
file is deleted with the VM.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ._errors import Failed, NotFound, Refused
from ._files import replace_file
from ._run import run

WORK = "/run/drover"
LABEL = "CIDATA"
# ECMA-119, 8.4: the primary volume descriptor is the 16th sector; what made the image is 128 bytes of it.
DESCRIPTOR, APPLICATION = 16 * 2048, slice(574, 702)
PROGRAMS = (["xorriso", "-as", "mkisofs"], ["genisoimage"])


def mark(path: str) -> str | None:
    """The UUID of the VM for which we made the file; None when there is none, or it is not ours."""
    try:
        with open(path, "rb") as stream:
            stream.seek(DESCRIPTOR)
            words = stream.read(2048)[APPLICATION].decode("ascii", "replace").lower().split()
    except OSError:
        return None
    return words[1] if len(words) == 2 and words[0] == "drover" else None


def left(path: str, uuid: str) -> list[str]:
    """The path, if this VM's seed is there."""
    return [path] if mark(path) == uuid else []


def make(path: str, uuid: str, files: Mapping[str, str]) -> None:
    """Write the seed, in place of an older one of the same VM. Raises Refused, NotFound and Failed."""
    if Path(path).exists() and mark(path) != uuid:
        raise Refused(f"{path} is not the seed of this VM; it was left as it is")
    work = Path(WORK) / f"seed-{uuid}"
    # A run that was killed may have left it.
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(mode=0o700, parents=True)
        content = work / "content"
        content.mkdir()
        for name, text in files.items():
            (content / name).write_text(text, encoding="utf-8")
        _image(work / "seed.iso", uuid, content)
        replace_file(Path(path), (work / "seed.iso").read_bytes())
    except OSError as error:
        raise Failed(f"{path} could not be made: {error.strerror}", path=path) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if mark(path) != uuid:
        raise Failed(f"{path} was made, and does not carry the mark of its VM", path=path)


def _image(image: Path, uuid: str, content: Path) -> None:
    options = ["-quiet", "-V", LABEL, "-A", f"DROVER {uuid}", "-J", "-R", "-o", str(image), str(content)]
    for program in PROGRAMS:
        try:
            run([*program, *options])
        except NotFound:
            continue
        return
    raise NotFound("neither xorriso nor genisoimage is installed on this machine, one of which makes the seed")


def remove(path: str, uuid: str) -> None:
    """Delete the file when it is this VM's seed; nothing to do when there is none. Raises Refused."""
    if not Path(path).exists():
        return
    if mark(path) != uuid:
        raise Refused(f"{path} is not the seed of this VM; it was left as it is")
    Path(path).unlink()
