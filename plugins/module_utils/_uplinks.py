# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VLANs that leave this machine by the uplinks of its bridges: ports that are neither of VMs nor of itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._errors import Failed, NotFound, TimedOut
from ._run import run

NETWORK = Path("/sys/class/net")
ASK = (
    *("ovs-vsctl", "--timeout=10", "--format=json", "--columns=name,ports", "list", "Bridge"),
    *("--", "--columns=_uuid,interfaces,tag,trunks,vlan_mode", "list", "Port"),
    *("--", "--columns=_uuid,type,external_ids", "list", "Interface"),
)
# What libvirt, or somebody in its manner, writes to the interface of a VM.
OF_A_VM = {"iface-id", "attached-mac", "vm-id"}
# Ends in this machine (internal), or goes who knows where (patch).
NO_UPLINK = {"internal", "patch"}


def carried(apart: Collection[str]) -> dict[str, list[int] | None]:
    """For each bridge the VLANs that any of its uplinks carries, sorted; None: all, or it can't be told.

    It can't be told of a bridge without an uplink. `apart` are those of the kernel's bridges that keep VLANs apart; the
    others of these are left out.
    """
    return {**_linux(apart), **_ovs()}


def _ovs() -> dict[str, list[int] | None]:
    try:
        lines = run(list(ASK), timeout=15).splitlines()
    except (NotFound, Failed, TimedOut):
        return {}
    bridges, ports, interfaces = (_rows(json.loads(line)) for line in lines if line.strip())
    cards = {row["_uuid"]: row for row in interfaces}
    ways = {row["_uuid"]: row for row in ports if any(_is_uplink(cards[one]) for one in row["interfaces"])}
    return {row["name"]: _together(_of_port(ways[port]) for port in row["ports"] if port in ways) for row in bridges}


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table as ovs-vsctl writes them; what may have several values is a list."""
    return [{name: _plain(name, cell) for name, cell in zip(table["headings"], row)} for row in table["data"]]


def _plain(name: str, cell: Any) -> Any:
    if name in ("name", "type", "_uuid"):
        return cell[1] if isinstance(cell, list) else cell
    kind, values = cell if isinstance(cell, list) else ("set", [cell])
    values = [values] if kind == "uuid" else values
    return dict(values) if kind == "map" else [one[1] if isinstance(one, list) else one for one in values]


def _is_uplink(interface: Mapping[str, Any]) -> bool:
    return interface["type"] not in NO_UPLINK and not OF_A_VM & set(interface["external_ids"])


def _of_port(port: Mapping[str, Any]) -> list[int] | None:
    """What a port of Open vSwitch carries, by its manual (ovs-vswitchd.conf.db(5), vlan_mode): no trunks mean all."""
    mode = (port["vlan_mode"] or ["access" if port["tag"] else "trunk"])[0]
    if mode == "access":
        return list(port["tag"])
    return [*port["trunks"], *port["tag"]] if port["trunks"] and mode != "dot1q-tunnel" else None


def _together(uplinks: Iterable[list[int] | None]) -> list[int] | None:
    """What any of them carries."""
    all_ = list(uplinks)
    known = [vlans for vlans in all_ if vlans is not None]
    return sorted({vlan for vlans in known for vlan in vlans}) if known and len(known) == len(all_) else None


def _linux(apart: Collection[str]) -> dict[str, list[int] | None]:
    try:
        ports = json.loads(run(["bridge", "-json", "vlan", "show"], timeout=15) or "[]") if apart else []
    except (NotFound, Failed, TimedOut):
        ports = []
    carries = {port["ifname"]: list(_of_ranges(port.get("vlans", []))) for port in ports}
    names = {bridge: [path.name for path in (NETWORK / bridge / "brif").glob("*")] for bridge in apart}
    # The card of a VM is a TAP device.
    return {
        bridge: _together(carries.get(name) for name in ports if not (NETWORK / name / "tun_flags").exists())
        for bridge, ports in names.items()
    }


def _of_ranges(vlans: Iterable[Mapping[str, int]]) -> Iterator[int]:
    for one in vlans:
        yield from range(one["vlan"], one.get("vlanEnd", one["vlan"]) + 1)
