# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balloons that role hypervisor moves: a node that runs short takes memory of a guest that counts, and gives it back.

The threshold is set above and below what the machine under the lab has available, so nothing has to fill it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak.equipped import SOURCES, Equipped

GROWING, NODE, OTHER = "grown2", "hv3", "hv1"
FILES = "/var/lib/libvirt/images"
SHEET = {"memory": "256MiB", "min_memory": "144MiB"}
UNIT, PROGRAM = "drover-balloon.service", "/usr/local/lib/drover/balloon"


@pytest.fixture
def growing(site: Cluster) -> Iterator[Equipped]:
    """A guest that counts, with 256 MiB, of which the node may take 112."""
    found = Equipped(site, GROWING, NODE)
    try:
        with Observer(site.lab) as watch:
            disks = [found.disk("10.231.100.52/24")]
            found.vm(state="running", vcpus=1, disks=disks, nics=[{"bridge": "br0", "vlan": 100}], **SHEET)
            watch.wait_word(GROWING, seconds=240)
        yield found
    finally:
        for node in [node for node in (NODE, OTHER) if GROWING in site.domains(node)]:
            found.task(node, state="absent", force=True, remove_disks=True)
        found.ssh(f"rm -rf {SOURCES}")
    assert GROWING not in site.where()
    assert [site.ssh(node, f"ls {FILES} | grep {GROWING}", check=False) for node in (NODE, OTHER)] == ["", ""]


def memory_of(vm: Equipped, node: str = NODE) -> int:
    """The MiB that its balloon leaves it."""
    words = vm.cluster.ssh(node, "virsh", "dommemstat", vm.name).split()
    return int(words[words.index("actual") + 1]) // 1024


@pytest.fixture
def balloons(growing: Equipped) -> Iterator[Callable[[str], Played]]:
    """Role hypervisor on two nodes with such a threshold; at the end it is off again."""

    def role(threshold: str) -> Played:
        options = ("--limit", f"{NODE},{OTHER}", "--tags", "hypervisor")
        return growing.cluster.play("site", *options, hypervisor_balloon_threshold=threshold).good()

    yield role
    role("")


def test_a_node_that_runs_short_takes_memory_of_a_guest_and_gives_it_back(
    growing: Equipped, balloons: Callable[[str], Played]
) -> None:
    def comes_to(size: int, node: str = NODE) -> None:
        # The first round asks the guest what it uses, the next one takes.
        wait_until(lambda: memory_of(growing, node) == size or memory_of(growing, node), 120, f"{size} MiB on {node}")

    cluster = growing.cluster
    comes_to(256)
    # The nodes see the memory of the machine under the lab; they are short of more than there is.
    available = int(growing.ssh("grep MemAvailable /proc/meminfo").split()[1]) // 1024
    short = f"{available + 65536}MiB"
    with Observer(cluster.lab) as watch:
        watch.wait_word(GROWING)
        balloons(short)
        comes_to(144)
        # It is no change, whatever libvirt says that it has.
        assert growing.vm(**SHEET)["actions"] == [] and balloons(short).changed == 0
        # The program goes on when libvirt was started anew, and has its way with what somebody does by hand.
        growing.ssh(f"systemctl restart libvirtd && virsh setmem {GROWING} 200M --live")
        comes_to(144)
        moved = growing.move(NODE, OTHER, storage="copy")
        assert moved.get("verified") and memory_of(growing, OTHER) == 144, moved
        balloons("1%")
        comes_to(256, OTHER)
        balloons(short)
        comes_to(144, OTHER)
        # Switched off, all is given back, and nothing of it is left.
        balloons("")
        comes_to(256, OTHER)
        assert balloons("").changed == 0
        watch.wait_word(GROWING)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    for node in (NODE, OTHER):
        said = cluster.ssh(node, f"ls {PROGRAM}; systemctl is-enabled {UNIT}; true", check=False)
        assert PROGRAM not in said and "enabled" not in said, said
        assert f"{GROWING}: 256 MiB -> 144 MiB" in cluster.ssh(node, "journalctl", "-u", UNIT)
