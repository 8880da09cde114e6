# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A storage pool of libvirt that is a pool of Ceph, as the inventory declares it for a new site."""

from __future__ import annotations

from typing import Any

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NODES = ("hv1", "hv2")
DRIVER = "libvirt-daemon-driver-storage-rbd"
POOL: dict[str, Any] = {"name": "ceph-vms", "type": "rbd", "source": "vms"}
LOCAL = {"name": "default", "type": "dir", "path": "/var/lib/libvirt/images"}


def test_a_storage_pool_shows_the_images_and_leaves_them_when_it_goes(quorum: Cluster) -> None:
    """#12: the role installs the driver, which the daemon lacks; the pool takes the secret of role ceph_client."""
    pool: dict[str, Any] = {"name": "vms", "size": 2, "min_size": 1, "accept_risk": True, "applications": ["rbd"]}
    assert not quorum.task("q1", "ceph_pool", **pool)["failed"]
    quorum.ssh("q1", "rbd info vms/pooled >/dev/null 2>&1 || rbd create --size 8M vms/pooled")
    before = quorum.ssh("q1", "rbd ls vms")
    for node in NODES:
        quorum.ssh(node, f"apt-get remove -q -y {DRIVER} && systemctl try-restart libvirtd", timeout=300)
    try:
        # On bare nodes nothing says yet which monitors there are.
        refused = quorum.task("hv1", "pool", **POOL, hosts=["10.231.5.13:6789"])
        assert refused["failed"] and f"install it (on Debian {DRIVER})" in refused["msg"], refused
        quorum.play("site", hypervisor_pools=[LOCAL, POOL]).good()
        for node in NODES:
            said = quorum.ssh(node, "virsh -q pool-list --all").split()
            assert said[said.index("ceph-vms") + 1 :][:2] == ["active", "yes"], said
            assert quorum.ssh(node, "virsh -q vol-list ceph-vms").split()[::2] == before.split()
        again = quorum.play("site", "--tags", "hypervisor", hypervisor_pools=[LOCAL, POOL]).good()
        assert again.changed == 0, again.output
        # libvirt forgets that it is active when its daemon starts anew; autostart is for the start of the node.
        quorum.ssh("hv1", "systemctl restart libvirtd")
        assert quorum.task("hv1", "pool", **POOL)["actions"] == ["activate it"]
        assert quorum.task("hv1", "pool", **POOL)["changed"] is False
        gone = [LOCAL, {**POOL, "state": "absent"}]
        told = quorum.play("site", "--tags", "hypervisor", "--check", hypervisor_pools=gone).good()
        done = quorum.play("site", "--tags", "hypervisor", hypervisor_pools=gone).good()
        assert told.changed == done.changed == len(NODES), told.output + done.output
        assert "ceph-vms" not in quorum.ssh("hv1", "virsh -q pool-list --all")
        assert quorum.ssh("q1", "rbd ls vms") == before
    finally:
        quorum.ssh("q1", "rbd rm vms/pooled")
        for node in NODES:
            quorum.task(node, "pool", name="ceph-vms", state="absent")
            quorum.ssh(node, f"apt-get install -q -y {DRIVER}", timeout=300)
