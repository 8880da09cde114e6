# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job once more, drains that are cut off at more moments than tests/lab has time for, and a shared link."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import PLAY_SECONDS, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import NODES
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.test_main_job import NODE, empty_and_fill, kill_a_drain

# Three VMs on one node: also those that the site keeps apart.
TOGETHER: dict[str, Any] = {"drover_anti_affinity": []}
SPEEDS = "for vm in $(virsh -q list --name); do virsh migrate-getspeed $vm; done"


@pytest.fixture(autouse=True)
def at_home(cluster: Cluster) -> dict[str, str]:
    """Where the VMs are, all at home and no node cordoned, whatever stories before left."""
    cluster.play("undrain_node", node=",".join(NODES), **TOGETHER).good()
    return cluster.where()


def bring(cluster: Cluster, places: dict[str, str]) -> None:
    """Move each VM that is elsewhere to its node here."""
    for name, node in cluster.where().items():
        if places[name] != node:
            moved = cluster.task(node, "migrate", name=name, to=places[name])
            assert moved.get("verified"), moved


@pytest.mark.parametrize("turn", [1, 2])
def test_a_node_is_emptied_and_filled_again_and_again(cluster: Cluster, turn: int) -> None:
    empty_and_fill(cluster)


@pytest.mark.parametrize("point", [2, 3, 4, 5])
def test_a_drain_that_is_killed_at_another_moment_is_finished_by_the_next_run(cluster: Cluster, point: int) -> None:
    kill_a_drain(cluster, point)


@pytest.fixture
def three(cluster: Cluster, at_home: dict[str, str]) -> Iterator[list[str]]:
    """Three VMs on the node, by name; in the end all are where they were, and none ran twice."""
    here_first = sorted(at_home, key=lambda name: (at_home[name] != NODE, name))
    elsewhere = {name: node if node != NODE else NODES[-1] for name, node in at_home.items()}
    with Observer(cluster.lab) as watch:
        for name in at_home:
            watch.wait_word(name)
        bring(cluster, {**elsewhere, **dict.fromkeys(here_first[:3], NODE)})
        yield sorted(name for name, node in cluster.where().items() if node == NODE)
        cluster.play("undrain_node", node=NODE, **TOGETHER).good()
        bring(cluster, at_home)
        assert cluster.where() == at_home
        for name in at_home:
            watch.wait_word(name, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def during_a_drain(cluster: Cluster, see: Callable[[], list[int]], **options: Any) -> list[list[int]]:
    """What is seen while the node is emptied, each time that it is something new."""
    seen: list[list[int]] = []
    drain = cluster.start("drain_node", node=NODE, drover_parallel=3, **TOGETHER, **options)

    def ended() -> bool | str:
        now = see()
        if not seen or seen[-1] != now:
            seen.append(now)
        return drain.poll() is not None or str(now)

    try:
        wait_until(ended, PLAY_SECONDS, "the end of the drain")
        output = drain.communicate()[0]
    finally:
        if drain.poll() is None:
            cluster.kill(drain)
    assert drain.returncode == 0, output
    assert cluster.domains(NODE) == {}
    print(seen)
    return seen


def test_what_leaves_a_node_shares_its_link(cluster: Cluster, three: list[str]) -> None:
    """Three VMs that move at once have a third each of what the task allows, and who is left takes what is free."""
    assert len(three) == 3, three

    def speeds() -> list[int]:
        words = cluster.ssh(NODE, "sh", "-c", f"'{SPEEDS}'", check=False).split()
        # Without a limit it is a number beyond all.
        return sorted(int(word) for word in words if len(word) < 4)

    seen = during_a_drain(cluster, speeds, drover_bandwidth_per_node="6MiB")
    assert [2, 2, 2] in seen, f"they did not share it: {seen}"
    assert any(one and one[0] > 2 for one in seen[seen.index([2, 2, 2]) :]), f"none took what was free: {seen}"


def test_a_node_sends_no_more_than_the_others_and_the_cluster_may_take(cluster: Cluster, three: list[str]) -> None:
    """Three could go at once: one to each of two nodes, and then one in the whole cluster."""
    assert len(three) == 3, three

    def arriving() -> list[int]:
        return [list(cluster.domains(node).values()).count("paused") for node in ("hv2", "hv3")]

    seen = during_a_drain(cluster, arriving, drover_parallel_inbound=1, drover_bandwidth="4MiB")
    assert [1, 1] in seen and max(map(max, seen)) == 1, seen
    cluster.play("undrain_node", node=NODE, **TOGETHER).good()
    seen = during_a_drain(cluster, arriving, drover_parallel_cluster=1, drover_bandwidth="4MiB")
    assert max(map(sum, seen)) == 1, seen


def test_own_tasks_come_before_what_leaves_a_node_and_after_it_but_not_when_it_is_refused(
    cluster: Cluster, at_home: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    held = cluster.lab.machine(NODE).path("/etc/ansible/facts.d/drover.fact")
    own = {}
    for when in ("before", "after"):
        line = f"echo {when} {{{{ drover_turn }}}} $(grep -c since {held}) >>{log}"
        path = tmp_path / f"{when}.yml"
        path.write_text(json.dumps([{"name": "Tell", "ansible.builtin.shell": line}]), encoding="utf-8")
        own[f"drover_{when}_tasks"] = str(path)
    cluster.play("drain_node", node="hv1,hv2,hv3", **own).refused()
    cluster.play("drain_node", "--check", node=NODE, **own).good()
    assert not log.exists()
    cluster.play("drain_node", node=NODE, **own).good()
    cluster.play("undrain_node", node=NODE, **own).good()
    assert cluster.where() == at_home
    # The cordon stands from after the first word to before the last.
    told = log.read_text(encoding="utf-8").splitlines()
    assert told == [f"before {NODE} 0", f"after {NODE} 1", f"before {NODE} 1", f"after {NODE} 0"]
