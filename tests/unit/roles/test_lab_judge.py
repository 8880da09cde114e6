# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The observer's judgement must bite: each broken invariant, made up, is found; a clean move is not one."""

from __future__ import annotations

from typing import Any

from ansible_collections.drover.kvm.tests.lab.judge import judge

UUID = "11111111-2222-3333-4444-555555555555"
Sample = dict[str, Any]


def copies(runs: list[tuple[str, ...]]) -> list[Sample]:
    """Samples 200 ms apart: after each, the copies on the named nodes have run 5 ms; ``-hv2`` is there and waits."""
    ran: dict[str, float] = {mark.lstrip("-"): 100.0 for mark in runs[0]}
    made = []
    for number, nodes in enumerate([(), *runs]):
        there: list[Sample] = []
        for mark in nodes:
            node = mark.lstrip("-")
            ran[node] = ran.get(node, 100.0) + (0 if mark.startswith("-") else 5)
        there += [{"uuid": UUID, "name": "web1", "node": node, "pid": 7, "ran_ms": ms} for node, ms in ran.items()]
        made.append({"kind": "copies", "time": number * 0.2, "copies": there})
    return made


def word(time: float, counter: int, boot: str = "a", milliseconds: int = 0) -> Sample:
    """A datagram of web1."""
    known = {"name": "web1", "boot": boot, "counter": counter, "monotonic_ms": milliseconds or counter * 100}
    return {"kind": "word", "time": time, **known}


def definitions(time: float, **nodes: dict[str, str]) -> Sample:
    """What the nodes have defined."""
    return {"kind": "definitions", "time": time, "nodes": nodes}


def test_a_clean_migration_breaks_nothing() -> None:
    runs: list[tuple[str, ...]] = [("hv1",), ("hv1", "-hv2"), ("hv1", "hv2"), ("-hv1", "hv2"), ("hv2",), ("hv2",)]
    words = [word(0.1 * n, n) for n in range(1, 12)]
    verdict = judge([*copies(runs), *words, definitions(0, hv1={UUID: "web1"}), definitions(2, hv2={UUID: "web1"})])
    assert verdict.ok, str(verdict)
    assert [place[0] for place in verdict.guests["web1"].where] == ["hv1", "hv2"]
    assert verdict.guests["web1"].gap_ms == 100
    assert verdict.blind_ms == 200


def test_two_running_copies_are_found() -> None:
    verdict = judge(copies([("hv1",), ("hv1", "-hv2"), ("hv1", "hv2"), ("hv1", "hv2"), ("hv2",)]))
    assert [text.split(":")[0] for text in verdict.violations] == ["INV1"]
    assert "hv1 (process 7) and hv2 (process 7)" in verdict.violations[0]


def test_a_waiting_copy_is_no_second_run() -> None:
    assert judge(copies([("hv1", "-hv2")] * 5)).ok


def test_a_counter_that_goes_back_is_found() -> None:
    verdict = judge([word(1, 10), word(2, 11), word(3, 9, boot="b")])
    assert verdict.violations == ["INV3: web1: counter went from 11 to 9 at 3.0 s"]


def test_two_histories_with_the_same_counter_are_found() -> None:
    verdict = judge([word(1, 10), word(1.01, 10, milliseconds=1003)])
    assert [text.split(":")[0] for text in verdict.violations] == ["INV3"]


def test_a_datagram_that_arrives_twice_is_no_second_history() -> None:
    assert judge([word(1, 10), word(1.01, 10), word(1.1, 11)]).ok


def test_a_lost_write_is_found_on_the_disk() -> None:
    disk = {"kind": "disk", "time": 5, "name": "web1", "counter": 10}
    assert judge([word(1, 10), disk]).ok
    assert judge([word(1, 11), disk]).violations == ["INV3: web1: its disk says 10 at 5.0 s, it had said 11"]


def test_a_vm_that_vanishes_or_appears_is_found() -> None:
    other = "99999999-2222-3333-4444-555555555555"
    before, after = definitions(0, hv1={UUID: "web1"}), definitions(9, hv1={other: "web2"})
    assert [text.split(" ")[1] for text in judge([before, after]).violations] == ["web1", "web2"]
    assert judge([before, after], new=[other], gone=[UUID]).ok


def test_a_vm_defined_twice_at_rest_is_found() -> None:
    both = definitions(9, hv1={UUID: "web1"}, hv2={UUID: "web1"})
    verdict = judge([definitions(0, hv1={UUID: "web1"}), both])
    assert verdict.violations == [f"INV5: web1 ({UUID}) is defined on hv1 and hv2"]
    assert judge([definitions(0, hv1={UUID: "web1"}), both, definitions(10, hv2={UUID: "web1"})]).ok


def test_the_longest_silence_is_measured() -> None:
    verdict = judge([word(1, 1), word(1.1, 2), word(2.4, 3), word(2.5, 4)])
    assert verdict.guests["web1"].gap_ms == 1300
    assert "longest gap 1300 ms" in str(verdict)
