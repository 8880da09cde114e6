# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each option of a VM, what it is in the XML, and that it reads back; an option without a row fails."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _bridges
from ansible_collections.drover.kvm.plugins.module_utils._disks import block
from ansible_collections.drover.kvm.plugins.module_utils._disks.landing import LANDINGS
from ansible_collections.drover.kvm.plugins.module_utils._domain import disks, nics, sheet, site
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import disk_identity
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import HARDWARE
from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import MAKING
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.module_utils._xml import devices, parse, text_of
from ansible_collections.drover.kvm.plugins.modules.vm import FIELDS
from ansible_collections.drover.kvm.tests.unit.devices_fake import installed

FOREIGN = Path(__file__).with_name("foreign.xml").read_text(encoding="utf-8").rstrip("\n")
BRIDGES = {"br-int": "ovs", "br0": "linux", "br-vlans": "filtering"}
OFFER = {"arch": "x86_64", "virt_types": ["qemu", "kvm"], "machine_types": ["pc", "q35"], "memory": 2**40}
BASE = {"name": "web1", "memory": "1GiB", "vcpus": 2}
IQN = "iqn.2026-11.org.example:drover-web1-0"
SAN = {"type": "iscsi", "iqn": IQN, "portal": "10.231.5.10:3260"}
RBD = {"type": "rbd", "pool": "vms", "monitors": ["10.231.5.13"]}
FILE = {"type": "file", "path": "/srv/vms/web1.qcow2", "format": "qcow2", "size": "1GiB"}
IMPORTED = {**FILE, "source": "/srv/p2v/old1.raw", "source_format": "raw"}
BLOCK = {"type": "block", "path": "/dev/san/web1"}
LVM = {"type": "lvm", "vg": "vmdata"}
NIC = {"bridge": "br-int"}
LOG = "/var/log/libvirt/qemu/web1-console.log"

PCI_AND_USB = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
    "<address domain='0x0000' bus='0x65' slot='0x00' function='0x1'/></source></hostdev>"
    "<hostdev mode='subsystem' type='usb' managed='yes'><source><vendor id='0x046d'/><product id='0xc52b'/>"
)
SHARE = (
    "<filesystem type='mount' accessmode='passthrough'><driver type='virtiofs'/><source dir='/srv/share'/>"
    "<target dir='share'/></filesystem>"
)
HARDWARE_ROWS: dict[str, tuple[Any, str]] = {
    "uuid": ("6F0F1A3C-0f0d-4c5e-9f51-2a1c3c2c8d11", "<uuid>6f0f1a3c-0f0d-4c5e-9f51-2a1c3c2c8d11</uuid>"),
    "memory": ("2GiB", "<memory unit='KiB'>2097152</memory><currentMemory unit='KiB'>2097152</currentMemory>"),
    "max_memory": ("2GiB", "<memory unit='KiB'>2097152</memory><currentMemory unit='KiB'>1048576</currentMemory>"),
    "min_memory": ("256MiB", "<drover:min_memory>268435456</drover:min_memory>"),
    "hugepages": ("1GiB", "<memoryBacking><hugepages><page size='1048576' unit='KiB'/></hugepages></memoryBacking>"),
    "nosharepages": (True, "<memoryBacking><nosharepages/></memoryBacking>"),
    "vcpus": (3, "<vcpu>3</vcpu>"),
    "max_vcpus": (8, "<vcpu current='2'>8</vcpu>"),
    "cpu_features": (
        {"require": ["vmx", "pcid"], "disable": ["svm"]},
        "<feature policy='require' name='pcid'/><feature policy='require' name='vmx'/><feature policy='disable' ",
    ),
    "cpu_topology": (
        {"sockets": 1, "cores": 1, "threads": 2},
        "<topology sockets='1' cores='1' threads='2'/>",
    ),
    "cpu_shares": (2048, "<cputune><shares>2048</shares></cputune>"),
    "cpu_quota": (50, "<cputune><period>100000</period><quota>50000</quota></cputune>"),
    "cpu": (
        "Nehalem",
        "<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>Nehalem</model></cpu>",
    ),
    "virt_type": ("qemu", "<domain type='qemu'>"),
    "machine": ("pc", "<type arch='x86_64' machine='pc'>hvm</type>"),
    "firmware": ("efi", "<os firmware='efi'>"),
    "secure_boot": (False, "<os><type"),
    "tpm": ("2.0", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
    "boot": (["network", "disk"], "<boot dev='network'/><boot dev='hd'/>"),
    "timers": (
        {"rtc": "delay", "hypervclock": True},
        "<timer name='rtc' tickpolicy='delay'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/>",
    ),
    "clock": ("localtime", "<clock offset='localtime'><timer name='rtc' tickpolicy='catchup'/>"),
    "agent": (True, "<target type='virtio' name='org.qemu.guest_agent.0'/>"),
    "rng": (True, "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"),
    "watchdog": ({"model": "i6300esb", "action": "pause"}, "<watchdog model='i6300esb' action='pause'/>"),
    "console_log": (LOG, f"<serial type='pty'><target port='0'/><log file='{LOG}' append='on'/></serial>"),
    "graphics": (
        {"type": "vnc", "listen": "10.0.0.1"},
        "<graphics type='vnc' port='-1' autoport='yes'><listen type='address' address='10.0.0.1'/></graphics><video>",
    ),
    "hostdevs": (
        [{"type": "pci", "address": "65:00.1"}, {"type": "usb", "vendor": "0x046D", "product": "c52b"}],
        PCI_AND_USB,
    ),
    "filesystems": ([{"source": "/srv/share", "target": "share"}], SHARE),
    "video": ("virtio", "<video><model type='virtio'/></video>"),
    "owner": ("R&D", "<drover:owner>R&amp;D</drover:owner>"),
    "rollback_safe": (False, "<drover:rollback_safe>no</drover:rollback_safe>"),
    "on_maintenance": ("shutdown", "<drover:on_maintenance>shutdown</drover:on_maintenance>"),
    "title": ("R&D", "<title>R&amp;D</title>"),
    "description": ("R&D", "<description>R&amp;D</description>"),
}
NEW_SAN = (
    "<disk type='network' device='disk'><driver name='qemu' cache='none' type='raw' error_policy='stop'/>"
    f"<source protocol='iscsi' name='{IQN}/1'><host name='10.231.5.10' port='3260'/>"
    "<initiator><iqn name='iqn.2026-01.org.drover:vm-web1'/></initiator></source>"
    "<target dev='vda' bus='virtio'/></disk>"
)
NEW_RBD = (
    "<disk type='network' device='disk'>"
    "<driver name='qemu' cache='writeback' discard='unmap' type='raw' error_policy='stop'/>"
    "<source protocol='rbd' name='vms/drover-web1-0'><host name='10.231.5.13' port='6789'/>"
    "<auth username='libvirt'><secret usage='client.libvirt' type='ceph'/></auth></source>"
    "<target dev='vda' bus='virtio'/></disk>"
)
NEW_BLOCK = (
    "<disk type='block' device='disk'>"
    "<driver name='qemu' cache='none' discard='unmap' type='raw' error_policy='stop' io='native'/>"
    "<source dev='%s'/><target dev='vda' bus='virtio'/></disk>"
)
NAMED = "<host name='fd00::1' port='3300'/><host name='mon2' port='6789'/>"
CDROM = (
    "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/>"
    "<readonly/><source file='/srv/iso/a.iso'/></disk>"
)
DISK_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "type": (SAN, NEW_SAN),
    "iqn": (SAN, f"name='{IQN}/1'"),
    "lun": ({**SAN, "lun": 7}, f"name='{IQN}/7'"),
    "portal": ({**SAN, "portal": "[fd00:0::10]:3261"}, "<host name='fd00::10' port='3261'/>"),
    "initiator": ({**SAN, "initiator": "iqn.2026-11.org.example:x"}, "<iqn name='iqn.2026-11.org.example:x'/>"),
    "wwid": ({**SAN, "wwid": "3" + "A" * 16}, f'<drover:disk unit="{IQN}/1" wwid="3aaaaaaaaaaaaaaaa"/>'),
    "user": ({**SAN, "user": "drover", "secret": "san1"}, "<auth username='drover'>"),
    "secret": ({**SAN, "user": "drover", "secret": "san1"}, "<secret usage='san1' type='iscsi'/></auth>"),
    "target": ({**SAN, "target": "vdc"}, "<target dev='vdc' bus='virtio'/>"),
    "bus": ({**SAN, "bus": "scsi"}, "<target dev='sda' bus='scsi'/>"),
    "error_policy": ({**SAN, "error_policy": "enospace"}, "type='raw' error_policy='enospace'/>"),
    "rerror_policy": ({**SAN, "rerror_policy": "report"}, "error_policy='stop' rerror_policy='report'/>"),
    "serial": ({**SAN, "serial": "drover-web1-0"}, "<serial>drover-web1-0</serial>"),
    "readonly": ({**SAN, "readonly": True}, "<readonly/>"),
    "boot_order": ({**SAN, "boot_order": 1}, "<boot order='1'/>"),
    "cache": ({**SAN, "cache": "directsync"}, "cache='directsync'"),
    "io": ({**SAN, "io": "native"}, "io='native'/>"),
    "discard": ({**SAN, "discard": "unmap"}, "discard='unmap'/>"),
    "detect_zeroes": ({**FILE, "detect_zeroes": "unmap"}, "error_policy='stop' detect_zeroes='unmap'/>"),
    "queues": ({**SAN, "queues": 2}, "queues='2'/>"),
    "rotation_rate": (
        {**SAN, "bus": "scsi", "rotation_rate": 1},
        "<target dev='sda' bus='scsi' rotation_rate='1'/>",
    ),
    "physical_block_size": ({**SAN, "physical_block_size": "4KiB"}, "<blockio physical_block_size='4096'/>"),
    "iops": (
        {**SAN, "iops": {"read": 500, "write": 100}},
        "<iotune><read_iops_sec>500</read_iops_sec><write_iops_sec>100</write_iops_sec></iotune>",
    ),
    "bandwidth": (
        {**SAN, "bandwidth": {"total": "100MiB"}},
        "<iotune><total_bytes_sec>104857600</total_bytes_sec></iotune>",
    ),
    "path": (FILE, "<source file='/srv/vms/web1.qcow2'/>"),
    "format": (FILE, "<driver name='qemu' discard='unmap' type='qcow2' error_policy='stop'/>"),
    "source": ({**SAN, "source": "/srv/drover/images/a.img"}, NEW_SAN),
    "clone": ({**FILE, "source": "/srv/debian.qcow2", "clone": "linked"}, "<source file='/srv/vms/web1.qcow2'/>"),
    "source_format": (IMPORTED, "<source file='/srv/vms/web1.qcow2'/>"),
    "checksum": ({**IMPORTED, "checksum": "sha256:" + "0" * 64}, "<source file='/srv/vms/web1.qcow2'/>"),
    "size": (FILE, "<disk type='file' device='disk'>"),
    "device": ({"type": "file", "device": "cdrom", "path": "/srv/iso/a.iso"}, CDROM),
    "pool": (RBD, NEW_RBD),
    "image": ({**RBD, "image": "db"}, "name='vms/db'"),
    "namespace": ({**RBD, "namespace": "shop"}, "name='vms/shop/drover-web1-0'"),
    "vg": (LVM, NEW_BLOCK % "/dev/vmdata/drover-web1-0"),
    "lv": ({**LVM, "lv": "db"}, NEW_BLOCK % "/dev/vmdata/db"),
    "monitors": ({**RBD, "monitors": ["[fd00::1]:3300", "mon2"]}, NAMED),
}
NEW_NIC = (
    "<interface type='bridge'><mac address='52:54:00:0e:19:98'/><source bridge='br-int'/><model type='virtio'/>"
    "<virtualport type='openvswitch'/><rom enabled='no'/></interface>"
)
NIC_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "bridge": (NIC, NEW_NIC),
    "network": ({"network": "default"}, "<interface type='network'><mac address='52:54:00:0e:19:98'/><source network="),
    "vlan": ({**NIC, "vlan": 100}, "<vlan><tag id='100'/></vlan>"),
    "mac": ({**NIC, "mac": "02-00-00-AA-BB-CC"}, "<mac address='02:00:00:aa:bb:cc'/>"),
    "model": ({**NIC, "model": "e1000e"}, "<model type='e1000e'/>"),
    "trunks": ({**NIC, "trunks": [30, 20]}, "<vlan trunk='yes'><tag id='20'/><tag id='30'/></vlan>"),
    "link": ({**NIC, "link": "down"}, "<link state='down'/>"),
    "mtu": ({**NIC, "mtu": 9000}, "<mtu size='9000'/>"),
    "queues": ({**NIC, "queues": 4}, "<driver queues='4'/>"),
    "boot_order": ({**NIC, "boot_order": 2}, "<model type='virtio'/><boot order='2'/><virtualport"),
    "bandwidth": (
        {**NIC, "bandwidth": {"inbound": {"average": "10Mbit/s", "burst": "64KiB"}, "outbound": {"average": 8000}}},
        "<bandwidth><inbound average='1250' peak='1250' burst='64'/><outbound average='1' peak='1'/></bandwidth>",
    ),
    "anti_spoof": ({**NIC, "vlan": 100, "anti_spoof": False}, '<drover:nic mac="52:54:00:0e:19:98" anti_spoof="no"/>'),
    "ips": (
        {**NIC, "vlan": 100, "ips": ["fd00:0::21", "10.0.0.21/32"]},
        '<drover:nic mac="52:54:00:0e:19:98" ips="10.0.0.21,fd00::21"/>',
    ),
    "addresses": (
        {**NIC, "addresses": ["10.0.0.21/24", "FD00:0::21/64"]},
        '<drover:nic mac="52:54:00:0e:19:98" addresses="10.0.0.21/24,fd00::21/64"/>',
    ),
    "gateway": ({**NIC, "addresses": ["10.0.0.21/24"], "gateway": ["10.0.0.1"]}, 'gateway="10.0.0.1"'),
    "nameservers": ({**NIC, "nameservers": ["fd00:0::53", "10.0.0.53"]}, 'nameservers="fd00::53,10.0.0.53"'),
}


def build(**options: Any) -> Any:
    params = normalise(FIELDS, {**BASE, **options})
    root = sheet.create(params, OFFER)
    sheet.edit(root, params, BRIDGES)
    return root, params


def check(root: Any, params: dict[str, Any], fragment: str) -> None:
    text = text_of(root)
    assert fragment in re.sub(r">\s+<", "><", text)
    again = parse(text)
    sheet.edit(again, params, BRIDGES)
    assert text_of(again) == text, "a second edit changes something"


def test_every_option_has_a_row():
    assert set(HARDWARE_ROWS) == {field.name for field in HARDWARE}, "give it a row in HARDWARE_ROWS"
    assert set(DISK_ROWS) == {field.name for field in disks.DISKS}, "give it a row in DISK_ROWS"
    assert set(NIC_ROWS) == {field.name for field in nics.NICS}, "give it a row in NIC_ROWS"


@pytest.mark.parametrize("option", HARDWARE_ROWS)
def test_hardware(option):
    value, fragment = HARDWARE_ROWS[option]
    root, params = build(**{option: value})
    check(root, params, fragment)
    found = sheet.read(root)[option]
    assert (found.items() >= params[option].items()) if option == "timers" else found == params[option]


@pytest.mark.parametrize("value, word", [(None, "no"), (False, "no"), (True, "yes")])
def test_uefi_without_secure_boot_is_asked_for_by_name(value, word):
    """libvirt chooses the first UEFI of the node that fits, which may start only what is signed."""
    root, _params = build(firmware="efi", secure_boot=value)
    assert f"<feature enabled='{word}' name='secure-boot'/>" in text_of(root)
    assert sheet.read(root)["secure_boot"] is bool(value)
    assert "secure-boot" not in text_of(build(secure_boot=False)[0])


@pytest.mark.parametrize("option", DISK_ROWS)
def test_disks(option):
    disk, fragment = DISK_ROWS[option]
    root, params = build(disks=[disk])
    check(root, params, fragment)
    if option not in MAKING:
        assert sheet.read(root)["disks"][0][option] == params["disks"][0][option]


@pytest.mark.parametrize("path", ["/dev/san/web1", "/dev/md/web1"])
def test_a_block_device_goes_by_its_name(path):
    root, params = build(disks=[{**BLOCK, "path": path}])
    check(root, params, NEW_BLOCK % path)
    assert disk_identity(devices(root, "disk")[0]) == ("block", f"block:{path}")


def test_a_device_that_is_named_like_a_logical_volume_has_a_better_name(tmp_path, monkeypatch):
    node = installed(tmp_path, monkeypatch, block)
    (node.root / "dev/shop").mkdir()
    node.add("sdb", "8:16", ["shop/db1", "san/db1"])
    with pytest.raises(DroverError, match="/dev/shop/db1 would be taken for a logical volume .*; write /dev/san/db1"):
        build(disks=[{"type": "block", "path": "/dev/shop/db1"}])


REFUSED_DEVICES = {
    "/dev/sdb": "may be another disk",
    "/dev/dm-3": "may be another disk",
    "/dev/nvme0n1": "may be another disk",
    "/dev/disk/by-path/ip-10.0.0.1": "may be another disk",
    "/dev/disk/by-label/root": "may be another disk",
    "/dev/vmdata/web1": "with type lvm",
    "/srv/web1.img": "no block device",
}


@pytest.mark.parametrize("path", REFUSED_DEVICES)
def test_a_name_that_may_lead_elsewhere_is_refused(path):
    with pytest.raises(DroverError, match=REFUSED_DEVICES[path]):
        build(disks=[{"type": "block", "path": path}])


@pytest.mark.parametrize("disk", [BLOCK, LVM])
@pytest.mark.parametrize("option, words", [("format", "format raw"), ("source", "source")])
def test_what_a_device_can_not_have(disk, option, words):
    with pytest.raises(DroverError, match=words):
        build(disks=[{**disk, option: {"format": "qcow2", "source": "/srv/a.img"}[option]}])


ONE_OF_EACH = {"iscsi": SAN, "rbd": RBD, "file": FILE, "block": BLOCK, "lvm": LVM}


def test_every_kind_of_storage_has_an_example():
    assert set(ONE_OF_EACH) == set(disks.KINDS) >= set(LANDINGS)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_volume_has_one_name_in_sheets_and_in_claims(kind):
    """By it the peers refuse a second user, and remove_disks spares what another VM has."""
    root, _params = build(disks=[ONE_OF_EACH[kind]])
    name = disks.identity(sheet.read(root)["disks"][0])
    assert disk_identity(devices(root, "disk")[0]) == (kind, name) and name.startswith(f"{kind}:")


def test_a_disk_without_chap_loses_its_account_and_nothing_else():
    without = {**SAN, "user": "", "secret": ""}
    fresh = text_of(build(disks=[without])[0])
    root, _params = build(disks=[{**SAN, "user": "drover", "secret": "san1"}])
    sheet.edit(root, normalise(FIELDS, {**BASE, "disks": [without]}), BRIDGES)
    assert "auth" not in fresh and re.sub(r"\s+", "", text_of(root)) == re.sub(r"\s+", "", fresh)
    check(root, normalise(FIELDS, {**BASE, "disks": [without]}), "protocol='iscsi'")


@pytest.mark.parametrize("option", NIC_ROWS)
def test_nics(option):
    nic, fragment = NIC_ROWS[option]
    root, params = build(nics=[nic])
    check(root, params, fragment)
    assert sheet.read(root)["nics"][0][option] == params["nics"][0][option]


def test_a_linux_bridge_that_filters_vlans_takes_one():
    root, params = build(nics=[{"bridge": "br-vlans", "vlan": 100}])
    check(root, params, "<source bridge='br-vlans'/><vlan><tag id='100'/></vlan>")
    assert "virtualport" not in text_of(root)


@pytest.mark.parametrize("version, kind", [("11.0.0", "filtering"), ("10.9.1", "linux")])
def test_only_a_libvirt_that_can_gives_a_linux_bridge_vlans(monkeypatch, version, kind):
    monkeypatch.setattr(_bridges, "bridges", lambda: {"br-int": "ovs", "br0": "linux", "br-vlans": "linux"})
    monkeypatch.setattr(_bridges, "filtering", lambda: {"br-vlans"})
    node = SimpleNamespace(host=lambda: {"libvirt_version": version})
    assert site.Site(node).bridges == {"br-int": "ovs", "br0": "linux", "br-vlans": kind}


def test_a_new_vm_has_what_every_vm_needs():
    root, _params = build(nics=[NIC], disks=[SAN])
    text = text_of(root)
    assert text.startswith("<domain type='kvm'>") and "machine='q35'" in text and "<cpu mode='host-model'/>" in text
    for device in ("<serial type='pty'>", "<console type='pty'>", "org.qemu.guest_agent.0", "<rng ", "<memballoon "):
        assert text.count(device) == 1
    assert "graphics" not in text and "pcie-root-port" in text


def test_under_emulation_the_cpu_has_a_name():
    params = normalise(FIELDS, BASE)
    root = sheet.create(params, {**OFFER, "virt_types": ["qemu"], "machine_types": ["pc"]})
    assert sheet.read(root)["cpu"] == "Nehalem" and sheet.read(root)["machine"] == "pc"
    with pytest.raises(Refused, match="virt_type=kvm is not there"):
        sheet.create({**params, "virt_type": "kvm"}, {**OFFER, "virt_types": ["qemu"]})


HOSTDEV = {"hostdev", "source", "address"}
FOREIGN_EDITS = [
    ({"memory": "4GiB"}, {"memory", "currentMemory"}),
    ({"vcpus": 8}, {"vcpu"}),
    ({"title": "new"}, {"title"}),
    ({"title": ""}, {"title"}),
    ({"description": "new"}, {"description"}),
    ({"memory": "512MiB"}, {"currentMemory"}),
    ({"max_memory": "4GiB"}, {"memory"}),
    ({"min_memory": "1GiB"}, {"drover:min_memory"}),
    ({"vcpus": 3}, {"vcpu"}),
    ({"cpu_topology": {"cores": 2, "threads": 2}}, {"topology"}),
    ({"cpu_features": {"disable": ["vmx"]}}, {"feature"}),
    ({"tpm": "2.0"}, {"tpm", "backend"}),
    ({"clock": "localtime"}, {"clock"}),
    ({"timers": {"kvmclock": True}}, {"clock", "timer"}),
    ({"machine": "pc-q35-99.0"}, {"type"}),
    ({"hostdevs": [{"type": "pci", "address": "3b:00.1"}, {"type": "usb", "bus": 1, "device": 4}]}, HOSTDEV),
    ({"filesystems": [{"source": "/srv/a", "target": "a"}]}, {"filesystem", "memoryBacking"}),
    ({"nics": [{"boot_order": 1}, {}]}, {"boot"}),
    ({"owner": "R&D"}, {"drover:owner"}),
    ({"rollback_safe": False}, {"drover:rollback_safe"}),
    ({"on_maintenance": "leave"}, {"drover:on_maintenance"}),
    ({"graphics": {"type": "vnc", "listen": "::1"}}, {"graphics", "video"}),
    ({"video": "none"}, {"video"}),
    ({"watchdog": {"model": "i6300esb"}}, {"watchdog"}),
    ({"agent": True, "rng": True}, {"channel", "rng"}),
    (
        {
            "disks": [
                {"type": "iscsi", "target": "vda", "io": "native"},
                {"type": "file", "target": "vdb", "bandwidth": {"read": "1MiB"}},
                {"type": "rbd", "target": "vdc", "iops": {"total": 5}},
                {"type": "file", "target": "sda"},
            ]
        },
        {"driver", "iotune"},
    ),
    ({"nics": [{"mac": "52:54:00:aa:bb:01", "vlan": 200}, {"mac": "52:54:00:aa:bb:02"}]}, {"tag"}),
]


@pytest.mark.parametrize("options,touched", FOREIGN_EDITS)
def test_a_foreign_definition_keeps_all_that_is_not_declared(options, touched):
    before = parse(FOREIGN)
    after = deepcopy(before)
    params = normalise(FIELDS, {"name": "legacy", **options})
    sheet.edit(after, params, BRIDGES)
    one, two = text_of(before).splitlines(), text_of(after).splitlines()
    lost = [line for line in one if line not in two]
    assert two != one, "the edit did nothing"
    new = [line for line in two if line not in one]
    assert all(any(f"<{name}" in line for name in touched) for line in new), new
    assert all(any(f"<{name}" in line for name in touched) for line in lost), lost
    assert len(one) - len(lost) == len([line for line in one if line in two])
    assert "qemu:arg" in text_of(after) and "<!-- a note" in text_of(after) and "virtio-disk0" in text_of(after)


def test_what_is_declared_as_it_is_changes_nothing():
    root = parse(FOREIGN)
    options = sheet.read(root)
    declared = {**options, "name": "legacy", "tags": None}
    sheet.edit(root, normalise(FIELDS, declared), BRIDGES)
    assert text_of(root) == FOREIGN


def test_disks_of_unknown_kinds_stay_when_the_list_is_exact():
    root = parse(FOREIGN)
    sheet.edit(root, normalise(FIELDS, {"name": "legacy", "disks": [], "nics": []}), BRIDGES)
    text = text_of(root)
    assert "volume='legacy'" in text and "hostdev" in text
    assert not [word for word in ("iscsi", "vms/legacy", "data, ", "<interface") if word in text]


def test_a_nic_keeps_its_address_when_the_vm_is_renamed_or_the_rule_changes():
    root = parse(FOREIGN)
    wanted = [{"bridge": "br-int", "vlan": 300}, {"bridge": "br-int"}]
    sheet.edit(root, normalise(FIELDS, {"name": "legacy", "nics": wanted}), BRIDGES)
    assert [nic["mac"][-2:] for nic in sheet.read(root)["nics"]] == ["01", "02"]


# Edits of foreign.xml: a disk that is there is named by `type` and `target` only.
REFUSED = [
    ({"min_memory": "1025MiB"}, "min_memory=1025MiB is more than the memory of 1GiB"),
    ({"min_memory": "1GiB", "memory": "512MiB"}, "min_memory=1GiB is more than the memory of 512MiB"),
    ({"min_memory": "1000000"}, "not whole mebibytes"),
    ({"uuid": "00000000-0000-4000-8000-000000000001"}, "keeps its UUID"),
    ({"machine": "pc"}, "machine is q35 and can't become pc"),
    ({"machine": "pc-i440fx-9.2"}, "machine is q35 and can't become pc-i440fx-9.2"),
    ({"machine": "q35,accel=kvm"}, "is not a machine type"),
    ({"boot": ["cdrom"], "disks": [{"type": "iscsi", "target": "vda", "boot_order": 1}]}, "boot and boot_order"),
    (
        {
            "disks": [{"type": "iscsi", "target": "vda", "boot_order": 1}],
            "nics": [{"mac": "52:54:00:aa:bb:01", "boot_order": 1}],
        },
        "boot_order 1 is given to two devices of legacy",
    ),
    ({"nics": [{"boot_order": 100}]}, "write a number from 0 to 99"),
    ({"hostdevs": [{"type": "pci"}]}, "a device of type pci is named by address"),
    ({"hostdevs": [{"type": "pci", "address": "3b:00.8"}]}, "is not a PCI address"),
    ({"hostdevs": [{"type": "usb", "vendor": "046d"}]}, "is named by bus and device or vendor and product|vendor and"),
    ({"hostdevs": [{"type": "usb", "vendor": "83", "product": "c52b"}]}, "in quotes, such as '046d'"),
    ({"hostdevs": [{"type": "usb", "bus": 1, "device": 2}] * 2}, "listed twice"),
    ({"filesystems": [{"source": "/srv/a", "target": "a b"}]}, "is not the name of a share"),
    ({"filesystems": [{"source": "/srv/../a", "target": "a"}]}, "without . and .."),
    ({"filesystems": [{"source": f"/srv/{n}", "target": "a"} for n in "ab"]}, "a target is listed twice"),
    (
        {"disks": [{"type": "iscsi", "target": "vda", "iqn": "iqn.2026-11.lab:other"}]},
        "vda is iscsi:iqn.2026-11.lab:h1/1",
    ),
    (
        {"disks": [{"type": "iscsi", "target": "vdb", "iqn": "iqn.2026-11.lab:h1", "portal": "10.231.5.10:3260"}]},
        "is already vda of this VM; say target: vda for it, or another volume for vdb",
    ),
    ({"disks": [{"type": "file", "target": "vda", "path": "/srv/a"}]}, "is of type iscsi"),
    ({"disks": [{"type": "file", "target": "vdb", "format": "raw"}]}, "format of vdb is qcow2"),
    ({"disks": [{"type": "file"}]}, "disks.0.: format is missing"),
    ({"nics": [{"mac": "52:54:00:aa:bb:01", "model": "e1000"}]}, "another NIC"),
    ({"nics": [{"mac": "52:54:00:aa:bb:02", "vlan": 5, "trunks": [5]}]}, "don't go together"),
    ({"nics": [{"mac": "52:54:00:aa:bb:02", "anti_spoof": True}]}, "needs a port with one VLAN"),
    ({"nics": [{"anti_spoof": False, "ips": ["10.0.0.1"]}]}, "ips are checked with anti_spoof only"),
    ({"nics": [{"ips": ["10.0.0.1", "10.0.0.1/32"]}]}, "listed twice"),
    ({"nics": [{"ips": ["10.0.0.1/24"]}]}, "neither an IP address nor a network"),
    ({"nics": [{"ips": ["::/0"]}]}, "no addresses that a VM can have"),
    ({"nics": [{"trunks": [5, 5]}]}, "lists a VLAN twice"),
    ({"nics": [{"trunks": [0]}]}, "not a VLAN"),
    ({"nics": [{"bandwidth": {"inbound": {"peak": "1Mbit"}}}]}, "average is missing"),
    ({"nics": [{"bandwidth": {"inbound": {"average": "1Gbit", "peak": "1Mbit"}}}]}, "below the average"),
    ({"nics": [{"bandwidth": {"inbound": {"average": "1001"}}}]}, "in steps of 8kbit/s"),
    ({"nics": [{"bandwidth": {"inbound": {"average": "10 MB/s"}}}]}, "is not a rate"),
    (
        {"nics": [{"bridge": "br0", "mac": "52:54:00:aa:bb:03", "ips": ["fd00::1"], "anti_spoof": True}]},
        "single addresses of IPv4",
    ),
    ({"nics": [{"bridge": "br0", "vlan": 5}]}, "Linux bridge"),
    ({"nics": [{"network": "default"}, {}]}, "a network has no vlan"),
    ({"nics": [{"bridge": "br0", "network": "default"}]}, "bridge and network don't go together"),
    ({"nics": [{}, {}, {"bridge": "br0", "model": "e1000", "queues": 2}]}, "queues are for the model virtio"),
    ({"disks": [{"type": "file", "target": "vdb", "io": "native"}]}, "io=native needs cache=none"),
    ({"disks": [{**SAN, "target": "sdb", "bus": "scsi", "queues": 2}]}, "queues are for the bus virtio"),
    ({"disks": [{**SAN, "rotation_rate": 1}]}, "rotation_rate is for disks on the buses scsi, sata, ide"),
    ({"disks": [{"type": "iscsi", "target": "vda", "rotation_rate": 1}]}, "rotation_rate is for disks on the buses"),
    ({"disks": [{"type": "file", "device": "cdrom", "rotation_rate": 7200}]}, "rotation_rate is for .*, no cdrom"),
    *(
        ({"disks": [{**SAN, "bus": "sata", "rotation_rate": rate}]}, f"{rate} is not a rotation rate; write 1")
        for rate in (-1, 2, 1024, 65535)
    ),
    *(
        ({"disks": [{**SAN, "physical_block_size": size}]}, f"{size} is not the size of a block; write 512")
        for size in (256, 4095, 4 * 2**20)
    ),
    ({"disks": [{**SAN, "iops": {"total": 1, "read": 1}}]}, "don't go together"),
    ({"max_memory": "512MiB"}, "max_memory=512MiB is less than the memory of 1GiB"),
    ({"max_vcpus": 1}, "max_vcpus=1 is less than the 2 vCPUs"),
    ({"cpu_topology": {"sockets": 3}}, "max_vcpus=4 does not fit the VM's CPU topology of 1 per socket, 3 in all"),
    ({"cpu_topology": {"cores": 3}}, "does not fit"),
    ({"cpu_features": {"require": ["a b"]}}, "is not a CPU feature"),
    ({"cpu_features": {"require": ["vmx"], "disable": ["vmx"]}}, "listed twice"),
    ({"hugepages": "3MiB"}, "is not the size of a page"),
    ({"firmware": "bios"}, "firmware is efi and can't become bios: the guest was installed"),
    ({"secure_boot": True}, "secure_boot is False and can't become True"),
    ({"console_log": "/etc/passwd"}, "below /var/log"),
    ({"console_log": "/var/log/../../etc/passwd"}, "below /var/log"),
    ({"graphics": {"type": "vnc", "listen": "all"}}, "is not an IP address"),
    ({"cpu_shares": 1}, "out of range"),
    ({"cpu_quota": 101}, "write a number from 0 to 100"),
    ({"nics": [{}, {}, {}]}, "nics.2.: bridge is missing"),
    ({"disks": [{"type": "iscsi"}]}, "disks.0.: iqn is missing"),
    ({"disks": [{**SAN, "format": "qcow2"}]}, "has the format raw"),
    ({"disks": [{**SAN, "user": "x"}]}, "user and secret go together"),
    ({"disks": [{"type": "rbd"}]}, "disks.0.: pool is missing"),
    ({"disks": [{"type": "rbd", "pool": "vms"}]}, "no file in /etc/ceph names the monitors"),
    ({"disks": [{**RBD, "format": "qcow2"}]}, "has the format raw"),
    ({"disks": [{**RBD, "source": "/srv/a.img"}]}, "write POOL/IMAGE@SNAPSHOT"),
    ({"disks": [{**RBD, "monitors": ["a b"]}]}, "is not a monitor"),
    ({"disks": [{**RBD, "pool": "a/b"}]}, "not a valid name"),
    ({"disks": [{"type": "rbd", "target": "vdc", "image": "other"}]}, "vdc is rbd:./vms/legacy, not rbd:./vms/other"),
]


@pytest.mark.parametrize("options,words", REFUSED)
def test_what_would_be_another_computer_is_refused(options, words):
    root = parse(FOREIGN)
    with pytest.raises(DroverError, match=words):
        sheet.edit(root, normalise(FIELDS, {"name": "legacy", **options}), BRIDGES)


def test_a_disk_on_ide_of_a_machine_that_was_there_has_a_rate_too():
    root = parse(FOREIGN.replace("<target dev='vdb' bus='virtio'/>", "<target dev='hda' bus='ide'/>"))
    wanted = [{"type": "iscsi", "target": "vda"}, {"type": "file", "target": "hda", "rotation_rate": 7200}]
    sheet.edit(root, normalise(FIELDS, {"name": "legacy", "disks": wanted}), BRIDGES)
    assert "<target dev='hda' bus='ide' rotation_rate='7200'/>" in text_of(root)


def test_a_physical_block_is_no_smaller_than_a_logical_one():
    """QEMU would not start it (seen with 7.2); only a definition of others says the logical one."""
    root = parse(FOREIGN.replace("<target dev='vdb'", "<blockio logical_block_size='4096'/><target dev='vdb'"))
    wanted = [{"type": "iscsi", "target": "vda"}, {"type": "file", "target": "vdb", "physical_block_size": 512}]
    with pytest.raises(DroverError, match="disks.1.: physical_block_size is less than the logical one of 4096"):
        sheet.edit(root, normalise(FIELDS, {"name": "legacy", "disks": wanted}), BRIDGES)
    wanted[1]["physical_block_size"] = "4KiB"
    sheet.edit(root, normalise(FIELDS, {"name": "legacy", "disks": wanted}), BRIDGES)
    assert "<blockio logical_block_size='4096' physical_block_size='4096'/>" in text_of(root)


def test_pending_names_what_the_running_vm_lacks():
    running = parse(FOREIGN)
    wanted = deepcopy(running)
    params = normalise(FIELDS, {"name": "legacy", "memory": "4GiB", "disks": [], "nics": [{"bridge": "br-int"}]})
    sheet.edit(wanted, params, BRIDGES)
    assert sheet.pending(running, sheet.read(wanted)) == [
        "memory 2GiB -> 4GiB",
        "disk vda removed",
        "disk vdb removed",
        "disk vdc removed",
        "disk sda removed",
        "nic 52:54:00:aa:bb:02 removed",
    ]
    assert sheet.pending(running, sheet.read(running)) == []


def test_a_limit_of_cpu_time_is_read_however_it_is_written():
    texts = ["<quota>30000</quota>", "<period>1000000</period><quota>333333</quota>", "<quota>-1</quota>"]
    roots = [
        parse(f"<domain><cputune>{text}<emulator_quota>5000</emulator_quota></cputune></domain>") for text in texts
    ]
    quota = next(field for field in HARDWARE if field.name == "cpu_quota").place
    assert [quota.get(root) for root in roots] == [30, 33, None]
    quota.put(roots[1], 0)
    assert text_of(roots[1]) == "<domain><cputune><emulator_quota>5000</emulator_quota></cputune></domain>"


def test_host_model_is_not_pending_for_ever():
    running = parse(FOREIGN.replace("<model fallback='forbid'>Nehalem</model>", "<model>X</model><vendor>AMD</vendor>"))
    assert sheet.pending(running, {**sheet.read(running), "cpu": "host-model"}) == []
    running = parse(FOREIGN)
    assert sheet.pending(running, {**sheet.read(running), "cpu": "host-model"}) == ["cpu Nehalem -> host-model"]


@pytest.mark.parametrize("disk", [{**SAN, "iqn": f"{IQN}.other"}, FILE])
def test_a_disk_that_lies_elsewhere_than_its_sheet_says_is_not_swapped(disk):
    root, _params = build(disks=[SAN])
    with pytest.raises(Refused, match=r"disks\[0\]: vda is iscsi:.*, not .*; where that is right, say so"):
        sheet.edit(root, normalise(FIELDS, {**BASE, "disks": [disk]}), BRIDGES)
    sheet.edit(root, normalise(FIELDS, {**BASE, "disks": []}), BRIDGES)
    sheet.edit(root, normalise(FIELDS, {**BASE, "disks": [disk]}), BRIDGES)


def free(root: Any) -> int:
    """Ports that are left, when libvirt has put four devices of each VM, its disks and its NICs on one each."""
    text = text_of(root)
    devices_there = sum(text.count(f"<{name} ") for name in ("disk", "interface", "rng", "memballoon", "channel"))
    return text.count("pcie-root-port") - devices_there


@pytest.mark.parametrize("many", [0, 1, 6, 20])
def test_a_new_vm_has_free_ports_for_what_is_plugged_in_later(many):
    root, _params = build(disks=[{**SAN, "lun": number} for number in range(many)], nics=[NIC] * 2)
    assert free(root) >= 4 and "pcie" not in text_of(build(machine="pc")[0])


def test_the_first_scsi_disk_brings_a_controller_that_takes_more_as_the_vm_runs():
    disks = [{**SAN, "bus": "scsi", "lun": number} for number in range(2)]
    root, params = build(disks=disks)
    check(root, params, "<controller type='scsi' index='0' model='virtio-scsi'/>")
    assert text_of(root).count("type='scsi'") == 1
