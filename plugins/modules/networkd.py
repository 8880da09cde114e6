#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a host by systemd-networkd: bonds, VLANs, Linux bridges, addresses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: networkd
short_description: Manage bonds, VLANs, Linux bridges and addresses of a host with systemd-networkd
version_added: "0.1.0"
author: "The drover.kvm contributors (@drover)"
description:
  - Writes the files of systemd-networkd for the bonds, VLANs, bridges and addresses that are declared, lets it read
    them (C(networkctl reload)), and waits until the kernel shows all of it. No link that stays as it is is touched.
  - B(The four lists are the whole declaration.) What was declared before and is not listed any more is removed, a list
    that is not given is empty, and an option of a device that is not given has the default that is named here.
  - Its files are C(/etc/systemd/network/06-drover-*). No other file, and no link that is not declared, is ever changed;
    a device that is there and was not made by this module is refused.
  - What differs from the declaration though the files are right is mended too, such as a bridge that somebody
    deleted, a NIC that was taken out of its bond, or an address that was removed.
  - Ports of others in a bridge, those of virtual machines above all, stay; a bridge that has one is not removed.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
requirements:
  - systemd 252 or later with C(systemd-networkd) running
  - C(iproute2)
options:
  bonds:
    description: The bonds that are not plugged into a bridge by O(bridges[].bonds).
    type: list
    elements: dict
    default: []
    suboptions: &bond
      name:
        description: Name of the bond.
        type: str
        required: true
      members:
        description: The NICs of the bond, exactly these.
        type: list
        elements: str
        required: true
      mode:
        description:
          - How the members share the traffic. V(802.3ad) is LACP. V(balance-tcp), Open vSwitch's word, means V(802.3ad)
            too.
          - A new mode, and any other change of a bond but of its members and its O(bonds[].mtu), makes it anew; what it
            carries stands still for some seconds.
        type: str
        choices: [802.3ad, balance-tcp, active-backup, balance-xor, balance-rr, broadcast, balance-tlb, balance-alb]
        default: active-backup
      lacp:
        description:
          - Not needed, since the mode says it. It is here so that a bond of module M(drover.kvm.ovs_bridge) can stand
            here unchanged; one that does not fit the mode is refused.
        type: str
        choices: [active, "off"]
      lacp_time:
        description: How often the LACP partner is asked to speak, V(fast) each second or V(slow) each 30 seconds. The
          default is V(slow).
        type: str
        choices: [fast, slow]
      hash_policy:
        description: What of a packet chooses its member, in the modes V(802.3ad) and V(balance-xor). The default is
          V(layer3+4).
        type: str
        choices: [layer2, layer2+3, layer3+4, encap2+3, encap3+4, vlan+srcmac]
      miimon:
        description: Milliseconds between two looks at the links.
        type: int
        default: 100
      up_delay:
        description: Milliseconds that a link must be up before the bond uses it, a multiple of O(bonds[].miimon).
        type: int
        default: 0
      down_delay:
        description: Milliseconds that a link must be down before the bond gives it up, a multiple of O(bonds[].miimon).
        type: int
        default: 0
      min_links:
        description: How many members must work, so that the bond has a carrier, with LACP. The kernel's default is 0.
        type: int
      primary:
        description: The member that is used whenever it works, in mode V(active-backup).
        type: str
      mtu:
        description: MTU in bytes of the bond and its members. Without it, what they have.
        type: int
  vlans:
    description: VLANs (IEEE 802.1Q) on NICs, bonds or bridges. One on a bridge can also be a port of it with
      O(bridges[].ports[].type=internal).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the VLAN's interface.
        type: str
        required: true
      parent:
        description: The interface that carries it.
        type: str
        required: true
      tag:
        description: Its number, 1 to 4094.
        type: int
        required: true
      mtu:
        description: MTU in bytes, not more than that of its parent. Without it, the parent's.
        type: int
  bridges:
    description: The bridges of the kernel.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the bridge.
        type: str
        required: true
      stp:
        description: Whether the bridge takes part in the spanning tree protocol (IEEE 802.1D-1998). The kernel has no
          RSTP.
        type: bool
        default: false
      stp_priority:
        description: Priority of the bridge in STP, 0 to 65535; the bridge with the lowest one becomes the root.
        type: int
        default: 32768
      mcast_snooping:
        description: Whether the bridge learns who wants which multicast group.
        type: bool
        default: true
      vlan_filtering:
        description:
          - Whether the bridge keeps VLANs apart by itself. Without it a bridge knows no VLANs; make one for each VLAN
            of the virtual machines then.
          - Virtual machines get their VLAN in such a bridge from libvirt 11.0 or later.
          - VLAN 1 is the one of untagged packets, the bridge's own addresses included.
        type: bool
        default: false
      mac:
        description: MAC address of the bridge. Without it systemd derives one from the machine's id.
        type: str
      mtu:
        description: MTU in bytes of the bridge, and of its ports that have none of their own. Without it 1500.
        type: int
      ports:
        description: The ports, exactly these of those that this module plugs in.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Name of a NIC, of one of O(bonds) or O(vlans), or of the new interface with
              O(bridges[].ports[].type=internal). The bridge's own name may stand here with a O(bridges[].ports[].mac)
              and O(bridges[].ports[].mtu).
            type: str
            required: true
          type:
            description: V(internal) makes an interface of the host in the VLAN O(bridges[].ports[].tag) of this bridge,
              V(system) plugs in an interface that is there or declared.
            type: str
            choices: [system, internal]
            default: system
          mac:
            description: MAC address of an V(internal) port.
            type: str
          mtu:
            description: MTU in bytes.
            type: int
          tag:
            description: VLAN (1 to 4094) of an V(internal) port; of an access port, with
              O(bridges[].vlan_filtering=true).
            type: int
          trunks:
            description: VLANs that a trunk carries, with O(bridges[].vlan_filtering=true). A trunk without a list
              carries all.
            type: list
            elements: int
          stp_path_cost:
            description: Cost of the port in STP, 1 to 65535. Without it the speed of the link decides.
            type: int
          stp_port_priority:
            description: Priority of the port in STP, 0 to 63, the lowest is preferred. The kernel's default is 32.
            type: int
      bonds:
        description: The bonds that are ports of this bridge. They have the options of O(bonds), and
          O(bridges[].bonds[].tag), O(bridges[].bonds[].trunks), O(bridges[].bonds[].stp_path_cost) and
          O(bridges[].bonds[].stp_port_priority) as ports have them.
        type: list
        elements: dict
        default: []
        suboptions:
          <<: *bond
          tag:
            description: As O(bridges[].ports[].tag).
            type: int
          trunks:
            description: As O(bridges[].ports[].trunks).
            type: list
            elements: int
          stp_path_cost:
            description: As O(bridges[].ports[].stp_path_cost).
            type: int
          stp_port_priority:
            description: As O(bridges[].ports[].stp_port_priority).
            type: int
  addresses:
    description: The host's addresses, on what is declared above or on NICs. A NIC that is named here is taken over;
      what else it had by other files of systemd-networkd counts no more.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the interface.
        type: str
        required: true
      addresses:
        description: IPv4 and IPv6 addresses with their prefix, such as V(10.0.5.11/24).
        type: list
        elements: str
        required: true
      gateway:
        description: The default gateway, when it is reached through this interface; one of each family at most.
        type: list
        elements: str
        default: []
      dns:
        description: Name servers that are asked through this interface, by C(systemd-resolved).
        type: list
        elements: str
        default: []
      routes:
        description: Further routes through this interface.
        type: list
        elements: dict
        default: []
        suboptions:
          to:
            description: The network with its prefix.
            type: str
            required: true
          via:
            description: The router.
            type: str
            required: true
      mtu:
        description: MTU in bytes of the interface, if it is not said where it is declared.
        type: int
  allow_connection_interface:
    description:
      - Allow a change that cuts the interface through which Ansible reaches the machine, or that carries the default
        route. It is refused otherwise, unless O(confirm_timeout) is there to take it back.
      - It also covers what is below that interface, such as the members of its bond.
    type: bool
    default: false
  wait_lacp:
    description:
      - Seconds to wait until every member of a bond in mode V(802.3ad) that has a carrier is in step with its LACP
        partner, in one aggregator with the others. The module fails when one is not, and names it with the reason. A
        member without a carrier is a warning, as long as another one has one.
      - V(0) does not look.
    type: int
    default: 30
  confirm_timeout:
    description:
      - Seconds (5 to 3600) after which the machine takes this task's change back by itself, unless Ansible has
        confirmed it over a fresh connection. The confirmation is part of the task, nothing else is to be written. It
        works as O(drover.kvm.ovs_bridge#module:confirm_timeout).
      - It must be longer than O(wait_lacp). 60 is a good value.
      - What comes back are the files of this module as they were, and the addresses and routes of NICs that were taken
        from another owner than systemd-networkd.
    type: int
  timeout:
    description: Seconds to wait until the kernel shows what is declared.
    type: int
    default: 60
notes:
  - For O(confirm_timeout) the module has an action plugin of its name, which runs on the controller.
  - LACP of the kernel takes no member whose speed is unknown, as that of a virtual NIC often is. The module says so.
  - A NIC that ifupdown (C(/etc/network/interfaces)) or NetworkManager also sets up gets from both what they have for
    it, at the next boot at the latest. Take it out there.
  - The kernel calls VLANs on a bond C(bond0.100) only by custom; any name of at most 15 characters does.
seealso:
  - module: drover.kvm.ovs_bridge
  - module: drover.kvm.vm_ports
  - name: systemd.netdev
    description: What systemd-networkd makes.
    link: https://www.freedesktop.org/software/systemd/man/latest/systemd.netdev.html
  - name: systemd.network
    description: What it does with interfaces.
    link: https://www.freedesktop.org/software/systemd/man/latest/systemd.network.html
"""

EXAMPLES = r"""
- name: LACP to the core, the host in the storage VLAN, a bridge for the VMs of VLAN 100
  drover.kvm.networkd:
    bonds:
      - name: bond0
        members: [eno1, eno2]
        mode: 802.3ad
        lacp_time: fast
    vlans:
      - {name: storage0, parent: bond0, tag: 5}
      - {name: bond0.100, parent: bond0, tag: 100}
    bridges:
      - name: br100
        ports:
          - name: bond0.100
    addresses:
      - name: storage0
        addresses: [10.0.5.11/24]

- name: One bridge that keeps the VLANs apart, declared as for Open vSwitch
  drover.kvm.networkd:
    bridges:
      - name: br0
        vlan_filtering: true
        bonds:
          - {name: bond0, members: [eno1, eno2], mode: balance-tcp, lacp: active, lacp_time: fast}
        ports:
          - {name: storage0, type: internal, tag: 5}
    addresses:
      - name: storage0
        addresses: [10.0.5.11/24]

- name: The only NIC goes under a bridge, and its address with it; all comes back unless Ansible can connect again
  drover.kvm.networkd:
    confirm_timeout: 60
    bridges:
      - name: br0
        ports:
          - name: eno1
    addresses:
      - name: br0
        addresses: [192.0.2.11/24, "2001:db8::11/64"]
        gateway: [192.0.2.1, "2001:db8::1"]
        dns: [192.0.2.53]

- name: Look what is not as declared; all four lists, since a missing one means that there is nothing of it
  drover.kvm.networkd:
    bonds: "{{ linux_bridge_bonds }}"
    vlans: "{{ linux_bridge_vlans }}"
    bridges: "{{ linux_bridge_bridges }}"
    addresses: "{{ linux_bridge_addresses }}"
  check_mode: true
  diff: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode what would be done, in words.
  returned: always
  type: list
  elements: str
  sample: ["make bridge br100", "put bond0.100 into br100"]
resource:
  description:
    - C(files), the lines of each file of this module, and C(links), what the kernel has of each declared interface,
      after the task (in check mode as it would be).
  returned: always
  type: dict
runtime:
  description: What was seen last.
  returned: always
  type: dict
  contains:
    links:
      description: By name, the operational C(state), C(setup) and the C(file) that counts, in the words of networkctl.
      type: dict
    bonds:
      description: By name, C(mode) and C(members) with C(mii), C(speed) (Mbit/s), and with LACP C(partner),
        C(aggregated) and C(in_step).
      type: dict
confirmed:
  description: Whether the change was confirmed in time.
  returned: when a change was made with O(confirm_timeout)
  type: bool
rollback:
  description: What takes the change back, C(unit) of systemd, C(file) with the state as it was, and C(seconds).
  returned: when a change was made with O(confirm_timeout)
  type: dict
error:
  description:
    - Kind of the failure. V(Invalid) for wrong options, V(Refused) for what would cut off something or belongs to
      others, V(NotFound) for a NIC or program that is missing, V(TimedOut) with what is not there yet, V(Failed) with
      the words of the system.
  returned: failure
  type: str
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _lifelines, _networkctl
from ansible_collections.drover.kvm.plugins.module_utils._bridge.checks import check_once
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between
from ansible_collections.drover.kvm.plugins.module_utils._networkd import (
    apply,
    devices,
    files,
    judge,
    lacp,
    live,
    options,
    restore,
    rollback,
    words,
)
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("bonds", type="list", elements="dict", default=[], fields=options.BOND, check=check_once),
    Field("vlans", type="list", elements="dict", default=[], fields=options.VLAN, check=check_once),
    Field("bridges", type="list", elements="dict", default=[], fields=options.BRIDGE, check=check_once),
    Field("addresses", type="list", elements="dict", default=[], fields=options.ADDRESS, check=check_once),
    Field("allow_connection_interface", type="bool", default=False),
    Field("wait_lacp", type="int", default=30, check=between(0, 600)),
    Field("confirm_timeout", type="int", check=between(5, 3600)),
    Field("timeout", type="int", default=60, check=between(1, 600)),
)
PREFIX = _networkctl.PREFIX
PAUSE = 0.3
# Seconds after which what is still not right is set up once more. They double: a busy networkd begins again when asked.
PATIENCE = 5


class Network(Resource):
    """The whole network of the host that is declared here; `client` is a Networkd."""

    host: live.Host
    table: devices.Devices
    lacp: dict[str, Any]
    armed: dict[str, Any] | None = None
    changed = False
    nudged = 0.0
    patience = PATIENCE
    wish: dict[str, Any]

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[_networkctl.Networkd]:
        """The machine's own networkd."""
        return nullcontext(_networkctl.Networkd())

    @property
    def name(self) -> str:
        """There is one such thing on a machine."""
        return "network"

    def read(self) -> State:
        """Our files, and what is declared or named in them as the kernel has it."""
        self.table = devices.declared(self.params)
        self.host = live.Host.read(self.client)
        self.lacp = lacp.bonds(self.client.bonds())
        texts = files.named(self.host.files, PREFIX)
        netdevs = files.named(self.host.files, PREFIX, "netdev")
        found = {}
        for name in sorted({*self.table, *texts, *netdevs}):
            shape = live.wanted(self.table[name]) if name in self.table else live.LEAVING
            if name in self.host.links:
                found[name] = live.seen(self.host, name, shape, texts.get(name, ""))
        return {"files": files.lines(self.host.files), "links": found}

    def wanted(self, before: State) -> State:
        """What is declared. Raises Invalid, NotFound or Refused."""
        texts = files.lines(files.render(self.table, PREFIX))
        after: dict[str, Any] = {"files": texts, "links": live.all_wanted(self.table)}
        if self.changed:
            return after
        judge.check(self.host, self.table, PREFIX)
        judge.check_leaving(self.host, self.table, PREFIX)
        safe = self.params["allow_connection_interface"] or self.params["confirm_timeout"]
        if not safe:
            judge.check_lifeline(self.host, before or {}, after, _lifelines.came_in(), PREFIX)
        return after

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each sentence; the first does it all, since networkd reads all files at once."""
        texts = words.words(before or {}, wanted or {}, PREFIX)
        if self.host.pending and not texts:
            texts = ["finish the change that was interrupted"]
        if not texts:
            self._prove()
            return []
        if not self.armed:
            rollback.UNDO.check(self.params["confirm_timeout"], self.params["wait_lacp"])
        first = Step(texts[0], lambda: self._apply(before or {}, wanted or {}), self._there, self.params["timeout"])
        return [first, *(Step(text, _nothing) for text in texts[1:])]

    def result(self, state: State) -> dict[str, Any]:
        """The declaration, and what networkd and the bonds say now."""
        armed = {"rollback": self.armed} if self.armed else {}
        return {"resource": state, "runtime": live.runtime(self.host, self.table, self.lacp), **armed}

    def _apply(self, before: dict[str, Any], wanted: dict[str, Any]) -> None:
        self.changed, self.wish = True, wanted
        texts = files.render(self.table, PREFIX)
        remake, again = live.unlike(before["links"], wanted["links"])
        fresh = files.named(texts, PREFIX).keys() - files.named(self.host.files, PREFIX).keys()
        taken = [name for name in fresh if self.table[name]["kind"] == "nic"]
        with rollback.UNDO.protected(
            self.params["confirm_timeout"], lambda: restore.save(self.client, self.host.files, taken)
        ) as self.armed:
            self.nudged = time.monotonic()
            apply.apply(self.client, texts, remake, again)

    def _there(self) -> object:
        """Whether the kernel shows it all; what does not come by itself is set up once more."""
        begin = time.monotonic()
        now = self.read() or {}
        # Where a look takes long, at most half of the time goes into looking.
        pause = max(PAUSE, time.monotonic() - begin)
        left = words.words(now, self.wish, PREFIX)
        if not left:
            self.client.end()
            return True
        failed = [name for name in self.table if self.host.managed.get(name, {}).get("AdministrativeState") == "failed"]
        if failed:
            raise Failed(f"systemd-networkd failed to set up {', '.join(failed)}; its journal (journalctl) tells why")
        if time.monotonic() > self.nudged + self.patience:
            self.patience *= 2
            apply.nudge(self.client, files.render(self.table, PREFIX), live.late(now["links"], self.wish["links"]))
            self.nudged = time.monotonic()
        time.sleep(pause)
        return "; ".join(left)

    def _prove(self) -> None:
        """Nothing is left to write: are our files the ones that count, and does LACP work?"""
        problems = judge.shadowed(self.host, self.table, PREFIX)
        if problems:
            raise Failed(f"systemd-networkd does not use what was written: {'; '.join(problems)}", problems=problems)
        seconds = self.params["wait_lacp"]
        if seconds and self._in_step() is not True:
            Step("LACP of the bonds negotiates", _nothing, self._in_step, seconds).run()

    def _in_step(self) -> object:
        self.lacp, wrong, self.warnings = lacp.look(self.client, self.table)
        return "; ".join(wrong) or True


def _nothing() -> None:
    """What the first step did already."""


def main() -> None:
    """Run the module."""
    run_module(Network, FIELDS)


if __name__ == "__main__":
    main()
