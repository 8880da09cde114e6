# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot on real libvirt and QEMU, with a guest that counts as the witness: what it wrote is never lost.

The guest writes its counter to its disk and then says it on its serial port. A snapshot with memory holds one value of
it; after the way back the guest goes on from exactly there. Runs are killed with SIGKILL in the middle.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until

NODE = "hv1"
FOLDER = "/srv/snap"
XML = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type machine='pc'>hvm</type></os><features><acpi/></features><on_reboot>restart</on_reboot><devices>{disks}
<serial type='file'><source path='{folder}/{name}.serial' append='on'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/>
<source file='{folder}/{name}-{target}.{format}'/><target dev='{target}' bus='virtio'/></disk>"""

# The module's own process, told from the programs that start it by who has the library of libvirt open.
KILL = """
pid=
until [ -n "$pid" ]; do
    for one in $(pgrep -f AnsiballZ_snapshot); do
        grep -q libvirtmod /proc/$one/maps 2>/dev/null && pid=$one
    done
done
vm={vm}
while [ -d /proc/$pid ]; do
    if {{ {moment}; }} >/dev/null 2>&1; then
        kill -9 $pid && echo killed && exit
    fi
done
echo done
"""


def kill_in(site: Cluster, node: str, vm: str, moment: str, **options: Any) -> None:
    """Run the module for a VM and kill it with SIGKILL as soon as a shell condition on the node is true."""
    program = str(Path(sys.executable).parent / "ansible")
    argv = [program, *site.inventory, node, "-m", "drover.kvm.snapshot", "-a", json.dumps({"name": vm, **options})]
    # Pipelining, which the sites use, leaves nothing in the process's command line by which it could be told.
    argv += ["-e", json.dumps({"ansible_ssh_pipelining": False})]
    with subprocess.Popen(
        argv,
        env=site.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        fate = site.ssh(node, "sh", stdin=KILL.format(moment=moment, vm=vm), timeout=240).strip()
        output = process.communicate(timeout=240)[0]
    assert fate == "killed", f"not exercised, it was {fate}: {output}"


@pytest.fixture(scope="module")
def site(lab: Lab) -> Cluster:
    """The lab's nodes, whether its site is set up or not."""
    return Cluster(lab)


class Vm:
    """A VM whose boot sector counts; `disks` by their names on the bus, each with its format."""

    def __init__(self, site: Cluster, name: str, disks: dict[str, str]) -> None:
        self.site, self.name, self.disks = site, name, disks
        guests = Guests(site.lab.base)
        guests.ensure()
        self.sector = base64.b64encode(guests.boot_sector.read_bytes().ljust(17 * 512, b"\0")).decode()

    def make(self) -> Vm:
        """Define it anew and start it."""
        self.remove()
        lines = [f"mkdir -p {FOLDER}; cd {FOLDER}; base64 -d >sector; truncate -s 16M sector"]
        for target, kind in self.disks.items():
            lines.append(f"qemu-img convert -f raw -O {kind} sector {self.name}-{target}.{kind}")
        # The second one is big, and takes space for what is written to it.
        lines += [f"qemu-img resize -f {self.disks['vdb']} {self.name}-vdb.{self.disks['vdb']} 1G"]
        self.site.ssh(NODE, "; ".join(lines), stdin=self.sector)
        given = {"folder": FOLDER, "name": self.name}
        disks = [DISK.format(**given, target=target, format=kind) for target, kind in self.disks.items()]
        xml = XML.format(folder=FOLDER, name=self.name, memory=32, disks="".join(disks))
        self.site.ssh(NODE, f"cat >{FOLDER}/{self.name}.xml; virsh define {FOLDER}/{self.name}.xml", stdin=xml)
        self.virsh("start")
        self.counts()
        return self

    def remove(self) -> None:
        """Take it away with all that it has."""
        self.site.ssh(
            NODE,
            f"virsh destroy {self.name}; virsh undefine {self.name} --snapshots-metadata; rm -f {FOLDER}/{self.name}*",
            check=False,
        )

    def virsh(self, *words: str, check: bool = True) -> str:
        """What virsh says of it."""
        return self.site.ssh(NODE, "virsh", "-q", words[0], self.name, *words[1:], check=check, timeout=300).strip()

    def fill(self, mib: int) -> None:
        """Let QEMU write to the second disk as the guest would."""
        disk = "/machine/peripheral/virtio-disk1/virtio-backend"
        asks = [f'qemu-io -d {disk} "write -P 5 {number * 32}M 32M"' for number in range(1, mib // 32 + 1)]
        lines = [f"virsh -q qemu-monitor-command {self.name} --hmp '{ask}'" for ask in asks]
        self.site.ssh(NODE, "; ".join(lines), timeout=240)

    def said(self) -> list[int]:
        """All that it has counted aloud; a line that is not whole is left out."""
        text = self.site.ssh(NODE, f"cat {FOLDER}/{self.name}.serial", check=False)
        return [int(word, 16) for word in re.findall(r"t([0-9a-f]{8})\r?\n", text)]

    def counts(self) -> int:
        """Wait for its next word."""
        before = len(self.said())
        wait_until(lambda: len(self.said()) > before, 90, f"{self.name} counts")
        return self.said()[-1]

    def returned(self, since: int = 0) -> list[int]:
        """With which counts it went on each time it was set back, in what it said from a place on."""
        said = self.said()[since:]
        return [other for one, other in zip(said, said[1:]) if other < one]

    def state(self) -> str:
        """State and reason."""
        return self.virsh("domstate", "--reason")

    def snapshots(self) -> list[str]:
        """Names, by virsh."""
        return sorted(self.virsh("snapshot-list", "--name").split())

    def chain(self, target: str = "vda") -> list[str]:
        """The files of a disk, by qemu-img, which reads every header."""
        path = dict(line.split(None, 1) for line in self.virsh("domblklist").splitlines())[target]
        told = json.loads(self.site.ssh(NODE, f"qemu-img info -U --backing-chain --output=json {path}"))
        return [one["filename"] for one in told]

    def kept(self, snapshot: str) -> int:
        """The counter on the disk of an internal snapshot."""
        path = f"{FOLDER}/{self.name}-vda.qcow2"
        script = f"cd {FOLDER}; qemu-img convert -U -l snapshot.name={snapshot} -O raw {path} look"
        self.site.ssh(NODE, script, timeout=120)
        return self.counter("look")

    def counter(self, raw: str) -> int:
        """The counter on a raw image: sector 16 holds DRVT and 32 bits."""
        words = self.site.ssh(NODE, f"od -An -tx4 -j8192 -N8 {FOLDER}/{raw}").split()
        assert words[0] == "54565244", words
        return int(words[1], 16)

    def asked(self, command: str) -> str:
        """What the guest agent answers."""
        return self.virsh("qemu-agent-command", f'\'{{"execute": "{command}"}}\'', check=False)

    def task(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module."""
        return self.site.task(NODE, "snapshot", check, name=self.name, **options)

    def good(self, **options: Any) -> dict[str, Any]:
        """The same; AssertionError when it failed."""
        result = self.task(**options)
        assert not result["failed"], result
        return result

    def killed(self, moment: str, **options: Any) -> None:
        """Run the module and kill it with SIGKILL as soon as a shell condition on the node is true."""
        kill_in(self.site, NODE, self.name, moment, **options)

    def settled(self, **options: Any) -> dict[str, Any]:
        """Run the module again until libvirt has ended what it had begun."""
        results: list[dict[str, Any]] = []

        def run() -> object:
            results.append(self.task(**options))
            return not results[-1]["failed"] or results[-1]

        wait_until(run, 120, "a run that is good")
        return results[-1]

    def is_sound(self) -> None:
        """It counts, and QEMU's own check finds nothing wrong with its disks once it is off."""
        self.counts()
        self.virsh("destroy")
        try:
            for target in self.disks:
                for path in self.chain(target):
                    kind = "qcow2" if path.endswith("qcow2") or "." not in path else "raw"
                    if kind == "qcow2":
                        self.site.ssh(NODE, f"qemu-img check -f qcow2 {path}", timeout=120)
        finally:
            self.virsh("start")
        self.counts()


@pytest.fixture
def vm(site: Cluster, request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A VM of its own; its disks by the parameter of the test."""
    found = Vm(site, "snap1", getattr(request, "param", {"vda": "qcow2", "vdb": "qcow2"})).make()
    yield found
    found.remove()


def same_twice(vm: Vm, **options: Any) -> dict[str, Any]:
    """What check mode foretells happens, and a second run does nothing."""
    foretold, real, again = vm.task(check=True, **options), vm.good(**options), vm.good(**options)
    assert foretold["actions"] == real["actions"] and real["changed"], (foretold, real)
    assert not again["changed"] and again["actions"] == []
    return real


def test_a_revert_with_memory_goes_on_at_the_very_count(vm: Vm) -> None:
    made = same_twice(vm, snapshot="s1", memory=True, description="before all", tags=["story"])
    (one,) = made["vms"][0]["snapshots"]
    assert one["kind"] == "internal" and one["size"] > 0 and vm.snapshots() == ["s1"]
    held = vm.kept("s1")
    vm.counts()
    refused = vm.task(snapshot="s1", state="reverted")
    assert refused["failed"] and refused["error"] == "Refused" and "discard_changes_since: s1" in refused["msg"]
    assert vm.snapshots() == ["s1"]
    said, last = len(vm.said()), vm.said()[-1]
    assert last > held
    act = {"snapshot": "s1", "state": "reverted", "discard_changes_since": "s1", "id": "CHG-1"}
    back = same_twice(vm, **act)
    lost = back["lost"][vm.name]
    assert lost["age"] >= 0 and lost["bytes"] is not None, lost
    vm.counts()
    # From the safety snapshot's moment it counted on until it was set back; then it goes on from what s1 holds.
    assert vm.returned(said)[0] in (held, held + 1), (held, vm.said()[said:])
    assert vm.snapshots() == ["before-s1-CHG-1", "s1"] and "CHG-1" in vm.virsh("dumpxml")
    # Nothing was lost: what it was is in the safety snapshot.
    assert vm.kept("before-s1-CHG-1") >= last
    safety = "before-s1-CHG-1"
    vm.good(snapshot=safety, state="reverted", discard_changes_since=safety, safety_snapshot=False)
    assert vm.counts() > last
    gone = vm.good(state="retained", keep=0)
    assert len(gone["actions"]) == 2 and vm.snapshots() == []
    vm.is_sound()


@pytest.mark.parametrize("vm", [{"vda": "raw", "vdb": "qcow2"}], indirect=True)
def test_disks_of_other_formats_are_kept_outside(vm: Vm) -> None:
    made = same_twice(vm, snapshot="e1")
    assert made["vms"][0]["chain_length"] == 2 and len(vm.chain()) == 2
    count = vm.counts()
    same = same_twice(vm, snapshot="e2", memory=True)
    # Memory has the guest's secrets: nobody but root and QEMU's user can read it.
    files = [path for one in same["vms"][0]["snapshots"] for path in one["files"]]
    modes = vm.site.ssh(NODE, f"stat -c %a {' '.join(files)}").split()
    assert len(files) == 5 and set(modes) == {"600"}, (files, modes)
    vm.counts()
    vm.good(snapshot="e1", state="reverted", discard_changes_since="e1", id="A")
    assert vm.counts() <= count and vm.snapshots() == ["before-e1-A", "e1", "e2"]
    refused = vm.task(snapshot="e1", state="absent")
    assert refused["failed"] and "is the ground of e2 and of what runs now" in refused["msg"], refused
    vm.good(snapshot="e2", state="reverted", discard_changes_since="e2", id="B", safety_snapshot=False)
    assert vm.counts() >= count
    # e2 is the ground of the safety snapshot and of what runs, so it goes last.
    gone = vm.good(state="retained", keep=0)
    assert [words.split()[4] for words in gone["actions"]] == ["e1", "before-e1-A", "e2"], gone
    assert vm.snapshots() == [] and len(vm.chain()) == 1 and vm.counts() > count
    left = vm.site.ssh(NODE, f"ls {FOLDER}").split()
    assert not [name for name in left if ".e" in name or "before" in name], left
    vm.is_sound()


def test_a_machine_that_is_off(vm: Vm) -> None:
    vm.virsh("destroy")
    held = vm.said()[-1]
    same_twice(vm, snapshot="off")
    vm.virsh("start")
    assert vm.counts() > held
    said = len(vm.said())
    vm.good(snapshot="off", state="reverted", discard_changes_since="off", id="A")
    wait_until(lambda: "running" in vm.state(), 30, "it boots again")
    vm.counts()
    assert vm.returned(said)[0] in (held, held + 1, held + 2), (held, vm.said()[said:])
    vm.good(state="retained", keep=0)
    vm.is_sound()


SAYS = "virsh dumpxml $vm | grep -q {}"
LISTED = "virsh snapshot-list $vm --name | grep -qx {}"
CREATION = {
    "before": "true",
    "noted": SAYS.format("made=.no."),
    "saving": "virsh domstate $vm | grep -q paused",
}


@pytest.mark.parametrize("moment", CREATION)
def test_a_killed_snapshot_is_whole_or_none(vm: Vm, moment: str) -> None:
    given = {"snapshot": "s1", "memory": True, "tags": ["story"]}
    vm.killed(CREATION[moment], **given)
    made = vm.settled(**given)
    (one,) = made["vms"][0]["snapshots"]
    assert one["tags"] == ["story"] and one["managed"] and one["memory"]
    assert not vm.good(**given)["changed"]
    wait_until(lambda: "running" in vm.state(), 60, "the VM runs")
    held, last = vm.kept("s1"), vm.counts()
    assert last > held
    vm.good(snapshot="s1", state="reverted", discard_changes_since="s1", safety_snapshot=False)
    vm.counts()
    # It was set back once, to the very count that the snapshot holds, and nothing else ever was.
    back = vm.returned()
    assert len(back) == 1 and back[0] in (held, held + 1), (held, vm.said())
    vm.good(snapshot="s1", state="absent")
    vm.is_sound()


REMOVAL = {
    "before": "true",
    "merging": "virsh blockjob $vm vdb 2>&1 | grep -q Commit",
    "gone": "! " + LISTED.format("e1"),
}


@pytest.mark.parametrize("vm", [{"vda": "raw", "vdb": "qcow2"}], indirect=True)
@pytest.mark.parametrize("moment", REMOVAL)
def test_a_killed_removal_loses_nothing(vm: Vm, moment: str) -> None:
    vm.good(snapshot="e1")
    vm.fill(768)
    count = vm.counts()
    vm.killed(REMOVAL[moment], snapshot="e1", state="absent")
    vm.settled(snapshot="e1", state="absent")
    assert vm.snapshots() == [] and len(vm.chain()) == 1 and vm.counts() > count
    vm.is_sound()


REVERT = {
    "before": "true",
    "begun": SAYS.format("state=.begun."),
    "saved": LISTED.format("before-s1-A"),
    "carried": SAYS.format("state=.carried."),
}


@pytest.mark.parametrize("moment", REVERT)
def test_a_killed_revert_is_finished_by_the_same_id(vm: Vm, moment: str) -> None:
    vm.good(snapshot="s1", memory=True)
    held, last = vm.kept("s1"), vm.counts()
    act = {"snapshot": "s1", "state": "reverted", "discard_changes_since": "s1", "id": "A"}
    vm.killed(REVERT[moment], **act)
    vm.settled(**act)
    assert not vm.good(**act)["changed"]
    assert vm.snapshots() == ["before-s1-A", "s1"] and vm.kept("before-s1-A") >= last - 1
    wait_until(lambda: "running" in vm.state(), 60, "the VM runs")
    back = vm.returned()
    assert len(back) == 1 and back[0] in (held, held + 1), (held, vm.said())
    vm.good(state="retained", keep=0)
    vm.is_sound()


@pytest.mark.parametrize("vm", [{"vda": "raw", "vdb": "raw"}], indirect=True)
def test_a_folder_that_is_full_harms_nobody(vm: Vm) -> None:
    vm.site.ssh(NODE, "mkdir -p /srv/tight; mount -t tmpfs -o size=68M tmpfs /srv/tight")
    try:
        refused = vm.task(snapshot="e1", memory=True, directory="/srv/tight")
        assert refused["failed"] and refused["error"] == "Refused" and "free; make room for" in refused["msg"]
        assert vm.snapshots() == [] and len(vm.chain()) == 1
        vm.is_sound()
    finally:
        vm.remove()
        vm.site.ssh(NODE, "umount /srv/tight")


UNIT = "drover-thaw-$(virsh domuuid $vm)"


@pytest.fixture
def tiny(site: Cluster, tmp_path: Path) -> Iterator[Vm]:
    """A VM with a guest agent on a raw disk."""
    found = Vm(site, "agent1", {"vda": "raw"})
    found.remove()
    guests = Guests(site.lab.base)
    guests.ensure()
    folder = site.lab.machine(NODE).path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    guests.write_image(folder / "agent1-vda.raw", {"name": "agent1"})
    disks = DISK.format(folder=FOLDER, name="agent1", target="vda", format="raw")
    xml = XML.format(folder=FOLDER, name="agent1", memory=192, disks=disks)
    site.ssh(NODE, f"cat >{FOLDER}/agent1.xml; virsh define {FOLDER}/agent1.xml; virsh start agent1", stdin=xml)
    wait_until(lambda: "thawed" in found.asked("guest-fsfreeze-status") or "no agent", 180, "the agent answers")
    yield found
    found.remove()


def test_a_guest_is_frozen_for_the_moment_only(tiny: Vm) -> None:
    made = tiny.good(snapshot="q1", quiesce="required")
    (one,) = made["vms"][0]["snapshots"]
    assert one["quiesced"] is True
    left = tiny.site.ssh(NODE, "systemctl list-units --all --plain --no-legend 'drover-thaw-*'")
    assert left == "" and "thawed" in tiny.asked("guest-fsfreeze-status")
    tiny.good(snapshot="q1", state="absent")
    tiny.killed(f"systemctl is-active {UNIT}.timer", snapshot="q2", quiesce="required")
    # The timer comes, thaws, and is gone.
    units = "systemctl list-units --all --plain --no-legend 'drover-thaw-*'"
    wait_until(lambda: tiny.site.ssh(NODE, units) == "" or "the timer is there", 30, "the timer came")
    assert "thawed" in tiny.asked("guest-fsfreeze-status")
    journal = tiny.site.ssh(NODE, "journalctl -u 'drover-thaw-*.service' -o cat --no-pager")
    assert "drover: thaw agent1" in journal, journal
    tiny.settled(snapshot="q2", quiesce="required")
    assert tiny.snapshots() == ["q2"]
