# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NICs of a VM: plugged into a bridge of the node, with the address that follows from the VM's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Invalid, Refused
from .._fields import Field, between, check_mac, check_name, check_vlan, zero_or
from .._identity import vm_mac
from .._xml import Nonzero, Property, add, add_device, devices, drop, find, make
from . import addresses, bandwidth, metadata, spoofing
from .boot import BOOT_ORDER

ANOTHER = "the guest would see another NIC; take this one off first"
BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)


@dataclass(frozen=True)
class Plug:
    """Into what the NIC is plugged: a `bridge` of the node, or a virtual `network` of libvirt."""

    kind: str

    def get(self, nic: Element) -> str | None:
        """Its name. In a running VM a network shows its bridge, too."""
        network: str | None = Property("source/@network").get(nic)
        return network if self.kind == "network" else None if network else Property("source/@bridge").get(nic)

    def put(self, nic: Element, value: str) -> None:
        """Write it in the place of what was there."""
        nic.set("type", self.kind)
        source = make(nic, "source")
        source.attrib.clear()
        source.set(self.kind, value)


class Vlan:
    """The one VLAN of an access port; None without a VLAN, and for a trunk."""

    def get(self, nic: Element) -> int | None:
        """The VLAN."""
        vlan = find(nic, "vlan")
        tags = [] if vlan is None or vlan.get("trunk") == "yes" else [tag for tag in vlan if tag.tag == "tag"]
        return int(tags[0].get("id", "0")) if len(tags) == 1 else None

    def put(self, nic: Element, value: int) -> None:
        """Write it. Raises Refused for a trunk with a native VLAN."""
        if find(nic, "vlan") is not None and self.get(nic) is None:
            TRUNKS.put(nic, None)
        Property("vlan/tag/@id").put(nic, str(value))


class Link:
    """Whether the guest sees a cable: down, or None where it does."""

    def get(self, nic: Element) -> str | None:
        """The state."""
        return "down" if Property("link/@state").get(nic) == "down" else None

    def put(self, nic: Element, value: str) -> None:
        """Write it."""
        Property("link/@state").put(nic, None if value == "up" else value)


class Queues:
    """How many queues; None for one, which libvirt does not write down."""

    def get(self, nic: Element) -> int | None:
        """The number."""
        number = Property("driver/@queues", int).get(nic) or 1
        return number if number > 1 else None

    def put(self, nic: Element, value: int) -> None:
        """Write it."""
        Property("driver/@queues").put(nic, value if value > 1 else None)


class Trunks:
    """The VLANs that a port carries with their tags; None for an access port and one without VLANs."""

    def get(self, nic: Element) -> list[int] | None:
        """The VLANs."""
        if VLAN.get(nic) is not None:
            return None
        return sorted(int(tag.get("id", "0")) for tag in self._tags(nic)) or None

    def put(self, nic: Element, value: Sequence[int] | None) -> None:
        """Write them; None for a port without VLANs. Raises Refused for a trunk with a native VLAN."""
        old = find(nic, "vlan")
        if any(tag.get("nativeMode") for tag in self._tags(nic)):
            raise Refused("a NIC with several VLANs of which one is native can't be changed yet")
        if old is not None:
            drop(nic, old)
        if value:
            vlan = add(nic, "vlan", {"trunk": "yes"})
            for number in value:
                add(vlan, "tag", {"id": str(number)})

    @staticmethod
    def _tags(nic: Element) -> list[Element]:
        vlan = find(nic, "vlan")
        return [] if vlan is None else [tag for tag in vlan if tag.tag == "tag"]


def check_bridge(value: str) -> str:
    """The name of a network interface of Linux, at most 15 characters."""
    if not BRIDGE.fullmatch(value) or ".." in value:
        raise ValueError(f"{value!r} is not the name of a bridge: 1 to 15 letters, digits and . _ -")
    return value


def check_trunks(value: Sequence[int]) -> list[int]:
    """VLANs, sorted; each once."""
    if len(set(value)) != len(value):
        raise ValueError(f"{value} lists a VLAN twice")
    return sorted(check_vlan(number) for number in value)


VLAN, TRUNKS = Vlan(), Trunks()
NICS: tuple[Field, ...] = (
    Field("bridge", check=check_bridge, place=Plug("bridge"), when="live"),
    Field("network", check=check_name, place=Plug("network")),
    Field("vlan", type="int", check=check_vlan, place=VLAN, when="live"),
    Field("trunks", type="list", elements="int", check=check_trunks, place=TRUNKS, when="live"),
    Field("mac", check=check_mac, place=Property("mac/@address", str.lower), fixed=ANOTHER),
    Field("model", choices=("virtio", "e1000e", "e1000", "rtl8139"), place=Property("model/@type"), fixed=ANOTHER),
    Field("link", choices=("up", "down"), place=Link(), when="live"),
    Field("mtu", type="int", check=zero_or(between(68, 65535)), place=Nonzero("mtu/@size", int)),
    Field("queues", type="int", check=between(1, 256), place=Queues()),
    BOOT_ORDER,
    Field(
        "bandwidth",
        type="dict",
        fields=bandwidth.FIELDS,
        check=bandwidth.check_limits,
        place=bandwidth.BANDWIDTH,
        when="live",
    ),
    Field("anti_spoof", type="bool", when="live"),
    Field("ips", type="list", elements="str", check=spoofing.check_ips, when="live"),
    Field("addresses", type="list", elements="str", check=addresses.check_addresses, when="unseen"),
    Field("gateway", type="list", elements="str", check=addresses.check_gateway, when="unseen"),
    Field("nameservers", type="list", elements="str", check=addresses.check_nameservers, when="unseen"),
)
PLACED = {field.name: field for field in NICS if field.place}


def known(nic: Element) -> bool:
    """Whether this module may change the NIC; others (macvtap, host devices) stay as they are."""
    return nic.get("type") in ("bridge", "network")


def read(nic: Element, said: spoofing.Said | None = None) -> dict[str, Any]:
    """The options of one NIC, None for those without a value; `said` is what the VM's record says of it."""
    options = {name: field.place.get(nic) or None for name, field in PLACED.items()}
    return {**options, **spoofing.read(nic, options["vlan"] is not None, said or {}), **addresses.read(said or {})}


def read_all(root: Element) -> list[dict[str, Any]]:
    """The options of all NICs that this module knows, in their order."""
    said = metadata.NICS.get(root)
    return [read(nic, said.get(nic_mac(nic) or "")) for nic in devices(root, "interface") if known(nic)]


def write(root: Element, wanted: Sequence[Mapping[str, Any]], vm: str, bridges: Mapping[str, str], boot: bool) -> None:
    """Make the NICs of the definition exactly these; a NIC is found by its `mac`, else by its place in the list.

    `bridges` are the node's bridges with their type (ovs, linux, filtering), `boot` says whether the VM boots from the
    network.
    """
    present = [nic for nic in devices(root, "interface") if known(nic)]
    by_mac = {nic_mac(nic): nic for nic in present}
    claimed = [by_mac[options["mac"]] for options in wanted if options.get("mac") in by_mac]
    rest = [nic for nic in present if not any(nic is other for other in claimed)]
    parent, said = find(root, "devices"), metadata.NICS.get(root)
    own: dict[str, dict[str, str]] = {}
    for place, options in enumerate(wanted):
        mac = options.get("mac")
        nic = by_mac.get(mac) if mac else next(iter(rest), None)
        rest = [other for other in rest if other is not nic]
        for one, other in (("vlan", "trunks"), ("bridge", "network")):
            if options.get(one) and options.get(other):
                raise Invalid(f"nics[{place}]: {one} and {other} don't go together", option=f"nics[{place}]")
        if nic is None:
            nic = _add(root, {**options, "mac": mac or _free_mac(root, vm, place)}, bridges, boot, f"nics[{place}]")
        else:
            _change(nic, options, bridges, f"nics[{place}]")
        address = nic_mac(nic) or ""
        before, where = said.get(address, {}), f"nics[{place}]"
        own[address] = {**_spoofing(nic, options, before, where), **addresses.write(options, before, where)}
    for nic in rest:
        if parent is not None:
            drop(parent, nic)
    metadata.NICS.put(root, own)


def nic_mac(nic: Element) -> str | None:
    """The address in lower case."""
    return (Property("mac/@address").get(nic) or "").lower() or None


def _spoofing(nic: Element, options: Mapping[str, Any], said: spoofing.Said, where: str) -> dict[str, str]:
    """Write whether addresses are checked; what is not given stays, and the default follows the port."""
    before, access = read(nic, said), VLAN.get(nic) is not None
    given = {name: options[name] for name in ("anti_spoof", "ips") if options.get(name) is not None}
    wanted = {name: given.get(name, before[name]) for name in ("anti_spoof", "ips")}
    if not wanted["anti_spoof"] and "ips" not in given:
        wanted["ips"] = None
    if not given or (wanted["anti_spoof"], wanted["ips"] or None) == (before["anti_spoof"], before["ips"]):
        return {name: said[name] for name in spoofing.RECORD if name in said}
    return spoofing.write(nic, access, wanted, where)


def _free_mac(root: Element, vm: str, number: int) -> str:
    taken = {nic_mac(nic) for nic in devices(root, "interface")}
    while vm_mac(vm, number) in taken:
        number += 1
    return vm_mac(vm, number)


def _change(nic: Element, options: Mapping[str, Any], bridges: Mapping[str, str], where: str) -> None:
    before = read(nic)
    given = {name: options[name] for name in PLACED if options.get(name) is not None}
    changes = {name: value for name, value in given.items() if (value or None) != before[name]}
    if "model" in changes:
        raise Refused(f"{where}: the model of {before['mac']} is {before['model']}; {ANOTHER}")
    for name, value in changes.items():
        PLACED[name].place.put(nic, value)
    _check_queues(nic, where)
    if {"bridge", "network", "vlan", "trunks"} & set(changes):
        _plug(nic, bridges, where)


def check_alone(options: Mapping[str, Any], where: str) -> None:
    """Raise Invalid for what the options of a new NIC say against each other, wherever it is plugged in."""
    nic = Element("interface")
    for name in ("model", "queues"):
        PLACED[name].place.put(nic, options.get(name) or {"model": "virtio", "queues": 1}[name])
    _check_queues(nic, where)


def _check_queues(nic: Element, where: str) -> None:
    if PLACED["queues"].place.get(nic) and PLACED["model"].place.get(nic) != "virtio":
        raise Invalid(f"{where}: queues are for the model virtio", option=where)


def _add(root: Element, options: dict[str, Any], bridges: Mapping[str, str], boot: bool, where: str) -> Element:
    if not options.get("bridge") and not options.get("network"):
        raise Invalid(f"{where}: bridge is missing; a new NIC needs it, or network", option=where)
    nic = Element("interface")
    values = {**options, "model": options.get("model") or "virtio"}
    for name in ("mac", *(name for name in PLACED if name != "mac")):
        if values.get(name):
            PLACED[name].place.put(nic, values[name])
    _check_queues(nic, where)
    _plug(nic, bridges, where)
    if not boot and not values.get("boot_order"):
        # The boot ROM of a NIC costs a second at each start.
        add(nic, "rom", {"enabled": "no"})
    add_device(root, nic)
    return nic


def _plug(nic: Element, bridges: Mapping[str, str], where: str) -> None:
    """What the type of the bridge asks for in the XML. Raises Invalid or Refused."""
    bridge, network = PLACED["bridge"].place.get(nic), PLACED["network"].place.get(nic)
    kind = bridges.get(bridge)
    port = find(nic, "virtualport")
    if network and find(nic, "vlan") is not None:
        raise Invalid(f"{where}: a network has no vlan and no trunks; give bridge instead", option=where)
    if kind == "ovs":
        if port is None:
            add(nic, "virtualport", {"type": "openvswitch"})
        return
    if kind == "linux" and find(nic, "vlan") is not None:
        raise Invalid(
            f"{where}: {bridge} is a Linux bridge without VLANs; take a bridge that carries this VLAN alone (role "
            f"linux_bridge: a VLAN of the uplink as its port) and no vlan here, one of Open vSwitch, or let {bridge} "
            "keep VLANs apart (vlan_filtering: true, and libvirt 11.0 or later)",
            option=where,
        )
    if port is not None:
        drop(nic, port)
