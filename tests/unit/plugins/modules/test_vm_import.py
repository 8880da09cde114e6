# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of other machines become disks of VMs: module vm with `source_format`; what must never be believed (F-67)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks import booting, imported
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.tests.unit.images import content as content_of
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
lab = test_vm.lab
MIB = 2**20
BASE: dict[str, Any] = {"name": "pc1", "memory": "64MiB", "vcpus": 1}


def mbr(*types: int, code: bytes = b"") -> bytes:
    """The first sector of a disk with these partitions."""
    table = b"".join(bytes([0, 0, 0, 0, kind]) + bytes(11) for kind in types).ljust(64, b"\0")
    return code.ljust(booting.TABLE, b"\0") + table + booting.SIGNED


def gpt(*kinds: bytes, sector: int = 512, code: bytes = b"") -> bytes:
    """The beginning of a disk with partitions of these types."""
    header = struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128)
    entries = b"".join(kind + bytes(112) for kind in kinds)
    return mbr(booting.PROTECTIVE, code=code).ljust(sector, b"\0") + header.ljust(sector, b"\0") + entries


LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le


class Pc:
    """The disk of a physical machine, in each format, and module vm."""

    def __init__(self, folder: Path, cloned: Any, where: Path) -> None:
        self.folder, self.lab, self.where = folder, cloned, where
        self.content = mbr(0x83, code=b"boot").ljust(MIB, b"\1") + bytes(4 * MIB) + b"data" * 1000 + bytes(4192)
        self.content += bytes(-len(self.content) % MIB)
        self.raw = folder / "pc1.raw"
        self.raw.write_bytes(self.content)

    def image(self, kind: str, *options: str) -> Path:
        path = self.folder / f"pc1.{kind}"
        if kind != "raw":
            qemu_img("convert", "-f", "raw", "-O", kind, *options, self.raw, path)
        return path

    def disk(self, path: Path, kind: str, **options: Any) -> dict[str, Any]:
        given = {"type": "file", "format": "qcow2", "source": str(path), "source_format": kind}
        return {**given, **options}

    def refused(self, words: str, **options: Any) -> None:
        disk = {**self.disk(self.raw, "raw"), **options}
        done = self.lab.run(**BASE, disks=[{name: value for name, value in disk.items() if value is not None}])
        assert done["failed"] and words in done["msg"] and not done["changed"], done["msg"]
        assert self.lab.node.domains() == {} and list(self.where.glob("*drover-*")) == []

    def holds(self, name: str) -> bytes:
        return content_of(self.where / name, self.folder / "seen", name.rpartition(".")[2])


@pytest.fixture
def pc(tmp_path, lab):
    (tmp_path / "pc").mkdir()
    return Pc(tmp_path / "pc", lab, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", imported.FORMATS)
def test_each_format(pc, kind):
    options = ["-o", "subformat=streamOptimized"] if kind == "vmdk" else []
    path = pc.image(kind, *options)
    before = path.read_bytes()
    done = pc.lab.both(**BASE, disks=[pc.disk(path, kind, target="sda", bus="sata")])
    made = pc.where / "drover-pc1-0.qcow2"
    size = done["vm"]["disks"][0]["size"]
    assert done["actions"][0].startswith(f"create {made} (qcow2, "), done["actions"]
    assert done["actions"][0].endswith(f", a copy of {path}, which is {kind})")
    assert f"{path} has" not in json.dumps(done.get("warnings"))
    assert pc.holds(made.name).ljust(size, b"\0") == pc.content.ljust(size, b"\0") and path.read_bytes() == before
    assert os.getxattr(made, "user.drover.vm").decode() == pc.lab.node.domain("pc1").uuid
    assert made.stat().st_mode & 0o777 == 0o600 and made.stat().st_blocks * 512 < 3 * MIB
    # Its driver is there now: the same disk on another bus, which is no new disk.
    moved = pc.lab.both(**BASE, disks=[pc.disk(path, kind, target="vda")])
    assert [words.split()[0] for words in moved["actions"]] == ["change"], moved["actions"]
    disks = pc.lab.run(**BASE)["vm"]["disks"]
    assert [(one["target"], one["bus"], one["path"]) for one in disks] == [("vda", "virtio", str(made))]


def test_from_the_drivers_that_every_system_has_to_better_ones(pc):
    nic, first = {"bridge": "br0"}, pc.disk(pc.raw, "raw", target="sda", bus="sata")
    old = pc.lab.both(**BASE, disks=[first], nics=[{**nic, "model": "e1000e"}])
    pc.lab.both(**BASE, nics=[])
    new = pc.lab.both(**BASE, disks=[{"type": "file", "target": "vda", "format": "qcow2"}], nics=[nic])["vm"]
    assert [(one["target"], one["bus"]) for one in new["disks"]] == [("vda", "virtio")]
    assert (new["nics"][0]["model"], new["nics"][0]["mac"]) == ("virtio", old["vm"]["nics"][0]["mac"])
    assert new["disks"][0]["path"] == old["vm"]["disks"][0]["path"]
    assert pc.holds("drover-pc1-0.qcow2") == pc.content


def test_raw_bigger_and_with_its_checksum(pc):
    checksum = f"sha256:{hashlib.sha256(pc.content).hexdigest()}".upper()
    pc.refused("has the checksum sha256:", checksum="sha256:" + "0" * 64)
    pc.lab.both(**BASE, disks=[pc.disk(pc.raw, "raw", format="raw", size="16MiB", checksum=checksum)])
    made = pc.where / "drover-pc1-0.raw"
    assert made.read_bytes() == pc.content.ljust(16 * MIB, b"\0") and made.stat().st_blocks * 512 < 3 * MIB


def test_a_copy_that_was_killed_is_made_again(pc, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_args: Any, **_named: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(imported.template, "sync", die)
        with pytest.raises(Killed):
            pc.lab.run(**BASE, disks=[pc.disk(pc.raw, "raw")])
    assert [one.name for one in pc.where.glob("*drover-*")] == [".drover-pc1-0.qcow2.drover-part"]
    pc.lab.both(**BASE, disks=[pc.disk(pc.raw, "raw")])
    assert [one.name for one in pc.where.glob("*drover-*")] == ["drover-pc1-0.qcow2"]


def test_what_can_not_become_a_disk(pc, monkeypatch):
    pc.refused("can't be read on this node", source="/srv/none.raw")
    pc.refused("is neither a file nor a block device", source=str(pc.folder))
    pc.refused("a linked clone is made of a template", clone="linked")
    pc.refused("checksum goes with source_format", source_format=None, checksum="sha256:" + "0" * 64)
    pc.refused("there is none", source=None, size="8MiB")
    for wrong in ("md5:00", "sha256:" + "0" * 63, "sha512:https://site/SHA512SUMS"):
        pc.refused("is no checksum", checksum=wrong)
    pc.refused("bytes, more than", size="1MiB")
    with monkeypatch.context() as patch:
        patch.setattr(imported, "free_space", lambda folder: 4096)
        pc.refused("MiB are free")
    done = pc.lab.run(**BASE, disks=[{**test_vm.SAN, "source_format": "raw"}])
    assert done["failed"] and "source_format is for disks of type file" in done["msg"]


def test_no_image_makes_qemu_open_another_file(pc, monkeypatch):
    """F-67: QEMU never sees one of these, so it opens nothing; what it opens all the same is seen by its answer."""
    secret, evil = pc.folder / "shadow", pc.folder / "evil"
    secret.write_bytes(b"root:secret".ljust(MIB, b"\0"))
    asked: list[Any] = []
    monkeypatch.setattr(imported, "run_json", lambda *words, **named: asked.append(words))

    def backed(*words: Any) -> Any:
        qemu_img("create", "-q", *words, evil, "1M")
        return evil

    cases = [
        ("qcow2", backed("-u", "-f", "qcow2", "-F", "raw", "-b", secret).read_bytes(), "is based on"),
        ("qcow2", backed("-u", "-f", "qcow2", "-F", "raw", "-b", "json:{}").read_bytes(), "is based on json:{}"),
        ("qcow2", backed("-f", "qcow2", "-o", f"data_file={pc.folder}/d,data_file_raw=on").read_bytes(), "a data file"),
        ("vmdk", f'# Disk DescriptorFile\nRW 2048 FLAT "{secret}" 0\n'.encode(), "names other files"),
        ("vmdk", struct.pack("<4sIIQ", b"KDMV", 3, 3, 0).ljust(1024, b"\0"), "names other files"),
        ("vpc", bytes(512) + struct.pack(">8s52xI", b"conectix", 4).ljust(512, b"\0"), "it holds what differs"),
        ("raw", pc.image("qcow2").read_bytes(), "is qcow2, not raw"),
        ("raw", pc.image("vmdk").read_bytes(), "is vmdk, not raw"),
        ("raw", pc.image("vdi").read_bytes(), "is vdi, not raw"),
        ("raw", pc.image("vhdx").read_bytes(), "is vhdx, not raw"),
        ("raw", pc.image("vpc", "-o", "subformat=fixed").read_bytes(), "is vpc, not raw"),
        ("raw", f'# Disk DescriptorFile\nRW 2048 FLAT "{secret}" 0\n'.encode(), "is vmdk, not raw"),
        ("vmdk", pc.content, "is not vmdk"),
        ("vdi", pc.image("qcow2").read_bytes(), "is qcow2, not vdi"),
    ]
    for declared, content, words in cases:
        evil.write_bytes(content)
        pc.refused(words, source=str(evil), source_format=declared)
        with pytest.raises(Refused):
            imported.prove(str(evil), declared, "evil")
    assert asked == []


def test_what_only_qemu_can_tell_of_an_image(pc, monkeypatch):
    """Its answer is judged: a parent that is named in a VMDK, extents, encryption, damage."""
    real = imported.run_json
    path = pc.image("vmdk")
    more = {
        "is based on /etc/shadow": {"backing-filename": "/etc/shadow"},
        "is based on /etc/passwd": {"format-specific": {"data": {"extents": [{"filename": "/etc/passwd"}]}}},
        "is encrypted": {"encrypted": True},
        "is corrupt": {"format-specific": {"data": {"corrupt": True}}},
    }
    for words, facts in more.items():
        with monkeypatch.context() as patch:
            patch.setattr(imported, "run_json", lambda argv, facts=facts, **named: {**real(argv, **named), **facts})
            pc.refused(words, source=str(path), source_format="vmdk")
    path.write_bytes(path.read_bytes()[:600])
    pc.refused("is not vmdk: ", source=str(path), source_format="vmdk")


def test_a_device_that_is_used_is_left_alone(pc, monkeypatch):
    """The kernel says so to who asks for it alone; without the right to make devices, its answer is a fake's."""
    monkeypatch.setattr(imported.stat, "S_ISBLK", lambda mode: True)
    pc.refused("its source_format is raw", source=str(pc.image("vmdk")), source_format="vmdk")
    real = os.open

    def busy(path: Any, flags: int, *more: Any, **named: Any) -> Any:
        if flags & os.O_EXCL and path == str(pc.raw):
            raise OSError(16, "Device or resource busy")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(imported.os, "open", busy)
    pc.refused("is in use on this node (Device or resource busy)")


BOOTS = {
    "nothing": (b"", (), ""),
    "a data disk": (mbr(0x83), (), ""),
    "MBR": (mbr(0x83, code=b"grub"), ("bios",), "MBR with boot code"),
    "MBR with ESP": (mbr(0xEF), ("efi",), "MBR with an EFI"),
    "both": (mbr(0xEF, code=b"grub"), ("efi", "bios"), "MBR with an EFI"),
    "GPT": (gpt(LINUX), (), ""),
    "GPT of UEFI": (gpt(booting.ESP, LINUX, code=b"windows"), ("efi",), "GPT with an EFI system partition"),
    "GPT of BIOS": (gpt(booting.BIOS_BOOT, LINUX, code=b"grub"), ("bios",), "a BIOS boot partition"),
    "GPT of Debian's cloud": (gpt(booting.BIOS_BOOT, booting.ESP), ("efi", "bios"), "and a BIOS boot partition"),
    "sectors of 4 KiB": (gpt(LINUX, booting.ESP, sector=4096), ("efi",), "GPT with an EFI system partition"),
    "rubbish": (gpt()[:520] + b"\xff" * 5000, (), ""),
}


@pytest.mark.parametrize("name", BOOTS)
def test_what_a_disk_boots_with(name):
    head, firmware, words = BOOTS[name]
    found = booting.of(head.ljust(booting.HEAD, b"\0"))
    assert found.firmware == firmware and words in found.words


def test_a_firmware_that_can_not_boot_it_is_named(pc, monkeypatch):
    told = "has an MBR with boot code, so it boots with firmware: bios, and the machine has efi"
    path = pc.image("vmdk")
    assert booting.mismatch("x", booting.read(str(path), "vmdk"), "efi") == f"x {told}"
    assert booting.mismatch("x", booting.read(str(path), "vmdk"), "bios") is None
    pc.raw.write_bytes(gpt(booting.ESP).ljust(8 * MIB, b"\0"))
    done = pc.lab.run(**BASE, disks=[pc.disk(pc.raw, "raw")])
    words = f"{pc.raw} has a GPT with an EFI system partition, so it boots with firmware: efi, and the machine has bios"
    assert words in json.dumps(done["warnings"])
    # What is on a second disk is nobody's firmware, and a disk that is there is not asked again.
    monkeypatch.setattr(booting, "read", None)
    assert pc.lab.run(**BASE, disks=[pc.disk(pc.raw, "raw"), pc.disk(pc.raw, "raw")])["changed"]
