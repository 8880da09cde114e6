# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How libvirt plugged the NICs of a running VM: from its live XML, what the switch must show of each tap. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .._bridge.taps import POLICY
from .._hypervisor import Domain
from .._xml import Property, devices, find, parse, text_of
from . import bandwidth, metadata, nics, spoofing

Tap = dict[str, Any]
NATIVE = {"tagged": "native-tagged", "untagged": "native-untagged"}


def taps(domain: Domain) -> list[Tap]:
    """The taps of a running VM that belong into a bridge; other NICs (macvtap, user, vhost-user) have none."""
    if not domain.live_xml:
        return []
    root = parse(domain.live_xml)
    said = metadata.NICS.get(root)
    found = [nic for nic in devices(root, "interface") if _is_plugged(nic)]
    return [_tap(domain, nic, said.get(nics.nic_mac(nic) or "", {})) for nic in found]


def of_all(domains: Sequence[Domain]) -> dict[str, Tap]:
    """The taps of all running VMs by their names."""
    return {tap["tap"]: tap for domain in domains for tap in taps(domain)}


def _is_plugged(nic: Element) -> bool:
    return nic.get("type") in ("bridge", "network") and bool(_value(nic, "source", "bridge") and _name(nic))


def _name(nic: Element) -> str | None:
    return _value(nic, "target", "dev")


def _value(nic: Element, path: str, attribute: str) -> str | None:
    found = find(nic, path)
    return None if found is None else found.get(attribute)


def _tap(domain: Domain, nic: Element, said: spoofing.Said) -> Tap:
    switched = _value(nic, "virtualport", "type") == "openvswitch"
    return {
        "tap": _name(nic),
        "vm": domain.name,
        "mac": nics.nic_mac(nic),
        "bridge": _value(nic, "source", "bridge"),
        "type": "ovs" if switched else "linux",
        "speaks": domain.state == "running" and _value(nic, "link", "state") != "down",
        "limits": bandwidth.parameters(bandwidth.BANDWIDTH.get(nic)) if find(nic, "bandwidth") is not None else {},
        **_vlans(nic),
        "external_ids": dict(_ids(domain, nic, said)) if switched else {},
    }


def _vlans(nic: Element) -> dict[str, Any]:
    """As libvirt itself writes them: a native VLAN is the tag, and a trunk lists every VLAN that it carries."""
    vlan = find(nic, "vlan")
    tags = [] if vlan is None else [tag for tag in vlan if tag.tag == "tag"]
    numbers = [int(tag.get("id", "0")) for tag in tags]
    native = next((tag for tag in tags if tag.get("nativeMode")), None)
    trunk = len(tags) > 1 or (vlan is not None and vlan.get("trunk") == "yes")
    access = numbers[0] if numbers and not trunk else None
    return {
        "tag": access if native is None else int(native.get("id", "0")),
        "trunks": sorted(numbers) if trunk else [],
        "vlan_mode": None if native is None else NATIVE[native.get("nativeMode", "untagged")],
    }


def _ids(domain: Domain, nic: Element, said: spoofing.Said) -> Iterator[tuple[str, str]]:
    yield "attached-mac", nics.nic_mac(nic) or ""
    yield "iface-status", "active"
    yield "vm-id", domain.uuid
    parameters = find(nic, "virtualport/parameters")
    for attribute, key in (("interfaceid", "iface-id"), ("profileid", "port-profile")):
        value = None if parameters is None else parameters.get(attribute)
        if value:
            yield key, value
    policy = spoofing.policy(said)
    if policy:
        yield POLICY, policy


def link_xml(domain: Domain, tap: str) -> tuple[str, str]:
    """The live XML of the NIC with its link down, and as it is; libvirt takes a change only with the whole of it."""
    nic = next(nic for nic in devices(parse(domain.live_xml or domain.xml), "interface") if _name(nic) == tap)
    now = text_of(nic).strip()
    Property("link/@state").put(nic, "down")
    return text_of(nic).strip(), now
