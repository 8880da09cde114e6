#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges of Open vSwitch with their ports and bonds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ovs_bridge
short_description: Manage a bridge of Open vSwitch with its ports, bonds and VLANs
version_added: "0.1.0"
author: "The drover.kvm contributors (@drover)"
description:
  - Creates, changes and removes one bridge of Open vSwitch, its ports and its bonds, on the machine where it runs.
  - Everything that is to change is written to the database of Open vSwitch (OVSDB) in B(one transaction), which is
    applied as a whole or not at all; then the module waits until C(ovs-vswitchd) has taken it over, reads it again, and
    fails when the switch reports an error for one of these interfaces.
  - An option that is not given keeps its present value.
  - The ports of virtual machines (named C(vnet)..., or with the external ids that libvirt writes) are never changed and
    never removed, and a bridge that carries one is not removed.
  - Ports that this module makes or takes over carry the external id C(drover-managed=true), so that they can be removed
    when they are no longer declared. Ports of other owners stay unless O(purge_ports=true).
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
requirements:
  - Open vSwitch 2.15 or later, running
  - its Python bindings (package C(python3-openvswitch)) for the Python that Ansible uses on the machine
options:
  name:
    description:
      - Name of the bridge, and of its own internal port.
      - 1 to 15 letters, digits, dots, hyphens or underscores, as for every interface.
    type: str
    required: true
  state:
    description:
      - V(present) makes the bridge as described, V(absent) removes it with the ports that this module made.
      - V(absent) is refused while virtual machines are connected to the bridge, and while it has ports of other owners
        (unless O(purge_ports=true)).
    type: str
    choices: [present, absent]
    default: present
  datapath_type:
    description:
      - V(system) forwards in the kernel, V(netdev) in user space. Open vSwitch's own default is V(system).
      - Changing it interrupts all ports; it is refused while virtual machines are connected.
    type: str
    choices: [system, netdev]
  fail_mode:
    description:
      - What the bridge does without its OpenFlow controller. V(standalone) learns addresses like an ordinary switch,
        V(secure) forwards nothing by itself. Open vSwitch's own default is V(standalone).
    type: str
    choices: [standalone, secure]
  rstp:
    description:
      - Whether the bridge takes part in the rapid spanning tree protocol. Open vSwitch's own default is V(false).
    type: bool
  external_ids:
    description:
      - External ids of the bridge. Keys that are not given stay; a key without a value (V(null)) is removed.
    type: dict
  other_config:
    description:
      - Further settings of the bridge, such as C(rstp-priority) or C(mac-aging-time) (seconds).
      - Keys that are not given stay; a key without a value (V(null)) is removed.
    type: dict
  ports:
    description:
      - The ports with one interface. The list means exactly these of the ports that this module made or took over;
        without the option all ports stay.
      - The bridge's own internal port can be listed by the name of the bridge; it is never removed.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the port and of its interface.
        type: str
        required: true
      type:
        description:
          - V(system) is an interface that the kernel has (a NIC), V(internal) one that Open vSwitch makes for the host,
            V(patch) one end of a cable to another bridge. A new port is V(system).
        type: str
        choices: [system, internal, patch]
      tag:
        description:
          - VLAN (1 to 4094) of an access port, or the native VLAN of a trunk.
          - O(ports[].tag), O(ports[].trunks) and O(ports[].vlan_mode) belong together, here and in bonds. When one is
            given, the ones not given are cleared.
        type: int
      trunks:
        description: VLANs (1 to 4094) that a trunk carries. A trunk without a list carries all VLANs.
        type: list
        elements: int
      vlan_mode:
        description:
          - How the port treats VLAN tags. Without it a port with a tag is an access port, and any other a trunk.
        type: str
        choices: [access, trunk, native-tagged, native-untagged]
      peer:
        description: Name of the port at the other end of a V(patch) port.
        type: str
      mac:
        description:
          - MAC address of an V(internal) port. Without it Open vSwitch invents one each time it makes the interface.
        type: str
      mtu:
        description: MTU in bytes (68 to 65535) that Open vSwitch gives to the interface.
        type: int
      external_ids:
        description: External ids of the interface, in the manner of O(external_ids).
        type: dict
      other_config:
        description: Further settings of the port such as C(rstp-path-cost), in the manner of O(other_config).
        type: dict
  bonds:
    description:
      - The ports with several interfaces. The list means exactly these of the bonds that this module made or took over;
        without the option all bonds stay.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the bond.
        type: str
        required: true
      members:
        description: The interfaces of the bond, exactly these; at least two. Required for a new bond.
        type: list
        elements: str
      mode:
        description:
          - How the members share the traffic. V(balance-tcp) needs LACP. A new bond is V(active-backup).
        type: str
        choices: [balance-tcp, balance-slb, active-backup]
      lacp:
        description: Whether the bond speaks LACP with the switch at the other end. A new bond has V(off).
        type: str
        choices: [active, passive, "off"]
      lacp_time:
        description:
          - How often the partner is asked to speak, V(fast) each second or V(slow) each 30 seconds. A new bond is
            V(slow).
        type: str
        choices: [fast, slow]
      tag:
        description: As O(ports[].tag).
        type: int
      trunks:
        description: As O(ports[].trunks).
        type: list
        elements: int
      vlan_mode:
        description: As O(ports[].vlan_mode).
        type: str
        choices: [access, trunk, native-tagged, native-untagged]
      mtu:
        description: MTU in bytes (68 to 65535) that Open vSwitch gives to each member.
        type: int
      other_config:
        description: Further settings of the bond such as C(bond-miimon-interval) (milliseconds).
        type: dict
  purge_ports:
    description:
      - With O(ports), also remove the ports of other owners that are not listed; with O(bonds), their bonds. Ports of
        virtual machines stay even then.
      - With O(state=absent), allow to lose the ports of other owners.
    type: bool
    default: false
  wait_lacp:
    description:
      - Seconds to wait until each bond with LACP has a member that is in step with its partner; fails when one has
        none. The members that are not in step are warnings.
      - With V(0) the module does not wait, and RV(runtime.bonds) tells how it stands.
    type: int
    default: 0
  timeout:
    description: Seconds to wait until C(ovs-vswitchd) has taken over the change.
    type: int
    default: 30
  socket:
    description: Path of the socket of C(ovsdb-server).
    type: path
    default: /run/openvswitch/db.sock
notes:
  - A port that belongs to another bridge is never moved by itself; the module refuses, and says where the port is.
  - A patch port whose other end does not exist yet is a warning.
  - A database server that gives no answer is reported within 10 seconds.
seealso:
  - name: Open vSwitch database schema
    description: What each setting means, the keys of C(other_config) included.
    link: https://docs.openvswitch.org/en/latest/ref/ovs-vswitchd.conf.db.5/
"""

EXAMPLES = r"""
- name: Uplink with LACP to the core, one host interface in the storage VLAN
  drover.kvm.ovs_bridge:
    name: br0
    bonds:
      - name: bond0
        members: [eno1, eno2]
        mode: balance-tcp
        lacp: active
        lacp_time: fast
    ports:
      - name: storage0
        type: internal
        tag: 5
        mtu: 9000

- name: A trunk that carries two VLANs, and VLAN 10 untagged
  drover.kvm.ovs_bridge:
    name: br1
    rstp: true
    other_config:
      rstp-priority: 4096
    ports:
      - name: eno3
        tag: 10
        trunks: [20, 30]
        vlan_mode: native-untagged
        other_config:
          rstp-path-cost: 2000

- name: Two bridges joined by a patch cable, this end
  drover.kvm.ovs_bridge:
    name: br0
    ports:
      - name: to-br1
        type: patch
        peer: to-br0

- name: Fail unless the partner answers within 15 seconds
  drover.kvm.ovs_bridge:
    name: br0
    wait_lacp: 15

- name: Remove a bridge that no virtual machine uses
  drover.kvm.ovs_bridge:
    name: br2
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode what would be done, in words.
  returned: always
  type: list
  elements: str
  sample: ["create bridge br0", "add port storage0 (type internal, tag 5) to bridge br0"]
resource:
  description:
    - The bridge as it is configured after the task, V(null) when it is absent; in check mode as it would be.
    - C(ports) and C(bonds) are dicts by name with the options of the module, and C(managed), which tells whether the
      port is removed when it is no longer declared. The ports of virtual machines are not among them.
  returned: always
  type: dict
runtime:
  description: What Open vSwitch said of the bridge when it was read last.
  returned: always
  type: dict
  contains:
    applied:
      description: Whether C(ovs-vswitchd) has taken over the whole configuration.
      type: bool
    interfaces:
      description: By name, C(ofport), C(error), C(link_state) and C(mtu) (bytes) of each interface.
      type: dict
    bonds:
      description:
        - By name, C(lacp_status) (V(off), V(waiting), or V(negotiated) when at least one member is in step with its
          partner), and C(members) with C(link_state) and C(lacp) of each, such as C(current attached) or
          C(defaulted detached) in the words of Open vSwitch.
      type: dict
    vm_ports:
      description: The ports of virtual machines on the bridge.
      type: list
      elements: str
error:
  description:
    - Kind of the failure. V(Invalid) for wrong options, V(Refused) for what would cut off something, V(NotFound) for
      missing devices or bindings, V(Unreachable) for a database that does not answer, V(TimedOut), V(Failed) with the
      words of Open vSwitch.
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import rows, rules
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_mac, check_vlan
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

VLAN_FIELDS = (
    Field("tag", type="int", check=check_vlan),
    Field("trunks", type="list", elements="int", check=rules.check_trunks),
    Field("vlan_mode", choices=("access", "trunk", "native-tagged", "native-untagged")),
    Field("mtu", type="int", check=rules.check_mtu),
    Field("other_config", type="dict", check=rules.check_map),
)
PORT_FIELDS = (
    Field("name", required=True, check=rules.check_interface),
    Field("type", choices=("system", "internal", "patch")),
    Field("peer", check=rules.check_interface),
    Field("mac", check=check_mac),
    Field("external_ids", type="dict", check=rules.check_map),
    *VLAN_FIELDS,
)
BOND_FIELDS = (
    Field("name", required=True, check=rules.check_interface),
    Field("members", type="list", elements="str", check=rules.check_members),
    Field("mode", choices=("balance-tcp", "balance-slb", "active-backup")),
    Field("lacp", choices=("active", "passive", "off")),
    Field("lacp_time", choices=("fast", "slow")),
    *VLAN_FIELDS,
)
FIELDS = (
    Field("name", required=True, check=rules.check_interface),
    Field("state", choices=("present", "absent"), default="present"),
    Field("datapath_type", choices=("system", "netdev")),
    Field("fail_mode", choices=("standalone", "secure")),
    Field("rstp", type="bool"),
    Field("external_ids", type="dict", check=rules.check_map),
    Field("other_config", type="dict", check=rules.check_map),
    Field("ports", type="list", elements="dict", fields=PORT_FIELDS, check=rules.check_once),
    Field("bonds", type="list", elements="dict", fields=BOND_FIELDS, check=rules.check_once),
    Field("purge_ports", type="bool", default=False),
    Field("wait_lacp", type="int", default=0),
    Field("timeout", type="int", default=30),
    Field("socket", type="path", default="/run/openvswitch/db.sock"),
)


class Bridge(Resource):
    """One bridge with its ports and bonds; `client` is an Ovs."""

    snapshot: _ovs.Snapshot
    lacp: Mapping[str, str]
    number = 0

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[_ovs.Ovs]:
        """One connection to the database server."""
        return _ovs.connect(params["socket"])

    def read(self) -> State:
        """All of it in one transaction."""
        self.snapshot = self.client.snapshot()
        state = rows.describe(self.snapshot, self.name)
        self.lacp = self.client.lacp() if rows.speaks_lacp(state) else {}
        return state

    def wanted(self, before: State) -> State:
        """The options laid over what is there."""
        return rules.wanted(self.params, before, self.snapshot, _ovs.devices())

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each sentence; the first commits them all, since they are one transaction."""
        texts = rules.words(before, wanted, self.name)
        if not texts:
            self._prove(wanted)
            return []
        first = Step(texts[0], lambda: self._commit(before, wanted), self._applied, self.params["timeout"])
        return [first, *(Step(text, _nothing) for text in texts[1:])]

    def result(self, state: State) -> dict[str, Any]:
        """The configuration, and what the switch says now."""
        return {"resource": state, "runtime": rows.runtime(self.snapshot, self.name, self.lacp)}

    def _commit(self, before: State, wanted: State) -> None:
        self.number = self.client.commit(rows.change(self.snapshot, self.name, before, wanted))

    def _applied(self) -> object:
        return self.client.applied(self.number)

    def _prove(self, state: State) -> None:
        """Nothing is left to write: does the switch do what is written? Raises TimedOut or Failed."""
        if not self.snapshot.applied:
            self.number = self.snapshot.root["next_cfg"]
            Step("ovs-vswitchd takes over the configuration", _nothing, self._applied, self.params["timeout"]).run()
            self.read()
        if state is None:
            return
        self.warnings = rows.open_ends(self.snapshot, state)
        problems = rows.problems(self.snapshot, state)
        if problems:
            raise Failed(f"Open vSwitch can't do what is configured: {'; '.join(problems)}", problems=problems)
        if self.params["wait_lacp"]:
            if rows.out_of_step(state, self.lacp, alone=True):
                Step(f"bridge {self.name}: LACP negotiates", _nothing, self._partners, self.params["wait_lacp"]).run()
            late = rows.out_of_step(state, self.lacp)
            self.warnings += [f"bridge {self.name}: not all members work in bond {bond}" for bond in late]

    def _partners(self) -> object:
        silent = rows.out_of_step(self.read(), self.lacp, alone=True)
        return f"no partner that speaks LACP at {', '.join(silent)}" if silent else True


def _nothing() -> None:
    """What the first step did already."""


def main() -> None:
    """Run the module."""
    run_module(Bridge, FIELDS)


if __name__ == "__main__":
    main()
