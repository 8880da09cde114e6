#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage pools of Ceph."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ceph_pool
short_description: Manage pools of Ceph
version_added: "0.1.0"
description:
  - Makes, changes, renames and removes pools of a Ceph cluster, replicated and erasure coded, with the CRUSH rule and
    the erasure code profile that they need. It runs on any machine that has a keyring, over one connection.
  - Only options that are given are touched. What a new pool gets without them is the cluster's default.
  - A pool is removed only when it is empty and its name was typed again, in O(confirm_name).
  - See U(https://docs.ceph.com/en/reef/rados/operations/pools/).
options:
  name:
    description:
      - Name of the pool, 1 to 63 letters, digits, dots, hyphens or underscores. Ceph itself accepts blanks, slashes and
        C(@), of which its own tools make something else.
    type: str
    required: true
  id:
    description: The pool must have this id (RV(pool.id)). For renaming and removing exactly the pool that is meant.
    type: int
  rename_from:
    description:
      - Name that the pool still has. It is renamed; afterwards the pool of the new name has the old one's id.
      - Fails when both are there or neither is. Users and VMs that have the old name must learn the new one.
    type: str
  state:
    description: V(absent) removes the pool.
    type: str
    choices: [present, absent]
    default: present
  confirm_name:
    description: Must be the same as O(name) for O(state=absent).
    type: str
  accept_risk:
    description:
      - Allows O(size=1), with which the first broken disk loses data. The monitors must allow it too
        (C(mon_allow_pool_size_one)) for a pool that is there.
      - Allows O(min_size=1), with which writes are accepted that only one disk has; a pool that has it already is
        warned about when O(size) is given without this.
    type: bool
    default: false
  type:
    description:
      - What a new pool is. V(erasure) when O(erasure_profile) is given, else V(replicated). A pool keeps its type.
    type: str
    choices: [replicated, erasure]
  size:
    description: Number of copies of a replicated pool, 1 to 10.
    type: int
  min_size:
    description:
      - Number of copies (of parts, in an erasure coded pool) that must be there for reading and writing, 1 to O(size).
      - Ceph sets it by itself when the size changes. This module puts back what it was, or what is given here.
    type: int
  crush_rule:
    description:
      - Name of the CRUSH rule, which says where copies are. Another one moves the pool's data.
      - A replicated rule that is not there is made when O(failure_domain) is given; an erasure coded one is made from
        the profile.
    type: str
  failure_domain:
    description:
      - Of which kind of things no two may hold the same data, such as C(osd), C(host) or C(rack). For a new rule
        (O(crush_rule)) or profile (O(erasure_profile)). One that is there must have the same; it is never changed.
    type: str
  device_class:
    description: Only OSDs of this class, such as C(ssd). For the same as O(failure_domain).
    type: str
  crush_root:
    description:
      - Below which root of the CRUSH map; C(default) for a new rule or profile. For the same as O(failure_domain).
    type: str
  erasure_profile:
    description:
      - Name of the erasure code profile, C(default) for a new pool without it. A pool keeps its profile.
    type: str
  erasure_k:
    description: Number of data parts, 2 to 32, of a new profile; one that is there must have the same.
    type: int
  erasure_m:
    description: Number of coding parts, 1 to 32; so many things of the O(failure_domain) may be lost. As O(erasure_k).
    type: int
  allow_ec_overwrites:
    description:
      - Whether an erasure coded pool takes partial writes, as RBD's data needs them. Can't be taken back.
    type: bool
  pg_autoscale_mode:
    description: Whether Ceph chooses the number of placement groups itself, or warns when it would.
    type: str
    choices: ["on", "off", warn]
  pg_autoscale_bias:
    description:
      - By what the autoscaler multiplies the number of placement groups that it would choose, up to 1000; 1 for a pool
        that was never given one, and 0 says the same. More than 1 is for pools of many small objects or keys, such as
        the metadata of CephFS, for which Ceph itself sets 4.
    type: float
  pg_num:
    description:
      - Number of placement groups, 1 to 65536. What is compared is the number that the pool is on its way to.
      - With O(pg_autoscale_mode=on) it counts for a new pool only, with a warning; Ceph would set it back.
    type: int
  pg_num_min:
    description: Least number that the autoscaler may choose; 0 for none. A smaller one is raised at once.
    type: int
  pg_num_max:
    description: Largest number that the autoscaler may choose; 0 for none. A larger one is lowered at once.
    type: int
  target_size_ratio:
    description: Share of the cluster that the pool will fill, relative to the ratios of other pools; 0 for none.
    type: float
  target_size:
    description: Size that the pool will have, in bytes or as C(2TiB); 0 for none. The autoscaler takes the ratio first.
    type: str
  bulk:
    description: Whether the pool will be large, so that the autoscaler starts with many placement groups.
    type: bool
  applications:
    description:
      - Applications that the pool is for, such as C(rbd). A list means exactly these, in any order; a dict with C(add),
        C(remove) or C(set) changes them.
    type: raw
  quota_bytes:
    description: Most bytes of data in the pool, before copies, in bytes or as C(500GiB); 0 for no limit.
    type: str
  quota_objects:
    description: Most objects in the pool, as a number or as C(10k), C(2M) (powers of 1000); 0 for no limit.
    type: str
  compression_mode:
    description: When data is compressed. Without it ever having been set, as the OSDs are configured.
    type: str
    choices: [none, passive, aggressive, force]
  compression_algorithm:
    description: How.
    type: str
    choices: [none, snappy, zlib, zstd, lz4]
  compression_required_ratio:
    description: Compressed data is kept when it has at most this share of its size, 0 to 1.
    type: float
  compression_min_blob_size:
    description: Smaller blobs are not compressed; bytes or C(8KiB).
    type: str
  compression_max_blob_size:
    description: Larger blobs are broken into such; bytes or C(64KiB).
    type: str
  flags:
    description:
      - Some of C(nodelete), C(nopgchange), C(nosizechange), C(noscrub) and C(nodeep-scrub). A list means exactly these;
        a dict with C(add), C(remove) or C(set) changes them. Other flags are left alone.
      - What a flag forbids, the task can do when it takes the flag away.
    type: raw
notes:
  - This module never empties a pool. To remove one with content, remove its images or objects first.
  - CRUSH rules and erasure code profiles stay when a pool is removed, because other pools may use them.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.ceph
seealso:
  - module: drover.kvm.pool
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Set up the pools of a Ceph cluster
  hosts: ceph_mon
  gather_facts: false
  run_once: true
  tasks:
    - name: A pool for the disks of VMs, two copies on different hosts
      drover.kvm.ceph_pool:
        name: vms
        size: 2
        min_size: 1
        accept_risk: true
        crush_rule: hosts
        failure_domain: host
        target_size_ratio: 0.8
        applications: [rbd]
        quota_bytes: 800GiB
        flags: {add: [nodelete]}

    - name: An erasure coded pool for backups, on disks only
      drover.kvm.ceph_pool:
        name: backups
        erasure_profile: k4m2
        erasure_k: 4
        erasure_m: 2
        failure_domain: host
        device_class: hdd
        allow_ec_overwrites: true
        compression_mode: aggressive
        compression_algorithm: zstd
        applications: [rbd]

    - name: A fixed number of placement groups
      drover.kvm.ceph_pool:
        name: images
        pg_autoscale_mode: "off"
        pg_num: 64

    - name: Another name for a pool, and only for that one
      drover.kvm.ceph_pool:
        name: vms-old
        rename_from: data
        id: 3

    - name: Remove an empty pool
      drover.kvm.ceph_pool:
        name: vms-old
        state: absent
        confirm_name: vms-old
"""

RETURN = r"""
pool:
  description:
    - The pool as the monitors have it, by the names of the options; null when it is absent.
    - In check mode a new pool has only what was given.
  returned: always
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: vms
    id:
      description: Its id, which it keeps when it is renamed.
      type: int
      sample: 3
    size:
      description: Number of copies, or of parts in an erasure coded pool.
      type: int
      sample: 2
    pg_num:
      description: Number of placement groups that it has, or is on its way to.
      type: int
      sample: 32
    pg_autoscale_bias:
      description: What the autoscaler multiplies by; 1 when it was never set.
      type: float
      sample: 1.0
    crush_rule:
      description: Name of its rule.
      type: str
      sample: hosts
    applications:
      description: What it is for.
      type: list
      elements: str
      sample: [rbd]
    quota_bytes:
      description: Its quota in bytes; 0 for none.
      type: int
      sample: 858993459200
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["make CRUSH rule hosts", "make replicated pool vms", "set min_size of vms to 1"]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._ceph import OPTIONS, Ceph, connect
from ansible_collections.drover.kvm.plugins.module_utils._ceph_pool import commands, facts, judge, placement
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("name", required=True, check=facts.check_pool_name),
    Field("id", type="int"),
    Field("rename_from"),
    Field("state", choices=("present", "absent"), default="present"),
    Field("confirm_name"),
    Field("accept_risk", type="bool", default=False),
    Field("type", choices=("replicated", "erasure")),
    *facts.SETTINGS,
    Field("failure_domain", check=check_name),
    Field("device_class", check=check_name),
    Field("crush_root", check=check_name),
    Field("erasure_profile", check=check_name),
    Field("erasure_k", type="int", check=between(2, 32)),
    Field("erasure_m", type="int", check=between(1, 32)),
    Field("pg_num", type="int", check=between(1, 65536)),
    Field("pg_num_min", type="int", check=between(0, 65536)),
    Field("pg_num_max", type="int", check=between(0, 65536)),
    Field("applications", type="names", check=facts.check_names),
    Field("quota_bytes", type="size"),
    Field("quota_objects", check=facts.parse_count),
    Field("flags", type="names", check=facts.check_flags),
    *OPTIONS,
)
RENAME_SECONDS = 10


class CephPool(Resource):
    """One pool."""

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Ceph]:
        """The monitors."""
        return connect(params)

    def read(self) -> State:
        """The pool, and beside it what it may refer to."""
        self.rules = {rule["rule_name"]: rule for rule in self.client.ask("osd crush rule dump")}
        self.profile = self._profile(self.params["erasure_profile"])
        raw = judge.find_pool(self.client.ask("osd pool ls", detail="detail"), self.params)
        return facts.state_of(raw, list(self.rules.values())) if raw else None

    def _profile(self, name: str | None) -> Mapping[str, str] | None:
        if name is None:
            return None
        try:
            found: Mapping[str, str] = self.client.ask("osd erasure-code-profile get", name=name)
            return found
        except NotFound:
            return None

    def wanted(self, before: State) -> State:
        """The pool with what was given."""
        if self.params["state"] == "absent":
            if before:
                judge.refuse_removal(before, self.params["confirm_name"], self.client.setting("mon_allow_pool_delete"))
                judge.refuse_content(before["name"], self.client.objects(before["name"], judge.NOTES))
            return None
        state = facts.wish(before, self.params)
        self.warnings = [*judge.judge(before, state, self.params), *self._judge_place(before, state)]
        return state

    def _judge_place(self, before: State, wanted: Mapping[str, Any]) -> list[str]:
        place = placement.placement(self.params, wanted["type"], self.rules, self.profile)
        if place is None:
            return []
        count = placement.places(self.client.ask("osd tree")["nodes"], place)
        return placement.judge_places(wanted["name"], count, place.get("copies", wanted.get("size")), place)

    def steps(self, before: State, wanted: State) -> list[Step]:
        """The commands that lead there."""
        steps = []
        for one in commands.commands(before, wanted, self.params, self.rules, self.profile):
            step = Step(one.text, partial(self.client.tell, one.prefix, **one.arguments))
            if before and wanted and one.prefix == "osd pool rename":
                # The monitors call it a success to rename a pool that was not there.
                step.done, step.timeout = partial(self._is_called, before["id"], wanted["name"]), RENAME_SECONDS
            steps.append(step)
        return steps

    def _is_called(self, number: int, name: str) -> object:
        found = {raw["pool_id"]: raw["pool_name"] for raw in self.client.ask("osd pool ls", detail="detail")}
        return found.get(number) == name or found.get(number, "no pool of its id")

    def result(self, state: State) -> dict[str, Any]:
        """The pool."""
        return {"pool": state}


def main() -> None:
    """Run the module."""
    run_module(CephPool, FIELDS)


if __name__ == "__main__":
    main()
