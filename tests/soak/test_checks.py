# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks that look at a site: which consoles answer, and which CPU all nodes can give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NODES = ("hv1", "hv2", "hv3")
# The lab's guests have a shell on their console, and nothing to log in at; a machine of firmware alone says nothing.
PROMPT, MUTE = {"drover_console_expect": "# $"}, "mute1"
SHEET: dict[str, Any] = {"name": MUTE, "memory": "24MiB", "vcpus": 1}


@pytest.fixture
def mute(cluster: Cluster) -> Iterator[str]:
    """A VM on hv2 whose console is silent; gone at the end."""
    made = cluster.task("hv2", "vm", state="running", **SHEET)
    assert not made["failed"], made
    yield MUTE
    gone = cluster.task("hv2", "vm", name=MUTE, state="absent", force=True)
    assert not gone["failed"] and MUTE not in cluster.domains("hv2"), gone


def test_all_consoles_answer(cluster: Cluster) -> None:
    good = cluster.play("console_check", **PROMPT).good()
    assert good.changed == 0
    for name in cluster.sheets():
        assert f"{name} answers on its console" in good.output, good.output
    some = cluster.play("console_check", vms="web*", **PROMPT).good()
    assert "web1 answers" in some.output and "ldap1 answers" not in some.output, some.output


def test_a_silent_console_is_named(cluster: Cluster, mute: str) -> None:
    bad = cluster.play("console_check", drover_console_timeout=8, **PROMPT)
    bad.refused(f"{mute} does not answer on its console within 8 s")
    others = [name for name, node in cluster.where().items() if node != "hv2"]
    assert all(f"{name} answers on its console" in bad.output for name in others), bad.output
    # What the inventory does not know is no part of a pattern, so the rest is good.
    cluster.play("console_check", vms="vms", **PROMPT).good()


def test_a_check_that_looked_at_nothing_fails(cluster: Cluster) -> None:
    cluster.play("console_check", vms="wbe1", **PROMPT).refused("nothing that wbe1 stands for")
    home = cluster.where()["web1"]
    other = next(node for node in NODES if node != home)
    cluster.play("console_check", "--limit", other, vms="web1", **PROMPT).refused(f"Not running on {other}: web1")


def test_a_node_on_which_nothing_runs_has_no_consoles(cluster: Cluster) -> None:
    node = cluster.where()["web1"]
    names = [name for name, home in cluster.where().items() if home == node]
    try:
        for name in names:
            cluster.ssh(node, "virsh", "suspend", name)
        words = f"No VM runs on {node}, so no console was looked at"
        cluster.play("console_check", "--limit", node, **PROMPT).refused(words)
    finally:
        for name in names:
            cluster.ssh(node, "virsh", "resume", name)


def test_the_cpu_that_all_nodes_have(site: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "cpu.yml"
    checked = site.play("cpu_baseline", "--check", file=str(place)).good()
    assert not place.exists() and checked.changed == 1, checked.output
    written = site.play("cpu_baseline", file=str(place)).good()
    assert written.changed == 1 and site.play("cpu_baseline", file=str(place)).good().changed == 0
    said = yaml.safe_load(place.read_text(encoding="utf-8"))
    assert set(said) == {"vm_cpu", "vm_cpu_features"} and said["vm_cpu"], said
    sheet = {**SHEET, "name": "same1", "cpu": said["vm_cpu"], "cpu_features": said["vm_cpu_features"]}
    try:
        for node in NODES:
            made = site.task(node, "vm", state="running", **sheet)
            assert not made["failed"] and site.domains(node)["same1"] == "running", made
            assert not site.task(node, "vm", state="running", **sheet)["changed"]
            assert not site.task(node, "vm", name="same1", state="absent", force=True)["failed"]
    finally:
        for node in NODES:
            site.task(node, "vm", name="same1", state="absent", force=True)


def test_a_part_of_the_cluster_gets_no_cpu(site: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "cpu.yml"
    refused = site.play("cpu_baseline", "--limit", "hv1", file=str(place))
    refused.refused("hv2, hv3 gave no answer or is outside of the limit")
    assert not place.exists()
