# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules node_info and vm_info against libvirt's test driver."""

from __future__ import annotations

import json
import socket

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import (
    _bridges,
    _hypervisor,
    _libvirt,
    _node,
    _peers,
    _reserved,
)
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import adoption
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import libvirt
from ansible_collections.drover.kvm.plugins.modules import node_info, vm_info

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
NODE = """<node xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
<domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <metadata><drover:vm xmlns:drover="urn:drover:kvm:1" version="1"><tags><drover:tag>web</drover:tag></tags>
  <home>hv1</home></drover:vm></metadata>
  <memory>1048576</memory><vcpu>2</vcpu><os><type>hvm</type></os>
  <devices><disk type='file'><source file='/srv/nfs/with space/web1.raw'/><target dev='vda' bus='virtio'/></disk>
  </devices></domain>
<domain type='test'><name>db1</name><memory>1048576</memory><os><type>hvm</type></os>
  <test:runstate>5</test:runstate></domain>
<pool type='dir'><name>media</name><target><path>/srv/media</path></target></pool>
</node>"""
CAPABILITIES = """<capabilities>
<host><uuid>u</uuid><cpu><arch>x86_64</arch><model>Nehalem</model><vendor>Intel</vendor></cpu>
<topology><cells><cell><pages unit='KiB' size='4'>1000</pages><pages unit='KiB' size='2048'>16</pages></cell>
<cell><pages unit='KiB' size='4'>1000</pages><pages unit='KiB' size='2048'>16</pages></cell></cells></topology></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><machine canonical='pc-q35-9.2'>q35</machine>
<machine>pc-q35-9.2</machine><domain type='qemu'/><domain type='kvm'><machine>microvm</machine></domain></arch></guest>
<guest><os_type>hvm</os_type><arch name='i686'><machine>isapc</machine><domain type='qemu'/></arch></guest>
</capabilities>"""
DOMAIN_CAPABILITIES = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
<mode name='host-model' supported='yes'><model fallback='forbid'>Skylake</model><vendor>Intel</vendor>
<feature policy='require' name='ss'/><feature policy='disable' name='hle'/></mode></cpu></domainCapabilities>"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A node that lies below tmp_path, with an NFS mount, two bridges and no cluster."""
    (tmp_path / "node.xml").write_text(NODE)
    (tmp_path / "mounts").write_text("san:/x /srv/nfs/with\\040space nfs4 rw 0 0\n/dev/vda1 / ext4 rw 0 0\n")
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:      42 kB\n")
    monkeypatch.setattr(_node, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(_node, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(_node, "FACT", tmp_path / "drover.fact")
    monkeypatch.setattr(_peers, "CLUSTER", tmp_path / "cluster.json")
    (tmp_path / "network.json").write_text('{"version": 1, "reserved_vlans": {"br0": [5, "10-11"]}}', encoding="utf-8")
    monkeypatch.setattr(_reserved, "FILE", tmp_path / "network.json")
    monkeypatch.setattr(node_info, "bridges", lambda: {"br0": "ovs", "virbr0": "linux"})

    def module(which, **args):
        with patch_module_args({"uri": f"test://{tmp_path}/node.xml", **args}), pytest.raises(SystemExit):
            which.main()
        return json.loads(capsys.readouterr().out)

    return module


def test_a_node_with_its_vms(run):
    node = run(node_info)["node"]
    assert node["memory"]["free"] == 42 * 1024 and node["vm_capable"] is True and node["cordon"] is None
    assert node["bridges"] == [
        {"name": "br0", "type": "ovs", "reserved_vlans": [5, 10, 11]},
        {"name": "virbr0", "type": "linux", "reserved_vlans": []},
    ]
    assert [(pool["name"], pool["type"], pool["path"]) for pool in node["pools"]] == [("media", "dir", "/srv/media")]
    assert [(vm["name"], vm["state"]) for vm in node["domains"]] == [("db1", "stopped"), ("web1", "running")]
    assert node["domains"][1]["disks"][0]["shared_storage"] is True
    assert node["name"] == node["hostname"]


def test_a_node_of_a_cluster_under_a_cordon(run, tmp_path):
    nodes = {"hv1": {"uri": "qemu+tls://10.1.0.11/system"}, "hv4": {"uri": "x", "vm_capable": False}}
    cordon = {"since": "2026-01-15T09:30:00Z", "by": "alice", "reason": "dimm"}
    (tmp_path / "drover.fact").write_text(json.dumps({"cordon": cordon}))
    for name, capable in (("hv1", True), ("hv4", False)):
        (tmp_path / "cluster.json").write_text(json.dumps({"cluster": "lab", "node": name, "nodes": nodes}))
        node = run(node_info)["node"]
        assert (node["name"], node["vm_capable"], node["cordon"]) == (name, capable, cordon)


@pytest.mark.parametrize("file", ["drover.fact", "cluster.json"])
def test_a_file_that_cannot_be_read_is_an_error_not_an_absence(run, tmp_path, file):
    (tmp_path / file).write_text("{")
    result = run(node_info)
    assert result["failed"] and file in result["msg"] and "can't be read" in result["msg"]


def test_what_capabilities_say():
    facts = _hypervisor.host_facts(CAPABILITIES, DOMAIN_CAPABILITIES)
    assert facts["hugepages"] == {"2097152": 32} and facts["virt_types"] == ["kvm", "qemu"]
    assert facts["machine_types"] == ["microvm", "pc-q35-9.2", "q35"]
    assert facts["cpu"] == {"model": "Skylake", "vendor": "Intel"}
    assert facts["cpu_model"] == (
        '<cpu mode="custom" match="exact"><model fallback="forbid">Skylake</model><vendor>Intel</vendor>'
        '<feature policy="require" name="ss" /><feature policy="disable" name="hle" /></cpu>'
    )
    bare = _hypervisor.host_facts(CAPABILITIES, None)
    assert bare["cpu_model"] is None and bare["cpu"]["model"] == "Nehalem"


def test_cpus_that_cannot_be_compared_are_answers(run):
    cpus = [{"vms": ["web1", "web3"], "cpu": "<cpu/>"}, {"vms": ["web2"], "cpu": "no xml"}]
    rows = run(node_info, cpus=cpus)["node"]["cpu_matrix"]
    assert [(row["vm"], row["compatible"]) for row in rows] == [("web1", False), ("web3", False), ("web2", False)]
    assert all(row["reason"] for row in rows)


def test_vms_by_name_or_all(run):
    assert [vm["name"] for vm in run(vm_info)["vms"]] == ["db1", "web1"]
    vms = run(vm_info, name=["web1", "nobody"])["vms"]
    assert [(vm["name"], vm["metadata"]["tags"], vm["metadata"]["home"]) for vm in vms] == [("web1", ["web"], "hv1")]
    assert "sheet" not in vms[0]


def test_a_sheet_says_what_it_leaves_out(run):
    vm = run(vm_info, names=["web1"], sheet=True)["vms"][0]
    assert vm["sheet"]["memory"] == 2**30 and vm["sheet"]["state"] == "running" and vm["sheet"]["tags"] == ["web"]
    assert vm["sheet_left_out"] == ["virt_type: test is none of kvm, qemu"] and "virt_type" not in vm["sheet"]


def test_a_frozen_daemon_fails_in_time_with_words(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_libvirt, "OPEN_SECONDS", 1.0)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "frozen"))
        frozen.listen(8)
        for module in (node_info, vm_info):
            result = run(module, uri=f"qemu+unix:///system?socket={tmp_path}/frozen")
            assert result["failed"] and result["error"] == "Unreachable" and "does not answer" in result["msg"]


def test_peers_answer_or_are_unreachable(tmp_path, monkeypatch):
    path = tmp_path / "node.xml"
    path.write_text(NODE)
    nodes = {
        "hv1": {"uri": "test:///default"},
        "hv2": {"uri": f"test://{path}"},
        "hv3": {"uri": "test:///no/such/file"},
        "q1": {"uri": "x", "vm_capable": False},
    }
    monkeypatch.setattr(_peers, "CLUSTER", tmp_path / "cluster.json")
    assert _peers.ask_peers(lambda node: 1) == {}
    _peers.CLUSTER.write_text(json.dumps({"cluster": "lab", "node": "hv1", "nodes": nodes}))
    answers = _peers.ask_peers(lambda node: sorted(node.domains(brief=True)))
    assert answers["hv2"] == ["db1", "web1"] and set(answers) == {"hv2", "hv3"}
    assert isinstance(answers["hv3"], Unreachable)
    _peers.CLUSTER.write_text('{"nodes": []}')
    with pytest.raises(Failed, match="apply role"):
        _peers.read_cluster()


def test_bridges_without_open_vswitch(monkeypatch, tmp_path):
    (tmp_path / "br1" / "bridge").mkdir(parents=True)
    monkeypatch.setattr(_bridges, "NETWORK", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _bridges.bridges() == {"br1": "linux"}


def test_the_devices_that_a_sheet_leaves_alone():
    xml = """<domain type='kvm'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
    <memory unit='GiB'>1</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type></os><devices>
    <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdb' bus='virtio'/></disk>
    <interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='eth0'/></interface>
    <hostdev mode='subsystem' type='pci'><source/></hostdev>
    <filesystem><source dir='/srv'/><target dir='data'/></filesystem></devices></domain>"""
    vm = _hypervisor.Domain("web1", "u", None, "stopped", "unknown", True, True, False, xml)
    sheet, left = adoption(vm)
    assert left == ["disk vdb (of type volume)", "NIC 52:54:00:00:00:01 (of type direct)",
                    "host device (of type pci)", "shared folder data"]  # fmt: skip
    assert sheet["machine"] == "q35" and sheet["autostart"] is True and sheet["disks"] == sheet["nics"] == []
    odd = _hypervisor.Domain("a b", "u", None, "stopped", "unknown", True, True, False, xml)
    assert "name" not in adoption(odd)[0] and "'a b' is not a valid name" in adoption(odd)[1][-1]
