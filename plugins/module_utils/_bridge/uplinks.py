# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VLANs that leave this machine by the uplinks of its bridges: ports that are neither of VMs nor of itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from .. import _ovs
from .._errors import DroverError, Failed, NotFound, TimedOut
from .._run import run

NETWORK = Path("/sys/class/net")
# What libvirt, or somebody in its manner, writes to the interface of a VM.
OF_A_VM = {"iface-id", "attached-mac", "vm-id"}
# Ends in this machine (internal), or goes who knows where (patch).
NO_UPLINK = {"internal", "patch"}


def carried(apart: Collection[str]) -> dict[str, list[int] | None]:
    """For each bridge the VLANs that any of its uplinks carries, sorted; None: all, or it can't be told.

    It can't be told of a bridge without an uplink. `apart` are those of the kernel's bridges that keep VLANs apart; the
    others of these are left out.
    """
    return {**_linux(apart), **_open_vswitch()}


def _open_vswitch() -> dict[str, list[int] | None]:
    try:
        with _ovs.connect(_ovs.SOCKET) as ovs:
            seen = ovs.snapshot()
    except DroverError:
        return {}
    return {row["name"]: _together(_ways(seen, row)) for row in seen.tables["Bridge"].values()}


def _ways(seen: _ovs.Snapshot, bridge: _ovs.Row) -> Iterator[list[int] | None]:
    for port in seen.rows("Port", bridge["ports"]):
        if any(_is_uplink(interface) for interface in seen.rows("Interface", port["interfaces"])):
            yield _of_port(port)


def _is_uplink(interface: _ovs.Row) -> bool:
    return interface["type"] not in NO_UPLINK and not OF_A_VM & set(interface["external_ids"])


def _of_port(port: _ovs.Row) -> list[int] | None:
    """What a port of Open vSwitch carries, by its manual (ovs-vswitchd.conf.db(5), vlan_mode): no trunks mean all."""
    tag = [] if port["tag"] is None else [port["tag"]]
    mode = port["vlan_mode"] or ("access" if tag else "trunk")
    if mode == "access":
        return tag
    return [*port["trunks"], *tag] if port["trunks"] and mode != "dot1q-tunnel" else None


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
