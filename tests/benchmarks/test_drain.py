# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a VM stands still as it moves, and a node is emptied over a link that is the limit, beside virsh."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.benchmarks.measure import report
from ansible_collections.drover.kvm.tests.lab.cluster import IMAGES, SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.conftest import cluster, lab, site
from ansible_collections.drover.kvm.tests.lab.observer import Observer

__all__ = ["cluster", "lab", "site"]

NODE, OTHERS = "hv1", ("hv2", "hv3")
MORE = {f"more{number}": f"10.231.100.{50 + number}/24" for number in range(4)}
# What the node sends on the migration network, in Mbit/s.
LINK = int(os.environ.get("DROVER_BENCH_LINK", "32"))
AT_ONCE = (2, 4)
GOAL = 1.15
# How often there and back; in ms, what a move may cost more than by virsh alone.
ROUNDS = int(os.environ.get("DROVER_BENCH_ROUNDS", "10"))
DEARER = 30.0
FLAGS = "--live --p2p --tls --persistent --undefinesource --abort-on-error"


@pytest.fixture
def ten(cluster: Cluster, tmp_path: Path) -> Iterator[list[str]]:
    """Ten VMs on one node; the options that add four of them to the inventory. In the end these are gone."""
    guests = Guests(cluster.lab.base)
    for name, address in MORE.items():
        image = {"name": name, "ip": address, "sink": SINK}
        guests.write_image(cluster.lab.machine("san1").path(f"{IMAGES}/{name}.img"), image)
    path = tmp_path / "more.yml"
    hosts = "".join(f"    {name}:\n" for name in MORE)
    path.write_text(f"vms:\n  hosts:\n{hosts}", encoding="utf-8")
    options = ["-i", str(path)]
    cluster.play("build_vms", *options, vms=",".join(MORE)).good()
    before = cluster.where()
    yield options
    # All on one node: also those that the site keeps apart.
    cluster.play("undrain_node", *options, node=NODE, drover_anti_affinity=[]).good()
    gather(cluster)
    names = ",".join(MORE)
    cluster.play("remove_vms", *options, vms=names, confirm=names, remove_disks=True, force=True).good()
    back = {name: node for name, node in before.items() if name not in MORE and node != NODE}
    run(cluster, NODE, back, 4)


def run(cluster: Cluster, source: str, moves: dict[str, str], at_once: int) -> None:
    """Move VMs by virsh, so many at once, as an administrator would."""
    nodes = json.loads(cluster.ssh(source, "cat", "/etc/drover/cluster.json"))["nodes"]
    lines = [f"{vm} {nodes[to]['uri']} tcp://{nodes[to]['migration_address']}" for vm, to in moves.items()]
    cluster.ssh(source, f"xargs -L 1 -P {at_once} virsh migrate {FLAGS}", stdin="\n".join(lines) + "\n", timeout=900)


def gather(cluster: Cluster) -> None:
    """All VMs on the one node, over an unlimited link."""
    for source in OTHERS:
        away = {vm: NODE for vm, node in cluster.where().items() if node == source}
        if away:
            run(cluster, source, away, 4)


def measured(cluster: Cluster, empty: Callable[[], object]) -> tuple[float, list[int]]:
    """The seconds that emptying the node took, and the longest silence of each VM in ms, sorted."""
    gather(cluster)
    with Observer(cluster.lab) as watch:
        for name in cluster.where():
            watch.wait_word(name)
        cluster.ssh(NODE, "tc", "qdisc", "replace", "dev", "migration0", "root", *SHAPE.split())
        try:
            begin = time.monotonic()
            empty()
            took = time.monotonic() - begin
        finally:
            cluster.ssh(NODE, "tc", "qdisc", "del", "dev", "migration0", "root")
        assert cluster.domains(NODE) == {}
        for name in cluster.where():
            watch.wait_word(name, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    return took, sorted(guest.gap_ms for guest in verdict.guests.values())


SHAPE = f"tbf rate {LINK}mbit burst 256k latency 200ms"


def drain(cluster: Cluster, options: list[str]) -> float:
    """Empty the node by drain_node; the seconds from its cordon, when the first move begins, to the end."""
    fact = cluster.lab.machine(NODE).path("/etc/ansible/facts.d/drover.fact")
    process = cluster.start("drain_node", *options, node=NODE)
    wait_until(lambda: (fact.exists() and '"since"' in fact.read_text()) or "no cordon yet", 120, "the cordon")
    begin = time.monotonic()
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return time.monotonic() - begin


def silence(watch: Observer, vm: str, move: Callable[[], object]) -> int:
    """The longest silence of a VM around its move, in ms."""
    watch.wait_word(vm, after=time.monotonic())
    begin = time.monotonic()
    move()
    watch.wait_word(vm, after=time.monotonic())
    heard = [sample["time"] for sample in watch.words(vm)]
    # From the last word before it.
    first = max(number for number, moment in enumerate(heard) if moment <= begin)
    return int(1000 * max(later - moment for moment, later in zip(heard[first:], heard[first + 1 :])))


def spread(values: list[float]) -> str:
    """Median, 95 % and the most."""
    ordered = sorted(values)
    return f"{median(ordered):.0f} / {ordered[len(ordered) * 95 // 100]:.0f} / {ordered[-1]:.0f} ms"


def test_the_gap_of_a_move(cluster: Cluster) -> None:
    """What the proof that the source never runs the VM again costs, beside libvirt's own live migration."""
    vm, home = next((vm, node) for vm, node in sorted(cluster.where().items()) if node == NODE)
    gaps: dict[str, list[float]] = {"virsh": [], "migrate": []}
    proofs: list[float] = []

    def by_module(source: str, to: str) -> None:
        moved = cluster.task(source, "migrate", name=vm, to=to, set_home="keep")
        assert moved.get("verified"), moved
        proofs.append(moved["proof_ms"])

    def by_hand(source: str, to: str) -> None:
        run(cluster, source, {vm: to}, 1)

    with Observer(cluster.lab) as watch:
        for number in range(ROUNDS):
            # Each goes in both directions.
            ways = [("virsh", by_hand), ("migrate", by_module)]
            for (how, move), (source, to) in zip(ways[:: 1 - 2 * (number % 2)], [(home, OTHERS[0]), (OTHERS[0], home)]):
                gaps[how].append(silence(watch, vm, partial(move, source, to)))
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    rows = [(f"{how}, gap of {len(found)} moves", spread(found)) for how, found in gaps.items()]
    dearer = median(gaps["migrate"]) - median(gaps["virsh"])
    rows.append(("the difference of the medians", f"{dearer:.0f} ms (goal: {DEARER:.0f})"))
    rows.append(("the proof, before which virsh lets it run", spread(proofs)))
    rows.append(("load average, 5 minutes", f"{os.getloadavg()[1]:.1f}"))
    report("How long a VM stands still as it moves (p50 / p95 / max)", rows)
    assert dearer <= DEARER, rows


def words(took: float, gaps: list[int]) -> str:
    """One row of the table."""
    at = {percent: gaps[min(len(gaps) - 1, len(gaps) * percent // 100)] for percent in (50, 95)}
    return f"{took:.1f} s, gap {at[50]} / {at[95]} / {gaps[-1]} ms"


def test_a_node_with_ten_vms_is_emptied(cluster: Cluster, ten: list[str]) -> None:
    def by_hand(at_once: int) -> None:
        names = sorted(vm for vm, node in cluster.where().items() if node == NODE)
        run(cluster, NODE, {vm: OTHERS[number % 2] for number, vm in enumerate(names)}, at_once)

    found = {}
    for at_once in (1, *AT_ONCE):
        found[at_once] = measured(cluster, partial(by_hand, at_once))
        # A run that is ended before its table has told this much.
        print(f"virsh, {at_once} at once: {words(*found[at_once])}", flush=True)
    cordoned: list[float] = []
    drained = measured(cluster, lambda: cordoned.append(drain(cluster, ten)))
    best = min(found[at_once][0] for at_once in AT_ONCE)
    rows = [(f"virsh, {at_once} at once", words(*found[at_once])) for at_once in found]
    share = f"{drained[0] / best:.2f} of the best by hand (goal: {GOAL}), {cordoned[0]:.1f} s from its cordon on"
    rows.append(("drain_node", f"{words(*drained)}, {share}"))
    rows.append(("load average, 5 minutes", f"{os.getloadavg()[1]:.1f}"))
    report(f"A node with ten VMs is emptied at {LINK} Mbit/s (gap: p50 / p95 / max)", rows)
    assert drained[0] <= GOAL * best, rows
