# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How hard a migration presses: what applies to a VM, the steps of the downtime, the end of its time."""

from __future__ import annotations

import json
import time

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._migration import pace
from ansible_collections.drover.kvm.plugins.module_utils._migration.order import Order, under_way
from ansible_collections.drover.kvm.plugins.module_utils._migration.pace import Pace, check_compression, chosen, seconds

GIB, MIB = 2**30, 2**20
POLICIES = [
    {"tag": "db", "max_downtime": 5000, "when_stuck": "pause", "bandwidth": None},
    {"tag": "web", "max_downtime": 100, "bandwidth": MIB},
]


def ordered(**options):
    return Order("1", "live", "vm1", "u1", "hv1", "hv2", "hv1", **options)


@pytest.mark.parametrize(
    "params, tags, expected",
    [
        ({}, [], {"max_downtime": 1000, "when_stuck": "abort", "bandwidth": None, "auto_converge": True}),
        ({"policies": POLICIES}, ["mail"], {"max_downtime": 1000, "bandwidth": None}),
        ({"policies": POLICIES}, ["web"], {"max_downtime": 100, "bandwidth": MIB, "when_stuck": "abort"}),
        ({"policies": POLICIES}, ["web", "db"], {"max_downtime": 5000, "when_stuck": "pause", "bandwidth": None}),
        ({"policies": POLICIES, "max_downtime": 700}, ["db"], {"max_downtime": 700, "when_stuck": "pause"}),
        ({"policies": [{"tag": "db", "auto_converge": False}]}, ["db"], {"auto_converge": False}),
    ],
)
def test_the_task_goes_before_the_first_policy_before_the_defaults(params, tags, expected):
    found = chosen(params, tags)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    "params, words",
    [
        ({"compression": "zstd"}, "compression zstd needs parallel_connections"),
        ({"compression": "xbzrle", "parallel_connections": 2}, "compression xbzrle goes over one connection only"),
        ({"policies": [{"tag": "db", "compression": "zlib"}]}, "zlib needs .*tag db"),
        ({"policies": [{"tag": "db", "compression": "xbzrle"}], "parallel_connections": 4}, "xbzrle .*tag db"),
    ],
)
def test_a_compression_that_does_not_go_with_the_connections_is_refused(params, words):
    with pytest.raises(Invalid, match=words):
        check_compression(params)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"compression": "none", "parallel_connections": 2},
        {"compression": "xbzrle"},
        {"compression": "zstd", "parallel_connections": 2},
        {"policies": [{"tag": "db", "compression": "zstd"}], "parallel_connections": 4},
        {"policies": [{"tag": "db", "compression": "zstd"}], "compression": "none"},
    ],
)
def test_a_compression_that_goes_with_the_connections(params):
    check_compression(params)


def test_the_time_limit():
    assert seconds(chosen({}, ()), 4 * GIB) == 600
    assert seconds(chosen({}, ()), MIB) == 120
    assert seconds(chosen({"timeout_per_gib": 60}, ()), 4 * GIB) == 240
    assert seconds(chosen({"timeout": 7}, ()), 4 * GIB) == 7


def test_the_downtime_grows_with_the_passes_up_to_its_limit():
    assert [pace.downtime(1000, passes) for passes in (1, 2, 3, 4, 5, 99)] == [300, 300, 600, 1000, 1000, 1000]
    assert [pace.downtime(100, passes) for passes in (1, 9)] == [100, 100]


@pytest.mark.parametrize(
    "limits, number, expected",
    [
        ({}, 3, None),
        ({"bandwidth": 50 * MIB}, 3, 50),
        ({"bandwidth": 50 * MIB, "together": 300 * MIB}, 3, 50),
        ({"bandwidth": 200 * MIB, "together": 300 * MIB}, 3, 100),
        ({"together": 300 * MIB}, 1, 300),
        ({"together": 2 * MIB}, 3, 1),
    ],
)
def test_what_leaves_a_node_shares_its_link(limits, number, expected):
    assert pace.speed(ordered(**limits), number) == expected


def test_who_leaves_the_node_is_told_by_the_helpers_that_work(tmp_path):
    def tell(name, **said):
        data = {"kind": "live", "result": None, "updated": time.time(), **said}
        (tmp_path / f"migrate-{name}.json").write_text(json.dumps(data), encoding="utf-8")

    assert under_way(tmp_path) == 1
    tell("a")
    tell("b")
    tell("done", result={"ok": True})
    tell("off", kind="offline")
    tell("killed", updated=time.time() - 60)
    (tmp_path / "migrate-half.json").write_text("{", encoding="utf-8")
    assert under_way(tmp_path) == 2


def test_a_step_is_asked_for_until_it_was_taken():
    steps = Pace(ordered(max_downtime=1000), 0)
    assert steps.downtime({}) is None and steps.downtime({"pass": 2}) is None
    assert steps.downtime({"pass": 3}) == steps.downtime({"pass": 3}) == 600
    steps.allowed = 600
    assert steps.downtime({"pass": 3}) is None and steps.downtime({"pass": 4}) == 1000


def figures(sent, remaining=0, rate=0):
    return {"sent": sent, "remaining": remaining, "rate": rate, "total": GIB, "pass": 5}


def test_a_stall_is_told_once():
    watch = Pace(ordered(stall_timeout=60), 0)
    assert watch.judge(figures(1), 0) == watch.judge(figures(2), 50) == watch.judge(figures(2), 109) == ""
    assert watch.judge(figures(2), 111) == "no progress for 60 s"
    assert watch.judge(figures(2), 112) == ""
    assert not watch.hopeless(150, 40) and watch.hopeless(152, 40)


def test_its_time_is_over():
    assert Pace(ordered(timeout=10), 0).judge(figures(1), 11) == "not done after 11 s"


def test_a_last_pause_that_does_is_allowed_once():
    watch = Pace(ordered(timeout=10, max_pause=5), 0)
    assert watch.judge(figures(1, 40 * MIB, 10 * MIB), 11) == ""
    assert watch.downtime(figures(1)) == 5000
    assert watch.judge(figures(2, 40 * MIB, 10 * MIB), 20) == ""
    assert watch.judge(figures(3, 40 * MIB, 10 * MIB), 27) == "not done after 27 s, the last with a pause of up to 5 s"


@pytest.mark.parametrize("rate", [7 * MIB, 0])
def test_a_pause_that_would_not_do_is_none(rate):
    watch = Pace(ordered(timeout=10, max_pause=5), 0)
    assert "its last 40 MiB would take more than a pause of 5 s" in watch.judge(figures(1, 40 * MIB, rate), 11)
    assert watch.downtime(figures(1)) != 5000
