# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs a VM node: QEMU with its files, disks and cables. All of this is inside of the node's supervisor."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from . import vm_channels, vm_state
from .guest import cpio
from .nodes import Parts
from .run import LabError, run
from .topology import Node
from .vm_hardware import command, disks
from .vm_wire import Wires

# QEMU's programs and libraries, and what they ask of the system.
BOUND = ("usr", "etc", "dev", "proc")
MERGED = ("bin", "sbin", "lib", "lib64")
WATCH_SECONDS = 0.1


class Power:
    """The power of one node, from on to off."""

    def __init__(self, folder: Path, node: Node, parts: Parts) -> None:
        self.folder = folder
        self.node = node
        self.parts = parts

    def run(self) -> int:
        """Start QEMU, and tell it of its cables until it ends; returns how it ended."""
        root = self._mount()
        saved = vm_state.folder(self.parts.image, self.node.memory, self.node.vcpus)
        # A node that has run boots from its disk, as a server does.
        fresh = saved.exists() and not (self.folder / "root.qcow2").exists()
        self._make_disks(root, f"/image/{saved.name}/root.qcow2" if saved.exists() else "")
        tail = cpio([("identity.tar", 0o100600, (self.folder / "identity.tar").read_bytes())])
        (self.folder / "initrd.img").touch(mode=0o600)
        (self.folder / "initrd.img").write_bytes((self.parts.image / "initrd.img").read_bytes() + tail)
        wires = Wires(self.node.nics)
        wires.join()
        process = self._go_on(root, wires, saved) if fresh else None
        process = process or self._start(root, wires, "")
        self._watch(process, wires)
        print(f"lab: {self.node.name} ended with {process.returncode}", flush=True)
        return process.returncode

    def _go_on(self, root: Path, wires: Wires, saved: Path) -> subprocess.Popen[bytes] | None:
        process = self._start(root, wires, f"/image/{saved.name}/memory")
        try:
            vm_state.revive(self.folder, self.node)
        except LabError as error:
            print(f"lab: {self.node.name} boots, for it could not go on as saved: {error}", flush=True)
            process.kill()
            process.wait()
            return None
        return process

    def _start(self, root: Path, wires: Wires, saved: str) -> subprocess.Popen[bytes]:
        for name in ("qmp.sock", "agent.sock"):
            (self.folder / name).unlink(missing_ok=True)
        print(f"lab: starting {self.node.name}", flush=True)
        argv = ["chroot", str(root), *command(self.node, self.parts.kvm, wires.handles, saved)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=list(wires.handles.values()))
        signal.signal(signal.SIGTERM, lambda *_signal: process.terminate())
        return process

    def _mount(self) -> Path:
        root = self.folder / "root"
        run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(root)])
        places = {name: Path("/") / name if name in ("dev", "proc") else self.parts.programs / name for name in BOUND}
        for name, source in {**places, "node": self.folder, "image": self.parts.image}.items():
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
            try:
                wires.join()
                now = {nic: wires.carrier(nic) for nic in wires.taps}
                if now != told:
                    with vm_channels.monitor(self.folder / "qmp.sock") as channel:
                        for nic in (nic for nic in now if now[nic] != told[nic]):
                            channel.ask("set_link", {"name": nic, "up": now[nic]})
                            told[nic] = now[nic]
            except LabError as error:
                # A cable that is just being laid, or QEMU that has just ended or not yet begun to listen.
                print(f"lab: {error}", flush=True)
            time.sleep(WATCH_SECONDS)
