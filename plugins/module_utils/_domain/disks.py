# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a VM: its options, and what they are in the domain XML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .._disks import imported, template
from .._disks.block import BLOCK
from .._disks.file import FILE, FORMATS
from .._disks.iscsi import ISCSI, check_wwid
from .._disks.kind import ANOTHER, Kind
from .._disks.lvm import LVM_VOLUME
from .._disks.rbd import RBD
from .._errors import Invalid, Refused
from .._fields import Field
from .._identity import target_name, target_number
from .._xml import Flag, Property, add_device, devices, drop, find, target_of, text_of
from . import metadata, tuning
from .boot import BOOT_ORDER
from .facts import disk_identity, unit_of

KINDS: dict[str, Kind] = {kind.name: kind for kind in (ISCSI, FILE, RBD, BLOCK, LVM_VOLUME)}
TARGET = re.compile(r"(vd|sd|hd)[a-z]{1,2}", re.ASCII)
SERIAL = re.compile(r"[A-Za-z0-9_.+-]{1,20}", re.ASCII)
MIB = 2**20
Pair = tuple[Mapping[str, Any], dict[str, Any], "Element | None"]
OF_FILES = ("clone", "source_format", "checksum")
SEED = "ua-drover-seed"  # libvirt keeps names that begin with ua- for us


def check_target(value: str) -> str:
    """The name of a disk on its bus."""
    if not TARGET.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a guest's disk; write vda, vdb, sda ...")
    return value


def _check_serial(value: str) -> str:
    if value and not SERIAL.fullmatch(value):
        raise ValueError(f"{value!r} is not a serial number: 1 to 20 letters, digits and . _ + -")
    return value


def _check_size(value: int) -> int:
    if value % MIB or not MIB <= value <= 2**50:
        raise ValueError(f"{value} bytes are not whole mebibytes from 1MiB to 1PiB")
    return value


COMMON = (
    Field("target", check=check_target, place=Property("target/@dev"), fixed=ANOTHER),
    Field("device", choices=("disk", "cdrom"), place=Property("@device"), fixed=ANOTHER),
    Field("bus", choices=("virtio", "scsi", "sata"), place=Property("target/@bus"), fixed=ANOTHER),
    Field("format", choices=FORMATS, place=Property("driver/@type"), fixed=ANOTHER),
    Field("serial", check=_check_serial, place=Property("serial")),
    Field("error_policy", choices=("stop", "report", "enospace"), place=Property("driver/@error_policy")),
    Field("rerror_policy", choices=("stop", "report"), place=Property("driver/@rerror_policy")),
    Field("readonly", type="bool", place=Flag("readonly")),
    BOOT_ORDER,
    *tuning.TUNING,
)
DISKS: tuple[Field, ...] = (
    Field("type", choices=tuple(KINDS), required=True, fixed=ANOTHER),
    *COMMON,
    Field("size", type="size", check=_check_size, when="live"),
    Field("source", type="path", fixed="it says what a new volume starts as"),
    Field("source_format", choices=imported.FORMATS, fixed="it says how the source of a new volume is read"),
    Field("checksum", check=imported.check_checksum, fixed="the source of a new volume must have it"),
    Field("clone", choices=("linked", "full"), when="live"),
    Field("wwid", check=check_wwid, when="unseen"),
    *(field for kind in KINDS.values() for field in kind.fields),
)


def read(disk: Element) -> dict[str, Any] | None:
    """The options of one disk of a domain; None for a kind of storage that this module does not know."""
    kind = _kind(disk)
    if kind is None:
        return None
    options: dict[str, Any] = {"type": kind.name}
    options.update({field.name: field.place.get(disk) for field in (*COMMON, *kind.fields)})
    options["device"] = options["device"] or "disk"
    if options["device"] == "cdrom":
        # libvirt leaves it out of an empty drive that runs.
        options["format"] = options["format"] or "raw"
    return options


def read_all(root: Element) -> list[dict[str, Any]]:
    """The options of all disks that this module knows, in their order."""
    said = metadata.DISKS.get(root)
    found = [(read(disk), unit_of(disk)) for disk in devices(root, "disk")]
    own = [(options, {"wwid": said.get(unit, {}).get("wwid")} if unit else {}) for options, unit in found if options]
    return [{**options, **words} for options, words in own]


def identity(options: Mapping[str, Any]) -> str | None:
    """The name by which the disk's storage is the same on every node."""
    return KINDS[options["type"]].identity(dict(options))


def filled(wanted: Sequence[Mapping[str, Any]], vm: str) -> list[dict[str, Any]]:
    """The disks as declared, completed with what follows from the VM's name and their place in the list."""
    result: list[dict[str, Any]] = []
    numbers = {"disk": 0, "cdrom": 0}
    for options in wanted:
        device = options.get("device") or "disk"
        target = options.get("target")
        number = target_number(target) if target else numbers[device]
        numbers[device] = number + 1
        result.append(KINDS[options["type"]].fill({**options, "device": device}, vm, number))
    return result


def write(root: Element, wanted: Sequence[Mapping[str, Any]], vm: str) -> dict[str, Mapping[str, Any]]:
    """Make the disks of the definition exactly these; kinds that this module does not know stay.

    A disk is found by its target, else by its storage. Returns the disks as declared, by target: size, source and
    clone are no part of a definition. Raises Invalid, Refused.
    """
    present = [disk for disk in devices(root, "disk") if _kind(disk) is not None]
    pairs = [(given, options, _match(present, given, options)) for given, options in zip(wanted, filled(wanted, vm))]
    pairs = _with_drives(present, pairs)
    _check_once(pairs)
    _check_apart(pairs)
    kept = [disk for _given, _options, disk in pairs if disk is not None]
    parent = find(root, "devices")
    gone: dict[str, str | None] = {}
    for disk in present:
        if parent is not None and not any(disk is other for other in kept):
            old = read(disk) or {"target": "", "device": ""}
            gone[old["target"]] = identity(old) if old["device"] == "disk" else None
            drop(parent, disk)
    declared: dict[str, Mapping[str, Any]] = {}
    for place, (given, options, found) in enumerate(pairs):
        if found is None:
            _add(root, options, f"disks[{place}]")
            _check_not_swapped(options, gone, f"disks[{place}]")
        else:
            _change(found, given, f"disks[{place}]")
            options["target"] = target_of(found)
        declared[options["target"]] = {**given, "clone": options.get("clone")}
    _write_wwids(root, declared)
    return declared


def _write_wwids(root: Element, declared: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the declared WWIDs in the record of the VM. Raises Invalid for a disk that is not asked for its WWID."""
    said, own = metadata.DISKS.get(root), {}
    for disk in devices(root, "disk"):
        target, unit = target_of(disk), unit_of(disk)
        given = declared.get(target or "", {}).get("wwid")
        if given and not unit:
            raise Invalid(f"disk {target}: wwid is for disks of type iscsi", option="disks")
        words = said.get(unit or "", {}) if given is None else {"wwid": given} if given else {}
        own.update({unit: words} if unit else {})
    metadata.DISKS.put(root, own)


def _with_drives(present: Sequence[Element], pairs: Sequence[Pair]) -> list[Pair]:
    """A drive whose medium is another one, or none, is still that drive: the next of its kind that nobody names."""
    kept = [found for _given, _options, found in pairs if found is not None]
    spare = [disk for disk in present if disk.get("device") == "cdrom" and not any(disk is other for other in kept)]
    result = []
    for given, options, found in pairs:
        named = given.get("target") or options["device"] != "cdrom"
        same = [] if found is not None or named else [disk for disk in spare if _kind(disk) is KINDS[options["type"]]]
        spare = [disk for disk in spare if disk not in same[:1]]
        result.append((given, options, same[0] if same else found))
    return result


def _check_once(pairs: Sequence[Pair]) -> None:
    """Refuse two items that are one disk of the VM."""
    seen: list[Element] = []
    for place, (_given, _options, found) in enumerate(pairs):
        if found is not None and any(found is other for other in seen):
            raise Refused(f"disks[{place}]: {target_of(found)} is in the list twice")
        seen += [] if found is None else [found]


def _check_apart(pairs: Sequence[Pair]) -> None:
    """Refuse a new disk on what another disk of the VM lies on: both would write to it."""
    seen: dict[str, tuple[str, bool]] = {}
    for place, (_given, options, found) in enumerate(pairs):
        name = identity((read(found) if found is not None else None) or options)
        if not name or options["device"] != "disk":
            continue
        other, new = seen.get(name, ("", False))
        if other and (new or found is None):
            raise Refused(f"disks[{place}]: {name} is {other} of this VM already; name another volume for one of them")
        seen[name] = (target_of(found) if found is not None else f"disks[{place}]", found is None)


def _mend(now: str | None, options: Mapping[str, Any]) -> str:
    """What to do about a disk that is not the one of the sheet. What it wrote since a snapshot must not be cut off."""
    kind, _colon, path = str(now).partition(":")
    if kind == "file" and options.get("path") and os.path.realpath(options["path"]) in template.chain(path):
        return (
            "that is where it writes since an external snapshot: remove the snapshots of this VM first "
            "(drover.kvm.snapshot), and leave the disk as it is"
        )
    return (
        "where that is right, say so in the sheet, or bring it there with drover.kvm.vm_storage; where it writes since "
        "an external snapshot, remove the snapshots of this VM first (drover.kvm.snapshot). If you take it off the "
        "list and then add this one, the guest loses what it holds"
    )


def _check_not_swapped(options: Mapping[str, Any], gone: Mapping[str, str | None], where: str) -> None:
    """Refuse a new disk in the place of one that is taken off: the guest would find other data there, or none."""
    target = options["target"]
    if options["device"] == "disk" and gone.get(target):
        raise Refused(f"{where}: {target} is {gone[target]}, not {identity(options)}; {_mend(gone[target], options)}")


def is_seed(disk: Element) -> bool:
    """Whether this is the drive with what cloud-init reads, which is no disk of the sheet."""
    return bool(Property("alias/@name").get(disk) == SEED)


def _kind(disk: Element) -> Kind | None:
    # A floppy drive has no option here; it stays as it is.
    if is_seed(disk) or disk.get("device") == "floppy":
        return None
    return next((kind for kind in KINDS.values() if kind.recognises(disk)), None)


def _match(present: Sequence[Element], given: Mapping[str, Any], options: Mapping[str, Any]) -> Element | None:
    by_target = [disk for disk in present if given.get("target") and target_of(disk) == given["target"]]
    name = identity(options)
    by_storage = [disk for disk in present if name and identity(read(disk) or options) == name]
    found = by_target or ([] if given.get("target") else by_storage)
    if by_storage and by_target and by_storage[0] is not by_target[0]:
        there = Property("target/@dev").get(by_storage[0])
        raise Refused(
            f"{name} is already {there} of this VM; say target: {there} for it, or another volume for {given['target']}"
        )
    return found[0] if found else None


def _change(disk: Element, given: Mapping[str, Any], where: str) -> None:
    before = read(disk) or {}
    # An empty text takes a value away, such as the medium of a drive.
    named = {name: None if value == "" else value for name, value in given.items() if value is not None}
    after = {**before, **{name: value for name, value in named.items() if name in before}}
    target = before["target"]
    if given["type"] != before["type"]:
        raise Refused(f"{where}: {target} is of type {before['type']}; {_mend(identity(before), after)}")
    for name in [field.name for field in COMMON if field.fixed]:
        if after[name] != before[name]:
            raise Refused(f"{where}: {name} of {target} is {before[name]} and can't become {after[name]}")
    if before["device"] == "disk" and identity(before) and identity(after) != identity(before):
        raise Refused(
            f"{where}: {target} is {identity(before)}, not {identity(after)}; {_mend(identity(before), after)}"
        )
    _put(disk, {name: value for name, value in after.items() if value != before[name]}, before["type"])
    tuning.check(disk, where)


def _put(disk: Element, values: Mapping[str, Any], kind: str) -> None:
    for field in (*COMMON, *KINDS[kind].fields):
        if field.name in values:
            field.place.put(disk, values[field.name])


def check_alone(options: Mapping[str, Any], where: str) -> None:
    """Raise Invalid for what the options of a new disk say against each other, whatever it lies on."""
    if options["type"] == "iscsi" and bool(options.get("user")) != bool(options.get("secret")):
        raise Invalid(f"{where}: user and secret go together", option=where)
    values = {**options, "device": options.get("device") or "disk", "bus": _bus(options)}
    disk = KINDS[options["type"]].source()
    for field in COMMON:
        if values.get(field.name) is not None:
            field.place.put(disk, values[field.name])
    if values["device"] == "cdrom" and values["bus"] == "virtio":
        raise Invalid(f"{where}: a cdrom can't be on the bus virtio; use sata", option=where)
    tuning.check(disk, where)


def _bus(options: Mapping[str, Any]) -> str:
    return options.get("bus") or ("sata" if options.get("device") == "cdrom" else "virtio")


def _add(root: Element, options: dict[str, Any], where: str) -> None:
    kind = KINDS[options["type"]]
    missing = [name for name in kind.needs if options.get(name) is None]
    if missing and not (options["device"] == "cdrom" and missing == ["path"]):
        raise Invalid(f"{where}: {missing[0]} is missing; a new disk of type {kind.name} needs it", option=where)
    complaint = kind.complaint(options)
    if kind.name != "file" and (named := [name for name in OF_FILES if options.get(name)]):
        complaint = f"{named[0]} is for disks of type file; a source of another type says itself what is made of it"
    if complaint:
        raise Invalid(f"{where}: {complaint}", option=where)
    check_alone(options, where)
    cdrom = options["device"] == "cdrom"
    options["bus"] = _bus(options)
    options["readonly"] = True if cdrom else options.get("readonly")
    if not cdrom:
        options["error_policy"] = options.get("error_policy") or "stop"
    options["target"] = options.get("target") or free_target(root, "vd" if options["bus"] == "virtio" else "sd")
    _check_free(root, options["target"], where)
    disk = kind.source()
    _put(disk, {name: value for name, value in options.items() if value is not None}, kind.name)
    if cdrom and not options.get("discard"):
        Property("driver/@discard").put(disk, None)
    if options["bus"] == "scsi" and not any(one.get("type") == "scsi" for one in devices(root, "controller")):
        # libvirt's own choice is an old one, which takes no disk while the VM runs.
        add_device(root, Element("controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"}))
    add_device(root, disk)


def _check_free(root: Element, target: str, where: str) -> None:
    """Refuse a name that a device of the VM has, such as the drive of cloud-init or a disk of another kind."""
    for disk in devices(root, "disk"):
        if target_of(disk) == target:
            holder = "the drive of cloud_init" if is_seed(disk) else disk_identity(disk)[1] or "an empty drive"
            free = free_target(root, target[:2])
            raise Refused(f"{where}: target {target} is {holder} already; write another one, such as {free}")


def free_target(root: Element, prefix: str) -> str:
    """The first name of a disk that the VM does not have yet (`prefix` is vd or sd)."""
    taken = {target_of(disk) for disk in devices(root, "disk")}
    return next(name for name in (target_name(prefix, number) for number in range(26 * 27)) if name not in taken)


def source_xml(options: Mapping[str, Any]) -> str:
    """The disk of these options as libvirt's block copy wants it: what it lies on, and the format."""
    kind = KINDS[options["type"]]
    disk = kind.source()
    names = ("format", *(field.name for field in kind.fields))
    _put(disk, {name: options[name] for name in names if options.get(name) is not None}, kind.name)
    return text_of(disk)
