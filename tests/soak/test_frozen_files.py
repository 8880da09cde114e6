# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's ext4 that is written to all the time: what is taken while it is frozen needs no recovery of its journal.

A copy that was taken without says so in its superblock (`needs_recovery`), as after a power cut.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import DISK, FOLDER, NODE, XML, Vm

ROOT = "/srv/backup"
WRITE = """mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt || exit 1
while :; do n=$((n+1)); echo $n >/mnt/file$((n%50)); [ $((n%20)) = 0 ] && sync; done >/dev/null 2>&1 &"""


class Writing(Vm):
    """A VM with an agent, and an ext4 on its second disk to which it writes."""

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the guest agent returns."""
        words = json.dumps({"execute": command, "arguments": arguments})
        script = f'virsh -q qemu-agent-command --timeout 30 {self.name} "$(cat)"'
        return json.loads(self.site.ssh(NODE, script, stdin=words))["return"]

    def do(self, script: str) -> None:
        """Run a script in the guest to its end."""
        pid = self.ask("guest-exec", path="/bin/busybox", arg=["sh", "-c", script])["pid"]
        seen: list[Any] = []

        def ended() -> object:
            seen.append(self.ask("guest-exec-status", pid=pid))
            return seen[-1]["exited"] or seen[-1]

        wait_until(ended, 60, "the guest's script ends")
        assert seen[-1]["exitcode"] == 0, seen[-1]

    def journal(self, path: str) -> list[str]:
        """What the superblock in a raw file on the node says: nothing, or that its journal must be gone through."""
        image = self.site.lab.machine(NODE).path(path)
        done = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True)
        return [word for word in done.stdout.split() if word == "needs_recovery"]

    def in_backup(self, made: dict[str, Any]) -> list[str]:
        """The same of the backup of that disk."""
        raw = f"{ROOT}/raw"
        self.site.ssh(NODE, f"qemu-img convert -f qcow2 -O raw {made['backup']['folder']}/vdb.qcow2 {raw}")
        return self.journal(raw)


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Writing]:
    found = Writing(Cluster(lab), "ext1", {"vda": "raw", "vdb": "raw"})
    found.remove()
    folder = lab.machine(NODE).path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    Guests(lab.base).write_image(folder / "ext1-vda.raw", {"name": "ext1"})
    disk = folder / "ext1-vdb.raw"
    disk.write_bytes(b"")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk), "64M"], check=True)
    disks = [DISK.format(folder=FOLDER, name="ext1", target=target, format="raw") for target in found.disks]
    xml = XML.format(folder=FOLDER, name="ext1", memory=192, disks="".join(disks))
    start = f"install -d -m 0711 {ROOT}; cat >{FOLDER}/ext1.xml; virsh define {FOLDER}/ext1.xml; virsh start ext1"
    found.site.ssh(NODE, start, stdin=xml)
    try:
        wait_until(lambda: "thawed" in found.asked("guest-fsfreeze-status") or "no agent", 180, "the agent answers")
        found.do(WRITE)
        assert [one["mountpoint"] for one in found.ask("guest-get-fsinfo")] == ["/mnt"]
        yield found
    finally:
        found.remove()
        found.site.ssh(NODE, f"rm -rf {ROOT}")


def writes(vm: Writing) -> None:
    """It is thawed, and goes on writing."""
    assert vm.ask("guest-fsfreeze-status") == "thawed"
    path = vm.site.lab.machine(NODE).path(vm.chain("vdb")[0])
    seen = path.stat().st_mtime_ns
    wait_until(lambda: path.stat().st_mtime_ns > seen or "nothing", 60, "the guest writes")


@pytest.mark.parametrize("quiesce,left", [("never", ["needs_recovery"]), ("required", [])])
def test_a_snapshot_of_a_frozen_file_system_needs_no_recovery(vm: Writing, quiesce: str, left: list[str]) -> None:
    writes(vm)
    made = vm.good(snapshot=f"s-{quiesce}", quiesce=quiesce)
    assert made["vms"][0]["snapshots"][0]["quiesced"] is (True if quiesce == "required" else None)
    # The guest writes to the file above it; the one below is the disk as it was.
    assert vm.journal(f"{FOLDER}/ext1-vdb.raw") == left
    writes(vm)
    vm.good(snapshot=f"s-{quiesce}", state="absent")
    writes(vm)


@pytest.mark.parametrize("quiesce,left", [("never", ["needs_recovery"]), ("required", [])])
def test_a_backup_of_a_frozen_file_system_needs_no_recovery(vm: Writing, quiesce: str, left: list[str]) -> None:
    writes(vm)
    made = vm.site.task(NODE, "backup", name="ext1", path=ROOT, quiesce=quiesce)
    assert not made["failed"] and made["backup"]["quiesced"] is (quiesce == "required"), made
    assert vm.in_backup(made) == left
    writes(vm)


def test_it_is_thawed_when_the_snapshot_fails(vm: Writing) -> None:
    """QEMU can't make its new file, which it finds out when the guest is frozen."""
    writes(vm)
    timers = "journalctl -u 'drover-thaw-*.timer' -o cat --no-pager | grep -c Started || true"
    before = int(vm.site.ssh(NODE, timers))
    vm.site.ssh(NODE, "mkdir -p /srv/ro; mount -t tmpfs -o ro,size=200M tmpfs /srv/ro")
    try:
        failed = vm.task(snapshot="bad", quiesce="required", directory="/srv/ro")
        assert failed["failed"] and "Read-only" in failed["msg"] and vm.snapshots() == [], failed
        assert int(vm.site.ssh(NODE, timers)) == before + 1
        writes(vm)
    finally:
        vm.site.ssh(NODE, "umount /srv/ro; rmdir /srv/ro")


def test_it_holds_still_between_two_tasks_and_never_for_longer(vm: Writing) -> None:
    for kept in (True, False):
        writes(vm)
        frozen = vm.site.task(NODE, "vm_freeze", name="ext1", quiesce="required", hold=60 if kept else 1)
        assert not frozen["failed"] and frozen["vm"]["frozen"], frozen
        if kept:
            assert vm.ask("guest-fsfreeze-status") == "frozen" and vm.journal(f"{FOLDER}/ext1-vdb.raw") == []
        else:
            wait_until(lambda: vm.ask("guest-fsfreeze-status") == "thawed" or "frozen", 60, "the timer thaws it")
        gone = vm.site.task(NODE, "vm_freeze", name="ext1", state="thawed")
        assert not gone["failed"] and gone["was"]["frozen"] is kept, gone
    writes(vm)
