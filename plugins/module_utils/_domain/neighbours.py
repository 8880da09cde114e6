# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What two VMs must not share, on one node or on two: name, UUID, MAC addresses, disks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._blocks import other_names
from .._ceph_conf import may_be
from .._errors import Refused
from .._xml import Property, devices
from .facts import disk_facts, nic_facts

Claim = tuple[str, str]


def claims(facts: Mapping[str, Any]) -> set[Claim]:
    """What a domain holds for itself, from its facts or its sheet. Media that are only read may be shared."""
    found = {("UUID", str(facts["uuid"]))}
    found |= {("MAC address", nic["mac"].lower()) for nic in facts["nics"] if nic["mac"]}
    for disk in facts["disks"]:
        if disk["identity"] and not disk["readonly"] and disk["device"] == "disk":
            names = [*may_be(disk["identity"]), *other_names(disk["identity"])]
            found |= {("disk", name) for name in names}
    return found


def claims_of(root: Element) -> set[Claim]:
    """What a definition holds."""
    return claims(
        {
            "uuid": Property("uuid").get(root),
            "nics": [nic_facts(nic) for nic in devices(root, "interface")],
            "disks": [disk_facts(disk) for disk in devices(root, "disk")],
        }
    )


def survey(facts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the domains of a node hold, as plain data that a child process can hand over."""
    return [
        {"name": one["name"], "active": one["state"] != "stopped", "claims": sorted(map(list, claims(one)))}
        for one in facts
    ]


def check_definition(name: str, new: set[Claim], others: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse a definition that claims what another domain has; `others` are surveys by node."""
    for node, domains in others.items():
        for other in domains:
            shared = sorted(new & {tuple(claim) for claim in other["claims"]})
            if shared and other["name"] != name:
                kind, value = shared[0]
                raise Refused(
                    f"{kind} {value} of {name} belongs to {other['name']} on {node}", other=other["name"], node=node
                )


def check_elsewhere(name: str, uuid: str, peers: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse a VM that another node has by its name or its UUID, running or only defined."""
    for node, domains in peers.items():
        for other in domains:
            if other["name"] == name or ["UUID", uuid] in [list(claim) for claim in other["claims"]]:
                state = "runs" if other["active"] else "is defined"
                what = name if other["name"] == name else f"UUID {uuid} of {name}"
                alias = "" if other["name"] == name else f" as {other['name']}"
                raise Refused(
                    f"{what} {state} on {node}{alias}; a VM has one home: move it with drover.kvm.migrate, or remove "
                    "the copy that is not the good one",
                    node=node,
                    active=other["active"],
                )


def check_start(name: str, held: set[Claim], others: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse to start a VM while a running one has its disk or its address."""
    running = {node: [one for one in domains if one["active"]] for node, domains in others.items()}
    check_definition(name, held, running)
