# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that moves balloons: what it decides, for any node; and what it does to VMs, on a small stateful fake.

The fake has the calls of libvirt's Python library that the program makes, and guests that use memory of their node. The
same with libvirt, QEMU and Linux is in tests/soak/test_balloons.py.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")
from ansible_collections.drover.kvm.roles.hypervisor.files import drover_balloon as program
from ansible_collections.drover.kvm.roles.hypervisor.files.drover_balloon import Balloon, Keeper, targets

MIB, GIB = 2**20, 2**30
THRESHOLD = 4 * GIB


def some_balloons(dice: random.Random) -> list[Balloon]:
    found = []
    for number in range(dice.randint(0, 8)):
        full = dice.randint(16, 64 * 1024) * MIB
        minimum = dice.randint(1, full // MIB) * MIB
        current = dice.randint(minimum, full)
        least = dice.choice([minimum, dice.randint(minimum, 2 * full)])
        found.append(Balloon(f"vm{number}", current, least, minimum, full))
    return found


@pytest.mark.parametrize("seed", range(200))
def test_what_is_taken_and_given_stays_in_its_bounds_whatever_the_node_has(seed):
    dice = random.Random(seed)
    balloons = some_balloons(dice)
    sums = []
    for available in sorted(dice.randint(0, 4 * THRESHOLD) for turn in range(30)):
        found = targets(available, THRESHOLD, balloons)
        has = {one.name: found.get(one.name, one.current) for one in balloons}
        for one in balloons:
            assert min(one.current, max(one.least, one.minimum)) <= has[one.name] <= one.full
        taken = sum(one.current - has[one.name] for one in balloons)
        if available < THRESHOLD:
            assert 0 <= taken <= THRESHOLD * 5 // 4 - available
        elif available <= THRESHOLD * 7 // 4:
            assert all(has[one.name] <= max(one.current, one.least) for one in balloons)
            assert 0 <= -taken <= max(0, available - THRESHOLD * 6 // 4)
        else:
            assert 0 <= -taken <= available - THRESHOLD * 6 // 4
        sums.append(has)
    # The more the node has, the more has each VM, but for what is left over of whole MiB.
    for less, more in zip(sums, sums[1:]):
        assert all(less[name] <= more[name] + len(balloons) * MIB for name in less)


def test_each_gives_in_proportion_to_what_it_can_and_gets_in_proportion_to_what_it_lacks():
    balloons = [
        Balloon("a", 4 * GIB, GIB, GIB, 4 * GIB),
        Balloon("b", 2 * GIB, GIB, GIB, 4 * GIB),
        Balloon("c", 2 * GIB, 2 * GIB, 2 * GIB, 2 * GIB),
    ]
    # Two GiB are missing to five: three quarters of them from the one that can give three quarters of all.
    assert targets(3 * GIB, THRESHOLD, balloons) == {"a": 2560 * MIB, "b": 1536 * MIB}
    assert targets(0, THRESHOLD, balloons) == {"a": GIB, "b": GIB}
    assert targets(4 * GIB, THRESHOLD, balloons) == targets(7 * GIB, THRESHOLD, balloons) == {}
    assert targets(7 * GIB + 4 * MIB, THRESHOLD, balloons) == {"b": 3076 * MIB}
    assert targets(64 * GIB, THRESHOLD, balloons) == {"b": 4 * GIB}
    # Who uses nearly all that it was left comes first, and before others lack nothing any more.
    needy = [*balloons, Balloon("d", 2 * GIB, 2560 * MIB, GIB, 4 * GIB)]
    assert targets(6 * GIB, THRESHOLD, needy) == {}
    assert targets(7 * GIB, THRESHOLD, needy) == {"d": 2560 * MIB}
    assert targets(7 * GIB + 256 * MIB, THRESHOLD, needy) == {"b": 2486 * MIB, "d": 2889 * MIB}


def test_one_below_a_minimum_that_was_raised_gets_it_even_when_the_node_is_short():
    poor = Balloon("a", GIB, 2 * GIB, 2 * GIB, 4 * GIB)
    assert [targets(size * GIB, THRESHOLD, [poor]) for size in (1, 5)] == [{"a": 2 * GIB}] * 2


# In MiB: what it has, what its guest reports, and what it is left of 4000 with a minimum of 1000.
REPORTS: list[tuple[int, dict[str, int], int]] = [
    (4000, {}, 1000),
    (4000, {"last-update": 0, "rss": 5}, 1000),
    # 2800 are used, its kernel's own 200 among them, and a tenth of its memory stays free.
    (4000, {"available": 3800, "usable": 1200, "unused": 100}, 3200),
    (4000, {"available": 3800, "unused": 1200}, 3200),
    (4000, {"usable": 3900}, 1000),
    # The balloon has moved since the guest said this.
    (2000, {"available": 3800, "usable": 1200}, 3000),
    # It reports no more.
    (2000, {"available": 3800, "usable": 3700, "last-update": -3}, 2000),
]


@pytest.mark.parametrize("current, report, left", REPORTS)
def test_no_more_is_taken_than_the_guest_has_free(current, report, left):
    stats = {f"balloon.{name}": size * 1024 for name, size in report.items()}
    stats.update({"balloon.last-update": int(time.time()) - 61} if report.get("last-update") == -3 else {})
    assert program.least(1000 * MIB, current * MIB, 4000 * MIB, stats) == left * MIB


RECORD = "<metadata><vm xmlns='urn:drover:kvm:1'><min_memory>{}</min_memory></vm>{}</metadata>"
MARKER = "<migration xmlns='urn:drover:migration:1' id='1'/>"


@dataclass
class Guest:
    """A VM in the fake: in MiB what it has, uses and was started with; None where it reports nothing."""

    name: str
    memory: int = 1024
    minimum: int = 256
    used: int | None = 100
    more: str = ""
    marker: str = ""
    job: int = libvirt.VIR_DOMAIN_JOB_NONE
    paused: bool = False
    deaf: bool = False
    ended: bool = False
    balloon: str = "virtio"
    period: int = 0
    # What it never used of what it has, and how much of its memory it gives up between two rounds.
    unused: int = 0
    pace: int | None = None
    goal: int = 0
    log: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.current = self.memory

    def number(self):
        return 1

    def uuid(self):
        return self.name

    def xml(self, flags):
        defined = flags & libvirt.VIR_DOMAIN_XML_INACTIVE
        stats = f"<stats period='{self.period}'/>" if self.period and not defined else ""
        memory, current = self.memory * 1024, (self.memory if defined else self.current) * 1024
        record = RECORD.format(self.minimum * MIB, "" if defined else self.marker) if self.minimum else ""
        return (
            f"<domain>{record}<memory unit='KiB'>{memory}</memory><currentMemory unit='KiB'>{current}</currentMemory>"
            f"{self.more}<devices><memballoon model='{self.balloon}'>{stats}</memballoon></devices></domain>"
        )

    def info(self):
        return [self.job]

    def report(self, seconds, flags):
        assert flags == libvirt.VIR_DOMAIN_AFFECT_LIVE
        self.period = seconds

    def inflate(self, size, flags):
        assert flags == libvirt.VIR_DOMAIN_AFFECT_LIVE
        assert self.job == libvirt.VIR_DOMAIN_JOB_NONE, "it would wait for half a minute"
        if self.ended:
            raise libvirt.libvirtError("Domain not found")
        self.log.append(size // 1024)
        self.goal = size // 1024
        if not self.deaf and (self.pace is None or self.goal > self.current):
            self.current = self.goal

    def go_on(self):
        if self.pace and self.goal:
            self.current = max(self.goal, self.current - self.pace)

    def stats(self):
        found = {"balloon.current": self.current * 1024, "balloon.maximum": self.memory * 1024}
        found["balloon.rss"] = (self.current - self.unused) * 1024
        if self.balloon == "virtio":
            found["balloon.last-update"] = 0
        if self.period and self.used is not None:
            found["balloon.last-update"] = int(time.time())
            found["balloon.available"] = self.current * 1024
            found["balloon.usable"] = (self.current - self.used) * 1024
        return found


class Node:
    """The fake node: memory of which others take some, and all that its VMs have got."""

    def __init__(self, monkeypatch, *guests):
        self.guests, self.asked, self.others = guests, 0, 0
        self.total = 8192
        self.getAllDomainStats = self.stats
        monkeypatch.setattr(program, "PATIENCE", 0)
        monkeypatch.setattr(program, "meminfo", lambda: {"MemTotal": 8192 * MIB, "MemAvailable": self.available * MIB})

    @property
    def available(self):
        return self.total - self.others - sum(guest.current - guest.unused for guest in self.guests)

    def stats(self, kinds, flags):
        assert kinds == libvirt.VIR_DOMAIN_STATS_BALLOON
        running = flags & libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING
        self.asked += 1
        return [(domain_of(one), one.stats()) for one in self.guests if not (running and one.paused)]

    def close(self):
        pass


CALLS = {
    "ID": Guest.number,
    "UUIDString": Guest.uuid,
    "XMLDesc": Guest.xml,
    "jobInfo": Guest.info,
    "setMemoryStatsPeriod": Guest.report,
    "setMemoryFlags": Guest.inflate,
}


def domain_of(guest):
    """As the library hands it out."""
    calls = {name: partial(call, guest) for name, call in CALLS.items()}
    return SimpleNamespace(name=lambda: guest.name, **calls)


def turns(keeper, node, rounds=6):
    said = []
    for _turn in range(rounds):
        said += keeper.look(node)
        for guest in node.guests:
            guest.go_on()
    return said


def test_a_node_that_runs_short_takes_what_it_needs_and_gives_it_back_once(monkeypatch):
    node = Node(monkeypatch, Guest("a"), Guest("b", memory=2048), Guest("c", minimum=0))
    keeper = Keeper(1024 * MIB)
    assert turns(keeper, node) == [] and node.asked == 6 and [one.period for one in node.guests] == [0, 0, 0]
    node.others = 3584
    # In the first round its guests are asked what they use; in the next it takes what leads to 1280 MiB.
    assert list(keeper.look(node)) == [] and [one.period for one in node.guests] == [5, 5, 0]
    said = turns(keeper, node)
    assert said == [
        "a: 1024 MiB -> 790 MiB, as the node has 512 MiB available",
        "b: 2048 MiB -> 1515 MiB, as the node has 512 MiB available",
    ]
    assert 1279 <= node.available <= 1281 and node.guests[2].log == []
    # Half of what was taken fits again, and then all; each is one change.
    node.others = 2900
    assert len(turns(keeper, node)) == 2 and 1536 <= node.available <= 1538
    assert node.guests[0].current < 1024 and node.guests[1].current < 2048
    node.others = 0
    assert len(turns(keeper, node)) == 2
    assert [one.current for one in node.guests] == [1024, 2048, 1024] and turns(keeper, node) == []


@pytest.mark.parametrize("seed", range(30))
def test_it_comes_to_rest_while_the_load_stays_as_it_is(monkeypatch, seed):
    dice = random.Random(seed)
    sizes = [dice.choice([512, 1024, 2048]) for number in range(dice.randint(1, 4))]
    guests = [Guest(f"vm{number}", size, dice.randint(16, size)) for number, size in enumerate(sizes)]
    node, keeper = Node(monkeypatch, *guests), Keeper(dice.randint(256, 1536) * MIB)
    loads = [dice.randint(0, 8192 - sum(guest.minimum for guest in guests)) for number in range(12)]
    for node.others in loads:
        turns(keeper, node, 8)
        assert turns(keeper, node, 4) == []
        assert all(guest.minimum <= guest.current <= guest.memory for guest in guests)


LEFT_ALONE: dict[str, dict[str, Any]] = {
    "no minimum": {"minimum": 0},
    "a host device": {"more": "<devices><hostdev mode='subsystem' type='pci'/></devices>"},
    "a virtual function": {"more": "<devices><interface type='hostdev'/></devices>"},
    "huge pages": {"more": "<memoryBacking><hugepages/></memoryBacking>"},
    "locked memory": {"more": "<memoryBacking><locked/></memoryBacking>"},
    "a migration": {"job": libvirt.VIR_DOMAIN_JOB_UNBOUNDED},
    "a marker": {"marker": MARKER},
    "paused": {"paused": True},
    "no balloon": {"balloon": "none"},
}


@pytest.mark.parametrize("why", LEFT_ALONE)
def test_what_is_left_alone(monkeypatch, why):
    node = Node(monkeypatch, Guest("a", **LEFT_ALONE[why]), Guest("b"))
    node.others = 8192
    said = turns(Keeper(1024 * MIB), node)
    assert node.guests[0].log == [] and node.guests[0].period == 0 and said[0].startswith("b: 1024 MiB -> 256 MiB")


def test_a_guest_that_needs_its_memory_keeps_it(monkeypatch):
    node = Node(monkeypatch, Guest("a", used=700), Guest("b", used=None))
    node.others = 8192
    turns(Keeper(1024 * MIB), node)
    # 700 MiB and a tenth of its memory; of the one that reports nothing its minimum.
    assert [guest.current for guest in node.guests] == [802, 256]


def test_a_guest_that_does_not_follow_is_asked_once(monkeypatch):
    node = Node(monkeypatch, Guest("a", deaf=True, used=None))
    node.others = 8192
    keeper = Keeper(1024 * MIB)
    assert len(turns(keeper, node)) == 1 and node.guests[0].log == [256]


def test_what_was_asked_for_ends_when_the_guest_needs_its_memory_or_the_node_has_enough(monkeypatch):
    node = Node(monkeypatch, Guest("a", memory=2048, pace=200))
    node.others = 8192
    keeper = Keeper(1024 * MIB)
    turns(keeper, node, 5)
    assert node.guests[0].log == [304] and node.guests[0].current == 1248
    node.guests[0].used = 1200
    assert turns(keeper, node)[0].startswith("a: stays at 1248 MiB,") and node.guests[0].current == 1248
    node.guests[0].used = 100
    turns(keeper, node, 2)
    node.others, left = 8192 - 1400 - node.guests[0].current, node.guests[0].current
    assert turns(keeper, node)[0].startswith(f"a: stays at {left} MiB,") and node.guests[0].current == left


def test_a_guest_that_boots_has_time_for_its_first_report(monkeypatch):
    node = Node(monkeypatch, Guest("a", used=None))
    node.others, now = 8192, [100.0]
    monkeypatch.setattr(program, "PATIENCE", 300)
    monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
    keeper = Keeper(1024 * MIB)
    assert turns(keeper, node) == []
    now[0] += 299
    assert turns(keeper, node) == []
    now[0] += 1
    assert turns(keeper, node) == ["a: 1024 MiB -> 256 MiB, as the node has -1024 MiB available"]


def test_one_that_asks_for_rare_reports_is_asked_for_more(monkeypatch):
    node = Node(monkeypatch, Guest("a", period=3600))
    node.others = 8192
    turns(Keeper(1024 * MIB), node)
    assert node.guests[0].period == 5


def test_what_was_given_and_is_not_used_yet_is_not_given_again(monkeypatch):
    a, b = Guest("a", memory=2048), Guest("b", memory=2048)
    node, keeper = Node(monkeypatch, a, b), Keeper(1024 * MIB)
    node.others = 8192
    turns(keeper, node)
    taken = 2048 - a.current
    assert taken == 2048 - b.current
    # 364 MiB are beyond six quarters of the threshold.
    node.others = 8192 - a.current - b.current - 1900
    assert len(list(keeper.look(node))) == 2
    given = [guest.current - 2048 + taken for guest in node.guests]
    assert 362 <= sum(given) <= 364
    a.unused, b.unused = given
    assert turns(keeper, node, 40) == []
    # One that has all and was given it counts too.
    a.current, a.unused = 2048, 2048 - 2048 + taken
    assert turns(keeper, node, 5) == []


def test_one_that_ends_meanwhile_is_no_matter(monkeypatch):
    node = Node(monkeypatch, Guest("a", ended=True), Guest("b"))
    node.others = 8192
    assert [said[:2] for said in turns(Keeper(1024 * MIB), node, 2)] == ["b:"]


def test_off_gives_all_back_also_to_those_that_are_paused(monkeypatch):
    node = Node(monkeypatch, Guest("a"), Guest("b"), Guest("c", minimum=0))
    node.others = 6000
    turns(Keeper(1024 * MIB), node)
    node.guests[1].paused, node.others = True, 0
    assert program.off(node) == ["a: 256 MiB -> 1024 MiB", "b: 256 MiB -> 1024 MiB"]
    assert [(guest.current, guest.period) for guest in node.guests] == [(1024, 0)] * 3 and node.guests[2].log == []
    assert program.off(node) == []


def test_off_changes_nothing_where_it_can_not_give_all_back(monkeypatch):
    node = Node(monkeypatch, Guest("a"), Guest("b"))
    node.others = 7000
    turns(Keeper(1024 * MIB), node)
    before = [list(guest.log) for guest in node.guests]
    with pytest.raises(program.BalloonError, match=r"1536 MiB are .* of 680 MiB that are available 163 MiB stay"):
        program.off(node)
    node.others = 8192 - 512 - 1536
    with pytest.raises(program.BalloonError, match=r"of 1536 MiB that are available 163 MiB stay"):
        program.off(node)
    node.others, node.guests[1].job = 0, libvirt.VIR_DOMAIN_JOB_UNBOUNDED
    with pytest.raises(program.BalloonError, match="b: in a migration or another job"):
        program.off(node)
    assert [guest.log for guest in node.guests] == before


def test_off_goes_on_when_a_vm_ends_meanwhile_and_tells_all_else(monkeypatch):
    node = Node(monkeypatch, Guest("a"), Guest("b"))
    node.others = 8192
    turns(Keeper(1024 * MIB), node)
    node.others, code = 0, [program.GONE[0]]
    monkeypatch.setattr(libvirt.libvirtError, "get_error_code", lambda error: code[0])
    node.guests[0].ended = True
    program.off(node)
    assert [guest.current for guest in node.guests] == [256, 1024]
    code[0] = libvirt.VIR_ERR_INTERNAL_ERROR
    with pytest.raises(libvirt.libvirtError):
        program.off(node)


def test_the_service_goes_on_when_libvirt_comes_back(monkeypatch, capsys):
    node, answers = Node(monkeypatch, Guest("a")), [None, "gone", "gone", "away", None, None]
    node.others = 8192

    def opened(uri):
        words = answers.pop(0)
        if words:
            raise libvirt.libvirtError(words)
        return node

    def slept(seconds):
        if not answers:
            raise KeyboardInterrupt

    monkeypatch.setattr(program.libvirt, "open", opened)
    monkeypatch.setattr(program.time, "sleep", slept)
    with pytest.raises(KeyboardInterrupt):
        program.watch("qemu:///system", 1024 * MIB)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["gone", "away"] and [line[:2] for line in lines[2:]] == ["a:"]


THRESHOLDS = {"10%": 800 * MIB, "4GiB": 4 * GIB, "512MiB": 512 * MIB}


@pytest.mark.parametrize("text", THRESHOLDS)
def test_a_threshold(monkeypatch, text):
    monkeypatch.setattr(program, "meminfo", lambda: {"MemTotal": 8000 * MIB})
    assert program.threshold_of(text) == THRESHOLDS[text]


@pytest.mark.parametrize("text", ["", "0%", "10", "4GB", "-1GiB", "10 %", "1.5GiB", "10%\n"])
def test_what_is_no_threshold(text):
    with pytest.raises(ValueError, match="is no part of the memory"):
        program.threshold_of(text)


def test_the_program_says_why_it_could_not_give_all_back(monkeypatch, capsys):
    node = Node(monkeypatch, Guest("a", job=libvirt.VIR_DOMAIN_JOB_UNBOUNDED))
    monkeypatch.setattr(program.libvirt, "open", lambda uri: node)
    monkeypatch.setattr(sys, "argv", ["balloon", "off"])
    assert program.main() == 1 and "a: in a migration" in capsys.readouterr().err
    node.guests[0].job = libvirt.VIR_DOMAIN_JOB_NONE
    assert program.main() == 0
