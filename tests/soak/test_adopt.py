# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM that somebody made by other means is taken into the inventory, as it runs, and nothing of it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NODE, NAME = "hv2", "legacy1"
DISK = f"/var/lib/libvirt/images/{NAME}.qcow2"
# As virt-install and virt-manager write it, with what module vm has no option for.
FOREIGN = f"""<domain type='qemu'>
  <name>{NAME}</name>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>65536</memory><currentMemory unit='KiB'>49152</currentMemory><vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{DISK}'/>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:12:34:56'/><source bridge='br0'/>
      <vlan><tag id='100'/></vlan><virtualport type='openvswitch'/><model type='virtio'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <input type='tablet' bus='usb'/>
    <sound model='ich9'/>
    <graphics type='vnc' port='-1' autoport='yes'><listen type='address'/></graphics>
    <video><model type='vga' vram='16384' heads='1' primary='yes'/></video>
  </devices>
</domain>
"""


@pytest.fixture
def legacy(site: Cluster) -> Iterator[Cluster]:
    """A VM that runs on one node, and that no inventory knows."""
    try:
        site.ssh(NODE, "qemu-img", "create", "-q", "-f", "qcow2", DISK, "8M")
        site.ssh(NODE, "virsh define /dev/stdin", stdin=FOREIGN)
        site.ssh(NODE, "virsh", "start", NAME)
        yield site
    finally:
        site.ssh(NODE, f"virsh destroy {NAME}; virsh undefine {NAME}; rm -f {DISK}", check=False)
    assert NAME not in site.domains(NODE)


def definition(cluster: Cluster) -> str:
    """What libvirt has written down of it."""
    return cluster.ssh(NODE, "virsh", "dumpxml", "--inactive", "--security-info", NAME)


def test_a_foreign_vm_is_taken_over_and_stays_as_it_is(legacy: Cluster, tmp_path: Path) -> None:
    before, number = definition(legacy), legacy.ssh(NODE, "virsh", "domid", NAME)
    folder = tmp_path / "host_vars"
    legacy.play("adopt_vms", directory=str(folder), vms=NAME).refused("make it first")
    folder.mkdir()
    legacy.play("adopt_vms", directory=str(folder), vms="legcay1").refused("legcay1")
    checked = legacy.play("adopt_vms", "--check", directory=str(folder), vms=NAME).good()
    assert checked.changed == 1 and not list(folder.iterdir()), checked.output
    assert legacy.play("adopt_vms", directory=str(folder), vms=NAME).good().changed == 1
    place = folder / f"{NAME}.yml"
    text = place.read_text(encoding="utf-8")
    sheet = yaml.safe_load(text)
    assert sheet["vm_memory"] == "48MiB" and sheet["vm_max_memory"] == "64MiB" and sheet["vm_vcpus"] == 2, text
    assert sheet["vm_disks"][0]["path"] == DISK and sheet["vm_nics"][0]["vlan"] == 100, text
    assert sheet["vm_profile"] is None and "sound" in text, text
    # A file that is there is never written over.
    place.write_text(text + "# mine\n", encoding="utf-8")
    assert legacy.play("adopt_vms", directory=str(folder), vms=NAME).good().changed == 0
    assert place.read_text(encoding="utf-8").endswith("# mine\n")
    # In the inventory it is built without a change.
    groups = {"vms": {"hosts": {NAME: None}}}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump(groups), encoding="utf-8")
    for options in (["--check"], []):
        built = legacy.play("build_vms", "-i", str(inventory), *options, vms=NAME).good()
        assert built.changed == 0, built.output
    assert definition(legacy) == before and legacy.ssh(NODE, "virsh", "domid", NAME) == number
