# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ovs_info against a private Open vSwitch (real ovsdb-server and ovs-vswitchd, dummy datapath)."""

from __future__ import annotations

import json
import time

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _links, _ovs
from ansible_collections.drover.kvm.plugins.modules import ovs_info
from ansible_collections.drover.kvm.roles.open_vswitch.files import drover_port_guard
from ansible_collections.drover.kvm.tests.unit import ovs_server

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]
UUID = "0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10"
BONDED = ["add-bond", "br0", "bond0", "eth0", "eth1", "lacp=active", "bond_mode=balance-tcp"]


@pytest.fixture
def ovs(server, tmp_path, monkeypatch):
    """The private switch without bridges, on a machine without bonds of the kernel and without lldpd."""
    monkeypatch.setattr(_links, "BONDS", tmp_path / "bonding")
    monkeypatch.setattr(_links, "DEVICES", tmp_path / "net")
    monkeypatch.setattr(_links, "lldp", lambda: None)
    monkeypatch.setattr(ovs_info, "vm_names", lambda uri: {UUID: "web1"})
    server.bare()
    return server


@pytest.fixture
def module(ovs, capsys):
    """Run the module; the result as the controller gets it."""

    def run(**args):
        with patch_module_args({"socket": ovs.socket, **args}), pytest.raises(SystemExit):
            ovs_info.main()
        return json.loads(capsys.readouterr().out)

    return run


def ports_of(result):
    """The ports of the first bridge by name."""
    return {port["name"]: port for port in result["bridges"][0]["ports"]}


def test_bridges_ports_and_bonds(ovs, module):
    ovs.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "rstp_enable=true", "--", *BONDED)
    ovs.vsctl("add-port", "br0", "eth2", "tag=10", "trunks=20,30", "vlan_mode=native-untagged")
    result = module()
    assert (result["changed"], result["running"], result["applied"]) == (False, True, True)
    bridge = result["bridges"][0]
    assert (bridge["name"], bridge["datapath_type"], bridge["rstp"]["enabled"]) == ("br0", "system", True)
    assert "root_id" in bridge["rstp"]
    ports = ports_of(result)
    assert ports["bond0"]["bond"] == {"mode": "balance-tcp", "lacp": "active"}
    assert [interface["name"] for interface in ports["bond0"]["interfaces"]] == ["eth0", "eth1"]
    assert [ports["eth2"][key] for key in ("tag", "trunks", "vlan_mode")] == [10, [20, 30], "native-untagged"]
    assert ports["eth2"]["rstp"]["role"] and ports["eth2"]["rstp"]["state"]
    assert ports["eth2"]["bond"] is None and ports["eth2"]["vm"] is None
    assert "rx_packets" in ports["eth2"]["interfaces"][0]["statistics"]


def test_lacp_of_the_members(ovs, module):
    ovs.vsctl("add-br", "br0", "--", *BONDED)
    result = module()
    assert [(link["interface"], link["bond"], link["partner"]) for link in result["links"]] == [
        ("eth0", "bond0", None),
        ("eth1", "bond0", None),
    ]
    lacp = ports_of(result)["bond0"]["interfaces"][0]["lacp"]
    assert lacp["lacp"].split()[1] in ("attached", "detached") and lacp["actor"]["system"]


def test_the_vm_of_a_tap(ovs, module):
    ids = ['external_ids:attached-mac="52:54:00:00:00:01"', "external_ids:iface-id=one"]
    ids += [f"external_ids:vm-id={UUID}", "external_ids:iface-status=active"]
    ovs.vsctl("add-br", "br0", "--", "add-port", "br0", "vnet7", "tag=100", "--", "set", "interface", "vnet7", *ids)
    vm = {"uuid": UUID, "name": "web1", "mac": "52:54:00:00:00:01", "interface_id": "one", "status": "active"}
    vm.update(guard=None, ips=[])
    assert ports_of(module())["vnet7"]["vm"] == vm


def test_whether_a_vm_is_guarded(ovs, module):
    words = ["add-br", "br0"]
    for number, policy in ((1, "192.0.2.1,fd00::1"), (2, "open"), (3, "")):
        ids = [f'external_ids:attached-mac="52:54:00:00:00:0{number}"', f"external_ids:vm-id={UUID}"]
        ids += [f'external_ids:drover-port="{policy}"'] if policy else []
        words += ["--", "add-port", "br0", f"vnet{number}", "tag=100", "--", "set", "interface", f"vnet{number}", *ids]
    ovs.vsctl(*words)
    guard = drover_port_guard.Guard(ovs.folder)
    guard.ensure()
    vms = {name: port["vm"] for name, port in ports_of(module()).items() if port["vm"]}
    assert {name: vm["guard"] for name, vm in vms.items()} == {"vnet1": "checked", "vnet2": "open", "vnet3": "checked"}
    assert [vms[f"vnet{number}"]["ips"] for number in (1, 2, 3)] == [["192.0.2.1", "fd00::1"], [], []]
    guard.off()
    assert {port["vm"]["guard"] for port in ports_of(module()).values() if port["vm"]} == {None}


def test_qos_and_policing(ovs, module):
    ovs.vsctl("add-br", "br0", "--", "add-port", "br0", "eth2")
    ovs.vsctl("set", "interface", "eth2", "ingress_policing_rate=1000", "ingress_policing_burst=100")
    queue = ["--", "--id=@q", "create", "queue", "dscp=8", "other_config:max-rate=500"]
    qos = ["--", "--id=@qos", "create", "qos", "type=linux-htb", "other_config:max-rate=1000", "queues:3=@q"]
    ovs.vsctl("set", "port", "eth2", "qos=@qos", *qos, *queue)
    port = ports_of(module())["eth2"]
    assert port["interfaces"][0]["policing"] == {"rate": 1000, "burst": 100}
    queues = {"3": {"dscp": 8, "max-rate": "500"}}
    assert port["qos"] == {"type": "linux-htb", "other_config": {"max-rate": "1000"}, "queues": queues}


def test_one_transaction_reads_it_all(ovs, module, monkeypatch):
    ovs.vsctl("add-br", "br0", "--", *BONDED)
    sent = []
    original = _ovs.Ovs.transact
    monkeypatch.setattr(_ovs.Ovs, "transact", lambda self, work: sent.append(work) or original(self, work))
    assert not module().get("failed")
    assert len(sent) == 1 and {operation["op"] for operation in sent[0]} == {"select"}


def test_a_machine_without_open_vswitch_tells_of_the_bonds_of_its_kernel(module, tmp_path, monkeypatch):
    bond = "Bonding Mode: IEEE 802.3ad\n\nSlave Interface: eth0\ndetails partner lacp pdu:\n"
    bond += "    system mac address: 00:1c:73:00:00:01\n    oper key: 11\n    port number: 101\n"
    (tmp_path / "bonding").mkdir()
    (tmp_path / "bonding/bond0").write_text(bond)
    monkeypatch.setattr(_links, "lldp", lambda: {"lldp": {"interface": {"eth5": {"chassis": {"core1": {}}}}}})
    result = module(socket=str(tmp_path / "none.sock"))
    assert (result["running"], result["version"], result["bridges"]) == (False, None, [])
    assert [link["interface"] for link in result["links"]] == ["eth0", "eth5"]
    assert result["links"][0]["partner"]["key"] == 11
    assert result["links"][1]["lldp"]["switch"] == "core1"


def test_a_frozen_switch_is_left_out_and_a_frozen_database_is_an_error(ovs, module, monkeypatch):
    monkeypatch.setattr(_ovs, "ANSWER", 1.0)  # test_ovs_bridge waits for all of it
    ovs.vsctl("add-br", "br0", "--", *BONDED)
    with ovs.frozen("ovs-vswitchd"):
        result = module()
    assert result["bridges"] and result["links"] == []
    begin = time.monotonic()
    with ovs.frozen("ovsdb-server"):
        result = module()
    assert result["failed"] and result["error"] == "Unreachable"
    assert 1 <= time.monotonic() - begin < 10
