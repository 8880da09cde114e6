# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers drain one node; and, for the seeds, the stories of tests/lab once more."""

from __future__ import annotations

from random import Random

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.test_drains_at_once import (
    NODE,
    ended,
    later,
    moves_of,
    test_f02_an_interrupt_begins_no_further_move,
    test_f21_two_nodes_are_drained_at_once,
    test_f22_a_vm_is_started_on_a_node_that_is_drained,
    watched,
)

__all__ = [
    "test_f02_an_interrupt_begins_no_further_move",
    "test_f21_two_nodes_are_drained_at_once",
    "test_f22_a_vm_is_started_on_a_node_that_is_drained",
    "watched",
]

QUITE_SLOW = "4MiB"


def test_f20_two_controllers_drain_one_node(cluster: Cluster, watched: Observer, dice: Random | None) -> None:
    leaving = [name for name, node in cluster.where().items() if node == NODE]
    drains = [cluster.start("drain_node", node=NODE, drover_bandwidth=QUITE_SLOW)]
    later(dice)
    drains.append(cluster.start("drain_node", node=NODE, drover_bandwidth=QUITE_SLOW))
    results = [ended(process) for process in drains]
    assert any(code == 0 for code, _output in results), results
    assert cluster.domains(NODE) == {}
    for name in leaving:
        assert len(moves_of(watched, name)) == 2, moves_of(watched, name)
    assert cluster.play("drain_node", node=NODE).good().changed == 0
