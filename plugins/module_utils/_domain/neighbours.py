# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What two VMs must not share, on one node or on two: name, UUID, MAC and IP addresses, disks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from .._blocks import other_names
from .._ceph_conf import may_be
from .._errors import Refused
from .._xml import Property, devices, parse
from . import metadata
from .facts import disk_facts, nic_facts, unit_of

if TYPE_CHECKING:
    from .._libvirt import Domain

Claim = tuple[str, str]
ONE_HOME = "move it with drover.kvm.migrate, or remove the copy that is not the good one"
# To one that is only now made nothing of what is there has to move.
BESIDE = "give this one another name (playbooks restore_vm, clone_vm: -e new_name=NAME), or remove the other one first"


class Survey(list[dict[str, Any]]):
    """What the domains of a node hold, as plain data that a child process can hand over.

    It finds who holds a thing without looking at each: a site has thousands, and a task defines hundreds.
    """

    def __init__(self, domains: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(domains)
        self._holders: dict[Claim, list[dict[str, Any]]] = {}
        self._counted = 0

    def who(self, claim: Claim) -> list[dict[str, Any]]:
        """The domains that hold it; those of a name hold `("name", NAME)`."""
        for one in self[self._counted :]:
            for kind, value in [("name", one["name"]), *one["claims"]]:
                self._holders.setdefault((kind, value), []).append(one)
        self._counted = len(self)
        return self._holders.get(claim, [])


def claims_of(root: Element) -> set[Claim]:
    """What a definition holds for itself, and as `medium` what it only reads, which it may share."""
    found = {("UUID", str(Property("uuid").get(root)))}
    macs = {(nic_facts(nic)["mac"] or "").lower() for nic in devices(root, "interface")} - {""}
    found |= {("MAC address", mac) for mac in macs}
    for mac, said in metadata.NICS.get(root).items():
        own = said.get("addresses") if mac in macs else None
        found |= {("IP address", text.partition("/")[0]) for text in (own.split(",") if own else ())}
    volumes = metadata.DISKS.get(root)
    for element in devices(root, "disk"):
        disk = disk_facts(element)
        kind = "medium" if disk["readonly"] or disk["device"] != "disk" else "disk"
        found |= {(kind, name) for name in (names_of(disk["identity"]) if disk["identity"] else ())}
        # A volume is called so where the kernel of a node has it.
        declared = volumes.get(unit_of(element) or "", {}).get("wwid")
        found |= {(kind, f"device:{declared}")} if declared else set()
    return found


def names_of(identity: str) -> list[str]:
    """All names of a disk's storage: two disks are one storage as soon as they have one of them in common."""
    return [*may_be(identity), *other_names(identity)]


def _definitions(domain: Domain) -> list[str]:
    return [xml for xml in dict.fromkeys((domain.xml, domain.live_xml)) if xml]


def survey(domains: Iterable[Domain]) -> Survey:
    """What the domains of a node hold, as they run and as they are defined."""
    return Survey(
        {
            "name": one.name,
            "active": one.state != "stopped",
            "claims": sorted(map(list, set().union(*(claims_of(parse(xml)) for xml in _definitions(one))))),
        }
        for one in domains
    )


def check_definition(
    name: str, new: set[Claim], others: Mapping[str, list[dict[str, Any]]], active: bool = False
) -> None:
    """Refuse a definition that claims what another domain has; `others` are surveys by node.

    With `active` only those that run count.
    """
    for node, domains in others.items():
        known = domains if isinstance(domains, Survey) else Survey(domains)
        for kind, value in sorted(claim for claim in new if claim[0] != "medium"):
            for other in known.who((kind, value)):
                if other["name"] != name and (other["active"] or not active):
                    raise Refused(
                        f"{kind} {value} of {name} belongs to {other['name']} on {node}", other=other["name"], node=node
                    )


def check_elsewhere(name: str, uuid: str, peers: Mapping[str, list[dict[str, Any]]], mend: str = ONE_HOME) -> None:
    """Refuse a VM that another node has by its name or its UUID, running or only defined; `mend` says what to do."""
    for node, domains in peers.items():
        known = domains if isinstance(domains, Survey) else Survey(domains)
        for other in [*known.who(("name", name)), *known.who(("UUID", uuid))]:
            state = "runs" if other["active"] else "is defined"
            what = name if other["name"] == name else f"UUID {uuid} of {name}"
            alias = "" if other["name"] == name else f" as {other['name']}"
            raise Refused(
                f"{what} {state} on {node}{alias}; a VM has one home: {mend}",
                node=node,
                active=other["active"],
            )


def check_start(name: str, held: set[Claim], others: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse to start a VM while a running one has its disk or its address."""
    check_definition(name, held, others, active=True)
