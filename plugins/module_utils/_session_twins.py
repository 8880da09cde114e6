# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two volumes of one WWID, as of an array whose clone kept the serial of its origin: for multipath they are one disk.

It makes one map of both and sends the requests of who uses the one to either. So a login that brings such a unit is
taken back as soon as the kernel has read its WWID.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from threading import Lock
from typing import NamedTuple

from ._blocks import udev_wwid
from ._errors import DroverError, Failed, Refused
from ._initiator import Initiator, Record


class Unit(NamedTuple):
    """A disk of the SAN on this node: its `target`, its number there, a path to it (sdb, or 3:0:0:1), and its WWID."""

    target: str
    lun: int
    disk: str
    wwid: str

    def __str__(self) -> str:
        """As in messages."""
        return f"logical unit {self.lun} of {self.target} ({self.disk})"


def twins(units: Iterable[Unit], target: str, ways: Collection[str]) -> tuple[Unit, Unit] | None:
    """A unit of the target and another volume of its WWID; None when there is no such pair.

    Paths to one unit are those to one number of one target, whatever the portal, and to the same number of the targets
    that are declared to be other `ways` to it. A target's name is its own in the whole world (RFC 7143, 4.2.7).
    """
    known = [unit for unit in units if unit.wwid]
    ours = {unit.wwid: unit for unit in reversed(known) if unit.target == target}
    for unit in known:
        own = ours.get(unit.wwid, unit)
        same = unit.lun == own.lun and (unit.target == target or unit.target in ways)
        if own is not unit and not same:
            return own, unit
    return None


class Arrivals:
    """The logins of this run, each with what it takes to take it back. Several threads use it."""

    def __init__(self, initiator: Initiator) -> None:
        self.initiator = initiator
        self.lock = Lock()
        self.made: dict[str, list[tuple[Record, Record | None]]] = {}
        self.refused: dict[str, str] = {}
        self.looks = 0  # how many have begun
        self.seen: tuple[int, list[Unit]] = 0, []

    def log_in(self, record: Record, before: Record | None) -> None:
        """Log in; `before` is the record that was there. Raises Unreachable, Failed."""
        with self.lock:
            self.made.setdefault(record.target, []).append((record, before))
        self.initiator.login(record)

    def units(self) -> list[Unit]:
        """All units on this node, whoever logged in to them."""
        found = self.initiator.units()
        return [Unit(target, lun, disk, udev_wwid(told) or told) for target, lun, disk, told in found]

    def check(self, units: Iterable[Unit], target: str, ways: Collection[str]) -> None:
        """Raise Refused when a unit of the target and another volume have one WWID; nothing is done about it."""
        pair = twins(units, target, ways)
        if pair is not None:
            mend = "This run logged in to neither: log out of the one that nobody uses"
            raise Refused(f"{words(pair)}. {mend}", **data(pair))

    def check_new(self, target: str, ways: Collection[str]) -> None:
        """The same after a login: what this run logged in to is logged out again, and its record is what it was.

        Where both are of this run, both go: nobody can tell which one is the clone. Raises Refused, Failed.
        """
        asked = self.looks
        with self.lock:
            pair = None if target in self.refused else twins(self._since(asked), target, ways)
            if pair is not None:
                new = sorted({unit.target for unit in pair} & set(self.made))
                self.refused.update(dict.fromkeys(new, f"{words(pair)}. Logged out again: {', '.join(new)}"))
            if target in self.refused:
                for one in dict.fromkeys((target, *(unit.target for unit in pair or ()))):
                    self._take_back(one, self.refused[target])
                raise Refused(self.refused[target], **(data(pair) if pair else {}))

    def _since(self, asked: int) -> list[Unit]:
        """All units by a look that began after the question, when `asked` looks had begun.

        So it has what the asking thread logged in to before. One look answers all threads that waited for the lock.
        """
        if self.seen[0] <= asked:
            self.looks += 1
            self.seen = self.looks, self.units()
        return self.seen[1]

    def _take_back(self, target: str, why: str) -> None:
        self.seen = 0, []
        try:
            # It stays there: a login of it may be under way, whose thread comes here when it is done.
            for record, before in self.made.get(target, ()):
                for session in self.initiator.sessions(target):
                    if session.portal == record.portal:
                        self.initiator.logout(session)
                self.initiator.delete(record)
                if before is not None:
                    self.initiator.write(before)
        except DroverError as error:
            raise Failed(f"{why}, which failed: {error.message}", **error.details) from None


def words(pair: tuple[Unit, Unit]) -> str:
    """What is wrong with a pair, and what mends it."""
    return (
        f"{pair[0]} and {pair[1]} have the same WWID {pair[0].wwid}, so multipath takes them for one disk. Is one a "
        "clone that kept the serial of the other? Give it a serial of its own on the SAN (only where they are two ways "
        "to one volume, name both targets in same_units_as)"
    )


def data(pair: tuple[Unit, Unit]) -> dict[str, object]:
    """The pair as a result shows it."""
    return {"wwid": pair[0].wwid, "units": [{"target": u.target, "lun": u.lun, "device": u.disk} for u in pair]}
