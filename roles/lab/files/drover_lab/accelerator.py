# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which accelerator guests can use here. A device that opens is no proof: only a guest that boots is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .base import cache_dir


def _key() -> str:
    return f"{os.uname().release} {Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}"


def known() -> str:
    """``kvm`` when a guest was seen to boot with it since this host started, else ``tcg``."""
    try:
        found = json.loads((cache_dir() / "accelerator.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return "tcg"
    return str(found["accel"]) if found.get("key") == _key() else "tcg"


def remember(accel: str) -> None:
    """Keep what was found until this host restarts."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    path = cache_dir() / "accelerator.json"
    path.with_suffix(".new").write_text(json.dumps({"key": _key(), "accel": accel}), encoding="utf-8")
    path.with_suffix(".new").rename(path)
