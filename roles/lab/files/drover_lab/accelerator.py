# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which accelerator guests can use here. A device that opens is no proof: only a guest that boots is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .base import Base, cache_dir
from .guest import Guests
from .run import LabError, say

BOOT_SECONDS = 30


def _key() -> str:
    return f"{os.uname().release} {Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}"


def known() -> str:
    """What was found since this host started: ``kvm`` or ``tcg``; "" when nobody has tried."""
    try:
        found = json.loads((cache_dir() / "accelerator.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return ""
    return str(found["accel"]) if found.get("key") == _key() else ""


def remember(accel: str) -> None:
    """Keep what was found until this host restarts."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    path = cache_dir() / "accelerator.json"
    path.with_suffix(".new").write_text(json.dumps({"key": _key(), "accel": accel}), encoding="utf-8")
    path.with_suffix(".new").rename(path)


def find(base: Base) -> str:
    """Boot a guest with KVM under a time limit, unless that was tried since this host started; return what is known."""
    if known():
        return known()
    accel = "kvm" if Path("/dev/kvm").exists() and _boots(base) else "tcg"
    remember(accel)
    return accel


def _boots(base: Base) -> bool:
    guests = Guests(base)
    guests.ensure()
    prepared = base.ensure(prepared=True)
    qemu = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "128", "-nodefaults", "-display", "none"]
    qemu += ["-serial", "stdio", "-snapshot", "-drive", "file=/guest/tiny.img,format=raw,if=virtio"]
    # The guest never ends by itself: its first words are what counts, whatever timeout says of its end.
    words = 'timeout --signal=KILL "$@" || true'
    options = ["--volatile=overlay", "--bind=/dev/kvm", f"--bind-ro={guests.folder}:/guest"]
    say(f"trying whether a guest boots with KVM (at most {BOOT_SECONDS} s)")
    try:
        shown = base.inside(prepared, ["sh", "-c", words, "sh", str(BOOT_SECONDS), *qemu], options)
    except LabError:
        return False
    return "drover: counting" in shown
