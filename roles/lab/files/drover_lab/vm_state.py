# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The saved state of a node that has booted and is nobody yet. A new node goes on from it instead of booting.

An emulated boot takes 40 seconds and more of a processor, for each node of each lab. The state has no NIC and no extra
disk: those are plugged in when the node has got its name, its keys and the time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

from .base import BUILD_SECONDS, Base, cache_dir
from .guest import cpio
from .identity import Entry, machine_id, tar
from .run import LabError, lock, run, say, wait_for
from .topology import Node
from .vm_channels import execute, monitor
from .vm_hardware import core, devices

BOOT_SECONDS = 400
# $1 is the time now. A container manager also gives each container a boot id by mounting over the kernel's.
BECOME = """date -s @"$1" >/dev/null
umask 077
cat >/var/lib/lab-identity
tar -x -f /var/lib/lab-identity -C /
hostname "$(cat /etc/hostname)"
cat /proc/sys/kernel/random/uuid >/run/lab-boot-id
chmod 444 /run/lab-boot-id
mount --bind /run/lab-boot-id /proc/sys/kernel/random/boot_id
mount -a
udevadm control --reload
networkctl reload
systemctl --no-block reload ssh
systemctl --no-block restart systemd-journald"""


def folder(image: Path, memory: str, vcpus: int) -> Path:
    """Where the state of nodes of that size is kept: ``root.qcow2`` and ``memory``."""
    key = repr(core(memory, vcpus, kvm=False)).encode()
    return image / f"state-{hashlib.sha256(key).hexdigest()[:12]}"


def ensure(base: Base, image: Path, memory: str, vcpus: int) -> None:
    """Boot a node of that size and save it, unless that was done."""
    wanted = folder(image, memory, vcpus)
    if wanted.exists():
        return
    with lock(cache_dir() / "vm.lock", BUILD_SECONDS):
        if wanted.exists():
            return
        for stale in image.glob(".state-*"):
            shutil.rmtree(stale)
        build = image / f".state-{os.getpid()}"
        build.mkdir()
        say(f"booting a VM node with {memory} of memory, to start others from its state (once)")
        _boot(base, image, build, core(memory, vcpus, kvm=False))
        build.rename(wanted)


def _boot(base: Base, image: Path, build: Path, argv: list[str]) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(build / "key")])
    key = Entry("etc/ssh/ssh_host_ed25519_key", 0o600, (build / "key").read_bytes())
    nobody = tar([key, Entry("etc/hostname", 0o644, b"nobody\n"), Entry("etc/machine-id", 0o444, machine_id())])
    initrd = (image / "initrd.img").read_bytes() + cpio([("identity.tar", 0o100600, nobody)])
    (build / "initrd.img").write_bytes(initrd)
    bind = [f"--bind={build}:/node", f"--bind-ro={image}:/image", "--volatile=overlay"]
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/image/disk.raw", "-F", "raw", "/node/root.qcow2"]
    base.inside(base.prepared, create, bind)
    failed: list[str] = []

    def qemu() -> None:
        try:
            base.inside(base.prepared, argv, bind)
        except LabError as error:
            failed.append(str(error))

    thread = threading.Thread(target=qemu)
    thread.start()
    try:
        wait_for("answer of the VM's agent", lambda: _booted(build / "agent.sock", failed), BOOT_SECONDS, step=1)
        _save(build)
    finally:
        if thread.is_alive():
            with monitor(build / "qmp.sock") as channel:
                channel.ask("quit")
        thread.join()
    for name in ("key", "key.pub", "initrd.img"):
        (build / name).unlink()


def _booted(agent: Path, failed: list[str]) -> tuple[bool, str]:
    if failed:
        raise LabError(f"QEMU ended: {failed[0]}")
    try:
        said = execute(agent, "systemctl is-system-running --wait || true; systemctl start ssh; sync", seconds=120)
    except LabError as error:
        return False, str(error)
    return "running" in said or "degraded" in said, said


def _save(build: Path) -> None:
    with monitor(build / "qmp.sock", 120) as channel:
        channel.ask("stop")
        channel.ask("migrate", {"uri": "file:/node/memory"})

        def done() -> tuple[bool, str]:
            status = channel.ask("query-migrate").get("status", "")
            return status == "completed", status

        wait_for("the saved state", done, 60)


def revive(node_folder: Path, node: Node) -> None:
    """Make the node of a restored state the one whose identity lies in the folder; LabError when it does not go on."""
    wait_for("QEMU's monitor", lambda: ((node_folder / "qmp.sock").exists(), "no socket"), 20, step=0.02)
    agent, feed = node_folder / "agent.sock", (node_folder / "identity.tar").read_bytes()
    with monitor(node_folder / "qmp.sock", 120) as channel:

        def loaded() -> tuple[bool, str]:
            status = channel.ask("query-status")["status"]
            return status == "paused", status

        wait_for("the restored state", loaded, 60, step=0.05)
        channel.ask("cont")
        execute(agent, BECOME, f"{time.time():.3f}", feed=feed, seconds=60)
        for device in devices(node):
            channel.ask("device_add", dict(device))
