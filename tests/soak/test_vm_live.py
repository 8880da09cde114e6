# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes in a VM while it runs, on real libvirt and QEMU: devices, media, bridges; and what takes a restart.

The guest is the firmware alone, which finds nothing to boot. It lets go of no PCI device, and does not shut down, as
a guest may. What needs no guest (SCSI disks, media, what is plugged in) works as with any other. Memory and vCPUs need
one that has drivers, so there the lab's Linux counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak.equipped import Equipped

NODE, NAME, BRIDGES = "hv3", "plugged1", ("br-one", "br-two")
FILES = "/var/lib/libvirt/images"
ISO = f"{FILES}/{NAME}.iso"
FIRST = {"type": "file", "target": "vda", "format": "qcow2", "size": "8MiB"}
SCSI = {"type": "file", "target": "sda", "bus": "scsi", "format": "raw", "size": "8MiB"}
DRIVE = {"type": "file", "target": "sdc", "device": "cdrom", "path": ""}
NIC = {"bridge": "br0", "vlan": 100}
# The guest does not shut down: somebody takes its power, at the moment when it is asked.
WATCH = f"virsh qemu-monitor-event {NAME} --event POWERDOWN --timeout 100 && virsh destroy {NAME}"
OBEDIENT = f"nohup sh -c '{WATCH}' </dev/null >/dev/null 2>&1 &"


@pytest.fixture
def plugged(site: Cluster) -> Iterator[Equipped]:
    found = Equipped(site, NAME, NODE)
    for bridge in BRIDGES:
        found.ssh(f"ip link add {bridge} up type bridge; head -c 64K /dev/zero >{ISO}")
    yield found
    gone = found.task(state="absent", force=True, remove_disks=True)
    for bridge in BRIDGES:
        found.ssh(f"ip link del {bridge}")
    left = found.ssh(f"rm -f {ISO}; ls {FILES} | grep {NAME}", check=False)
    assert not gone["failed"] and left == "", (gone, left)


def test_devices_come_and_go_while_the_vm_runs_and_the_rest_takes_a_restart(plugged: Equipped) -> None:
    sheet = {"memory": "64MiB", "vcpus": 1, "disks": [FIRST, SCSI, DRIVE], "nics": [NIC]}
    plugged.vm(state="running", **sheet)
    before = plugged.places()

    # One change of all that can be changed at once.
    disks = [{**FIRST, "size": "16MiB"}, SCSI, {**DRIVE, "path": ISO}]
    disks += [{**FIRST, "target": "vdb"}, {**SCSI, "target": "sdb"}]
    done = plugged.vm(disks=disks, nics=[NIC, {"bridge": BRIDGES[0]}], tags=["live"])
    assert done["pending_restart"] == [] and done["vm"]["disks"][0]["size"] == 16 << 20
    now = plugged.places()
    assert now == plugged.places("--inactive") and {**now, **before} == now and len(now) == len(before) + 3
    assert plugged.ssh(f"virsh -q domblklist {NAME} | grep sdc").split()[-1] == ISO

    # Another VLAN, and another Linux bridge; the guest sees nothing of it.
    macs = [nic["mac"] for nic in done["vm"]["nics"]]
    moved = plugged.vm(nics=[{"bridge": "br0", "vlan": 200}, {"bridge": BRIDGES[1]}])
    assert moved["pending_restart"] == [] and plugged.places() == now
    taps = [plugged.tap(mac) for mac in macs]
    assert plugged.ssh(f"ovs-vsctl get port {taps[0]} tag; ls /sys/class/net/{BRIDGES[1]}/brif").split() == [
        "200",
        taps[1],
    ]

    # An empty drive and a disk less, at once; a PCI disk only when the guest lets go of it.
    plugged.vm(disks=[{**FIRST, "size": "16MiB"}, SCSI, DRIVE, {**FIRST, "target": "vdb"}])
    assert "sdb" not in plugged.places() and plugged.ssh(f"virsh -q domblklist {NAME} | grep sdc").split()[-1] == "-"
    late = plugged.task(disks=[FIRST | {"size": "16MiB"}, SCSI, DRIVE])
    assert late["failed"] and "the guest has not let go of it" in late["msg"], late
    assert late["pending_restart"] == ["disk vdb removed"] and "vdb" in plugged.places()
    assert "vdb" not in plugged.places("--inactive")

    brought_about_by_a_restart(plugged)


def brought_about_by_a_restart(plugged: Equipped) -> None:
    """What waits, among it the disk that the guest keeps."""
    # A guest that does not shut down goes on as it was.
    assert plugged.vm(memory="96MiB")["pending_restart"][0] == "memory 64MiB -> 96MiB"
    deaf = plugged.task(memory="96MiB", state="running", restart="allowed", shutdown_timeout=3)
    assert deaf["failed"] and deaf["error"] == "TimedOut" and deaf["vm"]["state"] == "running", deaf
    plugged.ssh(OBEDIENT)
    done = plugged.task(memory="96MiB", state="running", restart="allowed")
    assert not done["failed"] and done["pending_restart"] == [] and done["actions"][-1] == f"start {NAME}", done
    assert plugged.places() == plugged.places("--inactive") and "vdb" not in plugged.places()

    # It stands still, and goes on.
    plugged.vm(state="paused")
    wait_until(lambda: plugged.ssh(f"virsh domstate {NAME} --reason") == "paused (user)" or "awake", 10, "the pause")
    plugged.vm(state="running")
    assert plugged.task(state="restarted", force=True)["actions"] == [f"cut the power of {NAME}", f"start {NAME}"]


GROWING, DISK, MIB = "grown1", f"{FILES}/drover-grown1-0.raw", 1 << 20


@pytest.fixture
def growing(site: Cluster) -> Iterator[Equipped]:
    """A guest that counts, with 96 MiB and one vCPU, and room for more of both."""
    found = Equipped(site, GROWING, NODE)
    guests = Guests(site.lab.base)
    guests.ensure()
    settings = {"name": GROWING, "ip": "10.231.100.46/24", "sink": SINK}
    guests.write_image(site.lab.machine(NODE).path(DISK), settings)
    with Observer(site.lab) as watch:
        sheet = {"max_memory": "256MiB", "max_vcpus": 3, "nics": [NIC]}
        disk = {"type": "file", "target": "vda", "format": "raw", "path": DISK}
        found.vm(state="running", memory="192MiB", vcpus=1, disks=[disk], **sheet)
        watch.wait_word(GROWING, seconds=240)
    yield found
    gone = found.task(state="absent", force=True)
    found.ssh(f"rm -f {DISK}")
    assert not gone["failed"], gone


def test_memory_and_vcpus_grow_in_a_guest_that_counts_on(growing: Equipped) -> None:
    def memory() -> int:
        """The MiB that its balloon leaves it."""
        words = growing.ssh(f"virsh dommemstat {GROWING}").split()
        return int(words[words.index("actual") + 1]) // 1024

    def vcpus() -> int:
        """How many QEMU has."""
        # Linux (6.9 and later) takes an emulated machine for bare metal, and ignores vCPUs that come to one of these.
        said = growing.ssh(f'virsh qemu-monitor-command {GROWING} \'{{"execute": "query-cpus-fast"}}\'')
        return len(json.loads(said)["return"])

    number = growing.ssh(f"virsh domid {GROWING}")
    wait_until(lambda: memory() == 192 or memory(), 60, "the balloon holds 64 MiB from the start")
    assert vcpus() == 1
    with Observer(growing.cluster.lab) as watch:
        watch.wait_word(GROWING)
        done = growing.vm(memory="256MiB", vcpus=2)
        assert done["pending_restart"] == [] and done["vm"]["memory"] == 256 * MIB, done
        wait_until(lambda: memory() == 256 or memory(), 60, "the guest has all of its memory")
        assert vcpus() == 2
        assert growing.vm(memory="160MiB")["pending_restart"] == []
        wait_until(lambda: memory() == 160 or memory(), 60, "the guest gives memory back")
        # Beyond what it was started with nothing changes at once, and nothing of it is lost.
        late = growing.vm(memory="320MiB", vcpus=4)
        waits = ["memory 256MiB -> 320MiB", "vcpus 2 -> 4", "max_vcpus 3 -> none"]
        assert late["pending_restart"] == waits and memory() == 160 and vcpus() == 2, late
        assert growing.vm(memory="160MiB", max_memory="256MiB", vcpus=2, max_vcpus=3)["pending_restart"] == []
        watch.wait_word(GROWING)
    verdict = watch.verdict()
    assert verdict.ok and growing.ssh(f"virsh domid {GROWING}") == number, str(verdict)
