# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job once more, and drains that are cut off at more moments than tests/lab has time for."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster
from ansible_collections.drover.kvm.tests.lab.test_main_job import empty_and_fill, kill_a_drain


@pytest.mark.parametrize("turn", [1, 2])
def test_a_node_is_emptied_and_filled_again_and_again(cluster: Cluster, turn: int) -> None:
    empty_and_fill(cluster)


@pytest.mark.parametrize("point", [2, 3, 4, 5])
def test_a_drain_that_is_killed_at_another_moment_is_finished_by_the_next_run(cluster: Cluster, point: int) -> None:
    kill_a_drain(cluster, point)
