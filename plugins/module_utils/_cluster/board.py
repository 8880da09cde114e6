# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The board of a plan in the making: who is where at this step, and what hinders a guest from being on a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .model import Cluster, Guest, Obstacle, size_text

# A node with a guest of the same tag of `affinity` may be busier than another one by this, and is taken all the same.
COMPANY = 0.1
FIRMWARE = {"efi": "UEFI", "tpm": "emulated TPM"}


class Board:
    """Where each guest is after the moves so far. All questions are about this moment."""

    def __init__(self, cluster: Cluster, closed: Iterable[str] = (), opened: Iterable[str] = ()) -> None:
        """`closed` nodes take no guest in this plan; `opened` ones do although they are still cordoned."""
        self.cluster = cluster
        self.closed = frozenset(closed)
        self.opened = frozenset(opened)
        self.capacity = {name: cluster.capacity(name) for name in cluster.nodes}
        self.used = dict.fromkeys(cluster.nodes, 0)
        self.vcpus = dict.fromkeys(cluster.nodes, 0)
        self.paged: Counter[tuple[str, int]] = Counter()
        self.at: dict[str, dict[tuple[str, str], Guest]] = {name: {} for name in cluster.nodes}
        self._fitting: dict[tuple[tuple[str, str], str], Obstacle | None] = {}
        for guest in cluster.guests:
            self.put(guest, guest.node)

    def put(self, guest: Guest, node: str, out_of: str = "") -> None:
        """Put the guest on the node, and take it away from `out_of`."""
        for name, sign in ((node, 1), (out_of, -1)):
            if name:
                self.used[name] += sign * self.cluster.need(guest)
                self.vcpus[name] += sign * (guest.vcpus if guest.active else 0)
                if guest.page:
                    self.paged[name, guest.page] += sign * self.cluster.paged(guest)
        if out_of:
            del self.at[out_of][guest.key]
        if node:
            self.at[node][guest.key] = guest

    def free(self, node: str) -> int:
        """The bytes that guests may still take; below zero where too much is promised already."""
        return self.capacity[node] - self.used[node]

    def short_of_pages(self, guest: Guest, node: str) -> bool:
        """Whether the node has too few huge pages of its size left for the guest."""
        need = self.cluster.paged(guest)
        return need > 0 and need > self._pages_left(guest, node)

    def _pages_left(self, guest: Guest, node: str) -> int:
        return self.cluster.nodes[node].pages.get(guest.page, 0) - self.paged[node, guest.page]

    def rivals(self, guest: Guest, node: str) -> list[Guest]:
        """The guests on the node that share a tag of an anti-affinity rule with this one, by name."""
        groups = self.cluster.groups(guest)
        if not groups:
            return []
        others = [other for other in self.at[node].values() if other.key != guest.key]
        return sorted((o for o in others if groups & self.cluster.groups(o)), key=lambda other: other.key)

    def hindrance(self, guest: Guest, node: str) -> Obstacle | None:
        """Why the guest can't be on that node now; None when it can."""
        return self.lasting(guest, node) or self.crowded(guest, node)

    def crowded(self, guest: Guest, node: str) -> Obstacle | None:
        """What of those that are on the node now hinders the guest, which is not among them; None when nothing does."""
        rivals = self.rivals(guest, node)
        if rivals:
            tags = ", ".join(sorted(self.cluster.groups(guest) & self.cluster.groups(rivals[0])))
            text = f"holds {rivals[0].name}, and the two must be kept apart (tag {tags})"
            return Obstacle("anti_affinity", text, "add a node, or take the tag out of anti_affinity for this plan")
        need = self.cluster.need(guest)
        if need > self.free(node):
            text = f"has {size_text(max(0, self.free(node)))} of memory left"
            mend = f"{guest.name} needs {size_text(need)} on one node: shut VMs down, add memory or a node"
            return Obstacle("memory", text, mend)
        if self.short_of_pages(guest, node):
            page = size_text(guest.page)
            text = f"has {size_text(max(0, self._pages_left(guest, node)))} left in huge pages of {page}"
            mend = f"reserve {size_text(guest.memory)} more in huge pages of {page} on one node, at its boot"
            return Obstacle("hugepages", text, mend)
        return None

    def starts(self, guest: Guest, node: str) -> bool:
        """Whether it could start there, where the guest can be, if those that are shut off there started too."""
        if guest.active:
            return True
        groups = guest.tags & self.cluster.rules.anti_affinity
        off = [guest, *(other for other in self.at[node].values() if not other.active)]
        paged = sum(each.memory for each in off if each.page == guest.page)
        return (
            not any(groups & other.tags for other in self.at[node].values())
            and sum(map(self.cluster.awake, off)) <= self.free(node)
            and (not guest.page or paged <= self._pages_left(guest, node))
        )

    def load(self, guest: Guest, node: str) -> float:
        """How busy the node would be with the guest: share of memory taken, plus vCPUs per thread."""
        return self.filled(node, guest) + (self.vcpus[node] + guest.vcpus) / self.cluster.nodes[node].threads

    def wish(self, guest: Guest, node: str) -> tuple[int, float]:
        """Least where the guest would best be: the rivals in the failure domain, then the load, lower for company."""
        rules = self.cluster.rules
        if not rules.failure_domains and not rules.affinity:
            return 0, self.load(guest, node)
        domain = rules.failure_domains.get(node)
        near = [name for name, other in rules.failure_domains.items() if other == domain and name in self.at]
        rivals = sum(len(self.rivals(guest, name)) for name in near) if domain is not None and guest.tags else 0
        kin = guest.tags & rules.affinity
        company = bool(kin) and any(kin & other.tags for other in self.at[node].values() if other.active)
        return rivals, self.load(guest, node) - COMPANY * company

    def filled(self, node: str, guest: Guest | None = None) -> float:
        """The share of the memory for guests that is taken on the node, with this one if one is named."""
        more = self.cluster.need(guest) if guest else 0
        return (self.used[node] + more) / max(1, self.capacity[node])

    def lasting(self, guest: Guest, node: str) -> Obstacle | None:
        """What hinders it there for the whole plan, whatever moves."""
        key = (guest.key, node)
        if key not in self._fitting:
            self._fitting[key] = self.shut(node) or self._misfit(guest, node)
        return self._fitting[key]

    def targets(self) -> list[str]:
        """The nodes that may take guests at all, by name."""
        return [name for name in sorted(self.cluster.nodes) if self.shut(name) is None]

    def shut(self, name: str) -> Obstacle | None:
        """Why the node takes no guest in this plan, whichever; None when it does."""
        node = self.cluster.nodes[name]
        if name in self.closed:
            return Obstacle("emptied", "is a node that VMs shall leave", "name fewer nodes at a time")
        if not node.reachable:
            return Obstacle("node_unreachable", "does not answer", f"bring {name} back, then plan again")
        if not node.vm_capable:
            return Obstacle("not_vm_capable", "is not meant for VMs", "add a hypervisor")
        if node.cordon is not None and name not in self.opened:
            return Obstacle("cordoned", f"is cordoned ({node.cordon})", f"undrain {name}")
        return None

    def _misfit(self, guest: Guest, name: str) -> Obstacle | None:
        node, rules = self.cluster.nodes[name], self.cluster.rules
        if name not in rules.pins.get(guest.name, (name,)):
            pins = ", ".join(sorted(rules.pins[guest.name])) or "none"
            words = f"is not among the nodes it is pinned to ({pins})"
            return Obstacle("pinned", words, "change what pins and avoid say of it")
        missing = sorted(guest.bridges - node.bridges)
        if missing:
            text = f"has no bridge {', '.join(missing)}"
            return Obstacle("bridge", text, f"create the bridge on {name} (role open_vswitch)")
        if lost := self.cluster.lost_vlans(guest, name):
            text = f"does not let out {', '.join(f'VLAN {vlan} of {bridge}' for bridge, vlan in lost)}"
            mend = f"let the bridge's uplink on {name} carry it (trunks of role open_vswitch), and its switch port"
            return Obstacle("vlan", text, mend)
        if guest.machine and node.machine_types and guest.machine not in node.machine_types:
            mend = "upgrade QEMU there, or give the VM an older machine type and power it off and on"
            return Obstacle("machine_type", f"does not offer machine type {guest.machine}", mend)
        if guest.virt_type and node.virt_types and guest.virt_type not in node.virt_types:
            text = f"does not offer virtualisation type {guest.virt_type}"
            return Obstacle("virt_type", text, "switch on VT-x or AMD-V in its firmware and load the kvm module")
        if lacking := guest.firmware - (guest.firmware if node.firmware is None else node.firmware):
            text = f"has no {' and no '.join(FIRMWARE[what] for what in sorted(lacking))}"
            return Obstacle("firmware", text, f"install it on {name} (hypervisor_firmware of role hypervisor)")
        if guest.lease and guest.lease != node.leases and any(each.leases for each in self.cluster.nodes.values()):
            text = f"does not have the directory of its lease, {guest.lease} (its own: {node.leases or 'not set'})"
            mend = "mount it there and apply role hypervisor; stop and start a VM whose lease is in an older one"
            return Obstacle("lease", text, mend)
        return self._cpu(guest, name)

    def _cpu(self, guest: Guest, name: str) -> Obstacle | None:
        rules = self.cluster.rules
        mend = "give the VM the cluster's baseline CPU and power it off and on once"
        there = self.cluster.runs_cpu(guest, name)
        if there is not True:
            return Obstacle("cpu", f"can't run its CPU ({there or 'incompatible'})", mend)
        back = self.cluster.runs_cpu(guest, guest.node)
        if back is not True and rules.check_return and guest.node != name:
            text = f"is a way without return: {guest.node} could not take its CPU again ({back or 'incompatible'})"
            return Obstacle("cpu_return", text, f"{mend}; or check_return: false if it shall not come back")
        return None
