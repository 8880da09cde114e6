# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ovs_bridge against a private Open vSwitch (real ovsdb-server and ovs-vswitchd, dummy datapath)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _lifelines, _links, _ovs, _program, _run
from ansible_collections.drover.kvm.plugins.module_utils._bridge import restore
from ansible_collections.drover.kvm.plugins.module_utils._rollback import timer
from ansible_collections.drover.kvm.plugins.modules import ovs_bridge
from ansible_collections.drover.kvm.tests.unit import hostile, ovs_server
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_corpus import tables

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]


@pytest.fixture
def ovs(server, tmp_path, monkeypatch):
    """The private switch without bridges, on a machine that has the NICs eth0 to eth7."""
    for number in range(8):
        (tmp_path / f"eth{number}").touch()
    monkeypatch.setattr(_links, "DEVICES", tmp_path)
    server.bare()
    return server


@pytest.fixture
def sent(monkeypatch):
    """The kinds of all transactions that the module sends: read or write."""
    kinds = []
    original = _ovs.Ovs.transact

    def counted(self, operations):
        names = {operation["op"] for operation in operations}
        kinds.append("write" if names & {"insert", "update", "mutate", "delete"} else "read")
        return original(self, operations)

    monkeypatch.setattr(_ovs.Ovs, "transact", counted)
    return kinds


@pytest.fixture
def module(ovs, capsys, monkeypatch):
    """Run the module; the result as the controller gets it."""
    told: list[str] = []
    # What this very machine hangs on is not the tests' business.
    monkeypatch.setattr(_lifelines, "read", dict)
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: told.append(warning))

    def run(**args):
        told.clear()
        options = {"name": "br0", "socket": ovs.socket, **args}
        with patch_module_args(options), pytest.raises(SystemExit):
            ovs_bridge.main()
        return {**json.loads(capsys.readouterr().out), "warnings": list(told)}

    return run


@pytest.fixture
def converge(module):
    """Predict, run, run again: the prediction must hold, and the second run must change nothing."""

    def run(changed=True, **args):
        predicted = module(_ansible_check_mode=True, **args)
        real = module(**args)
        for result in (predicted, real):
            assert not result.get("failed"), result
        for key in ("changed", "actions", "diff", "resource"):
            assert predicted[key] == real[key], key
        assert real["changed"] is changed
        again = module(**args)
        assert (again["changed"], again["actions"]) == (False, [])
        return real

    return run


def refused(result, *words):
    """The run failed, changed nothing, and its message holds the words."""
    assert result["failed"] and not result.get("changed"), result
    for word in words:
        assert word in result["msg"]
    assert "Traceback" not in result["msg"]


BOND = {"name": "bond0", "members": ["eth0", "eth1"]}
UP = {"ports": [{"name": "eth0"}]}
INTERNAL = {"ports": [{"name": "host0", "type": "internal"}]}


def port(**options):
    return {"ports": [{"name": "eth0", **options}]}


def bond(**options):
    return {"bonds": [{**BOND, **options}]}


# Option -> (the state before, the options that change it, the database cell that shows it, what stands there then).
OPTIONS = {
    "state": ({}, {"state": "absent"}, None, None),
    "datapath_type": ({}, {"datapath_type": "netdev"}, ("Bridge", "br0", "datapath_type"), "netdev"),
    "fail_mode": ({"fail_mode": "standalone"}, {"fail_mode": "secure"}, ("Bridge", "br0", "fail_mode"), "secure"),
    "rstp": ({"rstp": False}, {"rstp": True}, ("Bridge", "br0", "rstp_enable"), "true"),
    "external_ids": (
        {"external_ids": {"a": "1", "b": 2, "c": True}},
        {"external_ids": {"a": "x y=z", "b": None}},
        ("Bridge", "br0", "external_ids"),
        '{a="x y=z", c="true"}',
    ),
    "other_config": (
        {"other_config": {"hwaddr": "52:54:00:00:00:09"}, "rstp_priority": 4096},
        {"other_config": {"mac-aging-time": 60}},
        ("Bridge", "br0", "other_config"),
        '{hwaddr="52:54:00:00:00:09", mac-aging-time="60", rstp-priority="4096"}',
    ),
    "ports": ({}, {"ports": [{"name": "eth0"}]}, ("Port", "eth0", "external_ids:drover-managed"), '"true"'),
    "ports.name": (UP, {"ports": [{"name": "eth2"}]}, ("Port", "eth2", "name"), "eth2"),
    "ports.type": (INTERNAL, {"ports": [{"name": "br0"}]}, ("Interface", "br0", "type"), "internal"),
    "ports.peer": (
        {"ports": [{"name": "there", "type": "patch", "peer": "back"}]},
        {"ports": [{"name": "there", "peer": "home"}]},
        ("Interface", "there", "options:peer"),
        "home",
    ),
    "ports.mac": (
        INTERNAL,
        {"ports": [{"name": "host0", "mac": "52:54:00:AB:CD:01"}]},
        ("Interface", "host0", "mac"),
        '"52:54:00:ab:cd:01"',
    ),
    "ports.external_ids": (
        port(external_ids={"rack": "7"}),
        port(external_ids={"rack": None, "cable": "blue 3"}),
        ("Interface", "eth0", "external_ids"),
        '{cable="blue 3"}',
    ),
    "ports.tag": (port(tag=5), port(tag="6"), ("Port", "eth0", "tag"), "6"),
    "ports.trunks": (port(tag=5), port(trunks=[30, 20]), ("Port", "eth0", "trunks"), "[20, 30]"),
    "ports.vlan_mode": (
        port(trunks=[20]),
        port(tag=5, trunks=[20], vlan_mode="native-untagged"),
        ("Port", "eth0", "vlan_mode"),
        "native-untagged",
    ),
    "ports.mtu": (UP, port(mtu=9000), ("Interface", "eth0", "mtu_request"), "9000"),
    "ports.other_config": (
        UP,
        port(other_config={"rstp-port-mcheck": True}),
        ("Port", "eth0", "other_config"),
        '{rstp-port-mcheck="true"}',
    ),
    "bonds": ({}, bond(), ("Port", "bond0", "external_ids:drover-managed"), '"true"'),
    "bonds.name": (bond(), bond(name="bond1"), ("Port", "bond1", "name"), "bond1"),
    "bonds.members": (bond(), bond(members=["eth2", "eth0"]), ("Interface", "eth2", "name"), "eth2"),
    "bonds.mode": (bond(), bond(mode="balance-slb"), ("Port", "bond0", "bond_mode"), "balance-slb"),
    "bonds.lacp": (bond(), bond(lacp="passive"), ("Port", "bond0", "lacp"), "passive"),
    "bonds.lacp_time": (bond(), bond(lacp_time="fast"), ("Port", "bond0", "other_config:lacp-time"), "fast"),
    "bonds.tag": (bond(), bond(tag=5), ("Port", "bond0", "tag"), "5"),
    "bonds.trunks": (bond(), bond(trunks=[5, 6]), ("Port", "bond0", "trunks"), "[5, 6]"),
    "bonds.vlan_mode": (
        bond(trunks=[5]),
        bond(tag=6, trunks=[5], vlan_mode="native-tagged"),
        ("Port", "bond0", "vlan_mode"),
        "native-tagged",
    ),
    "bonds.mtu": (bond(), bond(mtu=9000), ("Interface", "eth1", "mtu_request"), "9000"),
    "bonds.other_config": (
        bond(lacp_time="fast"),
        bond(other_config={"bond-primary": "eth1"}),
        ("Port", "bond0", "other_config"),
        "{bond-primary=eth1, lacp-time=fast}",
    ),
}
VXLAN = {"name": "vxlan0", "type": "vxlan", "remote_ip": "192.0.2.1"}
TWO = {"ports": [{"name": "eth0"}, {"name": "eth1"}, {"name": "eth2"}]}
MIRROR = {"name": "tap", "select_src": ["eth0"], "output_port": "eth1"}


def tunnel(**options):
    return {"ports": [{**VXLAN, **options}]}


def mirror(**options):
    return {**TWO, "mirrors": [{**MIRROR, **options}]}


def config(option, value, key, kind=None):
    """A row for an option that is a setting of the bridge (`kind` None), of eth0 or of bond0."""
    table, row = {port: ("Port", "eth0"), bond: ("Port", "bond0"), None: ("Bridge", "br0")}[kind]
    kind = kind or dict
    return (kind(), kind(**{option: value}), (table, row, f"other_config:{key}"), json.dumps(json.dumps(value)))


OPTIONS |= {
    "stp": ({"rstp": True}, {"stp": True, "rstp": False}, ("Bridge", "br0", "stp_enable"), "true"),
    "stp_priority": config("stp_priority", 4096, "stp-priority"),
    "rstp_priority": config("rstp_priority", 8192, "rstp-priority"),
    "mcast_snooping": ({}, {"mcast_snooping": True}, ("Bridge", "br0", "mcast_snooping_enable"), "true"),
    "flood_vlans": (
        {"flood_vlans": [7]},
        {"flood_vlans": [4095, 0, 9]},
        ("Bridge", "br0", "flood_vlans"),
        "[0, 9, 4095]",
    ),
    "protocols": (
        {"protocols": ["OpenFlow10"]},
        {"protocols": ["OpenFlow15", "OpenFlow13"]},
        ("Bridge", "br0", "protocols"),
        "[OpenFlow13, OpenFlow15]",
    ),
    "controllers": (
        {"controllers": ["tcp:192.0.2.1:6653", "tcp:192.0.2.2:6653"]},
        {"controllers": ["ssl:[2001:db8::1]:6653"]},
        ("Controller", "br0", "target"),
        '"ssl:[2001:db8::1]:6653"',
    ),
    "ports.remote_ip": (
        tunnel(),
        tunnel(remote_ip="2001:DB8::1"),
        ("Interface", "vxlan0", "options:remote_ip"),
        '"2001:db8::1"',
    ),
    "ports.local_ip": (
        tunnel(),
        tunnel(local_ip="192.0.2.9"),
        ("Interface", "vxlan0", "options:local_ip"),
        '"192.0.2.9"',
    ),
    "ports.key": (tunnel(key=7), tunnel(key="flow"), ("Interface", "vxlan0", "options:key"), "flow"),
    "ports.options": (
        tunnel(options={"dst_port": 4790, "tos": "inherit"}),
        tunnel(options={"dst_port": 4791, "tos": None}),
        ("Interface", "vxlan0", "options"),
        '{dst_port="4791", remote_ip="192.0.2.1"}',
    ),
    "ports.ingress_policing_rate": (
        port(ingress_policing_rate=5000),
        port(ingress_policing_rate=10000, ingress_policing_burst=8000),
        ("Interface", "eth0", "ingress_policing_rate"),
        "10000",
    ),
    "ports.ingress_policing_burst": (
        UP,
        port(ingress_policing_burst=800),
        ("Interface", "eth0", "ingress_policing_burst"),
        "800",
    ),
    "ports.lldp": (UP, port(lldp=True), ("Interface", "eth0", "lldp"), '{enable="true"}'),
    "ports.stp_enable": config("stp_enable", False, "stp-enable", kind=port),
    "ports.stp_path_cost": config("stp_path_cost", 19, "stp-path-cost", kind=port),
    "ports.stp_port_priority": config("stp_port_priority", 16, "stp-port-priority", kind=port),
    "ports.rstp_enable": config("rstp_enable", False, "rstp-enable", kind=port),
    "ports.rstp_path_cost": config("rstp_path_cost", 2000, "rstp-path-cost", kind=port),
    "ports.rstp_port_priority": config("rstp_port_priority", 16, "rstp-port-priority", kind=port),
    "ports.rstp_admin_edge": config("rstp_admin_edge", True, "rstp-port-admin-edge", kind=port),
    "bonds.lldp": (bond(), bond(lldp=True), ("Interface", "eth1", "lldp"), '{enable="true"}'),
    "bonds.fallback_ab": (
        bond(lacp="active"),
        bond(lacp="active", fallback_ab=True),
        ("Port", "bond0", "other_config:lacp-fallback-ab"),
        '"true"',
    ),
    "bonds.up_delay": (bond(up_delay=100), bond(up_delay=500), ("Port", "bond0", "bond_updelay"), "500"),
    "bonds.down_delay": (bond(), bond(down_delay=200), ("Port", "bond0", "bond_downdelay"), "200"),
    "bonds.rebalance_interval": config("rebalance_interval", 0, "bond-rebalance-interval", kind=bond),
    "bonds.detect_mode": (
        bond(),
        bond(detect_mode="miimon"),
        ("Port", "bond0", "other_config:bond-detect-mode"),
        "miimon",
    ),
    "bonds.miimon": (
        bond(detect_mode="miimon", miimon=150),
        bond(detect_mode="miimon", miimon=100),
        ("Port", "bond0", "other_config:bond-miimon-interval"),
        '"100"',
    ),
    "mirrors": (TWO, mirror(), ("Mirror", "tap", "external_ids:drover-managed"), '"true"'),
    "mirrors.name": (mirror(), mirror(name="other"), ("Mirror", "other", "name"), "other"),
    "mirrors.select_all": (
        mirror(),
        mirror(select_all=True, select_src=[]),
        ("Mirror", "tap", "select_all"),
        "true",
    ),
    "mirrors.select_src": (
        mirror(),
        mirror(select_src=[], select_dst=["eth2"]),
        ("Mirror", "tap", "select_src_port"),
        "[]",
    ),
    "mirrors.select_dst": (
        mirror(select_dst=["eth2"]),
        mirror(select_dst=[]),
        ("Mirror", "tap", "select_dst_port"),
        "[]",
    ),
    "mirrors.select_vlans": (
        mirror(select_vlans=[7]),
        mirror(select_vlans=[9, 8]),
        ("Mirror", "tap", "select_vlan"),
        "[8, 9]",
    ),
    "mirrors.output_port": (
        mirror(output_port=None, output_vlan=9),
        mirror(),
        ("Mirror", "tap", "output_vlan"),
        "[]",
    ),
    "mirrors.output_vlan": (mirror(), mirror(output_port=None, output_vlan=9), ("Mirror", "tap", "output_port"), "[]"),
}
for _of, _one, _name in (("ports", port, "eth0"), ("bonds", bond, "bond0")):
    _qos = {"max_rate": 10**9, "queues": [{"id": 0, "min_rate": 10**6}, {"id": 5, "max_rate": 10**8}]}
    _old = _one(qos={"max_rate": 10**6, "queues": [{"id": 0, "burst": 8000, "priority": 3}]})
    OPTIONS |= {
        f"{_of}.cvlans": (
            _one(tag=5),
            _one(tag=5, vlan_mode="dot1q-tunnel", cvlans=[8, 7]),
            ("Port", _name, "cvlans"),
            "[7, 8]",
        ),
        f"{_of}.qos": (_one(), _one(qos=_qos), ("QoS", ".", "external_ids"), '{drover-managed="true"}'),
        f"{_of}.qos.type": (_old, _one(qos={"type": "linux-hfsc"}), ("QoS", ".", "type"), "linux-hfsc"),
        f"{_of}.qos.max_rate": (_old, _one(qos=_qos), ("QoS", ".", "other_config"), '{max-rate="1000000000"}'),
        f"{_of}.qos.queues": (_old, _one(qos={"max_rate": 10**6}), ("QoS", ".", "queues"), "{}"),
    }
    for _key, _value in (("min_rate", 10**6), ("max_rate", 10**8), ("burst", 9000), ("priority", 7)):
        OPTIONS[f"{_of}.qos.queues.{_key}"] = (
            _old,
            _one(qos={"queues": [{"id": 3, _key: _value}]}),
            ("Queue", ".", "other_config"),
            f'{{{_key.replace("_", "-")}="{_value}"}}',
        )
    OPTIONS[f"{_of}.qos.queues.id"] = OPTIONS[f"{_of}.qos.queues.min_rate"]
# These change nothing by themselves; the tests of their own that show their effect.
ELSEWHERE = {
    "name": "test_two_bridges",
    "allow_connection_interface": "test_what_the_machine_hangs_on_is_not_cut",
    "purge_ports": "test_purge_ports_spares_only_virtual_machines",
    "wait_lacp": "test_wait_lacp",
    "confirm_timeout": "test_an_unconfirmed_change_is_taken_back",
    "timeout": "test_switch_that_does_not_run",
    "socket": "test_no_database",
}


def rows(ovs, table):
    return len(ovs.vsctl("--bare", "--columns=_uuid", "list", table).split())


def names_of(fields, path=""):
    return [name for field in fields for name in (path + field.name, *names_of(field.fields, path + field.name + "."))]


def test_every_option_has_a_row():
    assert sorted(names_of(ovs_bridge.FIELDS)) == sorted([*OPTIONS, *ELSEWHERE])
    for test in ELSEWHERE.values():
        assert test in globals()


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_option(converge, module, ovs, option):
    before, options, cell, value = OPTIONS[option]
    start = module(**before)
    assert not start.get("failed"), start
    result = converge(**options)
    if cell is None:
        assert ovs.vsctl("list-br") == ""
        assert result["resource"] is None
    else:
        assert ovs.get(*cell) == value
    # The same from nothing: what a new bridge gets is what an old one is changed to.
    ovs.bare()
    if option not in ("state", "ports.type", "ports.peer", "ports.mac"):
        converge(**options)
    assert rows(ovs, "QoS") == len(ovs.vsctl("--bare", "--columns=qos", "list", "Port").split())


def test_two_bridges(converge, ovs):
    converge(name="br0", **UP)
    converge(name="br1", ports=[{"name": "eth1"}])
    assert ovs.vsctl("list-br").split() == ["br0", "br1"]
    assert ovs.vsctl("list-ports", "br1").split() == ["eth1"]


# The twelve ways in which the module that people used before fails (found by running it).


def test_o1_bridge_with_fail_mode_task_without(module, converge, ovs):
    module(fail_mode="secure")
    converge(changed=False)
    assert ovs.get("Bridge", "br0", "fail_mode") == "secure"


def test_o2_first_external_id_of_an_existing_bridge(module, converge, ovs):
    module()
    converge(external_ids={"owner": "net"})
    assert ovs.get("Bridge", "br0", "external_ids") == "{owner=net}"


def test_o3_two_external_ids_at_once_in_one_transaction(module, sent, ovs):
    module()
    sent.clear()
    module(external_ids={"a": "1", "b": "2"})
    assert ovs.get("Bridge", "br0", "external_ids") == '{a="1", b="2"}'
    assert sent.count("write") == 1


def test_o4_settings_of_an_existing_bridge_are_not_ignored(module, converge, ovs):
    module()
    converge(rstp=True, rstp_priority=4096)
    assert ovs.get("Bridge", "br0", "rstp_enable") == "true"


def test_o5_port_with_a_tag_task_without(module, converge, ovs):
    module(**port(tag=5))
    converge(changed=False, **port())
    assert ovs.get("Port", "eth0", "tag") == "5"


def test_o6_trunks_of_an_existing_port(module, converge, ovs):
    module(**UP)
    result = converge(**port(trunks=[1, 2]))
    assert ovs.get("Port", "eth0", "trunks") == "[1, 2]"
    assert result["actions"] == ["change port eth0 of bridge br0: trunks [] -> [1, 2]"]


def test_o7_port_of_another_bridge_is_refused_by_name(module, ovs):
    module(name="br1", ports=[{"name": "eth0"}, {"name": "eth1"}])
    refused(module(**UP), "eth0", "br1")
    refused(module(**bond()), "eth0", "br1")
    assert ovs.vsctl("list-br").split() == ["br1"]
    module(name="br1", bonds=[{"name": "bond1", "members": ["eth2", "eth3"]}])
    refused(module(ports=[{"name": "eth3"}]), "eth3", "bond1", "br1")


def test_o8_bond_converges_in_mode_lacp_and_members(module, converge, ovs):
    module(**bond())
    result = converge(**bond(members=["eth0", "eth1", "eth2"], mode="balance-tcp", lacp="active", lacp_time="fast"))
    assert (ovs.get("Port", "bond0", "lacp"), ovs.get("Port", "bond0", "bond_mode")) == ("active", "balance-tcp")
    assert ovs.vsctl("list-ifaces", "br0").split() == ["eth0", "eth1", "eth2"]
    assert "lacp off -> active" in result["actions"][0] and "[eth0, eth1] -> [eth0, eth1, eth2]" in result["actions"][0]
    converge(**bond(members=["eth3", "eth1"]))
    assert ovs.vsctl("list-ifaces", "br0").split() == ["eth1", "eth3"]


def test_o9_a_setting_that_looks_like_a_number_is_stable(converge):
    converge(**bond(other_config={"lacp-system-priority": 100}))
    converge(changed=False, **bond(other_config={"lacp-system-priority": "100"}))
    converge(**bond(detect_mode="miimon", miimon=100))


@pytest.mark.parametrize("value", ["a=b", "a b", 'a"b', "a -- del-br br0", "{{ 7*7 }}", "$(reboot)", "ü\n", ""])
def test_o10_any_text_is_a_value(converge, ovs, value):
    converge(external_ids={"note": value})
    assert json.loads(ovs.get("Bridge", "br0", "external_ids:note") if value else '""') == value


def test_o11_check_mode_shows_the_difference_and_writes_nothing(module, sent, ovs):
    module(**UP)
    before = ovs.vsctl("show")
    sent.clear()
    result = module(_ansible_check_mode=True, **port(tag=7), rstp=True)
    assert sent == ["read"] and ovs.vsctl("show") == before
    assert result["diff"]["before"]["ports"]["eth0"]["tag"] is None
    assert result["diff"]["after"]["ports"]["eth0"]["tag"] == 7
    assert result["actions"] == [
        "set rstp of bridge br0: False -> True",
        "change port eth0 of bridge br0: tag none -> 7",
    ]


def test_o12_rows_that_refer_to_each_other_are_made_together(converge, sent, ovs):
    converge(**bond(), ports=[{"name": "host0", "type": "internal", "tag": 5}])
    assert sent.count("write") == 1
    assert ovs.vsctl("list-ports", "br0").split() == ["bond0", "host0"]


def test_an_internal_port_has_the_same_mac_whenever_it_is_made(module, ovs):
    host0 = [{"name": "host0", "type": "internal"}]
    ovs.vsctl("set", "Open_vSwitch", ".", "external_ids:system-id=machine-1")
    try:
        predicted = module(ports=host0, _ansible_check_mode=True)
        made = module(ports=host0)
        assert made["diff"] == predicted["diff"] and not module(ports=host0)["changed"]
        first = ovs.get("Interface", "host0", "mac")
        assert re.fullmatch(r'"02(:[0-9a-f]{2}){5}"', first)
        module(ports=[])
        module(ports=host0)
        assert ovs.get("Interface", "host0", "mac") == first
        assert module(ports=[{**host0[0], "mac": "52:54:00:00:00:01"}])["changed"]
        assert not module(ports=host0)["changed"]
        module(state="absent")
        ovs.vsctl("set", "Open_vSwitch", ".", "external_ids:system-id=machine-2")
        module(ports=host0)
        assert ovs.get("Interface", "host0", "mac") != first
    finally:
        ovs.vsctl("remove", "Open_vSwitch", ".", "external_ids", "system-id")


# How much is sent


def test_a_hundred_ports_are_one_transaction(module, sent, ovs):
    ports = [{"name": f"v{number}", "type": "internal", "tag": number} for number in range(1, 101)]
    result = module(ports=ports)
    assert sent.count("write") == 1 and len(result["actions"]) == 101
    sent.clear()
    changed = module(ports=[{**item, "tag": 1000 + number} for number, item in enumerate(ports)])
    assert sent.count("write") == 1 and len(changed["actions"]) == 100
    sent.clear()
    module(ports=[])
    assert sent.count("write") == 1 and ovs.vsctl("list-ports", "br0") == ""


def test_nothing_to_do_is_only_reads(module, sent):
    module(**bond())
    sent.clear()
    assert not module(**bond())["changed"]
    assert sent == ["read"]
    sent.clear()
    module(_ansible_check_mode=True, **bond(mode="balance-slb"))
    assert sent == ["read"]


# Whose ports


def plug_vm(ovs, name="vnet0", bridge="br0"):
    """Plug a tap as libvirt does."""
    ovs.vsctl(
        *("add-port", bridge, name, "tag=100", "--", "set", "Interface", name),
        *('external_ids:attached-mac="52:54:00:00:00:01"', "external_ids:iface-id=6ad5", "external_ids:vm-id=7c"),
    )


def test_a_port_that_is_no_longer_declared_goes_but_only_ours(module, converge, ovs):
    module(ports=[{"name": "eth0"}, {"name": "eth1"}])
    ovs.vsctl("add-port", "br0", "eth2")
    plug_vm(ovs)
    result = converge(**UP)
    assert result["actions"] == ["remove port eth1 from bridge br0"]
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0", "eth2", "vnet0"]
    assert result["runtime"]["vm_ports"] == ["vnet0"]


def test_purge_ports_spares_only_virtual_machines(module, converge, ovs):
    module(**UP)
    plug_vm(ovs)
    plug_vm(ovs, "tap7")
    ovs.vsctl("add-port", "br0", "eth2", "--", "add-bond", "br0", "theirs", "eth3", "eth4")
    converge(changed=False, **UP)
    result = converge(purge_ports=True, bonds=[], **UP)
    assert result["actions"] == ["remove port eth2 from bridge br0", "remove bond theirs from bridge br0"]
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0", "tap7", "vnet0"]
    assert ovs.get("Port", "vnet0", "tag") == "100"


def test_without_the_lists_all_ports_stay(module, converge):
    module(**bond(), ports=[{"name": "eth2"}])
    converge(changed=False)
    converge(changed=False, purge_ports=True)
    converge(ports=[])
    converge(bonds=[])


def test_a_declared_port_of_others_is_taken_over(module, converge, ovs):
    module()
    ovs.vsctl("add-port", "br0", "eth0", "tag=9", "--", "set", "Port", "eth0", "external_ids:who=me")
    result = converge(**UP)
    assert result["actions"] == ["change port eth0 of bridge br0: marked as drover-managed"]
    assert ovs.get("Port", "eth0", "external_ids") == '{drover-managed="true", who=me}'
    assert ovs.get("Port", "eth0", "tag") == "9"


def test_a_machine_s_port_is_not_declared_and_holds_its_bridge(module, ovs):
    module()
    plug_vm(ovs)
    refused(module(ports=[{"name": "vnet0", "tag": 5}]), "vnet0", "virtual machine")
    refused(module(**bond(members=["eth0", "vnet0"])), "vnet0", "virtual machine")
    refused(module(state="absent", purge_ports=True), "br0", "vnet0")
    refused(module(datapath_type="netdev"), "datapath_type", "vnet0")
    assert ovs.vsctl("list-ports", "br0").split() == ["vnet0"]


def test_absent_with_ports_of_others_must_be_told(module, converge, ovs):
    module(**UP)
    ovs.vsctl("add-port", "br0", "eth2")
    refused(module(state="absent"), "eth2", "purge_ports")
    converge(state="absent", purge_ports=True)
    converge(changed=False, state="absent")


def test_an_absent_bridge_frees_its_own_ports(module, converge, ovs):
    module(**bond(), ports=[{"name": "eth2"}])
    converge(state="absent")
    assert ovs.vsctl("list-br") == "" and ovs.vsctl("--columns=name", "list", "Interface") == ""


def test_ports_become_members_of_a_bond_and_ports_again(module, converge, ovs):
    module(ports=[{"name": "eth0", "tag": 5}, {"name": "eth1"}])
    result = converge(**bond())
    assert "remove port eth0 from bridge br0" in result["actions"]
    assert ovs.vsctl("list-ports", "br0").split() == ["bond0"]
    converge(bonds=[], ports=[{"name": "eth0"}, {"name": "eth1"}])
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0", "eth1"]


def test_a_port_and_a_bond_change_into_each_other_under_one_name(module, converge, ovs):
    module(ports=[{"name": "up", "type": "internal"}])
    converge(bonds=[{"name": "up", "members": ["eth0", "eth1"]}])
    assert ovs.vsctl("list-ifaces", "br0").split() == ["eth0", "eth1"]
    converge(ports=[{"name": "up", "type": "internal"}])
    assert ovs.vsctl("list-ifaces", "br0").split() == ["up"]


def test_a_member_moves_between_bonds(module, converge, ovs):
    one, two = {**BOND, "members": ["eth0", "eth1", "eth2"]}, {"name": "bond1", "members": ["eth3", "eth4"]}
    module(bonds=[one, two])
    converge(bonds=[BOND, {**two, "members": ["eth2", "eth3", "eth4"]}])
    ids = ovs.get("Port", "bond1", "interfaces")
    assert ovs.get("Interface", "eth2", "_uuid") in ids


@pytest.mark.parametrize("lldp", [True, False])
def test_members_of_which_only_one_speaks_lldp(module, converge, ovs, lldp):
    module(**bond())
    ovs.vsctl("set", "Interface", "eth0", "lldp:enable=true")
    assert converge(changed=False, **bond())["resource"]["bonds"]["bond0"]["lldp"] is None
    converge(**bond(members=["eth0", "eth1", "eth2"], tag=5))
    assert [ovs.get("Interface", nic, "lldp") for nic in ("eth0", "eth1", "eth2")] == ['{enable="true"}', "{}", "{}"]
    converge(**bond(lldp=lldp))
    assert [ovs.get("Interface", nic, "lldp") for nic in ("eth0", "eth1")] == ['{enable="true"}' if lldp else "{}"] * 2


@pytest.mark.parametrize(
    "staying,left", [(["eth0", "eth1"], "1400"), (["eth2", "eth3"], "1500"), (["eth3", "eth4"], "[]")]
)
def test_what_members_differed_in_goes_with_the_odd_one(module, converge, ovs, staying, left):
    module(**bond(members=["eth0", "eth1", "eth2"]))
    for nic, mtu in (("eth0", 1400), ("eth1", 1400), ("eth2", 1500)):
        ovs.vsctl("set", "Interface", nic, f"mtu_request={mtu}")
    converge(**bond(members=staying))
    assert [ovs.get("Interface", nic, "mtu_request") for nic in staying] == [left] * 2


def test_lldp_is_as_the_bond_says(module, converge, ovs):
    module(**port(lldp=True))
    converge(ports=[], **bond())
    assert ovs.get("Interface", "eth0", "lldp") == "{}"
    module(**bond(lldp=True))
    converge(**bond(members=["eth0", "eth1", "eth2"]))
    assert ovs.get("Interface", "eth2", "lldp") == '{enable="true"}'


@pytest.mark.parametrize("kind", [port, bond])
def test_lldp_stays_until_it_is_switched_off(module, converge, ovs, kind):
    converge(**kind(lldp=True))
    ovs.vsctl("set", "Interface", "eth0", "lldp:of=others")
    converge(**kind(tag=5))
    assert ovs.get("Interface", "eth0", "lldp") == '{enable="true", of=others}'
    converge(**kind(lldp=False))
    assert ovs.get("Interface", "eth0", "lldp") == "{of=others}"
    ovs.vsctl("set", "Interface", "eth0", "lldp:enable=false")
    converge(changed=False, **kind(lldp=False))


def test_a_single_port_of_others_is_not_taken_into_a_bond_unasked(module, converge, ovs):
    module()
    ovs.vsctl("add-port", "br0", "eth0")
    refused(module(**bond()), "eth0", "purge_ports")
    converge(purge_ports=True, **bond())


def test_the_bridge_s_own_port(converge, module, ovs):
    converge(ports=[{"name": "br0", "tag": 5, "mtu": 1400}])
    assert ovs.get("Port", "br0", "tag") == "5" and ovs.get("Port", "br0", "external_ids") == "{}"
    converge(changed=False, ports=[])
    refused(module(ports=[{"name": "br0", "type": "system"}]), "br0", "internal")


# What is refused before anything is asked


@pytest.mark.parametrize("kind", [port, bond])
@pytest.mark.parametrize(
    "options,words",
    [
        ({"tag": 0}, ["tag: 0", "1 to 4094"]),
        ({"tag": 4095}, ["tag: 4095", "1 to 4094"]),
        ({"tag": 4096}, ["1 to 4094"]),
        ({"tag": -1}, ["1 to 4094"]),
        ({"tag": "ten"}, ["tag"]),
        ({"trunks": [10, 10]}, ["trunks", "twice"]),
        ({"trunks": [0]}, ["trunks", "1 to 4094"]),
        ({"trunks": [5000]}, ["trunks", "1 to 4094"]),
        ({"tag": 5, "trunks": [6]}, ["tag and trunks", "native"]),
        ({"tag": 5, "trunks": [6], "vlan_mode": "access"}, ["tag and trunks"]),
        ({"tag": 5, "vlan_mode": "trunk"}, ["no tag"]),
        ({"vlan_mode": "access"}, ["needs a tag"]),
        ({"vlan_mode": "native-tagged", "trunks": [5]}, ["needs a tag"]),
        ({"trunks": [5], "vlan_mode": "access"}, ["access"]),
        ({"vlan_mode": "dot1q-tunnel"}, ["needs a tag"]),
        ({"tag": 5, "trunks": [6], "vlan_mode": "dot1q-tunnel"}, ["tag and trunks"]),
        ({"tag": 5, "cvlans": [6]}, ["cvlans", "dot1q-tunnel"]),
        ({"mtu": 10}, ["mtu", "68"]),
        ({"name": "x" * 16}, ["name", "15"]),
    ],
)
def test_wrong_options_of_ports_and_bonds(module, ovs, kind, options, words):
    refused(module(**kind(**options)), *words)
    assert ovs.vsctl("list-br") == ""


@pytest.mark.parametrize(
    "options,words",
    [
        (bond(members=["eth0"]), ["members", "at least two"]),
        (bond(members=[]), ["members", "at least two"]),
        ({"bonds": [{"name": "bond0"}]}, ["bond0", "needs members"]),
        (bond(members=["eth0", "eth0"]), ["eth0", "twice"]),
        (bond(members=["eth0", "eth9"]), ["eth9", "no such device"]),
        ({"ports": [{"name": "eth9"}]}, ["eth9", "no such device", "internal"]),
        ({**bond(), **port()}, ["eth0", "either one port, one bond or one bond's member"]),
        ({"bonds": [BOND, {"name": "bond1", "members": ["eth1", "eth2"]}]}, ["eth1", "either"]),
        ({"bonds": [BOND, BOND]}, ["bonds", "bond0", "twice"]),
        ({"ports": [{"name": "eth0"}, {"name": "eth0", "tag": 4}]}, ["ports", "eth0", "twice"]),
        (bond(mode="balance-tcp"), ["balance-tcp", "LACP", "lacp: active"]),
        (bond(other_config={"lacp-time": "fast"}), ["lacp_time"]),
        ({"other_config": {"rstp-priority": 4096}}, ["br0", "rstp_priority", "instead of other_config"]),
        (port(other_config={"rstp-path-cost": None}, rstp_path_cost=3), ["eth0", "rstp_path_cost"]),
        (tunnel(options={"remote_ip": "192.0.2.1"}), ["vxlan0", "remote_ip"]),
        (tunnel(options={"psk": "open sesame"}), ["psk", "shown in logs"]),
        (tunnel(remote_ip=None), ["vxlan0", "needs remote_ip"]),
        (tunnel(remote_ip="other.example"), ["remote_ip", "other.example"]),
        (tunnel(key="0x123456789"), ["key", "number or flow"]),
        (port(remote_ip="192.0.2.1"), ["eth0", "belong to a tunnel"]),
        (tunnel(qos={"max_rate": 10}), ["vxlan0", "vxlan port can't have qos", "limit the NIC"]),
        (port(type="patch", peer="x", ingress_policing_rate=9), ["eth0", "patch port can't have qos"]),
        ({"stp": True, "rstp": True}, ["stp or rstp, not both"]),
        ({"rstp_priority": 4097}, ["rstp_priority", "steps of 4096"]),
        ({"stp_priority": 70000}, ["stp_priority", "0 to 65535"]),
        ({"flood_vlans": [4096]}, ["flood_vlans", "0 to 4095"]),
        ({"flood_vlans": [-1]}, ["flood_vlans", "0 to 4095"]),
        ({"flood_vlans": [9, 9]}, ["flood_vlans", "twice"]),
        ({"flood_vlans": [9], **bond(mode="balance-slb")}, ["br0", "flood_vlans", "balance-slb", "bond0"]),
        ({"controllers": ["192.0.2.1"]}, ["controllers", "tcp:ADDRESS:PORT"]),
        ({"protocols": ["OpenFlow9"]}, ["protocols"]),
        (port(rstp_port_priority=17), ["rstp_port_priority", "steps of 16"]),
        (port(ingress_policing_rate=-1), ["ingress_policing_rate"]),
        (port(qos={"max_rate": 0}), ["qos.max_rate", "1 to"]),
        (port(qos={"queues": [{"id": 1}, {"id": 1}]}), ["qos.queues", "twice"]),
        (bond(rebalance_interval=10), ["rebalance_interval", "1000"]),
        (bond(miimon=50), ["miimon", "detect_mode: miimon"]),
        (bond(fallback_ab=True), ["fallback_ab", "lacp: active"]),
        (mirror(output_vlan=9), ["mirror tap", "one output"]),
        (mirror(output_port=None), ["mirror tap", "one output"]),
        (mirror(select_src=[]), ["mirror tap", "select_all"]),
        (mirror(select_all=True), ["mirror tap", "either select_all"]),
        (mirror(output_port="eth0"), ["mirror tap", "eth0 can't be selected"]),
        (mirror(select_dst=["eth5"]), ["mirror tap", "no port eth5"]),
        (bond(members=["eth0", "br0"]), ["br0"]),
        (bond(name="br0"), ["br0"]),
        (port(type="patch"), ["eth0", "peer"]),
        (port(peer="eth1"), ["eth0", "peer"]),
        (port(type="patch", peer="eth0"), ["eth0", "peer"]),
        (port(mac="01:00:5e:00:00:01"), ["mac", "multicast"]),
    ],
)
def test_wrong_options(module, ovs, options, words):
    refused(module(**options), *words)
    assert ovs.vsctl("list-br") == ""


BAD_NAMES = [
    *("..", ".", "-rf", "--help", "`id`", "; reboot", "a b", "'  '", "br0 ", "a\tb", 'br"x', "*", "~root", "%s%n"),
    *("{{ 7*7 }}", "\u202ebr", "a/b", "p2\n", "--", "x" * 4096, "", "br0;del", "$(id)", "a,b", "a..b", "ü"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_reaches_the_database(module, ovs, sent, name):
    names = (
        *({"name": name}, port(name=name), bond(name=name), bond(members=["eth0", name]), port(peer=name)),
        *(mirror(name=name), mirror(select_src=[name]), mirror(select_dst=[name]), mirror(output_port=name)),
    )
    for options in names:
        refused(module(**options), "not a valid name")
    assert sent == [] and ovs.vsctl("list-br") == ""


# Queues, mirrors, controllers


QOS = {"max_rate": 10**9, "queues": [{"id": 0, "min_rate": 10**6}, {"id": 1, "max_rate": 10**8, "priority": 2}]}


def test_qos_is_made_kept_changed_and_leaves_nothing_behind(module, converge, sent, ovs):
    converge(**port(qos=QOS))
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (1, 2)
    converge(changed=False, **port())
    sent.clear()
    result = module(**port(qos={**QOS, "max_rate": 10**8}))
    assert sent.count("write") == 1 and "max_rate=100000000" in result["actions"][0]
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (1, 2)
    converge(**port(qos={"type": "none"}))
    converge(**bond(qos=QOS), ports=[])
    converge(bonds=[])
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (0, 0)
    converge(**port(qos=QOS))
    converge(state="absent")
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (0, 0)


def test_the_qos_of_others_is_replaced_and_stays_for_them(module, converge, ovs):
    module(**UP)
    ovs.vsctl(
        *("--", "--id=@q", "create", "QoS", "type=linux-htb", "other-config:max-rate=7", "queues:0=@k"),
        *("--", "--id=@k", "create", "Queue", "other-config:max-rate=7"),
        *("--", "set", "Port", "eth0", "qos=@q"),
    )
    converge(changed=False, **UP)
    converge(**port(qos=QOS))
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (2, 3)
    converge(ports=[])
    assert ovs.get("QoS", ".", "other_config:max-rate") == '"7"' and rows(ovs, "Queue") == 1


def test_qos_of_ours_that_somebody_shares_is_not_torn_from_them(module, converge, ovs):
    module(ports=[{"name": "eth0", "qos": QOS}, {"name": "eth1"}])
    ovs.vsctl("set", "Port", "eth1", f"qos={ovs.get('Port', 'eth0', 'qos')}")
    converge(ports=[{"name": "eth1"}])
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (1, 2)
    converge(ports=[])
    assert (rows(ovs, "QoS"), rows(ovs, "Queue")) == (0, 0)


def test_mirror_of_a_machine_s_port(module, converge, ovs):
    module(**TWO)
    plug_vm(ovs)
    converge(**mirror(select_src=["vnet0"], select_dst=["vnet0"]))
    assert ovs.get("Mirror", "tap", "select_src_port") == f"[{ovs.get('Port', 'vnet0', '_uuid')}]"
    ovs.vsctl("del-port", "vnet0")  # the machine has moved away
    converge(changed=False, **TWO)
    refused(module(**mirror(select_src=["vnet0"])), "mirror tap", "no port vnet0")
    converge(changed=True, **TWO, mirrors=[])


def test_mirrors_of_others_stay_and_a_port_may_go_with_its_mirror(module, converge, ovs):
    module(**mirror(select_dst=["eth2"]))
    create = ("--", "--id=@m", "create", "Mirror", "name=theirs", "select-all=true", "output-vlan=9")
    ovs.vsctl(*create, "--", "add", "Bridge", "br0", "mirrors", "@m")
    gone = converge(ports=[{"name": "eth0"}, {"name": "eth1"}])
    assert "change mirror tap of bridge br0: select_dst [eth2] -> []" in gone["actions"]
    refused(module(ports=[{"name": "eth0"}]), "mirror tap", "one output")
    converge(ports=[{"name": "eth0"}], mirrors=[])
    assert rows(ovs, "Mirror") == 1
    converge(state="absent")


def test_a_controller_that_stays_keeps_its_row(module, converge, ovs):
    module(controllers=["tcp:192.0.2.1:6653"])
    ovs.vsctl("set", "Controller", "br0", "inactivity_probe=9000")
    result = converge(controllers=["tcp:192.0.2.2:6653", "tcp:192.0.2.1:6653"])
    assert "9000" in ovs.vsctl("--columns=inactivity_probe", "list", "Controller")
    assert result["runtime"]["controllers"] == {"tcp:192.0.2.1:6653": False, "tcp:192.0.2.2:6653": False}
    converge(controllers=[])
    assert rows(ovs, "Controller") == 0


def test_everything_at_once_is_one_transaction(module, sent, ovs):
    result = module(
        **bond(qos=QOS),
        **{**TWO, "ports": [{"name": "eth2", "qos": QOS}, VXLAN]},
        mirrors=[{"name": "tap", "select_src": ["bond0"], "output_port": "eth2"}],
        controllers=["tcp:192.0.2.1:6653"],
        rstp=True,
    )
    assert not result.get("failed") and sent.count("write") == 1
    sent.clear()
    module(state="absent")
    assert sent.count("write") == 1 and (rows(ovs, "QoS"), rows(ovs, "Queue"), rows(ovs, "Mirror")) == (0, 0, 0)


def test_what_the_state_does_not_know_survives_a_change(module, converge, ovs):
    module(**tunnel(key=7))
    ovs.vsctl("set", "Interface", "vxlan0", "options:psk=sesame")
    result = converge(**tunnel(key=8))
    assert "sesame" not in json.dumps(result)
    assert ovs.get("Interface", "vxlan0", "options:psk") == "sesame"


def test_flood_vlans_of_a_bridge_with_an_slb_bond(module, converge, ovs):
    module(**bond(mode="balance-slb"))
    refused(module(flood_vlans=[9]), "flood_vlans", "bond0")
    ovs.vsctl("set", "Bridge", "br0", "flood_vlans=9")
    converge(rstp=True)  # what others wrote is not judged
    converge(flood_vlans=[])
    assert ovs.get("Bridge", "br0", "flood_vlans") == "[]"


def test_a_tunnel_becomes_another_port_without_its_options(module, converge, ovs):
    module(**tunnel(key=7, options={"tos": "inherit"}))
    converge(ports=[{"name": "vxlan0", "type": "internal"}])
    assert ovs.get("Interface", "vxlan0", "options") == "{}"


def test_a_setting_without_a_value_is_the_switch_s_own_again(module, converge, ovs):
    module(**port(rstp_path_cost=2000), rstp_priority=4096)
    result = converge(**port(other_config={"rstp-path-cost": None}), other_config={"rstp-priority": None})
    assert result["resource"]["rstp_priority"] == 32768
    assert ovs.get("Port", "eth0", "other_config") == "{}" and ovs.get("Bridge", "br0", "other_config") == "{}"


def test_a_port_that_becomes_a_member_leaves_its_settings_behind(module, converge, ovs):
    module(**port(ingress_policing_rate=1000, mtu=1400, external_ids={"rack": "7"}))
    converge(**bond())
    assert ovs.get("Interface", "eth0", "ingress_policing_rate") == "0"
    assert ovs.get("Interface", "eth0", "external_ids") == '{rack="7"}'


def test_rstp_tells_the_part_of_each_port(converge, ovs):
    result = converge(rstp=True, **port(rstp_path_cost=2000))
    rstp = result["runtime"]["rstp"]
    assert rstp["bridge_id"] == rstp["root_id"] and rstp["bridge_id"].startswith("8.000.")
    assert rstp["ports"]["eth0"]["role"] in ("Designated", "Disabled")


@pytest.mark.parametrize("value", [*BAD_NAMES, "flow -- del-br br0", "192.0.2.1;id", "tcp:192.0.2.1:1 -- del-br br0"])
def test_no_other_word_reaches_the_database_either(module, ovs, sent, value):
    for options in (tunnel(remote_ip=value), tunnel(local_ip=value), tunnel(key=value), {"controllers": [value]}):
        refused(module(**options), " is not a")
    assert sent == [] and ovs.vsctl("list-br") == ""


# When the switch does not play


def test_an_error_of_the_switch_is_an_error_of_the_task(module, ovs):
    module(**UP)
    ovs.vsctl("--no-wait", "set", "Interface", "eth0", "type=nonsense")
    time.sleep(0.3)
    result = module(**port(tag=5))
    assert result["failed"] and result["error"] == "Failed"
    assert "eth0 on bridge br0" in result["msg"] and "could not open network device" in result["msg"]
    # It is loud as long as it lasts, also when there is nothing to change.
    refused(module(**port(tag=5)), "eth0 on bridge br0")
    assert not module(ports=[]).get("failed")


def test_a_new_bridge_names_the_machines_that_are_in_none(module, ovs, tmp_path):
    module(name="br9")
    ovs.vsctl("add-port", "br9", "vnet2")
    for name in ("vnet0", "vnet1", "vnet2", "vnet3/brport", "tap0"):
        (tmp_path / name).mkdir(parents=True)
    made = module()
    assert made["changed"] and not made.get("failed")
    assert made["warnings"] == [
        "vnet0, vnet1 of virtual machines are in no bridge: module drover.kvm.vm_ports plugs them again"
    ]
    assert module()["warnings"] == []


def test_a_tunnel_that_the_switch_refuses_is_an_error_of_the_task(module, ovs):
    with ovs_server.private_switch("system") as tunnels:
        # Two tunnels with the same ends.
        result = module(socket=tunnels.socket, ports=[VXLAN, {**VXLAN, "name": "vxlan1"}])
        assert result["failed"] and result["changed"] and result["error"] == "Failed", result
        assert "on bridge br0: could not add network device vxlan" in result["msg"] and "File exists" in result["msg"]
        # It is loud as long as it lasts, and mended by another key once the port is made anew.
        assert module(socket=tunnels.socket)["failed"]
        assert not module(socket=tunnels.socket, ports=[]).get("failed")
        mended = module(socket=tunnels.socket, ports=[VXLAN, {**VXLAN, "name": "vxlan1", "key": 7}])
        assert not mended.get("failed") and mended["runtime"]["interfaces"]["vxlan1"]["ofport"] > 0


def test_a_patch_cable_with_one_end_is_a_warning(module, converge):
    first = converge(ports=[{"name": "to-br1", "type": "patch", "peer": "to-br0"}])
    assert "no port to-br0 yet" in " ".join(first["warnings"])
    second = converge(name="br1", ports=[{"name": "to-br0", "type": "patch", "peer": "to-br1"}])
    assert second["warnings"] == []


def test_frozen_database_is_reported_within_ten_seconds(module, ovs):
    start = time.monotonic()
    with ovs.frozen("ovsdb-server"):
        result = module(**UP)
    refused(result, ovs.socket, "no answer within 8 s")
    assert result["error"] == "Unreachable" and time.monotonic() - start < 10


def test_no_database(module, tmp_path):
    result = module(socket=str(tmp_path / "nothing.sock"))
    refused(result, "nothing.sock", "is ovsdb-server running?")
    assert result["error"] == "Unreachable"


def test_switch_that_does_not_run(module, ovs):
    with ovs.frozen("ovs-vswitchd"):
        result = module(timeout=1, **UP)
        assert result["failed"] and result["error"] == "TimedOut" and "is ovs-vswitchd running?" in result["msg"]
        # The change stands in the database; the next run has nothing to write, and still does not call it done.
        again = module(timeout=1, **UP)
        refused(again, "ovs-vswitchd takes over", "is ovs-vswitchd running?")
    assert not module(**UP)["changed"]


def test_wait_lacp(module, ovs):
    # At first a member has expired, later it falls back to defaults: neither means that a partner has spoken.
    bonds = module(**bond(lacp="active"))["runtime"]["bonds"]
    assert bonds["bond0"]["lacp_status"] == "waiting"
    members = bonds["bond0"]["members"]
    assert members["eth0"]["link_state"] == "up" and members["eth1"]["lacp"].split()[0] in ("expired", "defaulted")
    start = time.monotonic()
    refused(module(wait_lacp=1, **bond()), "no partner", "bond0 (eth0 is ")
    assert time.monotonic() - start < 5
    assert not module(wait_lacp=1, **bond(lacp="off")).get("failed")


def test_one_member_in_step_is_enough_and_the_other_is_a_warning(module, ovs, monkeypatch):
    module(**bond(lacp="active"))
    heard = {"eth0": "current attached", "eth1": "defaulted detached"}
    monkeypatch.setattr(_ovs.Ovs, "lacp", lambda self: heard)
    result = module(wait_lacp=1, **bond())
    assert not result.get("failed") and result["runtime"]["bonds"]["bond0"]["lacp_status"] == "negotiated"
    assert "bond0 (eth1 is defaulted detached)" in " ".join(result["warnings"])


def test_a_change_in_between_stops_the_whole_transaction(module, ovs, monkeypatch):
    module(**UP)
    original = _ovs.Ovs.commit

    def meanwhile(self, change):
        ovs.vsctl("set", "Port", "eth0", "tag=77")
        return original(self, change)

    monkeypatch.setattr(_ovs.Ovs, "commit", meanwhile)
    result = module(rstp=True, **port(tag=5))
    refused(result, "somebody else changed", "run it again")
    assert ovs.get("Bridge", "br0", "rstp_enable") == "false" and ovs.get("Port", "eth0", "tag") == "77"
    monkeypatch.undo()


def test_a_machine_plugged_in_between_is_not_lost(module, ovs, monkeypatch):
    module(**UP)
    original = _ovs.Ovs.commit

    def meanwhile(self, change):
        plug_vm(ovs)
        return original(self, change)

    monkeypatch.setattr(_ovs.Ovs, "commit", meanwhile)
    assert not module(ports=[{"name": "eth1"}]).get("failed")
    assert ovs.vsctl("list-ports", "br0").split() == ["eth1", "vnet0"]
    monkeypatch.setattr(_ovs.Ovs, "commit", lambda self, change: plug_vm(ovs, "vnet1") or original(self, change))
    ovs.vsctl("del-port", "vnet0")
    refused(module(state="absent"), "somebody else changed")
    assert ovs.vsctl("list-ports", "br0").split() == ["eth1", "vnet1"]


# A change that takes itself back


class Systemd:
    """What systemd-run and systemctl would do: timers by unit, each with the command that it starts."""

    def __init__(self, folder):
        self.folder = folder
        self.timers = {}

    def run(self, argv, **_more):
        if argv[0] == "systemctl":
            assert self.timers.pop(argv[2].removesuffix(".timer")) is not None
            return ""
        options = dict(word[2:].split("=", 1) for word in argv[1:] if word.startswith("--") and "=" in word)
        command = [word for word in argv[1:] if not word.startswith("--")]
        self.timers[options["unit"]] = (options["on-active"], command)
        return ""

    def elapse(self):
        """The time of all timers is over; what their programs print, and how they end."""
        done = [
            subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)
            for _seconds, command in self.timers.values()
        ]
        self.timers.clear()
        return done


@pytest.fixture
def systemd(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("run")
    fake = Systemd(folder)
    monkeypatch.setattr(timer, "BOOTED", folder)
    monkeypatch.setattr(timer.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_program, "DIRECTORY", folder)
    monkeypatch.setattr(_run, "run", fake.run)
    return fake


def configuration(ovs):
    """All rows by name as the database holds them, without ids and without what the switch itself writes."""
    with _ovs.connect(ovs.socket) as client:
        database = restore.Database(client)
    names = {row_id: row.get("name", table) for table, of in database.rows.items() for row_id, row in of.items()}

    def readable(value):
        if isinstance(value, list):
            parts = [readable(item) for item in value]
            return ["set", [parts]] if parts[:1] == ["uuid"] else sorted(parts, key=str)
        return names.get(value, value) if isinstance(value, str) else value

    tables = {table: of for table, of in database.rows.items() if table != "Open_vSwitch"}
    return {
        table: sorted(str({k: readable(v) for k, v in database.columns(table, row).items()}) for row in of.values())
        for table, of in tables.items()
    }


RICH = {
    "ports": [{"name": "eth2", "tag": 5, "qos": QOS, "mtu": 1400}, {"name": "host0", "type": "internal"}, VXLAN],
    "bonds": [{**BOND, "lacp": "active", "up_delay": 300}],
    "mirrors": [{"name": "tap", "select_src": ["bond0"], "output_port": "eth2"}],
    "controllers": ["tcp:192.0.2.1:6653"],
    "rstp": True,
}
CUTS = {
    "all ports gone": {"ports": [], "bonds": [], "mirrors": [], "controllers": [], "rstp": False, "purge_ports": True},
    "bond taken apart": {"bonds": [], "ports": [{"name": "eth0"}, {"name": "eth1", "tag": 9}], "mirrors": []},
    "other members": {"bonds": [{"name": "bond0", "members": ["eth1", "eth3"], "lacp": "off", "up_delay": 0}]},
    "other settings": {"ports": [{"name": "eth2", "tag": 6, "qos": {"max_rate": 5}}, VXLAN], "rstp_priority": 4096},
    "bridge gone": {"state": "absent", "purge_ports": True},
    "nothing cut": {"other_config": {"x": "y"}},
}


HANGS = {
    "a NIC goes under the switch": ({}, UP, "eth0"),
    "a member goes under the switch": ({}, {"bonds": [BOND]}, "eth1"),
    "the host's own port goes": (INTERNAL, {"ports": []}, "host0"),
    "the host's own port gets another VLAN": (INTERNAL, {"ports": [{**INTERNAL["ports"][0], "tag": 5}]}, "host0"),
    "the bridge goes": (INTERNAL, {"state": "absent"}, "host0"),
}


@pytest.mark.parametrize("case", HANGS)
def test_what_the_machine_hangs_on_is_not_cut(module, converge, monkeypatch, case):
    before, change, name = HANGS[case]
    assert not module(**before).get("failed")
    monkeypatch.setattr(_lifelines, "read", lambda: {name: "the default route", "other0": "the default route"})
    refused(module(**change), f"{name} carries the default route", "confirm_timeout", "allow_connection_interface")
    converge(allow_connection_interface=True, **change)


def test_what_stays_as_it_is_is_not_judged(module, converge, monkeypatch):
    assert not module(ports=[*INTERNAL["ports"], *UP["ports"]]).get("failed")
    monkeypatch.setattr(_lifelines, "read", lambda: {"host0": "the default route", "eth0": "the default route"})
    converge(ports=[{**INTERNAL["ports"][0], "mtu": 1400}, {"name": "eth0", "tag": 7}])


@pytest.mark.parametrize("cut", CUTS)
def test_an_unconfirmed_change_is_taken_back(module, ovs, systemd, cut):
    assert not module(**RICH).get("failed")
    # What no option of ours knows.
    ovs.vsctl("add-port", "br0", "eth4", "--", "set", "Port", "eth4", "external_ids:who=me", "protected=true")
    ovs.vsctl("set", "Interface", "eth0", "bfd:enable=false", "lldp:enable=false", "ofport_request=7")
    ovs.vsctl("set", "Controller", "br0", "max_backoff=5000", "--", "set", "Interface", "vxlan0", "options:psk=x")
    before = configuration(ovs)
    predicted = module(_ansible_check_mode=True, confirm_timeout=30, **CUTS[cut])
    assert predicted["changed"] and "rollback" not in predicted and not systemd.timers
    result = module(confirm_timeout=30, **CUTS[cut])
    assert not result.get("failed"), result
    assert [seconds for seconds, _command in systemd.timers.values()] == ["30s"]
    assert list(systemd.timers) == [result["rollback"]["unit"]] and result["rollback"]["seconds"] == 30
    assert configuration(ovs) != before
    (done,) = systemd.elapse()
    assert (done.returncode, done.stdout) == (0, "bridge br0 is as before\n"), done.stderr
    assert configuration(ovs) == before
    assert not list(systemd.folder.glob("ovs-br0*"))


def test_a_new_bridge_is_taken_back(module, ovs, sent, systemd):
    before = configuration(ovs)
    sent.clear()
    module(confirm_timeout=30, **RICH)
    assert sent.count("write") == 1
    systemd.elapse()
    assert configuration(ovs) == before


def test_machines_that_come_and_go_meanwhile_are_left_alone(module, ovs, systemd):
    module(**UP)
    plug_vm(ovs, "vnet0")
    plug_vm(ovs, "vnet1")
    module(confirm_timeout=30, ports=[])
    ovs.vsctl("del-port", "vnet0", "--", "set", "Port", "vnet1", "tag=7")
    plug_vm(ovs, "vnet2")
    systemd.elapse()
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0", "vnet1", "vnet2"]
    assert ovs.get("Port", "vnet1", "tag") == "7"
    # On a bridge that was not there before a machine keeps it alive.
    module(name="br1", confirm_timeout=30, ports=[{"name": "eth1"}])
    plug_vm(ovs, "vnet3", "br1")
    systemd.elapse()
    assert ovs.vsctl("list-ports", "br1").split() == ["vnet3"]


def test_a_confirmed_change_stays(module, ovs, systemd):
    module(**UP)
    file = Path(module(confirm_timeout=30, ports=[])["rollback"]["file"])
    assert file.stat().st_mode & 0o777 == 0o600
    refused(module(**UP), "br0", "waits for its confirmation")
    assert not module(ports=[]).get("failed")  # nothing to do is no change
    assert not module(name="br1", confirm_timeout=30).get("failed")
    file.rename(f"{file}.confirmed")  # as the controller does
    late = systemd.elapse()
    assert "was confirmed" in late[0].stderr and late[0].returncode == 1
    assert ovs.vsctl("list-ports", "br0") == ""
    assert not module(confirm_timeout=30, **UP).get("failed")
    assert not file.with_name(file.name + ".confirmed").exists()


def test_a_change_that_the_database_refused_leaves_no_timer(module, ovs, systemd, monkeypatch):
    module(**UP)
    original = _ovs.Ovs.commit

    def meanwhile(self, change):
        ovs.vsctl("set", "Port", "eth0", "tag=77")
        return original(self, change)

    monkeypatch.setattr(_ovs.Ovs, "commit", meanwhile)
    result = module(confirm_timeout=30, **port(tag=5))
    refused(result, "somebody else changed")
    assert "rollback" not in result and not systemd.timers and not list(systemd.folder.glob("ovs-br0*"))


def test_a_change_that_others_undo_at_once_is_not_said_to_wait_for_itself(module, ovs, systemd, monkeypatch):
    module(**UP)
    original = _ovs.Ovs.commit

    def undone(self, change):
        number = original(self, change)
        ovs.vsctl("remove", "Port", "eth0", "tag", "5")
        return number

    monkeypatch.setattr(_ovs.Ovs, "commit", undone)
    result = module(confirm_timeout=30, **port(tag=5))
    assert result["failed"] and result["error"] == "NotConverged" and result["rollback"]


def test_a_timer_that_never_came_blocks_nobody_for_ever(module, systemd, monkeypatch):
    module(confirm_timeout=5)
    refused(module(**UP), "waits for its confirmation")
    monkeypatch.setattr(timer.time, "time", lambda: time.monotonic() + 10**10)
    assert not module(**UP).get("failed")


def test_confirm_timeout_is_refused_where_nothing_could_take_the_change_back(module, ovs, systemd, monkeypatch):
    refused(module(confirm_timeout=30, wait_lacp=30), "longer than wait_lacp")
    refused(module(confirm_timeout=1), "confirm_timeout", "5 to 3600")
    monkeypatch.setattr(timer, "BOOTED", Path("/nonexistent"))
    result = module(confirm_timeout=30, **UP)
    refused(result, "confirm_timeout needs systemd")
    assert result["error"] == "NotFound" and ovs.vsctl("list-br") == ""


@pytest.fixture
def away(ovs):
    """The database's socket, hidden; it is back when the block ends."""
    socket = Path(ovs.socket)

    @contextmanager
    def hide():
        socket.rename(f"{socket}.away")
        yield
        Path(f"{socket}.away").rename(socket)

    return hide


def test_a_restore_that_meets_no_database_can_be_run_again(module, ovs, systemd, away):
    module(**UP)
    module(confirm_timeout=30, ports=[])
    ((_seconds, command),) = systemd.timers.values()
    *program, file, patience = command
    assert patience == "600"
    with away():
        done = subprocess.run([*program, file], capture_output=True, text=True, check=False)
    claimed = file.replace(".json", ".restoring")
    assert done.returncode == 1 and f"run it again with {claimed}" in done.stderr
    again = subprocess.run([*program, claimed], capture_output=True, text=True, check=False)
    assert again.stdout == "bridge br0 is as before\n", again.stderr
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0"]


def test_a_restore_waits_for_the_database(module, ovs, systemd, away):
    module(**UP)
    module(confirm_timeout=30, ports=[])
    ((_seconds, command),) = systemd.timers.values()
    with away():
        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        assert program.poll() is None
    assert program.communicate(timeout=30)[0] == "bridge br0 is as before\n"
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0"]


PAGE = (Path(__file__).parents[4] / "docs" / "ovs_bridge.md").read_text(encoding="utf-8")
RECIPES = [task for text in PAGE.split("```yaml")[1:] for task in yaml.safe_load(text.split("```")[0])]


def test_the_page_has_five_recipes():
    assert len(RECIPES) == 5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_a_recipe_of_the_page_works(module, ovs, systemd, recipe):
    options = {**recipe["drover.kvm.ovs_bridge"], "wait_lacp": 0}
    result = module(**options)
    assert result["changed"] and not result.get("failed"), result
    for file in systemd.folder.glob("ovs-*@*.json"):
        file.unlink()
    assert not module(**options)["changed"]


def test_without_the_bindings_it_says_what_to_install(module, monkeypatch):
    monkeypatch.setattr(_ovs, "HAS_BINDINGS", False)
    refused(module(), "python3-openvswitch")


def test_the_private_switch_dies_with_its_parent(server):
    code = (
        "import os, signal, sys\n"
        "from ansible_collections.drover.kvm.tests.unit import ovs_server\n"
        "with ovs_server.private_switch() as running:\n"
        "    print(running.folder, *(daemon.pid for daemon in running.daemons.values()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    folder, *pids = done.stdout.split()
    end = time.monotonic() + 10
    while any(_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(_running(pid) for pid in pids), done.stderr
    with ovs_server.private_switch():
        assert not Path(folder).exists()


def _running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


FUZZED = [
    field
    for field in ovs_bridge.FIELDS
    if field.name not in ("socket", "name", "timeout", "wait_lacp", "confirm_timeout")
]


@hostile.fuzz(FUZZED, {}, UP, {"bonds": [BOND]}, {"state": "absent"}, {**INTERNAL, "bonds": [BOND]}, quick=12)
def test_any_input_gets_a_clear_answer(module, ovs, args):
    ovs.bare()
    module(ports=[{"name": "eth7", "tag": 9}])
    hostile.answered(module, partial(tables, ovs), {"timeout": 5, **args})
