#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage libvirt's storage pools."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: Manage libvirt's storage pools
version_added: "0.1.0"
description:
  - Defines a folder of a node, an NFS export, a volume group of LVM, a target of iSCSI or a pool of Ceph as a storage
    pool of libvirt, where other tools and M(drover.kvm.node_info) see what is in it and how much room is left.
  - It never deletes data. A pool that is removed is forgotten by libvirt; what is in it stays. It makes no file system
    and no volume group.
  - A pool that disks of VMs refer to by its name is not removed and not deactivated. Disks that are named by their path
    don't need the pool.
  - libvirt forgets that a pool of O(type=rbd) is active when its daemon starts anew, which on Debian it also does after
    two minutes without a VM and a client. The next run activates it again.
  - See U(https://libvirt.org/storage.html).
options:
  name:
    description: Name of the pool.
    type: str
    required: true
  type:
    description:
      - What the pool is made of. Pools of other types that are there can be activated, deactivated and removed.
      - V(dir) is a folder, V(netfs) a folder of an NFS server that libvirt mounts, V(logical) a volume group of LVM,
        V(iscsi-direct) the logical units of an iSCSI target, to which libvirt logs in itself, V(rbd) a pool of Ceph.
      - A volume group that nodes share, see M(drover.kvm.volume_group), is refused, as libvirt would make all of its
        volumes active on this node.
    type: str
    choices: [dir, netfs, logical, iscsi-direct, rbd]
    default: dir
  path:
    description:
      - The folder, or where the export is mounted, as an absolute path. It is made when it is missing, with mode 0711.
      - Needed for a new pool of O(type=dir) and O(type=netfs); the path of a pool that is there can't be changed.
    type: str
  source:
    description:
      - The exported folder, the volume group, the IQN of the target, or the pool of Ceph. Needed for a new pool that is
        no folder; it can't be changed.
    type: str
  hosts:
    description:
      - The NFS server or the portal of the target, one, such as C(10.231.5.10:3260); or the monitors of Ceph, whose
        default are those in C(/etc/ceph) of the node.
    type: list
    elements: str
  initiator:
    description: IQN with which libvirt logs in to the target. Needed for a new pool of O(type=iscsi-direct).
    type: str
  user:
    description:
      - User of Ceph, without C(client.), or of CHAP. The default for a new pool of O(type=rbd) is V(libvirt).
    type: str
  secret:
    description:
      - Usage name of the libvirt secret with the key or password of O(user), see M(drover.kvm.secret). The default for
        a new pool of O(type=rbd) is C(client.) and the user.
    type: str
  autostart:
    description: Whether it is activated with the node. Without it, a new pool is, and one that is there stays as it is.
    type: bool
  state:
    description:
      - V(absent) means that libvirt forgets the pool.
      - When a pool of O(type=logical) is deactivated or forgotten, libvirt deactivates the volumes of its group too.
        What is in them stays.
    type: str
    choices: [active, inactive, absent]
    default: active
requirements:
  - for O(type=iscsi-direct), O(type=rbd) and, from Debian 13 on, O(type=logical) libvirt's drivers, on Debian
    C(libvirt-daemon-driver-storage-iscsi-direct) and so on; libvirtd loads them when it starts, and VMs run on
    meanwhile
  - for O(type=netfs) the tools of NFS, on Debian C(nfs-common)
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.libvirt
seealso:
  - module: drover.kvm.node_info
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Set up storage pools
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: A pool for installation media
      drover.kvm.pool:
        name: media
        path: /srv/media

    - name: A pool that only an administrator activates
      drover.kvm.pool:
        name: archive
        path: /srv/archive
        autostart: false
        state: inactive

    - name: The images of a Ceph cluster, with the user of role ceph_client
      drover.kvm.pool:
        name: ceph-vms
        type: rbd
        source: vms

    - name: Installation media of the whole site
      drover.kvm.pool:
        name: media
        type: netfs
        hosts: [nas1.example.org]
        source: /export/media
        path: /srv/media

    - name: What a target of the SAN exports, as libvirt sees it from this node
      drover.kvm.pool:
        name: archive-san
        type: iscsi-direct
        hosts: ["10.231.5.10:3260"]
        source: iqn.2026-11.org.example:archive
        initiator: "iqn.2026-11.org.example:{{ inventory_hostname }}"
        user: drover
        secret: san1

    - name: Forget the pool that the distribution made; its files stay
      drover.kvm.pool:
        name: default
        state: absent
"""

RETURN = r"""
pool:
  description: The pool; null when it is absent.
  returned: always
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: media
    uuid:
      description: Its UUID; for a pool of this module it follows from the name.
      type: str
      sample: 0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10
    type:
      description: Its type.
      type: str
      sample: dir
    path:
      description: Where it is; null for one that is in no folder.
      type: str
      sample: /srv/media
    source:
      description: The exported folder, volume group, target or pool of Ceph; null for a folder.
      type: str
      sample: vms
    hosts:
      description: The NFS server, the portal or the monitors.
      type: list
      elements: str
      sample: ["10.231.5.13:6789"]
    initiator:
      description: IQN with which libvirt logs in, or null.
      type: str
      sample: iqn.2026-11.org.example:hv1
    user:
      description: User of Ceph or of CHAP, or null.
      type: str
      sample: libvirt
    secret:
      description: Usage name of the secret, or null.
      type: str
      sample: client.libvirt
    autostart:
      description: Whether it is activated with the node.
      type: bool
      sample: true
    persistent:
      description: Whether it has a definition; false for one that lives until it is deactivated.
      type: bool
      sample: true
    state:
      description: active, inactive, building, degraded or inaccessible.
      type: str
      sample: active
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["define pool media at /srv/media", "activate it"]
"""

import posixpath
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._ceph_conf import check_monitor
from ansible_collections.drover.kvm.plugins.module_utils._disks import pools
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_iqn, check_name
from ansible_collections.drover.kvm.plugins.module_utils._identity import NAMESPACE
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._xml import devices, find, parse


def check_path(value: str) -> str:
    """An absolute path of a folder that is not the root."""
    path = posixpath.normpath(value)
    if not value.startswith("/") or path.strip("/") == "" or ".." in value.split("/") or not value.isprintable():
        raise ValueError(f"{value!r} is not a folder for a pool; write an absolute path such as /srv/media")
    return path


def check_source(value: str) -> str:
    """A folder of a server, an IQN, or a name."""
    if value.startswith("iqn."):
        return check_iqn(value)
    return check_path(value) if value.startswith("/") else check_name(value)


def check_hosts(value: list[str]) -> list[str]:
    """Addresses, with or without a port."""
    for host in value:
        check_monitor(host)
    return value


FIELDS = (
    Field("name", required=True, check=check_name),
    Field("type", choices=tuple(pools.NEEDS), default="dir"),
    Field("path", check=check_path),
    Field("source", check=check_source),
    Field("hosts", type="list", elements="str", check=check_hosts),
    Field("initiator", check=check_iqn),
    Field("user", check=check_name),
    # The name of a libvirt secret; what it holds never comes here.
    Field("secret", no_log=False, check=check_name),
    Field("autostart", type="bool"),
    Field("state", choices=("active", "inactive", "absent"), default="active"),
    URI,
)


class PoolResource(Resource):
    """One storage pool."""

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Node]:
        """libvirt on this node."""
        return connect(params["uri"])

    def read(self) -> State:
        """The pool as libvirt holds it."""
        pool = self.client.pool(self.name)
        if pool is None:
            return None
        names = ("name", "uuid", "type", "path", "autostart", "persistent", "state")
        return {**{name: getattr(pool, name) for name in names}, **pools.described(pool.xml)}

    def wanted(self, before: State) -> State:
        """The pool with what was given."""
        state, autostart = self.params["state"], self.params["autostart"]
        if before is not None and before["state"] != state and state != "active":
            self._refuse_in_use()
        if state == "absent":
            return None
        if before is None:
            made = {"name": self.name, "uuid": str(uuid.uuid5(NAMESPACE, f"pool/{self.name}"))}
            made.update(type=self.params["type"], **pools.filled(self.params["type"], self.params))
            self._refuse_without_driver(made["type"])
            pools.check_group(made)
            self._refuse_double(made["path"])
            return {**made, "autostart": autostart is not False, "persistent": True, "state": state}
        for name in ("path", "source"):
            if self.params[name] is not None and self.params[name] != before[name]:
                raise Refused(
                    f"pool {self.name} is at {before[name]} and can't become {self.params[name]}: what refers to its "
                    "volumes would lose them. Make a pool of another name, or remove this one first (its files stay)"
                )
        if state == "active" and before["state"] == "inactive":
            pools.check_group(before)
        # A pool whose storage is degraded works; to stop and start it would not mend it.
        state = before["state"] if state == "active" and before["state"] == "degraded" else state
        after = {**before, "state": state, "persistent": True}
        return after if autostart is None else {**after, "autostart": autostart}

    def _refuse_without_driver(self, kind: str) -> None:
        """Raises Refused where libvirt says that it has no driver for such pools."""
        kinds = self.client.pool_kinds()
        if kinds and parse(kinds).find(f"pool[@type='{kind}'][@supported='no']") is not None:
            raise Refused(
                f"libvirt of this node has no driver for pools of type {kind}: install it (on Debian "
                f"libvirt-daemon-driver-storage-{kind}) and restart libvirtd; VMs run on meanwhile",
                type=kind,
            )

    def _refuse_double(self, path: str | None) -> None:
        """Raises Refused when there is another pool at this place; libvirt takes one only."""
        for other in self.client.pools().values():
            if path and other.path == path:
                raise Refused(f"pool {other.name} is at {path} already; use that one", pool=other.name)

    def _refuse_in_use(self) -> None:
        """Raises Refused when a VM has a disk of this pool; a disk that is named by its path does not count."""
        users = []
        for vm in self.client.domains().values():
            trees = [parse(xml) for xml in (vm.xml, vm.live_xml) if xml]
            sources = [find(disk, "source") for tree in trees for disk in devices(tree, "disk")]
            if any(source is not None and source.get("pool") == self.name for source in sources):
                users.append(vm.name)
        if users:
            raise Refused(f"pool {self.name} is used by disks of {', '.join(sorted(users))}", vms=sorted(users))

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Define, make the folder, autostart, activate; or the way back."""
        node, name = self.client, self.name
        if wanted is None:
            return self._removal(before)
        steps = []
        if before is None:
            words = f"define pool {name} at {wanted['path'] or wanted['source']}"
            steps.append(Step(words, partial(node.define_pool, pools.pool_xml(wanted))))
            if wanted["type"] in pools.BUILT:
                steps.append(Step("make its folder if it is missing", partial(node.build_pool, name)))
        elif not before["persistent"]:
            steps.append(Step(f"keep the definition of pool {name}", partial(node.keep_pool, name)))
        if wanted["autostart"] != (before or {"autostart": False})["autostart"]:
            words = "activate it with the node" if wanted["autostart"] else "don't activate it with the node"
            steps.append(Step(words, partial(node.set_pool_autostart, name, wanted["autostart"])))
        if wanted["state"] != (before or {"state": "inactive"})["state"]:
            if wanted["state"] == "inactive":
                steps.append(Step("deactivate it", partial(node.stop_pool, name)))
            else:
                steps.append(Step("activate it", partial(node.start_pool, name)))
        return steps

    def _removal(self, before: State) -> list[Step]:
        steps = []
        if before and before["state"] != "inactive":
            steps.append(Step(f"deactivate pool {self.name}", partial(self.client.stop_pool, self.name)))
        if before and before["persistent"]:
            words = f"remove the definition of pool {self.name}; its files stay"
            steps.append(Step(words, partial(self.client.undefine_pool, self.name)))
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """The pool."""
        return {"pool": state}


def main() -> None:
    """Run the module."""
    run_module(PoolResource, FIELDS)


if __name__ == "__main__":
    main()
