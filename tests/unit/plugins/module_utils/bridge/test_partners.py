# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is at the other end of a cable: the texts of ovs-vswitchd, of the kernel and of lldpd."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._bridge import partners, view

# From Open vSwitch 3.5; the second member has heard nobody.
LACP_SHOW = """---- bond0 ----
  status: active negotiated
  sys_id: 5a:2f:9b:47:0c:11
  sys_priority: 65534
  aggregation key: 1
  lacp_time: fast

member: nic1: current attached
  port_id: 1
  port_priority: 65535
  may_enable: true

  actor sys_id: 5a:2f:9b:47:0c:11
  actor sys_priority: 65534
  actor port_id: 1
  actor port_priority: 65535
  actor key: 1
  actor state: activity timeout aggregation synchronized collecting distributing

  partner sys_id: 00:1c:73:00:00:01
  partner sys_priority: 32768
  partner port_id: 101
  partner port_priority: 32768
  partner key: 11
  partner state: activity timeout aggregation synchronized collecting distributing

slave: nic2: defaulted detached
  port_id: 2

  actor sys_id: 5a:2f:9b:47:0c:11
  actor sys_priority: 65534
  actor port_id: 2
  actor port_priority: 65535
  actor key: 1
  actor state: activity timeout aggregation defaulted

  partner sys_id: 00:00:00:00:00:00
  partner sys_priority: 0
  partner port_id: 0
  partner port_priority: 0
  partner key: 0
  partner state:
"""

# From Linux 6.12, mode 802.3ad.
BONDING = """Ethernet Channel Bonding Driver: v6.12.0

Bonding Mode: IEEE 802.3ad Dynamic link aggregation
Transmit Hash Policy: layer2 (0)
MII Status: up

802.3ad info
LACP active: on
LACP rate: fast
System priority: 65535
System MAC address: 52:54:00:00:00:01
Active Aggregator Info:
\tAggregator ID: 1
\tNumber of ports: 1
\tActor Key: 15
\tPartner Key: 11
\tPartner Mac Address: 00:1c:73:00:00:01

Slave Interface: eth0
MII Status: up
Speed: 10000 Mbps
Permanent HW addr: 52:54:00:00:00:01
Aggregator ID: 1
details actor lacp pdu:
    system priority: 65535
    system mac address: 52:54:00:00:00:01
    port key: 15
    port priority: 255
    port number: 1
    port state: 63
details partner lacp pdu:
    system priority: 32768
    system mac address: 00:1c:73:00:00:01
    oper key: 11
    port priority: 32768
    port number: 101
    port state: 61

Slave Interface: eth1
MII Status: down
details actor lacp pdu:
    system priority: 65535
    system mac address: 52:54:00:00:00:01
    port key: 0
    port priority: 255
    port number: 2
    port state: 71
details partner lacp pdu:
    system priority: 65535
    system mac address: 00:00:00:00:00:00
    oper key: 1
    port priority: 255
    port number: 1
    port state: 1
"""


def test_members_and_partners_of_a_bond_of_the_switch():
    first, second = partners.switch_links(LACP_SHOW)
    assert (first["interface"], first["bond"], first["lacp"]) == ("nic1", "bond0", "current attached")
    assert first["actor"]["system"] == "5a:2f:9b:47:0c:11"
    assert first["partner"]["state"][-1] == "distributing"
    told = {key: first["partner"][key] for key in ("system", "system_priority", "key", "port", "port_priority")}
    wanted = {"system": "00:1c:73:00:00:01", "system_priority": 32768, "key": 11, "port": 101, "port_priority": 32768}
    assert told == wanted
    assert (second["lacp"], second["partner"]) == ("defaulted detached", None)


def test_no_answer_is_no_link():
    assert partners.switch_links("") == []
    assert (
        partners.kernel_links("bond0", "Bonding Mode: fault-tolerance (active-backup)\nSlave Interface: eth0\n") == []
    )


def test_members_and_partners_of_a_bond_of_the_kernel():
    first, second = partners.kernel_links("bond0", BONDING)
    assert (first["interface"], first["bond"], first["lacp"]) == ("eth0", "bond0", "current attached")
    told = {key: first["partner"][key] for key in ("system", "key", "port")}
    assert told == {"system": "00:1c:73:00:00:01", "key": 11, "port": 101}
    assert first["partner"]["state"] == ["activity", "aggregation", "synchronized", "collecting", "distributing"]
    assert first["actor"]["key"] == 15
    assert (second["lacp"], second["partner"]) == ("defaulted detached", None)


NEIGHBOUR = {
    "chassis": {"core1": {"id": {"type": "mac", "value": "00:1c:73:00:00:01"}}},
    "port": {"id": {"type": "ifname", "value": "Ethernet1"}, "descr": "hv1 left"},
}
TOLD = {"switch": "core1", "switch_id": "00:1c:73:00:00:01", "port": "Ethernet1", "port_description": "hv1 left"}


@pytest.mark.parametrize("interfaces", [{"eno1": NEIGHBOUR}, [{"eno1": NEIGHBOUR}]], ids=["one", "list"])
def test_neighbours_of_lldp(interfaces):
    assert partners.lldp_neighbours({"lldp": {"interface": interfaces}}) == {"eno1": TOLD}


def test_a_neighbour_without_a_name():
    seen = {**NEIGHBOUR, "chassis": {"id": {"type": "mac", "value": "00:1c:73:00:00:01"}}}
    assert partners.lldp_neighbours({"lldp": {"interface": {"eno1": seen}}}) == {"eno1": {**TOLD, "switch": None}}


@pytest.mark.parametrize("answer", [None, {}, {"lldp": {}}, {"lldp": {"interface": []}}, [], "no"])
def test_nothing_from_lldp(answer):
    assert partners.lldp_neighbours(answer) == {}


def test_lacp_and_lldp_side_by_side():
    links = view.cables({"eno9": "down", "nic1": "up"}, partners.switch_links(LACP_SHOW), {"nic1": TOLD})
    assert [link["interface"] for link in links] == ["eno9", "nic1", "nic2"]
    assert links[0]["partner"] is None and links[0]["link_state"] == "down"
    assert (links[1]["lldp"], links[1]["partner"]["key"], links[1]["link_state"]) == (TOLD, 11, "up")
