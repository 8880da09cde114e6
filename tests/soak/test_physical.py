# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A physical machine becomes a VM by the page: its disk comes in two steps, then its drivers become better ones.

The machine is a VM whose disk is a file of its own, or the disk alone. The Debian has no boot loader: its kernel is
written into the definition by hand.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.debian import DebianImage
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.vm_hardware import COMMAND_LINE
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak.equipped import BOOT, Equipped

NODE, NAME = "hv3", "old1"
FOLDER, OLD, IMAGES = "/srv/p2v", "/srv/physical", "/var/lib/libvirt/images"
SOURCE, DISK = f"{FOLDER}/{NAME}.raw", f"{OLD}/{NAME}.raw"
NIC = {"bridge": "br0", "vlan": 100}
BOOT_SECONDS = 900
# As in docs/vm.md, with a file in the place of the old machine's disk.
FIRST = f"dd if={DISK} bs=64k status=none | dd of={SOURCE} bs=64k iflag=fullblock conv=sparse status=none"
LAST = f"rsync --copy-devices --inplace --no-whole-file --ignore-times --stats {DISK} {SOURCE}"
LOOK = "findmnt -no SOURCE /; cat /root/told"


@pytest.fixture
def old(site: Cluster) -> Iterator[Equipped]:
    """The machine, of which nothing is left at the end."""
    found = Equipped(site, NAME, NODE)
    found.ssh(f"mkdir -p {FOLDER} {OLD}")
    try:
        yield found
    finally:
        if NAME in site.domains(NODE):
            gone = found.task(state="absent", force=True, remove_disks=True)
            assert not gone["failed"], gone
        left = found.ssh(f"rm -rf {FOLDER} {OLD} {BOOT}; ls {IMAGES} | grep {NAME}", check=False)
        assert left == "", left


def imported(old: Equipped, **options: Any) -> dict[str, Any]:
    """The disk of the VM that is made of what was brought over."""
    # A sparse file of 8 GiB is read whole.
    digest = old.cluster.ssh(NODE, "sha256sum", SOURCE, timeout=300).split()[0]
    given = {"source": SOURCE, "source_format": "raw", "checksum": f"sha256:{digest}"}
    return {"type": "file", "format": "qcow2", **given, **options}


def test_what_changed_after_the_first_copy_comes_with_the_last_one(old: Equipped) -> None:
    guests = Guests(old.cluster.lab.base)
    guests.ensure()
    place = old.cluster.lab.machine(NODE).path(DISK)
    guests.write_image(place, {"name": NAME, "ip": "10.231.100.71/24", "sink": SINK})
    sheet: dict[str, Any] = {"memory": "96MiB", "vcpus": 1, "nics": [NIC]}
    physical = {"type": "file", "target": "vda", "format": "raw", "path": DISK}
    assert not old.task(state="running", disks=[physical], **sheet)["failed"]
    with Observer(old.cluster.lab) as watch:
        watch.wait_word(NAME, seconds=240)
        old.ssh(FIRST)
        counted = watch.wait_word(NAME)["counter"]
        wait_until(lambda: watch.wait_word(NAME)["counter"] > counted + 20, 60, "that it counts on")
        assert not old.task(state="absent", force=True)["failed"]
        counted = watch.look_at_disk(NAME, place)
        said = old.ssh(LAST)
        sent = int(re.findall(r"Literal data: ([\d,]+)", said)[0].replace(",", ""))
        assert 0 < sent < 1 << 20, said
        before = old.ssh(f"sha256sum < {DISK}; sha256sum < {SOURCE}").split("\n")
        assert before[0] == before[1], before
        built = old.vm(state="running", disks=[imported(old, target="vda")], **sheet)
        assert f"a copy of {SOURCE}, which is raw" in built["actions"][0], built
        assert watch.wait_word(NAME, after=watch.words(NAME)[-1]["time"], seconds=240)["counter"] > counted
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    # What it was stays as it was: it is the way back.
    assert old.ssh(f"sha256sum < {DISK}; sha256sum < {SOURCE}").split("\n") == before


def on_sata(old: Equipped) -> dict[str, Any]:
    """The VM as it is made, with a real Debian that runs and has written a file."""
    image = DebianImage(old.cluster.lab.base)
    image.ensure()
    place = old.cluster.lab.machine(NODE).path(SOURCE)
    subprocess.run(["cp", "--sparse=always", str(image.folder / "disk.raw"), str(place)], check=True)
    sheet: dict[str, Any] = {"memory": "512MiB", "vcpus": 1, "firmware": "bios"}
    sheet |= {"nics": [{**NIC, "model": "e1000e", "link": "down"}]}
    sheet |= {"disks": [imported(old, target="sda", bus="sata")]}
    made = old.vm(**sheet)
    old.boot_from(image.folder / "vmlinuz", image.folder / "initrd.img", COMMAND_LINE, (NODE,))
    assert old.vm(state="running", **sheet)["actions"] == [f"start {NAME}"]
    old.wait_agent(NODE, seconds=BOOT_SECONDS)
    told = old.guest(NODE, f"echo 'written on SATA' >/root/told; sync; {LOOK}").split("\n")
    assert told == ["/dev/sda", "written on SATA"]
    return made


def test_from_the_drivers_that_every_system_has_to_those_of_a_vm(old: Equipped) -> None:
    made = on_sata(old)
    # A small one by virtio for once, which comes and goes as it runs.
    first = {"type": "file", "target": "sda"}
    small = {"type": "file", "target": "vdb", "format": "qcow2", "size": "1GiB"}
    assert old.vm(disks=[first, small])["pending_restart"] == []
    wait_until(lambda: old.guest(NODE, "ls /sys/block | grep ^vd || true") == "vda", 60, "the disk by virtio")
    assert old.vm(disks=[first])["pending_restart"] == []
    assert old.guest(NODE, "ls /sys/block | grep ^vd || true") == ""
    stopped = old.task(state="stopped", shutdown_timeout=300)
    assert stopped["actions"] == [f"shut {NAME} down"], stopped
    old.ssh(f"rm {IMAGES}/drover-{NAME}-1.qcow2")

    # The same disk and the same address, with the drivers of a VM.
    old.vm(nics=[])
    done = old.vm(disks=[{"type": "file", "target": "vda", "format": "qcow2"}], nics=[{**NIC, "link": "up"}])
    own = f"{IMAGES}/drover-{NAME}-0.qcow2"
    assert [(disk["bus"], disk["path"]) for disk in done["vm"]["disks"]] == [("virtio", own)], done
    assert [nic["mac"] for nic in done["vm"]["nics"]] == [nic["mac"] for nic in made["vm"]["nics"]], done
    assert old.vm(state="running")["actions"] == [f"start {NAME}"]
    old.wait_agent(NODE, seconds=BOOT_SECONDS)
    assert old.guest(NODE, LOOK).split("\n") == ["/dev/vda", "written on SATA"]
    drivers = "ls -l /sys/class/net/*/device/driver | sed 's,.*/,,'; ls /sys/block | grep ^sd || true"
    assert old.guest(NODE, drivers) == "virtio_net"
