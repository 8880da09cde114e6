# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are full VMs: a kernel of their own, with all that a container's host may lack."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from . import vm_channels, vm_state
from .guest import cpio
from .identity import Entry, machine_id, tar
from .nodes import FILL, FILL_LIMIT, NO_FILESYSTEM, Machine, Parts, command_name
from .run import LabError, run
from .vm_hardware import command, disks, link_file
from .vm_wire import Wires

QEMU = "qemu-system-x86_64"
# QEMU's programs and libraries, and what they ask of the system.
BOUND = ("usr", "etc", "dev", "proc")
MERGED = ("bin", "sbin", "lib", "lib64")
WATCH_SECONDS = 0.1
# Each in its node, through the agent. A program is told by its file, as on the host.
FIND = """find /proc -maxdepth 2 -path "/proc/[0-9]*/exe" \\( -lname "*/$1" -o -lname "*/$1 (deleted)" \\) \\
    -printf '%h\\n' 2>/dev/null || true"""
STATES = "for pid; do cat /proc/$pid/task/*/stat; done"
MAKE_FILESYSTEM = """mountpoint -q "$1" && exit
[ -n "$2" ] || exit 9
mkdir -p "$1" && cp -a "$1" /run/lab-fill-copy
mount -t tmpfs -o size="$2",mode=0755 tmpfs "$1"
cp -a /run/lab-fill-copy/. "$1" && rm -r /run/lab-fill-copy"""
FILL_UP = """for size in 1M 4k; do dd if=/dev/zero bs=$size count=$(($2 / 4096)) 2>/dev/null || true; done >>"$1"
stat -c %s "$1" """


class Vm(Machine):
    """A VM run by QEMU; its supervisor and QEMU are in the node's network namespace."""

    boot_seconds = 300

    @property
    def agent(self) -> Path:
        """The socket of the node's guest agent."""
        return self.folder / "agent.sock"

    def prepare(self, folder: Path, files: list[Entry]) -> None:
        """The node's own files, for its first start; the disks are made then."""
        (folder / "root").mkdir()
        links = [
            Entry(f"etc/systemd/network/05-{nic.name}.link", 0o644, link_file(self.node, nic).encode("ascii"))
            for nic in self.node.nics
        ]
        mounts = "/dev/vda / ext4 noatime 0 0\n"
        for path, size in self.node.bounded:
            mounts += f"tmpfs {path} tmpfs mode=0755,size={size},X-mount.mkdir 0 0\n"
        own = [Entry("etc/fstab", 0o644, mounts.encode("ascii")), Entry("etc/machine-id", 0o444, machine_id())]
        (folder / "identity.tar").write_bytes(tar([*files, *links, *own]))

    def place(self, command: list[str]) -> list[str]:
        """Where the node's cables end."""
        return ["nsenter", f"--net=/run/netns/{self.lab}.{self.node.name}", "--", *command]

    def leader(self) -> int:
        """QEMU."""
        return next((pid for pid in self.pids() if command_name(pid) == QEMU), 0)

    def path(self, inside: str) -> Path:
        """Not there: the files are on the node's own disk."""
        raise LabError(f"{self.node.name} is a VM: {inside} is not seen from the host")

    def find(self, program: str) -> list[int]:
        """As the node's own /proc tells."""
        return [int(word[len("/proc/") :]) for word in vm_channels.execute(self.agent, FIND, program).split()]

    def signal(self, pids: list[int], number: int) -> None:
        """Send it in the node."""
        vm_channels.execute(self.agent, 'kill -"$@"', str(number), *map(str, pids))

    def stopped(self, pids: list[int]) -> tuple[bool, str]:
        """As the node's own /proc tells."""
        lines = vm_channels.execute(self.agent, STATES, *map(str, pids)).splitlines()
        states = [line.rsplit(")", 1)[1].split()[0] for line in lines]
        return set(states) <= {"T"}, str(states)

    def fill(self, path: str, size: str) -> int:
        """In the node; a filesystem that is made is a tmpfs."""
        try:
            vm_channels.execute(self.agent, MAKE_FILESYSTEM, path, size)
        except LabError as error:
            if "exit status 9" in str(error):
                raise LabError(NO_FILESYSTEM.format(path=path, node=self.node.name)) from error
            raise
        target = f"{path.rstrip('/')}/{FILL}"
        written = int(vm_channels.execute(self.agent, FILL_UP, target, str(FILL_LIMIT), seconds=300))
        if written >= FILL_LIMIT:
            self.empty(path)
            raise LabError(f"{path} on {self.node.name}: still room after {written} bytes")
        return written

    def empty(self, path: str) -> bool:
        """In the node."""
        script = '[ ! -e "$1" ] || { rm "$1"; echo there; }'
        return bool(vm_channels.execute(self.agent, script, f"{path.rstrip('/')}/{FILL}"))

    def supervise(self, parts: Parts) -> int:
        """Start QEMU with the files of the base, and tell it of its cables until it ends."""
        root = self._mount(parts)
        saved = vm_state.folder(parts.image, self.node.memory, self.node.vcpus)
        # A node that has run boots from its disk, as a server does.
        fresh = saved.exists() and not (self.folder / "root.qcow2").exists()
        self._make_disks(root, f"/image/{saved.name}/root.qcow2" if saved.exists() else "")
        tail = cpio([("identity.tar", 0o100600, (self.folder / "identity.tar").read_bytes())])
        (self.folder / "initrd.img").write_bytes((parts.image / "initrd.img").read_bytes() + tail)
        wires = Wires(self.node.nics)
        wires.join()
        if fresh:
            process = self._start(root, parts.kvm, wires, f"/image/{saved.name}/memory")
            try:
                vm_state.revive(self.folder, self.node)
            except LabError as error:
                print(f"lab: {self.node.name} boots, for it could not go on as saved: {error}", flush=True)
                process.kill()
                process.wait()
                fresh = False
        if not fresh:
            process = self._start(root, parts.kvm, wires, "")
        self._watch(process, wires)
        print(f"lab: {self.node.name} ended with {process.returncode}", flush=True)
        return process.returncode

    def _start(self, root: Path, kvm: bool, wires: Wires, saved: str) -> subprocess.Popen[bytes]:
        for name in ("qmp.sock", "agent.sock"):
            (self.folder / name).unlink(missing_ok=True)
        print(f"lab: starting {self.node.name}", flush=True)
        argv = ["chroot", str(root), *command(self.node, kvm, wires.handles, saved)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=list(wires.handles.values()))
        signal.signal(signal.SIGTERM, lambda *_signal: process.terminate())
        return process

    def _mount(self, parts: Parts) -> Path:
        root = self.folder / "root"
        run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root)])
        places = {name: Path("/") / name if name in ("dev", "proc") else parts.programs / name for name in BOUND}
        for name, source in {**places, "node": self.folder, "image": parts.image}.items():
            (root / name).mkdir()
            run(["mount", "--rbind", str(source), str(root / name)])
        for name in MERGED:
            (root / name).symlink_to(f"usr/{name}")
        (root / "tmp").mkdir()
        return root

    def _make_disks(self, root: Path, saved: str) -> None:
        below = [saved, "-F", "qcow2"] if saved else ["/image/disk.raw", "-F", "raw"]
        wanted = {name: ["/node/.new", size] for name, size in disks(self.node).items()}
        for name, words in {**wanted, "root": ["-b", *below, "/node/.new"]}.items():
            made = self.folder / f"{name}.qcow2"
            if not made.exists():
                run(["chroot", str(root), "qemu-img", "create", "-q", "-f", "qcow2", *words])
                (self.folder / ".new").rename(made)

    def _watch(self, process: subprocess.Popen[bytes], wires: Wires) -> None:
        """Until QEMU ends: what becomes of the cables, the VM's NICs are told."""
        told = dict.fromkeys(wires.taps, True)
        while process.poll() is None:
            wires.join()
            now = {nic: wires.carrier(nic) for nic in wires.taps}
            if now != told and (self.folder / "qmp.sock").exists():
                try:
                    with vm_channels.monitor(self.folder / "qmp.sock") as channel:
                        for nic in (nic for nic in now if now[nic] != told[nic]):
                            channel.ask("set_link", {"name": nic, "up": now[nic]})
                            told[nic] = now[nic]
                except LabError as error:
                    print(f"lab: {error}", flush=True)
            time.sleep(WATCH_SECONDS)
