# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes: systemd-nspawn containers over the cached base, each in its own network namespace and cgroup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import cgroups
from .run import LabError, run, spawn, wait_for
from .topology import Node, Topology, hosts_file, networkd_files

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


def command_name(pid: int) -> str:
    """The base name of a process's program; "" when it is gone."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").replace(" (deleted)", ""))
    except OSError:
        return ""


class Machine:
    """One node of a lab as a machine that can be switched on and off."""

    def __init__(self, lab: str, topology: Topology, node: Node, state: Path) -> None:
        self.lab = lab
        self.topology = topology
        self.node = node
        self.state = state
        self.folder = state / "nodes" / node.name

    def pids(self) -> list[int]:
        """Every process of the node, its supervisor on the host included."""
        return cgroups.members(self.lab, self.node.name)

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

    def configure(self) -> bool:
        """Give the node its identity. All or nothing: a run that is killed leaves no half-made node."""
        if self.folder.exists():
            return False
        made = self.folder.with_name(f".{self.node.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        upper = made / "upper"
        for folder in ("etc/systemd/network", "etc/ssh", "root/.ssh"):
            (upper / folder).mkdir(parents=True)
        for folder in ("work", "root", "dev"):
            (made / folder).mkdir()
        (upper / "root").chmod(0o700)
        (upper / "root/.ssh").chmod(0o700)
        (upper / "etc/hostname").write_text(self.node.name + "\n", encoding="ascii")
        (upper / "etc/hosts").write_text(hosts_file(self.topology), encoding="ascii")
        for name, text in networkd_files(self.topology, self.node).items():
            (upper / "etc/systemd/network" / name).write_text(text, encoding="ascii")
        shutil.copyfile(self.state / "id_ed25519.pub", upper / "root/.ssh/authorized_keys")
        key = str(upper / "etc/ssh/ssh_host_ed25519_key")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.node.name, "-f", key])
        made.rename(self.folder)
        return True

    def host_key(self) -> str:
        """The node's public host key."""
        return (self.folder / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii")

    def power_on(self, command: list[str]) -> bool:
        """Start the supervisor ``command`` in the node's cgroup, unless the node runs."""
        if self.pids():
            return False
        # The mount namespace holds the node's root: when its processes end, no mount is left on the host.
        argv = ["unshare", "--mount", "--", *command]
        spawn(cgroups.inside(self.lab, self.node.name, argv), self.folder / "console.log")
        return True

    def power_off(self) -> bool:
        """Pull the plug: SIGKILL for the node's PID 1, so that every process of the node ends at once."""
        leader = self.leader()
        if leader:
            os.kill(leader, signal.SIGKILL)
        try:
            wait_for(f"end of {self.node.name}", lambda: (not self.pids(), f"processes {self.pids()}"), 5)
        except LabError:
            # A node that was just about to start has no PID 1 yet.
            cgroups.kill(self.pids)
        return bool(leader)

    def find(self, program: str) -> list[int]:
        """Process ids, on the host, of the node's processes that run ``program``."""
        return [pid for pid in self.pids() if command_name(pid) == program and len(pid_namespace_depth(pid)) > 1]


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


def supervise(machine: Machine, base: Path, repo: Path, kvm: bool) -> int:
    """Be the node's hardware: in a mount namespace of our own, run the container, again when it reboots."""
    folder, root = machine.folder, machine.folder / "root"
    layers = f"lowerdir={base},upperdir={folder}/upper,workdir={folder}/work"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)])
    # Private device nodes: systemd in the node changes their owner and mode, which must not reach the host's.
    run(["mount", "-t", "tmpfs", "-o", "dev,mode=0755", "tmpfs", str(folder / "dev")])
    devices = {**DEVICES, **(KVM_DEVICE if kvm else {})}
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
    argv = _nspawn(machine, root, repo, devices)
    while True:
        print(f"lab: starting {machine.node.name}", flush=True)
        status = _container(argv, environment)
        print(f"lab: {machine.node.name} ended with {status}", flush=True)
        if status != REBOOT:
            return status


def supervisor_command(program: Path, lab: str, node: str) -> list[str]:
    """The command line that comes back to :func:`supervise`."""
    return [sys.executable, str(program), "--name", lab, "supervise", node]
