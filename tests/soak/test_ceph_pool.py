# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories about pools on a real Ceph: what its monitors let pass, take for a success or change without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, tasks

NODE = "q1"
PREFIX = "story-"
RULES = (f"{PREFIX}hosts", f"{PREFIX}parts")
PROFILE = {"erasure_profile": f"{PREFIX}k2m1", "erasure_k": 2, "erasure_m": 1, "failure_domain": "osd"}
Result = dict[str, Any]
# What a killed run has left on a lab that is used again.
CLEAR = f"""
old=$(ceph osd pool ls | grep ^{PREFIX}) || exit 0
ceph config set mon mon_allow_pool_delete true
for pool in $old; do
  ceph osd pool set $pool nodelete false
  ceph osd pool rm $pool $pool --yes-i-really-really-mean-it
done
for rule in {" ".join(RULES)}; do ceph osd crush rule rm $rule; done
ceph osd erasure-code-profile rm {PREFIX}k2m1
ceph config rm mon mon_allow_pool_delete
"""


class Pools:
    """Module ceph_pool on the monitor's node; all that it makes begins with PREFIX."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def run(self, *steps: dict[str, Any] | str) -> list[Result]:
        """One play: options of the module (`check` for check mode), or command lines, as administrators have them."""
        each = []
        for step in steps:
            if isinstance(step, str):
                each.append({"ansible.builtin.command": step, "changed_when": True})
                continue
            task = {"drover.kvm.ceph_pool": {key: value for key, value in step.items() if key != "check"}}
            each.append({**task, "check_mode": bool(step.get("check")), "ignore_errors": True})
        return tasks(self.cluster, NODE, each)

    def settle(self, *given: dict[str, Any]) -> list[Result]:
        """Each in check mode, the same for real, and again: what was said is done, then nothing is left."""
        results = self.run(*(step for options in given for step in ({**options, "check": True}, options, options)))
        for said, done, again in zip(results[::3], results[1::3], results[2::3]):
            assert not any(result.get("failed") for result in (said, done, again)), (said, done, again)
            assert said["actions"] == done["actions"] != [], (said, done)
            assert (again["actions"], again["pool"]) == ([], done["pool"]), again
        return results[1::3]

    def names(self) -> list[str]:
        """All pools."""
        return self.cluster.ssh(NODE, "ceph osd pool ls").split()


def refused(results: list[Result], *words: str) -> None:
    """All of these failed, each with these words in its message."""
    assert len(results) == len(words)
    for result, part in zip(results, words):
        assert result.get("failed"), result
        assert part in result["msg"]


@pytest.fixture(scope="module")
def pools(quorum: Cluster) -> Iterator[Pools]:
    """A cluster without a pool of these stories, before and after: some of them don't bear the loss of a host."""
    quorum.ssh(NODE, "bash -s", stdin=CLEAR, check=False, timeout=120)
    yield Pools(quorum)
    quorum.ssh(NODE, "bash -s", stdin=CLEAR, check=False, timeout=120)


def test_a_pool_is_made_changed_and_renamed(pools: Pools) -> None:
    name = f"{PREFIX}vms"
    declared = {
        "name": name,
        "size": 2,
        "min_size": 1,
        "accept_risk": True,
        "crush_rule": RULES[0],
        "failure_domain": "host",
        "target_size_ratio": 0.1,
        "pg_autoscale_bias": 1.5,
        "quota_bytes": "2GiB",
        "quota_objects": "10k",
        "applications": ["foo", "bar"],
        "compression_mode": "aggressive",
        "compression_algorithm": "zstd",
        "compression_required_ratio": 0.7,
        "flags": {"add": ["nodelete"]},
    }
    # The mode and the number in one run, and the number that the pool is on its way to is compared.
    split = {"name": name, "pg_autoscale_mode": "off", "pg_num": 16, "pg_num_min": 16, "pg_num_max": 16, "min_size": 2}
    resized = {"name": name, "size": 3, "applications": ["rbd"], "target_size_ratio": 0.2}
    (made,) = pools.settle(declared)
    (risky,) = pools.run({"name": name, "size": 2})
    assert any("one copy left" in words for words in risky["warnings"]) and not risky["changed"], risky
    assert "one copy left" not in json.dumps(made.get("warnings", [])), made
    fixed, changed, renamed = pools.settle(split, resized, {"name": f"{PREFIX}disks", "rename_from": name, "size": 2})
    assert (fixed["pool"]["pg_num"], fixed["pool"]["min_size"]) == (16, 2)
    # With the size the monitors would change min_size; what is not given stays.
    assert (changed["pool"]["min_size"], changed["pool"]["applications"]) == (2, ["rbd"])
    assert renamed["pool"]["id"] == made["pool"]["id"]
    kept = {"size": 2, "min_size": 2, "flags": ["nodelete"], "pg_autoscale_mode": "off", "quota_objects": 10000}
    assert {key: renamed["pool"][key] for key in kept} == kept
    (usual,) = pools.settle({"name": f"{PREFIX}disks", "pg_autoscale_bias": 0})
    assert (renamed["pool"]["pg_autoscale_bias"], usual["pool"]["pg_autoscale_bias"]) == (1.5, 1.0)
    refused(pools.run({"name": f"{PREFIX}disks", "pg_autoscale_bias": 1001}), "from 0 to 1000")
    refused(pools.run({"name": f"{PREFIX}disks", "type": "erasure"}), "can't become erasure")


def test_an_erasure_coded_pool_takes_overwrites(pools: Pools) -> None:
    name = f"{PREFIX}ec"
    rest = {"crush_rule": RULES[1], "allow_ec_overwrites": True, "pg_autoscale_mode": "off", "pg_num": 4}
    made = pools.settle({"name": name, **PROFILE, **rest, "applications": ["rbd"]})[0]
    assert (made["pool"]["size"], made["pool"]["erasure_profile"]) == (3, f"{PREFIX}k2m1")
    changes = ({"type": "replicated"}, {"size": 2}, {"allow_ec_overwrites": False}, {**PROFILE, "erasure_k": 3})
    results = pools.run(*({"name": name, **change} for change in changes))
    refused(results, "can't become", "k + m parts", "can't be taken back", "has erasure_k 2, not 3")


def test_what_the_monitors_let_pass_is_refused(pools: Pools) -> None:
    before = pools.names()
    new = {"name": f"{PREFIX}new"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": ".dot"}, "is not a name for a pool"),
        ({"name": "a/b"}, "is not a name for a pool"),
        ({**new, "size": 99, "applications": ["rbd"]}, "from 1 to 10"),
        ({**new, "size": 1}, "accept_risk"),
        ({**new, "size": 2, "min_size": 1}, "accept_risk"),
        ({**new, "rename_from": f"{PREFIX}gone"}, f"no pool {PREFIX}gone or {PREFIX}new"),
        ({**new, "crush_rule": f"{PREFIX}racks", "failure_domain": "rack"}, "no rack below default"),
        ({**new, "crush_rule": f"{PREFIX}none"}, "no CRUSH rule"),
    ]
    refused(pools.run(*(options for options, _part in cases)), *(part for _options, part in cases))
    assert pools.names() == before


def test_a_pool_goes_only_when_it_is_empty_and_meant(pools: Pools) -> None:
    name = f"{PREFIX}gone"
    asked = {"name": name, "state": "absent"}
    sure = {**asked, "confirm_name": name}
    made = {"name": name, "applications": ["rbd"], "flags": ["nodelete"], "pg_autoscale_mode": "off", "pg_num": 2}
    results = pools.run(asked, {**asked, "check": True}, made, asked, sure, {"name": name, "flags": []}, sure)
    assert [result["changed"] for result in results[:3]] == [False, False, True]
    refused(results[3:5], "only when confirm_name is", "protected by its flag nodelete")
    refused(results[6:], "mon_allow_pool_delete is false")
    results = pools.run(
        *(
            "ceph config set mon mon_allow_pool_delete true",
            f"rbd create {name}/web1 --size 16M",
            {**sure, "check": True},
        ),
        *(f"rbd trash mv {name}/web1", sure, f"rbd trash purge {name}"),
        *({**sure, "check": True}, sure, sure, "ceph config rm mon mon_allow_pool_delete"),
    )
    refused([results[2], results[4]], "it holds images web1.", "rbd trash ls")
    assert [result["actions"] for result in results[6:9]] == [[f"remove pool {name}"]] * 2 + [[]]
    assert name not in pools.names()


def test_a_cluster_that_is_silent_or_does_not_know_us(pools: Pools) -> None:
    silent = {"conf": "/run/story.conf", "keyring": "/etc/ceph/ceph.client.admin.keyring"}
    pools.cluster.ssh(NODE, f"echo mon_host = 10.231.5.99 >{silent['conf']}")
    results = pools.run(
        *({"name": f"{PREFIX}new", **options} for options in ({"cluster": "other"}, {"user": "client.nobody"}, silent))
    )
    assert [result["error"] for result in results] == ["NotFound", "Refused", "Unreachable"]
    refused(results, "/etc/ceph/other.conf", "no key of this user", "no monitor of 10.231.5.99 within 5 s")
    # The one before fails at once: what it takes is the way there.
    assert results[2]["seconds"] - results[1]["seconds"] < 10
