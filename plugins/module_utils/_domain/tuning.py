# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a disk is read and written: caches, threads, what is given back, how much may pass, what the guest is told. Pure.

https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms, driver, iotune, target and blockio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .._errors import Invalid
from .._fields import Field, between, size_text
from .._xml import Nonzero, Property, drop, find, make

WAYS = ("total", "read", "write")
DIRECT = ("none", "directsync")
MOST = 2**63 - 1
TURNING = ("scsi", "sata", "ide")  # The buses on which a guest is told the rate; ide is on machines of others.


@dataclass(frozen=True)
class Limits:
    """The limits of one kind, requests or bytes a second, in all or each way; other words of iotune stay."""

    unit: str

    def get(self, disk: Element) -> dict[str, int] | None:
        """The limits; None without any."""
        found = {way: Property(f"iotune/{way}_{self.unit}_sec", int).get(disk) for way in WAYS}
        return {way: number for way, number in found.items() if number} or None

    def put(self, disk: Element, value: Mapping[str, int]) -> None:
        """Write exactly these."""
        for way in WAYS:
            name = f"{way}_{self.unit}_sec"
            old = find(disk, f"iotune/{name}")
            if way in value:
                make(disk, f"iotune/{name}").text = str(value[way])
            elif old is not None:
                drop(make(disk, "iotune"), old)
        tune = find(disk, "iotune")
        if tune is not None and not len(tune):
            drop(disk, tune)


def _check_rate(value: int) -> int:
    """What disks say of themselves (ATA, word 217; SCSI, VPD page B1). libvirt takes any number."""
    if value not in (0, 1) and not 1025 <= value <= 65534:
        raise ValueError(f"{value} is not a rotation rate; write 1 for an SSD, 1025 to 65534 for others, or 0 for none")
    return value


def _check_block(value: int) -> int:
    """What QEMU takes (hw/block/block.c); libvirt takes any number, and the VM would not start."""
    if value and (value & (value - 1) or not 512 <= value <= 2**21):
        raise ValueError(f"{value} is not the size of a block; write 512, 1KiB, 2KiB, 4KiB ... 2MiB, or 0 for none")
    return value


ROTATION_RATE = Nonzero("target/@rotation_rate", int)
PHYSICAL = Nonzero("blockio/@physical_block_size", int)


def check_limits(value: Mapping[str, int | None]) -> dict[str, int]:
    """The limits that are some; one for both ways excludes one for each."""
    given = {way: between(0, MOST)(number) for way, number in value.items() if number}
    if "total" in given and len(given) > 1:
        raise ValueError("write total, or read and write; both don't go together")
    return given


def check(disk: Element, where: str) -> None:
    """Raise Invalid for what libvirt would refuse, or QEMU at the start."""
    driver = {name: Property(f"driver/@{name}").get(disk) for name in ("cache", "io", "queues")}
    if driver["io"] == "native" and driver["cache"] not in DIRECT:
        raise Invalid(f"{where}: io=native needs cache=none or cache=directsync", option=where)
    bus = Property("target/@bus").get(disk)
    if driver["queues"] and bus != "virtio":
        raise Invalid(f"{where}: queues are for the bus virtio", option=where)
    if ROTATION_RATE.get(disk) and (bus not in TURNING or disk.get("device") == "cdrom"):
        raise Invalid(f"{where}: rotation_rate is for disks on the buses {', '.join(TURNING)}, no cdrom", option=where)
    logical = Property("blockio/@logical_block_size", int).get(disk) or 0
    if 0 < (PHYSICAL.get(disk) or 0) < logical:
        raise Invalid(f"{where}: physical_block_size is less than the logical one of {logical}", option=where)


def shown(name: str, value: Mapping[str, int]) -> str:
    """The limits of `bandwidth` (bytes) or `iops` for people."""
    if name == "bandwidth":
        return words(value)
    return ", ".join(f"{way} {number}" for way, number in value.items()) or "none"


def words(value: Mapping[str, int]) -> str:
    """The limits of bytes for people."""
    return ", ".join(f"{way} {size_text(number)}/s" for way, number in value.items()) or "none"


IOPS_FIELDS = tuple(Field(way, type="int") for way in WAYS)
BYTES_FIELDS = tuple(Field(way, type="size") for way in WAYS)
TUNING = (
    Field(
        "cache",
        choices=("none", "writeback", "writethrough", "directsync", "unsafe"),
        place=Property("driver/@cache"),
    ),
    Field("io", choices=("native", "threads", "io_uring"), place=Property("driver/@io")),
    Field("discard", choices=("unmap", "ignore"), place=Property("driver/@discard")),
    Field("detect_zeroes", choices=("off", "on", "unmap"), place=Property("driver/@detect_zeroes")),
    Field("queues", type="int", check=between(0, 256), place=Nonzero("driver/@queues", int)),
    Field("rotation_rate", type="int", check=_check_rate, place=ROTATION_RATE),
    Field("physical_block_size", type="size", check=_check_block, place=PHYSICAL),
    Field("iops", type="dict", fields=IOPS_FIELDS, check=check_limits, place=Limits("iops"), when="live"),
    Field("bandwidth", type="dict", fields=BYTES_FIELDS, check=check_limits, place=Limits("bytes"), when="live"),
)
