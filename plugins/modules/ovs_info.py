#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the switch of a machine and who is at the other end of its cables."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ovs_info
short_description: Read the bridges, bonds and LACP partners of a machine
version_added: "0.1.0"
description:
  - Returns the bridges of Open vSwitch with their ports, bonds, VLANs, RSTP, QoS and counters, the VM that
    owns each tap, and at every cable the partner that LACP and LLDP tell of.
  - The database is read in one transaction, so all of it is of the same moment; C(ovs-vswitchd) is asked once for LACP.
    The bonds of the kernel tell their partner too. Nothing hangs. A database server that gives no answer fails the
    task within 10 seconds; what gives no answer beside it (C(ovs-vswitchd), libvirt, lldpd) is left out.
  - On a machine without Open vSwitch it returns what the kernel and lldpd know.
options:
  socket:
    description: Path of the socket of C(ovsdb-server).
    type: path
    default: /run/openvswitch/db.sock
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
  - drover.kvm.libvirt
requirements:
  - where Open vSwitch runs, its Python bindings (package C(python3-openvswitch))
  - optionally lldpd, for the neighbours that LLDP knows
notes:
  - libvirt is asked only when a VM has a port, for at most 5 seconds, and only for the names of the VMs.
  - What the keys of C(statistics), C(qos) and C(rstp) mean is said in
    U(https://docs.openvswitch.org/en/latest/ref/ovs-vswitchd.conf.db.5/).
seealso:
  - module: drover.kvm.ovs_bridge
  - module: drover.kvm.vm_ports
  - plugin: drover.kvm.network_report
    plugin_type: filter
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Say who is at the other end of the cables
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read the switch
      drover.kvm.ovs_info:
      register: answer

    - name: Show the partners
      ansible.builtin.debug:
        msg: "{{ item.interface }}: {{ item.partner.system }} key {{ item.partner.key }} port {{ item.partner.port }}"
      loop: "{{ answer.links | selectattr('partner') }}"

- name: Refuse to work on with a dead cable
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Read the bonds
      drover.kvm.ovs_info:
      register: answer
      failed_when: answer.links | selectattr('bond') | rejectattr('lacp', 'equalto', 'current attached') | length > 0

- name: Say which VM is behind vnet7
  hosts: hv1
  gather_facts: false
  tasks:
    - name: Read the ports
      drover.kvm.ovs_info:
      register: answer

    - name: Say it
      ansible.builtin.debug:
        msg: "{{ ports | selectattr('name', 'equalto', 'vnet7') | map(attribute='vm') }}"
      vars:
        ports: "{{ answer.bridges | map(attribute='ports') | flatten }}"
"""

RETURN = r"""
running:
  description: Whether Open vSwitch's database server has its socket on this machine.
  returned: success
  type: bool
  sample: true
version:
  description: Version of Open vSwitch; null where it does not run.
  returned: success
  type: str
  sample: 3.5.0
applied:
  description: Whether C(ovs-vswitchd) has taken over the whole configuration; null where it does not run.
  returned: success
  type: bool
  sample: true
bridges:
  description: The bridges of Open vSwitch, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: br0
    datapath_type:
      description: V(system) for the kernel, V(netdev) for user space.
      type: str
      sample: system
    datapath_id:
      description: Its OpenFlow datapath id.
      type: str
      sample: 0000525400123456
    fail_mode:
      description: V(standalone), V(secure), or null for Open vSwitch's own default.
      type: str
      sample: null
    rstp:
      description: C(enabled), and where it is what the spanning tree tells of the bridge, its root among it.
      type: dict
      sample: {enabled: false}
    ports:
      description:
        - The ports, sorted by name. C(bond) holds C(mode) and C(lacp) of a bond, C(rstp) the C(role) and C(state) of
          the port, C(qos) its type, settings and queues, C(vm) the UUID, name, MAC and interface id of the VM that it
          belongs to; each is null where there is none.
        - C(guard) of a VM is V(checked) where the switch checks its addresses now, V(open) where it may use any, and
          null where nothing guards the port (see O(drover.kvm.open_vswitch#role:main:open_vswitch_port_guard)).
          C(ips) are the only addresses that it may use, where they are declared.
        - C(interfaces) hold C(name), C(type), C(ofport), C(error), C(mac), C(mtu) (bytes), C(admin_state),
          C(link_state), C(link_speed) (bits per second), C(statistics) (counters of packets and bytes), C(policing)
          (C(rate) in kbit/s and C(burst) in kbit) and C(lacp).
      type: list
      elements: dict
      sample:
        - name: vnet7
          tag: 100
          trunks: []
          vlan_mode: null
          bond: null
          rstp: null
          qos: null
          vm: {uuid: 0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10, name: web1, guard: checked, ips: []}
          interfaces: [{name: vnet7, ofport: 4, link_state: up}]
links:
  description:
    - The cables, sorted by interface. All interfaces with hardware behind them, the members of bonds that speak LACP,
      and those with an LLDP neighbour.
  returned: success
  type: list
  elements: dict
  contains:
    interface:
      description: Its name.
      type: str
      sample: eno1
    link_state:
      description: Whether the cable has a link, V(up) or V(down).
      type: str
      sample: up
    bond:
      description: The bond that speaks LACP through it, of Open vSwitch or of the kernel.
      type: str
      sample: bond0
    lacp:
      description: V(current), V(expired) or V(defaulted), and V(attached) or V(detached), in the words of Open vSwitch.
      type: str
      sample: current attached
    actor:
      description: What this end says of itself, as RV(links[].partner).
      type: dict
      sample: {system: "52:54:00:12:34:56", key: 1, port: 2, state: [activity]}
    partner:
      description:
        - What the other end says of itself. C(system) id, C(key) (the port-channel), C(port) number,
          C(system_priority), C(port_priority) and the words of its C(state). Null when nobody speaks.
      type: dict
      sample: {system: "00:1c:73:00:00:01", key: 11, port: 101, state: [activity]}
    lldp:
      description: C(switch) (name), C(switch_id), C(port) and C(port_description) of the LLDP neighbour, or null.
      type: dict
      sample: {switch: core1, switch_id: "00:1c:73:00:00:01", port: Ethernet1, port_description: hv1 left}
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _libvirt, _links, _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import partners, rows, view
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._resource import run_info
from ansible_collections.drover.kvm.plugins.module_utils._run import bounded

NAMES_ANSWER = 5.0  # seconds; the names are worth having, not worth waiting for
FIELDS = (Field("socket", type="path", default="/run/openvswitch/db.sock"), _libvirt.URI)


@contextmanager
def opened(params: Mapping[str, Any]) -> Iterator[_ovs.Ovs | None]:
    """A connection to the database server; None on a machine where Open vSwitch does not run."""
    if not Path(params["socket"]).exists():
        yield None
        return
    with _ovs.connect(params["socket"]) as client:
        yield client


def vm_names(uri: str) -> dict[str, str]:
    """The names of the running VMs by UUID; empty when libvirt does not answer in time."""

    def ask() -> dict[str, str]:
        with _libvirt.connect(uri, readonly=True, probe=False) as node:
            return {domain.uuid: domain.name for domain in node.domains(brief=True).values()}

    answer: Any = bounded({"libvirt": ask}, NAMES_ANSWER)["libvirt"]
    return {} if isinstance(answer, Unreachable) else answer


def read_switch(params: dict[str, Any], client: _ovs.Ovs | None) -> dict[str, Any]:
    """All of it."""
    snapshot = client.snapshot(view.MORE) if client else None
    links = [link for bond, text in _links.bonds().items() for link in partners.kernel_links(bond, text)]
    facts: dict[str, Any] = {"running": client is not None, "version": None, "applied": None, "bridges": []}
    if client and snapshot:
        links += partners.switch_links(client.ask_switch("lacp/show"))
        names = [row["name"] for row in snapshot.tables["Bridge"].values()]
        vms = vm_names(params["uri"]) if any(rows.vm_ports(snapshot, name) for name in names) else {}
        facts["version"], facts["applied"] = snapshot.root["ovs_version"], snapshot.applied
        guarded = {name: view.guards(client.ask_switch("bridge/dump-flows", name)) for name in names if vms}
        facts["bridges"] = view.bridges(snapshot, vms, links, guarded)
    lldp = partners.lldp_neighbours(_links.lldp())
    states = {**_links.physical(), **{name: _links.link_state(name) for name in (link["interface"] for link in links)}}
    return {**facts, "links": view.cables(states, links, lldp)}


def main() -> None:
    """Run the module."""
    run_info(read_switch, FIELDS, opened)


if __name__ == "__main__":
    main()
