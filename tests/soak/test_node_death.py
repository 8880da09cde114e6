# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node dies: its VMs start elsewhere when somebody says that it is off, and not before."""

from __future__ import annotations

import time

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE, OTHERS = "hv3", ("hv1", "hv2")


def running(cluster: Cluster) -> dict[str, str]:
    """VM → the living node on which it runs."""
    return {vm: node for node in OTHERS for vm, state in cluster.domains(node).items() if state == "running"}


def test_the_vms_of_a_dead_node_start_elsewhere_when_it_is_said_to_be_off(cluster: Cluster) -> None:
    before = cluster.where()
    lost = sorted(vm for vm, node in before.items() if node == NODE)
    assert lost, before
    stay = {vm: node for vm, node in before.items() if node != NODE}
    cluster.lab.power_off(NODE)
    try:
        cluster.play("build_vms").refused("fenced")
        assert running(cluster) == stay
        cluster.play("build_vms", drover_fenced=[NODE]).good()
        assert sorted(running(cluster)) == sorted(before)
        with Observer(cluster.lab) as watch:
            for vm in before:
                watch.wait_word(vm, after=time.monotonic(), seconds=240)
        # The observer reads the dead node's disk too, where the definitions still are.
        dead = [f"is defined on {node} and {NODE}" for node in OTHERS]
        said = [words for words in watch.verdict().violations if not words.endswith(tuple(dead))]
        assert not said, said
    finally:
        cluster.lab.power_on(NODE)
        wait_until(lambda: set(lost) <= set(seen := cluster.domains(NODE)) or str(seen), 120, "libvirt of the node")
        for vm in lost:
            assert cluster.domains(NODE)[vm] == "shut off"
            cluster.ssh(NODE, "virsh", "undefine", vm)
    assert cluster.play("build_vms").good().changed == 0
