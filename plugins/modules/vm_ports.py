#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plug the taps of the running VMs as libvirt says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_ports
short_description: Plug the NICs of running VMs into their bridges again
version_added: "0.1.0"
author: "The drover.kvm contributors (@drover)"
description:
  - When a bridge was deleted, or deleted and made again, the VMs on the node are cut off, and libvirt does not show it.
    This module compares how libvirt says that each running VM is connected (bridge, VLAN, trunk, external ids)
    with how its tap is really plugged, and mends the difference, a tap in the wrong VLAN included. The guests are not
    touched; all that they see is that packets come again.
  - What concerns Open vSwitch is written in one transaction of its database. A NIC without
    C(<virtualport type='openvswitch'/>) belongs into a bridge of the kernel; C(ip link) plugs it there, and when
    libvirt gave it a VLAN, which it can on a bridge that filters VLANs, C(bridge vlan) sets that.
  - Only the taps of running VMs are looked at. All other ports stay as they are, and so does what else a port holds
    (external ids of other programs, QoS).
  - It makes no bridge. When one is missing, it says so and changes nothing.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.libvirt
attributes:
  check_mode:
    support: full
    details: It does not listen in check mode where a port is to be plugged, so RV(silent) is empty then.
  idempotent:
    support: partial
    details: With O(bounce), a NIC that stays silent is bounced by each run.
requirements:
  - for NICs on Open vSwitch its Python bindings (package C(python3-openvswitch))
options:
  names:
    description:
      - Only these VMs. One that does not run on this node is left out.
      - Without it, all running VMs of the node.
    type: list
    elements: str
    aliases: [name]
  bridges:
    description:
      - Only the NICs that belong into these bridges.
      - Without it, all.
    type: list
    elements: str
  listen:
    description:
      - Seconds (at most 600) to wait until every NIC has sent a packet. It ends as soon as all have; those that have
        not are in RV(silent). V(0) does not listen.
      - A VM that has nothing to say is silent too, so a silent VM is a hint, not a failure.
    type: int
    default: 0
  bounce:
    description:
      - Whether to take the link of each NIC that stays silent for O(listen) seconds down for a second, as if its cable
        were pulled, so that the guest announces itself again. Needs O(listen); after it the NICs are listened to for
        as long once more.
      - Nothing is bounced in a run that has plugged a port again.
    type: bool
    default: false
  timeout:
    description: Seconds, 1 to 600, to wait until C(ovs-vswitchd) has taken over the change.
    type: int
    default: 30
  socket:
    description: Path of the socket of C(ovsdb-server). It is opened only when a VM has a NIC on Open vSwitch.
    type: path
    default: /run/openvswitch/db.sock
notes:
  - A limit of bandwidth on a NIC that was plugged again is set again by libvirt, as its live definition says.
  - QEMU's own iSCSI client was seen to give up for good when it lost the SAN for more than some 15 seconds and found no
    route to it. A VM whose disks were reached over the lost bridge then hangs on them and stays in RV(silent), although
    its port is right again.
  - What Open vSwitch's external ids mean is said in U(https://docs.openvswitch.org/en/latest/topics/integration/), how
    libvirt describes NICs in U(https://libvirt.org/formatdomain.html#network-interfaces).
seealso:
  - module: drover.kvm.ovs_bridge
  - module: drover.kvm.ovs_info
"""

EXAMPLES = r"""
- name: Plug all VMs of the node again
  drover.kvm.vm_ports:

- name: Look whether any VM is plugged wrongly
  drover.kvm.vm_ports:
  check_mode: true
  diff: true
  register: ports
  failed_when: ports is changed

- name: Mend two VMs, and wait until they are heard
  drover.kvm.vm_ports:
    names: [web1, db1]
    listen: 20
  register: ports

- name: Let the guests that stay silent announce themselves again
  drover.kvm.vm_ports:
    names: "{{ ports.silent }}"
    listen: 20
    bounce: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode what would be done, in words.
  returned: always
  type: list
  elements: str
  sample: ["plug vnet0 of VM web1 into bridge br0 (VLAN 100)"]
resource:
  description:
    - By the name of the tap, how it is plugged after the task (in check mode how it would be).
  returned: always
  type: dict
  sample:
    vnet0:
      vm: web1
      mac: "52:54:00:12:34:56"
      type: ovs
      bridge: br0
      tag: 100
      trunks: []
      vlan_mode: null
      external_ids: {attached-mac: "52:54:00:12:34:56", iface-status: active}
silent:
  description: The running VMs of which a NIC, its link up, sent nothing within O(listen) seconds.
  returned: always
  type: list
  elements: str
  sample: []
error:
  description:
    - Kind of the failure. V(Invalid) for wrong options, V(NotFound) for a missing bridge or missing bindings,
      V(Unreachable) for a daemon that does not answer, V(TimedOut), V(Failed) with the words of Open vSwitch.
  returned: failure
  type: str
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _libvirt, _links, _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import taps as ports
from ansible_collections.drover.kvm.plugins.module_utils._domain import taps
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Invalid, NotFound
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("names", type="list", elements="str", aliases=("name",)),
    Field("bridges", type="list", elements="str"),
    Field("listen", type="int", default=0, check=between(0, 600)),
    Field("bounce", type="bool", default=False),
    Field("timeout", type="int", default=30, check=between(1, 600)),
    Field("socket", type="path", default="/run/openvswitch/db.sock"),
    _libvirt.URI,
)


class Clients:
    """libvirt, and Open vSwitch when it is asked for."""

    def __init__(self, node: _libvirt.Node, socket: str, stack: ExitStack) -> None:
        self.node, self.socket, self.stack = node, socket, stack
        self._ovs: _ovs.Ovs | None = None

    @property
    def ovs(self) -> _ovs.Ovs:
        """The connection to the database server."""
        if self._ovs is None:
            self._ovs = self.stack.enter_context(_ovs.connect(self.socket))
        return self._ovs


class Ports(Resource):
    """The taps of the running VMs of a node; `client` are the Clients."""

    snapshot: _ovs.Snapshot | None = None
    domains: Mapping[str, Domain]
    taps: dict[str, dict[str, Any]]
    silent: tuple[str, ...] = ()
    bounced = False
    number = 0

    @classmethod
    @contextmanager
    def connect(cls, params: Mapping[str, Any]) -> Iterator[Clients]:
        """One connection to libvirt, and at most one to the database server."""
        if params["bounce"] and not params["listen"]:
            raise Invalid("bounce is for NICs that stay silent; say with listen for how many seconds", option="listen")
        with _libvirt.connect(params["uri"], readonly=not params["bounce"]) as node, ExitStack() as stack:
            yield Clients(node, params["socket"], stack)

    @property
    def name(self) -> str:
        """There is one such thing on a node."""
        return "VM ports"

    def read(self) -> State:
        """libvirt's running VMs, then how their taps are plugged."""
        self.domains = self.client.node.domains(self.params["names"], brief=True)
        found = taps.of_all(list(self.domains.values()))
        chosen = self.params["bridges"]
        found = {name: tap for name, tap in found.items() if chosen is None or tap["bridge"] in chosen}
        there = _links.devices()
        self.taps = {name: tap for name, tap in found.items() if name in there}
        gone = [f"{name} of VM {tap['vm']}" for name, tap in found.items() if name not in there]
        self.warnings = [f"the tap {words} is gone; migrate the VM, which gives it a new one" for words in gone]
        switched = any(tap["type"] == "ovs" for tap in self.taps.values())
        self.snapshot = self.client.ovs.snapshot() if switched else None
        asked = any(tap["type"] == "linux" and ports.has_vlan(tap) for tap in self.taps.values())
        kernel = {name: _links.bridge_of(name) for name in self.taps}
        return ports.seen(self.snapshot, kernel, _links.vlans() if asked else {}, self.taps)

    def wanted(self, before: State) -> State:
        """What libvirt says. Raises NotFound when a bridge is missing."""
        wanted = ports.declared(self.taps)
        switched = [row["name"] for row in self.snapshot.tables["Bridge"].values()] if self.snapshot else []
        missing = ports.missing(wanted, switched, sorted(_links.bridges()))
        if missing:
            cut_off = "; ".join(f"{bridge} (of {', '.join(vms)})" for bridge, vms in missing.items())
            raise NotFound(
                f"{self.client.node.name} has no bridge {cut_off}; nothing was changed. Make it again first: run the "
                "playbook drover.kvm.site, or the module drover.kvm.ovs_bridge (a bridge of the kernel: the network "
                "configuration of the host)",
                bridges=missing,
            )
        return wanted

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each tap; the first mends them all. With nothing to mend, the NICs that stay silent."""
        old, new = before or {}, wanted or {}
        texts = ports.words(old, new)
        if texts:
            first = Step(texts[0], partial(self._mend, old, new), self._applied, self.params["timeout"])
            return [first, *(Step(text, _nothing) for text in texts[1:])]
        problems = ports.problems(self.snapshot, new) if self.snapshot else []
        if problems:
            raise Failed(f"Open vSwitch can't do what is configured: {'; '.join(problems)}", problems=problems)
        quiet = _links.silent([name for name, tap in self.taps.items() if tap["speaks"]], self.params["listen"])
        self.silent = tuple(sorted({self.taps[name]["vm"] for name in quiet}))
        chosen = quiet if self.params["bounce"] and not self.bounced else []
        return [Step(f"bounce the link of {self._whose(name)}", partial(self._bounce, name)) for name in chosen]

    def result(self, state: State) -> dict[str, Any]:
        """The ports, and who was not heard."""
        return {"resource": state, "silent": list(self.silent)}

    def _whose(self, name: str) -> str:
        return f"{name} of VM {self.taps[name]['vm']}"

    def _mend(self, before: dict[str, Any], wanted: dict[str, Any]) -> None:
        moves = ports.kernel_moves(before, wanted)
        for tap in (tap for tap, bridge in moves if bridge is None):
            _links.unplug(tap)
        change = ports.change(self.snapshot, before, wanted) if self.snapshot else None
        if change:
            self.number = self.client.ovs.commit(change)
        for tap, bridge in moves:
            if bridge:
                _links.plug(tap, bridge)
        for tap in ports.kernel_vlans(before, wanted):
            port = wanted[tap]
            _links.set_vlans(tap, port["tag"], [vlan for vlan in port["trunks"] if vlan != port["tag"]])
        again = [name for name in wanted if before[name]["bridge"] != wanted[name]["bridge"]]
        self._limit([name for name in again if self.taps[name]["limits"]])

    def _limit(self, names: list[str]) -> None:
        """A port that is new has no limits; libvirt sets them again when it is told what it knows."""
        if not names:
            return
        with _libvirt.connect(self.params["uri"]) as node:
            for name in names:
                node.set_bandwidth(self.taps[name]["vm"], self.taps[name]["mac"], self.taps[name]["limits"])

    def _applied(self) -> object:
        return not self.number or self.client.ovs.applied(self.number)

    def _bounce(self, tap: str) -> None:
        self.bounced = True
        vm = self.taps[tap]["vm"]
        down, up = taps.link_xml(self.domains[vm], tap)
        try:
            self.client.node.update_device(vm, down, live=True, config=False)
            _links.pause()
        finally:
            self.client.node.update_device(vm, up, live=True, config=False)


def _nothing() -> None:
    """What the first step did already."""


def main() -> None:
    """Run the module."""
    run_module(Ports, FIELDS)


if __name__ == "__main__":
    main()
