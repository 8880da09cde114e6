# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a guest that counts on its disk: each point of a chain, runs that are killed, another node."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import Vm
from ansible_collections.drover.kvm.tests.soak.counting import build_guest

NODE, OTHER, NAME = "hv1", "hv2", "saved1"
SECOND = "/srv/backup2"
PHRASE = "correct horse battery staple"
LOCKED = {"encryption": "luks", "passphrase": PHRASE}
ROOT = "/srv/backup"
DISK = f"/var/lib/libvirt/images/drover-{NAME}-0.qcow2"


class Saved:
    """The VM and its backups."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.lab.machine(NODE).path(f"{ROOT}/{NAME}")

    def ssh(self, command: str, node: str = NODE) -> str:
        return self.cluster.ssh(node, command, timeout=300).strip()

    def backup(self, **options: Any) -> dict[str, Any]:
        """Module backup."""
        return self.cluster.task(NODE, "backup", name=NAME, path=ROOT, type="incremental", **options)

    def digest(self, path: str, node: str = NODE) -> str:
        """Of what a guest would see in an image."""
        made = f"qemu-img convert -U -f qcow2 -O raw {path} /var/tmp/seen.raw && sha256sum /var/tmp/seen.raw"
        return self.ssh(f"{made}; rm -f /var/tmp/seen.raw", node).split()[0]

    def record(self) -> str:
        """What the guest wrote last."""
        return self.ssh(f"qemu-io -r -U -f qcow2 -c 'read -v 8192 64' {DISK} | grep ^0000")

    def look(self) -> str:
        """An empty folder to restore to."""
        return self.ssh("rm -rf /srv/look; mkdir -p /srv/look; echo /srv/look")

    def left(self) -> list[str]:
        """What is no whole backup."""
        return [one.name for one in self.folder.iterdir() if one.name.startswith(".") and one.name != ".lock"]


@pytest.fixture(scope="module")
def saved(site: Cluster) -> Iterator[Saved]:
    found = Saved(site)
    found.ssh(f"install -d -m 0711 {ROOT}")
    build_guest(site, NODE, NAME, "10.231.100.44/24", DISK)
    wait_until(lambda: "DROVER1" in found.record() or found.record(), 240, "the guest counts")
    yield found
    gone = site.task(NODE, "vm", name=NAME, state="absent", force=True)
    assert not gone["failed"], gone
    found.ssh(f"rm -rf {ROOT} {SECOND} {DISK} /srv/back /srv/look")
    found.ssh(f"rm -rf {ROOT}", OTHER)


def test_each_point_of_a_chain_of_five_comes_back_bit_by_bit(saved: Saved) -> None:
    seen: dict[str, str] = {}
    for number in range(6):
        last = saved.record()
        wait_until(lambda last=last: saved.record() != last or last, 60, "the guest goes on counting")
        saved.ssh(f"virsh suspend {NAME}")
        try:
            kept = saved.digest(DISK)
            done = saved.backup()
        finally:
            saved.ssh(f"virsh resume {NAME}")
        assert not done["failed"] and done["backup"]["type"] == ("incremental" if number else "full"), done
        seen[done["backup"]["id"]] = kept
    assert len(set(seen.values())) == 6 and saved.left() == []
    for backup_id, kept in seen.items():
        assert saved.digest(f"{ROOT}/{NAME}/{backup_id}/vda.qcow2") == kept
        folder = f"/srv/back/{backup_id}"
        saved.ssh(f"mkdir -p {folder}")
        restored = saved.cluster.task(
            NODE, "restore", name=NAME, path=ROOT, id=backup_id, disks=["vda"], directory=folder
        )
        assert not restored["failed"] and saved.digest(restored["restored"]["files"][0]) == kept, restored
    assert not saved.backup(state="verified")["changed"]
    # The guest's agent is asked, and answers: it can be frozen, and goes on.
    clean = saved.backup(quiesce="required")
    assert not clean["failed"] and clean["backup"]["quiesced"], clean
    assert not saved.backup(newer_than="1h")["changed"]


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    """A second inventory, as the site does not know these VMs."""
    path = tmp_path / "saved.ini"
    own = f"drover_backup_path={ROOT} drover_backup_copies_to='[\"{SECOND}\"]'"
    path.write_text(f"[vms]\nsaved1 {own}\nsaved2\nsaved9\n", encoding="utf-8")
    return str(path)


MOMENTS = {"begun": "begun.json", "copying": "vda.copy", "packing": "vda.qcow2"}


def killed_at(saved: Saved, name: str) -> None:
    """Kill the module at the moment when this file appears in a backup that is being made."""
    end = time.monotonic() + 120
    while not [one for one in saved.folder.glob(".*.part") if (one / name).exists()]:
        assert time.monotonic() < end, f"no {name} within 120 s"
        time.sleep(0.005)
    killed = [process for process in Path("/proc").glob("[0-9]*") if holds(process, f"{ROOT}/{NAME}/.lock")]
    for process in killed:
        os.kill(int(process.name), signal.SIGKILL)
    assert len(killed) == 1, killed


def holds(process: Path, lock: str) -> bool:
    """Whether it is the module: it has the lock of the VM's folder open."""
    with suppress(OSError):
        return any(os.readlink(one) == lock for one in (process / "fd").iterdir())
    return False


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_leaves_nothing_for_long(saved: Saved, moment: str) -> None:
    good = saved.backup()
    assert not good["failed"], good
    slow = {"bandwidth": "4MiB"} if moment == "copying" else {}
    running = threading.Thread(
        target=saved.cluster.task, args=(NODE, "backup"), kwargs={"name": NAME, "path": ROOT, **slow}
    )
    running.start()
    killed_at(saved, MOMENTS[moment])
    running.join(60)
    assert saved.left(), "the backup was whole before it was killed"
    before = saved.record()
    wait_until(lambda: saved.record() != before or before, 60, "the guest goes on counting")
    again = saved.backup()
    assert not again["failed"] and again["backup"]["base"] == good["backup"]["id"], again
    assert again["actions"][0].startswith("clear .") and saved.left() == []
    assert not saved.backup(state="verified")["damaged"]


def test_a_second_folder_has_the_same_or_is_named(saved: Saved, inventory: str) -> None:
    def play(name: str = "backup", **variables: Any) -> Any:
        return saved.cluster.play(name, "-i", inventory, "-e", "vms=saved1", **variables)

    # It is not mounted, say: the backup is made all the same, and the play says who lags.
    lagging = play()
    made = saved.cluster.task(NODE, "backup_info", path=ROOT)["backups"][NAME][-1]
    assert lagging.code != 0 and f"{SECOND} lags with {NAME}" in " ".join(lagging.output.split()), lagging.output
    saved.ssh(f"install -d -m 0711 {SECOND}")
    verify = {"node": NODE, "drover_backup_path": ROOT, "drover_backup_copies_to": [SECOND]}
    told = " ".join(play("verify_backups", **verify).output.split())
    # Those of the stories before it as well.
    assert f"{SECOND} lags with {NAME}: it lacks " in told and f"{made['id']} (run playbook backup)" in told, told
    later = {"drover_backup_newer_than": "1h"}
    assert play("backup", **later).good().changed and play("backup", **later).good().changed == 0
    good = [one["folder"] for one in saved.cluster.task(NODE, "backup_info", path=ROOT)["backups"][NAME] if one["good"]]
    assert len(good) >= 1
    for folder in good:
        saved.ssh(f"diff -r {folder} {folder.replace(ROOT, SECOND)}")
    play("verify_backups", **verify).good()
    # Damage there is found, and mended by the next run.
    image = f"{good[-1].replace(ROOT, SECOND)}/vda.qcow2"
    saved.ssh(f"printf rot | dd of={image} bs=1 seek=70000 conv=notrunc status=none")
    bad = play("verify_backups", **verify)
    words = f"in {SECOND}: vda.qcow2 does not have the checksum"
    assert bad.code != 0 and words in " ".join(bad.output.split()), bad.output
    play("backup", **later).good()
    play("verify_backups", **verify).good()
    restored = saved.cluster.task(NODE, "restore", name=NAME, path=SECOND, disks=["vda"], directory=saved.look())
    assert not restored["failed"], restored
    assert saved.digest(restored["restored"]["files"][0]) == saved.digest(f"{good[-1]}/vda.qcow2")


def test_a_guest_that_goes_off_too_late_is_started_again(saved: Saved) -> None:
    """Its boot sector hears nothing of a power button; somebody else switches it off when the module has given up."""
    late = Vm(saved.cluster, "late1", {"vda": "qcow2", "vdb": "qcow2"}).make()
    try:
        done = saved.cluster.task(NODE, "backup", name="late1", path=ROOT, mode="stop", shutdown_timeout=3)
        assert done["failed"] and "starts it again" in done["msg"], done
        late.virsh("destroy")
        wait_until(lambda: late.state().startswith("running") or late.state(), 90, "systemd starts it again")
        late.counts()
        unit = "systemctl list-units --all --plain -q 'drover-start-*'"
        wait_until(lambda: saved.ssh(unit) == "" or saved.ssh(unit), 30, "nothing starts it any more")
    finally:
        late.remove()
        saved.ssh("systemctl stop 'drover-start-*'")


@pytest.mark.parametrize("mode", ["suspend", "stop"])
def test_each_mode_gives_a_backup_that_boots_on_another_node(saved: Saved, mode: str) -> None:
    """With `stop` the guest hears the power button, goes off, and is started again as soon as the copy has begun."""
    base = saved.cluster.task(NODE, "backup", name=NAME, path=ROOT)
    assert not base["failed"], base
    boot, before = saved.ssh(f"virsh domid {NAME}"), saved.record()
    done = saved.backup(mode=mode)
    assert not done["failed"] and done["backup"]["mode"] == mode and done["backup"]["type"] == "incremental", done
    assert (saved.ssh(f"virsh domid {NAME}") == boot) is (mode == "suspend")
    assert saved.ssh("systemctl list-units --all --plain -q 'drover-start-*' 'drover-resume-*'") == ""
    wait_until(lambda: saved.record() != before or before, 240, "the guest counts")
    image = f"{done['backup']['folder']}/vda.qcow2"
    restored = saved.cluster.task(NODE, "restore", name=NAME, path=ROOT, disks=["vda"], directory=saved.look())
    assert saved.digest(restored["restored"]["files"][0]) == saved.digest(image), restored
    there = saved.cluster.lab.machine(OTHER).path(f"{ROOT}/{NAME}")
    shutil.copytree(saved.folder, there)
    try:
        variables = {"vm": NAME, "node": OTHER, "drover_backup_path": ROOT, "drover_drill_prompt": "drover: counting"}
        assert f"{NAME} boots from its backup" in saved.cluster.play("restore_drill", **variables).good().output
    finally:
        shutil.rmtree(there)


def test_it_boots_on_another_node_under_another_name(saved: Saved, inventory: str) -> None:
    assert not saved.backup()["failed"]
    shutil.copytree(saved.folder, saved.cluster.lab.machine(OTHER).path(f"{ROOT}/{NAME}"))
    variables = {"vm": NAME, "node": OTHER, "drover_backup_path": ROOT}
    refused = saved.cluster.play("restore_vm", **variables)
    refused.refused(f"{NAME} runs on {NODE}")
    trial = saved.cluster.play("restore_drill", **variables, drover_drill_prompt="drover: counting")
    assert f"{NAME} boots from its backup" in trial.good().output
    assert f"drill-{NAME}" not in saved.cluster.domains(OTHER)
    look = {**variables, "new_name": "saved2", "nics": "none"}
    assert saved.cluster.play("restore_vm", **look).good().changed
    assert saved.cluster.play("restore_vm", **look).good().changed == 0
    both = {"vms": "saved1,saved2", "snapshot": "both", "drover_snapshot_memory": True}
    assert saved.cluster.play("snapshot_vms", "-i", inventory, **both).good().changed == 2
    assert saved.cluster.play("snapshot_vms", "-i", inventory, **both).good().changed == 0
    seen = [saved.ssh(f"virsh snapshot-list {vm} --name", node) for vm, node in ((NAME, NODE), ("saved2", OTHER))]
    assert seen == ["both", "both"]
    missing = saved.cluster.play("snapshot_vms", "-i", inventory, **{**both, "vms": "saved1,saved9", "snapshot": "no"})
    missing.refused("On no node that answers: saved9")
    assert saved.cluster.play("snapshot_vms", "-i", inventory, **both, state="absent").good().changed == 2
    gone = saved.cluster.task(OTHER, "vm", name="saved2", state="absent", remove_disks=True)
    assert not gone["failed"] and "drover-saved2-0.qcow2" in gone["actions"][-1], gone
    checked = saved.cluster.play("verify_backups", node=OTHER, drover_backup_path=ROOT)
    assert "All backups are as they were written" in checked.good().output


def locked_chain(saved: Saved) -> dict[str, str]:
    """Three encrypted backups after one in clear; the digest of what the guest saw at each."""
    kept: dict[str, str] = {}
    assert not saved.backup()["failed"]
    for kind in ("full", "incremental", "incremental"):
        last = saved.record()
        wait_until(lambda last=last: saved.record() != last or last, 60, "the guest goes on counting")
        saved.ssh(f"virsh suspend {NAME}")
        try:
            seen, done = saved.digest(DISK), saved.backup(**LOCKED)
        finally:
            saved.ssh(f"virsh resume {NAME}")
        assert not done["failed"] and (done["backup"]["type"], done["backup"]["encryption"]) == (kind, "luks"), done
        kept[done["backup"]["id"]] = seen
    return kept


def killed_in_secret(saved: Saved, whole: list[str]) -> bool:
    """Whether nothing is in clear, neither in these backups nor in one that is killed while QEMU copies."""
    slow = {"name": NAME, "path": ROOT, "type": "incremental", "bandwidth": "1MiB", **LOCKED}
    running = threading.Thread(target=saved.cluster.task, args=(NODE, "backup"), kwargs=slow)
    running.start()
    killed_at(saved, "vda.copy")
    running.join(60)
    assert len(saved.left()) == 1
    folders = " ".join(f"{ROOT}/{NAME}/{one}" for one in (*whole, *saved.left()))
    # The disk itself shows that what is looked for can be found.
    return saved.ssh(f"grep -rlaE '<domain|DROVER1' {DISK} {folders}") == DISK


def test_an_encrypted_chain_boots_on_another_node_and_nobody_reads_it(saved: Saved) -> None:
    secrets, kept = saved.ssh("virsh -q secret-list"), locked_chain(saved)
    assert killed_in_secret(saved, list(kept))
    again = saved.backup(**LOCKED)
    assert not again["failed"] and again["backup"]["base"] == max(kept) and saved.left() == [], again
    assert saved.ssh("virsh -q secret-list") == secrets
    for backup_id, seen in kept.items():
        one: dict[str, Any] = {"name": NAME, "path": ROOT, "id": backup_id, "disks": ["vda"], "directory": saved.look()}
        refused = saved.cluster.task(NODE, "restore", **one, passphrase="wrong")
        assert refused["failed"] and "another passphrase" in refused["msg"], refused
        restored = saved.cluster.task(NODE, "restore", **one, passphrase=PHRASE)
        assert not restored["failed"] and saved.digest(restored["restored"]["files"][0]) == seen, restored
    there = saved.cluster.lab.machine(OTHER).path(f"{ROOT}/{NAME}")
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(saved.folder, there)
    variables = {"vm": NAME, "node": OTHER, "drover_backup_path": ROOT, "drover_drill_prompt": "drover: counting"}
    saved.cluster.play("restore_drill", **variables).refused("is encrypted; say the passphrase")
    trial = saved.cluster.play("restore_drill", **variables, drover_backup_passphrase=PHRASE).good()
    assert f"{NAME} boots from its backup {again['backup']['id']}" in trial.output and PHRASE not in trial.output
    checked = saved.cluster.play("verify_backups", node=OTHER, drover_backup_path=ROOT)
    assert "All backups are as they were written" in checked.good().output


def test_backups_of_a_vm_that_is_gone_are_named_and_removed_when_they_are_old(saved: Saved) -> None:
    assert not saved.backup()["failed"]
    variables = {"node": OTHER, "drover_backup_path": ROOT, "vm": NAME, "older_than": "1s"}
    saved.ssh(f"rm -rf {ROOT}; install -d -m 0711 {ROOT}", OTHER)
    shutil.copytree(saved.folder, saved.cluster.lab.machine(OTHER).path(f"{ROOT}/{NAME}"))
    saved.cluster.play("remove_backups", **variables).refused(f"{NAME} is on a node")
    saved.ssh(f"mv {ROOT}/{NAME} {ROOT}/gone1", OTHER)
    checked = saved.cluster.play("verify_backups", node=OTHER, drover_backup_path=ROOT).good()
    assert "gone1 is not in group vms" in checked.output
    misspelt = saved.cluster.play("remove_backups", **{**variables, "vm": "gone2"})
    misspelt.refused(f"There are no backups of gone2 in {ROOT}")
    gone = {**variables, "vm": "gone1"}
    assert saved.cluster.play("remove_backups", **{**gone, "older_than": "1d"}).good().changed == 0
    assert saved.cluster.play("remove_backups", "--check", **gone).good().changed == 1
    assert saved.cluster.play("remove_backups", **gone).good().changed == 1
    assert saved.cluster.play("remove_backups", **gone).good().changed == 0
    assert saved.ssh(f"ls {ROOT}/gone1", OTHER) == ""
