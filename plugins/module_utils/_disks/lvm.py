# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical volume of LVM: made, grown as the VM runs, and removed only when it carries our mark.

The mark is the tag `drover.vm=UUID`, beside `drover.group` with the UUID of the group, as a copy of a group has all its
tags. In a shared group (lvmlockd) a volume is active on the node alone that runs its VM; the hook drover-devices of
role hypervisor sees to that, whoever starts and stops the VM.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .._blocks import Blocks
from .._errors import Failed, Invalid, NotFound, Refused
from .._fields import Field, size_text
from .._identity import logical_of, volume_name
from .._lvm import GROWTH, MADE, Logical, Lvm, check_lvm_name, check_volume_name, device, grow_wiped, wipe
from . import block
from .block import DEVICE
from .kind import Kind, Options, Store, Volume

MARK = "vm"
PART = "{}.part"
# The socket of lvmlockd; without it there are no shared groups.
LOCKS = "/run/lvm/lvmlockd.socket"
LVM = Lvm()


@dataclass(frozen=True)
class Half:
    """The group or the volume: libvirt keeps both in one path, `/dev/VG/LV`."""

    lv: bool

    def get(self, disk: Element) -> str | None:
        """The one half."""
        found = logical_of(DEVICE.get(disk) or "")
        return found[self.lv] or None if found else None

    def put(self, disk: Element, value: str | None) -> None:
        """Write the one half and keep the other."""
        halves = [value if lv == self.lv else Half(lv).get(disk) for lv in (False, True)]
        # The other half may not be there yet; a path must have both.
        DEVICE.put(disk, "/".join(["/dev", *(half or "-" for half in halves)]))


FIELDS = (
    Field("vg", check=check_lvm_name, place=Half(lv=False)),
    Field("lv", check=check_lvm_name, place=Half(lv=True)),
)


def _recognises(disk: Element) -> bool:
    return disk.get("type") == "block" and logical_of(DEVICE.get(disk) or "") is not None


def _fill(options: Options, vm: str, number: int) -> Options:
    return {**block.usual(options), "lv": options.get("lv") or volume_name(vm, number)}


def _identity(options: Options) -> str | None:
    return f"lvm:{options['vg']}/{options['lv']}" if options.get("vg") and options.get("lv") else None


def _complaint(options: Options) -> str | None:
    if options["format"] != "raw":
        return "a disk of type lvm has the format raw"
    return "a logical volume can't be made from a source yet" if options.get("source") else None


def _find(options: Options) -> Logical | None:
    return LVM.volumes().get((options["vg"], options["lv"]))


def inspect(options: Options) -> Volume | None:
    """The volume behind a disk; None when there is none. Raises Refused for what must not become a disk."""
    if not _identity(options):
        return None
    found = _find(options)
    if found is None:
        return None
    if "linear" not in found.layout and "striped" not in found.layout:
        layout = ", ".join(found.layout)
        raise Refused(f"{options['vg']}/{options['lv']} is a volume of another kind ({layout}), not a thick one")
    return Volume(_identity(options) or "", found.size, found.mark.get(MARK))


def rounded(options: Options, size: int) -> int:
    """The size in whole extents of the group."""
    groups = LVM.groups()
    extent = groups[options["vg"]].extent if options["vg"] in groups else 1
    return -(-size // extent) * extent


def _check_new(options: Options) -> int | None:
    try:
        LVM.group(options["vg"])
    except NotFound as error:
        raise Invalid(f"{error.message}; make it (module volume_group)", option="disks") from None
    check_volume_name(options["lv"])
    _check_locks(options["vg"])
    if options.get("size"):
        _check_room(options, options["size"])
    return None


def _check_locks(vg: str) -> None:
    """Raise Refused for a group that other nodes may change at the same time, which would lose volumes.

    Who made it as a group of one node with module volume_group had to say so.
    """
    group = LVM.group(vg)
    if group.shared or group.mark == MADE:
        return
    if remote := sorted(set(LVM.physical(vg)) & set(Blocks().of_san())):
        raise Refused(
            f"volume group {vg} lies on {remote[0]}, a volume of a SAN, and is not shared by lvmlockd: two nodes that "
            "change it at once lose it. Make a shared group (module volume_group), or its volumes by hand, on one node"
        )


def _check_room(options: Options, more: int) -> None:
    vg, lv = options["vg"], options["lv"]
    free = LVM.group(vg).free + _left(vg, lv)
    if more > free:
        raise Refused(
            f"volume group {vg} has {size_text(free)} free; {lv} needs {size_text(more)}: add a device to it or grow "
            "one (module volume_group)"
        )


def _left(vg: str, lv: str) -> int:
    """What an interrupted run of ours has left, which goes first."""
    left = LVM.volumes().get((vg, PART.format(lv)))
    return left.size if left else 0


def create(options: Options, size: int | None, uuid: str) -> bool:
    """Make a volume of zeroes that carries our mark, under its name only when it is complete."""
    vg, lv = options["vg"], options["lv"]
    part = PART.format(lv)
    LVM.forget()
    if (vg, lv) in LVM.volumes():
        raise Refused(f"{vg}/{lv} appeared while it was being made; look at who else uses this name")
    _remove_part(vg, lv, uuid)
    LVM.create(vg, part, size or 0, {MARK: uuid})
    # Whoever activates the whole group, at boot, leaves it alone: only the node that starts its VM has it.
    LVM.autoactivate(vg, part, on=False)
    wipe(vg, part)
    LVM.rename(vg, part, lv)
    _settle(vg, lv)
    return True


def _remove_part(vg: str, lv: str, uuid: str | None) -> None:
    left = LVM.volumes().get((vg, PART.format(lv)))
    if left is None:
        return
    # A volume that was made by hand grows too, and has no mark of a VM.
    if left.mark.get(GROWTH) != lv and (left.mark.get(MARK) != uuid or uuid is None):
        raise Refused(f"{vg}/{PART.format(lv)} exists and is not ours; it is left alone")
    LVM.remove(vg, PART.format(lv))


def _settle(vg: str, lv: str) -> None:
    """A volume of a shared group is free until its VM starts."""
    if LVM.group(vg).shared:
        LVM.activate(vg, lv, "n")


def grow(options: Options, size: int) -> None:
    """Make it bigger, also as its VM runs; in a shared group only the node that has it alone may do that."""
    vg, lv = options["vg"], options["lv"]
    LVM.forget()
    found = _find(options)
    if found is None or found.size >= size:
        return
    if LVM.group(vg).shared and block.look(device(vg, lv)):
        LVM.activate(vg, lv, "ey")
    _remove_part(vg, lv, found.mark.get(MARK))
    grow_wiped(LVM, vg, lv, size)


def _check_grow(options: Options, size: int) -> None:
    found = _find(options)
    _check_locks(options["vg"])
    _check_room(options, size - (found.size if found else 0))


def _marked(_vm: str, uuid: str, _disks: list[Options]) -> list[Volume]:
    """All volumes of all groups with this VM's mark, also what an interrupted run left."""
    try:
        known = LVM.volumes()
    except NotFound:
        return []
    return [
        Volume(f"lvm:{vg}/{lv}", found.size, uuid)
        for (vg, lv), found in sorted(known.items())
        if found.mark.get(MARK) == uuid
    ]


def remove(identity: str, uuid: str) -> None:
    """Delete a volume; looks at the mark once more. LVM refuses one that is open, here or on another node."""
    vg, _slash, lv = identity.partition(":")[2].partition("/")
    LVM.forget()
    found = LVM.volumes().get((vg, lv))
    if found is None:
        return
    if found.mark.get(MARK) != uuid:
        raise Refused(f"{vg}/{lv} no longer carries the mark of this VM; it was left as it is")
    try:
        LVM.remove(vg, lv)
    except Failed as error:
        others = ", ".join(LVM.holders(vg, lv))
        raise Failed(f"{vg}/{lv} was not removed{f', {others} has it' if others else ''}: {error.message}") from None


def _based(identity: str) -> list[str]:
    """The snapshots that somebody has made of it."""
    vg, _slash, lv = identity.partition(":")[2].partition("/")
    return [f"{vg}/{name}" for name in LVM.snapshots(vg, lv)]


def check_free(options: Options) -> None:
    """Raise Refused when something on this node uses the volume, or another node that is alive has it."""
    vg, lv = options["vg"], options["lv"]
    if block.look(device(vg, lv)):
        block.check_free({"path": device(vg, lv)})
        return
    if LVM.group(vg).shared and (others := LVM.holders(vg, lv)):
        raise Refused(f"{vg}/{lv} is held by {', '.join(others)}: a VM may run with it there", holders=others)


STORE = Store(
    inspect,
    _check_new,
    create,
    grow,
    _marked,
    remove,
    grows_open=True,
    check_free=check_free,
    check_grow=_check_grow,
    rounded=rounded,
    based=_based,
)
LVM_VOLUME = Kind("lvm", FIELDS, ("vg", "lv"), _recognises, block.source, _fill, _identity, _complaint, STORE)


def shared_places() -> list[str]:
    """The devices of a SAN, and the folders of shared volume groups, by all their names."""
    groups = Lvm().groups() if os.path.exists(LOCKS) else {}
    return [*Blocks().of_san(), *(f"/dev/{name}" for name, group in groups.items() if group.shared)]
