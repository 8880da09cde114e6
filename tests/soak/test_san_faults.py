# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SAN fails under running VMs: its target is started again, or is gone for longer than a guest would bear."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from ansible_collections.drover.kvm.tests.lab.checks import SAN
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

SERIALS = "tgtadm --lld iscsi --op show --mode target | grep -E '^Target|SCSI SN' | sed 's/^Target [0-9]*//' | sort"
NODE = "hv1"
UNITS = "drover-san-online drover-late-autostart libvirtd"
FAULTS = {
    "killed": "systemctl kill --signal=KILL tgt; systemctl start tgt",
    "restarted": "systemctl restart tgt",
}


def states(cluster: Cluster) -> dict[str, str]:
    """VM → its state and the reason, from libvirt."""
    nodes = [name for name in cluster.lab.topology.nodes if name.startswith("hv")]
    words = "for vm in $(virsh list --name); do echo $vm $(virsh domstate $vm --reason); done"
    lines = [line.partition(" ") for node in nodes for line in cluster.ssh(node, words).splitlines()]
    return {name: state for name, _blank, state in lines}


def all_answer(watch: Observer, names: list[str], seconds: float) -> None:
    """Wait for a new word of each guest, written to its disk."""
    now = time.monotonic()
    for name in names:
        watch.wait_word(name, after=now, seconds=seconds)


@pytest.mark.parametrize("fault", FAULTS)
def test_guests_bear_a_restart_of_the_target(cluster: Cluster, fault: str) -> None:
    """F-32: sessions come back by themselves, to the same volumes."""
    names, before = list(cluster.sheets()), cluster.ssh(SAN, SERIALS)
    with Observer(cluster.lab) as watch:
        all_answer(watch, names, 90)
        begin = time.monotonic()
        cluster.ssh(SAN, FAULTS[fault])
        all_answer(watch, names, 30)
        gaps = {name: round(watch.longest_gap(name, begin), 1) for name in names}
        verdict = watch.verdict()
    assert cluster.ssh(SAN, SERIALS) == before
    assert max(gaps.values()) < 30 and verdict.ok, (gaps, str(verdict))
    print(f"longest gaps with the target {fault}: {gaps}")


@contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    """No target answers: connections are refused."""
    cluster.ssh(SAN, "systemctl stop tgt", timeout=90)
    try:
        yield
    finally:
        cluster.ssh(SAN, "systemctl start tgt")


@contextmanager
def silent(cluster: Cluster) -> Iterator[None]:
    """Nothing comes through to the SAN, and nothing says so."""
    nics = [nic.name for nic in cluster.lab.topology.nodes[SAN].nics if nic.bond]
    try:
        for nic in nics:
            cluster.lab.cut(SAN, nic, silent=True)
        yield
    finally:
        for nic in nics:
            cluster.lab.restore(SAN, nic)


def test_a_drain_while_the_san_is_gone_moves_nobody_and_says_why(cluster: Cluster) -> None:
    """F-31: each VM is named with its reason, and the node can be emptied when the SAN is back."""
    names, homes = list(cluster.sheets()), cluster.where()
    mine = sorted(name for name, node in homes.items() if node == NODE)
    assert mine, "not exercised: no VM on the node"
    with Observer(cluster.lab) as watch:
        all_answer(watch, names, 90)
        with stopped(cluster):
            told = cluster.play("drain_node", node=NODE)
            assert told.code and "its storage does not answer this node" in told.output, told.output
            assert all(f"{name} is running on {NODE}" in told.output for name in mine), told.output
            assert sorted(name for name in cluster.domains(NODE) if name in names) == mine
        cluster.play("build_vms").good()
        all_answer(watch, names, 60)
        cluster.play("drain_node", node=NODE).good()
        assert not [name for name in cluster.domains(NODE) if name in names]
        cluster.play("undrain_node", node=NODE).good()
        assert cluster.where() == homes
        verdict = watch.verdict()
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize(("gone", "seconds"), [(stopped, 40), (silent, 40), (silent, 600)])
def test_a_san_that_is_gone_for_long_stops_the_guests_and_no_guest_sees_an_error(
    cluster: Cluster, gone: Callable[[Cluster], AbstractContextManager[None]], seconds: int
) -> None:
    """F-31: the guests wait, or are paused by their I/O error and resumed by build_vms; none is told of an error."""
    names = list(cluster.sheets())
    with Observer(cluster.lab) as watch:
        all_answer(watch, names, 90)
        with gone(cluster):
            begin = time.monotonic()
            # That the SAN stays away for so long is the fault itself; nobody says when it is over.
            time.sleep(seconds)
            paused = {name: state for name, state in states(cluster).items() if not state.startswith("running")}
            assert all("I/O error" in state for state in paused.values()), paused
        wait_until(lambda: len(cluster.ssh(SAN, SERIALS).split("\n")) > len(names) or "no targets", 60, "the targets")
        cluster.play("build_vms").good()
        all_answer(watch, names, 60)
        gaps = [watch.longest_gap(name, begin) for name in names]
        verdict = watch.verdict()
    assert min(gaps) > seconds / 2, f"not exercised: {gaps}"
    assert verdict.ok, str(verdict)
    print(f"paused meanwhile: {paused or 'none'}; longest gaps {[round(gap, 1) for gap in gaps]}")


@pytest.fixture
def two(cluster: Cluster) -> Iterator[list[str]]:
    """VMs of the node: the first one starts with it, the others wait for somebody."""
    mine = sorted(name for name, node in cluster.where().items() if node == NODE)
    assert len(mine) > 1, mine
    cluster.ssh(NODE, "virsh", "autostart", mine[0])
    yield mine
    cluster.ssh(NODE, "virsh", "autostart", mine[0], "--disable")


@pytest.fixture
def impatient(cluster: Cluster) -> Iterator[None]:
    """libvirt of the node waits for its SAN for 5 s."""
    setup = ("site", "--tags", "san_initiator_configure", "--limit", NODE)
    cluster.play(*setup, san_initiator_boot_timeout=5).good()
    yield
    cluster.play(*setup).good()


def boots_before_its_san(
    cluster: Cluster, two: list[str], gone: Callable[[Cluster], AbstractContextManager[None]], units: list[str]
) -> None:
    """The node loses its power and boots, the SAN comes a minute later, and each VM runs once and counts on."""
    marked, others = two[0], two[1:]
    homes = cluster.where()
    with Observer(cluster.lab) as watch:
        all_answer(watch, list(homes), 90)
        begin = time.monotonic()
        cluster.lab.power_off(NODE)
        with gone(cluster):
            cluster.lab.power_on(NODE)
            # That the SAN stays away for so long is the fault itself; nobody says when it is over.
            time.sleep(max(0.0, begin + 60 - time.monotonic()))
            seen = cluster.ssh(NODE, f"systemctl is-active {UNITS}", check=False).split()
            assert seen == units and watch.words(marked)[-1]["time"] < begin + 5, (seen, watch.words(marked)[-1])
        back = time.monotonic()
        try:
            all_answer(watch, [marked], 240)
            print(f"{marked} counts {time.monotonic() - back:.0f} s after the SAN came back")
            wait_until(
                lambda: cluster.ssh(NODE, f"systemctl is-active {UNITS}", check=False).split()[1] == "inactive",
                60,
                "the end of the late start",
            )
            found = cluster.domains(NODE)
            assert {name: found[name] for name in two} == {marked: "running", **dict.fromkeys(others, "shut off")}
        finally:
            print(cluster.ssh(NODE, f"journalctl -b --no-pager -o short-monotonic $(printf ' -u %s' {UNITS})"))
        for name in others:
            cluster.ssh(NODE, "virsh", "start", name)
        all_answer(watch, list(homes), 240)
        verdict = watch.verdict()
    assert cluster.where() == homes and verdict.ok, str(verdict)


def test_a_node_that_boots_before_its_san_lets_libvirt_wait(cluster: Cluster, two: list[str]) -> None:
    """#6: the SAN comes within the limit, and libvirt's own autostart finds it."""
    boots_before_its_san(cluster, two, stopped, ["activating", "inactive", "inactive"])


@pytest.mark.usefixtures("impatient")
def test_a_node_that_boots_long_before_its_san_has_its_vms_when_it_comes(cluster: Cluster, two: list[str]) -> None:
    """#6: libvirt waited in vain, its autostart comes to nothing, and is made up for."""
    boots_before_its_san(cluster, two, silent, ["active", "active", "active"])
