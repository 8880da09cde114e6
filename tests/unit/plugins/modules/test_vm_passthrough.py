# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices and folders of the node, the boot order of single devices, and versions of the emulated computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import passthrough, site
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import SAN, WEB, lab

pytest.importorskip("libvirt")
__all__ = ["lab"]

GPU, NETWORK = "0000:65:00.0", "0000:03:00.0"
PCI = {"type": "pci", "address": GPU}
USB = {"type": "usb", "vendor": "046d", "product": "c52b"}
SHARE = {"source": "/srv/share", "target": "share"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


@pytest.fixture
def root(lab, tmp_path, monkeypatch):
    """A node with a graphics card, a network card in use, one of USB, and a folder to share."""
    return node_with(tmp_path / "root", monkeypatch)


def node_with(found: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of that node in a folder, in which it is looked for."""
    for address in (GPU, NETWORK):
        write(found / f"sys/devices/pci0000:00/{address}/iommu_group/type", "DMA")
        (found / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
        (found / "sys/bus/pci/devices" / address).symlink_to(found / f"sys/devices/pci0000:00/{address}")
    write(found / f"sys/devices/pci0000:00/{NETWORK}/net/eth0/operstate", "up")
    (found / "sys/class/net").mkdir(parents=True)
    (found / "sys/class/net/eth0").symlink_to(found / f"sys/devices/pci0000:00/{NETWORK}/net/eth0")
    words = {"idVendor": "046d", "idProduct": "c52b", "busnum": "1", "devnum": "4"}
    for name, word in words.items():
        write(found / "sys/bus/usb/devices/1-1" / name, word)
    (found / "srv/share").mkdir(parents=True)
    monkeypatch.setattr(passthrough, "ROOT", found)
    return found


def test_devices_and_folders_of_the_node_wait_for_the_next_start(lab, root):
    lab.run(**WEB, state="running")
    result = lab.both(name="web1", hostdevs=[PCI, USB], filesystems=[SHARE])
    waits = [
        f"hostdevs none -> (type pci, address {GPU}), (type usb, vendor 046d, product c52b)",
        "filesystems none -> (source /srv/share, target share)",
    ]
    assert result["pending_restart"] == waits and "at once" not in str(result["actions"])
    text = lab.node.domain("web1").xml
    assert "model='qemu-xhci'" in text and "model='none'" not in text and "<access mode='shared'/>" in text
    result = lab.both(name="web1", hostdevs=[USB], filesystems=[])
    assert result["vm"]["hostdevs"] == [USB] and result["vm"]["filesystems"] is None


@pytest.mark.parametrize("way", [{"vendor": "046d", "product": "c52b"}, {"bus": 1, "device": 4}])
def test_a_usb_device_is_found_by_either_name(lab, root, way):
    assert lab.both(**WEB, hostdevs=[{"type": "usb", **way}])["vm"]["hostdevs"] == [{"type": "usb", **way}]


def problem(lab, **options):
    result = lab.run(**WEB, **options)
    assert result["error"] == "Refused" and lab.node.domains() == {}, result
    return result["msg"]


def test_what_the_node_needs_or_lacks_is_refused(lab, root):
    assert "this node uses it: eth0 (it is up)" in problem(lab, hostdevs=[{**PCI, "address": NETWORK}])
    master = root / f"sys/devices/pci0000:00/{NETWORK}/net/eth0/master"
    (root / "sys/class/net/br0").mkdir()
    master.symlink_to(root / "sys/class/net/br0")
    assert "eth0 (a port of br0)" in problem(lab, hostdevs=[{**PCI, "address": NETWORK}])
    assert "none at that address" in problem(lab, hostdevs=[{**PCI, "address": "0000:66:00.0"}])
    assert "USB device 046d:c52c: this node has none" in problem(lab, hostdevs=[{**USB, "product": "c52c"}])
    assert "no folder /srv/other" in problem(lab, filesystems=[{**SHARE, "source": "/srv/other"}])
    assert "belongs to the operating system" in problem(lab, filesystems=[{**SHARE, "source": "/etc/libvirt"}])
    (root / f"sys/devices/pci0000:00/{GPU}/iommu_group/type").unlink()
    (root / f"sys/devices/pci0000:00/{GPU}/iommu_group").rmdir()
    assert "no IOMMU group" in problem(lab, hostdevs=[PCI])


def test_a_network_card_that_is_down_can_be_given_away(lab, root):
    write(root / f"sys/devices/pci0000:00/{NETWORK}/net/eth0/operstate", "down")
    assert lab.both(**WEB, hostdevs=[{**PCI, "address": NETWORK}])["changed"]


def test_a_device_that_a_machine_has_is_not_asked_for_again(lab, root):
    """It is the guest's while that runs: the node does not see it any more."""
    lab.run(**WEB, hostdevs=[PCI])
    (root / "sys/bus/pci/devices" / GPU).unlink()
    assert lab.run(name="web1", hostdevs=[PCI])["actions"] == []


def boots(lab):
    system = parse(lab.node.domain("web1").xml).find("os")
    return [one.get("dev") for one in system.findall("boot")]


def test_single_devices_take_the_place_of_kinds_and_give_it_back(lab):
    lab.run(**WEB)
    assert boots(lab) == ["hd"] and "<rom enabled='no'/>" in lab.node.domain("web1").xml
    nics = [{**WEB["nics"][0], "boot_order": 1}]
    made = lab.both(name="web1", disks=[{**SAN, "boot_order": 2}], nics=nics)["vm"]
    assert (made["disks"][0]["boot_order"], made["nics"][0]["boot_order"], made["boot"]) == (2, 1, None)
    assert boots(lab) == [] and "<rom" not in lab.node.domain("web1").xml
    assert lab.run(name="web1", disks=[SAN], nics=WEB["nics"])["actions"] == [], "what is not given stays"
    result = lab.run(name="web1", boot=["disk"], disks=[{**SAN, "boot_order": 1}])
    assert "boot and boot_order don't go together" in result["msg"]
    assert lab.both(name="web1", boot=["network", "disk"])["vm"]["nics"][0]["boot_order"] is None
    assert boots(lab) == ["network", "hd"]
    lab.run(name="web1", disks=[{**SAN, "boot_order": 1}])
    assert lab.both(name="web1", disks=[{**SAN, "boot_order": 0}])["vm"]["boot"] == ["disk"] and boots(lab) == ["hd"]


def test_a_new_machine_boots_from_what_has_a_place(lab):
    made = lab.both(**{**WEB, "nics": [{**WEB["nics"][0], "boot_order": 1}]})["vm"]
    assert made["boot"] is None and boots(lab) == [] and "<rom" not in lab.node.domain("web1").xml


def test_a_version_of_the_computer_stays_and_changes_within_its_family_only(lab, monkeypatch):
    offer = {**lab.node.host(), "machine_types": ["pc", "q35", "pc-q35-9.1", "pc-q35-9.2", "pc-i440fx-9.2"]}
    monkeypatch.setattr(site.Site, "offer", offer)
    assert lab.both(**WEB, machine="pc-q35-9.1")["vm"]["machine"] == "pc-q35-9.1"
    assert lab.run(name="web1", machine="q35")["actions"] == [], "the family is what it is"
    lab.run(name="web1", state="running")
    result = lab.both(name="web1", machine="pc-q35-9.2")
    assert result["pending_restart"] == ["machine pc-q35-9.1 -> pc-q35-9.2"]
    unknown = lab.run(name="web1", machine="pc-q35-99.0")["msg"]
    assert "this node does not have it (it has: pc-q35-9.1, pc-q35-9.2, q35)" in unknown
    for other in ("pc", "pc-i440fx-9.2"):
        assert f"machine is q35 and can't become {other}" in lab.run(name="web1", machine=other)["msg"]
