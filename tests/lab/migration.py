# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stories about migration do with one of the cluster's VMs: begin a move, break it in a phase, look, mend.

Looks go through the host into a node's namespaces, and so do the faults: neither needs the node's ssh or our modules.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.nodes import command_name
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, program, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODES = ("hv1", "hv2", "hv3")
MIB = 1 << 20
# At this speed, the least there is, Perform lasts 20 s and more: a fault hits it also on a busy machine.
SLOW = "1MiB"
# In MiB; the smallest guests send some 20 in all.
MOST_SENT = 10
MARKER = "urn:drover:migration:1"
WELL = ("running", "yes")
# What the SAN answers goes to such ports, too.
CUT = """table ip cut {
  chain arriving {
    type filter hook input priority 0; iifname "storage0" accept; tcp dport {%s} drop; tcp sport {%s} drop;
  }
}
"""
STREAM = "49152-49215"
CONTROL = "16514"
# Only who comes anew: the disks of VMs that run here go on.
CUT_STORAGE = """table ip cut {
  chain leaving { type filter hook output priority 0; tcp dport 3260 tcp flags & (syn | ack) == syn drop; }
}
"""


def command_line(pid: int) -> bytes:
    """The arguments of a process; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def modules(lab: Lab, node: str) -> list[int]:
    """The processes of modules on a node; one comes by standard input, so its command line is bare."""
    return [pid for pid in lab.machine(node).pids() if command_line(pid) == b"/usr/bin/python3\0"]


def waiting(pid: int) -> str:
    """What a process that does not end waits for, and in which pipes it has a part, for a message."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        where = Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8")
        pipes = {path.name: os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return f"{pid} has ended"
    parent = re.findall(r"^PPid:\s+(\d+)", status, re.MULTILINE)
    return f"{pid} of {parent} in {where}: { {n: at for n, at in pipes.items() if at.startswith('pipe')} }"


class Missed(AssertionError):
    """The fault did not fall into its phase: the story is not exercised, and must not count as passed."""


class Mover:
    """One VM, the node where it is, and two others to which it may go."""

    def __init__(self, cluster: Cluster, vm: str, watch: Observer) -> None:
        self.cluster, self.lab, self.vm, self.watch = cluster, cluster.lab, vm, watch
        self.started: list[subprocess.Popen[str]] = []
        self.source = self.home()
        self.target, self.third = [node for node in NODES if node != self.source]
        self.uuid = self.virsh(self.source, "domuuid", vm)
        self.unit = f"drover-migrate-{self.uuid}"
        # How much has been sent when a fault comes.
        self.sent = MIB

    def leave_to(self, dice: Random | None) -> None:
        """Let chance choose the destination, and how much is sent before the fault."""
        if dice:
            self.target, self.third = dice.sample([self.target, self.third], 2)
            self.sent = dice.randint(1, MOST_SENT) * MIB
            print(f"{self.source} to {self.target}, {self.sent // MIB} MiB sent before")

    # Looks
    def inside(self, node: str, *argv: str, feed: str | None = None, check: bool = True) -> str:
        """Run a command in a node, without its network."""
        leader = self.lab.machine(node).leader()
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/"]
        done = subprocess.run(
            ["nsenter", f"--target={leader}", *spaces, "--", *argv],
            input=feed or "",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{node}: {argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def virsh(self, node: str, *words: str, check: bool = True) -> str:
        """What virsh answers; a frozen daemon gives nothing after 10 s."""
        return self.inside(node, "timeout", "10", "virsh", "-q", *words, check=check).strip()

    def says(self) -> dict[str, tuple[str, str]]:
        """What each node that has the VM says of it: its state, and whether the definition is persistent."""
        found = {}
        for node in NODES:
            info = self.virsh(node, "dominfo", self.vm, check=False)
            if info:
                facts = dict(re.findall(r"^(State|Persistent):\s+(.*)$", info, re.MULTILINE))
                found[node] = (facts["State"], facts["Persistent"])
        return found

    def home(self) -> str:
        """The one node that has the VM, which runs; AssertionError when the cluster is not at rest."""
        said = self.says()
        assert list(said.values()) == [WELL], said
        return next(iter(said))

    def reason(self, node: str) -> str:
        """State and reason, such as `paused (migrating)`."""
        return self.virsh(node, "domstate", self.vm, "--reason", check=False)

    def marked(self) -> list[str]:
        """The nodes on which the VM carries the marker."""
        return [node for node in NODES if self.virsh(node, "metadata", self.vm, MARKER, check=False)]

    def autostart(self, node: str) -> bool:
        """Whether the node starts the VM when it boots."""
        return "enable" in re.findall(r"^Autostart:\s+(\w+)", self.virsh(node, "dominfo", self.vm), re.MULTILINE)

    def phase(self, node: str) -> str:
        """The phase of the migration that libvirt has written down for its next start, such as `perform3`."""
        path = self.lab.machine(node).path(f"/run/libvirt/qemu/{self.vm}.xml")
        try:
            job = ET.parse(path).getroot().find("job")
        except (OSError, ET.ParseError):
            return ""
        return "" if job is None else job.get("phase", "")

    def processed(self, node: str) -> int:
        """Bytes that the migration has sent, by libvirt; 0 when there is no job."""
        words = re.search(r"Data processed:\s+([\d.]+) (\w+)", self.virsh(node, "domjobinfo", self.vm, check=False))
        units = {"B": 1, "KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}
        return 0 if not words else int(float(words.group(1)) * units[words.group(2)])

    def counts(self, seconds: float = 30) -> None:
        """The guest says something new."""
        self.watch.wait_word(self.vm, after=time.monotonic(), seconds=seconds)

    # The module
    def start(self, node: str, check: bool = False, module: str = "migrate", **task: Any) -> subprocess.Popen[str]:
        """Begin module migrate, or another one, on a node."""
        words = [*self.cluster.inventory, node, "-m", f"drover.kvm.{module}", "-a", json.dumps(task)]
        process = subprocess.Popen(
            [*program("ansible"), *words, *(["--check"] if check else [])],
            env=self.cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[str], seconds: float = 200) -> dict[str, Any]:
        """The module's result."""
        out, err = process.communicate(timeout=seconds)
        match = re.search(r"=> (\{.*\})\s*$", out, re.DOTALL)
        assert match, out + err
        return {"failed": "FAILED!" in out, **json.loads(match.group(1))}

    def migrate(self, node: str, check: bool = False, **task: Any) -> dict[str, Any]:
        """Run module migrate on a node to its end."""
        return self.end(self.start(node, check, **task))

    def move(self, check: bool = False, **task: Any) -> dict[str, Any]:
        """Run it for the VM, from source to target."""
        return self.migrate(self.source, check, **{"name": self.vm, "to": self.target, **task})

    def moved(self) -> None:
        """Run it for the VM, from source to target; AssertionError with the result when that failed."""
        result = self.move()
        assert result.get("verified"), result

    def start_slowly(self, **task: Any) -> subprocess.Popen[str]:
        """Begin the move at low speed, and wait until it is in Perform."""
        process = self.start(self.source, name=self.vm, to=self.target, bandwidth=SLOW, **task)

        def sends() -> bool | str:
            if process.poll() is not None:
                raise Missed(f"not exercised: the move ended before: {self.end(process)}")
            sent = self.processed(self.source)
            return sent > self.sent or f"{sent} B sent"

        self.hits("Perform", sends)
        self.in_phase("perform3")
        return process

    # Phases
    @staticmethod
    def hits(what: str, see: Callable[[], Any], seconds: float = 120) -> None:
        """Wait for the state that a fault must meet; Missed without it."""
        try:
            wait_until(see, seconds, what)
        except AssertionError as error:
            raise Missed(f"not exercised: {error}") from error

    def in_phase(self, phase: str) -> None:
        """Missed unless the source is in this phase of the migration."""
        seen = self.phase(self.source)
        if seen != phase:
            raise Missed(f"not exercised: {self.source} is in phase {seen or 'none'}, not {phase}")

    def speed_up(self, done: bool = False) -> None:
        """Let the rest of the memory go at full speed; with `done` it may be there already."""
        self.virsh(self.source, "migrate-setspeed", self.vm, "900", check=not done)
        self.virsh(self.source, "migrate-setmaxdowntime", self.vm, "1500", check=False)

    def freeze_before_finish(self) -> None:
        """In Perform freeze the destination's daemon, then let the memory end: Finish can't be answered."""
        self.lab.freeze(self.target, "libvirtd")
        self.speed_up()
        self.hits("PERFORM3_DONE", lambda: self.phase(self.source) in ("perform3_done", "finish3") or self.stage(), 20)
        assert "paused (migrating)" in self.reason(self.source), self.reason(self.source)

    def stage(self) -> str:
        """Where the migration is, in words."""
        return f"{self.source}: {self.reason(self.source)}, phase {self.phase(self.source) or 'none'}"

    # Faults
    def kill_daemon(self, node: str) -> None:
        """kill -9 libvirtd of a node; its socket starts it again."""
        for pid in self.lab.machine(node).find("libvirtd"):
            os.kill(pid, signal.SIGKILL)

    def kill_qemu(self, node: str) -> None:
        """kill -9 the VM's QEMU on a node; Missed when there is none."""
        mark = f"-uuid\0{self.uuid}\0".encode()
        found = [pid for pid in self.lab.machine(node).pids() if mark in command_line(pid)]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if not found:
            raise Missed(f"not exercised: no QEMU of {self.vm} on {node}")

    def thaw(self) -> None:
        """Let every libvirtd go on."""
        for node in NODES:
            for pid in self.lab.machine(node).find("libvirtd"):
                os.kill(pid, signal.SIGCONT)

    def kill_controller(self, process: subprocess.Popen[str]) -> None:
        """Ansible with its ssh, and the connection that ssh keeps in the background, as by a power cut."""
        self.cluster.kill(process)
        mine = f"ssh: {self.lab.state}/cp/".encode()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            pid = int(entry.parent.name)
            if command_name(pid) == "ssh" and entry.read_bytes().startswith(mine):
                os.kill(pid, signal.SIGKILL)

    def modules(self) -> list[int]:
        """The processes of modules on the source."""
        return modules(self.lab, self.source)

    def kill_module(self) -> None:
        """kill -9 what runs of our module on the source; Missed when there is nothing.

        Without its controller it goes on, and would see to a killed helper.
        """
        found = self.modules()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if not found:
            raise Missed(f"not exercised: no module runs on {self.source}")

    def kill_helper(self) -> None:
        """kill -9 the helper's unit on the source; Missed when there is none."""
        if not self.helping(self.source):
            raise Missed(f"not exercised: no {self.unit} on {self.source}")
        self.inside(self.source, "systemctl", "kill", "--signal=KILL", self.unit)

    def helping(self, node: str) -> bool:
        """Whether a helper works on the VM."""
        return self.inside(node, "systemctl", "is-active", self.unit, check=False).strip() == "active"

    def cut_stream(self) -> None:
        """Drop what arrives at the target's ports for migration."""
        self.cut_ports([STREAM])

    def cut_ports(self, ports: list[str]) -> None:
        """Drop what arrives at the target to or from these ports."""
        self.inside(self.target, "nft", "-f", "-", feed=CUT % (", ".join(ports), ", ".join(ports)))

    def cut_storage(self) -> None:
        """Drop what the target sends to the SAN for a new session."""
        self.inside(self.target, "nft", "-f", "-", feed=CUT_STORAGE)

    def mend_stream(self) -> None:
        """End both, on all nodes."""
        for node in NODES:
            self.inside(node, "nft", "delete", "table", "ip", "cut", check=False)

    # Afterwards
    def rests_on(self, node: str, state: str = "running") -> None:
        """The VM is on this node only, complete, with nothing left open; and it counts if it runs."""
        assert self.says() == {node: (state, "yes")}
        assert self.marked() == []
        assert self.autostart(node)
        if state == "running":
            self.counts()

    def ends_off(self, result: dict[str, Any]) -> None:
        """The move failed and left the VM off on its source, which it says; nobody but us starts it, and it counts."""
        assert result["failed"] and result["details"]["where"] == self.source, result
        assert f"shutoff on {self.source}" in result["msg"]
        assert self.says() == {self.source: ("shut off", "yes")} and self.marked() == []
        # A busy node may take longer for it than virsh is given; libvirt goes on.
        self.virsh(self.source, "start", self.vm, check=False)
        self.counts(240)

    def goes_next_time(self) -> None:
        """It rests where it was, and the next try moves it."""
        self.rests_on(self.source)
        self.moved()
        self.rests_on(self.target)

    def heal(self) -> None:
        """Whatever the story did or failed to do: daemons go on, one complete copy runs. AssertionError if not."""
        for process in self.started:
            if process.poll() is None:
                self.cluster.kill(process)
        self.mend_stream()
        self.thaw()
        busy = [node for node in NODES if self.helping(node)]
        for node in busy:
            wait_until(lambda node=node: not self.helping(node) or f"{self.unit} works", 90, f"the helper on {node}")
        if self.marked() or len(self.says()) != 1:
            result = self.migrate(self.source, state="recovered", name=self.vm)
            assert not result["failed"], result
        # A second copy is let go on by nobody, not by a story either.
        said = self.says()
        assert len(said) == 1, said
        for node, (state, _persistent) in said.items():
            if state != "running":
                self.virsh(node, "resume" if state == "paused" else "start", self.vm)
        wait_until(lambda: list(self.says().values()) == [WELL] or self.says(), 60, f"{self.vm} at rest")
        self.watch.wait_word(self.vm, after=time.monotonic())
