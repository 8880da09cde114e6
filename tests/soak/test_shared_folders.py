# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM with a folder of its node, which ties it there. What its guest sees is asked of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak.equipped import SOURCES, Equipped

HOME, OTHER = "hv1", "hv2"
SHARED = "/srv/shared-with-a-guest"
NIC = {"bridge": "br0", "vlan": 100}


@pytest.fixture
def sharing(site: Cluster) -> Iterator[Equipped]:
    """A guest that counts, with a folder of its node."""
    found = Equipped(site, "shares1", HOME)
    site.ssh(HOME, "apt-get -y --no-install-recommends install virtiofsd", timeout=300)
    site.ssh(HOME, f"mkdir -p {SHARED} && echo from the node >{SHARED}/word")
    disks, shares = [found.disk("10.231.100.49/24")], [{"source": SHARED, "target": "share"}]
    sheet: dict[str, Any] = {"memory": "192MiB", "vcpus": 1, "disks": disks, "nics": [NIC], "filesystems": shares}
    try:
        with Observer(site.lab) as watch:
            made = found.task(state="running", **sheet)
            assert not made["failed"] and not found.task(state="running", **sheet)["changed"], made
            watch.wait_word(found.name, seconds=240)
        found.wait_agent(HOME)
        yield found
    finally:
        for node in (HOME, OTHER):
            if found.name in site.domains(node):
                found.task(node, state="absent", force=True, remove_disks=True)
        site.ssh(HOME, "rm", "-rf", SHARED, SOURCES)


def test_a_folder_of_the_node_is_used_and_keeps_the_vm_there(sharing: Equipped) -> None:
    cluster = sharing.cluster
    script = "PATH=/bin; busybox mkdir -p /mnt; mount -t virtiofs share /mnt; cat /mnt/word; echo guest >/mnt/answer"
    assert sharing.guest(HOME, script) == "from the node"
    assert cluster.ssh(HOME, f"cat {SHARED}/answer").strip() == "guest"
    refused = sharing.move(HOME, OTHER, storage="copy")
    assert refused["failed"] and [one["reason"] for one in refused["details"]["blockers"]] == ["filesystem"], refused
    assert "share" in refused["msg"] and cluster.domains(HOME)[sharing.name] == "running"
    drained = cluster.play("drain_node", "--check", node=HOME, drover_copy_storage=True)
    drained.refused(f"{sharing.name} shares a folder with its node: share")
    # Taken away, it counts from the next start, and the VM can move.
    without = sharing.task(filesystems=[])
    assert [words.split()[0] for words in without["pending_restart"]] == ["filesystems"], without
    with Observer(cluster.lab) as watch:
        assert not sharing.task(state="restarted", force=True)["failed"]
        watch.wait_word(sharing.name, seconds=240)
        moved = sharing.move(HOME, OTHER, storage="copy")
        assert moved.get("verified"), moved
        assert sharing.move(OTHER, HOME, storage="copy").get("verified")
