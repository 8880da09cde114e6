# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's guests: a disk image of 32 MiB that boots a real kernel and counts, and a boot sector that counts.

The image has no file system. GRUB reads the kernel by its place:

    sector 0       GRUB's boot sector        4096   settings (text)     8192   the counter's record
    32 KiB         GRUB                      1 MiB  kernel              16 MiB initial RAM disk
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from .base import BUILD_SECONDS, Base, cache_dir
from .run import LabError, lock, run, say

FILES = Path(__file__).resolve().parent.parent
MIB = 1 << 20
CONFIG_OFFSET, CONFIG_SIZE = 4096, 4096
RECORD_OFFSET, RECORD_SIZE = 8192, 512
CORE_OFFSET, KERNEL_OFFSET, INITRD_OFFSET = 32768, MIB, 16 * MIB
IMAGE_SIZE = 32 * MIB
MAGIC = "DROVER-GUEST 1\n"
COMMAND_LINE = (
    "quiet console=ttyS0 panic=1 no_timer_check nokaslr mitigations=off lpj=4000000 audit=0 nowatchdog "
    "cryptomgr.notests random.trust_cpu=on net.ifnames=0 memhp_default_state=online"
)
EARLY = ["virtio_blk", "failover", "net_failover", "virtio_net"]
LATE = ["button", "evdev", "virtio_balloon", "virtio-rng", "virtio_mem", "virtio_scsi"]


@dataclass(frozen=True)
class Record:
    """One word of a guest: what it wrote to its disk before it sent it."""

    boot_id: str
    counter: int
    monotonic_ms: int
    failed_writes: int
    name: str


def parse_record(data: bytes) -> Record | None:
    """A record from a datagram or a disk; None when it is none."""
    words = data.split(b"\0")[0].decode("ascii", "replace").split()
    if len(words) < 5 or words[0] != "DROVER1":
        return None
    try:
        return Record(words[1], int(words[2]), int(words[3]), int(words[4]), words[5] if len(words) > 5 else "")
    except ValueError:
        return None


def settings_block(settings: dict[str, str]) -> bytes:
    """The settings as they lie on the disk: ``drover.KEY=value`` after the mark. LabError when one cannot be."""
    text = MAGIC
    for key, value in settings.items():
        if not value or any(ord(letter) <= 32 or ord(letter) > 126 for letter in value):
            raise LabError(f"guest setting {key}={value!r}: letters without spaces only")
        text += f"drover.{key}={value}\n"
    if len(text) >= CONFIG_SIZE:
        raise LabError("guest settings: too long")
    return text.encode("ascii").ljust(CONFIG_SIZE, b"\0")


def cpio(entries: list[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """An archive in the format that the kernel unpacks, from (path, mode, content, device numbers)."""
    made = bytearray()
    closing = ("TRAILER!!!", 0, b"", (0, 0))
    for number, (path, mode, data, device) in enumerate([*entries, closing], 1):
        name = path.encode("ascii") + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        made += bytes(-len(made) % 4)
        made += data
        made += bytes(-len(made) % 4)
    return bytes(made)


class Guests:
    """The built parts of the guests, kept in the cache: ``kernel``, ``initrd``, ``image``, ``boot_sector``."""

    def __init__(self, base: Base) -> None:
        self.base = base
        sources = [FILES / "counter.c", FILES / "boot_sector.s", Path(__file__)]
        key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
        self.folder = base.folder / f"guest-{key}"
        self.kernel = self.folder / "vmlinuz"
        self.initrd = self.folder / "initrd.img"
        self.image = self.folder / "tiny.img"
        self.boot_sector = self.folder / "boot_sector.img"

    def ensure(self) -> None:
        """Build what is missing."""
        if self.folder.exists():
            return
        self.base.ensure()
        with lock(cache_dir() / "guest.lock", BUILD_SECONDS):
            if self.folder.exists():
                return
            for stale in self.base.folder.glob(".guest-*"):
                shutil.rmtree(stale)
            build = self.base.folder / f".guest-{os.getpid()}"
            build.mkdir()
            _Builder(self.base, build).all()
            build.rename(self.folder)

    def write_image(self, target: Path, settings: dict[str, str], size: int = IMAGE_SIZE) -> None:
        """Write a bootable disk (file or block device) for one guest; ``size`` in bytes, at least 32 MiB."""
        self.ensure()
        if size < IMAGE_SIZE:
            raise LabError(f"a guest's disk has at least {IMAGE_SIZE} bytes")
        block = settings_block(settings)
        with open(self.image, "rb") as template, open(target, "r+b" if target.exists() else "w+b") as disk:
            shutil.copyfileobj(template, disk, MIB)
            disk.seek(CONFIG_OFFSET)
            disk.write(block)
            if target.is_file():
                disk.truncate(size)


class _Builder:
    def __init__(self, base: Base, folder: Path) -> None:
        self.base = base
        self.folder = folder
        self.packages = folder / "packages"

    def all(self) -> None:
        """Everything, in order."""
        say("building the guests (once)")
        for package in sorted(self.base.guest_packages.glob("*.deb")):
            run(["dpkg-deb", "-x", str(package), str(self.packages)])
        self._boot_sector()
        kernel = next(self.packages.glob("boot/vmlinuz-*"))
        shutil.copyfile(kernel, self.folder / "vmlinuz")
        self._initrd()
        self._image()
        shutil.rmtree(self.packages)

    def _boot_sector(self) -> None:
        made, image = self.folder / "boot_sector.o", self.folder / "boot_sector.img"
        run(["as", "--32", "-o", str(made), str(FILES / "boot_sector.s")])
        run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(image), str(made)])
        made.unlink()

    def _modules(self, names: list[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            for path in self.packages.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz"):
                found[f"{name}.ko"] = lzma.decompress(path.read_bytes())
        return found

    def _libraries(self, program: str) -> dict[str, bytes]:
        """Path → content of the shared libraries of a program of the packages."""
        shown = self._with_packages(["ldd", f"/guest/{program}"])
        found = {}
        for line in shown.splitlines():
            path = next((word for word in line.split() if word.startswith("/")), "")
            if path:
                root = self.packages if path.startswith("/guest/") else self.base.root
                name = path[len("/guest") :] if path.startswith("/guest/") else path
                # The loader looks for each library where it is on a Debian; only its own path is fixed.
                place = "lib64" if "ld-linux" in name else "usr/lib/x86_64-linux-gnu"
                found[f"{place}/{os.path.basename(name)}"] = _resolve(root, name).read_bytes()
        return found

    def _with_packages(self, argv: list[str]) -> str:
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--volatile=overlay"]
        nspawn += [f"--bind-ro={self.packages}:/guest", f"--bind={self.folder}:/made", "-D", str(self.base.root)]
        nspawn += ["--setenv=LD_LIBRARY_PATH=/guest/usr/lib/x86_64-linux-gnu", "--", *argv]
        isolated = ["unshare", "--mount", "--fork", "--kill-child=KILL", "--", *nspawn]
        return run(isolated, before=self.base.join, env={"SYSTEMD_NSPAWN_LOCK": "0"}).stdout

    def _initrd(self) -> None:
        init = self.folder / "init"
        run(["gcc", "-static", "-O2", "-s", "-Wall", "-Wextra", "-o", str(init), str(FILES / "counter.c")])
        agent = "usr/sbin/qemu-ga"
        busybox = (_resolve(self.packages, "usr/bin/busybox")).read_bytes()
        files = {"init": init.read_bytes(), "bin/busybox": busybox, agent: (self.packages / agent).read_bytes()}
        files.update(self._libraries(agent))
        early, late = self._modules(EARLY), self._modules(LATE)
        files.update({f"modules/{name}": data for name, data in {**early, **late}.items()})
        # In the order in which they are to be loaded.
        files["modules/early"] = "\n".join(early).encode()
        files["modules/late"] = "\n".join(late).encode()
        files["sbin/shutdown"] = b"#!/bin/sh\nsync\ncase \"$*\" in *-r*) reboot -f ;; *) poweroff -f ;; esac\n"
        folders = {"dev", "proc", "sys", "run", "tmp", "etc", "root"}
        for path in files:
            folders.update(str(parent) for parent in Path(path).parents if str(parent) != ".")
        entries = [(name, 0o040755, b"", (0, 0)) for name in sorted(folders)]
        entries.append(("dev/console", 0o020600, b"", (5, 1)))
        entries += [(name, 0o100755, data, (0, 0)) for name, data in sorted(files.items())]
        for name in ("sh", "cat", "ls", "ip", "ping", "mount", "dd", "poweroff", "reboot", "sync", "free", "ps", "nc"):
            entries.append((f"bin/{name}", 0o120777, b"/bin/busybox", (0, 0)))
        (self.folder / "initrd.img").write_bytes(cpio(entries))
        init.unlink()

    def _image(self) -> None:
        kernel, initrd = (self.folder / "vmlinuz").read_bytes(), (self.folder / "initrd.img").read_bytes()
        if KERNEL_OFFSET + len(kernel) > INITRD_OFFSET or INITRD_OFFSET + len(initrd) > IMAGE_SIZE:
            raise LabError("the kernel or the initial RAM disk has outgrown its place in the image")
        lines = f"linux (hd0){KERNEL_OFFSET // 512}+{-(-len(kernel) // 512)} {COMMAND_LINE}\n"
        lines += f"initrd (hd0){INITRD_OFFSET // 512}+{-(-len(initrd) // 512)}\nboot\n"
        (self.folder / "grub.cfg").write_text(lines, encoding="ascii")
        grub = "/guest/usr/lib/grub/i386-pc"
        self._with_packages(
            ["/guest/usr/bin/grub-mkimage", "-O", "i386-pc", "-d", grub, "-p", "(hd0)", "-c", "/made/grub.cfg"]
            + ["-o", "/made/core.img", "biosdisk", "linux", "boot"]
        )
        boot = bytearray((self.packages / "usr/lib/grub/i386-pc/boot.img").read_bytes())
        core = bytearray((self.folder / "core.img").read_bytes())
        if CORE_OFFSET + len(core) > KERNEL_OFFSET:
            raise LabError("GRUB has outgrown its place in the image")
        # GRUB's core lies behind the settings: tell its boot sector, and its own first sector, where.
        struct.pack_into("<Q", boot, 0x5C, CORE_OFFSET // 512)
        struct.pack_into("<Q", core, 0x1F4, CORE_OFFSET // 512 + 1)
        with open(self.folder / "tiny.img", "wb") as image:
            parts = {0: boot, CONFIG_OFFSET: settings_block({}), CORE_OFFSET: core}
            for offset, data in {**parts, KERNEL_OFFSET: kernel, INITRD_OFFSET: initrd}.items():
                image.seek(offset)
                image.write(data)
            image.truncate(IMAGE_SIZE)
        for name in ("core.img", "grub.cfg"):
            (self.folder / name).unlink()


def _resolve(root: Path, name: str) -> Path:
    """A file of a root folder, its symbolic links followed as inside that root."""
    path = root / name.lstrip("/")
    for _ in range(8):
        # A merged /usr: /lib and /lib64 are links there.
        for merged in ("lib64", "lib", "bin", "sbin"):
            if name.lstrip("/").startswith(merged + "/") and not path.exists():
                path = root / "usr" / name.lstrip("/")
        if not path.is_symlink():
            return path
        name = os.path.normpath(os.path.join("/", os.path.dirname(path.relative_to(root)), os.readlink(path)))
        path = root / name.lstrip("/")
    return path
