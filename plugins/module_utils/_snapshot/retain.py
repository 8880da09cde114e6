# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots of a VM are kept. Pure; times in seconds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .facts import Snapshot
from .record import Note

AGE = re.compile(r"(\d{1,9}) ?(s|min|m|h|d|w)?", re.ASCII)
SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def check_age(value: str) -> int:
    """Seconds of an age such as 30d, 12h, 90min or 600. Raises ValueError."""
    match = AGE.fullmatch(str(value))
    if not match:
        raise ValueError(f"{value!r} is no age; write it as 30d, 12h, 90min or in seconds")
    return int(match[1]) * SECONDS[match[2] or ""]


def surplus(
    snapshots: Iterable[Snapshot],
    notes: Mapping[str, Note],
    tags: Iterable[str],
    keep: int,
    max_age: int | None,
    now: float,
) -> list[str]:
    """The names of those to remove, the oldest first: ours that have all the tags, but for the newest `keep`.

    With `max_age` only those that are older.
    """
    ours = [one for one in snapshots if one.name in notes and set(tags) <= set(notes[one.name].tags)]
    old = sorted(ours, key=lambda one: (one.time, one.name), reverse=True)[keep:]
    return [one.name for one in reversed(old) if max_age is None or now - one.time > max_age]
