# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that say what becomes of them when their node is drained, also when the drain is cut off; and the two reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import MARKER, Mover
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE = "hv1"
# The guests of the lab don't listen to their power button.
DEAF = {"force": True, "shutdown_timeout": 5}
Say = Callable[[str, str], None]


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Two VMs of the node; in the end everything runs where it was, counts, and ran once only."""
    before = cluster.where()
    first, second = sorted(vm for vm, node in before.items() if node == NODE)[:2]
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        yield first, second
        cluster.play("undrain_node", node=NODE, **DEAF).good()
        assert cluster.where() == before
        for name in before:
            watch.wait_word(name, after=time.monotonic(), seconds=240)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


@pytest.fixture
def say(cluster: Cluster, pair: tuple[str, str]) -> Iterator[Say]:
    """Set what a VM of the node says of its maintenance; taken back in the end, wherever the VM is."""

    def told(vm: str, verb: str) -> None:
        node = next(node for node in ("hv1", "hv2", "hv3") if vm in cluster.domains(node))
        result = cluster.task(node, "vm", name=vm, on_maintenance=verb)
        assert not result["failed"], result

    yield told
    for vm in pair:
        told(vm, "migrate")


def records(cluster: Cluster, node: str) -> list[str]:
    """The VMs of a node that are marked as shut down for maintenance, by libvirt."""
    words = {vm: cluster.ssh(node, "virsh", "metadata", vm, "urn:drover:kvm:1") for vm in cluster.domains(node)}
    return [vm for vm, text in words.items() if "maintenance</" in text.replace("on_maintenance", "")]


def test_one_that_does_not_go_down_ends_the_drain_and_runs_on(
    cluster: Cluster, pair: tuple[str, str], say: Say
) -> None:
    before = cluster.where()
    say(pair[0], "restart")
    drained = cluster.play("drain_node", node=NODE, shutdown_timeout=5)
    assert drained.code != 0 and "not there after 5 s; last seen: running" in drained.output, drained.output
    assert "memory is missing" not in drained.output, drained.output
    assert cluster.where() == before


def test_one_restarts_elsewhere_and_one_waits_for_its_node(cluster: Cluster, pair: tuple[str, str], say: Say) -> None:
    before = cluster.where()
    restarted, waiting = pair
    say(restarted, "restart")
    say(waiting, "shutdown")
    foretold = cluster.play("drain_node", "--check", "--diff", node=NODE).good()
    assert "Shut down, and started again by undrain_node (1):" in foretold.output, foretold.output
    assert "  restart  " in foretold.output and foretold.changed > 0 and cluster.where() == before

    drained = cluster.play("drain_node", node=NODE, **DEAF).good()
    assert f"shut down, until undrain_node: {waiting}" in drained.output, drained.output
    assert cluster.domains(NODE) == {waiting: "shut off"} and records(cluster, NODE) == [waiting]
    there = cluster.where()
    assert there[restarted] != NODE and waiting not in there and not records(cluster, there[restarted])
    assert cluster.play("drain_node", node=NODE, **DEAF).good().changed == 0

    foretold = cluster.play("undrain_node", "--check", node=NODE).good()
    assert "Started again after maintenance (1):" in foretold.output and foretold.changed > 0
    assert cluster.where() == there
    cluster.play("undrain_node", node=NODE, **DEAF).good()
    assert cluster.where() == before and records(cluster, NODE) == []
    assert cluster.play("undrain_node", node=NODE).good().changed == 0


@pytest.mark.parametrize("playbook", ["drain_node", "undrain_node"])
def test_a_drain_that_is_cut_off_while_a_vm_is_down_is_gone_on_with_or_taken_back(
    cluster: Cluster, pair: tuple[str, str], say: Say, playbook: str
) -> None:
    before = cluster.where()
    restarted, waiting = pair
    say(restarted, "restart")
    say(waiting, "shutdown")
    process = cluster.start("drain_node", node=NODE, **DEAF)
    running = cluster.lab.machine(NODE).path(f"/run/libvirt/qemu/{restarted}.xml")
    wait_until(lambda: process.poll() is not None or not running.exists() or "it runs", 120, f"the end of {restarted}")
    said = cluster.kill(process)
    assert "PLAY RECAP" not in said and restarted not in cluster.where(), f"not exercised:\n{said}"
    gone_on = cluster.play(playbook, node=NODE, **DEAF).good()
    assert gone_on.changed > 0
    if playbook == "drain_node":
        assert cluster.domains(NODE) == {waiting: "shut off"} and cluster.where()[restarted] != NODE
    else:
        assert cluster.where() == before
    assert cluster.play(playbook, node=NODE, **DEAF).good().changed == 0


def test_one_is_left_and_one_refuses(cluster: Cluster, pair: tuple[str, str], say: Say) -> None:
    before = cluster.where()
    left, refusing = pair
    say(left, "leave")
    say(refusing, "refuse")
    words = f"{refusing} is not to be moved while it runs (on_maintenance: refuse)"
    cluster.play("drain_node", node=NODE).refused(words)
    cluster.play("rolling_update", drover_reboot="always").refused(words, f"{left} would be left running on {NODE}")
    assert cluster.where() == before
    say(refusing, "migrate")
    cluster.play("drain_node", node=NODE, drover_require_off=True).refused(f"{left} would be left running on {NODE}")
    drained = cluster.play("drain_node", node=NODE).good()
    assert f"left: {left} (running: {left})" in drained.output, drained.output
    assert cluster.domains(NODE) == {left: "running"} and cluster.where()[refusing] != NODE
    assert cluster.play("drain_node", node=NODE).good().changed == 0


def test_the_report_says_where_everything_is_and_fails_when_a_rule_is_broken(cluster: Cluster) -> None:
    before = cluster.where()
    good = cluster.play("placement_report").good()
    assert "No rule is broken." in good.output and all(name in good.output for name in before), good.output
    other = next(node for node in ("hv2", "hv3") if node != before["web1"])
    pins = {"drover_pins": {"web1": other}}
    cluster.play("placement_report", **pins).refused(f"web1 is pinned to {other}")
    shown = cluster.play("placement_report", **pins, report_only=True).good()
    assert "Rules that are broken:" in shown.output and shown.changed == 0 and cluster.where() == before


def test_recover_migrations_finishes_what_was_cut_off_and_then_has_nothing_to_do(mover: Mover) -> None:
    cluster = mover.cluster
    mover.kill_controller(mover.start_slowly())
    mover.kill_module()
    mover.kill_helper()
    mover.in_phase("perform3")
    cluster.play("recover_migrations", "--check")
    assert mover.marked() and mover.virsh(mover.source, "metadata", mover.vm, MARKER)
    mover.speed_up()
    finished = cluster.play("recover_migrations").good()
    assert finished.changed > 0, f"not exercised:\n{finished.output}"
    mover.rests_on(mover.target)
    again = cluster.play("recover_migrations").good()
    assert again.changed == 0 and "No VM has a migration that was not finished." in again.output, again.output
