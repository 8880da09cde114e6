# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's guests: a disk image of 32 MiB that boots a real kernel and counts, and a boot sector that counts.

The image has no file system; its boot sector reads the kernel by its place:

    0       boot sector (boot_linux.s)    4096    settings (text)           8192    the counter's record
    32 KiB  kernel command line           1 MiB   kernel                    16 MiB  initial RAM disk
    20 MiB  what the guest unpacks once it counts: agent, shell, more modules (its length before it)
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
COMMAND_LINE_OFFSET, KERNEL_OFFSET, INITRD_OFFSET, EXTRA_OFFSET = 32768, MIB, 16 * MIB, 20 * MIB
PARTS_OFFSET = 440 - 48
SETUP_ADDRESS, COMMAND_LINE_ADDRESS, KERNEL_ADDRESS = 0x80000, 0x8E000, 0x100000
IMAGE_SIZE = 32 * MIB
MAGIC = "DROVER-GUEST 1\n"
COMMAND_LINE = (
    "quiet console=ttyS0 panic=1 no_timer_check nokaslr mitigations=off lpj=4000000 audit=0 nowatchdog "
    "cryptomgr.notests random.trust_cpu=on net.ifnames=0 memhp_default_state=online lsm=capability "
    "initcall_blacklist=jent_mod_init,load_system_certificate_list"
)
BUSYBOX = ["sh", "cat", "ls", "ip", "ping", "mount", "dd", "poweroff", "reboot", "sync", "free", "ps", "nc", "dmesg"]
# The guest agent calls it with the options of systemd's.
SHUTDOWN = b'#!/bin/sh\nsync\ncase "$*" in *-r*) reboot -f ;; *) poweroff -f ;; esac\n'
Entry = tuple[str, int, bytes]
EARLY = ["virtio_blk", "failover", "net_failover", "virtio_net"]
LATE = ["button", "evdev", "virtio_balloon", "virtio-rng", "virtio_mem"]
# For who asks for it in the guest (busybox insmod /modules/NAME.ko).
SPARE = ["efivarfs"]


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


def cpio(entries: list[Entry]) -> bytes:
    """An archive in the format that the kernel unpacks, from (path, mode, content)."""
    made = bytearray()
    for number, (path, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode("ascii") + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        made += bytes(-len(made) % 4)
        made += data
        made += bytes(-len(made) % 4)
    return bytes(made)


def archive(files: dict[str, bytes], busybox: list[str], folders: list[str]) -> bytes:
    """An archive of these files with the folders that they need, and names of busybox's programs."""
    wanted = set(folders)
    for path in (*files, *(f"bin/{name}" for name in busybox)):
        wanted.update(str(parent) for parent in Path(path).parents if str(parent) != ".")
    entries: list[Entry] = [(name, 0o040755, b"") for name in sorted(wanted)]
    entries += [(name, 0o100755, data) for name, data in sorted(files.items())]
    entries += [(f"bin/{name}", 0o120777, b"/bin/busybox") for name in busybox]
    return cpio(entries)


def unsigned(module: bytes) -> bytes:
    """A kernel module without its signature: to verify it costs time, and nothing here asks for it."""
    mark = b"~Module signature appended~\n"
    if not module.endswith(mark):
        return module
    length = struct.unpack(">I", module[-len(mark) - 4 : -len(mark)])[0]
    return module[: -len(mark) - 12 - length]


class Guests:
    """The built parts of the guests, kept in the cache: ``kernel``, ``initrd``, ``image``, ``boot_sector``."""

    def __init__(self, base: Base) -> None:
        self.base = base
        sources = [FILES / "counter.c", FILES / "boot_linux.s", FILES / "boot_sector.s", Path(__file__)]
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

    def write_boot_sector(self, target: Path, size: int = MIB) -> None:
        """Write the disk (file or block device) of the smallest guest; ``size`` in bytes."""
        self.ensure()
        with open(target, "r+b" if target.exists() else "w+b") as disk:
            disk.write(self.boot_sector.read_bytes().ljust(17 * 512, b"\0"))
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
        (self.folder / "boot_sector.img").write_bytes(self._assemble("boot_sector"))
        kernel = next(self.packages.glob("boot/vmlinuz-*"))
        shutil.copyfile(kernel, self.folder / "vmlinuz")
        self._initrd()
        self._image()
        shutil.rmtree(self.packages)

    def _assemble(self, name: str) -> bytearray:
        made, image = self.folder / f"{name}.o", self.folder / f"{name}.bin"
        run(["as", "--32", "-o", str(made), str(FILES / f"{name}.s")])
        run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(image), str(made)])
        data = bytearray(image.read_bytes())
        made.unlink()
        image.unlink()
        return data

    def _modules(self, stage: str, names: list[str]) -> dict[str, bytes]:
        """The modules of a stage, and their list in the order in which they are to be loaded."""
        found = {}
        for name in names:
            for path in self.packages.glob(f"usr/lib/modules/*/kernel/**/{name}.ko.xz"):
                found[f"modules/{name}.ko"] = unsigned(lzma.decompress(path.read_bytes()))
        found[f"modules/{stage}"] = "\n".join(os.path.basename(name) for name in found).encode()
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
        options = ["--volatile=overlay", f"--bind-ro={self.packages}:/guest"]
        options.append("--setenv=LD_LIBRARY_PATH=/guest/usr/lib/x86_64-linux-gnu")
        return self.base.inside(self.base.root, argv, options)

    def _initrd(self) -> None:
        """Two archives: what counting needs, and what may come later. A kernel given directly gets both at once."""
        init = self.folder / "init"
        run(["gcc", "-static", "-O2", "-s", "-Wall", "-Wextra", "-o", str(init), str(FILES / "counter.c")])
        first = self._modules("early", EARLY)
        first["init"] = init.read_bytes()
        agent = "usr/sbin/qemu-ga"
        second = {**self._modules("late", LATE), **self._modules("spare", SPARE)}
        second.update(self._libraries(agent))
        second[agent] = (self.packages / agent).read_bytes()
        second["bin/busybox"] = _resolve(self.packages, "usr/bin/busybox").read_bytes()
        second["sbin/shutdown"] = SHUTDOWN
        (self.folder / "first.cpio").write_bytes(archive(first, [], ["dev", "proc", "sys", "run", "tmp"]))
        (self.folder / "second.cpio").write_bytes(archive(second, BUSYBOX, ["etc", "root"]))
        parts = [(self.folder / name).read_bytes() for name in ("first.cpio", "second.cpio")]
        (self.folder / "initrd.img").write_bytes(b"".join(parts))
        init.unlink()

    def _image(self) -> None:
        kernel = bytearray((self.folder / "vmlinuz").read_bytes())
        initrd, extra = ((self.folder / name).read_bytes() for name in ("first.cpio", "second.cpio"))
        if KERNEL_OFFSET + len(kernel) > INITRD_OFFSET or INITRD_OFFSET + len(initrd) > EXTRA_OFFSET:
            raise LabError("the kernel or the initial RAM disk has outgrown its place in the image")
        if EXTRA_OFFSET + len(extra) + 512 > IMAGE_SIZE:
            raise LabError("the guest's programs have outgrown their place in the image")
        boot = self._assemble("boot_linux")
        setup = (kernel[0x1F1] + 1) * 512
        place = kernel_header(kernel, len(initrd))
        parts = [
            (KERNEL_OFFSET, setup, SETUP_ADDRESS),
            (COMMAND_LINE_OFFSET, 2048, COMMAND_LINE_ADDRESS),
            (KERNEL_OFFSET + setup, len(kernel) - setup, KERNEL_ADDRESS),
            (INITRD_OFFSET, len(initrd), place),
        ]
        for number, (offset, size, address) in enumerate(parts):
            struct.pack_into("<III", boot, PARTS_OFFSET + 12 * number, offset // 512, -(-size // 512), address)
        content: dict[int, bytes | bytearray] = {
            0: boot,
            CONFIG_OFFSET: settings_block({}),
            COMMAND_LINE_OFFSET: COMMAND_LINE.encode("ascii"),
            KERNEL_OFFSET: kernel,
            INITRD_OFFSET: initrd,
            EXTRA_OFFSET: str(len(extra)).encode("ascii").ljust(512, b"\0") + extra,
        }
        with open(self.folder / "tiny.img", "wb") as image:
            for offset, data in content.items():
                image.seek(offset)
                image.write(data)
            image.truncate(IMAGE_SIZE)
        for name in ("first.cpio", "second.cpio"):
            (self.folder / name).unlink()


def kernel_header(kernel: bytearray, initrd: int) -> int:
    """Fill in the kernel's header as a boot loader does; returns the address for an initial RAM disk of that size."""
    preferred, needed = struct.unpack_from("<QI", kernel, 0x258)
    place = -(-(preferred + needed) // MIB) * MIB
    kernel[0x210] = 0xFF  # an unnamed boot loader
    kernel[0x211] |= 0x80  # heap_end_ptr is valid
    struct.pack_into("<II", kernel, 0x218, place, initrd)
    struct.pack_into("<H", kernel, 0x224, 0xDE00)
    struct.pack_into("<I", kernel, 0x228, COMMAND_LINE_ADDRESS)
    return int(place)


def _resolve(root: Path, name: str) -> Path:
    """A file of a root folder, its symbolic links followed as inside that root."""
    path = root / name.lstrip("/")
    for _bit in range(8):
        # A merged /usr: /lib and /lib64 are links there.
        for merged in ("lib64", "lib", "bin", "sbin"):
            if name.lstrip("/").startswith(merged + "/") and not path.exists():
                path = root / "usr" / name.lstrip("/")
        if not path.is_symlink():
            return path
        name = os.path.normpath(os.path.join("/", os.path.dirname(path.relative_to(root)), os.readlink(path)))
        path = root / name.lstrip("/")
    return path
