# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are full VMs: a kernel of their own, with all that a container's host may lack."""

from __future__ import annotations

from pathlib import Path

from . import vm_channels
from .identity import Entry, machine_id, tar
from .nodes import FILL, FILL_LIMIT, NO_FILESYSTEM, Machine, Parts, command_name
from .run import LabError
from .vm_hardware import link_file
from .vm_power import Power

QEMU = "qemu-system-x86_64"
# Each in its node, through the agent. A program is told by its file, as on the host.
FIND = """find /proc -maxdepth 2 -path "/proc/[0-9]*/exe" \\( -lname "*/$1" -o -lname "*/$1 (deleted)" \\) \\
    -printf '%h\\n' 2>/dev/null || true"""
STATES = "for pid; do cat /proc/$pid/task/*/stat; done"
MAKE_FILESYSTEM = """mountpoint -q "$1" && exit
[ -n "$2" ] || exit 9
mkdir -p "$1" && cp -a "$1" /run/lab-fill-copy
mount -t tmpfs -o size="$2",mode=0755 tmpfs "$1"
cp -a /run/lab-fill-copy/. "$1" && rm -r /run/lab-fill-copy"""
FILL_UP = """{ dd if=/dev/zero bs=1M count=$(($2 >> 20)); dd if=/dev/zero bs=4k count=256; } 2>/dev/null >>"$1" || true
stat -c %s "$1" """


class Vm(Machine):
    """A VM run by QEMU; its supervisor and QEMU are in the node's network namespace."""

    # Emulated, on a busy machine.
    boot_seconds = 600
    answer_seconds = 30

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
        # The host's private key is in it.
        (folder / "identity.tar").touch(mode=0o600)
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

    def _inside(self, script: str, *words: str, seconds: float = 60) -> str:
        if not self.leader():
            raise LabError(f"{self.node.name} is off")
        return vm_channels.execute(self.folder / "agent.sock", script, *words, seconds=seconds)

    def find(self, program: str) -> list[int]:
        """As the node's own /proc tells."""
        return [int(word[len("/proc/") :]) for word in self._inside(FIND, program).split()]

    def signal(self, pids: list[int], number: int) -> None:
        """Send it in the node."""
        self._inside('kill -"$@"', str(number), *map(str, pids))

    def stopped(self, pids: list[int]) -> tuple[bool, str]:
        """As the node's own /proc tells."""
        lines = self._inside(STATES, *map(str, pids)).splitlines()
        states = [line.rsplit(")", 1)[1].split()[0] for line in lines]
        return set(states) <= {"T"}, str(states)

    def fill(self, path: str, size: str) -> int:
        """In the node; a filesystem that is made is a tmpfs."""
        try:
            self._inside(MAKE_FILESYSTEM, path, size)
        except LabError as error:
            if "exit status 9" in str(error):
                raise LabError(NO_FILESYSTEM.format(path=path, node=self.node.name)) from error
            raise
        target = f"{path.rstrip('/')}/{FILL}"
        written = int(self._inside(FILL_UP, target, str(FILL_LIMIT), seconds=300))
        if written >= FILL_LIMIT:
            self.empty(path)
            raise LabError(f"{path} on {self.node.name}: still room after {written} bytes")
        return written

    def empty(self, path: str) -> bool:
        """In the node."""
        script = '[ ! -e "$1" ] || { rm "$1"; echo there; }'
        return bool(self._inside(script, f"{path.rstrip('/')}/{FILL}"))

    def supervise(self, parts: Parts) -> int:
        """QEMU with its cables, until it ends."""
        return Power(self.folder, self.node, parts).run()
