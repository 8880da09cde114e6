# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the observer's samples mean. Pure: it judges lists of dicts, whoever collected them.

A sample is one of (``time`` in seconds on one clock):

    {"kind": "copies", "time": t, "copies": [{"uuid", "name", "node", "pid", "ran_ms"}]}   every QEMU there is
    {"kind": "word", "time": t, "name", "boot", "counter", "monotonic_ms"}                 a guest's datagram
    {"kind": "definitions", "time": t, "nodes": {node: {uuid: name}}}                      persistent definitions
    {"kind": "disk", "time": t, "name", "counter"}                                         a counter read from a disk
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Sample = dict[str, Any]
# A vCPU that runs a guest takes more than this between two samples (4 ms and up were seen); that of a waiting copy
# takes nothing, but for about a millisecond when it is made.
RUNS_MS = 1.0


@dataclass
class Guest:
    """What was seen of one VM."""

    uuid: str = ""
    gap_ms: int = 0
    first: int = 0
    last: int = 0
    where: list[tuple[str, float, float]] = field(default_factory=list)


@dataclass
class Verdict:
    """The outcome: broken invariants in words, and per VM where it ran and its longest silence."""

    violations: list[str]
    guests: dict[str, Guest]
    blind_ms: int

    @property
    def ok(self) -> bool:
        """Whether every invariant held."""
        return not self.violations

    def __str__(self) -> str:
        """For people, and for the message of a failed test."""
        lines = list(self.violations) or ["all invariants held"]
        for name, guest in sorted(self.guests.items()):
            where = ", ".join(f"{node} {begin:.1f}-{end:.1f} s" for node, begin, end in guest.where)
            lines.append(f"{name}: ran on {where}; counter {guest.first}-{guest.last}; longest gap {guest.gap_ms} ms")
        return "\n".join([*lines, f"longest time without a sample: {self.blind_ms} ms"])


def judge(samples: Iterable[Sample], new: Iterable[str] = (), gone: Iterable[str] = ()) -> Verdict:
    """Judge a whole run. ``new`` and ``gone`` are UUIDs that may come and go in it."""
    ordered = sorted(samples, key=lambda sample: float(sample["time"]))
    copies = [sample for sample in ordered if sample["kind"] == "copies"]
    words = [sample for sample in ordered if sample["kind"] == "word"]
    definitions = [sample for sample in ordered if sample["kind"] == "definitions"]
    guests: dict[str, Guest] = {}
    running = list(_running(copies))
    violations = [*_single_run(running), *_nothing_lost(words, ordered)]
    violations += [*_nothing_forgotten(copies, definitions, set(new), set(gone)), *_one_definition(definitions)]
    _places(running, guests)
    _gaps(words, guests)
    times = [float(sample["time"]) for sample in copies]
    blind = max((after - before for before, after in zip(times, times[1:])), default=0.0)
    return Verdict(violations, guests, round(blind * 1000))


def _running(copies: list[Sample]) -> Iterator[tuple[float, float, dict[str, list[Sample]]]]:
    """Per interval between two samples: its ends, and UUID → the copies whose vCPUs ran in it."""
    for before, after in zip(copies, copies[1:]):
        earlier = {(copy["node"], copy["pid"]): float(copy["ran_ms"]) for copy in before["copies"]}
        ran: dict[str, list[Sample]] = {}
        for copy in after["copies"]:
            ran_ms = float(copy["ran_ms"])
            took = ran_ms - earlier.get((copy["node"], copy["pid"]), ran_ms)
            if took > RUNS_MS:
                ran.setdefault(copy["uuid"], []).append({**copy, "ran": took})
        yield float(before["time"]), float(after["time"]), ran


def _single_run(running: list[tuple[float, float, dict[str, list[Sample]]]]) -> Iterator[str]:
    """INV1. A hand-over within one interval shows both ends in it; two intervals in a row are two running copies."""
    said = set()
    for (begin, _end, first), (_begin, end, second) in zip(running, running[1:]):
        for uuid, copies in second.items():
            both = {(copy["node"], copy["pid"]) for copy in copies}
            both &= {(copy["node"], copy["pid"]) for copy in first.get(uuid, [])}
            if len(both) > 1 and uuid not in said:
                said.add(uuid)
                nodes = " and ".join(sorted(f"{node} (process {pid})" for node, pid in both))
                yield f"INV1: {copies[0]['name']} ran twice at {begin:.1f}-{end:.1f} s: on {nodes}"


def _nothing_lost(words: list[Sample], samples: list[Sample]) -> Iterator[str]:
    """INV3. No counter goes back, and what was said last is on the disk that was read after it."""
    last: dict[str, Sample] = {}
    said = set()
    for sample in samples:
        if sample["kind"] not in ("word", "disk"):
            continue
        name, counter = sample["name"], int(sample["counter"])
        before = last.get(name)
        if sample["kind"] == "disk":
            if before and counter < int(before["counter"]):
                said_last = before["counter"]
                yield f"INV3: {name}: its disk says {counter} at {sample['time']:.1f} s, it had said {said_last}"
            continue
        # One datagram may arrive twice; another one with the same or a lower counter is from another history.
        same = before and all(before[key] == sample[key] for key in ("boot", "counter", "monotonic_ms"))
        if before and not same and counter <= int(before["counter"]) and name not in said:
            said.add(name)
            yield f"INV3: {name}: counter went from {before['counter']} to {counter} at {sample['time']:.1f} s"
        if not before or counter > int(before["counter"]):
            last[name] = sample


def _known(copies: list[Sample], definitions: list[Sample], which: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for sample in definitions[which:][:1]:
        for names in sample["nodes"].values():
            found.update(names)
    for sample in copies[which:][:1]:
        found.update({copy["uuid"]: copy["name"] for copy in sample["copies"]})
    return found


def _nothing_forgotten(copies: list[Sample], definitions: list[Sample], new: set[str], gone: set[str]) -> Iterator[str]:
    """INV4. The same VMs, running or defined, at the end as at the beginning."""
    before, after = _known(copies, definitions, 0), _known(copies, definitions, -1)
    for uuid in sorted(set(before) - set(after) - gone):
        yield f"INV4: {before[uuid]} ({uuid}) is gone"
    for uuid in sorted(set(after) - set(before) - new):
        yield f"INV4: {after[uuid]} ({uuid}) has come from nowhere"


def _one_definition(definitions: list[Sample]) -> Iterator[str]:
    """INV5. At rest (the last look) no VM is defined on two nodes."""
    for sample in definitions[-1:]:
        homes: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        for node, found in sample["nodes"].items():
            for uuid, name in found.items():
                homes.setdefault(uuid, []).append(node)
                names[uuid] = name
        for uuid, nodes in sorted(homes.items()):
            if len(nodes) > 1:
                yield f"INV5: {names[uuid]} ({uuid}) is defined on {' and '.join(sorted(nodes))}"


def _places(running: list[tuple[float, float, dict[str, list[Sample]]]], guests: dict[str, Guest]) -> None:
    """Where each VM ran and when; in an interval with both ends of a hand-over, the one that ran more counts."""
    for begin, end, ran in running:
        for uuid, copies in ran.items():
            most = max(copies, key=lambda copy: float(copy["ran"]))
            guest = guests.setdefault(most["name"], Guest())
            guest.uuid = uuid
            stays = guest.where and guest.where[-1][0] == most["node"]
            since = guest.where.pop()[1] if stays else begin
            guest.where.append((most["node"], since, end))


def _gaps(words: list[Sample], guests: dict[str, Guest]) -> None:
    heard: dict[str, float] = {}
    for word in words:
        guest = guests.setdefault(word["name"], Guest())
        if word["name"] in heard:
            guest.gap_ms = max(guest.gap_ms, round((word["time"] - heard[word["name"]]) * 1000))
        else:
            guest.first = int(word["counter"])
        heard[word["name"]] = float(word["time"])
        guest.last = max(guest.last, int(word["counter"]))
