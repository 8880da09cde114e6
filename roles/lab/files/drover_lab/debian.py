# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached image of a guest that is a real Debian with cloud-init, as a template of a cloud is; no boot loader."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from .base import Base
from .guest import archive, unsigned
from .vm_image import VmImage

# The second one lets its file system grow with the disk.
PACKAGES = ["cloud-init", "e2fsprogs"]
# As in the initial RAM disk of a distribution's image: cloud-init looks for its drive when systemd has just begun.
MODULES = ["scsi_common", "scsi_mod", "sd_mod", "libata", "libahci", "ahci", "cdrom", "sr_mod", "isofs", "virtio_blk"]
INIT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
tries=0
disk=/dev/vda
while [ ! -b $disk ] && [ $tries -lt 100 ]; do
    [ ! -b /dev/sda ] || disk=/dev/sda
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o noatime $disk /root
$b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
"""


class DebianImage(VmImage):
    """``disk.raw``, ``vmlinuz`` and ``initrd.img``; nobody's identity is in it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, prepared=False)
        own = hashlib.sha256(Path(__file__).read_bytes() + self.folder.name.encode()).hexdigest()[:12]
        self.folder = base.folder / f"debian-{own}"

    def _install(self, root: Path) -> None:
        super()._install(root)
        bind = [f"--bind-ro={self.base.repo}:/repo", "--setenv=DEBIAN_FRONTEND=noninteractive"]
        self.base.inside(root, ["apt-get", "-y", "--no-install-recommends", "install", *PACKAGES], bind)

    def _settle(self, root: Path) -> None:
        super()._settle(root)
        # It is found by what it is, whatever controller it is on.
        (root / "etc/fstab").write_text("LABEL=root / ext4 noatime 0 0\n", encoding="ascii")

    def _initrd(self, root: Path) -> bytes:
        files = {"init": INIT, "bin/busybox": (root / "usr/bin/busybox").read_bytes()}
        for number, name in enumerate(MODULES):
            # What is no module is in the kernel.
            for path in root.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz"):
                files[f"modules/{number}-{name}.ko"] = unsigned(lzma.decompress(path.read_bytes()))
        return archive(files, ["sh"], ["dev", "root"])
