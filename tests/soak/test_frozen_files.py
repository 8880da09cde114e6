# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's ext4 that is written to all the time: what is taken while it is frozen needs no recovery of its journal.

A copy that was taken without says so in its superblock (`needs_recovery`), as after a power cut. Two such guests that
count in a file are witnesses of snapshots of one moment.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import AGENT, DISK, FOLDER, NODE, XML, Vm

ROOT = "/srv/backup"
WRITE = """mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt || exit 1
while :; do n=$((n+1)); echo $n >/mnt/file$((n%50)); [ $((n%20)) = 0 ] && sync; done >/dev/null 2>&1 &"""
# What it has written it says aloud; when it is frozen it has said all.
COUNT = """mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt || exit 1
while :; do n=$((n+1)); printf %08d $n 1<>/mnt/count; echo "COUNT $n" >/dev/ttyS0; /bin/busybox usleep 20000; done \
>/dev/null 2>&1 &"""
LOOK = "mkdir -p /mnt && mount -o ro -t ext4 /dev/vdb /mnt && cat /mnt/count"


class Writing(Vm):
    """A VM with an agent, and an ext4 on its second disk to which it writes."""

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the guest agent returns."""
        words = json.dumps({"execute": command, "arguments": arguments})
        script = f'virsh -q qemu-agent-command --timeout 30 {self.name} "$(cat)"'
        return json.loads(self.site.ssh(NODE, script, stdin=words))["return"]

    def do(self, script: str) -> str:
        """Run a script in the guest to its end; what it says."""
        shell = {"path": "/bin/busybox", "arg": ["sh", "-c", script], "capture-output": True}
        pid = self.ask("guest-exec", **shell)["pid"]
        seen: list[Any] = []

        def ended() -> object:
            seen.append(self.ask("guest-exec-status", pid=pid))
            return seen[-1]["exited"] or seen[-1]

        wait_until(ended, 60, "the guest's script ends")
        assert seen[-1]["exitcode"] == 0, seen[-1]
        return base64.b64decode(seen[-1].get("out-data", "")).decode()

    def answers(self) -> None:
        """Wait for its agent."""
        wait_until(lambda: "thawed" in self.asked("guest-fsfreeze-status") or "no agent", 240, "the agent answers")

    def counted(self) -> int:
        """The last number that it said; 0 before the first."""
        text = self.site.lab.machine(NODE).path(f"{FOLDER}/{self.name}.serial").read_bytes()[-400:]
        numbers = re.findall(rb"COUNT (\d+)\r?\n", text)
        return int(numbers[-1]) if numbers else 0

    def held(self) -> int:
        """The number in the file of its first disk."""
        image = self.site.lab.machine(NODE).path(f"{FOLDER}/{self.name}-vdb.raw")
        done = subprocess.run(["debugfs", "-R", "cat /count", str(image)], capture_output=True, text=True, check=True)
        return int(done.stdout)

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


@contextmanager
def guest(lab: Lab, name: str, script: str) -> Iterator[Writing]:
    """A VM that runs a script which mounts its second disk; gone at the end."""
    found = Writing(Cluster(lab), name, {"vda": "raw", "vdb": "raw"})
    found.remove()
    folder = lab.machine(NODE).path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    Guests(lab.base).write_image(folder / f"{name}-vda.raw", {"name": name})
    disk = folder / f"{name}-vdb.raw"
    disk.write_bytes(b"")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk), "64M"], check=True)
    disks = [DISK.format(folder=FOLDER, name=name, target=target, format="raw") for target in found.disks]
    xml = XML.format(folder=FOLDER, name=name, memory=192, disks="".join(disks), agent=AGENT)
    start = f"cat >{FOLDER}/{name}.xml; virsh define {FOLDER}/{name}.xml; virsh start {name}"
    found.site.ssh(NODE, start, stdin=xml)
    try:
        found.answers()
        found.do(script)
        assert [one["mountpoint"] for one in found.ask("guest-get-fsinfo")] == ["/mnt"]
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Writing]:
    with guest(lab, "ext1", WRITE) as found:
        found.site.ssh(NODE, f"install -d -m 0711 {ROOT}")
        try:
            yield found
        finally:
            found.site.ssh(NODE, f"rm -rf {ROOT}")


@pytest.fixture
def both(lab: Lab) -> Iterator[list[Writing]]:
    """Two guests that count in a file of their ext4."""
    with ExitStack() as stack:
        yield [stack.enter_context(guest(lab, name, COUNT)) for name in ("pair1", "pair2")]


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


@pytest.mark.parametrize("mount,words", [("ro", "Read-only"), ("nr_inodes=2", "No space left")])
def test_it_is_thawed_when_the_snapshot_fails(vm: Writing, mount: str, words: str) -> None:
    """QEMU can't make both of its new files, which it finds out when the guest is frozen; there is room for one."""
    writes(vm)
    timers = "journalctl -u 'drover-thaw-*.timer' -o cat --no-pager | grep -c Started || true"
    before = int(vm.site.ssh(NODE, timers))
    vm.site.ssh(NODE, f"mkdir -p /srv/ro; mount -t tmpfs -o {mount},size=200M tmpfs /srv/ro")
    try:
        failed = vm.task(snapshot="bad", quiesce="required", directory="/srv/ro")
        assert failed["failed"] and words in failed["msg"] and vm.snapshots() == [], failed
        assert vm.site.ssh(NODE, "ls /srv/ro") == "" and [len(vm.chain(target)) for target in vm.disks] == [1, 1]
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


def watched(vms: Sequence[Writing], run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """What `run` returns, and how far each had counted, looked at again and again meanwhile."""
    seen = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        while not done.done():
            seen.append(tuple(vm.counted() for vm in vms))
            time.sleep(0.005)
    return done.result(), seen


def test_several_are_of_one_moment_and_go_back_to_it(lab: Lab, both: list[Writing]) -> None:
    names = [vm.name for vm in both]

    def run(**options: Any) -> dict[str, Any]:
        return both[0].site.task(NODE, "snapshot", vms=names, **options)

    for vm in both:
        wait_until(lambda vm=vm: vm.counted() > 10 or vm.counted(), 60, f"{vm.name} counts")
    made, seen = watched(both, lambda: run(snapshot="m1", quiesce="required"))
    assert not made["failed"], made
    assert [vm["snapshots"][0]["quiesced"] for vm in made["vms"]] == [True, True]
    # What the two snapshots hold is what both had come to at one time: that of the pause, in which neither went on.
    held = tuple(vm.held() for vm in both)
    print(f"held {held}, seen {seen.count(held)} of {len(seen)} times, {len(set(seen))} states of the two")
    assert seen.count(held) > 1 and len(set(seen)) > 4, (held, seen)
    assert [vm.journal(f"{FOLDER}/{vm.name}-vdb.raw") for vm in both] == [[], []]
    for vm, number in zip(both, held):
        wait_until(lambda vm=vm, number=number: vm.counted() > number + 5 or vm.counted(), 60, "it goes on")
    act = {"snapshot": "m1", "state": "reverted", "discard_changes_since": "m1", "id": "A"}
    back = run(**act)
    assert not back["failed"] and sorted(back["lost"]) == names, back
    for vm in both:
        vm.answers()
    assert tuple(int(vm.do(LOOK)) for vm in both) == held
    assert run(**act)["actions"] == []
    gone = run(state="retained", keep=0)
    assert not gone["failed"] and [len(vm.chain("vdb")) for vm in both] == [1, 1], gone
