# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of a whole inventory: planned from numbers, compared with one another, written as hosts file and zone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from ansible_collections.drover.kvm.plugins.module_utils._domain import addresses
from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import declared_nics
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Invalid, NotFound
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid

try:
    import netaddr
except ImportError:
    netaddr = None

PREFIX = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}:[0-9a-f]{2}", re.ASCII)
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
PLAN = ("cidr", "offset")
MOST = 0xFFFF
NICS = 0xFF


def addressing(number: Any, networks: Any, mac_prefix: str = "52:54:01") -> list[dict[str, Any]]:
    """The NICs of the VM of this number, one in each of the networks. Raises Invalid and NotFound."""
    _need_netaddr()
    if isinstance(number, bool) or not str(number).strip().isdecimal() or not 1 <= int(str(number)) <= MOST:
        raise Invalid(f"{number!r} is not the number of a VM; write 1 to {MOST}")
    if mac_prefix and (not PREFIX.fullmatch(mac_prefix.lower()) or int(mac_prefix[:2], 16) & 3 != 2):
        raise Invalid(f"mac_prefix: {mac_prefix!r} is not three bytes such as 52:54:01 that one may choose oneself")
    items = [networks] if isinstance(networks, Mapping) else networks
    if not isinstance(items, Sequence) or isinstance(items, str) or len(items) > NICS:
        raise Invalid("write a list of networks, each with cidr")
    found = []
    for place, network in enumerate(items):
        nic = _nic(int(str(number)), network, f"networks[{place}]")
        if mac_prefix:
            value = int(mac_prefix.replace(":", ""), 16) << 24 | place << 16 | int(str(number))
            nic["mac"] = str(netaddr.EUI(value, dialect=netaddr.mac_unix_expanded))
        found.append(nic)
    return found


def _need_netaddr() -> None:
    if netaddr is None:
        raise NotFound("the Python library netaddr is not installed on the controller (see requirements.txt)")


def _nic(number: int, network: Any, where: str) -> dict[str, Any]:
    if not isinstance(network, Mapping) or not network.get("cidr"):
        raise Invalid(f"{where}: write a dictionary with cidr, a network such as 192.0.2.0/24, or a list of them")
    cidrs = _words(network["cidr"])
    own = [_address(number, cidr, network.get("offset", 0), where) for cidr in cidrs]
    nic = {name: value for name, value in network.items() if name not in PLAN}
    nic["addresses"] = own
    for name in ("gateway", "nameservers"):
        if nic.get(name):
            nic[name] = _words(nic[name])
    words = addresses.faults({"addresses": own, "gateway": nic.get("gateway")})
    if words:
        raise Invalid(f"{where}, number {number}: {'; '.join(words)}")
    return nic


def _address(number: int, cidr: str, offset: Any, where: str) -> str:
    try:
        network = netaddr.IPNetwork(cidr)
        place = network.first + int(offset) + number
    except (netaddr.AddrFormatError, TypeError, ValueError):
        raise Invalid(f"{where}: {cidr!r} with offset {offset!r} is no network such as 2001:db8:100::/64") from None
    if network.ip != network.network:
        raise Invalid(f"{where}: {cidr} is an address; the network is {network.cidr}")
    last = network.last - (1 if network.version == 4 else 0)
    if not network.first < place <= last:
        most = last - network.first - int(offset)
        raise Invalid(f"{where}: {cidr} has no place for number {number}; the last one is {most}")
    return f"{netaddr.IPAddress(place, network.version)}/{network.prefixlen}"


def _words(value: Any) -> list[str]:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else [str(word) for word in value]


def address_faults(machines: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the addresses of these inventory hosts, in words; with `names`, what touches one of these."""
    _need_netaddr()
    found: list[tuple[set[str], str]] = []
    held: dict[tuple[str, Any], list[tuple[str, str]]] = {}
    for machine in machines:
        name = str(machine["inventory_hostname"])
        try:
            nics = declared_nics(machine)
        except DroverError as error:
            found.append(({name}, error.message))
            continue
        held.setdefault(("UUID", _uuid(machine)), []).append((name, f"{name}: vm_uuid"))
        for place, nic in enumerate(nics):
            where = f"{name}: vm_nics[{place}]"
            found += [({name}, f"{where}: {words}") for words in addresses.faults(nic)]
            for claim in _claims(nic):
                held.setdefault(claim, []).append((name, where))
    for (kind, value), holders in held.items():
        if len(holders) > 1:
            both = " and ".join(f"{where.partition(': ')[2]} of {name}" for name, where in holders)
            found.append(({name for name, _where in holders}, f"{kind} {value} is given to {both}"))
    return [words for touched, words in found if names is None or touched & set(names)]


def _uuid(machine: Mapping[str, Any]) -> str:
    given = machine.get("vm_uuid")
    return vm_uuid(str(machine["inventory_hostname"])) if given is None else str(UUID(str(given)))


def _claims(nic: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "MAC address", netaddr.EUI(nic["mac"], dialect=netaddr.mac_unix_expanded)
    for text in nic["addresses"] or []:
        yield "address", netaddr.IPNetwork(text).ip


def hosts_file(machines: Iterable[Mapping[str, Any]], domain: str = "") -> str:
    """Lines of /etc/hosts for these inventory hosts. Raises Invalid and NotFound."""
    suffix = _suffix(domain)
    lines = []
    for name, found in _named(machines, suffix):
        names = " ".join(dict.fromkeys([name + suffix, name]))
        lines += [f"{address} {names}" for address in found]
    return "".join(f"{line}\n" for line in lines)


def dns_zone(machines: Iterable[Mapping[str, Any]], domain: str = "", reverse: bool = False) -> str:
    """Resource records for a zone file, or with `reverse` the pointers back. Raises Invalid and NotFound."""
    suffix = _suffix(domain)
    if reverse and not suffix:
        raise Invalid("domain is missing: a pointer needs the whole name, such as web1.example.org")
    lines = []
    for name, found in _named(machines, suffix):
        for address in found:
            if reverse:
                lines.append(f"{address.reverse_dns} IN PTR {name}{suffix}.")
            else:
                kind = "A" if address.version == 4 else "AAAA"
                lines.append(f"{name}{suffix}{'.' if suffix else ''} IN {kind} {address}")
    return "".join(f"{line}\n" for line in lines)


def _suffix(domain: str) -> str:
    plain = domain.strip(".").lower()
    if plain and not all(LABEL.fullmatch(label) for label in plain.split(".")):
        raise Invalid(f"{domain!r} is not the name of a domain such as example.org")
    return f".{plain}" if plain else ""


def _named(machines: Iterable[Mapping[str, Any]], suffix: str) -> Iterator[tuple[str, list[Any]]]:
    """The name of each machine, without the domain, with its addresses.

    They are those of its first NIC that has some, else its `ansible_host`.
    """
    _need_netaddr()
    for machine in sorted(machines, key=lambda machine: str(machine["inventory_hostname"])):
        name = str(machine["inventory_hostname"]).lower()
        name = name[: -len(suffix)] if suffix and name.endswith(suffix) else name
        texts: list[str] = []
        if machine.get("vm_nics"):
            texts = next((nic["addresses"] for nic in declared_nics(machine) if nic["addresses"]), [])
        texts = texts or [str(machine.get("ansible_host") or name)]
        found = [netaddr.IPNetwork(text).ip for text in texts if "/" in text or _is_address(text)]
        if found and not all(LABEL.fullmatch(label) for label in name.split(".")):
            raise Invalid(f"{name!r} is not a name that DNS allows: letters, digits and hyphens")
        if found:
            yield name, found


def _is_address(text: str) -> bool:
    return bool(netaddr.valid_ipv4(text) or netaddr.valid_ipv6(text))
