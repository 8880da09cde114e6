# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules node_info and vm_info against libvirt's test driver."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time

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
from ansible_collections.drover.kvm.plugins.module_utils._domain import disks, nics, sheet
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import FIELDS, adoption
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, NotFound, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import libvirt
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
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
    (tmp_path / "web1.pid").write_text("7")
    os.utime(tmp_path / "web1.pid", (0, time.time() - 600))
    monkeypatch.setattr(_node, "RUNS", tmp_path)
    monkeypatch.setattr(_peers, "CLUSTER", tmp_path / "cluster.json")
    (tmp_path / "network.json").write_text('{"version": 1, "reserved_vlans": {"br0": [5, "10-11"]}}', encoding="utf-8")
    monkeypatch.setattr(_reserved, "FILE", tmp_path / "network.json")
    monkeypatch.setattr(node_info, "bridges", lambda: {"br0": "ovs", "virbr0": "linux"})
    monkeypatch.setattr(node_info, "carried", lambda apart: {"br0": [5, 100]})

    def module(which, **args):
        with patch_module_args({"uri": f"test://{tmp_path}/node.xml", **args}), pytest.raises(SystemExit):
            which.main()
        return json.loads(capsys.readouterr().out)

    return module


def test_a_node_with_its_vms(run):
    node = run(node_info)["node"]
    assert node["memory"]["free"] == 42 * 1024 and node["vm_capable"] is True and node["cordon"] is None
    assert node["bridges"] == [
        {"name": "br0", "type": "ovs", "reserved_vlans": [5, 10, 11], "vlans": [5, 100]},
        {"name": "virbr0", "type": "linux", "reserved_vlans": [], "vlans": None},
    ]
    assert [(pool["name"], pool["type"], pool["path"]) for pool in node["pools"]] == [("media", "dir", "/srv/media")]
    assert [(vm["name"], vm["state"]) for vm in node["domains"]] == [("db1", "stopped"), ("web1", "running")]
    assert node["domains"][0]["age"] is None and 600 <= node["domains"][1]["age"] < 700
    assert node["lease_directory"] is None
    assert node["domains"][1]["disks"][0]["shared_storage"] is True
    assert node["name"] == node["hostname"] and abs(node["clock"] - time.time()) < 60


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
    assert facts["host_cpu"] == "<cpu><arch>x86_64</arch><model>Nehalem</model><vendor>Intel</vendor></cpu>"
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
    found, left = adoption(vm)
    assert left == ["disk vdb (of type volume)", "NIC 52:54:00:00:00:01 (of type direct)",
                    "host device (of type pci)", "shared folder data"]  # fmt: skip
    assert found["machine"] == "pc-q35-9.2" and found["autostart"] is True and found["disks"] == found["nics"] == []
    odd = _hypervisor.Domain("a b", "u", None, "stopped", "unknown", True, True, False, xml)
    assert "name" not in adoption(odd)[0] and "'a b' is not a valid name" in adoption(odd)[1][-1]


OLD = """<domain type='kvm'><name>old</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory unit='GiB'>1</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-i440fx-9.2'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='/srv/old.vmdk'/>
<target dev='hda' bus='ide'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='hdb' bus='ide'/><readonly/></disk>
<disk type='file' device='floppy'><driver name='qemu' type='raw'/><target dev='fda' bus='fdc'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='vmxnet3'/></interface>
<input type='mouse' bus='ps2'/><memballoon model='virtio'/><audio id='1' type='none'/>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
<sound model='ich9'/><redirdev bus='usb' type='spicevmc'/><vsock><cid auto='yes'/></vsock></devices></domain>"""


def test_an_old_vm_keeps_its_disks_in_the_sheet():
    vm = _hypervisor.Domain("old", "u", None, "stopped", "unknown", True, True, False, OLD)
    options, left = adoption(vm, {"hda": 20 * 2**30, "hdb": 5})
    assert left == [
        "disk fda (of type file)",
        "channel (com.redhat.spice.0)",
        "sound (ich9)",
        "redirdev (spicevmc)",
        "vsock",
        "disks[0].bus: ide is none of virtio, scsi, sata",
        "disks[0].format: vmdk is none of raw, qcow2",
        "disks[1].bus: ide is none of virtio, scsi, sata",
        "nics[0].model: vmxnet3 is none of virtio, e1000e, e1000, rtl8139",
    ]
    assert [(disk["target"], disk.get("path"), disk.get("size"), "bus" in disk) for disk in options["disks"]] == [
        ("hda", "/srv/old.vmdk", 20 * 2**30, False),
        ("hdb", None, None, False),
    ]
    assert [nic["mac"] for nic in options["nics"]] == ["52:54:00:00:00:01"]
    root = parse(OLD)
    disks.write(root, normalise(FIELDS, {"name": "old", "disks": options["disks"]})["disks"], "old")
    wanted = normalise(FIELDS, {"name": "old", "nics": options["nics"]})["nics"]
    nics.write(root, wanted, "old", {"br0": "linux"}, boot=False)
    assert sheet.changes(sheet.read(parse(OLD)), sheet.read(root)) == []


def test_disks_that_no_name_fits_are_left_out_loudly():
    vm = _hypervisor.Domain("old", "u", None, "stopped", "unknown", True, True, False, OLD.replace("'hda'", "'xvda'"))
    options, left = adoption(vm)
    assert "disks" not in options and "nics" in options
    (word,) = [word for word in left if "left out whole" in word]
    assert word.startswith("disks[0].target: 'xvda' is not the name of a guest's disk")
    assert word.endswith("(disks is left out whole: give this VM no vm_disks, of its groups neither)")


def test_the_sheet_has_the_sizes_that_can_be_told(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"")
    os.truncate(tmp_path / "a.raw", 3 * 2**20)
    disk = "<disk type='file' device='{}'><driver name='qemu' type='raw'/><source file='{}'/><target dev='{}'/></disk>"
    rows = [("disk", "a.raw", "vda"), ("disk", "none.raw", "vdb"), ("cdrom", "a.raw", "sda")]
    xml = "".join(disk.format(device, tmp_path / name, target) for device, name, target in rows)
    xml = f"<domain type='kvm'><name>a</name><devices>{xml}</devices></domain>"

    class Running:
        def __init__(self, capacity: int) -> None:
            self.capacity = capacity

        def block_sizes(self, name: str, target: str) -> dict[str, int]:
            if target == "vdb":
                raise NotFound("not attached")
            return {"capacity": self.capacity}

    off = _hypervisor.Domain("a", "u", None, "stopped", "unknown", True, True, False, xml)
    runs = dataclasses.replace(off, live_xml=xml)
    assert vm_info.disk_sizes(Running(0), off) == {"vda": 3 * 2**20}
    assert vm_info.disk_sizes(Running(3 * 2**20), runs) == {"vda": 3 * 2**20}
    # The file grew and the guest has not been told: with the size there would be something to do.
    assert vm_info.disk_sizes(Running(2**20), runs) == {}
