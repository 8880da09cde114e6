# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hardware of a VM as a real libvirt with QEMU keeps it: all options together, checked against libvirt's schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _bridges
from ansible_collections.drover.kvm.plugins.module_utils._domain import site
from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import adoption
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import HARDWARE
from ansible_collections.drover.kvm.plugins.module_utils._domain.machine import machine_family
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse, text_of
from ansible_collections.drover.kvm.plugins.modules import node_info, vm
from ansible_collections.drover.kvm.tests.unit import libvirt_server
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm_passthrough import node_with

pytest.importorskip("libvirt")

BASE: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 2, "virt_type": "qemu"}
# Each option of HARDWARE with a value that is not its default.
ALL: dict[str, Any] = {
    **BASE,
    "uuid": "6f0f1a3c-0f0d-4c5e-9f51-2a1c3c2c8d11",
    "max_memory": "128MiB",
    "min_memory": "32MiB",
    "hugepages": "2MiB",
    "nosharepages": True,
    "max_vcpus": 8,
    "cpu": "Nehalem",
    "cpu_features": {"require": ["pcid"], "disable": ["x2apic"]},
    "cpu_topology": {"sockets": 1, "cores": 4, "threads": 2},
    "cpu_shares": 200,
    "cpu_quota": 50,
    "machine": "q35",
    "firmware": "efi",
    "secure_boot": True,
    "tpm": "2.0",
    "boot": ["network", "disk"],
    "clock": "localtime",
    "timers": {"rtc": "delay", "pit": "discard", "hpet": True, "kvmclock": False, "hypervclock": True},
    "agent": False,
    "rng": False,
    "watchdog": {"model": "i6300esb", "action": "poweroff"},
    "console_log": "/var/log/libvirt/qemu/web1-console.log",
    "graphics": {"type": "vnc", "listen": "127.0.0.2"},
    "video": "virtio",
    "hostdevs": [
        {"type": "pci", "address": "0000:65:00.0"},
        {"type": "usb", "vendor": "046d", "product": "c52b"},
        {"type": "usb", "bus": 1, "device": 4},
    ],
    "filesystems": [{"source": "/srv/share", "target": "share"}],
    "title": "The shop",
    "description": "R&D's <shop>",
    "owner": "R&D",
    "rollback_safe": True,
    "on_maintenance": "restart",
}
# What an existing VM is changed to; the others of ALL can't change.
OTHERS: dict[str, Any] = {
    "memory": "96MiB",
    "max_memory": "256MiB",
    "min_memory": 0,
    "hugepages": False,
    "nosharepages": False,
    "vcpus": 3,
    "max_vcpus": 12,
    "cpu": "Westmere",
    "cpu_features": {"disable": ["pcid"]},
    "cpu_topology": {"sockets": 2, "dies": 3, "cores": 1, "threads": 2},
    "cpu_shares": 0,
    "cpu_quota": 0,
    "tpm": "none",
    "boot": ["disk"],
    "clock": "utc",
    "timers": {"rtc": "catchup", "pit": "delay", "hpet": False, "kvmclock": True, "hypervclock": False},
    "agent": True,
    "rng": True,
    "watchdog": {"model": "none"},
    "console_log": "",
    "graphics": {"type": "none"},
    "video": "none",
    "hostdevs": [],
    "filesystems": [],
    "title": "",
    "description": "",
    "owner": "",
    "rollback_safe": False,
    "on_maintenance": "migrate",
}
CANT_CHANGE = {"machine"}  # but to another version of the same, see test_vm_passthrough.py
DISK = {
    "type": "iscsi",
    "iqn": "iqn.2026-11.org.example:drover-web1-0",
    "portal": "10.231.5.10:3260",
    "cache": "directsync",
    "io": "native",
    "discard": "unmap",
    "detect_zeroes": "unmap",
    "queues": 2,
    "iops": {"read": 500, "write": 100},
    "bandwidth": {"total": "100MiB"},
}
NIC = {"bridge": "br-int", "vlan": 100, "link": "down", "mtu": 9000, "queues": 4}
INSIDE = "<network><name>inside</name><bridge name='virbr7'/></network>"
AROUND = "<network><name>around</name><forward mode='bridge'/><bridge name='br-int'/></network>"
# These are taken back by it, and then shown as null.
TAKEN_BACK = {"hugepages", "cpu_shares", "cpu_quota", "tpm", "watchdog", "console_log", "graphics", "video"}
TAKEN_BACK |= {"min_memory", "title", "description", "owner", "hostdevs", "filesystems"}


@pytest.fixture(scope="module")
def daemon():
    if libvirt_server.missing():
        pytest.skip(f"no private libvirtd: {libvirt_server.missing()}")
    with libvirt_server.private_libvirtd() as running:
        with connect(running.uri()) as node:
            if "qemu" not in node.host()["virt_types"]:
                pytest.skip("QEMU is not installed")
        yield running


@pytest.fixture
def run(daemon, monkeypatch, capsys, tmp_path):
    """The module in check mode, then for real, then once more; each test begins and ends without VMs."""
    monkeypatch.setattr(vm, "connect", lambda: connect(daemon.uri()))
    monkeypatch.setattr(_bridges, "bridges", lambda: {"br-int": "ovs"})
    monkeypatch.setattr(site, "ask_peers", lambda call, seconds: {})
    node_with(tmp_path / "root", monkeypatch)

    def once(**args: Any) -> dict[str, Any]:
        with patch_module_args(args), pytest.raises(SystemExit):
            vm.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert not result.get("failed"), result["msg"]
        result.pop("invocation")
        return result

    def thrice(**args: Any) -> dict[str, Any]:
        predicted, real = once(**args, _ansible_check_mode=True), once(**args)
        assert predicted == real
        again = once(**args)
        assert again["actions"] == [] and again["changed"] is False
        return real

    yield thrice
    with connect(daemon.uri()) as node:
        for domain in node.domains().values():
            if domain.active:
                node.destroy(domain.name)
            node.undefine(domain.name)


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """The options as the module returns them."""
    fields = [field for field in HARDWARE if field.name in options]
    return normalise(fields, options)


def as_asked(made: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What a VM has of these; its machine has a version that nobody asked for."""
    return {**{name: made[name] for name in shown(options)}, "machine": machine_family(made["machine"])}


def test_every_option_is_in_the_table():
    assert set(ALL) - {"name"} == {field.name for field in HARDWARE}
    assert set(OTHERS) == {field.name for field in HARDWARE if not field.fixed} - CANT_CHANGE


def test_all_options_together_are_what_libvirt_keeps_and_adopts(run, daemon):
    made = run(**ALL)["vm"]
    assert as_asked(made, ALL) == shown(ALL) and made["machine"].startswith("pc-q35-")
    with connect(daemon.uri()) as node:
        sheet, left_out = adoption(node.domain("web1"))
    assert left_out == []
    assert run(**{name: value for name, value in sheet.items() if name != "state"})["actions"] == []


def test_all_options_together_change_in_place_and_back(run):
    run(**ALL)
    changed = run(name="web1", **OTHERS)["vm"]
    wanted = {name: None if name in TAKEN_BACK else value for name, value in shown(OTHERS).items()}
    assert {name: changed[name] for name in wanted} == wanted
    back = run(**ALL)["vm"]
    assert as_asked(back, ALL) == shown(ALL)


def test_a_new_vm_has_the_defaults(run):
    made = run(**BASE)["vm"]
    nothing = ["max_memory", "hugepages", "max_vcpus", "cpu_features", "cpu_topology", "cpu_shares", "cpu_quota"]
    nothing += ["tpm", "watchdog", "console_log", "graphics", "video", "title", "description", "owner", "rollback_safe"]
    nothing.append("on_maintenance")
    assert {name: made[name] for name in nothing} == dict.fromkeys(nothing)
    assert made["agent"] and made["rng"] and made["clock"] == "utc"
    assert made["firmware"] == "bios" and made["secure_boot"] is False and made["nosharepages"] is False


def test_disks_and_nics_are_what_libvirt_keeps(run):
    made = run(**BASE, disks=[DISK], nics=[NIC])["vm"]
    assert {name: made["disks"][0][name] for name in DISK} == {**DISK, "bandwidth": {"total": 100 * 2**20}}
    assert {name: made["nics"][0][name] for name in NIC} == NIC
    others = {"cache": "none", "io": "threads", "discard": "ignore", "detect_zeroes": "off", "queues": 4}
    others.update({"iops": {}, "bandwidth": {}})
    changed = run(**BASE, disks=[{**DISK, **others}], nics=[{**NIC, "link": "up", "mtu": 1500, "queues": 1}])["vm"]
    shown_disk = {name: changed["disks"][0][name] for name in others}
    assert shown_disk == {**others, "iops": None, "bandwidth": None}
    nic = changed["nics"][0]
    assert (nic["link"], nic["mtu"], nic["queues"]) == (None, 1500, None)
    run(**BASE, disks=[{**DISK, "serial": "S1"}], nics=[NIC])
    back = run(**BASE, disks=[{**DISK, "queues": 0, "serial": ""}], nics=[{**NIC, "mtu": 0}])["vm"]
    assert (back["disks"][0]["queues"], back["disks"][0]["serial"], back["nics"][0]["mtu"]) == (None, None, None)


@pytest.mark.parametrize("bus", ["scsi", "sata"])
def test_the_rate_of_a_disk_is_what_libvirt_keeps(run, daemon, bus):
    disk = {**{name: DISK[name] for name in ("type", "iqn", "portal")}, "bus": bus}
    for rate in (1, 7200, 0):
        made = run(**BASE, disks=[{**disk, "rotation_rate": rate}])["vm"]["disks"][0]
        with connect(daemon.uri()) as node:
            text = node.domain("web1").xml
        assert made["rotation_rate"] == (rate or None) and (f" rotation_rate='{rate}'/>" in text) == bool(rate)
    assert "rotation_rate" not in text


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata"])
def test_the_block_of_a_disk_is_what_libvirt_keeps(run, daemon, bus):
    disk = {**{name: DISK[name] for name in ("type", "iqn", "portal")}, "bus": bus}
    for given, size in (("4KiB", 4096), (512, 512), ("2MiB", 2**21), (0, None)):
        made = run(**BASE, disks=[{**disk, "physical_block_size": given}])["vm"]["disks"][0]
        with connect(daemon.uri()) as node:
            text = node.domain("web1").xml
        assert made["physical_block_size"] == size
        assert (f"<blockio physical_block_size='{size}'/>" in text) == bool(size)
    assert "blockio" not in text


def test_the_order_of_single_devices_is_what_libvirt_keeps(run):
    made = run(**BASE, disks=[{**DISK, "boot_order": 2}], nics=[{**NIC, "boot_order": 1}])["vm"]
    assert (made["disks"][0]["boot_order"], made["nics"][0]["boot_order"], made["boot"]) == (2, 1, None)
    back = run(**BASE, disks=[{**DISK, "boot_order": 0}], nics=[{**NIC, "boot_order": 0}])["vm"]
    assert (back["disks"][0]["boot_order"], back["nics"][0]["boot_order"], back["boot"]) == (None, None, ["disk"])


def test_a_network_takes_the_place_of_a_bridge(run, daemon):
    with connect(daemon.uri()) as node:
        defined = [node.connection.networkDefineXML(xml) for xml in (INSIDE, AROUND)]
    made = run(**BASE, nics=[{"network": "inside"}])["vm"]["nics"][0]
    assert (made["network"], made["bridge"], made["model"]) == ("inside", None, "virtio")
    plugged = run(**BASE, nics=[{"bridge": "br-int", "vlan": 100}])["vm"]["nics"][0]
    assert (plugged["network"], plugged["bridge"], plugged["mac"]) == (None, "br-int", made["mac"])
    with pytest.raises(AssertionError, match="a network has no vlan"):
        run(**BASE, nics=[{"network": "inside"}])
    with pytest.raises(AssertionError, match="this node has no network other .it has: around, inside"):
        run(**BASE, nics=[{"bridge": "br-int", "vlan": 100}, {"network": "other"}])
    with pytest.raises(AssertionError, match="network around is br-int of Open vSwitch; give bridge and vlan"):
        run(**BASE, nics=[{"bridge": "br-int", "vlan": 100}, {"network": "around"}])
    for network in defined:
        network.undefine()


@pytest.mark.skipif(not (Path("/usr/share/OVMF").exists() and shutil.which("swtpm")), reason="needs ovmf and swtpm")
@pytest.mark.slow
def test_what_firmware_and_tpm_keep_goes_with_the_disks_only(run, daemon):
    # What this machine, or a libvirtd without cgroups, may lack.
    lacks = ("hugepages", "cpu_features", "cpu_quota", "hostdevs", "filesystems")
    sheet = {name: value for name, value in ALL.items() if name not in lacks}
    started = run(**sheet, state="running")
    assert started["vm"]["state"] == "running" and started["pending_restart"] == []
    run(name="web1", state="stopped", force=True)
    kept = ["/var/lib/libvirt/qemu/nvram/web1_VARS.fd", f"/var/lib/libvirt/swtpm/{ALL['uuid']}/tpm2/tpm2-00.permall"]
    assert [daemon.path(path).exists() for path in kept] == [True, True]
    run(name="web1", state="absent")
    assert [daemon.path(path).exists() for path in kept] == [True, True]
    run(**sheet)
    run(name="web1", state="absent", remove_disks=True)
    assert [daemon.path(path).exists() for path in kept] == [False, False]


@pytest.mark.skipif(not Path("/usr/share/OVMF").exists(), reason="needs ovmf")
@pytest.mark.parametrize("wanted", [None, False, True])
@pytest.mark.slow
def test_uefi_starts_what_is_not_signed_unless_asked_to(run, daemon, wanted):
    asked = {} if wanted is None else {"secure_boot": wanted}
    started = run(**BASE, machine="q35", firmware="efi", state="running", **asked)
    assert started["vm"]["secure_boot"] is bool(wanted)
    with connect(daemon.uri()) as node:
        loader = next(one for one in parse(node.domain("web1").live_xml).iter("loader"))
    assert (loader.get("secure") == "yes") is bool(wanted), text_of(loader)
    run(name="web1", secure_boot=bool(wanted))
    run(name="web1", state="absent", force=True, remove_disks=True)


def test_a_vm_that_sees_its_machine_s_cpu_runs_where_all_of_that_is(daemon):
    """libvirt itself says of such a VM's own element that every machine has that CPU."""
    with connect(daemon.uri()) as node:
        own, seen = node.host()["host_cpu"], "<cpu mode='host-passthrough' check='none' migratable='on'/>"
        less, more = parse(own), parse(own)
        less.remove(next(one for one in less if one.tag == "feature"))
        # No machine has all of the three.
        has = {one.get("name") for one in more.iter("feature")}
        more.append(
            Element("feature", {"name": next(name for name in ("3dnowext", "fma4", "avx512er") if name not in has)})
        )
        cpus = {"a1": own, "b1": text_of(less), "c1": text_of(more)}
        rows = [node_info.compared(node, "hv1", {"vms": [name], "cpu": cpus[name], "host": True})[0] for name in cpus]
        assert node.compare_cpu(seen, "qemu") == "superset"
    assert {row["vm"]: row["compatible"] for row in rows} == {"a1": True, "b1": True, "c1": False}
    assert "host-passthrough" in rows[2]["reason"]


def test_the_cpu_that_all_nodes_have_is_one_that_a_vm_can_be_given(run, daemon):
    with connect(daemon.uri()) as node:
        model = parse(node.host()["cpu_model"])
        poorer = parse(text_of(model))
        lacking = next(one for one in poorer if one.tag == "feature" and one.get("policy") == "require")
        lacking.set("policy", "disable")
        found = node_info.common_cpu(node, [text_of(model), text_of(poorer)])
        alone = node_info.common_cpu(node, [text_of(model)])
        assert node.compare_cpu(found["xml"]) in ("identical", "superset")
        assert node_info.common_cpu(node, []) is None
    assert lacking.get("name") not in found["cpu_features"].get("require", [])
    assert found["xml"] != alone["xml"]
    made = run(**BASE, cpu=found["cpu"], cpu_features=found["cpu_features"])["vm"]
    assert (made["cpu"], made["cpu_features"] or {}) == (found["cpu"], found["cpu_features"])
