# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of disks, by the program that every node has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def qemu_img(*words: Any) -> str:
    """What it prints."""
    return subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True).stdout


def content(path: Path, out: Path, image_format: str) -> bytes:
    """What a guest sees in an image, written to `out` on the way; another process may have the image open."""
    qemu_img("convert", "-U", "-f", image_format, "-O", "raw", path, out)
    return out.read_bytes()
