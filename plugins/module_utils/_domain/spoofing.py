# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the addresses that a NIC sends from are checked, and which they may be. Pure.

On Open vSwitch the guard of role open_vswitch checks them: the VM's record says what differs from the default, which is
to check each access port. On a Linux bridge libvirt's own filters do it (https://libvirt.org/formatnwfilter.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any
from xml.etree.ElementTree import Element

from .._bridge.taps import OPEN
from .._errors import Invalid
from .._xml import add, drop, find

# libvirt's stock filters: for any address of the NIC's MAC, and for declared addresses of IPv4.
FILTERS = ("no-mac-spoofing", "clean-traffic")
RECORD = ("anti_spoof", "ips")
Said = Mapping[str, str]


def check_ips(value: Sequence[str]) -> list[str]:
    """Addresses and networks, each once, in the shortest writing."""
    found = []
    for text in value:
        try:
            network = ip_network(text)
        except ValueError:
            raise ValueError(f"{text!r} is neither an IP address nor a network such as 192.0.2.0/28") from None
        if not network.prefixlen or network.is_multicast:
            raise ValueError(f"{text!r} are no addresses that a VM can have")
        found.append(str(network.network_address) if network.num_addresses == 1 else str(network))
    if len(set(found)) != len(found):
        raise ValueError(f"{', '.join(value)}: an address is listed twice")
    return sorted(found)


def read(nic: Element, access: bool, said: Said) -> dict[str, Any]:
    """The options `anti_spoof` and `ips` as they are."""
    if _switched(nic):
        on = access and said.get("anti_spoof") != "no"
        ips = said.get("ips", "")
        return {"anti_spoof": on, "ips": sorted(ips.split(",")) if on and ips else None}
    found = find(nic, "filterref")
    on = found is not None and found.get("filter") in FILTERS
    ips_there = [child.get("value", "") for child in (found if found is not None else ()) if child.get("name") == "IP"]
    return {"anti_spoof": on, "ips": sorted(ips_there) or None if on else None}


def write(nic: Element, access: bool, wanted: Mapping[str, Any], where: str) -> dict[str, str]:
    """Make it so; returns what the record shall say of this NIC. Raises Invalid."""
    on, ips = wanted["anti_spoof"], wanted["ips"] or []
    if ips and not on:
        raise Invalid(f"{where}: ips are checked with anti_spoof only, which is off", option=where)
    if _switched(nic):
        if on and not access:
            raise Invalid(
                f"{where}: anti_spoof needs a port with one VLAN; give it vlan, or turn anti_spoof off", option=where
            )
        return {"ips": ",".join(ips)} if ips else {} if on or not access else {"anti_spoof": "no"}
    _filter(nic, on, ips, where)
    return {}


def _switched(nic: Element) -> bool:
    port = find(nic, "virtualport")
    return port is not None and port.get("type") == "openvswitch"


def _filter(nic: Element, on: bool, ips: Sequence[str], where: str) -> None:
    if any(":" in address or "/" in address for address in ips):
        raise Invalid(
            f"{where}: on a Linux bridge libvirt's filter takes single addresses of IPv4 only; leave ips out",
            option=where,
        )
    old = find(nic, "filterref")
    ours = old is not None and old.get("filter") in FILTERS
    if old is not None and not ours and on:
        raise Invalid(f"{where}: the NIC has a filter of its own ({old.get('filter')}); leave anti_spoof out")
    if old is not None and ours:
        drop(nic, old)
    if on:
        parent = add(nic, "filterref", {"filter": FILTERS[bool(ips)]})
        for address in ips:
            add(parent, "parameter", {"name": "IP", "value": address})


def policy(said: Said) -> str:
    """What the guard reads of a port on Open vSwitch, in its external id; empty for the default."""
    return OPEN if said.get("anti_spoof") == "no" else said.get("ips", "")
