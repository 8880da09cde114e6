# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes as machines that can be switched on and off, whatever they are made of."""

from __future__ import annotations

import abc
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from . import cgroups
from .identity import Entry, identity
from .run import LabError, run, spawn, wait_for
from .topology import Node, Topology

# What ``fill`` writes; more than the limit is no filesystem that somebody meant to fill.
FILL = ".lab-fill"
FILL_LIMIT = 4 << 30
NO_FILESYSTEM = "{path} on {node} is no filesystem of its own: filling it would fill more than that"


@dataclass(frozen=True)
class Parts:
    """What the nodes of a lab are made of, all of it in the cache and only read."""

    root: Path
    """The lowest layer of containers' files."""
    repo: Path
    """The package repository."""
    programs: Path
    """The root folder with QEMU in it."""
    image: Path
    """The folder with the disk, kernel and initial RAM disk of VMs."""
    kvm: bool


def command_name(pid: int) -> str:
    """The base name of a process's program; "" when it is gone."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").replace(" (deleted)", ""))
    except OSError:
        return ""


class Machine(abc.ABC):
    """One node of a lab. How it comes to life, and how one reaches into it, is up to its kind."""

    boot_seconds: float
    """How long it may take from power to ssh."""

    def __init__(self, lab: str, topology: Topology, node: Node, state: Path) -> None:
        self.lab = lab
        self.topology = topology
        self.node = node
        self.state = state
        self.folder = state / "nodes" / node.name

    def pids(self) -> list[int]:
        """Every process of the node on the host, its supervisor included."""
        return cgroups.members(self.lab, self.node.name)

    def configure(self) -> bool:
        """Give the node its identity. All or nothing: a run that is killed leaves no half-made node."""
        if self.folder.exists():
            return False
        made = self.folder.with_name(f".{self.node.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        key = made / "host_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.node.name, "-f", str(key)])
        self.prepare(made, identity(self.topology, self.node, key, self.state / "id_ed25519.pub"))
        made.rename(self.folder)
        return True

    def host_key(self) -> str:
        """The node's public host key."""
        return (self.folder / "host_key.pub").read_text(encoding="ascii")

    def power_on(self, program: Path) -> bool:
        """Start the node's supervisor in its cgroup, unless the node runs."""
        if self.pids():
            return False
        command = [sys.executable, str(program), "--name", self.lab, "supervise", self.node.name]
        # The mount namespace holds the node's mounts: when its processes end, none is left on the host.
        argv = ["unshare", "--mount", "--", *self.place(command)]
        spawn(cgroups.inside(self.lab, self.node.name, argv), self.folder / "console.log")
        return True

    def power_off(self) -> bool:
        """Pull the plug: SIGKILL for what the node stands and falls with, so that all of it ends at once."""
        leader = self.leader()
        if leader:
            os.kill(leader, signal.SIGKILL)
        try:
            wait_for(f"end of {self.node.name}", lambda: (not self.pids(), f"processes {self.pids()}"), 5)
        except LabError:
            # A node that was just about to start has no leader yet.
            cgroups.kill(self.pids)
        return bool(leader)

    @abc.abstractmethod
    def prepare(self, folder: Path, files: list[Entry]) -> None:
        """Make what the node needs in its ``folder``, its own ``files`` among it."""

    def place(self, command: list[str]) -> list[str]:
        """The command that runs the supervisor where this kind needs it."""
        return command

    @abc.abstractmethod
    def supervise(self, parts: Parts) -> int:
        """Be the node's hardware until it is off; the inside of the supervisor. Returns the exit status."""

    @abc.abstractmethod
    def leader(self) -> int:
        """The process on the host whose end is the node's end; 0 when the node is off."""

    @abc.abstractmethod
    def path(self, inside: str) -> Path:
        """Where a file of the node is seen from the host. LabError for a kind whose files are not."""

    @abc.abstractmethod
    def find(self, program: str) -> list[int]:
        """Ids of the processes that run ``program``: the host's ids for a container, its own for a VM."""

    @abc.abstractmethod
    def signal(self, pids: list[int], number: int) -> None:
        """Send a signal to processes that :meth:`find` found."""

    @abc.abstractmethod
    def stopped(self, pids: list[int]) -> tuple[bool, str]:
        """Whether all threads of these processes are stopped, and their states."""

    def _signal(self, program: str, number: int) -> list[int]:
        pids = self.find(program)
        if not pids:
            raise LabError(f"no process {program!r} on {self.node.name}")
        self.signal(pids, number)
        return pids

    def freeze(self, program: str) -> list[int]:
        """Stop the processes of a program (its file's name) as they are, all their threads; returns their ids."""
        pids = self._signal(program, signal.SIGSTOP)
        what = f"every thread of {program} on {self.node.name} stopped"
        # A signal is delivered when a thread next runs.
        wait_for(what, lambda: self.stopped(pids), 10, step=0.01)
        return pids

    def thaw(self, program: str) -> list[int]:
        """Let frozen processes go on."""
        return self._signal(program, signal.SIGCONT)

    @abc.abstractmethod
    def fill(self, path: str, size: str) -> int:
        """Fill the filesystem mounted at ``path``, made first with ``size`` if there is none; returns the bytes."""

    @abc.abstractmethod
    def empty(self, path: str) -> bool:
        """Take away what :meth:`fill` wrote; returns whether it was there."""
