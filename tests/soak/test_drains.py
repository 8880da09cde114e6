# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job once more, drains that are cut off at more moments than tests/lab has time for, and a shared link."""

from __future__ import annotations

import time

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import PLAY_SECONDS, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.test_main_job import NODE, empty_and_fill, kill_a_drain

SPEEDS = "for vm in $(virsh -q list --name); do virsh migrate-getspeed $vm; done"


@pytest.mark.parametrize("turn", [1, 2])
def test_a_node_is_emptied_and_filled_again_and_again(cluster: Cluster, turn: int) -> None:
    empty_and_fill(cluster)


@pytest.mark.parametrize("point", [2, 3, 4, 5])
def test_a_drain_that_is_killed_at_another_moment_is_finished_by_the_next_run(cluster: Cluster, point: int) -> None:
    kill_a_drain(cluster, point)


def test_what_leaves_a_node_shares_its_link(cluster: Cluster) -> None:
    """Three VMs that move at once have a third each of what the task allows, and the last one has all of it."""
    before = cluster.where()
    seen: list[list[int]] = []
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        # The third VM of the node.
        guest = next(name for name, node in sorted(before.items()) if node != NODE)
        cluster.task(before[guest], "migrate", name=guest, to=NODE, set_home="keep")
        leaving = sorted(name for name, node in cluster.where().items() if node == NODE)
        assert len(leaving) == 3, leaving
        options = {"drover_parallel": 3, "drover_bandwidth_per_node": "6MiB", "drover_anti_affinity": []}
        drain = cluster.start("drain_node", node=NODE, **options)

        def ended() -> bool | str:
            words = cluster.ssh(NODE, "sh", "-c", f"'{SPEEDS}'", check=False).split()
            seen.append(sorted(int(word) for word in words if int(word) < 1000))
            return drain.poll() is not None or str(seen[-1])

        wait_until(ended, PLAY_SECONDS, "the end of the drain")
        output = drain.communicate()[0]
        assert drain.returncode == 0, output
        assert [2, 2, 2] in seen, f"they did not share it: {seen}"
        assert any(one and one[0] > 2 for one in seen[seen.index([2, 2, 2]) :]), f"none took what was free: {seen}"
        cluster.play("undrain_node", node=NODE).good()
        if cluster.where()[guest] != before[guest]:
            cluster.task(cluster.where()[guest], "migrate", name=guest, to=before[guest])
        assert cluster.where() == before
        for name in before:
            watch.wait_word(name, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print([one for number, one in enumerate(seen) if one and (number == 0 or seen[number - 1] != one)])
