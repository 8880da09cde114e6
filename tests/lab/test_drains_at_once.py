# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers at once: drains of two nodes, a drain beside a build; and one that is interrupted.

With DROVER_SEEDS=N each runs N times, and by chance the second comes up to BETWEEN seconds after the first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import PLAY_SECONDS, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import SLOW, modules, waiting
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE, OTHER = "hv1", "hv2"
BOTH = f"{NODE},{OTHER}"
BETWEEN = 15.0
# A move at the lowest speed takes 20 s and more.
IN_A_MOVE = 10.0


@pytest.fixture(autouse=True)
def watched(cluster: Cluster) -> Iterator[Observer]:
    """Every VM is watched; in the end all are at home, and no VM ran twice or was lost."""
    before = cluster.where()
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        yield watch
        cluster.play("undrain_node", node=BOTH).good()
        assert cluster.where() == before
        for name in before:
            watch.wait_word(name, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The status of a playbook and what it said."""
    output = process.communicate(timeout=PLAY_SECONDS)[0]
    assert "Traceback" not in output, output
    return process.returncode, output


def later(dice: Random | None, most: float = BETWEEN) -> None:
    """The moment that is left to chance."""
    if dice:
        print(f"{(delay := dice.uniform(0, most)):.1f} s between them")
        time.sleep(delay)


def moves_of(watch: Observer, name: str) -> list[str]:
    """The nodes on which a VM ran, in order."""
    return [place for place, _begin, _end in watch.verdict().guests[name].where]


def test_f21_two_nodes_are_drained_at_once(cluster: Cluster, watched: Observer, dice: Random | None) -> None:
    before = cluster.where()
    # The VMs that the site keeps apart have only one node left.
    together: dict[str, list[str]] = {"drover_anti_affinity": []}
    drains = {NODE: cluster.start("drain_node", node=NODE, **together)}
    later(dice)
    drains[OTHER] = cluster.start("drain_node", node=OTHER, **together)
    results = {node: ended(process) for node, process in drains.items()}
    done = [node for node, (code, _output) in results.items() if code == 0]
    assert done, results
    for node in done:
        assert cluster.domains(node) == {}, f"{node} was said to be empty\n{results[node][1]}"
    for name in before:
        assert len(moves_of(watched, name)) <= 3, moves_of(watched, name)
    cluster.play("drain_node", node=BOTH, **together).good()
    assert set(cluster.where().values()) == {"hv3"}


def test_f22_a_vm_is_started_on_a_node_that_is_drained(
    cluster: Cluster, watched: Observer, dice: Random | None
) -> None:
    name = next(vm for vm, node in sorted(cluster.where().items()) if node == NODE)
    cluster.ssh(NODE, "virsh", "destroy", name)
    drain = cluster.start("drain_node", node=NODE)
    later(dice)
    build = cluster.start("build_vms", vms=name)
    drained, built = ended(drain), ended(build)
    if drained[0] == 0:
        assert cluster.domains(NODE) == {}, drained[1] + built[1]
    cluster.play("drain_node", node=NODE).good()
    cluster.play("build_vms", vms=name).good()
    assert cluster.domains(NODE) == {}
    assert cluster.where()[name] != NODE


def test_f02_an_interrupt_begins_no_further_move(cluster: Cluster, watched: Observer, dice: Random | None) -> None:
    leaving = sorted(vm for vm, node in cluster.where().items() if node == NODE)
    assert len(leaving) > 1, "not exercised: none waits for its turn"
    drain = cluster.start("drain_node", node=NODE, drover_bandwidth=SLOW, drover_parallel=1)
    status = cluster.lab.machine(NODE).path("/run/libvirt/qemu")

    def moving() -> list[str]:
        return [path.stem for path in status.glob("*.xml") if "phase='perform3'" in read(path)]

    wait_until(lambda: bool(moving()) or "no move", 240, "a move")
    (first,) = moving()
    later(dice, IN_A_MOVE)
    assert moving() == [first], f"not exercised: {first} has moved"
    # Ctrl-C, or a job that is cancelled.
    os.killpg(drain.pid, dice.choice([signal.SIGINT, signal.SIGTERM]) if dice else signal.SIGINT)
    code, output = ended(drain)
    assert code != 0 and "PLAY RECAP" not in output, f"not exercised: the drain had ended\n{output}"
    assert modules(cluster.lab, NODE), "not exercised: the queue has ended with the controller"
    # What runs ends by itself, and now at once: the queue has a free place and knows for seconds only of its end.
    cluster.ssh(NODE, "virsh", "migrate-setspeed", first, "900")
    wait_until(lambda: not (seen := modules(cluster.lab, NODE)) or [*map(waiting, seen)], 120, "the end of the queue")
    stay = [vm for vm, node in cluster.where().items() if node == NODE]
    assert stay == [vm for vm in leaving if vm != first], f"{stay} of {leaving} stayed"
    assert '"since"' in cluster.ssh(NODE, "cat", "/etc/ansible/facts.d/drover.fact"), "it is not cordoned any more"
    cluster.play("drain_node", node=NODE).good()
    assert cluster.domains(NODE) == {}


def read(path: Path) -> str:
    """A file that may be gone by now."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
