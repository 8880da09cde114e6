# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses that a VM's NICs have, as declared: checked, kept in the VM's record, and told to cloud-init. Pure.

Nothing is set on the node: the guest reads them from its seed (network-config version 2, see
https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, Union

from .._errors import Invalid

LISTS = ("addresses", "gateway", "nameservers")
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
Interface = Union[IPv4Interface, IPv6Interface]


def check_addresses(value: Sequence[str]) -> list[str]:
    """Addresses with the length of their network's prefix, in the shortest writing."""
    return _once([_interface(str(text)) for text in value])


def check_gateway(value: Sequence[str]) -> list[str]:
    """At most one router for each family."""
    found = _once([_address(str(text)) for text in value])
    if len({ip_address(text).version for text in found}) != len(found):
        raise ValueError(f"{', '.join(found)}: there is one gateway for IPv4 and one for IPv6")
    return found


def check_nameservers(value: Sequence[str]) -> list[str]:
    """Addresses of DNS servers, in the order in which the guest asks them."""
    return _once([_address(str(text)) for text in value])


def _once(found: list[str]) -> list[str]:
    twice = sorted({text for text in found if found.count(text) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed twice")
    return found


def _interface(text: str) -> str:
    try:
        found = ip_interface(text)
    except ValueError:
        found = None
    if found is None or "/" not in text:
        raise ValueError(f"{text!r} is not an address with its prefix, such as 192.0.2.21/24 or 2001:db8::21/64")
    address, network = found.ip, found.network
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
        raise ValueError(f"{text!r} is no address that a VM can be given")
    if found.version == 4 and network.num_addresses > 2 and address in (network[0], network[-1]):
        raise ValueError(f"{text!r} is the address of the network itself, or of all in it, not one of a VM")
    return str(found)


def _address(text: str) -> str:
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address, such as 192.0.2.1 or fe80::1") from None
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise ValueError(f"{text!r} is no address of another machine")
    return str(found)


def faults(nic: Mapping[str, Any]) -> list[str]:
    """What does not go together in the addresses of one NIC, in words; the values are checked ones."""
    own = [ip_interface(text) for text in nic.get("addresses") or []]
    words = []
    for text in nic.get("gateway") or []:
        router = ip_address(text)
        same = [one for one in own if one.version == router.version]
        if not same:
            words.append(f"gateway {text} needs an address of IPv{router.version} beside it")
        elif any(one.ip == router for one in same):
            words.append(f"gateway {text} is the NIC's own address")
        elif not router.is_link_local and not any(router in one.network for one in same):
            networks = ", ".join(str(one.network) for one in same)
            words.append(f"gateway {text} is outside of {networks}")
    return words


def read(said: Mapping[str, str]) -> dict[str, Any]:
    """The options of one NIC from what the VM's record says of it; None for those without a value."""
    return {name: said[name].split(",") if said.get(name) else None for name in LISTS}


def write(options: Mapping[str, Any], said: Mapping[str, str], where: str) -> dict[str, str]:
    """What the record shall say; options that are not given stay. Raises Invalid."""
    before = read(said)
    wanted = {name: before[name] if options.get(name) is None else options[name] for name in LISTS}
    words = faults(wanted)
    if words:
        raise Invalid(f"{where}: {'; '.join(words)}", option=where)
    return {name: ",".join(value) for name, value in wanted.items() if value}


def network_config(nics: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What cloud-init shall set, by the NICs' MAC addresses; None when no NIC has an address of its own.

    Then cloud-init does what it does by itself: DHCP on the first NIC. NICs without addresses beside others that have
    some are left alone.
    """
    # The key is no name: the guest keeps those that it gives its NICs, with the seed and without.
    found = {f"nic{number}": _ethernet(nic) for number, nic in enumerate(nics) if nic.get("addresses")}
    return {"version": 2, "ethernets": found} if found else None


def _ethernet(nic: Mapping[str, Any]) -> dict[str, Any]:
    ethernet: dict[str, Any] = {
        "match": {"macaddress": nic["mac"]},
        "dhcp4": False,
        "dhcp6": False,
        "addresses": list(nic["addresses"]),
    }
    routes = [{"to": DEFAULT[ip_address(text).version], "via": text} for text in nic.get("gateway") or []]
    if routes:
        ethernet["routes"] = routes
    if nic.get("nameservers"):
        ethernet["nameservers"] = {"addresses": list(nic["nameservers"])}
    return ethernet
