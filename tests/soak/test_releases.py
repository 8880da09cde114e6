# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of Debian 12 (libvirt 9.0, QEMU 7.2) beside two of Debian 13: the way there, and the way back.

DROVER_RELEASES_LAB=NAME     which lab these stories have to themselves (default: drover-releases)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import SITE, Cluster, own_lab
from ansible_collections.drover.kvm.tests.lab.observer import Observer

TOPOLOGY = Path(__file__).with_name("releases_topology.json")
NEWER, OLDER = ("hv1", "hv2"), "hv3"
# Those that the site keeps apart could go nowhere else: here only what the machine types say counts.
TOGETHER: dict[str, list[str]] = {"drover_anti_affinity": []}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Cluster]:
    """The site of examples/lab with its six VMs, on nodes of two releases."""
    with own_lab(os.environ.get("DROVER_RELEASES_LAB", "drover-releases"), TOPOLOGY, SITE) as found:
        found.play("site").good()
        found.write_images()
        found.play("build_vms").good()
        yield found


@pytest.fixture
def watched(mixed: Cluster) -> Iterator[Observer]:
    """Every VM is watched; in the end each is where it was, and none ran twice or was lost."""
    before = mixed.where()
    with Observer(mixed.lab) as watch:
        for name in before:
            # Six emulated guests that boot at once on a busy machine took more than 90 s.
            watch.wait_word(name, seconds=240)
        yield watch
        mixed.play("undrain_node", node=",".join([*NEWER, OLDER]), **TOGETHER).good()
        assert mixed.where() == before
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print({name: f"{guest.gap_ms} ms" for name, guest in verdict.guests.items()})


def machine(cluster: Cluster, vm: str) -> str:
    """The machine type of a VM that runs."""
    text = cluster.ssh(cluster.where()[vm], "virsh", "dumpxml", vm)
    found = re.search(r"machine='([^']+)'", text)
    return found.group(1) if found else ""


def on(cluster: Cluster, *nodes: str) -> list[str]:
    """The VMs that run on these nodes."""
    return sorted(vm for vm, node in cluster.where().items() if node in nodes)


def test_the_nodes_are_of_two_releases_and_a_second_site_changes_nothing(mixed: Cluster) -> None:
    said = {node: mixed.ssh(node, "virsh", "version", "--daemon") for node in (*NEWER, OLDER)}
    found = {node: re.findall(r"^Running.* (\d+)\.", text, re.MULTILINE) for node, text in said.items()}
    running = {node: [int(major) for major in majors] for node, majors in found.items()}
    print(running)
    # QEMU, libvirt.
    assert running[OLDER] == [7, 9] and all(running[node] >= [10, 11] for node in NEWER), said
    assert mixed.play("site").good().changed == 0
    assert mixed.play("build_vms").good().changed == 0


def test_the_older_node_is_emptied_and_what_it_has_comes_back(mixed: Cluster, watched: Observer) -> None:
    leaving = on(mixed, OLDER)
    assert leaving and {machine(mixed, vm) for vm in leaving} == {"pc-q35-7.2"}
    mixed.play("drain_node", node=OLDER).good()
    assert mixed.domains(OLDER) == {} and set(leaving) <= set(on(mixed, *NEWER))
    # Its machine type is one that both have: there is a way back, although QEMU there is older.
    mixed.play("undrain_node", node=OLDER).good()
    assert on(mixed, OLDER) == leaving
    assert {machine(mixed, vm) for vm in leaving} == {"pc-q35-7.2"}


def test_a_machine_type_of_the_newer_qemu_is_refused_by_the_older_before_anything_is_done(
    mixed: Cluster, watched: Observer
) -> None:
    before = mixed.where()
    name = on(mixed, "hv1")[0]
    newest = machine(mixed, name)
    assert newest not in ("", "pc-q35-7.2"), "not exercised: it has a machine type that both have"
    for check in (True, False):
        result = mixed.task("hv1", "migrate", check=check, name=name, to=OLDER)
        assert result["failed"] and not result["changed"], result
        assert [blocker["reason"] for blocker in result["details"]["blockers"]] == ["machine"], result
        assert newest in result["msg"], result["msg"]
    words = (
        f"{name} (",
        f"has no place: hv3 does not offer machine type {newest}",
        "give the VM an older machine type",
    )
    mixed.play("drain_node", node=",".join(NEWER), **TOGETHER).refused(*words)
    assert mixed.where() == before


def test_a_newer_node_is_emptied_to_where_its_machine_types_are(mixed: Cluster, watched: Observer) -> None:
    leaving = on(mixed, "hv1")
    mixed.play("drain_node", node="hv1", **TOGETHER).good()
    assert mixed.domains("hv1") == {} and set(leaving) <= set(on(mixed, "hv2"))
