# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which options fit together; what others wrote into their own ports is not judged. Pure."""

from __future__ import annotations

from .._errors import Invalid, Refused
from .options import HIDDEN, TUNNEL_KEYS, TUNNELS, State

# What decides in which VLAN a host's own interface is.
PLACE = ("type", "tag", "trunks", "vlan_mode")


def check(params: State, before: State | None, state: State, guests: list[str]) -> None:
    """Refuse what does not fit together. Raises Invalid or Refused."""
    name = state["name"]
    if before and before["datapath_type"] != state["datapath_type"] and guests:
        raise Refused(
            f"a new datapath_type cuts off the virtual machines on bridge {name} ({', '.join(guests)}); "
            "move or stop them first",
            ports=guests,
        )
    if state["stp"] and state["rstp"] and (params["stp"] or params["rstp"]):
        raise Invalid(f"bridge {name}: a bridge speaks stp or rstp, not both; set the other one to false")
    bonds = {bond: item for bond, item in state["bonds"].items() if params["flood_vlans"] or item["managed"]}
    slb = [bond for bond, item in bonds.items() if item["mode"] == "balance-slb"]
    if state["flood_vlans"] and slb and (params["flood_vlans"] or params["bonds"]):
        # Open vSwitch would keep both and warn in its log only.
        raise Invalid(f"bridge {name}: flood_vlans do not go with mode balance-slb of a bond ({', '.join(slb)})")
    for port, item in state["ports"].items():
        if item["managed"] or port == name:
            _check_port(f"port {port} of bridge {name}", name, port, item)
    for bond, item in state["bonds"].items():
        if item["managed"]:
            _check_bond(f"bond {bond} of bridge {name}", item)
    for mirror, item in state["mirrors"].items():
        # One that somebody else has broken since is not this task's business.
        if item["managed"] and (before is None or item != before["mirrors"].get(mirror)):
            _check_mirror(f"mirror {mirror} of bridge {name}", item, {*state["ports"], *state["bonds"], *guests})


def cut(before: State | None, after: State | None) -> set[str]:
    """The interfaces that lose what they carry: NICs that come under the switch, and the host's own that go or move.

    What an address of the host's own reaches through the other ports is not judged.
    """
    old, new = before or {"ports": {}, "bonds": {}}, after or {"ports": {}, "bonds": {}}
    own = {name: item for name, item in old["ports"].items() if item["type"] == "internal"}
    there = {name: [item[key] for key in PLACE] for name, item in new["ports"].items()}
    moved = {name for name, item in own.items() if there.get(name) != [item[key] for key in PLACE]}
    return moved | (_nics(new) - _nics(old))


def _nics(state: State) -> set[str]:
    members = {member for bond in state["bonds"].values() for member in bond["members"]}
    return members | {name for name, item in state["ports"].items() if item["type"] == "system"}


def _check_port(where: str, bridge: str, port: str, item: State) -> None:
    _check_vlans(where, item)
    if (item["type"] == "patch") != (item["peer"] is not None) or item["peer"] == port:
        raise Invalid(f"{where}: a patch port, and only a patch port, has a peer: the port at its other end")
    if item["type"] not in TUNNELS and any(item[key] is not None for key in TUNNEL_KEYS):
        raise Invalid(f"{where}: {', '.join(TUNNEL_KEYS)} belong to a tunnel; set type to {', '.join(TUNNELS)}")
    if item["type"] in TUNNELS and item["remote_ip"] is None:
        raise Invalid(f"{where}: a tunnel needs remote_ip: the address of its other end")
    if item["type"] in ("patch", *TUNNELS) and (item["qos"] or item["ingress_policing_rate"]):
        # Open vSwitch would keep it in its database and do nothing.
        raise Invalid(f"{where}: a {item['type']} port can't have qos or ingress_policing_rate; limit the NIC instead")
    if HIDDEN & item["options"].keys():
        raise Invalid(f"{where}: {', '.join(HIDDEN)} would be shown in logs; set up IPsec outside of this module")
    if port == bridge and item["type"] != "internal":
        raise Invalid(f"{where}: the bridge's own port is always internal")


def _check_bond(where: str, item: State) -> None:
    _check_vlans(where, item)
    if len(item["members"]) < 2:
        raise Invalid(f"{where}: a new bond needs members, at least two")
    if item["mode"] == "balance-tcp" and item["lacp"] == "off":
        raise Invalid(f"{where}: mode balance-tcp needs LACP; set lacp: active, or take mode balance-slb")
    if item["miimon"] != 200 and item["detect_mode"] != "miimon":
        raise Invalid(f"{where}: miimon has no effect without detect_mode: miimon")
    if item["fallback_ab"] and item["lacp"] == "off":
        raise Invalid(f"{where}: fallback_ab has no effect without lacp: active or passive")


def _check_mirror(where: str, item: State, there: set[str]) -> None:
    if (item["output_port"] is None) == (item["output_vlan"] is None) or item["output_port"] not in {None, *there}:
        raise Invalid(f"{where}: a mirror needs one output: a port of the bridge (output_port) or output_vlan")
    selected = {*item["select_src"], *item["select_dst"]}
    if bool(selected) == item["select_all"]:
        raise Invalid(f"{where}: a mirror needs either select_all: true or ports in select_src and select_dst")
    if item["output_port"] in selected:
        raise Invalid(f"{where}: output_port {item['output_port']} can't be selected too")


def _check_vlans(where: str, port: State) -> None:
    tag, trunks, mode = port["tag"], port["trunks"], port["vlan_mode"]
    native = mode in ("native-tagged", "native-untagged")
    if tag is not None and trunks and not native:
        raise Invalid(f"{where}: tag and trunks together need vlan_mode native-tagged or native-untagged")
    if tag is None and (native or mode in ("access", "dot1q-tunnel")):
        raise Invalid(f"{where}: vlan_mode {mode} needs a tag")
    if mode == "dot1q-tunnel" and trunks:
        raise Invalid(f"{where}: a dot1q-tunnel port has a tag, perhaps cvlans, and no trunks")
    if port["cvlans"] and mode != "dot1q-tunnel":
        raise Invalid(f"{where}: cvlans belong to vlan_mode dot1q-tunnel")
    if mode == "access" and trunks:
        raise Invalid(f"{where}: an access port has a tag and no trunks")
    if mode == "trunk" and tag is not None:
        raise Invalid(f"{where}: a trunk port has trunks and no tag; native-untagged has both")
