# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook backup of a VM whose volumes the SAN makes snapshots of: what is read is the snapshot, and nothing is left.

The SAN of the lab is tgtd on files; these lie on an XFS of their own, where files can share blocks.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests, parse_record
from ansible_collections.drover.kvm.tests.lab.cluster import IMAGES, SINK, Cluster, tasks, wait_until
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT as CHECKOUT
from ansible_collections.drover.kvm.tests.lab.observer import Observer, read_disk
from ansible_collections.drover.kvm.tests.soak.test_backups import holds

VM, NODE, SAN = "sanvm1", "hv1", "san1"
ROOT, SHARED, LOOK = "/srv/backup", "/srv/shared", "/srv/look"
INVENTORY = f"""
vms:
  hosts:
    {VM}:
      vm_agent: true
      vm_disks:
        - {{type: iscsi, size: 32MiB, source: {SHARED}/images/{VM}.img}}
        - {{type: iscsi, size: 16MiB}}
      drover_backup_path: {ROOT}
      drover_backup_from_snapshot: true
      drover_backup_quiesce: required
all:
  vars:
    san_target_directory: {SHARED}
"""


class Story:
    """The VM on the SAN, and its backups."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        self.cluster, self.more = cluster, ["-i", str(path)]
        self.folder = cluster.lab.machine(NODE).path(f"{ROOT}/{VM}")

    def play(self, playbook: str, *options: str, **variables: Any) -> Any:
        """Run a playbook for that VM."""
        return self.cluster.play(playbook, *self.more, *options, vms=VM, **variables)

    def ssh(self, command: str, node: str = NODE) -> str:
        return self.cluster.ssh(node, command, timeout=300).strip()

    def served(self) -> list[str]:
        """What is on the SAN of the VM: files, and targets that tgtd serves."""
        script = f"ls {SHARED} /etc/tgt/conf.d; tgtadm --lld iscsi --op show --mode target | grep ^Target || true"
        return sorted(word for word in self.ssh(script, SAN).split() if VM in word)

    def last(self) -> dict[str, Any]:
        """The newest backup."""
        found: dict[str, Any] = self.cluster.task(NODE, "backup_info", path=ROOT)["backups"][VM][-1]
        return found

    def counter(self) -> int:
        """The guest's counter in the newest backup."""
        raw = f"{ROOT}/seen.raw"
        self.ssh(f"qemu-img convert -f qcow2 -O raw {self.last()['folder']}/vda.qcow2 {raw}")
        return read_disk(self.cluster.lab.machine(NODE).path(raw))

    def on_volume(self) -> int:
        """The guest's counter on the SAN, once it is off; it is started again."""
        self.ssh(f"virsh destroy {VM}")
        disk = f"dd if={SHARED}/drover-{VM}-0.img bs=512 skip=16 count=1 status=none | base64"
        record = parse_record(base64.b64decode(self.ssh(disk, SAN)))
        self.ssh(f"virsh start {VM}")
        return record.counter if record else 0

    def goes_on(self) -> None:
        """Wait until it runs, and nothing holds it still any more."""
        look = "virsh domstate {}; systemctl list-units --all --plain --no-legend 'drover-thaw-*' 'drover-resume-*'"
        wait_until(lambda: (seen := self.ssh(look.format(VM))) == "running" or seen, 60, f"{VM} goes on")


@pytest.fixture(scope="module")
def shared(site: Cluster) -> Iterator[None]:
    """An XFS in a file, mounted on the SAN; the container itself may open no device of this machine."""
    image = site.lab.state / "shared.xfs"
    with image.open("wb") as stream:
        stream.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-f", "-m", "reflink=1", str(image)], check=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
    device = loop.stdout.strip()
    enter = ["nsenter", "--target", str(site.lab.machine(SAN).leader()), "--mount", "sh", "-c"]
    major, minor = os.major(os.stat(device).st_rdev), os.minor(os.stat(device).st_rdev)
    mount = f"mkdir -p {SHARED} && mknod {SHARED}.device b {major} {minor} && mount -t xfs {SHARED}.device {SHARED}"
    try:
        subprocess.run([*enter, f"{mount} && mkdir {SHARED}/images"], check=True)
        yield
    finally:
        subprocess.run([*enter, f"umount {SHARED}; rm -rf {SHARED}.device {SHARED}"], check=True)
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()


@pytest.fixture(scope="module")
def story(site: Cluster, shared: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    path = tmp_path_factory.mktemp("san") / "sanvm.yml"
    path.write_text(INVENTORY, encoding="utf-8")
    found = Story(site, path)
    guests = Guests(site.lab.base)
    guests.ensure()
    place = site.lab.machine(SAN).path(f"{IMAGES}/{VM}.img")
    place.parent.mkdir(parents=True, exist_ok=True)
    guests.write_image(place, {"name": VM, "ip": "10.231.100.47/24", "sink": SINK})
    found.ssh(f"mv {IMAGES}/{VM}.img {SHARED}/images/", SAN)
    found.ssh(f"rm -rf {ROOT}; install -d -m 0711 {ROOT}")
    try:
        found.play("build_vms", drover_pins={VM: NODE}).good()
        wait_until(lambda: "thawed" in found.ssh(AGENT) or "no agent", 240, "the agent answers")
        yield found
    finally:
        site.task(NODE, "vm", name=VM, state="absent", force=True)
        names = [f"drover-{VM}-{number}{more}" for number in (0, 1) for more in ("", "-backup")]
        absent = {"state": "absent", "remove_data": True, "iqn_prefix": "iqn.2026-11.org.example", "directory": SHARED}
        site.task(SAN, "iscsi_volume", volumes=[{"name": name, **absent} for name in names])
        found.ssh(f"rm -rf {ROOT} {LOOK}")


AGENT = f"""virsh -q qemu-agent-command {VM} '{{"execute": "guest-fsfreeze-status"}}' || true"""


def test_the_snapshot_is_read_and_removed(story: Story) -> None:
    there = story.served()
    with Observer(story.cluster.lab) as watch:
        begin = time.monotonic()
        first = watch.wait_word(VM, after=begin, seconds=240)["counter"]
        foretold = story.play("backup", "--check").good()
        assert foretold.changed > 0 and story.served() == there and not story.folder.exists()
        process = story.cluster.start("backup", *story.more, vms=VM, drover_backup_bandwidth="2MiB")
        unit = "systemctl is-active 'drover-thaw-*.timer' || true"
        wait_until(lambda: "active" in story.ssh(unit).split() or "not frozen", 120, f"{VM} is frozen")
        wait_until(lambda: bool(list(story.folder.glob(".*.part/vda.qcow2"))) or "nothing", 120, "its snapshot is read")
        copying = story.served()
        reading = watch.wait_word(VM, after=time.monotonic())["counter"]
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        gap = watch.longest_gap(VM, begin)
    made = story.last()
    print(f"{VM} was silent for {gap:.2f} s at most")
    assert made["type"] == "full" and made["quiesced"] and len(made["disks"]) == 2, made
    assert len(copying) == len(there) + 6 and len([one for one in copying if "-backup" in one]) == 6, copying
    # It holds the moment at which the guest stood still, though the guest went on while it was read.
    assert first <= story.counter() < reading and gap < 8
    assert story.served() == there
    later = story.play("backup", drover_backup_newer_than="1h").good()
    assert later.changed == 0 and story.last()["id"] == made["id"]
    checked = story.cluster.task(NODE, "backup", name=VM, path=ROOT, state="verified")
    assert not checked["damaged"] and not checked["changed"]


@pytest.mark.parametrize("moment", ["frozen", "reading"])
def test_a_run_that_is_killed_is_cleared_by_the_next(story: Story, moment: str) -> None:
    there, made = story.served(), story.last()["id"]
    assert not [one for one in there if "-backup" in one]
    process = story.cluster.start("backup", *story.more, vms=VM, drover_backup_bandwidth="1MiB", drover_backup_hold=20)
    unit = "systemctl is-active 'drover-thaw-*.timer' || true"
    wait_until(lambda: "active" in story.ssh(unit).split() or "not frozen", 120, f"{VM} is frozen")
    if moment == "reading":
        wait_until(lambda: bool(list(story.folder.glob(".*.part/vda.qcow2"))) or "nothing", 120, "its snapshot is read")
    story.cluster.kill(process)
    # What the kill left on the node ends too: it can be cut off by whatever cut off the playbook.
    for one in Path("/proc").glob("[0-9]*"):
        if holds(one, f"{ROOT}/{VM}/.lock"):
            os.kill(int(one.name), signal.SIGKILL)
    story.goes_on()
    assert story.last()["id"] == made
    with Observer(story.cluster.lab) as watch:
        before = watch.wait_word(VM, after=time.monotonic())["counter"]
        story.play("backup").good()
    assert story.last()["id"] != made and story.counter() >= before and story.served() == there
    assert not [one for one in story.folder.iterdir() if one.name.startswith(".") and one.name != ".lock"]


def test_a_file_of_somebody_else_stays_and_stops_it(story: Story) -> None:
    there, made = story.served(), story.last()["id"]
    other = f"{SHARED}/drover-{VM}-1-backup.img"
    story.ssh(f"echo notes >{other}", SAN)
    try:
        failed = story.play("backup")
        assert failed.code != 0 and "no mark of it" in " ".join(failed.output.split()), failed.output
        assert story.ssh(f"cat {other}", SAN) == "notes" and story.last()["id"] == made
        story.goes_on()
    finally:
        story.ssh(f"rm {other}", SAN)
    assert story.served() == there


def test_one_that_is_off_is_read_too_and_comes_back_bit_by_bit(story: Story) -> None:
    story.ssh(f"virsh destroy {VM}")
    try:
        story.play("backup").good()
        made = story.last()
        assert (made["state"], made["quiesced"]) == ("stopped", False), made
        sums = story.ssh(f"sha256sum {SHARED}/drover-{VM}-[01].img", SAN).split()[::2]
        restored = story.cluster.task(NODE, "restore", name=VM, path=ROOT, disks=["vda", "vdb"], directory=ROOT)
        assert not restored["failed"], restored
        read = "qemu-img convert -O raw {0} {1}/raw && sha256sum {1}/raw"
        seen = [story.ssh(read.format(path, ROOT)).split()[0] for path in restored["restored"]["files"]]
        assert seen == sums
        drill = {"vm": VM, "node": NODE, "drover_backup_path": ROOT, "drover_drill_prompt": "drover: counting"}
        assert f"{VM} boots from its backup" in story.play("restore_drill", **drill).good().output
    finally:
        story.ssh(f"virsh start {VM}")


def test_each_of_six_backups_comes_back_bit_by_bit(story: Story) -> None:
    """Read by QEMU as it runs: it can note no changes in volumes, so each is a full one, and says so."""
    kept: dict[str, list[str]] = {}
    volumes = f"sha256sum {SHARED}/drover-{VM}-[01].img"
    with Observer(story.cluster.lab) as watch:
        for _number in range(6):
            watch.wait_word(VM, after=time.monotonic(), seconds=240)
            story.ssh(f"virsh suspend {VM}")
            try:
                sums = story.ssh(volumes, SAN).split()[::2]
                done = story.cluster.task(NODE, "backup", name=VM, path=ROOT, type="incremental", keep=20)
            finally:
                story.ssh(f"virsh resume {VM}")
            assert not done["failed"] and done["backup"]["type"] == "full", done
            assert "where QEMU can't note what changes" in done["backup"]["reason"], done
            kept[done["backup"]["id"]] = sums
    assert len({sums[0] for sums in kept.values()}) == 6
    given: dict[str, Any] = {"name": VM, "path": ROOT, "disks": ["vda", "vdb"], "directory": LOOK}
    for backup_id, sums in kept.items():
        story.ssh(f"rm -rf {LOOK}; mkdir {LOOK}")
        restored = story.cluster.task(NODE, "restore", id=backup_id, **given)
        assert not restored["failed"], restored
        read = "qemu-img convert -O raw {0} {1}/raw && sha256sum {1}/raw"
        assert [story.ssh(read.format(path, LOOK)).split()[0] for path in restored["restored"]["files"]] == sums


def test_a_snapshot_of_volumes_lies_in_files(story: Story) -> None:
    """libvirt knows no way back to it, and that is said before; merged, all of it is on the volumes again."""
    there, folder = story.served(), "/var/lib/libvirt/images"

    def run(**options: Any) -> dict[str, Any]:
        return story.cluster.task(NODE, "snapshot", name=VM, **options)

    refused = run(snapshot="e1")
    assert refused["failed"] and "say directory (in playbooks drover_snapshot_directory)" in refused["msg"], refused
    with Observer(story.cluster.lab) as watch:
        watch.wait_word(VM, after=time.monotonic(), seconds=240)
        act = {"name": VM, "snapshot": "e1", "memory": True, "directory": folder}
        (made,) = tasks(story.cluster, NODE, [{"drover.kvm.snapshot": act}])
        assert not made.get("failed") and made["vms"][0]["snapshots"][0]["kind"] == "external", made
        assert "can't set sanvm1 back to it" in str(made["warnings"])
        held = watch.wait_word(VM, after=time.monotonic())["counter"]
        wait_until(lambda: watch.words(VM)[-1]["counter"] > held + 20 or "slow", 90, "it counts")
        act = {"snapshot": "e1", "state": "reverted", "discard_changes_since": "e1", "id": "A"}
        refused = run(**act)
        assert refused["failed"] and "files only; vda, vdb is none" in refused["msg"], refused
        assert not refused["changed"] and "e1" in story.ssh(f"virsh snapshot-list {VM} --name")
        number = len(watch.words(VM))
        gone = run(state="retained", keep=0)
        assert not gone["failed"] and gone["changed"], gone
        wait_until(lambda: len(watch.words(VM)) > number + 5 or "silent", 90, "it goes on")
        words = [word["counter"] for word in watch.words(VM)]
    assert words == sorted(words), words
    assert VM not in story.ssh(f"ls {folder}") and story.served() == there
    assert story.ssh(f"virsh domblklist {VM}").count("iqn.2026-11.org.example:drover-") == 2
    # What it counts is on the volume itself.
    assert story.on_volume() >= words[-1]


def sequence(story: Story, path: Path) -> str:
    """The playbook of the page, for this VM with two disks: its file."""
    (text,) = re.findall(r"```yaml\n# back_to_san.yml\n(.*?)```", (CHECKOUT / "docs/backups.md").read_text(), re.DOTALL)
    names = {"web1": VM, "hosts: hv2": f"hosts: {NODE}", "iqn.2026-01.org": "iqn.2026-11.org"}
    names["198.51.100.10:3260"] = "10.231.5.10:3260"
    for one, other in names.items():
        assert one in text
        text = text.replace(one, other)
    plays = yaml.safe_load(text)
    (disk,) = (moved := plays[1]["tasks"][0]["drover.kvm.vm_storage"])["disks"]
    moved["disks"] = [disk, {**disk, "target": "vdb", "iqn": disk["iqn"][:-1] + "1"}]
    path.write_text(json.dumps(plays), encoding="utf-8")
    return str(path)


def test_a_vm_that_is_gone_comes_back_to_the_san(story: Story, tmp_path: Path) -> None:
    """The VM and its volumes are lost; what the page says brings them back."""
    there = story.served()
    story.ssh(f"virsh destroy {VM}")
    story.play("backup").good()
    kept, made = story.counter(), story.ssh(f"sha256sum {SHARED}/drover-{VM}-1.img", SAN).split()[0]
    story.play("remove_vms", confirm=VM, remove_disks=True).good()
    assert story.served() == [] and VM not in story.cluster.domains(NODE)
    back = {"vm": VM, "node": NODE, "drover_backup_path": ROOT, "start": True}
    story.play("restore_vm", **back).good()
    book = sequence(story, tmp_path / "back_to_san.yml")
    assert story.play(book).good().changed == 2
    assert story.play(book).good().changed == 0
    story.play("build_vms", "--check", "--diff").good()
    story.play("build_vms").good()
    assert story.play("build_vms").good().changed == 0 and story.served() == there
    with Observer(story.cluster.lab) as watch:
        assert watch.wait_word(VM, after=time.monotonic(), seconds=240)["counter"] > kept
    assert story.ssh(f"sha256sum {SHARED}/drover-{VM}-1.img", SAN).split()[0] == made
    assert story.ssh(f"virsh domblklist {VM}").count("iqn.2026-11.org.example:drover-") == 2
    assert story.on_volume() > kept
