# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk of a real guest: a small Debian with cloud-init that never booted; made once and kept with the lab's base.

It begins as the lab's own guests do (boot sector, command line, kernel, initial RAM disk, see `drover_lab/guest.py`);
behind that comes a partition with the system.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
from pathlib import Path

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.base import BUILD_SECONDS, Base, cache_dir
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import (
    COMMAND_LINE_ADDRESS,
    COMMAND_LINE_OFFSET,
    IMAGE_SIZE,
    INITRD_OFFSET,
    KERNEL_ADDRESS,
    KERNEL_OFFSET,
    PARTS_OFFSET,
    SETUP_ADDRESS,
    Guests,
    archive,
    kernel_header,
    unsigned,
)
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import lock, run, say

MIRROR = "deb http://deb.debian.org/debian {suite} main\n"
SYSTEM_SIZE = 2 << 30
BLOCK = 4096
SECTOR = 512
PARTITION_TABLE, LINUX = 446, 0x83
COMMAND_LINE = (
    "root=/dev/vda1 console=ttyS0 panic=1 no_timer_check nokaslr mitigations=off lpj=4000000 audit=0 nowatchdog "
    "cryptomgr.notests random.trust_cpu=on loglevel=4"
)
INIT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in virtio_blk scsi_common scsi_mod libata libahci ahci cdrom sr_mod; do $b insmod /$module.ko; done
while [ ! -b /dev/vda1 ]; do $b sleep 0.1; done
$b mount -t ext4 -o noatime /dev/vda1 /root
$b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
"""
# What an initial RAM disk of Debian's own would have loaded too: cloud-init looks for the seed early.
LOADED = ["virtio_blk", "scsi_common", "scsi_mod", "libata", "libahci", "ahci", "cdrom", "sr_mod"]
# What cloud-init looks for first; a host key of each kind would take an emulated CPU minutes.
CLOUD = "datasource_list: [NoCloud, None]\nssh_genkeytypes: [ed25519]\ndisable_root: false\n"
ENABLED = ["systemd-networkd.service", "ssh.service"]
MASKED = ["systemd-networkd-wait-online.service", "e2scrub_all.timer", "fstrim.timer", "getty@tty1.service"]
MODULES = "virtio_net\nisofs\n"


class CloudGuest:
    """``disk``, a raw image of 2 GiB, most of it holes."""

    def __init__(self, base: Base) -> None:
        self.base = base
        key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
        self.disk = base.folder / f"cloud-{key}" / "disk.raw"

    def ensure(self) -> Path:
        """The image, made first if need be; another run that makes it is waited for."""
        guests = Guests(self.base)
        guests.ensure()
        if self.disk.exists():
            return self.disk
        with lock(cache_dir() / "cloud.lock", BUILD_SECONDS):
            if self.disk.exists():
                return self.disk
            for stale in self.base.folder.glob(".cloud-*"):
                shutil.rmtree(stale)
            build = self.base.folder / f".cloud-{os.getpid()}"
            build.mkdir()
            say("making the disk of a guest with cloud-init (once)")
            self._system(build / "root")
            self._disk(build, guests.image.read_bytes()[:SECTOR])
            shutil.rmtree(build / "root")
            build.rename(self.disk.parent)
        return self.disk

    def _system(self, root: Path) -> None:
        run(["cp", "-a", str(self.base.root), str(root)], timeout=BUILD_SECONDS)
        policy, sources = root / "usr/sbin/policy-rc.d", root / "etc/apt/sources.list"
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
        policy.chmod(0o755)
        sources.write_text(MIRROR.format(suite=self.base.topology.suite), encoding="ascii")
        options = [f"--bind-ro={self.base.guest_packages}:/packages", "--resolv-conf=copy-host"]
        options += ["--setenv=DEBIAN_FRONTEND=noninteractive", "--setenv=INITRD=No"]
        packages = [f"/packages/{path.name}" for path in sorted(self.base.guest_packages.glob("*.deb"))]
        self.base.inside(root, ["apt-get", "-o", "APT::Sandbox::User=root", "update"], options)
        install = ["apt-get", "-y", "--no-install-recommends", "-o", "APT::Sandbox::User=root", "install"]
        self.base.inside(root, [*install, "cloud-init", *packages], options)
        policy.unlink()
        self.base.inside(root, ["apt-get", "clean"], [])
        self.base.inside(root, ["systemctl", "enable", *ENABLED], [])
        self.base.inside(root, ["systemctl", "mask", *MASKED], [])
        # Its generator starts dozens of programs; systemd gives up after 90 s, which a busy emulated guest can take.
        self.base.inside(root, ["systemctl", "add-wants", "multi-user.target", "cloud-init.target"], [])
        generator = root / "etc/systemd/system-generators/cloud-init-generator"
        generator.parent.mkdir(exist_ok=True)
        generator.symlink_to("/dev/null")
        (root / "packages").rmdir()
        (root / "etc/modules-load.d/guest.conf").write_text(MODULES, encoding="ascii")
        (root / "etc/cloud/cloud.cfg.d/90_guest.cfg").write_text(CLOUD, encoding="ascii")
        (root / "etc/machine-id").write_text("", encoding="ascii")
        (root / "etc/fstab").write_text("/dev/vda1 / ext4 noatime 0 0\n", encoding="ascii")

    def _disk(self, build: Path, boot: bytes) -> None:
        root, disk = build / "root", build / "disk.raw"
        kernel = bytearray(next((root / "boot").glob("vmlinuz-*")).read_bytes())
        files = {"init": INIT, "bin/busybox": (root / "usr/bin/busybox").read_bytes()}
        for name in LOADED:
            module = next(root.glob(f"usr/lib/modules/*/kernel/drivers/**/{name}.ko.xz"))
            files[f"{name}.ko"] = unsigned(lzma.decompress(module.read_bytes()))
        initrd = archive(files, ["sh"], ["dev", "root"])
        run(["truncate", "-s", str(IMAGE_SIZE + SYSTEM_SIZE), str(disk)])
        mkfs = ["mkfs.ext4", "-q", "-F", "-L", "root", "-b", str(BLOCK), "-d", str(root)]
        mkfs += ["-E", f"offset={IMAGE_SIZE},lazy_itable_init=0,assume_storage_prezeroed=1"]
        run([*mkfs, str(disk), str(SYSTEM_SIZE // BLOCK)], timeout=BUILD_SECONDS)
        with disk.open("r+b") as stream:
            for offset, data in _start(boot, kernel, initrd).items():
                stream.seek(offset)
                stream.write(data)


def _start(boot: bytes, kernel: bytearray, initrd: bytes) -> dict[int, bytes]:
    """What lies before the partition, by its offset."""
    setup = (kernel[0x1F1] + 1) * SECTOR
    place = kernel_header(kernel, len(initrd))
    parts = [
        (KERNEL_OFFSET, setup, SETUP_ADDRESS),
        (COMMAND_LINE_OFFSET, 2048, COMMAND_LINE_ADDRESS),
        (KERNEL_OFFSET + setup, len(kernel) - setup, KERNEL_ADDRESS),
        (INITRD_OFFSET, len(initrd), place),
    ]
    sector = bytearray(boot)
    for number, (offset, size, address) in enumerate(parts):
        struct.pack_into("<III", sector, PARTS_OFFSET + 12 * number, offset // SECTOR, -(-size // SECTOR), address)
    entry = struct.pack("<B3xB3xII", 0x80, LINUX, IMAGE_SIZE // SECTOR, SYSTEM_SIZE // SECTOR)
    sector[PARTITION_TABLE : PARTITION_TABLE + len(entry)] = entry
    line = COMMAND_LINE.encode("ascii").ljust(2048, b"\0")
    return {0: bytes(sector), COMMAND_LINE_OFFSET: line, KERNEL_OFFSET: bytes(kernel), INITRD_OFFSET: initrd}
