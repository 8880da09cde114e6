# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that is declared to run, and whose QEMU died: the next run of build_vms starts it, and no other."""

from __future__ import annotations

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NAME = "web1"


def test_a_vm_whose_qemu_died_is_started_by_the_next_run(cluster: Cluster) -> None:
    before = cluster.where()
    node = before[NAME]
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name, seconds=240)
        cluster.ssh(node, f"kill -9 $(cat /run/libvirt/qemu/{NAME}.pid)")
        wait_until(lambda: cluster.domains(node)[NAME] != "running" or "it runs", 30, "that libvirt has seen it")
        foretold = cluster.play("build_vms", "--check", vms=NAME).good()
        assert foretold.changed == 1 and cluster.domains(node)[NAME] != "running", foretold.output
        cluster.play("build_vms", vms=NAME).good()
        assert cluster.where() == before
        watch.wait_word(NAME, after=watch.words(NAME)[-1]["time"], seconds=240)
        assert cluster.play("build_vms").good().changed == 0
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
