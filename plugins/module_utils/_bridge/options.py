# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a bridge, its ports, bonds, queues and mirrors: one table of what they are and where OVSDB keeps them.

An empty cell means Open vSwitch's own default. The state names that default, so that asking for it is no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._fields import Field, between, check_mac, check_vlan
from .._ovs import COLUMNS, Row
from . import checks

State = dict[str, Any]
MARK = "drover-managed"
# A map can hold what must not be shown (the key of an IPsec tunnel): it stays in the database and out of the state.
HIDDEN = {"psk"}
TUNNELS = ("vxlan", "gre", "geneve")
TUNNEL_KEYS = ("remote_ip", "local_ip", "key")
VLAN_KEYS = ("tag", "trunks", "vlan_mode")
VLAN_MODES = ("access", "trunk", "native-tagged", "native-untagged", "dot1q-tunnel")
BOND_MODES = ("balance-tcp", "balance-slb", "active-backup")
PROTOCOLS = tuple(f"OpenFlow1{minor}" for minor in range(6))
VLANS: dict[str, Any] = {"type": "list", "elements": "int", "check": checks.check_vlans}
RATE = between(1, 10**13)


@dataclass(frozen=True)
class Cell:
    """Where an option lives: a column, or a key of a column that is a map. `empty` is what an empty cell means."""

    table: str
    column: str
    empty: Any = None
    key: str = ""

    def __post_init__(self) -> None:
        """Raise LookupError for a column that is not read."""
        if self.column not in COLUMNS[self.table]:
            raise LookupError(f"{self.table}.{self.column}: add it to COLUMNS in _ovs.py, with its kind")


def _key(table: str, key: str, empty: Any = None, column: str = "other_config") -> Cell:
    return Cell(table, column, empty, key)


BRIDGE = (
    Field("datapath_type", choices=("system", "netdev"), place=Cell("Bridge", "datapath_type", "system")),
    Field("fail_mode", choices=("standalone", "secure"), place=Cell("Bridge", "fail_mode")),
    Field("stp", type="bool", place=Cell("Bridge", "stp_enable", False)),
    Field("stp_priority", type="int", check=between(0, 65535), place=_key("Bridge", "stp-priority", 32768)),
    Field("rstp", type="bool", place=Cell("Bridge", "rstp_enable", False)),
    Field("rstp_priority", type="int", check=between(0, 61440, 4096), place=_key("Bridge", "rstp-priority", 32768)),
    Field("mcast_snooping", type="bool", place=Cell("Bridge", "mcast_snooping_enable", False)),
    Field(
        "flood_vlans",
        type="list",
        elements="int",
        check=checks.check_any_vlans,
        place=Cell("Bridge", "flood_vlans", []),
    ),
    Field(
        "protocols",
        type="list",
        elements="str",
        choices=PROTOCOLS,
        check=checks.in_order,
        place=Cell("Bridge", "protocols", []),
    ),
    Field("controllers", type="list", elements="str", check=checks.check_targets),
    Field("external_ids", type="dict", check=checks.check_map, place=Cell("Bridge", "external_ids", {})),
    Field("other_config", type="dict", check=checks.check_map, place=Cell("Bridge", "other_config", {})),
)
QUEUE = (
    Field("id", type="int", required=True, check=between(0, 61439)),
    Field("min_rate", type="int", check=RATE, place=_key("Queue", "min-rate")),
    Field("max_rate", type="int", check=RATE, place=_key("Queue", "max-rate")),
    Field("burst", type="int", check=between(1), place=_key("Queue", "burst")),
    Field("priority", type="int", check=between(0), place=_key("Queue", "priority")),
)
QOS = (
    Field("type", choices=("linux-htb", "linux-hfsc", "none"), default="linux-htb", place=Cell("QoS", "type")),
    Field("max_rate", type="int", check=RATE, place=_key("QoS", "max-rate")),
    Field("queues", type="list", elements="dict", fields=QUEUE, check=checks.check_queues),
)
SHARED = (
    Field("tag", type="int", check=check_vlan, place=Cell("Port", "tag")),
    Field("trunks", place=Cell("Port", "trunks", []), **VLANS),
    Field("cvlans", place=Cell("Port", "cvlans", []), **VLANS),
    Field("vlan_mode", choices=VLAN_MODES, place=Cell("Port", "vlan_mode")),
    Field("mtu", type="int", check=checks.check_mtu, place=Cell("Interface", "mtu_request")),
    Field("lldp", type="bool", place=_key("Interface", "enable", False, column="lldp")),
    Field("qos", type="dict", fields=QOS),
    Field("other_config", type="dict", check=checks.check_map, place=Cell("Port", "other_config", {})),
)
NAME = Field("name", required=True, check=checks.check_interface)
PORT = (
    NAME,
    Field("type", choices=("system", "internal", "patch", *TUNNELS), place=Cell("Interface", "type", "system")),
    Field("peer", check=checks.check_interface, place=_key("Interface", "peer", column="options")),
    Field("remote_ip", check=checks.check_remote, place=_key("Interface", "remote_ip", column="options")),
    Field("local_ip", check=checks.check_address, place=_key("Interface", "local_ip", column="options")),
    Field("key", no_log=False, check=checks.check_key, place=_key("Interface", "key", column="options")),
    Field("options", type="dict", check=checks.check_map, place=Cell("Interface", "options", {})),
    Field("mac", check=check_mac, place=Cell("Interface", "mac")),
    Field("ingress_policing_rate", type="int", check=between(0), place=Cell("Interface", "ingress_policing_rate", 0)),
    Field("ingress_policing_burst", type="int", check=between(0), place=Cell("Interface", "ingress_policing_burst", 0)),
    Field("external_ids", type="dict", check=checks.check_map, place=Cell("Interface", "external_ids", {})),
    Field("stp_enable", type="bool", place=_key("Port", "stp-enable", True)),
    Field("stp_path_cost", type="int", check=between(1, 65535), place=_key("Port", "stp-path-cost")),
    Field("stp_port_priority", type="int", check=between(0, 255), place=_key("Port", "stp-port-priority", 128)),
    Field("rstp_enable", type="bool", place=_key("Port", "rstp-enable", True)),
    Field("rstp_path_cost", type="int", check=between(1, 200000000), place=_key("Port", "rstp-path-cost")),
    Field("rstp_port_priority", type="int", check=between(0, 240, 16), place=_key("Port", "rstp-port-priority", 128)),
    Field("rstp_admin_edge", type="bool", place=_key("Port", "rstp-port-admin-edge", False)),
    *SHARED,
)
BOND = (
    NAME,
    Field("members", type="list", elements="str", check=checks.check_members),
    Field("mode", choices=BOND_MODES, place=Cell("Port", "bond_mode", "active-backup")),
    Field("lacp", choices=("active", "passive", "off"), place=Cell("Port", "lacp", "off")),
    Field("lacp_time", choices=("fast", "slow"), place=_key("Port", "lacp-time", "slow")),
    Field("fallback_ab", type="bool", place=_key("Port", "lacp-fallback-ab", False)),
    Field("up_delay", type="int", check=between(0), place=Cell("Port", "bond_updelay", 0)),
    Field("down_delay", type="int", check=between(0), place=Cell("Port", "bond_downdelay", 0)),
    Field(
        "rebalance_interval",
        type="int",
        check=checks.check_rebalance,
        place=_key("Port", "bond-rebalance-interval", 10000),
    ),
    Field("detect_mode", choices=("carrier", "miimon"), place=_key("Port", "bond-detect-mode", "carrier")),
    Field("miimon", type="int", check=between(1), place=_key("Port", "bond-miimon-interval", 200)),
    *SHARED,
)
MIRROR = (
    NAME,
    Field("select_all", type="bool", place=Cell("Mirror", "select_all", False)),
    Field("select_src", type="list", elements="str", check=checks.check_interfaces),
    Field("select_dst", type="list", elements="str", check=checks.check_interfaces),
    Field("select_vlans", place=Cell("Mirror", "select_vlan", []), **VLANS),
    Field("output_port", check=checks.check_interface),
    Field("output_vlan", type="int", check=check_vlan, place=Cell("Mirror", "output_vlan")),
)


def fresh(fields: Sequence[Field]) -> State:
    """The options of a new thing: Open vSwitch's own defaults."""
    return {field.name: field.place.empty if field.place else None for field in fields if field is not NAME}


NEW_BRIDGE: State = {**fresh(BRIDGE), "controllers": []}
NEW_PORT: State = {**fresh(PORT), "managed": True}
NEW_BOND: State = {**fresh(BOND), "members": [], "managed": True}
NEW_MIRROR: State = {**fresh(MIRROR), "select_src": [], "select_dst": [], "managed": True}


def cells(fields: Sequence[Field], table: str) -> dict[str, tuple[Field, Cell]]:
    """The options that this table keeps, by name."""
    return {field.name: (field, field.place) for field in fields if field.place and field.place.table == table}


def keys_of(fields: Sequence[Field], table: str, column: str) -> dict[str, str]:
    """The keys of a map that are options of their own: key -> option."""
    return {cell.key: name for name, (_f, cell) in cells(fields, table).items() if cell.key and cell.column == column}


def read(fields: Sequence[Field], table: str, row: Row) -> State:
    """The options that a row says."""
    state: State = {}
    for name, (field, cell) in cells(fields, table).items():
        seen = row[cell.column]
        if cell.key:
            state[name] = _parsed(field, seen[cell.key]) if cell.key in seen else cell.empty
        elif field.type == "dict":
            own = keys_of(fields, table, cell.column).keys() | HIDDEN
            state[name] = {key: value for key, value in seen.items() if key not in own}
        else:
            state[name] = cell.empty if seen in (None, "") else seen
    return state


def _parsed(field: Field, text: str) -> Any:
    """The value in a map; what somebody else wrote and is no such value is shown as it is."""
    if field.type == "bool":
        return {"true": True, "false": False}.get(text, text)
    return int(text) if field.type == "int" and text.isascii() and text.isdigit() else text


def row_of(fields: Sequence[Field], table: str, state: State) -> Row:
    """The columns that say these options."""
    row: Row = {}
    for name, (field, cell) in cells(fields, table).items():
        if cell.key:
            entries = row.setdefault(cell.column, {})
            if state[name] != cell.empty:
                # None where the members of a bond differ: a key without a value is not written.
                entries[cell.key] = None if state[name] is None else checks.text(state[name])
        elif field.type == "dict":
            row.setdefault(cell.column, {}).update(state[name])
        elif field.choices and field.type == "str" and state[name] == cell.empty:
            row[cell.column] = None if COLUMNS[table][cell.column] == "optional" else ""
        else:
            row[cell.column] = state[name]
    return row
