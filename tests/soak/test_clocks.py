# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes whose clocks are apart. Containers have that of the host: the nodes are VMs, each with a clock of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.test_block_disks import do

SITE = Path(__file__).with_name("clocks")
NODE, OTHER = "hv1", "hv2"
# It has nothing to boot from: what it does is no part of this. An emulated AMD node gives guests under KVM a feature
# that it says it lacks itself (topoext), so that a drain refuses their move.
VM = {"name": "clock1", "memory": "32MiB", "vcpus": 1, "virt_type": "qemu"}
APART = 3600
# An emulated node answers late, and the one that is asked first says an earlier time.
NEAR = 30


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes with libvirt and its certificates, and a VM on the first."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-clocks"), SITE) as found:
        found.play("site").good()
        for node in (NODE, OTHER):
            wait_until(lambda node=node: "qemu" in found.ssh(node, "virsh uri", check=False, timeout=300), 300, node)
        do(found, NODE, "vm", **VM, state="running")
        yield found


def ahead(nodes: Cluster, node: str) -> int:
    """By how many seconds a node's clock is before that of the controller."""
    return int(nodes.ssh(node, "date +%s")) - int(time.time())


@contextmanager
def wrong_clock(nodes: Cluster, node: str, seconds: int) -> Iterator[None]:
    """A node whose clock was set forward, or back."""
    nodes.ssh(node, f"date -s @{int(time.time()) + seconds}")
    try:
        found = [ahead(nodes, one) for one in (NODE, OTHER)]
        assert abs(abs(found[0] - found[1]) - abs(seconds)) < NEAR, f"not exercised: {found}"
        yield
        found = [ahead(nodes, one) for one in (NODE, OTHER)]
        assert abs(abs(found[0] - found[1]) - abs(seconds)) < NEAR, f"not exercised, it was set meanwhile: {found}"
    finally:
        nodes.ssh(node, f"date -s @{int(time.time())}")


def moves(nodes: Cluster, playbook: str, to: str, **options: object) -> None:
    """The playbook brings the VM to a node."""
    nodes.play(playbook, node=NODE, **options).good()
    assert nodes.where() == {VM["name"]: to}


@pytest.mark.parametrize("seconds", [APART, -APART])
def test_f26_a_node_whose_clock_is_wrong_is_named_before_anything_is_moved(nodes: Cluster, seconds: int) -> None:
    with wrong_clock(nodes, OTHER, seconds):
        late = OTHER if seconds > 0 else NODE
        for playbook, options in (("drain_node", ["--check"]), ("drain_node", []), ("undrain_node", [])):
            told = nodes.play(playbook, *options, node=NODE)
            told.refused("The clocks of ", f"({late} is ahead). Let all nodes keep the same time (NTP)")
            words = " ".join(told.output.split())
            apart = int(words.split(" s apart (", maxsplit=1)[0].rsplit(" ", 1)[1])
            assert abs(apart - APART) < NEAR and f"drover_clock_skew={apart + 60} to go on all the same" in words, words
        assert nodes.where() == {VM["name"]: NODE}
    moves(nodes, "drain_node", OTHER)
    moves(nodes, "undrain_node", NODE)


def test_f26_who_says_so_goes_on_all_the_same(nodes: Cluster) -> None:
    with wrong_clock(nodes, OTHER, APART):
        moves(nodes, "drain_node", OTHER, drover_clock_skew=APART + NEAR)
        moves(nodes, "undrain_node", NODE, drover_clock_skew=APART + NEAR)
