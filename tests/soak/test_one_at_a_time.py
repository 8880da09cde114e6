# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshot, backup, growth and migration of one VM at once, all six pairs (F-25); snapshots and migration (F-55).

What comes second is refused as another operation is at work, or comes after the first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster
from ansible_collections.drover.kvm.tests.lab.migration import MIB, Mover
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NAME, HOME = "single1", "hv1"
FOLDER, ROOT, ISO = "/var/lib/libvirt/images", "/srv/backup", "/srv/single1.iso"
WORDS = "another operation"
JSON = "--output=json"
PULLED = """<domainbackup mode='pull'><server transport='unix' socket='/var/tmp/single1.sock'/><disks>
<disk name='vda' backup='yes' type='file'><scratch file='/var/tmp/single1.scratch'/></disk></disks></domainbackup>
"""
# What the one says that began when the other had ended: a snapshot of what is elsewhere, a move of what has one.
AFTERWARDS = ("there is no VM", "which libvirt leaves behind", "cannot migrate domain with")


def disks(size: int) -> list[dict[str, Any]]:
    """The disks of the VM, the second one of so many MiB."""
    files = [("vda", "32MiB"), ("vdb", f"{size}MiB")]
    made = [{"type": "file", "target": target, "format": "qcow2", "size": kept} for target, kept in files]
    return [*made, {"type": "file", "target": "sda", "device": "cdrom", "path": ""}]


class Single(Mover):
    """The VM: it counts on its first disk, has 48 MiB of data on the second, and an empty CD drive."""

    size = 64

    def act(self, name: str) -> tuple[str, dict[str, Any]]:
        """The module of an act, and its options."""
        acts: dict[str, tuple[str, dict[str, Any]]] = {
            "snapshot": ("snapshot", {"snapshot": "meanwhile", "memory": True}),
            "backup": ("backup", {"path": ROOT}),
            "growth": ("vm", {"disks": disks(self.size + 16)}),
            "migration": ("migrate", {"to": self.target, "storage": "copy"}),
        }
        return acts[name]

    def refused(self, *names: str) -> None:
        """These acts, begun together, say that another one is at work, and change nothing."""
        begun = {name: self.begin(name) for name in names}
        for name, process in begun.items():
            said = self.end(process)
            assert said["failed"] and not said["changed"] and WORDS in said["msg"], (name, said)

    def begin(self, name: str) -> subprocess.Popen[str]:
        """Start an act."""
        module, options = self.act(name)
        return self.start(self.source, False, module, name=self.vm, **options)

    def capacity(self) -> int:
        """What QEMU takes the second disk for, in MiB."""
        words = self.virsh(self.source, "domblkinfo", self.vm, "vdb").split()
        return int(words[words.index("Capacity:") + 1]) // MIB

    def snapshots(self) -> list[str]:
        """By libvirt of the source."""
        return self.virsh(self.source, "snapshot-list", self.vm, "--name").split()

    def job(self) -> str:
        """What libvirt says that it does."""
        return self.virsh(self.source, "domjobinfo", self.vm, check=False)

    def blockers(self, check: bool) -> list[str]:
        """Why it is refused to move."""
        said = self.move(check, storage="copy")
        assert said["failed"] and not said["changed"], said
        return [one["reason"] for one in said["details"]["blockers"]]

    def forget(self) -> None:
        """QEMU notes no more what the next backup needs."""
        for note in self.virsh(self.source, "checkpoint-list", self.vm, "--name").split():
            self.virsh(self.source, "checkpoint-delete", self.vm, note)

    def drive(self, *words: str) -> None:
        """Change the medium in its drive."""
        self.inside(self.source, "truncate", "-s", "1M", ISO)
        self.virsh(self.source, "change-media", self.vm, "sda", "--live", "--config", *words)

    def turned(self) -> None:
        """It is on the other node now."""
        self.source, self.target = self.target, self.source

    def files(self) -> list[str]:
        """The files of its disks, all of each chain."""
        lines = [line.split() for line in self.virsh(self.source, "domblklist", self.vm).splitlines()]
        return [
            one["filename"]
            for target, path in lines
            if target != "sda"
            for one in json.loads(self.inside(self.source, "qemu-img", "info", "-U", "--backing-chain", JSON, path))
        ]

    def rests(self) -> None:
        """It is on one node, counts, and each of its disks is in one file, its own."""
        self.rests_on(self.source)
        assert self.files() == [f"{FOLDER}/drover-{NAME}-{number}.qcow2" for number in (0, 1)]

    def is_sound(self) -> None:
        """The same, and QEMU finds nothing wrong with the files once it is off."""
        self.rests()
        files = self.files()
        self.virsh(self.source, "destroy", self.vm)
        for path in files:
            self.inside(self.source, "qemu-img", "check", "-q", "-f", "qcow2", path)
        self.virsh(self.source, "start", self.vm)
        self.counts(240)


@pytest.fixture(scope="module")
def single(site: Cluster) -> Iterator[Single]:
    """The VM, on its first node; at the end it is gone with its disks, from wherever it is."""
    nics = [{"bridge": "br0", "vlan": 100}]
    sheet: dict[str, Any] = {"memory": "96MiB", "vcpus": 1, "nics": nics, "disks": disks(Single.size)}
    made = site.task(HOME, "vm", name=NAME, autostart=True, **sheet)
    assert not made["failed"], made
    guests = Guests(site.lab.base)
    guests.ensure()
    guests.write_image(
        site.lab.machine(HOME).path(f"{FOLDER}/image"), {"name": NAME, "ip": "10.231.100.48/24", "sink": SINK}
    )
    write = "qemu-img convert -n -f raw -O qcow2 {0}/{1} {0}/drover-{2}-{3}.qcow2"
    data = f"head -c 48M /dev/urandom >{FOLDER}/data"
    copies = [write.format(FOLDER, "image", NAME, 0), data, write.format(FOLDER, "data", NAME, 1)]
    site.ssh(HOME, f"{' && '.join(copies)}; rm {FOLDER}/image {FOLDER}/data", timeout=120)
    site.ssh(HOME, f"install -d -m 0711 {ROOT}")
    with Observer(site.lab) as watch:
        started = site.task(HOME, "vm", name=NAME, state="running")
        assert not started["failed"], started
        watch.wait_word(NAME, seconds=240)
        found = Single(site, NAME, watch)
        try:
            yield found
        finally:
            found.heal()
            node = found.home()
            for one in (found.source, found.target):
                found.inside(one, "rm", "-rf", ROOT, ISO)
            site.task(node, "snapshot", name=NAME, state="retained", keep=0)
            gone = site.task(node, "vm", name=NAME, state="absent", force=True, remove_disks=True)
            assert not gone["failed"], gone


def test_nothing_begins_while_it_moves(single: Single) -> None:
    process = single.start(single.source, name=single.vm, to=single.target, storage="copy", bandwidth="1MiB")
    single.hits("Perform", lambda: single.phase(single.source) == "perform3" or single.stage())
    single.refused("snapshot", "backup", "growth")
    single.in_phase("perform3")
    single.speed_up()
    result = single.end(process)
    assert result.get("verified"), result
    single.turned()
    assert single.snapshots() == [] and single.capacity() == single.size
    single.rests()
    back = single.move(storage="copy")
    assert back.get("verified"), back
    single.turned()


def test_nothing_begins_while_it_is_backed_up(single: Single) -> None:
    """By another tool, for as long as the story wants."""
    single.inside(single.source, "tee", "/run/single1.xml", feed=PULLED)
    single.virsh(single.source, "backup-begin", single.vm, "/run/single1.xml")
    try:
        single.refused("snapshot", "backup", "growth", "migration")
        # To look is not to be at work.
        listed = single.end(single.start(single.source, False, "snapshot_info", name=[single.vm]))
        assert [(one["name"], one["snapshots"]) for one in listed["vms"]] == [(single.vm, [])], listed
    finally:
        single.virsh(single.source, "domjobabort", single.vm)
    assert single.capacity() == single.size
    single.rests()


@pytest.mark.parametrize("other", ["growth", "backup", "migration"])
def test_a_snapshot_and_another_act_begin_together(single: Single, other: str) -> None:
    """Whichever is first: the second one comes after it, or says why not."""
    single.forget()
    begun = {name: single.begin(name) for name in ("snapshot", other)}
    said = {name: single.end(process) for name, process in begun.items()}
    print({name: one["msg"] if one["failed"] else one["actions"] for name, one in said.items()})
    assert not all(one["failed"] for one in said.values()), said
    for one in said.values():
        assert not one["failed"] or any(words in one["msg"] for words in (WORDS, *AFTERWARDS)), said
    if other == "migration" and not said[other]["failed"]:
        single.turned()
    if other == "growth" and not said[other]["failed"]:
        single.size += 16
    assert single.capacity() == single.size
    assert single.snapshots() == ([] if said["snapshot"]["failed"] else ["meanwhile"])
    gone = single.end(single.start(single.source, False, "snapshot", name=single.vm, state="retained", keep=0))
    assert not gone["failed"] and single.snapshots() == [], gone
    single.rests()


def test_a_vm_with_snapshots_stays_until_they_are_gone(single: Single) -> None:
    """One of them was made with an ISO of the node in the drive, which is empty now."""
    single.drive("--insert", ISO)
    given: dict[str, Any] = {"name": single.vm, "snapshot": "iso"}
    # With QEMU's notes for the next backup there is no way back to it.
    single.forget()
    made = single.cluster.task(single.source, "snapshot", memory=True, **given)
    assert not made["failed"], made
    single.drive("--eject", "--force")
    for check in (True, False):
        assert single.blockers(check) == ["snapshots"]
    drain = {"node": single.source, "drover_copy_storage": True}
    single.cluster.play("drain_node", "--check", **drain).refused(f"{single.vm} has snapshots, which libvirt would")
    single.virsh(single.source, "destroy", single.vm)
    assert "snapshots" in single.blockers(False)
    # It is whole: the way back to it leads to the ISO, too.
    assert ISO in single.virsh(single.source, "snapshot-dumpxml", single.vm, "iso")
    act: dict[str, Any] = {"state": "reverted", "discard_changes_since": "iso", "safety_snapshot": False}
    back = single.cluster.task(single.source, "snapshot", **given, **act)
    assert not back["failed"] and ISO in single.virsh(single.source, "domblklist", single.vm), back
    single.counts(60)
    assert single.blockers(False) == ["snapshots", "local_medium"]
    single.drive("--eject", "--force")
    kept = single.cluster.task(single.source, "snapshot", state="absent", **given)
    assert kept["failed"] and "put that back into the drive" in kept["msg"] and single.snapshots() == ["iso"], kept
    single.drive("--insert", ISO)
    gone = single.cluster.task(single.source, "snapshot", state="absent", **given)
    assert not gone["failed"] and single.snapshots() == [], gone
    single.drive("--eject", "--force")
    moved = single.move(storage="copy")
    assert moved.get("verified"), moved
    single.turned()
    single.is_sound()
