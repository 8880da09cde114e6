# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools of libvirt that need a kernel of their own: an export of NFS, which libvirt mounts, and a volume group.

Each test goes on from the one before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.test_block_disks import BOOT_ID, BOOT_SECONDS, do

SITE = Path(__file__).with_name("pools")
NODE, SERVER = "hv1", "nas1"
EXPORT = """set -e
mkdir -p /srv/media /etc/exports.d && echo installation > /srv/media/debian.iso
echo '/srv/media 10.231.5.0/24(rw,no_root_squash,no_subtree_check)' > /etc/exports.d/media.exports
systemctl start nfs-server && exportfs -ra"""
DEVICE = "/dev/disk/by-id/virtio-disk1"
VOLUME = "lvcreate -q -y -L 16M -n keep vmdata && echo accounts > /dev/vmdata/keep"
POOLS: dict[str, dict[str, Any]] = {
    "netfs": {"name": "media", "hosts": ["10.231.5.10"], "source": "/srv/media", "path": "/srv/iso"},
    "logical": {"name": "vmdata", "source": "vmdata"},
}
# What is in each, and how it is read through the pool.
HOLDS = {"netfs": ("debian.iso", "installation"), "logical": ("keep", "accounts")}
# Says something while the node uses it.
USES = {"netfs": "findmnt -n -t nfs,nfs4", "logical": "lvs --noheadings -S lv_active=active vmdata"}
READS = "head -c {} $(virsh vol-path --pool {} {})"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A server of NFS, and a node with a volume group of its own."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-pools"), SITE) as found:
        found.ssh(SERVER, EXPORT, timeout=300)
        do(found, NODE, "volume_group", name="vmdata", devices=[DEVICE])
        found.ssh(NODE, VOLUME, timeout=300)
        # Emulated and busy, its libvirt takes longer to start than a module waits for it.
        wait_until(lambda: "qemu" in found.ssh(NODE, "virsh uri", check=False, timeout=300), 300, "libvirt answers")
        yield found


def reads(nodes: Cluster, kind: str) -> str:
    """The words that the pool's file or volume holds."""
    volume, words = HOLDS[kind]
    return nodes.ssh(NODE, READS.format(len(words), POOLS[kind]["name"], volume), timeout=120)


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_is_made_as_foretold_and_lists_what_is_there(nodes: Cluster, kind: str) -> None:
    options = {"type": kind, **POOLS[kind]}
    predicted = nodes.task(NODE, "pool", check=True, **options)
    made = do(nodes, NODE, "pool", **options)
    assert made["changed"] and made["actions"] == predicted["actions"] and made["pool"] == predicted["pool"]
    assert (made["pool"]["state"], made["pool"]["autostart"]) == ("active", True)
    assert not do(nodes, NODE, "pool", **options)["changed"]
    listed = nodes.ssh(NODE, f"virsh -q vol-list {options['name']}", timeout=120).split()
    assert listed[::2] == [HOLDS[kind][0]], listed
    assert nodes.ssh(NODE, USES[kind], timeout=120) != "" and reads(nodes, kind) == HOLDS[kind][1]


def test_what_is_added_elsewhere_is_seen(nodes: Cluster) -> None:
    nodes.ssh(SERVER, "truncate -s 1M /srv/media/fedora.iso", timeout=120)

    def seen() -> bool | str:
        found = nodes.ssh(NODE, "virsh -q pool-refresh media; virsh -q vol-list media", timeout=120)
        return found.split()[::2] == ["debian.iso", "fedora.iso"] or found

    # A client of NFS knows what is in a folder for up to a minute; nfs(5), acdirmax.
    wait_until(seen, 120, "the new file is listed")


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_is_deactivated_and_activated(nodes: Cluster, kind: str) -> None:
    name = POOLS[kind]["name"]
    off = do(nodes, NODE, "pool", name=name, state="inactive")
    assert off["actions"] == ["deactivate it"] and off["pool"]["state"] == "inactive"
    assert nodes.ssh(NODE, USES[kind], check=False, timeout=120) == ""
    assert do(nodes, NODE, "pool", name=name)["actions"] == ["activate it"]
    assert reads(nodes, kind) == HOLDS[kind][1]


def test_they_are_active_again_with_the_node(nodes: Cluster) -> None:
    boot = nodes.ssh(NODE, BOOT_ID, timeout=120)
    nodes.ssh(NODE, "reboot", check=False, timeout=120)
    up = f"{BOOT_ID}; virsh -q pool-list --name"

    def back() -> bool | str:
        said = nodes.ssh(NODE, up, check=False, timeout=120).split()
        return (said[:1] != boot.split() and sorted(said[1:]) == ["media", "vmdata"]) or str(said)

    wait_until(back, BOOT_SECONDS, "both pools are active")
    for kind in POOLS:
        assert reads(nodes, kind) == HOLDS[kind][1]
        assert not do(nodes, NODE, "pool", type=kind, **POOLS[kind])["changed"]


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_is_forgotten_and_all_that_is_in_it_stays(nodes: Cluster, kind: str) -> None:
    name = POOLS[kind]["name"]
    gone = do(nodes, NODE, "pool", name=name, state="absent")
    assert gone["changed"] and gone["pool"] is None
    assert not do(nodes, NODE, "pool", name=name, state="absent")["changed"]
    assert nodes.ssh(NODE, USES[kind], check=False, timeout=120) == ""
    assert name not in nodes.ssh(NODE, "virsh -q pool-list --all --name", timeout=120).split()
    if kind == "netfs":
        assert nodes.ssh(SERVER, "cat /srv/media/debian.iso", timeout=120) == "installation\n"
    else:
        kept = "lvchange -ay vmdata/keep && head -1 /dev/vmdata/keep"
        assert nodes.ssh(NODE, kept, timeout=120) == "accounts\n"
