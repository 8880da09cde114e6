# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_ports against a private Open vSwitch (real ovsdb-server and ovs-vswitchd, dummy datapath).

libvirt is a few definitions, the kernel's interfaces are files.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _libvirt, _links, _ovs
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.modules import vm_ports
from ansible_collections.drover.kvm.tests.unit import corpus, ovs_server

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]
MAC = "52:54:00:00:00:01"
UUID = "0f3b0e3c-7a77-5d55-8f56-5f9f1f4a2c10"
INTERFACE = "8f0c0f4e-63cb-4c52-a9f8-0a0f6b5a0001"
SWITCHED = f"<virtualport type='openvswitch'><parameters interfaceid='{INTERFACE}'/></virtualport>"
TAG = "<vlan><tag id='100'/></vlan>"
TRUNK = "<vlan trunk='yes'><tag id='30' nativeMode='untagged'/><tag id='20'/></vlan>"


def nic(tap="vnet0", bridge="br0", mac=MAC, inside=TAG + SWITCHED):
    """A NIC as a running VM's XML has it."""
    source = f"<source bridge='{bridge}'/><target dev='{tap}'/>"
    return f"<interface type='bridge'><mac address='{mac}'/>{source}<model type='virtio'/>{inside}</interface>"


class Node:
    """libvirt with a few VMs."""

    name = "hv1"

    def __init__(self):
        self.vms = {}
        self.updates = []
        self.limits = []

    def run(self, name, *nics, state="running", more=""):
        """Let a VM run with these NICs."""
        xml = f"<domain type='kvm'><name>{name}</name>{more}<devices>{''.join(nics)}</devices></domain>"
        words = {"name": name, "uuid": UUID, "reason": "booted", "persistent": True, "autostart": False}
        self.vms[name] = Domain(id=1, state=state, has_managed_save=False, xml=xml, live_xml=xml, **words)

    def domains(self, names=None, brief=False):
        """All VMs or those of the names."""
        return {name: vm for name, vm in self.vms.items() if names is None or name in names}

    def set_bandwidth(self, name, device, limits):
        """Take down what was asked."""
        self.limits.append((name, device, limits))

    def update_device(self, name, xml, live, config):
        """Take down what was asked."""
        self.updates.append((name, "state='down'" in xml, live, config))


VLANS = ("untagged", "tagged")


class Kernel:
    """The interfaces of the kernel as files."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, *names):
        """Make interfaces that have heard nothing."""
        for name in names:
            (self.folder / name / "statistics").mkdir(parents=True)
            self.say(name, 0)

    def say(self, name, packets):
        """Let so many packets have come."""
        (self.folder / name / "statistics/rx_packets").write_text(f"{packets}\n")

    def bridge(self, name):
        """Make a bridge of the kernel."""
        (self.folder / name / "bridge").mkdir(parents=True)

    def plug(self, name, bridge):
        """Plug an interface in."""
        (self.folder / name / "brport").mkdir(exist_ok=True)
        (self.folder / name / "brport/bridge").unlink(missing_ok=True)
        (self.folder / name / "brport/bridge").symlink_to(self.folder / bridge)

    def unplug(self, name):
        """Take it out."""
        (self.folder / name / "brport/bridge").unlink()


@pytest.fixture
def ovs(server):
    """The private switch with one bridge."""
    server.bare()
    server.vsctl("add-br", "br0")
    return server


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel with the tap vnet0."""
    found = Kernel(tmp_path)
    found.add("vnet0")
    monkeypatch.setattr(_links, "DEVICES", tmp_path)
    monkeypatch.setattr(_links, "plug", found.plug)
    monkeypatch.setattr(_links, "unplug", found.unplug)
    monkeypatch.setattr(_links, "PULLED", 0)
    return found


@pytest.fixture
def node(kernel, monkeypatch):
    """libvirt, in which web1 runs with vnet0."""
    found = Node()
    found.run("web1", nic())

    @contextmanager
    def connect(*_words, **_options):
        yield found

    monkeypatch.setattr(_libvirt, "connect", connect)
    return found


@pytest.fixture
def module(ovs, node, capsys, monkeypatch):
    """Run the module; the result as the controller gets it."""
    told: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: told.append(warning))

    def run(**args):
        told.clear()
        with patch_module_args({"socket": ovs.socket, **args}), pytest.raises(SystemExit):
            vm_ports.main()
        return {**json.loads(capsys.readouterr().out), "warnings": list(told)}

    return run


@pytest.fixture
def mends(module):
    """Predict, run, run again: the prediction must hold, and the second run must change nothing."""

    def run(**args):
        predicted = module(_ansible_check_mode=True, **args)
        real = module(**args)
        for key in ("changed", "actions", "diff", "resource"):
            assert predicted.get(key) == real.get(key), (key, predicted, real)
        assert not real.get("failed"), real
        again = module(**args)
        assert (again["changed"], again["actions"]) == (False, []), again
        return real

    return run


def bridge_of(ovs, tap="vnet0"):
    """The bridge of a tap, from the database."""
    return ovs.vsctl("port-to-br", tap).strip()


def test_a_tap_of_a_bridge_that_was_made_anew_is_plugged_again(ovs, mends):
    result = mends()
    assert result["actions"] == ["plug vnet0 of VM web1 into bridge br0 (VLAN 100)"]
    assert (bridge_of(ovs), ovs.get("port", "vnet0", "tag")) == ("br0", "100")
    ids = {"attached-mac": MAC, "iface-id": INTERFACE, "iface-status": "active", "vm-id": UUID}
    assert result["resource"]["vnet0"]["external_ids"] == ids
    for key, value in ids.items():
        assert ovs.get("interface", "vnet0", f"external_ids:{key}").strip('"') == value
    assert result["silent"] == []


def test_many_taps_are_one_transaction(ovs, node, kernel, module, monkeypatch):
    for number in range(1, 6):
        kernel.add(f"vnet{number}")
        node.run(f"vm{number}", nic(f"vnet{number}", mac=f"52:54:00:00:01:0{number}"))
    commits = []
    original = _ovs.Ovs.commit
    monkeypatch.setattr(_ovs.Ovs, "commit", lambda self, change: commits.append(change) or original(self, change))
    assert len(module()["actions"]) == 6
    assert len(commits) == 1


@pytest.mark.parametrize(
    "inside, words, cells",
    [
        (SWITCHED, "no VLAN", {"tag": "[]", "trunks": "[]", "vlan_mode": "[]"}),
        (TAG + SWITCHED, "VLAN 100", {"tag": "100", "trunks": "[]"}),
        (
            TRUNK + SWITCHED,
            "VLAN 30, trunk of VLANs 20, 30, native-untagged",
            {"tag": "30", "trunks": "[20, 30]", "vlan_mode": "native-untagged"},
        ),
        (
            TRUNK.replace(" nativeMode='untagged'", "") + SWITCHED,
            "trunk of VLANs 20, 30",
            {"tag": "[]", "trunks": "[20, 30]", "vlan_mode": "[]"},
        ),
    ],
)
def test_vlans_and_trunks(ovs, node, mends, inside, words, cells):
    node.run("web1", nic(inside=inside))
    assert mends()["actions"] == [f"plug vnet0 of VM web1 into bridge br0 ({words})"]
    for column, value in cells.items():
        assert ovs.get("port", "vnet0", column) == value


def test_a_tap_in_the_wrong_vlan_is_mended_and_the_rest_of_the_port_stays(ovs, module, mends):
    module()
    ovs.vsctl("set", "port", "vnet0", "tag=200", "other_config:mine=1")
    ovs.vsctl("set", "interface", "vnet0", "external_ids:mine=1")
    assert mends()["actions"] == ["set vnet0 of VM web1 on bridge br0: VLAN 200 -> VLAN 100"]
    assert ovs.get("port", "vnet0", "tag") == "100"
    assert ovs.get("port", "vnet0", "other_config") == '{mine="1"}'
    assert ovs.get("interface", "vnet0", "external_ids:mine") == '"1"'


def test_lost_external_ids_come_back(ovs, module, mends):
    module()
    ovs.vsctl("remove", "interface", "vnet0", "external_ids", "iface-id")
    assert mends()["actions"] == ["set the external ids of vnet0 of VM web1 on bridge br0"]
    assert ovs.get("interface", "vnet0", "external_ids:iface-id").strip('"') == INTERFACE


def test_a_tap_in_another_bridge_is_moved(ovs, mends):
    ovs.vsctl("add-br", "br1", "--", "add-port", "br1", "vnet0", "tag=5")
    assert mends()["actions"] == ["move vnet0 of VM web1 from bridge br1 to bridge br0 (VLAN 100)"]
    assert (bridge_of(ovs), ovs.get("port", "vnet0", "tag")) == ("br0", "100")


def test_a_missing_bridge_is_named_with_the_mend_and_nothing_is_changed(ovs, node, kernel, module):
    kernel.add("vnet1")
    node.run("db1", nic("vnet1", bridge="br7"))
    result = module()
    assert result["failed"] and not result["changed"] and result["error"] == "NotFound"
    for word in ("hv1 has no bridge br7 (of db1)", "nothing was changed", "drover.kvm.site", "ovs_bridge"):
        assert word in result["msg"]
    assert ovs.vsctl("list-ports", "br0").split() == []
    chosen = module(bridges=["br0"])
    assert chosen["actions"] == ["plug vnet0 of VM web1 into bridge br0 (VLAN 100)"]


def test_only_the_named_vms(ovs, node, kernel, mends):
    kernel.add("vnet1")
    node.run("db1", nic("vnet1"))
    mends(names=["db1", "elsewhere"])
    assert ovs.vsctl("list-ports", "br0").split() == ["vnet1"]


def test_ports_of_others_stay(ovs, mends):
    ovs.vsctl("add-port", "br0", "eth0", "--", "add-port", "br0", "vnet9", "tag=9")
    mends()
    assert ovs.vsctl("list-ports", "br0").split() == ["eth0", "vnet0", "vnet9"]
    assert ovs.get("port", "vnet9", "tag") == "9"


def test_a_tap_that_is_gone_is_a_warning(ovs, node, module):
    node.run("web1", nic("vnet5"))
    result = module()
    assert (result["changed"], result["resource"]) == (False, {})
    assert "vnet5 of VM web1 is gone" in result["warnings"][0]


def test_nics_without_a_bridge_are_left_alone(node, module):
    node.run("web1", "<interface type='user'><mac address='52:54:00:00:00:09'/><target dev='vnet0'/></interface>")
    assert module()["resource"] == {}


def test_bridges_of_the_kernel_need_no_open_vswitch(node, kernel, mends):
    kernel.bridge("virbr1")
    node.run("web1", nic(bridge="virbr1", inside=""))
    assert mends(socket="/nowhere")["actions"] == ["plug vnet0 of VM web1 into bridge virbr1"]
    assert _links.bridge_of("vnet0") == "virbr1"


def test_a_bridge_of_the_kernel_that_filters_vlans(node, kernel, mends, monkeypatch):
    kernel.bridge("virbr1")
    vlans = {"vnet0": {"untagged": 1, "tagged": []}}
    monkeypatch.setattr(_links, "vlans", lambda: vlans)
    monkeypatch.setattr(_links, "set_vlans", lambda name, *two: vlans.update({name: dict(zip(VLANS, two))}))
    node.run("web1", nic(bridge="virbr1", inside="<vlan><tag id='100'/></vlan>"))
    assert mends(socket="/nowhere")["actions"] == ["plug vnet0 of VM web1 into bridge virbr1 (VLAN 100)"]
    assert vlans == {"vnet0": {"untagged": 100, "tagged": []}}
    vlans["vnet0"] = {"untagged": 7, "tagged": [8]}
    assert mends(socket="/nowhere")["actions"][0].startswith("set vnet0 of VM web1 on bridge virbr1: VLAN 7")
    trunk = "<vlan trunk='yes'><tag id='5' nativeMode='untagged'/><tag id='6'/></vlan>"
    node.run("web1", nic(bridge="virbr1", inside=trunk))
    mends(socket="/nowhere")
    assert vlans == {"vnet0": {"untagged": 5, "tagged": [6]}}


def test_a_missing_bridge_of_the_kernel(node, module):
    node.run("web1", nic(bridge="virbr1", inside=""))
    result = module(socket="/nowhere")
    assert result["failed"] and "hv1 has no bridge virbr1 (of web1)" in result["msg"]


def test_from_a_bridge_of_the_kernel_to_open_vswitch_and_back(ovs, node, kernel, mends):
    kernel.bridge("virbr1")
    kernel.plug("vnet0", "virbr1")
    mends()
    assert _links.bridge_of("vnet0") is None and bridge_of(ovs) == "br0"
    kernel.add("vnet1")
    node.run("web1", nic(bridge="virbr1", inside=""))
    node.run("db1", nic("vnet1", mac="52:54:00:00:00:02"))
    assert "move vnet0 of VM web1 from bridge br0 to bridge virbr1" in mends()["actions"]
    assert ovs.vsctl("list-ports", "br0").split() == ["vnet1"]
    assert _links.bridge_of("vnet0") == "virbr1"


def test_a_lost_limit_of_bandwidth_is_set_again(node, mends):
    node.run("web1", nic(inside=f"<bandwidth><inbound average='1250' peak='1250'/></bandwidth>{TAG}{SWITCHED}"))
    mends()
    limits = {"inbound.average": 1250, "inbound.peak": 1250, "inbound.burst": 0}
    limits.update({"outbound.average": 0, "outbound.peak": 0, "outbound.burst": 0})
    assert node.limits == [("web1", MAC, limits)]


def nics_record(words):
    """The record of a VM that says something of its NIC."""
    inside = f"<drover:nics>{words}</drover:nics>"
    return f"<metadata><drover:vm xmlns:drover='urn:drover:kvm:1'>{inside}</drover:vm></metadata>"


def test_what_the_definition_says_of_addresses_comes_back(ovs, node, mends):
    node.run("web1", nic(), more=nics_record(f"<drover:nic mac='{MAC}' ips='10.0.0.21,fd00::21'/>"))
    mends()
    assert ovs.get("interface", "vnet0", "external_ids:drover-port") == '"10.0.0.21,fd00::21"'
    node.run("web1", nic(), more=nics_record(f"<drover:nic mac='{MAC}' anti_spoof='no'/>"))
    assert mends()["actions"] == ["set the external ids of vnet0 of VM web1 on bridge br0"]
    assert ovs.get("interface", "vnet0", "external_ids:drover-port") == "open"
    node.run("web1", nic())
    assert mends()["actions"] == ["set the external ids of vnet0 of VM web1 on bridge br0"]
    assert "drover-port" not in ovs.get("interface", "vnet0", "external_ids")


def test_what_the_switch_can_not_do_is_an_error(ovs, module):
    ovs.vsctl("--", "add-port", "br0", "vnet0", "--", "set", "interface", "vnet0", "type=nosuchtype")
    result = module()
    assert result["failed"] and "vnet0 of VM web1" in result["msg"]


def test_vms_that_say_nothing_are_named(node, kernel, module):
    kernel.add("vnet1", "vnet2", "vnet3")
    node.run("db1", nic("vnet1"), nic("vnet2"))
    node.run("asleep", nic("vnet3"), state="paused")
    node.run("cut", nic("vnet3", inside="<link state='down'/>" + SWITCHED))
    assert module(listen=1)["silent"] == ["db1", "web1"]


def test_a_vm_that_is_heard_ends_the_wait(kernel, module, monkeypatch):
    module()
    looks = iter(range(100))
    monkeypatch.setattr(_links, "heard", lambda name: next(looks))
    assert module(listen=600)["silent"] == []


def test_the_link_of_a_silent_vm_is_bounced(node, module):
    module()
    predicted = module(listen=1, bounce=True, _ansible_check_mode=True)
    assert predicted["actions"] == ["bounce the link of vnet0 of VM web1"] and node.updates == []
    result = module(listen=1, bounce=True)
    assert (result["changed"], result["actions"]) == (True, ["bounce the link of vnet0 of VM web1"])
    assert node.updates == [("web1", True, True, False), ("web1", False, True, False)]
    assert result["silent"] == ["web1"]


def test_the_link_of_a_vm_that_is_heard_is_not_bounced(node, module, monkeypatch):
    module()
    looks = iter(range(100))
    monkeypatch.setattr(_links, "heard", lambda name: next(looks))
    assert module(listen=5, bounce=True)["changed"] is False
    assert node.updates == []


@pytest.mark.parametrize("options", [{"bounce": True}, {"listen": -1}, {"listen": 601}])
def test_wrong_options(module, options):
    assert module(**options)["error"] == "Invalid"


@pytest.mark.parametrize("option", ["names", "bridges"])
def test_hostile_words_name_nothing(ovs, module, option):
    before = ovs.vsctl("list", "bridge"), ovs.vsctl("list", "port"), ovs.vsctl("list", "interface")
    for value in corpus.NAMES:
        result = module(**{option: [value]})
        assert not result.get("failed") and result["changed"] is False and result["resource"] == {}, (value, result)
    assert before == (ovs.vsctl("list", "bridge"), ovs.vsctl("list", "port"), ovs.vsctl("list", "interface"))
    assert not Path(corpus.CANARY).exists()
