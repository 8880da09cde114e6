# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units of role open_vswitch, and what it does about addresses on a node whose `ip` and `networkctl` are scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined, select_autoescape

from ansible_collections.drover.kvm.tests.unit.scripted_site import Site

ROLE = Path(__file__).resolve().parents[3] / "roles/open_vswitch"
SWITCH = {"Debian": "openvswitch-switch.service", "RedHat": "openvswitch.service"}
IP = '#!/bin/sh\n[ "$*" = "-json address show" ] && exec cat {folder}/links.json\n'
# A link that is set up anew has what it shall have.
NETWORKCTL = '#!/bin/sh\necho "$@" >>{folder}/told\n[ "$1" = reload ] || cp {folder}/whole.json {folder}/links.json\n'
ADDRESSES = ["10.231.5.11/24", "FD00:5:0:0::0011/64"]
PORTS = [{"name": "nic1"}, {"name": "storage0", "type": "internal", "tag": 5}]
AS_IS: dict[str, Any] = {"changed": False}
DECLARED: dict[str, Any] = {
    "open_vswitch_bridges": [{"name": "br0", "ports": PORTS}],
    "open_vswitch_addresses": [{"name": "storage0", "addresses": ADDRESSES}],
    "open_vswitch_address_timeout": 1,
    "open_vswitch_plug_vms": True,
    "open_vswitch_installed": AS_IS,
    "open_vswitch_networkd_started": AS_IS,
    "open_vswitch_running": {"stat": {"exists": True}},
    "open_vswitch_member_files": AS_IS,
    "open_vswitch_address_files": AS_IS,
    "open_vswitch_removed_files": AS_IS,
}


def links(*addresses: str, flags: tuple[str, ...] = ("UP",)) -> list[dict[str, Any]]:
    """As `ip` prints them; the flags are those of nic1."""
    given = [dict(zip(("local", "prefixlen"), (text.split("/")[0], int(text.split("/")[1])))) for text in addresses]
    storage = {"ifname": "storage0", "flags": ["UP"], "addr_info": given}
    return [{"ifname": "nic1", "flags": list(flags), "addr_info": []}, storage]


WHOLE = links("10.231.5.11/24", "fd00:5::11/64")


class Node:
    """One node, with the links that it has."""

    def __init__(self, folder: Path, *now: dict[str, Any]) -> None:
        self.folder = folder
        self.site = Site(folder, hv1={})
        for name, text in (("ip", IP), ("networkctl", NETWORKCTL)):
            (folder / name).write_text(text.format(folder=folder), encoding="ascii")
            (folder / name).chmod(0o700)
        (folder / "libvirt-sock").touch()
        (folder / "links.json").write_text(json.dumps(now), encoding="ascii")
        (folder / "whole.json").write_text(json.dumps(WHOLE), encoding="ascii")

    def run(self, *words: str, cases: Sequence[dict[str, Any]] = ({},)) -> tuple[int, str, list[str]]:
        """Build the bridges and give the addresses: exit status, output, and what networkctl was told.

        With several cases once for each, with these variables.
        """
        (self.folder / "told").write_text("", encoding="ascii")
        role = {"ansible.builtin.include_role": {"name": "drover.kvm.open_vswitch", "tasks_from": "run"}}
        play = {"hosts": "hv1", "gather_facts": False, "tasks": [role]}
        plays = [{**play, "vars": {**DECLARED, **case}} for case in cases]
        (self.folder / "play.yml").write_text(json.dumps(plays), encoding="utf-8")
        # Variables of the role itself give way to those of the command line only.
        code, said = self.site.play(self.folder / "play.yml", *words, open_vswitch_libvirt_folder=str(self.folder))
        return code, said, (self.folder / "told").read_text(encoding="ascii").splitlines()


@pytest.mark.slow
def test_an_address_is_there_however_it_is_written(tmp_path):
    code, said, told = Node(tmp_path, *WHOLE).run()
    assert code == 0 and "changed=0" in said and told == ["reload"], said


@pytest.mark.slow
def test_a_port_that_lacks_an_address_is_set_up_anew(tmp_path):
    node = Node(tmp_path, *links("10.231.5.11/24", "fd00:5::11/65"))
    code, said, told = node.run()
    assert code == 0 and "changed=1" in said and told == ["reload", "reconfigure storage0"], said
    assert "changed=0" in node.run()[1]


@pytest.mark.slow
def test_who_gets_no_address_is_named(tmp_path):
    node = Node(tmp_path, *links("10.231.5.11/24"))
    (tmp_path / "networkctl").write_text("#!/bin/sh\n", encoding="ascii")
    code, said, _told = node.run()
    assert code != 0 and "storage0 of hv1: down or without its addresses after 1 s; networkctl status storage0" in said


@pytest.mark.slow
def test_check_mode_says_what_would_be_set_up_anew(tmp_path):
    node = Node(tmp_path, *links("10.231.5.11/24", flags=()))
    code, said, told = node.run("--check")
    assert code == 0 and "changed=1" in said and told == [], said
    assert re.search(r"Set up anew what lacks an address or is down\] \*+ changed", said), said
    assert "nic1, storage0: would be set up anew" in said
    code, said, told = node.run()
    assert code == 0 and "changed=1" in said and told == ["reload", "reconfigure nic1 storage0"], said
    assert "changed=0" in node.run("--check")[1]


@pytest.mark.slow
def test_check_mode_looks_at_no_addresses_that_come_with_what_is_made_first(tmp_path):
    """Nor does a node without any program fail."""
    node = Node(tmp_path)
    (tmp_path / "ip").write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    names = ("installed", "networkd_started", "member_files", "address_files", "removed_files")
    cases: list[dict[str, Any]] = [{f"open_vswitch_{name}": {"changed": True}} for name in names]
    code, said, told = node.run("--check", cases=[*cases, {"open_vswitch_running": {"stat": {"exists": False}}}])
    assert code == 0 and "changed=0" in said and told == [], said
    assert len(node.site.calls("vm_ports", check=True)) == len(names) - 1, "only where there is a switch"
    node.site.answers["hv1"]["ovs_bridge"] = {"changed": True}
    code, said, told = node.run("--check")
    assert code == 0 and "changed=1" in said and told == [], said


@pytest.mark.parametrize("family", SWITCH)
@pytest.mark.parametrize("name", ["port-guard", "addresses-online"])
def test_a_unit_comes_after_the_switch_and_before_libvirt(name, family):
    known = {"ansible_managed": "", "open_vswitch_addresses": [], "open_vswitch_address_timeout": 60}
    for file in ("main", family):
        known |= yaml.safe_load((ROLE / f"vars/{file}.yml").read_text(encoding="utf-8"))
    environment = Environment(undefined=StrictUndefined, autoescape=select_autoescape([], default_for_string=False))
    text = (ROLE / f"templates/{name}.service.j2").read_text(encoding="utf-8")
    lines = environment.from_string(text).render(known).splitlines()
    order = {
        key: line.split("=")[1].split() for line in lines for key in ("After", "Before") if line.startswith(f"{key}=")
    }
    assert SWITCH[family] in order["After"] and {"libvirtd.service", "virtqemud.service"} == set(order["Before"])
    assert not [unit for units in order.values() for unit in units if unit.count(".") != 1]


IPV4 = {"address": "192.0.2.11"}
MACHINE = {
    "nic1": {"ipv4": IPV4},
    "nic2": {"ipv4": {"address": "198.51.100.11"}, "ipv4_secondaries": [IPV4]},
    "nic3": {"ipv6": [{"address": "fe80::1"}, {"address": "2001:db8::11"}]},
    "bond-a": {"slaves": ["nic4"]},
    "bond-a.5": {},
    "br_a": {"interfaces": ["bond-a.5", "nic5"], "ipv4": {"address": "203.0.113.11"}},
    "nic6": {},
}
# The addresses through which Ansible comes, and the NICs that it cuts off.
CUT = {
    "192.0.2.11": ["nic1", "nic2"],
    "2001:db8::11": ["nic3"],
    "fe80::1%nic3": ["nic3"],
    "203.0.113.11": ["nic4", "nic5"],
    "203.0.113.12": [],
}


def preflight(folder, *plays, asked):
    """Those tasks of the preflight for each of these facts and variables; all that is said."""
    tasks = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text(encoding="utf-8"))
    tasks = [{**task, "ignore_errors": True} for task in tasks if task["name"] in asked]
    known = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    site = Site(folder, hv1={})
    # The scripted module finds them.
    found = [
        {"when": {"name": [str(place), None]}, "ansible_facts": facts} for place, (facts, _own) in enumerate(plays)
    ]
    site.answers["hv1"]["ovs_bridge"] = {"cases": found}
    whole = [
        {
            "hosts": "hv1",
            "gather_facts": False,
            "vars": {**known, **variables},
            "vars_files": [str(ROLE / "vars/main.yml")],
            "tasks": [{"drover.kvm.ovs_bridge": {"name": str(place)}}, *tasks],
        }
        for place, (_facts, variables) in enumerate(plays)
    ]
    (folder / "play.yml").write_text(json.dumps(whole), encoding="utf-8")
    code, said = site.play(folder / "play.yml")
    assert code == 0, said
    return said


@pytest.mark.slow
def test_what_ansible_comes_through_is_not_taken(tmp_path):
    """By an address of either family, its second one too, and below all that carries it."""
    asked = (
        "Find the interfaces that carry the connection and the default route",
        "Refuse to cut the branch on which Ansible sits",
    )
    ports = [{"name": f"nic{number}"} for number in range(1, 7)]
    known = {"open_vswitch_bridges": [{"name": "br0", "ports": ports}]}
    facts = {"interfaces": list(MACHINE), "default_ipv4": {}, "default_ipv6": {}}
    facts |= {name.replace("-", "_"): {"device": name, **device} for name, device in MACHINE.items()}
    plays = [({**facts, "env": {"SSH_CONNECTION": f"192.0.2.1 50000 {address} 22"}}, known) for address in CUT]
    said = preflight(
        tmp_path, *plays, ({**facts, "env": {}, "default_ipv6": {"interface": "nic6"}}, known), asked=asked
    )
    told = re.findall(r"fatal: .*? => .*?\"msg\": \"(\S.*?) of hv1 carries the connection", said)
    assert told == [", ".join(names) for names in [*CUT.values(), ["nic6"]] if names], said


@pytest.mark.slow
def test_what_no_machine_has_is_refused_before_a_file_is_written(tmp_path):
    """A NIC by another of its names, an address without prefix, a range that is upside down."""
    asked = (
        "Refuse NICs that the machine does not have",
        "Refuse VLANs that are none",
        "Refuse addresses without a prefix",
    )
    ports = [{"name": "nic1"}, {"name": "enp3s0"}, {"name": "storage0", "type": "internal"}]
    bond = {"name": "bond0", "members": ["nic2", "nic3"]}
    good = ["10.231.5.11/24", "FD00:5::11/64", "::ffff:10.0.0.1/96"]
    wrong = [
        "10.231.5.11",
        "10.231.5.11/255.255.255.0",
        "10.231.5.300/24",
        "10.231.5.11/33",
        "fd00:5::12",
        "fd00::1/129",
    ]
    known = {
        "open_vswitch_bridges": [{"name": "br0", "ports": ports, "bonds": [bond]}],
        "open_vswitch_reserved_vlans": ["5-9", 20, "9-5", "7-7", "5-", 4095],
        "open_vswitch_addresses": [{"name": "storage0", "addresses": good + wrong}],
    }
    said = preflight(tmp_path, ({"interfaces": ["lo", "nic1", "nic2"]}, known), asked=asked)
    assert "hv1 has no interface enp3s0, nic3; write the name that `ip link` shows" in said, said
    assert "open_vswitch_reserved_vlans: 9-5, 5-, 4095 is neither a VLAN" in said, said
    assert f"open_vswitch_addresses: {', '.join(wrong)} is no address with" in said, said
