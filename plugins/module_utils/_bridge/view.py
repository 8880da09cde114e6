# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine's switch looks like now, for people and for reports: plain data from one read of the database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._ovs import Row, Snapshot
from .rows import is_vm_port
from .taps import OPEN, POLICY

Facts = dict[str, Any]
# What is read beside the columns that the collection changes.
MORE = {
    "Bridge": {"rstp_status": "map", "datapath_id": "optional"},
    "Port": {"rstp_status": "map", "qos": "refs"},
    "Interface": {
        "statistics": "map",
        "mac_in_use": "optional",
        "admin_state": "optional",
        "link_speed": "optional",
        "ingress_policing_rate": "one",
        "ingress_policing_burst": "one",
    },
    "QoS": {"type": "one", "other_config": "map", "queues": "map"},
    "Queue": {"dscp": "optional", "other_config": "map"},
}


# The priorities of the guard's flows (roles/open_vswitch/files/drover_port_guard.py): the last word on a port whose
# addresses are checked, and what every VM's port has.
GUARDED = re.compile(r"priority=(60000|60040),in_port=(\d+)\b")
Guards = Mapping[str, Mapping[int, str]]


def guards(flows: str) -> dict[int, str]:
    """By port number what the guard does there, from all flows of a bridge: `checked`, or `open` for any address."""
    found = sorted((int(number), priority) for priority, number in GUARDED.findall(flows))
    # The lower priority is the later word of the two: sorted, it comes first.
    return {number: "checked" if priority == "60000" else "open" for number, priority in reversed(found)}


def bridges(snapshot: Snapshot, vms: Mapping[str, str], links: Sequence[Facts], guarded: Guards) -> list[Facts]:
    """All bridges, sorted by name.

    `vms` are the names of VMs by UUID, `links` what LACP says of the members, `guarded` the guards by bridge.
    """
    by_name = {link["interface"]: link for link in links}
    rows = sorted(snapshot.tables["Bridge"].values(), key=lambda row: str(row["name"]))
    return [
        {
            "name": row["name"],
            "datapath_type": row["datapath_type"] or "system",
            "datapath_id": row["datapath_id"],
            "fail_mode": row["fail_mode"],
            "rstp": {"enabled": row["rstp_enable"], **_short(row["rstp_status"], "rstp_")},
            "ports": [
                _port(snapshot, port, (vms, guarded.get(row["name"], {})), by_name)
                for port in snapshot.rows("Port", row["ports"])
            ],
        }
        for row in rows
    ]


def _port(
    snapshot: Snapshot, port: Row, known: tuple[Mapping[str, str], Mapping[int, str]], links: Mapping[str, Facts]
) -> Facts:
    interfaces = snapshot.rows("Interface", port["interfaces"])
    bond = {"mode": port["bond_mode"] or "active-backup", "lacp": port["lacp"] or "off"}
    owned = is_vm_port(port, interfaces)
    return {
        "name": port["name"],
        **{key: port[key] for key in ("tag", "trunks", "vlan_mode")},
        "bond": bond if len(interfaces) > 1 else None,
        "rstp": _short(port["rstp_status"], "rstp_port_") or None,
        "qos": next((_qos(snapshot, row_id) for row_id in port["qos"]), None),
        "interfaces": [_interface(row, links.get(row["name"])) for row in interfaces],
        "vm": _vm(interfaces[0], *known) if owned and interfaces else None,
    }


def _interface(row: Row, link: Facts | None) -> Facts:
    told = ("name", "ofport", "error", "admin_state", "link_state", "link_speed", "mtu", "statistics")
    policing = {"rate": row["ingress_policing_rate"], "burst": row["ingress_policing_burst"]}
    return {
        **{key: row[key] for key in told},
        "type": row["type"] or "system",
        "mac": row["mac_in_use"],
        "policing": policing if policing["rate"] else None,
        "lacp": {key: link[key] for key in ("lacp", "actor", "partner")} if link else None,
    }


def _vm(interface: Row, vms: Mapping[str, str], guarded: Mapping[int, str]) -> Facts:
    """The VM of a port by the ids that libvirt writes; the name where libvirt told it."""
    ids = interface["external_ids"]
    uuid = ids.get("vm-id")
    return {
        "uuid": uuid,
        "name": vms.get(uuid or ""),
        "mac": ids.get("attached-mac"),
        "interface_id": ids.get("iface-id"),
        "status": ids.get("iface-status"),
        "guard": guarded.get(interface["ofport"]),
        "ips": ids[POLICY].split(",") if ids.get(POLICY, OPEN) != OPEN else [],
    }


def _qos(snapshot: Snapshot, row_id: str) -> Facts:
    qos = snapshot.tables["QoS"][row_id]
    queues = {str(number): snapshot.tables["Queue"][ref[1]] for number, ref in qos["queues"].items()}
    told = {number: {"dscp": row["dscp"], **row["other_config"]} for number, row in queues.items()}
    return {"type": qos["type"], "other_config": qos["other_config"], "queues": told}


def _short(status: Mapping[str, str], prefix: str) -> Facts:
    """The keys without the prefix that the database's schema gives them all."""
    return {key.removeprefix(prefix): value for key, value in status.items()}


def cables(states: Mapping[str, str | None], links: Sequence[Facts], lldp: Mapping[str, Facts]) -> list[Facts]:
    """Every interface at whose other end somebody speaks or should speak, sorted: LACP and LLDP side by side."""
    by_name = {link["interface"]: link for link in links}
    nothing: Facts = {"bond": None, "lacp": None, "actor": None, "partner": None}
    return [
        {"interface": name, "link_state": states.get(name), **nothing, **by_name.get(name, {}), "lldp": lldp.get(name)}
        for name in sorted({*states, *by_name, *lldp})
    ]
