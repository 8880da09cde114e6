# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab is, as data: nodes, cables, switches. Pure: nothing here touches the machine."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# A kernel's interface name has at most 15 characters; the switch end of a cable is named NODE-NIC.
INTERFACE_LENGTH = 15
# What is installed; a topology that does not say it has what the default one has, and shares its base.
SOFTWARE = ("suite", "base_packages", "packages", "more_packages")

# Besides the packages of the topology, where there is a Ceph cluster in it.
CEPH_PACKAGES = (
    *("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common", "python3-rados", "python3-rbd"),
    "libvirt-daemon-driver-storage-rbd",
)

KINDS = ("container", "vm")
SIZE = re.compile(r"[1-9][0-9]*[MG]")


class TopologyError(ValueError):
    """The topology is not one that can be built; the message names the field."""


@dataclass(frozen=True)
class Nic:
    """One network card of a node: where its cable goes, and the bond it belongs to (or "")."""

    name: str
    to: str
    network: str = ""
    bond: str = ""
    mtu: int = 1500


@dataclass(frozen=True)
class Node:
    """One server; ``number`` is the last octet of its address in each of its networks.

    ``kind`` is ``container`` or ``vm``; only a VM has ``memory``, ``vcpus`` and ``disks`` (sizes of more disks).
    ``suite`` is a Debian release that is not the one of the topology (or "").
    """

    name: str
    groups: tuple[str, ...]
    number: int
    networks: tuple[str, ...]
    nics: tuple[Nic, ...]
    bounded: tuple[tuple[str, str], ...] = ()
    kind: str = "container"
    memory: str = "512M"
    vcpus: int = 1
    disks: tuple[str, ...] = ()
    suite: str = ""


@dataclass(frozen=True)
class Network:
    """An IPv4 subnet, and its VLAN on the Open vSwitch switches (0: untagged)."""

    name: str
    subnet: str
    vlan: int = 0

    def address(self, number: int) -> str:
        """The address of host ``number`` in this network, without the prefix length."""
        return str(ipaddress.ip_network(self.subnet)[number])

    def interface(self, number: int) -> str:
        """The address with its prefix length, as ``ip address add`` takes it."""
        return f"{self.address(number)}/{ipaddress.ip_network(self.subnet).prefixlen}"


@dataclass(frozen=True)
class Switch:
    """A switch: kind ``bridge`` (the kernel's) or ``openvswitch`` (speaks LACP and RSTP, knows VLANs)."""

    name: str
    kind: str
    network: str = ""
    rstp: bool = False


@dataclass(frozen=True)
class Client:
    """A namespace of its own with one port per network: the place of sinks and pingers."""

    name: str
    switch: str
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Cable:
    """A pair of virtual Ethernet ends; a place is a node, a client, or "switch"."""

    left: str
    left_nic: str
    right: str
    right_nic: str
    mtu: int = 1500


@dataclass(frozen=True)
class CephCluster:
    """A Ceph cluster on the nodes; its daemons talk in ``network``.

    A node of ``monitors`` has a monitor and a manager; ``osds`` says how many OSDs a node has, each of ``size``;
    ``settings`` are more of ceph.conf: section, then name and value.
    """

    network: str
    monitors: tuple[str, ...]
    osds: dict[str, int]
    size: str = "1G"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def numbers(self) -> dict[str, list[int]]:
        """Node → the ids of its OSDs, counted through all nodes by their names."""
        found, first = {}, 0
        for node, count in sorted(self.osds.items()):
            found[node] = list(range(first, first + count))
            first += count
        return found


@dataclass(frozen=True)
class Topology:
    """The whole lab."""

    suite: str
    base_packages: tuple[str, ...]
    packages: tuple[str, ...]
    more_packages: tuple[tuple[str, ...], ...]
    networks: dict[str, Network]
    switches: dict[str, Switch]
    clients: dict[str, Client]
    nodes: dict[str, Node]
    shared: tuple[str, ...]
    ceph: CephCluster | None
    text: str
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def places(self) -> list[str]:
        """Every network namespace of the lab; the switches share the one called ``switch``."""
        return ["switch", *self.clients, *self.nodes]

    def node(self, name: str) -> Node:
        """The node of that name; TopologyError when there is none."""
        if name not in self.nodes:
            raise TopologyError(f"no node {name!r}; the nodes are {', '.join(self.nodes)}")
        return self.nodes[name]

    def release(self, suite: str) -> Topology:
        """The topology as it would be if all nodes had this release ("": its own)."""
        return replace(self, suite=suite, **self.releases[suite]) if suite else self

    def management(self, node: Node) -> str:
        """The address at which the controller reaches a node: that of its first NIC that has a network."""
        network = next(nic.network for nic in node.nics if nic.network)
        return self.networks[network].address(node.number)


def _node(name: str, data: dict[str, Any]) -> Node:
    nics = tuple(Nic(name=nic, **options) for nic, options in data["nics"].items())
    return Node(
        name=name,
        groups=tuple(data["groups"]),
        number=data["number"],
        networks=tuple(data["networks"]),
        nics=nics,
        bounded=tuple(data.get("bounded", {}).items()),
        kind=data.get("kind", Node.kind),
        memory=data.get("memory", Node.memory),
        vcpus=data.get("vcpus", Node.vcpus),
        disks=tuple(data.get("disks", ())),
        suite=data.get("suite", Node.suite),
    )


def _software(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "base_packages": tuple(data["base_packages"]),
        "packages": (*data["packages"], *(CEPH_PACKAGES if "ceph" in data else ())),
        "more_packages": tuple(tuple(group) for group in data.get("more_packages", [])),
    }


def _ceph(data: dict[str, Any]) -> CephCluster:
    return CephCluster(**{**data, "monitors": tuple(data["monitors"])})


def parse(text: str, default: str = "{}") -> Topology:
    """Read a topology from JSON text; TopologyError names what is wrong with it.

    The software that it does not name is that of the topology `default`.
    """
    try:
        known = json.loads(default)
        data = {**{key: known[key] for key in SOFTWARE if key in known}, **json.loads(text)}
        topology = Topology(
            suite=data["suite"],
            **_software(data),
            networks={name: Network(name=name, **options) for name, options in data["networks"].items()},
            switches={name: Switch(name=name, **options) for name, options in data["switches"].items()},
            clients={
                name: Client(name=name, switch=options["switch"], networks=tuple(options["networks"]))
                for name, options in data.get("clients", {}).items()
            },
            nodes={name: _node(name, options) for name, options in data["nodes"].items()},
            shared=tuple(data.get("shared", [])),
            ceph=_ceph(data["ceph"]) if "ceph" in data else None,
            text=json.dumps(data, indent=2, sort_keys=True),
            releases={suite: _software({**data, **own}) for suite, own in data.get("releases", {}).items()},
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TopologyError(f"topology: {type(error).__name__}: {error}") from error
    _check(topology)
    return topology


def _check(topology: Topology) -> None:
    names = [*topology.places(), *topology.switches]
    for name in names:
        if not NAME.fullmatch(name):
            raise TopologyError(f"name {name!r}: small letters, digits and single dashes only")
    if len(set(names)) != len(names):
        raise TopologyError(f"names of nodes, clients and switches must differ: {sorted(names)}")
    for node in topology.nodes.values():
        _check_node(topology, node)
    for client in topology.clients.values():
        if client.switch not in topology.switches or not set(client.networks) <= set(topology.networks):
            raise TopologyError(f"client {client.name}: no such switch or network")
    if topology.ceph:
        _check_ceph(topology, topology.ceph)
    for nic in (nic for cable in cables(topology) for nic in (cable.left_nic, cable.right_nic)):
        if len(nic) > INTERFACE_LENGTH:
            raise TopologyError(f"interface name {nic!r} has more than {INTERFACE_LENGTH} characters")


def _check_node(topology: Topology, node: Node) -> None:
    addressed = [nic.network for nic in node.nics if nic.network]
    for network in (*node.networks, *addressed):
        if network not in topology.networks:
            raise TopologyError(f"node {node.name}: no network {network!r}")
    if not addressed:
        raise TopologyError(f"node {node.name}: no NIC has a network, so nobody could reach it")
    if node.kind not in KINDS:
        raise TopologyError(f"node {node.name}: kind {node.kind!r} is none of {', '.join(KINDS)}")
    if node.suite and (node.suite not in topology.releases or node.kind != "container"):
        raise TopologyError(f"node {node.name}: release {node.suite!r} is not in releases, or the node is no container")
    if not isinstance(node.vcpus, int) or node.vcpus < 1:
        raise TopologyError(f"node {node.name}: vcpus {node.vcpus!r} is no number of processors")
    if not 0 < node.number < 1 << 16:
        raise TopologyError(f"node {node.name}: number {node.number} is none of a host in a network")
    for size in (node.memory, *node.disks):
        if not SIZE.fullmatch(str(size)):
            raise TopologyError(f"node {node.name}: size {size!r} is no number with M or G")


def _check_ceph(topology: Topology, ceph: CephCluster) -> None:
    if not ceph.monitors or not sum(ceph.osds.values()):
        raise TopologyError("ceph: at least one monitor and one OSD")
    if not SIZE.fullmatch(str(ceph.size)):
        raise TopologyError(f"ceph: size {ceph.size!r} is no number with M or G")
    for name in dict.fromkeys((*ceph.monitors, *ceph.osds)):
        node = topology.node(name)
        if node.kind != "container":
            raise TopologyError(f"ceph: node {name} is no container")
        if ceph.network not in [nic.network for nic in node.nics]:
            raise TopologyError(f"ceph: node {name} has no NIC with network {ceph.network!r}")


def cables(topology: Topology) -> list[Cable]:
    """Every cable once. A NIC goes to a switch, or to ``NODE:NIC`` (a direct cable, told at either end or both)."""
    found: dict[frozenset[str], Cable] = {}
    for node in topology.nodes.values():
        for nic in node.nics:
            if nic.to in topology.switches:
                cable = Cable(node.name, nic.name, "switch", f"{node.name}-{nic.name}", nic.mtu)
            else:
                peer, _colon, peer_nic = nic.to.partition(":")
                if peer not in topology.nodes or not any(other.name == peer_nic for other in topology.nodes[peer].nics):
                    raise TopologyError(f"node {node.name}, NIC {nic.name}: no switch or NIC {nic.to!r}")
                cable = Cable(node.name, nic.name, peer, peer_nic, nic.mtu)
            ends = frozenset({f"{cable.left}:{cable.left_nic}", f"{cable.right}:{cable.right_nic}"})
            found.setdefault(ends, cable)
    for client in topology.clients.values():
        for network in client.networks:
            cable = Cable(client.name, network, "switch", f"{client.name}-{topology.networks[network].vlan}")
            found[frozenset({f"{client.name}:{network}", cable.right_nic})] = cable
    return list(found.values())


def far_end(topology: Topology, node: str, nic: str) -> tuple[str, str]:
    """The place and interface at the other end of a NIC's cable; TopologyError when there is no such NIC."""
    for cable in cables(topology):
        if (cable.left, cable.left_nic) == (node, nic):
            return cable.right, cable.right_nic
        if (cable.right, cable.right_nic) == (node, nic):
            return cable.left, cable.left_nic
    raise TopologyError(f"no NIC {nic!r} in {node!r}")


def switch_arguments(topology: Topology, switch: Switch) -> list[str]:
    """The arguments of the one ``ovs-vsctl`` call that makes an Open vSwitch switch and its ports; repeatable."""
    words = ["--", "--may-exist", "add-br", switch.name]
    words += ["--", "set", "bridge", switch.name, "datapath_type=netdev", f"rstp_enable={str(switch.rstp).lower()}"]
    # The switch trunks what the networks declare, and nothing else.
    trunks = ",".join(str(network.vlan) for network in topology.networks.values() if network.vlan)
    for node in topology.nodes.values():
        bonds: dict[str, list[str]] = {}
        for nic in node.nics:
            if nic.to != switch.name:
                continue
            port = f"{node.name}-{nic.name}"
            if nic.bond:
                bonds.setdefault(f"{node.name}-{nic.bond}", []).append(port)
            else:
                words += ["--", "--may-exist", "add-port", switch.name, port, "--", "set", "port", port]
                words += [f"trunks={trunks}"]
        for bond, members in bonds.items():
            words += ["--", "--may-exist", "add-bond", switch.name, bond, *members]
            words += ["--", "set", "port", bond, "lacp=active", "bond_mode=balance-tcp"]
            words += ["other_config:lacp-time=fast", f"trunks={trunks}"]
    for client in topology.clients.values():
        if client.switch == switch.name:
            for name in client.networks:
                vlan = topology.networks[name].vlan
                port = f"{client.name}-{vlan}"
                words += ["--", "--may-exist", "add-port", switch.name, port, f"tag={vlan}"]
    return words


def networkd_files(topology: Topology, node: Node) -> dict[str, str]:
    """File name → text of systemd-networkd's settings: only NICs that have an address from the start."""
    files = {}
    for nic in node.nics:
        if nic.network:
            address = topology.networks[nic.network].interface(node.number)
            files[f"10-{nic.name}.network"] = (
                f"[Match]\nName={nic.name}\n\n[Network]\nAddress={address}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            )
    return files


def hosts_file(topology: Topology) -> str:
    """The text of /etc/hosts: every node by its management address."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{topology.management(other)} {other.name}" for other in topology.nodes.values()]
    return "\n".join(lines) + "\n"
