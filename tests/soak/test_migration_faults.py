# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of migrations that tests/lab has no time for; the letters and numbers are those of the acceptance.

Those of tests/lab come once more, for the seeds.

DROVER_PINGPONG=N   how often the VM goes back and forth (default: 50 times there, 50 times back)
DROVER_SEEDS=N      each fault N times, in another order and at another moment each time, to a destination by chance
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import IMAGES, SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import MIB, WELL, Missed, Mover, command_line
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.test_migrate import (
    test_a_second_run_beside_the_first_waits_for_it,
    test_a_stall_ends_on_the_source,
    test_e2_the_controller_dies_in_perform,
    test_e3_the_destinations_libvirtd_dies_in_perform,
    test_e4_the_sources_libvirtd_dies_in_perform,
    test_e5_the_destinations_qemu_dies_in_perform,
    test_e7_the_destinations_libvirtd_freezes_before_finish,
    test_e8_the_sources_libvirtd_dies_when_all_is_sent,
    test_e8b_the_destinations_libvirtd_dies_before_finish,
    test_e11_a_vm_that_runs_twice_is_moved_by_nobody,
    test_f11_the_sources_qemu_dies_in_perform,
    test_f13_a_cut_of_ten_seconds_delays_it,
    test_the_helper_and_the_controller_are_killed_in_perform,
    test_the_helper_is_killed_and_the_module_sees_to_it,
)

__all__ = [
    "test_a_second_run_beside_the_first_waits_for_it",
    "test_a_stall_ends_on_the_source",
    "test_e2_the_controller_dies_in_perform",
    "test_e3_the_destinations_libvirtd_dies_in_perform",
    "test_e4_the_sources_libvirtd_dies_in_perform",
    "test_e5_the_destinations_qemu_dies_in_perform",
    "test_e7_the_destinations_libvirtd_freezes_before_finish",
    "test_e8_the_sources_libvirtd_dies_when_all_is_sent",
    "test_e8b_the_destinations_libvirtd_dies_before_finish",
    "test_e11_a_vm_that_runs_twice_is_moved_by_nobody",
    "test_f11_the_sources_qemu_dies_in_perform",
    "test_f13_a_cut_of_ten_seconds_delays_it",
    "test_the_helper_and_the_controller_are_killed_in_perform",
    "test_the_helper_is_killed_and_the_module_sees_to_it",
]

# As the rules of tests.lab.migration: gone with mend_stream().
CUT_SSH = "table ip cut {\n chain arriving {\n type filter hook input priority 0; tcp dport 22 drop;\n }\n}\n"
BUSY = "busy1"
# Of the destination's libvirt, called before it starts QEMU; waits while it is told to.
HOOK, HOLD, HELD = "/etc/libvirt/hooks/qemu.d/zz-story", "/run/drover-story-hold", "/run/drover-story-held"
HOLDS = f'#!/bin/sh\n[ "$2" = prepare ] && touch {HELD} && while [ -e {HOLD} ]; do sleep 0.2; done\nexit 0\n'
ROUNDS = int(os.environ.get("DROVER_PINGPONG", "50"))


class Powered:
    """The plugs of the nodes; the VMs of one that comes back are started by hand."""

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        # Later a frozen libvirt would not say it.
        self.homes = mover.cluster.where()
        self.had: dict[str, list[str]] = {}

    def off(self, node: str) -> None:
        """Pull it."""
        self.had[node] = [name for name, home in self.homes.items() if home == node]
        self.mover.lab.power_off(node)

    def on(self, node: str, but: str = "") -> None:
        """Put it in, and wait until all that ran there counts again, `but` one."""
        names = [name for name in self.had.pop(node) if name != but]
        self.mover.lab.power_on(node)
        said = self.mover.cluster.domains
        wait_until(lambda: set(names) <= set(seen := said(node)) or str(seen), 120, f"libvirt of {node}")
        for name in names:
            self.mover.virsh(node, "start", name, check=False)
        for name in names:
            self.mover.watch.wait_word(name, after=time.monotonic(), seconds=240)


@pytest.fixture
def powered(mover: Mover) -> Iterator[Powered]:
    """The nodes as machines with a plug; all are on again at the end."""
    found = Powered(mover)
    yield found
    for node in list(found.had):
        found.on(node)


def test_f05_the_destinations_libvirtd_dies_in_prepare(mover: Mover) -> None:
    mover.inside(mover.target, "sh", "-c", f"rm -f {HELD}; cat >{HOOK}; chmod 755 {HOOK}; touch {HOLD}", feed=HOLDS)
    held = mover.lab.machine(mover.target).path(HELD)
    try:
        process = mover.start(mover.source, name=mover.vm, to=mover.target)
        mover.hits("Prepare", lambda: held.exists() or mover.stage())
        mover.in_phase("begin3")
        mover.kill_daemon(mover.target)
        result = mover.end(process)
    finally:
        mover.inside(mover.target, "rm", "-f", HOOK, HOLD, HELD)
    assert result["failed"] and result["details"]["where"] == mover.source, result
    mover.goes_next_time()


def stayed(mover: Mover, powered: Powered, result: dict[str, Any]) -> None:
    """It runs where it was; with the destination back the rest is cleared, and it goes."""
    assert result["failed"] and result["details"]["where"] == mover.source, result
    mover.counts()
    powered.on(mover.target)
    assert not mover.migrate(mover.third, state="recovered")["failed"]
    mover.goes_next_time()


def test_f09b_the_destination_is_dead_when_all_is_sent_and_so_was_the_sources_libvirtd(
    mover: Mover, powered: Powered
) -> None:
    """Nobody runs then, and nobody can ask the destination: the source may go on, as the copy has never run."""
    process = mover.start_slowly(stall_timeout=300)
    mover.freeze_before_finish()
    mover.kill_daemon(mover.source)
    mover.hits("the new libvirtd", lambda: "paused (migrating)" in (seen := mover.reason(mover.source)) or seen)
    powered.off(mover.target)
    result = mover.end(process)
    stayed(mover, powered, result)


def test_f42_the_destination_loses_its_power_in_perform(mover: Mover, powered: Powered) -> None:
    process = mover.start_slowly()
    powered.off(mover.target)
    result = mover.end(process)
    assert f"no answer from {mover.target}" in result["msg"], result["msg"]
    stayed(mover, powered, result)


def test_f42_the_source_loses_its_power_in_perform(mover: Mover, powered: Powered) -> None:
    process = mover.start_slowly()
    powered.off(mover.source)
    lost = mover.end(process)
    assert lost.get("unreachable") or lost["failed"], lost
    # What had come over is not the VM, and nobody makes it one.
    wait_until(lambda: not mover.says() or str(mover.says()), 90, "the end of the incomplete copy")
    refused = mover.migrate(mover.third, state="recovered")
    assert not refused.get("changed") and mover.says() == {}, refused
    powered.on(mover.source, but=mover.vm)
    assert mover.says() == {mover.source: ("shut off", "yes")}, mover.says()
    recovered = mover.migrate(mover.source, state="recovered")
    assert not recovered["failed"], recovered
    assert mover.says() == {mover.source: ("shut off", "yes")} and mover.marked() == []
    assert mover.autostart(mover.source)
    mover.virsh(mover.source, "start", mover.vm)
    mover.counts(240)
    mover.moved()
    mover.rests_on(mover.target)


def test_f12_the_vm_is_powered_off_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    # The one word of an administrator that libvirt takes meanwhile; for a shutdown it waits until the job has ended.
    mover.virsh(mover.source, "destroy", mover.vm)
    mover.ends_off(mover.end(process))


def test_f03_the_controller_loses_the_source_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.inside(mover.source, "nft", "-f", "-", feed=CUT_SSH)
    lost = mover.end(process, 60)
    assert lost.get("unreachable"), lost
    mover.in_phase("perform3")
    mover.mend_stream()
    process = mover.start(mover.source, name=mover.vm, to=mover.target)
    predicted = mover.move(check=True)
    assert predicted["actions"] == [f"wait for the migration of {mover.vm} to {mover.target}, which runs"], predicted
    mover.speed_up(done=True)
    result = mover.end(process)
    assert result.get("verified") and result["actions"] == predicted["actions"], result
    mover.rests_on(mover.target)


def test_f17_a_destination_that_can_write_nothing_down(mover: Mover) -> None:
    """Its /run, where libvirt keeps the state of VMs, is full."""
    used = mover.inside(mover.target, "sh", "-c", "df --block-size=1 --output=used,size /run | tail -1").split()
    mover.inside(mover.target, "mount", "-o", f"remount,size={used[0]}", "/run")
    try:
        result = mover.move()
    finally:
        mover.inside(mover.target, "mount", "-o", f"remount,size={used[1]}", "/run")
    assert result["failed"] and result["details"]["where"] == mover.source, result
    mover.rests_on(mover.source)
    seen = leftovers(mover, mover.target)
    assert seen["processes"] == len(mover.virsh(mover.target, "list", "--name").split()), seen
    mover.moved()
    mover.rests_on(mover.target)


def test_f18_a_destination_without_memory_is_refused_with_the_figures(mover: Mover) -> None:
    """The kernel of the lab's nodes is one, so its table is laid over that of the destination."""
    table = mover.inside(mover.target, "cat", "/proc/meminfo")
    little = re.sub(r"^(Mem\w+|Buffers|Cached|SReclaimable):.*", r"\1: 8192 kB", table, flags=re.MULTILINE)
    mover.inside(mover.target, "tee", "/run/drover-meminfo", feed=little)
    mover.inside(mover.target, "mount", "--bind", "/run/drover-meminfo", "/proc/meminfo")
    try:
        for check in (True, False):
            result = mover.move(check=check)
            assert result["failed"] and not result["changed"], result
            assert [blocker["reason"] for blocker in result["details"]["blockers"]] == ["memory"], result
            assert re.search(rf"{mover.target} has \d\d MiB of memory free, the VM takes \d+", result["msg"]), result
    finally:
        mover.inside(mover.target, "umount", "/proc/meminfo")
    mover.goes_next_time()


@pytest.fixture
def rounds() -> int:
    """How often there and back."""
    return ROUNDS


@pytest.fixture
def busy(cluster: Cluster, tmp_path: Path) -> Iterator[Mover]:
    """A VM that writes 12 MiB of its memory over and over, on the SAN; gone at the end."""
    image = {"name": BUSY, "ip": "10.231.100.43/24", "sink": SINK, "dirty": "12"}
    Guests(cluster.lab.base).write_image(cluster.lab.machine("san1").path(f"{IMAGES}/{BUSY}.img"), image)
    path = tmp_path / "busy.yml"
    path.write_text(f"vms:\n  hosts:\n    {BUSY}: {{vm_memory: 192MiB}}\n", encoding="utf-8")
    cluster.play("build_vms", "-i", str(path), vms=BUSY).good()
    try:
        with Observer(cluster.lab) as watch:
            watch.wait_word(BUSY, seconds=240)
            found = Mover(cluster, BUSY, watch)
            yield found
            found.heal()
        verdict = watch.verdict()
        assert verdict.ok, str(verdict)
    finally:
        options = {"vms": BUSY, "confirm": BUSY, "remove_disks": True, "force": True}
        cluster.play("remove_vms", "-i", str(path), **options).good()


def test_f15_a_vm_that_does_not_converge_stays_pauses_or_is_slowed_down(busy: Mover) -> None:
    hard: dict[str, Any] = {"bandwidth": "2MiB", "timeout": 75, "auto_converge": False, "max_downtime": 300}
    result = busy.move(**hard)
    if not result["failed"]:
        raise Missed(f"not exercised: it converged: {result}")
    assert result["failed"] and result["details"]["where"] == busy.source, result
    assert "not done after" in result["msg"], result["msg"]
    assert busy.says() == {busy.source: WELL} and busy.marked() == []
    paused = busy.move(**hard, when_stuck="pause", max_pause=20)
    assert paused.get("verified") and paused["passes"] > 2, paused
    # It did not converge before; how much was left when it was paused is chance.
    assert paused["seconds"] >= hard["timeout"] and paused["downtime_ms"] < 30000, paused
    assert busy.says() == {busy.target: WELL}
    slowed = busy.migrate(busy.target, name=BUSY, to=busy.source, bandwidth="8MiB", timeout=300)
    assert slowed.get("verified"), slowed
    busy.counts()
    for name, one in (("paused", paused), ("slowed", slowed)):
        print(f"{name}: {one['seconds']} s, {one['passes']} passes, {one['sent'] >> 20} MiB, {one['downtime_ms']} ms")


def negotiated(mover: Mover) -> dict[str, Any]:
    """What QEMU at the source was told of how the memory goes over."""

    def ask(what: str) -> Any:
        command = json.dumps({"execute": f"query-migrate-{what}"})
        return json.loads(mover.virsh(mover.source, "qemu-monitor-command", mover.vm, command))["return"]

    on = {one["capability"] for one in ask("capabilities") if one["state"]}
    parameters = ask("parameters")
    ways = (parameters["multifd-compression"],) if "multifd" in on else ()
    return {"ways": [*ways, *(on & {"xbzrle"})], "connections": parameters["multifd-channels"] if ways else None}


@pytest.mark.parametrize("way, connections", [("none", None), ("xbzrle", None), ("zlib", 2), ("zstd", 3)])
def test_what_leaves_a_node_can_be_compressed(mover: Mover, way: str, connections: int | None) -> None:
    packed: dict[str, Any] = {"compression": way, "parallel_connections": connections}
    packed = {name: value for name, value in packed.items() if value}
    process = mover.start_slowly(**packed)
    asked = negotiated(mover)
    # libvirt tells of the cache only where there is one.
    cached = "Compression cache" in mover.virsh(mover.source, "domjobinfo", mover.vm)
    mover.in_phase("perform3")
    mover.speed_up()
    there = mover.end(process)
    assert there.get("verified"), there
    assert asked == {"ways": [way] if way != "none" else [], "connections": connections} and cached == (way == "xbzrle")
    back = mover.migrate(mover.target, name=mover.vm, to=mover.source, **packed)
    assert back.get("verified"), back
    plain = mover.move()
    assert plain.get("verified"), plain
    assert not connections or back["sent"] < 0.8 * plain["sent"], (back, plain)
    mover.rests_on(mover.target)
    print({"way": way, "there": there["sent"] >> 20, "back": back["sent"] >> 20, "plain": plain["sent"] >> 20})


def leftovers(mover: Mover, node: str) -> dict[str, int]:
    """What a migration could leave on a node: open files of libvirt, ports, files of ours, QEMUs, the log's bytes."""
    (daemon,) = mover.lab.machine(node).find("libvirtd")[:1]
    ports = mover.inside(node, "ovs-vsctl", "list-ports", "br0").split()
    files = mover.inside(node, "sh", "-c", "ls -A /run/drover | grep -v pyz; ls /run/libvirt/qemu", check=False).split()
    log = mover.inside(node, "sh", "-c", f"cat /var/log/libvirt/qemu/{mover.vm}.log* | wc -c", check=False)
    qemus = [pid for pid in mover.lab.machine(node).pids() if b"\0-uuid\0" in command_line(pid)]
    return {
        "descriptors": len(os.listdir(f"/proc/{daemon}/fd")),
        "ports": len(ports),
        "files": len([name for name in files if not name.startswith(mover.vm)]),
        "processes": len(qemus),
        "log": int(log.strip() or 0),
    }


def test_f28_back_and_forth_leaves_nothing(mover: Mover, rounds: int) -> None:
    nodes = (mover.source, mover.target)
    seen: dict[str, dict[str, int]] = {}
    gaps = []
    for turn in range(rounds):
        for source, to in (nodes, nodes[::-1]):
            result = mover.migrate(source, name=mover.vm, to=to)
            assert result.get("verified"), (turn, result)
            gaps.append(result["downtime_ms"])
        if turn == 1:
            seen = {node: leftovers(mover, node) for node in nodes}
    for node in nodes:
        first, last = seen[node], leftovers(mover, node)
        assert abs(last["descriptors"] - first["descriptors"]) <= 2, (node, first, last)
        assert all(last[what] == first[what] for what in ("ports", "files", "processes")), (node, first, last)
        # virtlogd keeps four files of 2 MiB.
        assert last["log"] < 9 * MIB, (node, first, last)
        print(f"{node}: {first} then {last}")
    gaps.sort()
    print(f"{len(gaps)} moves: downtime median {gaps[len(gaps) // 2]} ms, most {gaps[-1]} ms")
    mover.rests_on(mover.source)


def test_f27_the_destination_dies_right_after_success(mover: Mover) -> None:
    before = mover.cluster.where()
    others = [name for name, node in before.items() if node == mover.target]
    mover.moved()
    mover.lab.power_off(mover.target)
    mover.lab.power_on(mover.target)
    wait_until(
        lambda: mover.vm in (seen := mover.cluster.domains(mover.target)) or str(seen), 120, "libvirt of the node"
    )
    # It was to start with its node.
    if mover.says() == {mover.target: ("shut off", "yes")}:
        mover.virsh(mover.target, "start", mover.vm)
    for name in others:
        mover.virsh(mover.target, "start", name, check=False)
    mover.counts(240)
    mover.rests_on(mover.target)
    for name in others:
        mover.watch.wait_word(name, after=time.monotonic(), seconds=240)
