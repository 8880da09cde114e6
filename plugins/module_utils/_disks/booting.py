# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""With which firmware a disk that came from elsewhere can boot, as its partition table says.

UEFI needs an EFI system partition; a BIOS runs the code of the first sector, which on a GPT needs a partition of its
own for the rest (https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html).
"""

from __future__ import annotations

import struct
import tempfile
import uuid
from typing import NamedTuple

from .._run import run

CODE, TABLE, ENTRY = 440, 446, 16
SIGNED, EFI_TYPE, PROTECTIVE = b"\x55\xaa", 0xEF, 0xEE
SECTORS = (512, 4096)
HEADER = struct.Struct("<8s64xQII")  # signature, first sector of the entries, how many, bytes of each
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649").bytes_le
HEAD = 2 * 4096 + 128 * 128


class Boot(NamedTuple):
    """What a disk has for which `firmware` (efi, bios), and in words why; none for a disk that boots nothing."""

    firmware: tuple[str, ...] = ()
    words: str = ""


def read(path: str, image_format: str) -> Boot:
    """Of an image, or a device, that was proved before."""
    with tempfile.NamedTemporaryFile() as head:
        words = ["-f", image_format, "-O", "raw", "bs=512", f"count={HEAD // 512}", f"if={path}", f"of={head.name}"]
        run(["qemu-img", "dd", *words], timeout=60)
        return of(head.read())


def of(head: bytes) -> Boot:
    """Of the beginning of a disk."""
    if head[510:512] != SIGNED:
        return Boot()
    for sector in SECTORS:
        if head[sector : sector + 8] == b"EFI PART":
            return _of_gpt(head, sector)
    types = {head[TABLE + number * ENTRY + 4] for number in range(4)}
    code = any(head[:CODE])
    if EFI_TYPE in types:
        return Boot(("efi", "bios") if code else ("efi",), "an MBR with an EFI system partition")
    return Boot(("bios",), "an MBR with boot code") if code and PROTECTIVE not in types else Boot()


def _of_gpt(head: bytes, sector: int) -> Boot:
    _mark, first, count, length = HEADER.unpack_from(head, sector)
    begin = min(first, HEAD) * sector
    kinds = {head[at : at + 16] for at in range(begin, min(len(head), begin + count * max(length, 1)), max(length, 1))}
    names = {ESP: ("efi", "an EFI system partition"), BIOS_BOOT: ("bios", "a BIOS boot partition")}
    found = [names[kind] for kind in names if kind in kinds]
    return Boot(tuple(one for one, _words in found), f"a GPT with {' and '.join(words for _one, words in found)}")


def mismatch(name: str, boot: Boot, firmware: str) -> str | None:
    """What to tell of a VM's first disk that its firmware can't boot."""
    if not boot.firmware or firmware in boot.firmware:
        return None
    return f"{name} has {boot.words}, so it boots with firmware: {boot.firmware[0]}, and the machine has {firmware}"
