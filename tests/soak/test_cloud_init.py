# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seed of a VM on real nodes: made, seen, changed, moved away from, deleted. The guest never boots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NAME, CANARY = "seeded1", "corr3ct-h0rse-seed"
SEED = f"/var/lib/libvirt/images/drover-{NAME}-seed.iso"
NIC = {"bridge": "br0", "vlan": 100, "addresses": ["10.231.100.77/24", "fd00:100::77/64"], "gateway": ["10.231.100.1"]}
SPREAD = f"journalctl -q -o cat --no-pager | grep {CANARY}; grep -rl {CANARY} /etc/libvirt /var/log/libvirt /run/drover"
LOOK = f"stat -c %a {SEED}; blkid -p -s LABEL -o value {SEED}; grep -c {CANARY} {SEED}"


class Seeded:
    """The VM and what is done with it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def vm(self, node: str, data: str = "", check: bool = False, **options: Any) -> dict[str, Any]:
        """Module vm."""
        text = f"#cloud-config\npassword: {CANARY}\n# 'it' \"is\"\n{data}"
        sheet = {"memory": "32MiB", "vcpus": 1, "nics": [NIC], "cloud_init": {"user_data": text}}
        found = self.cluster.task(node, "vm", check=check, name=NAME, **{**sheet, **options})
        assert not found["failed"], found
        assert CANARY not in str(found)
        return found

    def seed(self, node: str) -> list[str]:
        """Mode and label of the ISO, and whether the secret is in it; nothing when there is none."""
        return self.cluster.ssh(node, LOOK, check=False).split()


@pytest.fixture
def seeded(site: Cluster) -> Iterator[Seeded]:
    yield Seeded(site)
    for node in ("hv1", "hv2"):
        site.task(node, "vm", name=NAME, state="absent", force=True)
        assert site.ssh(node, f"ls {SEED}", check=False) == ""


def test_a_seed_is_made_changed_left_behind_and_deleted(seeded: Seeded) -> None:
    predicted = seeded.vm("hv1", check=True, state="running")
    assert seeded.seed("hv1") == []
    made = seeded.vm("hv1", state="running")
    assert made["actions"] == predicted["actions"] and made["actions"][0] == f"make the seed {SEED}"
    assert seeded.seed("hv1") == ["600", "CIDATA", "1"]
    assert seeded.vm("hv1", state="running")["changed"] is False
    changed = seeded.vm("hv1", data="timezone: UTC\n")
    assert changed["vm"]["seed"]["digest"] != made["vm"]["seed"]["digest"]
    assert [words for words in changed["pending_restart"] if "cloud-init data" in words]
    kept = seeded.seed("hv1")
    checked = seeded.vm("hv1", check=True, cloud_init={"remove": True})
    assert kept == seeded.seed("hv1") == ["600", "CIDATA", "1"]
    done = seeded.vm("hv1", cloud_init={"remove": True})
    assert done["actions"] == checked["actions"] and done["actions"][-1] == f"delete {SEED}", done
    assert seeded.seed("hv1") == [] and SEED not in seeded.cluster.ssh("hv1", f"virsh dumpxml {NAME}")
    assert seeded.vm("hv1", cloud_init={"remove": True})["changed"] is False
    # It is as it was with other data.
    back = seeded.vm("hv1", data="timezone: UTC\n# again\n")
    assert f"make the seed {SEED}" in back["actions"] and seeded.seed("hv1") == kept
    moved = seeded.cluster.task("hv1", "migrate", name=NAME, to="hv2")
    assert moved.get("verified"), moved
    assert seeded.seed("hv1") == [] == seeded.seed("hv2")
    data = "timezone: UTC\n# again\n"
    assert seeded.vm("hv2", data=data, state="running")["changed"] is False
    seeded.vm("hv2", data=data, state="stopped", force=True)
    assert seeded.seed("hv2") == ["600", "CIDATA", "1"]
    gone = seeded.cluster.task("hv2", "vm", name=NAME, state="absent")
    assert gone["actions"][-1] == f"delete {SEED}" and seeded.seed("hv2") == []
    for node in ("hv1", "hv2"):
        assert seeded.cluster.ssh(node, SPREAD, check=False) == ""
