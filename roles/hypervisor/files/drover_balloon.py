# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take memory from VMs by their balloons when the node runs short of it, and give it back when there is room.

    balloon watch THRESHOLD    the service: looks at the node's memory every ten seconds
    balloon off                give all back, up to what each VM's definition says

Installed by role drover.kvm.hypervisor. THRESHOLD is a part of the node's memory (10%) or a size (4GiB). Only running
VMs whose record says the least that they may be left (`min_memory` of module vm) are touched. What a VM has is asked of
libvirt in each round, and what it shall have is in its definition, so nothing is lost when this ends or libvirt does.
Standard library and libvirt only.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import libvirt

MEMINFO = Path("/proc/meminfo")
NAMESPACE = "{urn:drover:kvm:1}"
MARKER = "metadata/{urn:drover:migration:1}migration"
# What the node can't take a page of from the guest: it is pinned for a device, or never given back.
PINNED = ("devices/hostdev", "memoryBacking/hugepages", "memoryBacking/locked")
PINNING_NICS = ("hostdev", "vdpa")
KIB, MIB, UNITS = 2**10, 2**20, {"%": 0, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
PAUSE = 10  # seconds between two looks
PERIOD = 5  # seconds between two reports of a guest
STEP = 16 * MIB  # what was asked for and is not done yet is not changed for less
STALE = 60  # seconds after which a report says nothing any more
PATIENCE = 300  # seconds that a guest has for its first report, as it may just be booting
SPARE = 50  # one in so many parts of the node's memory stays its own when all is given back
GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


class BalloonError(Exception):
    """What could not be done, in a sentence."""


@dataclass(frozen=True)
class Balloon:
    """What a VM has, what it can be left now, the least it is ever left, and what its definition gives it; bytes."""

    name: str
    current: int
    least: int
    minimum: int
    full: int


def targets(available: int, threshold: int, balloons: Sequence[Balloon]) -> dict[str, int]:
    """What each VM that is to change shall have, by name; bytes.

    With less than the threshold available, as much is taken as leads to five quarters of it, of each in proportion to
    what it can give. What is beyond six quarters goes to guests that use nearly all that they were left, and with more
    than seven quarters the rest of it to each in proportion to what it lacks. So what was given back is no reason to
    take it again. A VM that has less than its minimum, which may have been changed, gets that in any case.
    """
    changes = {one.name: 0 for one in balloons}
    if available < threshold:
        room = {one.name: one.current - one.least for one in balloons}
        changes.update((name, -size) for name, size in shares(threshold * 5 // 4 - available, room).items())
    else:
        amount = max(0, available - threshold * 6 // 4)
        needy = shares(amount, {one.name: min(one.least, one.full) - one.current for one in balloons})
        room = {one.name: one.full - one.current - needy.get(one.name, 0) for one in balloons}
        rest = amount - sum(needy.values()) if available > threshold * 7 // 4 else 0
        for part in (needy, shares(rest, room)):
            changes.update((name, changes[name] + size) for name, size in part.items())
    wanted = {one.name: max(one.current + changes[one.name], one.minimum) for one in balloons}
    return {one.name: wanted[one.name] for one in balloons if wanted[one.name] != one.current}


def shares(amount: int, room: Mapping[str, int]) -> dict[str, int]:
    """An amount among those who have room for it, in proportion to that: all of it, or whole MiB. Bytes."""
    room = {name: size for name, size in room.items() if size > 0}
    total = sum(room.values())
    if amount >= total:
        return room
    found = {name: amount * size // total // MIB * MIB for name, size in room.items()}
    return {name: size for name, size in found.items() if size > 0}


def least(minimum: int, current: int, full: int, stats: Mapping[str, int]) -> int:
    """The least that a VM is left now, in bytes: its minimum, or what its guest uses and a tenth of its memory.

    `stats` is what the guest reports, in KiB; nothing is known of one that reports nothing. What it uses does not
    depend on the balloon, so a report that is some seconds old does no harm. Of one that has ceased to report nothing
    more is taken.
    """
    free, now = free_of(stats), time.time()
    if free is None:
        return minimum
    if now - stats.get("balloon.last-update", now) > STALE:
        return max(minimum, current)
    used = max(current, stats.get("balloon.available", 0) * KIB) - free * KIB
    return max(minimum, used + full // 10)


def free_of(stats: Mapping[str, int]) -> int | None:
    """What the guest has free by its last report, in KiB; None where it never sent one."""
    return stats.get("balloon.usable", stats.get("balloon.unused"))


def meminfo() -> dict[str, int]:
    """The sizes of /proc/meminfo, in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    return {name: int(size) * KIB for name, size in lines}


def threshold_of(text: str) -> int:
    """A threshold in bytes. Raises ValueError."""
    match = re.fullmatch(r"([1-9][0-9]*)(%|[MGT]iB)", text)
    if match is None:
        raise ValueError(f"{text!r} is no part of the memory such as 10%, and no size such as 4GiB")
    number, unit = int(match.group(1)), match.group(2)
    return number * (UNITS[unit] or meminfo()["MemTotal"] // 100)


class Machine:
    """A running VM, with what libvirt's statistics say of it in KiB."""

    def __init__(self, domain: Any, stats: Mapping[str, int]) -> None:
        self.domain, self.stats = domain, stats
        self.name = str(domain.name())
        self.key = (str(domain.UUIDString()), int(domain.ID()))
        self.definition = ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        said = self.definition.findtext(f"metadata/{NAMESPACE}vm/{NAMESPACE}min_memory", "")
        self.minimum = int(said) if said.isdecimal() else 0

    @cached_property
    def live(self) -> ET.Element:
        """As it runs."""
        return ET.fromstring(self.domain.XMLDesc(0))

    def balloon(self) -> Balloon:
        """Its balloon. A VM whose definition was changed since can't have more than it started with."""
        current, most = (self.stats[f"balloon.{name}"] * KIB for name in ("current", "maximum"))
        full = min(int(self.definition.findtext("currentMemory", "0")) * KIB, most)
        minimum = min(self.minimum, full)
        return Balloon(self.name, current, least(minimum, current, full, self.stats), minimum, full)

    def is_free(self) -> bool:
        """Whether the node may take pages of it: it has a balloon, and nothing that pins its memory."""
        pinned = any(self.live.find(path) is not None for path in PINNED)
        pinned = pinned or any(nic.get("type") in PINNING_NICS for nic in self.live.iterfind("devices/interface"))
        return not pinned and "balloon.last-update" in self.stats

    def is_busy(self) -> bool:
        """Whether it is in a migration, or in another job that lets nobody else change it."""
        return self.live.find(MARKER) is not None or self.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE

    def untouched(self) -> int:
        """What it has and has never used, in bytes: the node counts that as available still."""
        current = self.stats["balloon.current"]
        return max(0, current - self.stats.get("balloon.rss", current)) * KIB

    def reports(self) -> bool:
        """Whether its guest reports what it uses, if it can; else it is asked to, and has by the next round."""
        asked = 0 < period(self.live) <= STALE // 2
        if not asked:
            self.domain.setMemoryStatsPeriod(PERIOD, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return asked

    def set(self, size: int) -> None:
        """Move the balloon of the running VM; its definition stays."""
        self.domain.setMemoryFlags(size // KIB, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def leave(self, size: int) -> None:
        """Let it have that much, and its guest report as its definition says."""
        self.set(size)
        self.domain.setMemoryStatsPeriod(period(self.definition), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def period(root: ET.Element) -> int:
    """How often a guest reports what it uses, in seconds; 0 for never."""
    found = root.find("devices/memballoon/stats")
    return 0 if found is None else int(found.get("period", 0))


def machines(connection: Any, short: bool, flags: int, known: Collection[str] = ()) -> list[Machine]:
    """The VMs with a minimum that can be changed: all while the node is short, else those that lack some or are known.

    `known` are UUIDs.
    """
    found = []
    for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_BALLOON, flags):
        lacks = "balloon.current" in stats and stats["balloon.current"] < stats["balloon.maximum"]
        if "balloon.current" in stats and (short or lacks or domain.UUIDString() in known):
            # A VM may end at any moment.
            with suppress(libvirt.libvirtError):
                machine = Machine(domain, stats)
                if machine.minimum and machine.is_free():
                    found.append(machine)
    return found


class Keeper:
    """The one who watches. It knows what it has asked for that guests have not done yet, and to whom it has given."""

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.asked: dict[tuple[str, int], int] = {}
        self.first: dict[tuple[str, int], float] = {}
        self.given: set[str] = set()

    def look(self, connection: Any) -> Iterator[str]:
        """One round: a sentence for each balloon that is moved. Raises libvirtError when libvirt does not answer."""
        available = meminfo()["MemAvailable"]
        found = self._willing(connection, available < self.threshold)
        balloons = {name: one.balloon() for name, one in found.items()}
        before, self.asked = self.asked, {}
        for name, target in self._wanted(available, found, balloons, before).items():
            balloon, key = balloons[name], found[name].key
            last = before.get(key, balloon.current)
            if target == last or (last != balloon.current and abs(target - last) < STEP):
                self.asked[key] = last
                continue
            with suppress(libvirt.libvirtError):
                found[name].set(target)
                self.asked[key] = target
                if target > balloon.current:
                    self.given.add(key[0])
                yield f"{moved(balloon, target)}, as the node has {available // MIB} MiB available"

    def _wanted(
        self,
        available: int,
        found: Mapping[str, Machine],
        balloons: Mapping[str, Balloon],
        before: Mapping[tuple[str, int], int],
    ) -> dict[str, int]:
        """What each VM shall have. What some were given and have not used yet is not given to others."""
        if available >= self.threshold:
            untouched = sum(one.untouched() for one in found.values())
            available = max(self.threshold, available - untouched)
        wanted = targets(available, self.threshold, list(balloons.values()))
        for name, balloon in balloons.items():
            # What was asked for goes on: of a guest that needs its memory now, or in excess of what the node lacks.
            if name not in wanted and before.get(found[name].key, balloon.current) < balloon.current:
                wanted[name] = balloon.current
        return wanted

    def _willing(self, connection: Any, short: bool) -> dict[str, Machine]:
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        found, now, before = {}, time.monotonic(), self.first
        self.first = {}
        for one in machines(connection, short, flags, self.given):
            with suppress(libvirt.libvirtError):
                if not one.is_busy() and (not short or self._may_give(one, before.get(one.key, now), now)):
                    found[one.name] = one
        return found

    def _may_give(self, one: Machine, first: float, now: float) -> bool:
        """Whether what its guest uses is known, or it had time enough to say it."""
        self.first[one.key] = first
        return one.reports() and (free_of(one.stats) is not None or now - first >= PATIENCE)


def moved(balloon: Balloon, target: int) -> str:
    """A change in words."""
    if target == balloon.current:
        return f"{balloon.name}: stays at {target // MIB} MiB"
    return f"{balloon.name}: {balloon.current // MIB} MiB -> {target // MIB} MiB"


@contextmanager
def unless_gone() -> Iterator[None]:
    """A VM that ends meanwhile needs nothing any more. Raises libvirtError for all else."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in GONE:
            raise


def off(connection: Any) -> list[str]:
    """Give all back; returns what was done. Raises BalloonError, before anything is changed, where that can't be."""
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
    found, busy = {}, []
    for one in machines(connection, True, flags):
        with unless_gone():
            busy += [one.name] if one.is_busy() else []
            found[one] = one.balloon()
    if busy:
        raise BalloonError(
            f"{', '.join(sorted(busy))}: in a migration or another job; run this again when it has ended"
        )
    missing, memory = sum(max(0, one.full - one.current) for one in found.values()), meminfo()
    available, spare = memory["MemAvailable"], memory["MemTotal"] // SPARE
    if missing and missing + spare > available:
        words = f"{missing // MIB} MiB are to be given back to VMs, of {available // MIB} MiB that are available"
        raise BalloonError(f"{words} {spare // MIB} MiB stay for the node: move VMs away, or shut some down")
    for machine, balloon in found.items():
        with unless_gone():
            machine.leave(max(balloon.full, balloon.current))
    return [moved(one, one.full) for one in found.values() if one.full > one.current]


def tell(sentences: Iterable[str]) -> None:
    """Print, for the journal."""
    for sentence in sentences:
        print(sentence, flush=True)


def watch(uri: str, threshold: int) -> None:
    """Look for ever. Each round has a connection of its own: libvirt may have been started anew."""
    keeper, complaint = Keeper(threshold), ""
    if threshold > meminfo()["MemTotal"] // 2:
        tell([f"{threshold // MIB} MiB are more than half of the node's memory: what is taken is hardly given back"])
    while True:
        try:
            with closing(libvirt.open(uri)) as connection:
                tell(keeper.look(connection))
            complaint = ""
        except libvirt.libvirtError as error:
            if str(error) != complaint:
                complaint = str(error)
                tell([complaint])
        time.sleep(PAUSE)


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description="Take memory from VMs when the node runs short, and give it back.")
    parser.add_argument("--uri", default="qemu:///system", help="where libvirt answers")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("watch").add_argument("threshold", type=threshold_of)
    verbs.add_parser("off")
    given = parser.parse_args()
    # Without a handler the library writes each error to stderr as well.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    if given.verb == "watch":
        watch(given.uri, given.threshold)
    try:
        with closing(libvirt.open(given.uri)) as connection:
            tell(off(connection))
    except (BalloonError, libvirt.libvirtError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
