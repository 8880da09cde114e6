# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are systemd-nspawn containers over the cached base, each in its own network namespace and cgroup."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from .identity import Entry
from .nodes import FILL, FILL_LIMIT, NO_FILESYSTEM, Machine, Parts, command_name
from .run import LabError, run

REBOOT = 133
DEVICES = {"net/tun": (10, 200), "userfaultfd": (10, 257)}
KVM_DEVICE = {"kvm": (10, 232)}


def pid_namespace_depth(pid: int) -> list[int]:
    """The ids of a process from the host's namespace inwards; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    line = next((line for line in text.splitlines() if line.startswith("NSpid:")), "")
    return [int(word) for word in line.split()[1:]]


class Container(Machine):
    """A container: this host's kernel, its own network, files and processes."""

    boot_seconds = 60

    def leader(self) -> int:
        """The process id, on the host, of the node's PID 1; 0 when the node is off."""
        depth = len(pid_namespace_depth(os.getpid()))
        for pid in self.pids():
            ids = pid_namespace_depth(pid)
            if len(ids) == depth + 1 and ids[-1] == 1:
                return pid
        return 0

    def path(self, inside: str) -> Path:
        """Where a file of the node is seen from the host: the live view, or what it wrote when it is off."""
        leader = self.leader()
        root = Path(f"/proc/{leader}/root") if leader else self.folder / "upper"
        return root / inside.lstrip("/")

    def prepare(self, folder: Path, files: list[Entry]) -> None:
        """The layer over the base: what is the node's own."""
        for name in ("upper", "work", "root", "dev"):
            (folder / name).mkdir()
        for entry in files:
            path = folder / "upper" / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.data is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(entry.data)
            path.chmod(entry.mode)

    def find(self, program: str) -> list[int]:
        """Process ids, on the host, of the node's processes that run ``program``."""
        return [pid for pid in self.pids() if command_name(pid) == program and len(pid_namespace_depth(pid)) > 1]

    def signal(self, pids: list[int], number: int) -> None:
        """Send it on the host."""
        for pid in pids:
            os.kill(pid, number)

    def stopped(self, pids: list[int]) -> tuple[bool, str]:
        """As the host's /proc tells."""
        paths = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        states = {path.parent.name: path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] for path in paths}
        return set(states.values()) <= {"T"}, str(states)

    def fill(self, path: str, size: str) -> int:
        """From the host, through the container's root; a filesystem that is made is a tmpfs."""
        leader = self.leader()
        if not leader:
            raise LabError(f"{self.node.name} is off")
        inside = ["nsenter", f"--target={leader}", "--mount", "--root", "--"]
        if run([*inside, "mountpoint", "-q", path], check=False).returncode != 0:
            if not size:
                raise LabError(NO_FILESYSTEM.format(path=path, node=self.node.name))
            copy = "/run/lab-fill-copy"
            run([*inside, "mkdir", "-p", path])
            run([*inside, "cp", "-a", path, copy])
            run([*inside, "mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", path])
            run([*inside, "cp", "-a", f"{copy}/.", path])
            run([*inside, "rm", "-r", copy])
        return _write_until_full(Path(f"/proc/{leader}/root") / path.lstrip("/") / FILL, FILL_LIMIT)

    def empty(self, path: str) -> bool:
        """From the host as well; a node that is off has lost its tmpfs and kept its own files."""
        target = self.path(path) / FILL
        there = target.exists()
        target.unlink(missing_ok=True)
        return there

    def supervise(self, parts: Parts) -> int:
        """In a mount namespace of our own, run the container, again when it reboots."""
        folder, root = self.folder, self.folder / "root"
        layers = f"lowerdir={parts.root},upperdir={folder}/upper,workdir={folder}/work"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)])
        # Private device nodes: systemd in the node changes their owner and mode, which must not reach the host's.
        run(["mount", "-t", "tmpfs", "-o", "dev,mode=0755", "tmpfs", str(folder / "dev")])
        devices = {**DEVICES, **(KVM_DEVICE if parts.kvm else {})}
        for name, (major, minor) in devices.items():
            path = folder / "dev" / name
            path.parent.mkdir(exist_ok=True)
            os.mknod(path, 0o020666, os.makedev(major, minor))
            path.chmod(0o666)
        environment = {
            **os.environ,
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_LOCK": "0",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        argv = _nspawn(self, root, parts.repo, devices)
        while True:
            print(f"lab: starting {self.node.name}", flush=True)
            status = _container(argv, environment)
            print(f"lab: {self.node.name} ended with {status}", flush=True)
            if status != REBOOT:
                return status


def _nspawn(machine: Machine, root: Path, repo: Path, devices: dict[str, tuple[int, int]]) -> list[str]:
    name = f"{machine.lab}.{machine.node.name}"
    argv = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--boot", "--settings=no"]
    argv += ["--directory", str(root), "--machine", name, "--hostname", machine.node.name]
    argv += [f"--network-namespace-path=/run/netns/{name}", "--console=read-only", "--capability=all"]
    argv += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--bind-ro={repo}:/repo"]
    argv += [f"--bind={machine.folder}/dev/{device}:/dev/{device}" for device in devices]
    argv += [f"--bind={machine.state}/shared{path}:{path}" for path in machine.topology.shared]
    argv += [f"--tmpfs={path}:mode=0755,size={size}" for path, size in machine.node.bounded]
    return argv


def _container(argv: list[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment)
    signal.signal(signal.SIGTERM, lambda *_signal: process.terminate())
    return process.wait()


def _write_until_full(path: Path, limit: int) -> int:
    written = 0
    with open(path, "ab", buffering=0) as handle:
        for block in (bytes(1 << 20), bytes(4096)):
            try:
                while written < limit:
                    written += handle.write(block)
            except OSError:
                continue
    if written >= limit:
        path.unlink()
        raise LabError(f"{path}: still room after {limit} bytes; that is no bounded filesystem")
    return written
