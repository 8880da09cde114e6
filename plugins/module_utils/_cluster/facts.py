# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From facts to the model: results of node_info to nodes and guests, VM sheets to guests that have no place yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._fields import parse_size
from . import fixed, maintenance
from .model import RESTART, RUNNING, Cluster, Guest, Node, Obstacle, Rules

# What decides whether a node can run a guest's CPU.
CPU_KEYS = ("cpu", "virt_type", "machine")
# What a VM gets that asks for huge pages of no certain size: the size that x86 kernels have unless told otherwise.
USUAL_PAGE = 2 * 2**20
# What a VM with such a file of its node takes of a node.
FIRMWARE = {"nvram": "efi", "tpm": "tpm"}


def cluster(
    results: Iterable[Mapping[str, Any]], unreachable: Iterable[str], rules: Rules, dark: Sequence[str] = ()
) -> Cluster:
    """The cluster as the nodes describe it; `unreachable` names those that gave no answer, `dark` those that may be on.

    `results` are results of node_info or the facts in them (the value of `node`). Raises ValueError.
    """
    facts = [_facts(result) for result in results]
    nodes = {name: Node(name, reachable=False) for name in unreachable}
    guests: list[Guest] = []
    for node in facts:
        if node["name"] in nodes:
            raise ValueError(f"node {node['name']} is named twice, or both as seen and as unreachable")
        try:
            nodes[node["name"]] = _node(node)
            guests += [_guest(domain, node["name"], rules, dark) for domain in node.get("domains") or []]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{node['name']}: these are not the facts that node_info gives ({error!r})") from None
    busy = {domain["name"] for node in facts for domain in node.get("domains") or [] if fixed.interrupted(domain)}
    known = tuple(sorted(_copies(guests, busy), key=lambda guest: guest.key))
    return Cluster(dict(sorted(nodes.items())), known, rules)


def guest_cpus(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The different CPUs of the running guests, each with the names of those that have it: node_info's option `cpus`.

    `results` as for `cluster`.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for node in map(_facts, results):
        for domain in (each for each in node.get("domains") or [] if each.get("cpu")):
            # libvirt would take a CPU that is said to be the machine's own for one that every machine has.
            host = node.get("host_cpu") if "host-passthrough" in domain["cpu"].partition(">")[0] else None
            cpu = {key: domain[key] for key in CPU_KEYS} | ({"cpu": host} if host else {})
            found.setdefault((*cpu.values(), bool(host)), []).append(domain["name"])
    return [{**dict(zip((*CPU_KEYS, "host"), kind)), "vms": sorted(names)} for kind, names in found.items()]


def sheet(values: Mapping[str, Any]) -> Guest:
    """A guest that is to be placed, from its sheet: name, memory in bytes, vcpus, tags, nics and the like."""
    tags = values.get("tags") or ()
    return Guest(
        name=values["name"],
        node="",
        uuid=values.get("uuid") or "",
        memory=max(values.get("memory") or 0, values.get("max_memory") or 0),
        vcpus=values.get("vcpus") or 1,
        active=values.get("state") != "stopped",
        tags=frozenset(tags.get("set", tags.get("add", ())) if isinstance(tags, Mapping) else tags),
        bridges=_bridges(values),
        vlans=_vlans(values),
        machine=values.get("machine") or "",
        virt_type=values.get("virt_type") or "",
        nics=tuple(values.get("nics") or ()),
        page=_page(values.get("hugepages")),
        firmware=_firmware(values),
    )


def _facts(result: Mapping[str, Any]) -> Mapping[str, Any]:
    facts = result.get("node", result)
    if not isinstance(facts, Mapping) or not facts.get("name"):
        raise ValueError("this is not a result of node_info: it has no node.name")
    return facts


def _node(facts: Mapping[str, Any]) -> Node:
    cordon = facts.get("cordon")
    return Node(
        name=facts["name"],
        memory=(facts.get("memory") or {}).get("total") or 0,
        threads=max(1, (facts.get("cpus") or {}).get("threads") or 1),
        bridges=frozenset(bridge["name"] for bridge in facts.get("bridges") or []),
        reserved={one["name"]: tuple(one.get("reserved_vlans") or ()) for one in facts.get("bridges") or []},
        vlans={
            one["name"]: frozenset(one["vlans"]) for one in facts.get("bridges") or [] if one.get("vlans") is not None
        },
        machine_types=frozenset(facts.get("machine_types") or []),
        virt_types=frozenset(facts.get("virt_types") or []),
        vm_capable=facts.get("vm_capable") is not False,
        pages={int(size): int(size) * count for size, count in (facts.get("hugepages") or {}).items()},
        leases=facts.get("lease_directory") or "",
        firmware=None if facts.get("firmware") is None else frozenset(facts["firmware"]),
        cordon=None if not cordon else str(cordon.get("reason") or "no reason given"),
    )


def _guest(domain: Mapping[str, Any], node: str, rules: Rules, dark: Sequence[str]) -> Guest:
    metadata, age = domain.get("metadata") or {}, domain.get("age")
    verb, running, recorded = maintenance.verb(domain), domain.get("state") in RUNNING, maintenance.recorded(domain)
    # What is copied along is copied from a VM that runs.
    copies = rules.copy_storage and verb != RESTART
    return Guest(
        name=domain["name"],
        node=node,
        uuid=domain.get("uuid") or "",
        memory=(domain.get("memory") or {}).get("maximum") or 0,
        vcpus=(domain.get("vcpus") or {}).get("current") or 1,
        active=running or recorded,
        tags=frozenset(metadata.get("tags") or []),
        bridges=_bridges(domain),
        vlans=_vlans(domain),
        machine=domain.get("machine") or "",
        virt_type=domain.get("virt_type") or "",
        home=metadata.get("home"),
        fixed=(*fixed.obstacles(domain, copies, rules.eject_cdrom), *fixed.elsewhere(domain, dark)),
        copies=copies and fixed.copied(domain),
        ejects=rules.eject_cdrom and any(map(fixed.holds_medium, domain.get("disks") or [])),
        state_elsewhere=bool(domain.get("state_elsewhere")),
        page=_page(domain.get("hugepages")),
        lease=(domain.get("lease") or "").rpartition("/")[0],
        fresh=age is not None and age < rules.hold_off,
        verb=verb,
        waits=recorded and not running,
        recorded=recorded,
        cpu=bool(domain.get("cpu")),
        firmware=frozenset(FIRMWARE[name] for name in domain.get("state_files") or [] if name in FIRMWARE),
    )


def _page(said: Any) -> int:
    """The size of huge pages in bytes; `said` is True for the usual one, and None or False for none."""
    return USUAL_PAGE if said is True else parse_size(said) if said else 0


def _firmware(values: Mapping[str, Any]) -> frozenset[str]:
    """What a sheet takes of efi and tpm."""
    asked = {"efi": values.get("firmware") == "efi", "tpm": values.get("tpm") not in (None, "none")}
    return frozenset(name for name, given in asked.items() if given)


def _bridges(domain: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(nic["bridge"] for nic in domain.get("nics") or [] if nic.get("bridge"))


def _vlans(domain: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
    """What its NICs ask for by name; one without a VLAN has what its bridge gives."""
    asked = [(nic.get("bridge"), nic.get("vlan"), nic.get("trunks") or ()) for nic in domain.get("nics") or []]
    return frozenset(
        (bridge, int(each)) for bridge, vlan, trunks in asked if bridge for each in ([vlan] if vlan else trunks)
    )


def _copies(guests: Sequence[Guest], busy: set[str]) -> list[Guest]:
    """The guests; one that several nodes name can't be moved before somebody looked which copy is the VM."""
    nodes: dict[str, dict[str, bool]] = defaultdict(dict)
    for guest in guests:
        for identity in (guest.name, guest.uuid or guest.name):
            nodes[identity][guest.node] = guest.active
    found = []
    for guest in guests:
        where = dict(sorted({**nodes[guest.name], **nodes[guest.uuid or guest.name]}.items()))
        if len(where) > 1:
            obstacle = _twice(guest, where, guest.name in busy)
            said = any(own.reason in ("job", "interrupted") for own in guest.fixed)
            found.append(guest if said else replace(guest, fixed=(obstacle, *guest.fixed)))
        else:
            found.append(guest)
    return found


def _twice(guest: Guest, nodes: Mapping[str, bool], busy: bool) -> Obstacle:
    """Of a guest that is on these nodes; there it is active or not."""
    if busy:
        where = " and ".join(nodes)
        mend = "wait for the migration or let the recovery decide (module migrate, state: recovered), then plan again"
        return Obstacle("interrupted", f"a migration of {guest.name} between {where} was not finished", mend)
    where = " and ".join(f"{node} ({'it runs' if active else 'it is off'} there)" for node, active in nodes.items())
    mend = "look which copy is the VM, undefine the other by hand (virsh undefine), never both and never one that runs"
    return Obstacle("defined_twice", f"{guest.name} (or its UUID) is defined on {where}", mend)
