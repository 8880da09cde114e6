# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: bare nodes become a cluster, VMs are built, a node is emptied and filled again, also when cut off."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

SEED = int(os.environ.get("DROVER_SEED") or random.SystemRandom().randrange(10**6))
NODE = "hv1"


def test_a_second_site_changes_nothing(site: Cluster) -> None:
    assert site.play("site").good().changed == 0


def test_a_second_build_changes_nothing(cluster: Cluster) -> None:
    assert cluster.play("build_vms").good().changed == 0


def test_the_vms_are_spread_and_those_of_one_tag_apart(cluster: Cluster) -> None:
    places = cluster.where()
    assert set(places) == set(cluster.sheets())
    assert sorted(list(places.values()).count(node) for node in set(places.values())) == [2, 2, 2]


def test_a_node_is_emptied_and_filled_again_while_its_vms_run(cluster: Cluster) -> None:
    empty_and_fill(cluster)


def empty_and_fill(cluster: Cluster) -> None:
    """Drain the node and bring its VMs home, as foretold, and again without a change; nobody stands still for long."""
    before = cluster.where()
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        predicted = cluster.play("drain_node", "--check", "--diff", node=NODE).good()
        assert predicted.changed > 0 and cluster.where() == before
        cluster.play("drain_node", node=NODE).good()
        assert cluster.domains(NODE) == {}
        assert cluster.play("drain_node", node=NODE).good().changed == 0
        cluster.play("undrain_node", node=NODE).good()
        assert cluster.where() == before
        assert cluster.play("undrain_node", node=NODE).good().changed == 0
        now = time.monotonic()
        for name in before:
            watch.wait_word(name, after=now)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    silent = {name: guest.gap_ms for name, guest in verdict.guests.items() if guest.gap_ms > 5000}
    assert not silent, f"silent for more than 5 s: {silent}\n{verdict}"


def test_a_drain_that_is_killed_is_finished_by_the_next_run(cluster: Cluster) -> None:
    kill_a_drain(cluster, 1)


def kill_a_drain(cluster: Cluster, point: int) -> None:
    """F-01: kill -9 of the controller's whole process group at a random moment up to the end of the last move."""
    dice = random.Random(SEED + point)
    before = cluster.where()
    leaving = {name for name, node in before.items() if node == NODE}
    with Observer(cluster.lab) as watch, ExitStack() as mended:
        for name in before:
            watch.wait_word(name)
        process = cluster.start("drain_node", node=NODE)
        mended.enter_context(undrained_when_it_fails(cluster, process))
        # The cordon is written just before the moves begin.
        fact = cluster.lab.machine(NODE).path("/etc/ansible/facts.d/drover.fact")
        wait_until(lambda: (fact.exists() and '"since"' in fact.read_text()) or "no cordon yet", 60, "the cordon")
        begin, delay = time.monotonic(), dice.uniform(0.5, 6)
        here = cluster.lab.machine(NODE).path("/etc/libvirt/qemu")
        # The random moment itself; a quick drain has no more to be cut off once its last VM has left.
        wait_until(lambda: time.monotonic() > begin + delay or not any(here.glob("*.xml")), delay + 5, "the moment")
        said, delay = cluster.kill(process), time.monotonic() - begin
        assert "PLAY RECAP" not in said, f"not exercised: the drain ended within {delay:.1f} s (seed {SEED})"
        print(f"killed {delay:.1f} s after the cordon (seed {SEED}); then on {cluster.where()}")
        cluster.play("drain_node", node=NODE).good()
        assert cluster.domains(NODE) == {}
        assert cluster.play("drain_node", node=NODE).good().changed == 0
        cluster.play("undrain_node", node=NODE).good()
        after = cluster.where()
        assert {name for name, node in after.items() if node == NODE} == leaving, f"seed {SEED}"
    verdict = watch.verdict()
    assert verdict.ok, f"seed {SEED}: {verdict}"


@contextmanager
def undrained_when_it_fails(cluster: Cluster, process: subprocess.Popen[str]) -> Iterator[None]:
    """After a failure, too, the stories that follow have the node; what fails in that does not hide the failure."""
    try:
        yield
    except BaseException:
        with suppress(AssertionError, OSError):
            if process.poll() is None:
                cluster.kill(process)
            print(f"undrained after the failure: {cluster.play('undrain_node', node=NODE).output}")
        raise
