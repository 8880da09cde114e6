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
  - A bridge that was lost and is made again has none of its machines; a warning names the taps that are in no bridge,
    and module M(drover.kvm.vm_ports) plugs them as libvirt says. Role P(drover.kvm.open_vswitch#role) does both.
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
  stp:
    description:
      - Whether the bridge takes part in the spanning tree protocol (IEEE 802.1D-1998), not together with O(rstp). Open
        vSwitch's own default is V(false). Bonds and internal ports take no part.
    type: bool
  stp_priority:
    description:
      - Priority of the bridge in STP, 0 to 65535; the bridge with the lowest one becomes the root. Open vSwitch's own
        default is 32768.
    type: int
  rstp:
    description:
      - Whether the bridge takes part in the rapid spanning tree protocol (IEEE 802.1D-2004). Open vSwitch's own default
        is V(false). Bonds and internal ports take no part.
    type: bool
  rstp_priority:
    description:
      - Priority of the bridge in RSTP, 0 to 61440 in steps of 4096; the bridge with the lowest one becomes the root.
        Open vSwitch's own default is 32768.
    type: int
  mcast_snooping:
    description:
      - Whether the bridge learns from IGMP and MLD who wants which multicast group, instead of sending it to all ports.
        Open vSwitch's own default is V(false).
    type: bool
  flood_vlans:
    description:
      - VLANs (0 to 4095, 0 for untagged packets) on which the bridge learns no addresses and sends every packet to all
        ports, exactly these. For a VLAN that carries the copies of a mirror (O(mirrors[].output_vlan)).
      - Not together with a bond of mode V(balance-slb). Open vSwitch's own default is an empty list, none.
    type: list
    elements: int
  protocols:
    description:
      - The versions of OpenFlow that the bridge speaks, exactly these. An empty list means Open vSwitch's own default,
        all of them.
    type: list
    elements: str
    choices: [OpenFlow10, OpenFlow11, OpenFlow12, OpenFlow13, OpenFlow14, OpenFlow15]
  controllers:
    description:
      - The OpenFlow controllers, exactly these, such as V(tcp:192.0.2.1:6653) or V(ssl:[2001:db8::1]:6653). One that
        stays keeps its other settings. An empty list, Open vSwitch's own default, means none.
      - RV(runtime.controllers) tells which of them are connected.
    type: list
    elements: str
  external_ids:
    description:
      - External ids of the bridge. Keys that are not given stay; a key without a value (V(null)) is removed.
    type: dict
  other_config:
    description:
      - Further settings of the bridge, such as C(hwaddr) or C(mac-aging-time) (seconds).
      - Keys that are not given stay; a key without a value (V(null)) is removed.
      - A key for which this module has an option, such as C(rstp-priority), is refused, here, in ports and in bonds,
        but for V(null), which gives the option Open vSwitch's own default again.
    type: dict
  ports:
    description:
      - The ports with one interface. The list means exactly these of the ports that this module made or took over;
        without the option all ports stay.
      - The bridge's own internal port can be listed by the name of the bridge, to give it a tag, a MAC address or an
        MTU; it is never removed.
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
            V(patch) one end of a cable to another bridge; V(vxlan), V(gre) and V(geneve) are tunnels. A new port is
            V(system).
          - A new type clears O(ports[].peer), O(ports[].remote_ip), O(ports[].local_ip), O(ports[].key) and
            O(ports[].options).
        type: str
        choices: [system, internal, patch, vxlan, gre, geneve]
      tag:
        description:
          - VLAN (1 to 4094) of an access port, or the native VLAN of a trunk.
          - O(ports[].tag), O(ports[].trunks), O(ports[].cvlans) and O(ports[].vlan_mode) belong together, here and in
            bonds. When one is given, the ones not given are cleared.
        type: int
      trunks:
        description: VLANs (1 to 4094) that a trunk carries. A trunk without a list carries all VLANs.
        type: list
        elements: int
      cvlans:
        description: VLANs of the customer (1 to 4094) that a V(dot1q-tunnel) port carries. Without a list all.
        type: list
        elements: int
      vlan_mode:
        description:
          - How the port treats VLAN tags. Without it a port with a tag is an access port, and any other a trunk.
          - V(dot1q-tunnel) puts the tag outside around the VLANs of a customer (802.1ad, "QinQ"). It needs
            C(vlan-limit) 0 or 2 in C(other_config) of the switch (module M(drover.kvm.ovs_switch)).
        type: str
        choices: [access, trunk, native-tagged, native-untagged, dot1q-tunnel]
      peer:
        description: Name of the port at the other end of a V(patch) port.
        type: str
      remote_ip:
        description: Address of the other end of a tunnel, or V(flow) when flows set it. Required for a new tunnel.
        type: str
      local_ip:
        description: Address of this end of a tunnel. Without it the kernel's routes decide.
        type: str
      key:
        description:
          - Number that keeps tunnels between the same two machines apart, such as the VNI of V(vxlan), up to 32 bits,
            or V(flow) when flows set it. Without it there is none (for V(vxlan) and V(geneve) 0).
        type: str
      options:
        description:
          - Further options of the interface, such as C(dst_port) or C(csum) of a tunnel, named as in Open vSwitch and
            in the manner of O(other_config). A key that Open vSwitch does not know is ignored by it; it says so only in
            its log.
          - C(psk), the secret of an IPsec tunnel, is refused since it would be shown; one that is there stays, unshown.
        type: dict
      ingress_policing_rate:
        description:
          - Limit in kbit/s for what the switch receives on this interface; what comes faster is dropped. Not for
            tunnels and patch ports. Open vSwitch's own default is V(0), no limit.
          - The limit of a virtual machine's NIC is an option of the machine.
        type: int
      ingress_policing_burst:
        description:
          - Burst in kbit that O(ports[].ingress_policing_rate) lets through. Open vSwitch's own default is V(0), which
            means 8000 kbit.
        type: int
      qos: &qos
        description:
          - Quality of service for what the switch sends through the port. It means exactly this; without the option
            what is there stays. Which packets use which queue is a matter of flows; all others use queue 0.
          - The kernel does the work, so it is for NICs and internal ports, and refused for tunnels and patch ports.
            Whether the kernel took it over is not in the database; C(ovs-appctl qos/show) tells.
          - The rows for it are made and removed by this module. Those of others are never changed, only replaced for
            this port.
        type: dict
        suboptions:
          type:
            description: The kernel's classifier, V(none) for no QoS.
            type: str
            choices: [linux-htb, linux-hfsc, none]
            default: linux-htb
          max_rate:
            description:
              - Limit of the port in bit/s. Open vSwitch's own default is the speed of the link, else 10 Gbit/s.
            type: int
          queues:
            description: The queues, exactly these. Queue 0 exists always.
            type: list
            elements: dict
            suboptions:
              id:
                description: Number of the queue, 0 to 61439.
                type: int
                required: true
              min_rate:
                description: Rate in bit/s that the queue is guaranteed.
                type: int
              max_rate:
                description: Rate in bit/s that the queue never exceeds. Without it only the limit of the port counts.
                type: int
              burst:
                description: Bits that the queue may save up while it is idle; for V(linux-htb).
                type: int
              priority:
                description:
                  - What is left over goes to the queue with the smaller number first; for V(linux-htb). Open vSwitch's
                    own default is 0.
                type: int
      mac:
        description:
          - MAC address of an V(internal) port. Without it a new port gets one that this machine's port of that name has
            whenever it is made, so that its neighbours need not learn another one after a bridge was lost (derived from
            C(external_ids:system-id) of the switch); a port that is there keeps the one it has.
        type: str
      mtu:
        description: MTU in bytes (68 to 65535) that Open vSwitch gives to the interface.
        type: int
      lldp:
        description:
          - Whether Open vSwitch sends LLDP frames (IEEE 802.1AB), so that the physical switch can tell what is plugged
            into it by the MAC address and the name of the interface; they don't hold the name of the machine. LLDP
            frames that come in are then not forwarded.
          - Open vSwitch's own default is V(false).
        type: bool
      external_ids:
        description: External ids of the interface, in the manner of O(external_ids).
        type: dict
      other_config:
        description: Further settings of the port such as C(rstp-port-mcheck), in the manner of O(other_config).
        type: dict
      stp_enable:
        description: Whether the port takes part when the bridge speaks STP. Open vSwitch's own default is V(true).
        type: bool
      stp_path_cost:
        description: Cost of the port in STP, 1 to 65535. Without it the speed of the link decides.
        type: int
      stp_port_priority:
        description: Priority of the port in STP, 0 to 255, the lowest is preferred. Open vSwitch's own default is 128.
        type: int
      rstp_enable:
        description: Whether the port takes part when the bridge speaks RSTP. Open vSwitch's own default is V(true).
        type: bool
      rstp_path_cost:
        description: Cost of the port in RSTP, 1 to 200000000. Without it the speed of the link decides.
        type: int
      rstp_port_priority:
        description:
          - Priority of the port in RSTP, 0 to 240 in steps of 16, the lowest is preferred. Open vSwitch's own default
            is 128.
        type: int
      rstp_admin_edge:
        description:
          - Whether a machine and no switch is at the other end, so that the port forwards at once. Open vSwitch's own
            default is V(false); it finds out by itself within seconds.
        type: bool
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
      fallback_ab:
        description:
          - Whether a bond whose partner does not speak LACP works as V(active-backup) meanwhile, instead of not at all.
            Open vSwitch's own default is V(false).
        type: bool
      up_delay:
        description:
          - Milliseconds that a link must be up before the bond uses it. Open vSwitch's own default is V(0). Not heeded
            for the first link, nor with LACP.
        type: int
      down_delay:
        description:
          - Milliseconds that a link must be down before the bond gives it up. Open vSwitch's own default is V(0).
        type: int
      rebalance_interval:
        description:
          - Milliseconds between two attempts of V(balance-slb) and V(balance-tcp) to spread the traffic evenly, 1000 or
            more, V(0) for never. Open vSwitch's own default is 10000.
        type: int
      detect_mode:
        description:
          - How a dead link is noticed, by its carrier or by asking its MII registers. Open vSwitch's own default is
            V(carrier).
        type: str
        choices: [carrier, miimon]
      miimon:
        description:
          - Milliseconds between two looks at the MII registers, with O(bonds[].detect_mode=miimon). Open vSwitch's own
            default is 200.
        type: int
      tag:
        description: As O(ports[].tag).
        type: int
      trunks:
        description: As O(ports[].trunks).
        type: list
        elements: int
      cvlans:
        description: As O(ports[].cvlans).
        type: list
        elements: int
      vlan_mode:
        description: As O(ports[].vlan_mode).
        type: str
        choices: [access, trunk, native-tagged, native-untagged, dot1q-tunnel]
      qos: *qos
      mtu:
        description: MTU in bytes (68 to 65535) that Open vSwitch gives to each member.
        type: int
      lldp:
        description: As O(ports[].lldp), on each member.
        type: bool
      other_config:
        description: Further settings of the bond such as C(bond-primary), in the manner of O(other_config).
        type: dict
  mirrors:
    description:
      - Copies of what passes through ports, for a probe. The list means exactly these of the mirrors that this module
        made or took over; without the option all mirrors stay.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the mirror, within the bridge.
        type: str
        required: true
      select_all:
        description: Whether all ports are copied. Open vSwitch's own default is V(false).
        type: bool
      select_src:
        description:
          - Copy what comes in from these ports of the bridge. Those of virtual machines may be among them; a port that
            goes leaves the mirror.
        type: list
        elements: str
      select_dst:
        description: Copy what goes out to these ports of the bridge.
        type: list
        elements: str
      select_vlans:
        description: Copy only what is in these VLANs (1 to 4094). Open vSwitch's own default, an empty list, means all.
        type: list
        elements: int
      output_port:
        description: Port of the bridge that gets the copies, and from then on nothing else.
        type: str
      output_vlan:
        description: VLAN (1 to 4094) that gets the copies instead, which must be used for nothing else.
        type: int
  purge_ports:
    description:
      - With O(ports), also remove the ports of other owners that are not listed; with O(bonds), their bonds. Ports of
        virtual machines stay even then.
      - With O(state=absent), allow to lose the ports of other owners.
    type: bool
    default: false
  allow_connection_interface:
    description:
      - Allow a change that cuts the interface through which Ansible reaches the machine, or that has the default route.
        Such a change is a NIC that comes under the switch, or an internal port that goes or gets another VLAN. It is
        refused otherwise, unless O(confirm_timeout) is there to take it back.
      - An interface that stays, and only reaches others through a port or bond that changes, is not judged.
    type: bool
    default: false
  wait_lacp:
    description:
      - Seconds, at most 600, to wait until each bond with LACP has a member that is in step with its partner; fails
        when one has none. The members that are not in step are warnings.
      - With V(0) the module does not wait, and RV(runtime.bonds) tells how it stands.
    type: int
    default: 0
  confirm_timeout:
    description:
      - Seconds (5 to 3600) after which the machine takes this task's change back by itself, unless Ansible has
        confirmed it. For a change that could cut off the machine, such as another bond or VLAN under its management
        address.
      - The confirmation is part of the task, nothing else is to be written. When the change is made, the controller
        gives up its connection, makes a new one, and confirms over that one. If it does not succeed in time the task
        fails, and the machine puts back the rows of the bridge exactly as they were, those of ports that this module
        knows nothing of included; the ports of virtual machines are left as they are. A task that fails after its
        change is not confirmed either.
      - C(ovs-vswitchd) must take over the change, and O(wait_lacp) must be over, within this time. A first connection
        through a spanning tree takes up to 30 seconds. 60 is a good value.
      - Without the option (the default) a change stays, whatever it cuts. It needs systemd on the machine, and a task
        without C(async). The rows are kept in memory (C(/run/drover)); a reboot before the confirmation lets the change
        stand.
      - While a change waits for its confirmation any other change of this bridge is refused.
    type: int
  timeout:
    description: Seconds, 1 to 600, to wait until C(ovs-vswitchd) has taken over the change.
    type: int
    default: 30
  socket:
    description: Path of the socket of C(ovsdb-server).
    type: path
    default: /run/openvswitch/db.sock
notes:
  - A port that belongs to another bridge is never moved by itself; the module refuses, and says where the port is.
  - For O(confirm_timeout) the module has an action plugin of its name, which runs on the controller.
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
    rstp_priority: 4096
    ports:
      - name: eno3
        tag: 10
        trunks: [20, 30]
        vlan_mode: native-untagged
        rstp_path_cost: 2000
        lldp: true

- name: Two bridges joined by a patch cable, this end
  drover.kvm.ovs_bridge:
    name: br2
    ports:
      - name: to-br3
        type: patch
        peer: to-br2

- name: A tunnel to another site
  drover.kvm.ovs_bridge:
    name: br4
    ports:
      - name: site2
        type: vxlan
        remote_ip: 192.0.2.7
        key: "42"

- name: 500 Mbit/s out of an uplink, a fifth of it for queue 1; 100 Mbit/s into the switch from another NIC
  drover.kvm.ovs_bridge:
    name: br5
    ports:
      - name: eno5
        qos:
          max_rate: 500000000
          queues:
            - id: 0
            - id: 1
              min_rate: 100000000
      - name: eno6
        ingress_policing_rate: 100000

- name: A copy of what comes and goes at eno7, for a probe at eno8
  drover.kvm.ovs_bridge:
    name: br6
    ports:
      - name: eno7
      - name: eno8
    mirrors:
      - name: probe
        select_src: [eno7]
        select_dst: [eno7]
        output_port: eno8

- name: Another VLAN under the management address; the old one comes back unless Ansible can connect again
  drover.kvm.ovs_bridge:
    name: br7
    confirm_timeout: 60
    ports:
      - name: eno9
      - name: mgmt0
        type: internal
        tag: 12

- name: Fail unless the partner answers within 15 seconds
  drover.kvm.ovs_bridge:
    name: br0
    wait_lacp: 15

- name: Remove a bridge that no virtual machine uses
  drover.kvm.ovs_bridge:
    name: br8
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
    - C(ports), C(bonds) and C(mirrors) are dicts by name with the options of the module, and C(managed), which tells
      whether the port is removed when it is no longer declared. The ports of virtual machines are not among them.
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
    controllers:
      description: By target, whether Open vSwitch is connected to the controller.
      type: dict
    rstp:
      description:
        - With O(rstp), C(bridge_id), C(root_id) (both equal on the root), and C(ports) with C(role) (V(Root),
          V(Designated), V(Alternate), V(Backup), V(Disabled)) and C(state) (V(Forwarding), V(Learning), V(Discarding),
          V(Disabled)) of each; else V(null).
      type: dict
    vm_ports:
      description: The ports of virtual machines on the bridge.
      type: list
      elements: str
confirmed:
  description: Whether the change was confirmed in time.
  returned: when a change was made with O(confirm_timeout)
  type: bool
rollback:
  description: What takes the change back, C(unit) of systemd, C(file) with the rows as they were, and C(seconds).
  returned: when a change was made with O(confirm_timeout)
  type: dict
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

from ansible_collections.drover.kvm.plugins.module_utils import _lifelines, _links, _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import (
    changes,
    checks,
    judge,
    restore,
    rollback,
    rows,
    rules,
    seen,
    words,
)
from ansible_collections.drover.kvm.plugins.module_utils._bridge.options import BOND, BRIDGE, MIRROR, PORT
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("name", required=True, check=checks.check_interface),
    Field("state", choices=("present", "absent"), default="present"),
    *BRIDGE,
    Field("ports", type="list", elements="dict", fields=PORT, check=checks.check_once),
    Field("bonds", type="list", elements="dict", fields=BOND, check=checks.check_once),
    Field("mirrors", type="list", elements="dict", fields=MIRROR, check=checks.check_once),
    Field("purge_ports", type="bool", default=False),
    Field("allow_connection_interface", type="bool", default=False),
    Field("wait_lacp", type="int", default=0, check=between(0, 600)),
    Field("confirm_timeout", type="int", check=between(5, 3600)),
    Field("timeout", type="int", default=30, check=between(1, 600)),
    Field("socket", type="path", default="/run/openvswitch/db.sock"),
)


class Bridge(Resource):
    """One bridge with its ports and bonds; `client` is an Ovs."""

    snapshot: _ovs.Snapshot
    lacp: Mapping[str, str]
    number = 0
    made = False
    armed: dict[str, Any] | None = None

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[_ovs.Ovs]:
        """One connection to the database server."""
        return _ovs.connect(params["socket"])

    def read(self) -> State:
        """All of it in one transaction."""
        self.snapshot = self.client.snapshot()
        state = rows.describe(self.snapshot, self.name)
        self.lacp = self.client.lacp() if seen.speaks_lacp(state) else {}
        return state

    def wanted(self, before: State) -> State:
        """The options laid over what is there."""
        after = rules.wanted(self.params, before, self.snapshot, _links.devices())
        if not (self.params["confirm_timeout"] or self.params["allow_connection_interface"]):
            _lifelines.check(judge.cut(before, after))
        return after

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each sentence; the first commits them all, since they are one transaction."""
        texts = words.words(before, wanted, self.name)
        if not texts:
            self._prove(wanted)
            return []
        if not self.armed:
            rollback.of(self.name).check(self.params["confirm_timeout"], self.params["wait_lacp"])
        self.made = before is None
        first = Step(texts[0], lambda: self._commit(before, wanted), self._applied, self.params["timeout"])
        return [first, *(Step(text, _nothing) for text in texts[1:])]

    def result(self, state: State) -> dict[str, Any]:
        """The configuration, and what the switch says now."""
        armed = {"rollback": self.armed} if self.armed else {}
        return {"resource": state, "runtime": seen.runtime(self.snapshot, self.name, self.lacp), **armed}

    def _commit(self, before: State, wanted: State) -> None:
        undo, seconds = rollback.of(self.name), self.params["confirm_timeout"]
        with undo.protected(seconds, lambda: restore.save(self.client, self.name)) as self.armed:
            self.number = self.client.commit(changes.change(self.snapshot, self.name, before, wanted))

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
        if seen.rstp_starts(self.snapshot, self.name):
            Step(f"bridge {self.name}: RSTP starts", _nothing, self._in_tree, self.params["timeout"]).run()
        self.warnings = seen.open_ends(self.snapshot, state)
        if self.made:
            self.warnings += seen.cut_off(self.snapshot, _links.lone_taps())
        problems = seen.problems(self.snapshot, state)
        if problems:
            raise Failed(f"Open vSwitch can't do what is configured: {'; '.join(problems)}", problems=problems)
        if self.params["wait_lacp"]:
            if seen.out_of_step(state, self.lacp, alone=True):
                Step(f"bridge {self.name}: LACP negotiates", _nothing, self._partners, self.params["wait_lacp"]).run()
            late = seen.out_of_step(state, self.lacp)
            self.warnings += [f"bridge {self.name}: not all members work in bond {bond}" for bond in late]

    def _in_tree(self) -> object:
        self.read()
        return not seen.rstp_starts(self.snapshot, self.name) or "no status of RSTP yet"

    def _partners(self) -> object:
        silent = seen.out_of_step(self.read(), self.lacp, alone=True)
        return f"no partner that speaks LACP at {', '.join(silent)}" if silent else True


def _nothing() -> None:
    """What the first step did already."""


def main() -> None:
    """Run the module."""
    run_module(Bridge, FIELDS)


if __name__ == "__main__":
    main()
