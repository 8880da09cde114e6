# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached disk, kernel and initial RAM disk of nodes that are VMs: the base with a kernel of its own."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from pathlib import Path

from .base import BUILD_SECONDS, Base, cache_dir
from .guest import archive, unsigned
from .run import LabError, lock, run, say

FILES = Path(__file__).resolve().parent.parent
DISK_SIZE = "8G"
ENABLED = ["systemd-networkd.service", "ssh.service"]
# What would cost seconds of an emulated boot, and what nobody sits at.
MASKED = ["systemd-networkd-wait-online.service", "serial-getty@ttyS0.service", "getty@tty1.service"]
MASKED += ["e2scrub_all.timer", "fstrim.timer", "systemd-pcrphase.service"]
# Each login would start a service manager of its own, which costs as much as all the rest of it.
MASKED += ["user@.service"]


class VmImage:
    """``disk.raw``, ``vmlinuz`` and ``initrd.img`` of one base; made once, then only read."""

    def __init__(self, base: Base, prepared: bool) -> None:
        self.base = base
        self.source = base.prepared if prepared else base.root
        texts = [Path(__file__).read_bytes(), (FILES / "vm_init.sh").read_bytes(), self.source.name.encode()]
        self.folder = base.folder / f"vm-{hashlib.sha256(b''.join(texts)).hexdigest()[:12]}"

    def ensure(self) -> Path:
        """The folder, made first if need be; another run that makes it is waited for."""
        # QEMU comes from the prepared base: that of this host may be an old one, which emulates badly.
        self.base.ensure(prepared=True)
        if self.folder.exists():
            return self.folder
        with lock(cache_dir() / "vm.lock", BUILD_SECONDS):
            if self.folder.exists():
                return self.folder
            for stale in self.base.folder.glob(".vm-*"):
                shutil.rmtree(stale)
            build = self.base.folder / f".vm-{os.getpid()}"
            build.mkdir()
            self._build(build)
            build.rename(self.folder)
        return self.folder

    def _build(self, build: Path) -> None:
        say("making the disk of VM nodes (once)")
        root = build / "root"
        run(["cp", "-a", str(self.source), str(root)], timeout=BUILD_SECONDS)
        self._install(root)
        self._settle(root)
        kernel = next((root / "boot").glob("vmlinuz-*"))
        shutil.move(kernel, build / "vmlinuz")
        (build / "initrd.img").write_bytes(self._initrd(root))
        (root / "packages").rmdir()
        shutil.copytree(self.base.repo, root / "repo", dirs_exist_ok=True)
        # A disk that is all holes has no old data: nothing needs to be zeroed, now or by the node's kernel later.
        run(["truncate", "-s", DISK_SIZE, str(build / "disk.raw")])
        mkfs = ["mkfs.ext4", "-q", "-F", "-L", "root", "-E", "lazy_itable_init=0,assume_storage_prezeroed=1"]
        run([*mkfs, "-d", str(root), str(build / "disk.raw")], timeout=BUILD_SECONDS)
        shutil.rmtree(root)

    def _install(self, root: Path) -> None:
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
        bind = [f"--bind-ro={self.base.repo}:/repo", f"--bind-ro={self.base.guest_packages}:/packages"]
        # Debian's own initial RAM disk would take long to make, and longer to boot.
        bind += ["--setenv=DEBIAN_FRONTEND=noninteractive", "--setenv=INITRD=No"]
        packages = [f"/packages/{path.name}" for path in sorted(self.base.guest_packages.glob("*.deb"))]
        self.base.inside(root, ["apt-get", "-y", "--no-install-recommends", "install", *packages], bind)
        policy.unlink()

    def _settle(self, root: Path) -> None:
        (root / "etc/modules-load.d/lab.conf").write_text("virtio_net\n", encoding="ascii")
        self.base.inside(root, ["systemctl", "enable", *ENABLED], [])
        self.base.inside(root, ["systemctl", "mask", *MASKED], [])
        # A session of logind costs more than most that is run over ssh: messages, a unit, a look at all of them.
        session = root / "etc/pam.d/common-session"
        lines = session.read_text(encoding="utf-8").splitlines(keepends=True)
        session.write_text("".join(line for line in lines if "pam_systemd" not in line), encoding="utf-8")
        (root / "etc/machine-id").write_text("", encoding="ascii")
        (root / "etc/fstab").write_text("/dev/vda / ext4 noatime 0 0\n", encoding="ascii")

    def _initrd(self, root: Path) -> bytes:
        module = next(root.glob("usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz"), None)
        if not module:
            raise LabError("the kernel of VM nodes has no module virtio_blk")
        files = {
            # The sanity tests of Ansible allow no file of a collection to begin like this.
            "init": b"#!/bin/busybox sh\n" + (FILES / "vm_init.sh").read_bytes(),
            "bin/busybox": (root / "usr/bin/busybox").read_bytes(),
            "virtio_blk.ko": unsigned(lzma.decompress(module.read_bytes())),
        }
        return archive(files, ["sh"], ["dev", "root"])
