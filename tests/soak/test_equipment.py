# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs with UEFI and its variables and a TPM and its keys, and one with all that module vm has.

The lab's Linux is started by the firmware itself here, from a kernel that somebody has written into the definition by
hand; the module knows nothing of that, and leaves it there. What the guest sees is asked of its agent.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import offered_firmware
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import COMMAND_LINE, Guests
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import Mover
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak.equipped import BOOT, SOURCES, Equipped

NODES = ("hv1", "hv2", "hv3")
# The third one has neither UEFI nor a TPM to give.
HOME, OTHER, BARE = NODES
FIRMWARE = ["efi", "tpm"]
SHARED = "/srv/shared-with-a-guest"
VARIABLES, KEYS = "/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm"
NIC = {"bridge": "br0", "vlan": 100}
VARIABLE = "/sys/firmware/efi/efivars/Drover-5f0b1c66-2b0f-4d6a-9d0e-6f1f0f2c7d11"
MOUNT = f"busybox insmod /modules/efivarfs.ko; mount -t efivarfs efivarfs {Path(VARIABLE).parent}"
SEEN = f"dd if={VARIABLE} bs=1 skip=4 2>/dev/null"
MEASURED = "PATH=/bin; cat /sys/class/tpm/tpm0/pcr-sha256/0 /sys/class/tpm/tpm0/pcr-sha256/4"
# All of it: libvirt finds a name that somebody else has used.
LEFT = f"find {VARIABLES} {KEYS} -type f -not -name .lock 2>/dev/null"


def digests(cluster: Cluster, node: str) -> dict[str, str]:
    """The files of UEFI and of TPMs on a node, and what is in them."""
    lines = cluster.ssh(node, f"{LEFT} | xargs -r sha256sum", check=False).splitlines()
    return {path: digest for digest, path in (line.split() for line in lines)}


def offers(cluster: Cluster, node: str) -> list[str]:
    """What of UEFI and TPM the libvirt of a node has found to give; it looks once."""
    said = cluster.ssh(node, "virsh", "domcapabilities", "--machine", "q35", "--virttype", "qemu")
    return offered_firmware(ET.fromstring(said))


@pytest.fixture(scope="module")
def equipped(site: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The site with UEFI and TPM on two of its nodes, whose libvirt has told before that it has neither."""
    for node in NODES:
        offers(site, node)
    hosts = {node: {"hypervisor_firmware": FIRMWARE} for node in (HOME, OTHER)}
    inventory = tmp_path_factory.mktemp("inventory") / "firmware.yml"
    inventory.write_text(yaml.safe_dump({"hypervisors": {"hosts": hosts}}), encoding="utf-8")
    site.play("site", "-i", str(inventory), "--tags", "hypervisor").good()
    site.ssh(HOME, "apt-get -y --no-install-recommends install virtiofsd", timeout=300)
    assert site.play("site", "-i", str(inventory), "--tags", "hypervisor").good().changed == 0
    # The daemon that had looked before they came was restarted (but in a lab that was kept).
    assert [offers(site, node) for node in NODES] == [FIRMWARE, FIRMWARE, []]
    return site


@pytest.fixture(scope="module")
def secured(equipped: Cluster) -> Iterator[Equipped]:
    """A guest that counts, started by UEFI, with a TPM; made by module vm, and its kernel by hand."""
    found = Equipped(equipped, "uefi1", HOME)
    guests = Guests(equipped.lab.base)
    guests.ensure()
    disks = [found.disk("10.231.100.48/24")]
    sheet: dict[str, Any] = {"memory": "256MiB", "vcpus": 1, "firmware": "efi", "tpm": "2.0", "disks": disks}
    try:
        found.vm(nics=[NIC], **sheet)
        found.boot_from(guests.kernel, guests.initrd, COMMAND_LINE, (HOME, OTHER))
        with Observer(equipped.lab) as watch:
            started = found.task(state="running", nics=[NIC], **sheet)
            assert started["actions"] == [f"start {found.name}"], started
            watch.wait_word(found.name, seconds=300)
        assert not found.task(state="running", nics=[NIC], **sheet)["changed"]
        found.wait_agent(HOME)
        yield found
    finally:
        for node in (HOME, OTHER):
            if found.name in equipped.domains(node):
                found.task(node, state="absent", force=True, remove_disks=True)
            equipped.ssh(node, "rm", "-rf", BOOT, SOURCES)


def test_a_node_without_them_is_named_before_anything_moves(secured: Equipped) -> None:
    cluster = secured.cluster
    before = digests(cluster, HOME)
    assert len(before) == 2, before
    refused = secured.move(HOME, BARE, storage="copy")
    reasons = {one["reason"]: one["text"] for one in refused["details"]["blockers"]}
    assert refused["failed"] and set(reasons) == {"firmware", "tpm"}, refused
    assert "has no UEFI /usr/share/OVMF/" in reasons["firmware"] and "no emulated TPM" in reasons["tpm"], reasons
    assert cluster.domains(HOME)[secured.name] == "running" and secured.name not in cluster.domains(BARE)
    assert digests(cluster, BARE) == {}


def test_a_strangers_file_is_named_and_a_move_that_fails_leaves_none(secured: Equipped) -> None:
    cluster = secured.cluster
    for strange in digests(cluster, HOME):
        folder = Path(strange).parent
        cluster.ssh(OTHER, f"mkdir -p {folder} && echo other >{strange}")
        there = digests(cluster, OTHER)
        refused = secured.move(HOME, OTHER, storage="copy")
        assert [one["reason"] for one in refused["details"]["blockers"]] == ["file_exists"], refused
        assert strange in refused["msg"] and digests(cluster, OTHER) == there, refused
        cluster.ssh(OTHER, f"rm -r {folder.parent if strange.startswith(KEYS) else strange}")
    with Observer(cluster.lab) as watch:
        watch.wait_word(secured.name)
        failed = secured.move(HOME, OTHER, storage="copy", bandwidth="1MiB", timeout=5)
        assert failed["failed"] and failed["details"]["vm_state"] == f"running on {HOME}", failed
        assert digests(cluster, OTHER) == {} and len(digests(cluster, HOME)) == 2
        watch.wait_word(secured.name)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_variables_and_keys_go_along_and_are_nowhere_else(secured: Equipped) -> None:
    cluster = secured.cluster
    # A variable of the guest's own, four bytes of flags (kept, for the boot and for the system) before its value.
    secured.guest(HOME, f"PATH=/bin; {MOUNT}; printf '\\007\\0\\0\\0drover' >{VARIABLE}")
    registers = secured.guest(HOME, MEASURED)
    assert secured.guest(HOME, f"PATH=/bin; {SEEN}") == "drover" and set(registers) - set("0\n"), registers
    with Observer(cluster.lab) as watch:
        for source, target in ((HOME, OTHER), (OTHER, HOME)):
            watch.wait_word(secured.name)
            before = digests(cluster, source)
            assert len(before) == 2 and digests(cluster, target) == {}, (before, digests(cluster, target))
            moved = secured.move(source, target, storage="copy")
            assert moved.get("verified"), moved
            # The way in when the network is dead is there, too.
            console = cluster.task(target, "console_info", names=[secured.name], expect="# $")
            assert console["consoles"][0]["ok"], console
            # swtpm writes its state anew.
            there = digests(cluster, target)
            assert set(there) == set(before) and digests(cluster, source) == {}, (before, there)
            assert [there[path] for path in there if path.startswith(VARIABLES)] == [
                before[path] for path in before if path.startswith(VARIABLES)
            ]
            assert secured.guest(target, f"PATH=/bin; {SEEN}") == "drover"
            assert secured.guest(target, MEASURED) == registers
        watch.wait_word(secured.name)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_a_move_that_is_cut_off_after_its_end_leaves_nothing_behind(secured: Equipped) -> None:
    cluster = secured.cluster
    with Observer(cluster.lab) as watch:
        watch.wait_word(secured.name)
        mover = Mover(cluster, secured.name, watch)
        mover.kill_controller(mover.start_slowly(storage="copy"))
        mover.kill_module()
        mover.kill_helper()
        mover.speed_up()
        wait_until(lambda: secured.name not in cluster.domains(HOME) or "it is there", 300, "the end of the migration")
        # What libvirt leaves.
        assert [path.startswith(VARIABLES) for path in digests(cluster, HOME)] == [True]
        result = mover.migrate(HOME, state="recovered", name=secured.name)
        assert result["changed"] and result["places"] == {secured.name: OTHER}, result
        assert digests(cluster, HOME) == {} and len(digests(cluster, OTHER)) == 2 and mover.marked() == []
        mover.counts()
        assert secured.move(OTHER, HOME, storage="copy").get("verified")
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_off_it_takes_them_along_and_has_them_at_its_next_start(secured: Equipped) -> None:
    cluster = secured.cluster
    assert not secured.task(state="stopped", force=True)["failed"]
    kept = digests(cluster, HOME)
    assert len(kept) == 2
    # A disk of the node does not move without its VM running. The lab brings it over.
    path = secured.ssh(f"virsh -q domblklist {secured.name}").split()[-1]
    disk = {"type": "file", "target": "vda", "format": "raw", "path": path}
    secured.vm(disks=[])
    cluster.lab.machine(OTHER).path(path).write_bytes(cluster.lab.machine(HOME).path(path).read_bytes())
    # What is there already is somebody's.
    strange = next(one for one in kept if one.startswith(KEYS))
    cluster.ssh(OTHER, f"mkdir -p {Path(strange).parent} && echo other >{strange}")
    refused = secured.move(HOME, OTHER)
    assert [one["reason"] for one in refused["details"]["blockers"]] == ["file_exists"] and strange in refused["msg"]
    cluster.ssh(OTHER, f"rm -r {Path(strange).parent.parent}")
    moved = secured.move(HOME, OTHER)
    assert moved.get("verified"), moved
    assert digests(cluster, OTHER) == kept and digests(cluster, HOME) == {}
    assert not secured.task(OTHER, disks=[disk])["failed"]
    with Observer(cluster.lab) as watch:
        assert not secured.task(OTHER, state="running")["failed"]
        watch.wait_word(secured.name, seconds=300)
    secured.wait_agent(OTHER)
    assert secured.guest(OTHER, f"PATH=/bin; {MOUNT}; {SEEN}") == "drover"
    assert set(secured.guest(OTHER, MEASURED)) - set("0\n")
    gone = secured.task(OTHER, state="absent", force=True, remove_disks=True)
    assert not gone["failed"], gone
    cluster.ssh(HOME, "rm", path)
    assert [digests(cluster, node) for node in NODES] == [{}, {}, {}]


ISO = f"{SOURCES}/of-the-node.iso"


@pytest.fixture
def installed(site: Cluster) -> Iterator[Equipped]:
    """A VM that runs, whose installation has left the image of a CD of its node in the drive."""
    found = Equipped(site, "iso1", HOME)
    found.ssh(f"mkdir -p {SOURCES}; head -c 64K /dev/zero >{ISO}")
    drive = {"type": "file", "device": "cdrom", "target": "sda", "path": ISO}
    found.vm(state="running", memory="64MiB", vcpus=1, disks=[drive], nics=[])
    yield found
    for node in (HOME, OTHER):
        if found.name in site.domains(node):
            assert not found.task(node, state="absent", force=True)["failed"]
    found.ssh(f"rm -rf {SOURCES}")


def test_a_medium_of_the_node_is_named_and_ejected_when_it_may_be(installed: Equipped) -> None:
    before = installed.ssh(f"virsh dumpxml {installed.name}")
    refused = installed.move(HOME, OTHER)
    assert [one["reason"] for one in refused["details"]["blockers"]] == ["local_medium"], refused
    assert ISO in refused["msg"]
    assert installed.ssh(f"virsh dumpxml {installed.name}") == before
    drained = installed.cluster.play("drain_node", "--check", node=HOME)
    drained.refused(f"{installed.name} has file:{ISO} of its node in drive sda")
    words = [f"eject file:{ISO} from sda of {installed.name}", f"migrate {installed.name} from {HOME} to {OTHER}"]
    predicted = installed.cluster.task(HOME, "migrate", check=True, name=installed.name, to=OTHER, eject_cdrom=True)
    assert predicted["actions"] == words and installed.ssh(f"virsh dumpxml {installed.name}") == before
    moved = installed.move(HOME, OTHER, eject_cdrom=True)
    assert moved["actions"] == words and moved.get("verified"), moved
    for flag in ("", "--inactive"):
        assert ISO not in installed.cluster.ssh(OTHER, f"virsh dumpxml {flag} {installed.name}")
    assert installed.ssh(f"ls {ISO}") == ISO


# All that module vm has for a machine and that the lab's nodes can give. They are containers without a cgroup of the
# CPU (cpu_shares, cpu_quota), no huge pages are reserved in them, and no device of theirs can be given away.
MEDIUM, CONSOLE = f"{SOURCES}/medium.iso", "/var/log/libvirt/qemu/all1-console.log"
ROOT: dict[str, Any] = {
    "type": "file",
    "target": "vda",
    "format": "qcow2",
    "size": "8MiB",
    "serial": "all1-root",
    "cache": "none",
}
ROOT |= {"io": "native", "discard": "unmap", "detect_zeroes": "unmap", "queues": 2, "error_policy": "enospace"}
ROOT |= {"rerror_policy": "report", "iops": {"read": 500, "write": 100}, "bandwidth": {"total": "100MiB"}}
SCSI = {"type": "file", "target": "sda", "bus": "scsi", "format": "raw", "size": "8MiB"}
SATA = {"type": "file", "target": "sdb", "bus": "sata", "format": "qcow2", "size": "8MiB"}
DRIVE = {"type": "file", "target": "sdc", "device": "cdrom", "path": ""}
FIRST: dict[str, Any] = {
    "bridge": "br0",
    "vlan": 100,
    "mtu": 1400,
    "queues": 2,
    "anti_spoof": True,
    "ips": ["10.231.100.50"],
}
FIRST |= {"bandwidth": {"inbound": {"average": "10Mbit/s"}, "outbound": {"average": "20Mbit/s"}}}
TRUNK = {"bridge": "br0", "trunks": [100, 200], "mac": "52:54:00:aa:bb:50"}
OLD = {"bridge": "br0", "vlan": 200, "model": "e1000e", "link": "down", "addresses": ["fd00:200::50/64"]}
ALL: dict[str, Any] = {
    "memory": "96MiB",
    "max_memory": "128MiB",
    "vcpus": 2,
    "max_vcpus": 8,
    "cpu": "Nehalem",
    "cpu_features": {"disable": ["x2apic"]},
    "cpu_topology": {"sockets": 1, "cores": 4, "threads": 2},
    "machine": "q35",
    "firmware": "efi",
    "secure_boot": True,
    "tpm": "2.0",
    "boot": ["network", "disk"],
    "clock": "localtime",
    "timers": {"rtc": "delay", "pit": "discard", "hpet": True, "kvmclock": False, "hypervclock": True},
    "agent": True,
    "rng": True,
    "watchdog": {"model": "i6300esb", "action": "poweroff"},
    "console_log": CONSOLE,
    "graphics": {"type": "vnc", "listen": "127.0.0.1"},
    "video": "vga",
    "filesystems": [{"source": SHARED, "target": "share"}],
    "title": "All of it",
    "description": "R&D's <all>",
    "owner": "R&D",
    "rollback_safe": True,
    "on_maintenance": "shutdown",
    "cloud_init": {"user_data": "#cloud-config\n{}\n", "hostname": "all1"},
    "tags": ["all", "soak"],
    "autostart": True,
    "disks": [ROOT, SCSI, SATA, DRIVE],
    "nics": [FIRST, TRUNK, OLD],
}
LIVE: dict[str, Any] = {
    "memory": "112MiB",
    "vcpus": 3,
    "title": "Changed",
    "owner": "",
    "on_maintenance": "leave",
    "tags": {"remove": ["soak"], "add": ["live"]},
    "autostart": False,
    "disks": [
        {**ROOT, "size": "16MiB", "iops": {"total": 900}, "bandwidth": {}},
        SCSI,
        SATA,
        {**DRIVE, "path": MEDIUM},
        {**SCSI, "target": "sde"},
        {**ROOT, "target": "vdc", "serial": "all1-more"},
    ],
    "nics": [{**FIRST, "vlan": 200, "ips": [], "anti_spoof": False, "link": "down"}, TRUNK, OLD, NIC],
}
LATER: dict[str, Any] = {
    "max_memory": "256MiB",
    "max_vcpus": 12,
    "cpu": "Westmere",
    "cpu_features": {},
    "cpu_topology": {"sockets": 2, "cores": 3, "threads": 2},
    "tpm": "none",
    "boot": ["disk"],
    "clock": "utc",
    "timers": {"rtc": "catchup", "pit": "delay", "hpet": False},
    "agent": False,
    "rng": False,
    "watchdog": {"model": "none"},
    "console_log": "",
    "graphics": {"type": "none"},
    "video": "none",
    "filesystems": [],
    "cloud_init": {"hostname": "other", "instance_id": "second"},
    "disks": [
        {**ROOT, "size": "16MiB", "cache": "writeback", "io": "threads", "discard": "ignore", "detect_zeroes": "off"},
        SCSI,
        {**DRIVE, "path": ""},
        {**ROOT, "target": "vdc", "serial": "all1-late"},
    ],
    "nics": [{**FIRST, "mtu": 1500, "queues": 1}, TRUNK],
}


@pytest.fixture
def everything(equipped: Cluster) -> Iterator[Equipped]:
    found = Equipped(equipped, "all1", HOME)
    equipped.ssh(HOME, f"mkdir -p {SHARED} {SOURCES}; head -c 64K /dev/zero >{MEDIUM}")
    yield found
    gone = found.task(state="absent", force=True, remove_disks=True)
    left = equipped.ssh(HOME, f"rm -rf {SHARED} {SOURCES} {CONSOLE}; ls -A /var/lib/libvirt/images", check=False)
    assert not gone["failed"] and "all1" not in left and digests(equipped, HOME) == {}, (gone, left)


def test_all_options_at_once_then_all_that_is_live_then_all_that_waits(everything: Equipped) -> None:
    made = everything.vm(state="running", **ALL)
    assert made["pending_restart"] == [] and made["vm"]["state"] == "running", made
    number = everything.cluster.ssh(HOME, "virsh", "domid", "all1")
    live = everything.vm(**LIVE)
    assert live["pending_restart"] == [] and everything.cluster.ssh(HOME, "virsh", "domid", "all1") == number, live
    late = everything.task(**LATER)
    # The guest is its firmware, which lets go of no PCI device.
    assert late["pending_restart"], late
    waits = " ".join(late["pending_restart"])
    for option in ("max_memory", "cpu ", "tpm", "boot", "clock", "watchdog", "graphics", "video", "filesystems"):
        assert option in waits, (option, waits)
    done = everything.task(state="restarted", force=True)
    assert not done["failed"] and done["pending_restart"] == [], done
    assert everything.vm(state="running", **LATER)["actions"] == []
    # The TPM was taken away; its keys stay for who wants it back.
    folder = f"{KEYS}/{vm_uuid('all1')}"
    assert f"{folder}/tpm2/tpm2-00.permall" in digests(everything.cluster, HOME)
    everything.cluster.ssh(HOME, "rm", "-r", folder)
