#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage the users of Ceph that may use RBD images and nothing else."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ceph_user
short_description: Manage the users of Ceph that may use RBD images and nothing else
version_added: "0.1.0"
description:
  - Makes a user of a Ceph cluster who has the rights of Ceph's own profile C(rbd) on the pools that are named, and no
    others. With its key a hypervisor opens the images of its VMs; it can't read another pool, and can't make, change or
    remove a pool.
  - It runs where the key of an administrator of Ceph is, which is most often a monitor's host. It takes part through
    the library of RADOS and starts no program, so a key is never on a command line.
  - A user that holds other rights than those of the profile C(rbd) was made for something else. It is refused and stays
    as it is.
  - See U(https://docs.ceph.com/en/reef/rados/operations/user-management/).
options:
  name:
    description: Name of the user, with or without C(client.) before it.
    type: str
    required: true
  pools:
    description:
      - The pools whose images the user may use, exactly these; V(pool/namespace) for one namespace of a pool.
      - Needed unless O(state=absent).
    type: list
    elements: str
  show_key:
    description:
      - Whether the key is returned as RV(key). Set C(no_log) on the task then, and only there.
    type: bool
    default: false
  state:
    description: V(absent) removes the user; clients that are connected lose their rights when their tickets run out.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.ceph
seealso:
  - module: drover.kvm.ceph_pool
  - module: drover.kvm.secret
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Users of Ceph
  hosts: ceph_mon[0]
  gather_facts: false
  tasks:
    - name: The hypervisors' user
      drover.kvm.ceph_user:
        name: libvirt
        pools: [vms]

    - name: A customer's user, who sees one namespace only
      drover.kvm.ceph_user:
        name: client.shop
        pools: [vms/shop]

    - name: The key, for libvirt
      drover.kvm.ceph_user:
        name: libvirt
        pools: [vms]
        show_key: true
      register: libvirt_user
      no_log: true

    - name: Remove a user
      drover.kvm.ceph_user:
        name: old
        state: absent
"""

RETURN = r"""
user:
  description: The user without its key; null when it is absent.
  returned: always
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: client.libvirt
    caps:
      description: Its rights, by kind of daemon.
      type: dict
      sample: {mon: profile rbd, osd: profile rbd pool=vms, mgr: profile rbd pool=vms}
cluster:
  description: What a client must know of the cluster.
  returned: always
  type: dict
  contains:
    fsid:
      description: UUID of the cluster.
      type: str
      sample: 5a1fb9a4-6a4c-4b0e-9f0c-0d7b1c9b8f11
    monitors:
      description: Addresses of its monitors.
      type: list
      elements: str
      sample: ["10.231.5.21:6789"]
key:
  description: The user's key. In check mode a user that is not there yet has none.
  returned: with O(show_key)
  type: str
  sample: AQ...==
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["make client.libvirt with profile rbd on vms"]
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._ceph import OPTIONS, Ceph, connect
from ansible_collections.drover.kvm.plugins.module_utils._ceph_conf import addresses
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

# What the rights of such a user are made of: the profile, alone or on a pool.
RIGHT = re.compile(r"profile rbd(-read-only)?( pool=\S+)?( namespace=\S+)?")


def check_user(value: str) -> str:
    """The whole name of a client."""
    return f"client.{check_name(value.removeprefix('client.'))}"


def check_pools(value: Sequence[str]) -> list[str]:
    """Pools, or namespaces of pools."""
    for text in value:
        pool, _slash, namespace = text.partition("/")
        check_name(pool)
        if _slash:
            check_name(namespace)
    if not value:
        raise ValueError("name at least one pool")
    return sorted(set(value))


FIELDS = (
    Field("name", required=True, check=check_user),
    Field("pools", type="list", elements="str", check=check_pools),
    # It is not the key.
    Field("show_key", type="bool", default=False, no_log=False),
    Field("state", choices=("present", "absent"), default="present"),
    *OPTIONS,
)


def caps_of(pools: Sequence[str]) -> dict[str, str]:
    """The rights on the images of these pools."""
    words = []
    for text in pools:
        pool, _slash, namespace = text.partition("/")
        words.append(f"profile rbd pool={pool}" + (f" namespace={namespace}" if namespace else ""))
    # Without the manager's part a removal of a big image can't be left to it.
    return {"mon": "profile rbd", "osd": ", ".join(words), "mgr": ", ".join(words)}


def is_ours(caps: Mapping[str, str]) -> bool:
    """Whether these are the rights of a user of images, of whatever pools, or none."""
    return all(RIGHT.fullmatch(right.strip()) for text in caps.values() for right in text.split(","))


class User(Resource):
    """One user of images."""

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Ceph]:
        """The cluster, as an administrator."""
        return connect(params)

    def read(self) -> State:
        """The user as the monitors know it; its key is kept apart, so that no diff can show it."""
        self.found_key: str | None = None
        try:
            found = self.client.ask("auth get", entity=self.name)[0]
        except NotFound:
            return None
        self.found_key = found["key"]
        return {"name": self.name, "caps": dict(found["caps"])}

    def wanted(self, before: State) -> State:
        """The user with exactly these rights. Raises Refused for one that was made for something else."""
        if before is not None and not is_ours(before["caps"]):
            rights = ", ".join(f"{kind} {words!r}" for kind, words in sorted(before["caps"].items()))
            raise Refused(f"{self.name} has other rights than those of images ({rights}); choose another name")
        if self.params["state"] == "absent":
            return None
        if self.params["pools"] is None:
            raise Invalid("pools is missing; name the pools whose images the user may use", option="pools")
        return {"name": self.name, "caps": caps_of(self.params["pools"])}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Make, change the rights, or remove."""
        if before == wanted:
            return []
        if wanted is None:
            return [Step(f"remove {self.name}", partial(self.client.tell, "auth rm", entity=self.name))]
        caps = [word for pair in sorted(wanted["caps"].items()) for word in pair]
        on = f"profile rbd on {', '.join(self.params['pools'])}"
        verb, words = ("auth caps", f"give {self.name} {on}") if before else ("auth add", f"make {self.name} with {on}")
        return [Step(words, partial(self.client.tell, verb, entity=self.name, caps=caps))]

    def result(self, state: State) -> dict[str, Any]:
        """The user, what a client must know, and the key only when it was asked for."""
        monitors = self.client.ask("mon dump")
        cluster = {"fsid": monitors["fsid"], "monitors": addresses(monitors)}
        shown = {"key": self.found_key} if self.params["show_key"] else {}
        return {"user": state, "cluster": cluster, **shown}


def main() -> None:
    """Run the module."""
    run_module(User, FIELDS)


if __name__ == "__main__":
    main()
