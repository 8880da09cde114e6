# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a VM: histories, a full folder, damage, the way back by hand, chains, what can't go back.

The VM is that of tests/lab/vm, on a lab that needs no site.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import FOLDER, NODE, Vm, cut_off, on_second

NAME, ROOT = "kept1", "/srv/backup-kept"
PLACE = f"{ROOT}/{NAME}"


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Vm]:
    found = Vm(Cluster(lab), NAME, {"vda": "qcow2", "vdb": "qcow2"})
    found.site.ssh(NODE, f"umount {ROOT}; rm -rf {ROOT}; install -d {ROOT}", check=False)
    # A file system of its own, which can be full without harm to others.
    found.site.ssh(NODE, f"mount -t tmpfs -o size=512M,mode=0711 tmpfs {ROOT}")
    try:
        yield found.make()
    finally:
        found.remove()
        found.site.ssh(NODE, f"umount {ROOT}; rmdir {ROOT}")


def backup(vm: Vm, **options: Any) -> dict[str, Any]:
    """Run the module."""
    return vm.site.task(NODE, "backup", name=NAME, path=ROOT, **options)


def ids(vm: Vm) -> list[str]:
    """The backups, with what is none yet."""
    return sorted(name for name in vm.site.ssh(NODE, f"ls -A {PLACE}").split() if name != ".lock")


def weekly(vm: Vm, weeks: int = 1) -> list[str]:
    """So many backups, of which two are kept."""
    made = [backup(vm, keep=2) for _week in range(weeks)]
    assert not any(one["failed"] for one in made), made
    return [one["backup"]["id"] for one in made]


def test_four_backups_leave_the_two_newest_and_root_alone_reads_them(vm: Vm) -> None:
    made = weekly(vm, 4)
    assert ids(vm) == made[2:]
    look = f"find {PLACE} -mindepth 2 -type f ! -perm 600; find {PLACE} -mindepth 1 -type d ! -perm 700"
    assert vm.site.ssh(NODE, look) == ""
    assert vm.site.ssh(NODE, f"find {PLACE} -mindepth 2 -type f | wc -l").strip() == "14"


def test_failed_and_damaged_ones_cost_no_good_one(vm: Vm) -> None:
    older, newer = weekly(vm, 2)
    # Three weeks in which the folder can't be written.
    vm.site.ssh(NODE, f"mount -o remount,ro {ROOT}")
    for _week in range(3):
        failed = backup(vm, keep=1)
        assert failed["failed"] and "Traceback" not in str(failed), failed
    vm.site.ssh(NODE, f"mount -o remount,rw {ROOT}")
    assert ids(vm) == [older, newer]
    image = f"{PLACE}/{newer}/vda.qcow2"
    rot = f"printf rot | dd of={image} bs=1 seek=$(($(stat -c %s {image}) - 3)) conv=notrunc status=none"
    vm.site.ssh(NODE, rot)
    done = backup(vm, keep=2)
    assert done["failed"] and "damaged" in done["msg"], done
    # Nothing went, as not all that would stay is good. With one more good one the damaged one goes too.
    assert ids(vm) == [older, newer, done["backup"]["id"]]
    again = backup(vm, keep=2)
    assert not again["failed"] and ids(vm) == [done["backup"]["id"], again["backup"]["id"]], again
    vm.counts()


def test_a_folder_that_fills_up_meanwhile(vm: Vm) -> None:
    before = weekly(vm, 2)
    vm.fill(96)
    # Nobody is killed: what watches for the moment fills the folder as soon as the copy has begun.
    filler = f"{ROOT}/filler"
    moment = f"ls {PLACE}/.*.part/vdb.copy && {{ [ -e {filler} ] || head -c 600M /dev/zero >{filler}; }}; false"
    fate = cut_off(vm.site, NODE, NAME, moment, "backup", path=ROOT, bandwidth="2MiB")
    assert "FAILED" in fate.output and "Traceback" not in fate.output, fate.output
    assert ids(vm) == before
    vm.counts()
    vm.site.ssh(NODE, f"rm {filler}")
    vm.empty(96)
    assert not backup(vm, keep=2)["failed"]


def test_the_readme_alone_brings_it_back(vm: Vm) -> None:
    """The words of the folder, with virsh and qemu-img; it is an incremental one."""
    base = weekly(vm)
    before = vm.counts()
    done = backup(vm, type="incremental")
    assert done["backup"]["base"] == base[0], done
    after, folder = vm.counts(), done["backup"]["folder"]
    vm.virsh("destroy")
    vm.virsh("undefine", "--checkpoints-metadata")
    vm.site.ssh(NODE, f"rm {FOLDER}/{NAME}-vd*")
    lines = vm.site.ssh(NODE, f"cat {folder}/README.txt").splitlines()
    commands = [line.split("   ")[0].strip() for line in lines if line.startswith("  ")]
    assert [line.split()[0] for line in commands] == ["qemu-img", "sha256sum", "qemu-img", "qemu-img", "virsh"]
    # The paths must fit, as it says.
    images = "/var/lib/libvirt/images"
    fit = f"sed -e 's|{FOLDER}/{NAME}-|{images}/{NAME}-|' -i domain.xml"
    place = f"/srv/by-hand/{done['backup']['id']}"
    script = [f"cp -a {PLACE} /srv/by-hand", f"cd {place}", *commands[:-1], fit, commands[-1]]
    try:
        vm.site.ssh(NODE, "set -e; " + "; ".join(script), timeout=240)
        said = len(vm.said())
        vm.virsh("start")
        wait_until(lambda: len(vm.said()) > said, 90, "it counts")
        assert before <= vm.said()[said] <= after + 1
    finally:
        vm.virsh("destroy", check=False)
        vm.virsh("undefine", check=False)
        vm.site.ssh(NODE, f"rm -rf /srv/by-hand {images}/{NAME}-*")
        vm.make()


def test_chains_and_names(vm: Vm) -> None:
    for name in ("a b", "-e1", "e/1", "é1", "e1;reboot"):
        refused = vm.task(snapshot=name)
        assert refused["failed"] and refused["error"] == "Invalid", refused
    for name in ("e1", "e2", "e3"):
        assert vm.good(snapshot=name, kind="external", max_chain=4)["changed"]
    assert not vm.good(snapshot="e2", kind="external")["changed"]
    long = vm.task(snapshot="e4", kind="external", max_chain=4)
    assert long["failed"] and "max_chain is 4" in long["msg"] and vm.snapshots() == ["e1", "e2", "e3"], long
    count = vm.counts()
    vm.good(snapshot="e2", state="absent")
    assert vm.snapshots() == ["e1", "e3"] and len(vm.chain()) == 3
    vm.good(state="retained", keep=0)
    assert vm.snapshots() == [] and len(vm.chain()) == 1 and vm.counts() > count
    vm.is_sound()


def digest(vm: Vm, image: str) -> str:
    """What a guest would read from it, with all that it is based on."""
    script = f"cd {FOLDER}; qemu-img convert -U -O raw {image} look; sha256sum <look; rm look"
    return vm.site.ssh(NODE, script, timeout=120)


def test_backups_after_a_way_back_have_all_that_it_undid_and_what_came_then(vm: Vm) -> None:
    types: list[str] = []
    # A full one of a disk whose content QEMU can't tell beforehand wants room for all of it.
    vm.site.ssh(NODE, f"mount -o remount,size=4G {ROOT}")

    def same(number: int) -> None:
        vm.site.ssh(NODE, on_second(NAME, [f"write -P {number} {64 + 16 * number}M 1M"]))
        vm.virsh("suspend")
        try:
            disks = {target: digest(vm, vm.chain(target)[0]) for target in vm.disks}
            made = backup(vm, type="incremental", keep=9)
        finally:
            vm.virsh("resume")
        assert not made["failed"], made
        types.append(made["backup"]["type"])
        found = {target: digest(vm, f"{made['backup']['folder']}/{target}.qcow2") for target in vm.disks}
        assert found == disks, types

    same(1)
    same(2)
    vm.good(snapshot="way", kind="external")
    same(3)
    vm.site.ssh(NODE, on_second(NAME, ["write -P 99 80M 1M", "write -P 98 160M 1M"]))
    vm.good(snapshot="way", state="reverted", discard_changes_since="way", safety_snapshot=False)
    same(4)
    same(5)
    vm.good(snapshot="way", state="absent")
    same(6)
    same(7)
    # What was gone back on is not among the blocks that QEMU has noted.
    assert types[:2] == ["full", "incremental"] and types[-1] == "incremental", types
    print(f"types of the backups: {types}")
    vm.counts()


def test_one_that_must_not_go_back(vm: Vm) -> None:
    said = vm.site.task(NODE, "vm", name=NAME, rollback_safe=False)
    assert not said["failed"], said
    vm.good(snapshot="s1", memory=True)
    act: dict[str, Any] = {
        "snapshot": "s1",
        "state": "reverted",
        "discard_changes_since": "s1",
        "safety_snapshot": False,
    }
    count = vm.counts()
    refused = vm.task(**act)
    assert refused["failed"] and "rollback_safe" in refused["msg"] and vm.counts() > count, refused
    assert vm.good(**act, i_know=[NAME])["changed"]
    vm.counts()
    vm.good(state="retained", keep=0)
    vm.is_sound()
