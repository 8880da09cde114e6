# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of disks: they grow as their VM runs, and local ones move."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import IMAGES, SINK, Cluster
from ansible_collections.drover.kvm.tests.lab.migration import MIB, Mover
from ansible_collections.drover.kvm.tests.lab.observer import Observer

GROWING = "grow1"
LOCAL = "local1"
SAN = "10.231.5.10:3260"
ISCSI_DIRECT = "libvirt-daemon-driver-storage-iscsi-direct"
FOLDER = "/var/lib/libvirt/images"
SYSTEM, DATA = f"{FOLDER}/drover-{LOCAL}-0.raw", f"{FOLDER}/drover-{LOCAL}-1.qcow2"
SHEET: dict[str, Any] = {
    "name": LOCAL,
    "memory": "96MiB",
    "vcpus": 1,
    "disks": [
        {"type": "file", "target": "vda", "format": "raw", "size": "32MiB"},
        {"type": "file", "target": "vdb", "format": "qcow2", "size": "200MiB"},
    ],
    "nics": [{"bridge": "br0", "vlan": 100}],
}


def capacity(cluster: Cluster, node: str, vm: str, target: str = "vda") -> int:
    """What QEMU takes the disk for, in bytes."""
    words = cluster.ssh(node, "virsh", "-q", "domblkinfo", vm, target).split()
    return int(words[words.index("Capacity:") + 1])


@pytest.fixture
def newcomer(cluster: Cluster, tmp_path: Path) -> Iterator[list[str]]:
    """The options that add a VM on the SAN to the inventory; at the end it is gone, and its volume too."""
    guests = Guests(cluster.lab.base)
    image = {"name": GROWING, "ip": "10.231.100.41/24", "sink": SINK}
    guests.write_image(cluster.lab.machine("san1").path(f"{IMAGES}/{GROWING}.img"), image)
    path = tmp_path / "newcomer.yml"
    path.write_text(f"vms:\n  hosts:\n    {GROWING}:\n", encoding="utf-8")
    yield ["-i", str(path)]
    cluster.play("remove_vms", "-i", str(path), vms=GROWING, confirm=GROWING, remove_disks=True, force=True).good()


def test_build_vms_grows_a_volume_of_the_san_as_its_vm_runs(cluster: Cluster, newcomer: list[str]) -> None:
    disk = {"type": "iscsi", "size": "32MiB", "source": f"{IMAGES}/{GROWING}.img"}
    cluster.play("build_vms", *newcomer, vms=GROWING, vm_disks=[disk]).good()
    node = cluster.where()[GROWING]
    bigger = {**disk, "size": "96MiB"}
    with Observer(cluster.lab) as watch:
        watch.wait_word(GROWING, seconds=240)
        begin = time.monotonic()
        grown = cluster.play("build_vms", *newcomer, vms=GROWING, vm_disks=[bigger]).good()
        assert grown.changed == 2, grown.output
        assert capacity(cluster, node, GROWING) == 96 * MIB
        watch.wait_word(GROWING, after=time.monotonic())
        gap = watch.longest_gap(GROWING, begin)
    # The target stands still for a moment when a volume grows.
    assert gap < 5, gap
    assert cluster.play("build_vms", *newcomer, vms=GROWING, vm_disks=[bigger]).good().changed == 0
    cluster.play("build_vms", *newcomer, vms=GROWING, vm_disks=[disk]).refused("smaller")


def digest(cluster: Cluster, node: str, path: str = DATA, image_format: str = "qcow2", size: int = 201 * MIB) -> str:
    """The SHA-256 of what a guest sees of an image, of its first bytes."""
    convert = f"qemu-img convert -U -f {image_format} -O raw {path} /tmp/seen.raw"
    command = f"{convert} && head -c {size} /tmp/seen.raw | sha256sum"
    return cluster.ssh(node, f"{command}; rm -f /tmp/seen.raw").split()[0]


def files(cluster: Cluster, node: str) -> list[str]:
    """What is in the folder of the images."""
    return cluster.ssh(node, "ls", "-A", FOLDER).split()


@pytest.fixture(scope="module")
def homebody(cluster: Cluster) -> Iterator[Mover]:
    """A VM on files of its node, which counts on one disk and has 200 MB of data on the other; gone at the end."""
    home = "hv1"
    assert not (made := cluster.task(home, "vm", **SHEET))["failed"], made
    with Observer(cluster.lab) as watch:
        image = Guests(cluster.lab.base)
        place = cluster.lab.machine(home).path(f"{FOLDER}/image.img")
        image.write_image(place, {"name": LOCAL, "ip": "10.231.100.40/24", "sink": SINK})
        copy = f"cat {FOLDER}/image.img > {SYSTEM} && rm {FOLDER}/image.img"
        fill = f"head -c 200M /dev/urandom > /tmp/data && qemu-img convert -n -f raw -O qcow2 /tmp/data {DATA}"
        # What is written into a file leaves its mark as it is.
        cluster.ssh(home, f"{copy} && {fill}; rm -f /tmp/data")
        assert not (started := cluster.task(home, "vm", name=LOCAL, state="running"))["failed"], started
        watch.wait_word(LOCAL, seconds=240)
        yield Mover(cluster, LOCAL, watch)
    (node,) = [node for node in ("hv1", "hv2", "hv3") if LOCAL in cluster.domains(node)]
    gone = cluster.task(node, "vm", name=LOCAL, state="absent", force=True, remove_disks=True)
    assert not gone["failed"] and f"delete {DATA}" in gone["actions"], gone


def test_a_local_disk_is_refused_unless_it_may_be_copied(homebody: Mover) -> None:
    refused = homebody.move()
    assert refused["failed"] and not refused["changed"]
    assert [one["reason"] for one in refused["details"]["blockers"]] == ["local_disk", "local_disk"], refused
    assert files(homebody.cluster, homebody.target) == []


def test_a_file_that_a_vm_has_open_grows(homebody: Mover) -> None:
    before = digest(homebody.cluster, homebody.source, size=200 * MIB)
    disks = [SHEET["disks"][0], {**SHEET["disks"][1], "size": "201MiB"}]
    grown = homebody.cluster.task(homebody.source, "vm", name=LOCAL, disks=disks)
    assert grown["actions"] == ["grow vdb as it runs to 201MiB"], grown
    assert capacity(homebody.cluster, homebody.source, LOCAL, "vdb") == 201 * MIB
    smaller = homebody.cluster.task(homebody.source, "vm", name=LOCAL, disks=SHEET["disks"])
    assert smaller["failed"] and "cut off what is in it" in smaller["msg"], smaller
    assert not homebody.cluster.task(homebody.source, "vm", name=LOCAL, disks=disks)["changed"]
    assert digest(homebody.cluster, homebody.source, size=200 * MIB) == before


def test_a_full_destination_leaves_the_vm_where_it_is_and_nothing_there(homebody: Mover) -> None:
    node, there = homebody.target, homebody.cluster
    there.ssh(node, f"mount -t tmpfs -o size=280M,mode=0711 none {FOLDER}")
    try:
        process = homebody.start(homebody.source, name=LOCAL, to=node, storage="copy", bandwidth="16MiB")
        claim = f"{DATA}.drover-copy"
        homebody.hits("the copy", lambda: Path(claim).name in (seen := files(there, node)) or seen)
        there.ssh(node, f"head -c 250M /dev/zero > {FOLDER}/filler", check=False)
        result = homebody.end(process)
        assert result["failed"] and result["where"] == homebody.source and "No space left" in result["msg"], result
        assert files(there, node) == ["filler"]
        homebody.counts()
        refused = homebody.move(storage="copy")
        assert [one["reason"] for one in refused["details"]["blockers"]] == ["room"], refused
    finally:
        there.ssh(node, f"umount {FOLDER}")


def test_a_vm_moves_with_its_files(homebody: Mover) -> None:
    before = digest(homebody.cluster, homebody.source)
    predicted = homebody.move(check=True, storage="copy")
    assert not predicted["failed"] and files(homebody.cluster, homebody.target) == [], predicted
    moved = homebody.move(storage="copy")
    assert moved.get("verified") and moved["where"] == homebody.target, moved
    homebody.counts()
    assert digest(homebody.cluster, homebody.target) == before
    assert files(homebody.cluster, homebody.source) == []
    assert sorted(files(homebody.cluster, homebody.target)) == [f"drover-{LOCAL}-0.raw", f"drover-{LOCAL}-1.qcow2"]
    mark = homebody.inside(homebody.target, "getfattr", "--only-values", "-n", "user.drover.vm", DATA)
    assert mark == homebody.uuid
    homebody.source, homebody.target = homebody.target, homebody.source
    assert homebody.says() == {homebody.source: ("running", "yes")} and homebody.marked() == []


def test_a_disk_moves_to_another_folder_and_format(homebody: Mover) -> None:
    there, node = homebody.cluster, homebody.source
    before = digest(there, node)
    there.ssh(node, "mkdir -p /srv/fast")
    disks = [{"target": "vdb", "path": f"/srv/fast/{LOCAL}.raw", "format": "raw"}]
    moved = there.task(node, "vm_storage", name=LOCAL, disks=disks, remove_source=True)
    assert len(moved["actions"]) == 3, moved
    assert digest(there, node, f"/srv/fast/{LOCAL}.raw", "raw") == before
    assert files(there, node) == [f"drover-{LOCAL}-0.raw"]
    homebody.counts()
    assert not there.task(node, "vm_storage", name=LOCAL, disks=disks)["changed"]
    back = [{"target": "vdb", "path": DATA, "format": "qcow2"}]
    assert there.task(node, "vm_storage", name=LOCAL, disks=back, remove_source=True)["changed"]
    assert digest(there, node) == before and there.ssh(node, "ls /srv/fast") == ""


def test_a_local_disk_goes_to_the_san_and_back_as_its_vm_runs(homebody: Mover) -> None:
    there, node, iqn = homebody.cluster, homebody.source, f"iqn.2026-11.org.example:drover-{LOCAL}-0"
    volume: dict[str, Any] = {"name": f"drover-{LOCAL}-0", "iqn": iqn, "size": "32MiB", "chap_user": "drover"}
    initiator = f"iqn.2026-01.org.drover:vm-{LOCAL}"
    disk = {"target": "vda", "type": "iscsi", "iqn": iqn, "portal": SAN, "user": "drover", "secret": "san1"}
    try:
        made = there.task("san1", "iscsi_volume", **volume, initiators=[initiator], chap_password="ChapOfTheLab42")
        assert made["changed"], made
        begin = time.monotonic()
        foretold = there.task(node, "vm_storage", check=True, name=LOCAL, disks=[disk])
        # Killed in the middle: it runs on from where it was, and the next run goes on.
        process = homebody.start(node, module="vm_storage", name=LOCAL, disks=[disk], bandwidth="1MiB")
        homebody.hits("the copy", lambda: "<mirror" in homebody.virsh(node, "dumpxml", LOCAL) or "no copy")
        homebody.kill_controller(process)
        for pid in homebody.modules():
            os.kill(pid, signal.SIGKILL)
        moved = there.task(node, "vm_storage", name=LOCAL, disks=[disk])
        assert moved["actions"] == foretold["actions"] and moved["disks"][0]["storage"].startswith("iscsi:"), moved
        homebody.counts()
        assert not there.task(node, "vm_storage", name=LOCAL, disks=[disk])["changed"]
        # Module vm finds what it would have made.
        sheet = [disk, {"target": "vdb", "type": "file", "path": DATA, "format": "qcow2"}]
        assert not there.task(node, "vm", name=LOCAL, disks=sheet)["changed"]
        back = {"target": "vda", "path": f"{SYSTEM}.back", "format": "raw"}
        assert there.task(node, "vm_storage", name=LOCAL, disks=[back])["changed"]
        homebody.counts()
        assert "is not empty" in there.task(node, "vm_storage", name=LOCAL, disks=[disk])["msg"]
        assert homebody.watch.longest_gap(LOCAL, begin) < 10
    finally:
        homebody.virsh(node, "blockjob", LOCAL, "vda", "--abort", check=False)
        there.task("san1", "iscsi_volume", name=volume["name"], iqn=iqn, state="absent", remove_data=True)


def test_libvirt_logs_in_to_a_target_as_to_a_pool(cluster: Cluster) -> None:
    initiator = "iqn.2026-11.org.example:pools"
    volume: dict[str, Any] = {"name": "pooled", "iqn": "iqn.2026-11.org.example:pooled"}
    pool = {"name": "pooled", "type": "iscsi-direct", "source": volume["iqn"], "hosts": [SAN], "initiator": initiator}
    # The daemon loads what can do it when it starts; VMs run on.
    cluster.ssh("hv1", f"apt-get install -q -y {ISCSI_DIRECT} && systemctl restart libvirtd", timeout=300)
    try:
        made = cluster.task("san1", "iscsi_volume", **volume, size="16MiB", initiators=[initiator], chap_user="")
        assert made["changed"] and not made["failed"], made["msg"]
        assert cluster.task("hv1", "pool", **pool)["pool"]["state"] == "active"
        assert not cluster.task("hv1", "pool", **pool)["changed"]
        listed = cluster.ssh("hv1", "virsh", "vol-list", "pooled")
        assert f"{volume['iqn']}-lun-1" in listed, listed
    finally:
        cluster.task("hv1", "pool", name="pooled", state="absent")
        gone = cluster.task("san1", "iscsi_volume", **volume, state="absent", remove_data=True)
    assert gone["changed"] and not gone["failed"], gone
    assert "pooled" not in cluster.ssh("hv1", "virsh", "pool-list", "--all")
