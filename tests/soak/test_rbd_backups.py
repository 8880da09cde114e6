# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module backup of a VM with two images on a real Ceph: each point of a chain, a rollback, another node, a kill."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.soak import test_rbd_snapshots
from ansible_collections.drover.kvm.tests.soak.test_backups import holds
from ansible_collections.drover.kvm.tests.soak.test_ceph import the_site
from ansible_collections.drover.kvm.tests.soak.test_rbd_snapshots import FIRST, NAME, SECOND

__all__ = ["the_site"]
ROOT = "/srv/backup"
TARGETS = ("vda", "vdb")


class Saved(test_rbd_snapshots.Vm):
    """The VM and its backups on the node where it is."""

    def ssh(self, command: str) -> str:
        """On its node."""
        return self.site.ssh(self.node, command, timeout=300).strip()

    @property
    def folder(self) -> Path:
        """Its backups on its node."""
        return self.site.lab.machine(self.node).path(f"{ROOT}/{NAME}")

    def run(self, **options: Any) -> dict[str, Any]:
        """Module backup."""
        given = {"name": NAME, "path": ROOT, "type": "incremental", "max_incrementals": 20, **options}
        return self.site.task(self.node, "backup", **given)

    def content(self) -> list[str]:
        """What is on its images, by Ceph's administrator."""
        script = "; ".join(f"rbd export --no-progress vms/drover-{NAME}-{one} - | sha256sum" for one in (0, 1))
        return [line.split()[0] for line in self.site.ssh("q1", script, timeout=120).splitlines()]

    def saved(self, **options: Any) -> tuple[dict[str, Any], list[str]]:
        """A backup, and what was on the images; the guest stands still meanwhile."""
        runs = self.site.domains(self.node)[NAME] == "running"
        if runs:
            self.ssh(f"virsh suspend {NAME}")
        try:
            kept, done = self.content(), self.run(**options)
        finally:
            if runs:
                self.ssh(f"virsh resume {NAME}")
        assert not done["failed"], done
        return done["backup"], kept

    def restored(self, made: dict[str, Any]) -> list[str]:
        """What is in a backup, with qemu-img alone."""
        read = "qemu-img convert -f qcow2 -O raw {}/{}.qcow2 /var/tmp/seen.raw && sha256sum /var/tmp/seen.raw"
        script = "; ".join(read.format(made["folder"], target) for target in TARGETS)
        return [line.split()[0] for line in self.ssh(f"{script}; rm -f /var/tmp/seen.raw").splitlines()]

    def kept(self) -> list[list[str]]:
        """The snapshots of its images."""
        return [self.snapshots(image) for image in (0, 1)]

    def fill(self, image: int, at: str, pattern: int) -> None:
        """QEMU writes to a disk as the guest would."""
        disk = f"/machine/peripheral/virtio-disk{image}/virtio-backend"
        ask = f'qemu-io -d {disk} "write -P {pattern} {at} 100k"'
        said = self.ssh(f"virsh -q qemu-monitor-command {NAME} --hmp '{ask}'")
        assert "wrote" in said or said == "", said


@pytest.fixture(scope="module")
def vm(quorum: Cluster) -> Iterator[Saved]:
    """The VM with a second image, and a folder of backups on both nodes."""
    found = Saved(quorum)
    assert not quorum.task(found.node, "vm", name=NAME, disks=[FIRST, SECOND])["failed"]
    for node in ("hv1", "hv2"):
        quorum.ssh(node, f"rm -rf {ROOT}; install -d -m 0711 {ROOT}")
    yield found
    for node in ("hv1", "hv2"):
        quorum.ssh(node, f"rm -rf {ROOT} /srv/look")
    script = "; ".join(f"rbd snap purge --no-progress vms/drover-{NAME}-{one}" for one in (0, 1))
    quorum.ssh("q1", script, timeout=120)
    assert not quorum.task(found.node, "vm", name=NAME, disks=[FIRST])["failed"]
    quorum.ssh("q1", f"rbd rm --no-progress vms/drover-{NAME}-1")


def counts_on(quorum: Cluster) -> None:
    """Wait for two more words of the guest."""
    with Observer(quorum.lab) as watch:
        for _number in range(2):
            watch.wait_word(NAME, after=time.monotonic(), seconds=120)


def test_each_point_of_a_chain_of_five_comes_back_bit_by_bit(quorum, vm):
    seen = []
    for number in range(6):
        vm.fill(1, f"{number * 10 + 1}M", 0x40 + number)
        counts_on(quorum)
        made, kept = vm.saved()
        assert made["type"] == ("incremental" if number else "full"), made
        seen.append((made, kept))
    assert len({tuple(kept) for _made, kept in seen}) == 6
    for made, kept in seen:
        assert vm.restored(made) == kept, made
        vm.ssh("rm -rf /srv/look; mkdir -p /srv/look")
        back = quorum.task(
            vm.node, "restore", name=NAME, path=ROOT, id=made["id"], disks=list(TARGETS), directory="/srv/look"
        )
        assert not back["failed"], back
        files = " ".join(back["restored"]["files"])
        digests = vm.ssh(
            f"for one in {files}; do qemu-img convert -f qcow2 -O raw $one /srv/look/seen.raw; sha256sum "
            "/srv/look/seen.raw; done"
        )
        assert [line.split()[0] for line in digests.splitlines()] == kept
    print("bytes of the chain:", [made["size"] for made, _kept in seen])
    assert all(made["size"] * 4 < seen[0][0]["size"] for made, _kept in seen[1:])
    # In the pool only the ground of the next one is left, and module snapshot knows nothing of it.
    first, second = vm.kept()
    assert first == second and len(first) == 1 and seen[-1][0]["id"] in first[0]
    assert vm.good(state="retained", keep=0)["actions"] == []
    assert not vm.run(state="verified")["changed"]
    clean = vm.run(quiesce="required")
    assert not clean["failed"] and clean["backup"]["quiesced"], clean


def test_what_a_way_back_undid_is_in_the_next_backup(quorum, vm):
    vm.good(snapshot="s1", quiesce="never")
    vm.fill(0, "24M", 0x61)
    vm.fill(1, "3M", 0x61)
    assert vm.saved()[0]["type"] == "incremental"
    done = vm.good(snapshot="s1", state="reverted", discard_changes_since="s1", safety_snapshot=False)
    assert done["changed"]
    counts_on(quorum)
    made, kept = vm.saved()
    assert made["type"] == "incremental" and vm.restored(made) == kept, made
    vm.good(snapshot="s1", state="absent")


def test_one_that_is_off_or_elsewhere_goes_on_with_its_history(quorum, vm):
    vm.set_state("stopped")
    made, kept = vm.saved()
    assert (made["type"], made["state"]) == ("incremental", "stopped") and vm.restored(made) == kept
    vm.set_state("running")
    counts_on(quorum)
    source, before = vm.node, vm.folder
    other = "hv2" if source == "hv1" else "hv1"
    moved = quorum.task(source, "migrate", name=NAME, to=other)
    assert not moved["failed"], moved
    # As if both nodes had the folder of one server.
    shutil.copytree(before, vm.folder)
    after, kept = vm.saved()
    assert after["base"] == made["id"] and vm.restored(after) == kept, after
    assert [len(one) for one in vm.kept()] == [1, 1]


def test_a_run_that_is_killed_leaves_nothing_for_long(quorum, vm):
    good = vm.run()
    assert not good["failed"], good
    vm.fill(1, "40M", 0x62)
    folder = vm.folder
    running = threading.Thread(target=vm.run, kwargs={"bandwidth": "64KiB"})
    running.start()
    wait_until(lambda: bool(list(folder.glob(".*.part/vd?.copy"))), 120, "what has changed is copied")
    killed = [one for one in Path("/proc").glob("[0-9]*") if holds(one, f"{ROOT}/{NAME}/.lock")]
    for process in killed:
        os.kill(int(process.name), signal.SIGKILL)
    assert len(killed) == 1, killed
    running.join(120)
    assert [len(one) for one in vm.kept()] == [2, 2]
    again, kept = vm.saved()
    assert again["base"] == good["backup"]["id"] and vm.restored(again) == kept
    assert [len(one) for one in vm.kept()] == [1, 1] and not list(folder.glob(".*.part"))
    counts_on(quorum)
