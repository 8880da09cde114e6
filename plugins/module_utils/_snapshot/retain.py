# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots of a VM are kept. Pure; times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .facts import Snapshot
from .record import Note


def surplus(
    snapshots: Iterable[Snapshot],
    notes: Mapping[str, Note],
    tags: Iterable[str],
    keep: int,
    max_age: int | None,
    now: float,
) -> list[str]:
    """The names of those to remove: ours that have all the tags, but for the newest `keep`.

    With `max_age` only those that are older.
    """
    ours = [one for one in snapshots if one.name in notes and set(tags) <= set(notes[one.name].tags)]
    old = sorted(ours, key=lambda one: (one.time, one.name), reverse=True)[keep:]
    return [one.name for one in old if max_age is None or now - one.time > max_age]
