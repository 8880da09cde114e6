# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kind of storage says of the snapshots that it keeps by itself: a file for each kind, as `rbd.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple, Protocol
from xml.etree.ElementTree import Element


class Extent(NamedTuple):
    """A place that was written; with `there` false what was in it was given back (trim)."""

    offset: int
    length: int
    there: bool


class Part(NamedTuple):
    """One volume's part of a snapshot: the storage's own `id` of it, never used twice, and when it was made.

    `size` is the volume's of that moment. One that is `protected` may be the ground of other volumes.
    """

    name: str
    id: str
    time: float
    size: int
    protected: bool


class Look(NamedTuple):
    """A volume now: who has it open, the marks by the names of snapshots, and its snapshots, the oldest first."""

    size: int
    users: Sequence[str]
    marks: Mapping[str, str]
    parts: Sequence[Part]


class Volume(Protocol):
    """One open volume; `name` is for people. All verbs raise our errors in the storage's own words.

    - `take` returns the storage's own id of the new snapshot.
    - `mark` writes what is noted of a snapshot, there or not; None takes it away.
    - `roll_back` makes the volume what it was; broken off, the same call goes on.
    - `written` tells what has changed since a snapshot.
    - `held` tells the bytes that each of its snapshots holds; None where that can't be told in short time.
    - `is_like`: whether the volume has the size of a snapshot, and in these places what that has there.
    """

    name: str

    def look(self) -> Look: ...

    def mark(self, snapshot: str, text: str | None) -> None: ...

    def take(self, snapshot: str) -> str: ...

    def drop(self, snapshot: str) -> None: ...

    def roll_back(self, snapshot: str) -> None: ...

    def written(self, since: str) -> list[Extent]: ...

    def held(self, parts: Iterable[Part]) -> dict[str, int | None]: ...

    def is_like(self, snapshot: str, places: Collection[tuple[int, int]]) -> bool: ...


class Storage(NamedTuple):
    """A kind: its name as the option `kind`, which disks (XML) are of it, and how the volume of one is opened.

    `in_use` (volume, who has it open) are the words for one that must not be set back.
    """

    kind: str
    recognises: Callable[[Element], bool]
    opened: Callable[[Element], AbstractContextManager[Volume]]
    in_use: Callable[[str, Sequence[str]], str]
