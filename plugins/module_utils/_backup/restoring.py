# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM comes back from a backup: its definition for its new place, and its files, each named only when it is whole."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from .._disks import file
from .._disks.template import sync
from .._domain import metadata
from .._errors import Failed, Refused
from .._identity import disk_name, vm_mac, vm_uuid
from .._run import run, run_json
from .._xml import Property, add, devices, drop, make, parse, target_of
from . import files, secrecy, store
from .store import Backup

MARK = "user.drover.restore"
RESTORED = "restored"
STORAGE = ("source", "backingStore", "auth", "mirror", "reservations")
UUID, NAME, GENID = Property("uuid"), Property("name"), Property("genid")
VARIABLES = Property("os/nvram")


class Place(NamedTuple):
    """Where a disk goes. `image` is what it is made from, which `key` opens, `backup` its backup.

    `owner` is the UUID of the VM whose disk it becomes. A disk that is restored by itself is nobody's: no VM takes it
    along when it is removed, and no restore of the VM takes it for a disk that is finished.
    """

    target: str
    image: Path
    path: str
    format: str
    size: int
    backup: str
    owner: str | None
    key: str | None = None

    @property
    def mark(self) -> str:
        """What a run notes with the file, so that the next one knows that it is finished."""
        return "/".join([self.backup, self.target, *([self.owner] if self.owner else [])])


def places(
    backup: Backup, name: str, directory: str | None, only: list[str] | None, key: str | None = None
) -> list[Place]:
    """Where each disk goes: its own path where it was a file and nothing else is said, else a qcow2 file.

    `key` opens the images, where they are encrypted. Raises Refused for a disk that the backup does not have.
    """
    disks = {disk["target"]: disk for disk in backup.manifest["disks"]}
    if lost := sorted(set(only or ()) - set(disks)):
        raise Refused(f"{backup.id} has no disk {', '.join(lost)}; choose of {', '.join(disks)}")
    found = []
    owner = None if only is not None else uuid_of(backup, name)
    for target, disk in disks.items():
        kind, _colon, path = str(disk["identity"]).partition(":")
        image_format = disk["format"] if kind == "file" and disk["format"] in ("raw", "qcow2") else "qcow2"
        if kind != "file" or directory or name != backup.manifest["vm"]["name"] or only:
            path = f"{directory or file.DIRECTORY}/{disk_name(name, target)}.{image_format}"
        if only is None or target in only:
            image = backup.folder / disk["file"]
            found.append(Place(target, image, path, image_format, disk["size"], backup.id, owner, key))
    return found


def uuid_of(backup: Backup, name: str) -> str:
    """The UUID of the VM at its new place: under another name it is another VM."""
    return backup.uuid if name == backup.manifest["vm"]["name"] else vm_uuid(name)


def definition(backup: Backup, kept: Mapping[str, bytes], name: str, disks: list[Place], nics: str) -> Element:
    """The definition of the VM at its new place; `kept` is what is beside the disks in the backup."""
    root = parse(kept[files.DEFINITION].decode())
    adapt(root, name, disks, nics)
    if files.NVRAM in kept:
        VARIABLES.put(root, str(variables(name)))
    metadata.edit(root, {RESTORED: backup.id})
    return root


def adapt(root: Element, name: str, disks: list[Place], nics: str) -> None:
    """Make a definition that of another place; under another name it is another VM (UUID, MAC addresses)."""
    uuid, old = str(UUID.get(root)), str(NAME.get(root))
    if name != old:
        _rename(root, name, uuid)
    metadata.edit(root, {"stopped": None})  # nothing has to be started again here
    parent = make(root, "devices")
    for nic in devices(root, "interface") if nics == "none" else ():
        drop(parent, nic)
    if GENID.get(root):
        GENID.put(root, "")  # libvirt makes a new one: to the guest it is another time
    _put_disks(root, {disk.target: disk for disk in disks}, file.seed_path(old) if name != old else "")


def _rename(root: Element, name: str, uuid: str) -> None:
    for lease in devices(root, "lease"):
        if Property("key").get(lease) == uuid:
            drop(make(root, "devices"), lease)
    # They are in use by the VM that was backed up; a guest with its folder would write to it.
    for kind in ("hostdev", "filesystem"):
        for device in list(devices(root, kind)):
            drop(make(root, "devices"), device)
    NAME.put(root, name)
    UUID.put(root, vm_uuid(name))
    for number, nic in enumerate(devices(root, "interface")):
        Property("mac/@address").put(nic, vm_mac(name, number))
    metadata.NICS.put(root, {})
    metadata.edit(root, {"home": None})
    if VARIABLES.get(root):
        VARIABLES.put(root, str(variables(name)))


def _put_disks(root: Element, disks: Mapping[str, Place], seed: str) -> None:
    """Write the new places; what is not there, or is the seed of another VM, is taken out of its drive."""
    for disk in devices(root, "disk"):
        place = disks.get(target_of(disk))
        path = Property("source/@file").get(disk)
        gone = path is not None and (path == seed or not Path(path).exists())
        lost = gone and disk.get("device") in ("cdrom", "floppy")
        if place is None and not lost:
            continue
        for child in [child for child in disk if child.tag in STORAGE]:
            drop(disk, child)
        if place is not None:
            disk.set("type", "file")
            driver = make(disk, "driver")
            driver.attrib.update({"name": "qemu", "type": place.format})
            add(disk, "source", {"file": place.path})


def variables(name: str) -> Path:
    """Where the variables of UEFI of a VM lie."""
    return files.NVRAM_FOLDER / f"{name}_VARS.fd"


def is_done(place: Place) -> bool:
    """Whether a run has finished this disk: one that was cut off, or one for this disk alone."""
    with suppress(OSError):
        return os.getxattr(place.path, MARK).decode("ascii", "replace") == _noted(place, place.path)
    return False


def _noted(place: Place, path: Path | str) -> str:
    """The mark of a file. One that is nobody's keeps it, and is what was restored only while nobody writes to it."""
    return place.mark if place.owner else f"{place.mark}/{os.stat(path).st_mtime_ns}"


def check_names(disks: list[Place]) -> None:
    """Raise Refused where something is in the way."""
    for disk in disks:
        if file.inspect({"path": disk.path, "format": "raw"}) is not None and not is_done(disk):
            raise Refused(
                f"{disk.path} exists; nothing is written over. Move it away, or say another directory or name"
            )


def check_new(disks: list[Place]) -> None:
    """Raise Refused where something is in the way, a folder keeps no marks, or too little room."""
    check_names(disks)
    needed: dict[str, int] = {}
    for disk in disks:
        if not is_done(disk):
            folder = str(Path(disk.path).parent)
            with secrecy.told(disk.key) as told:
                words = [*told, "-f", "qcow2", "-O", disk.format, secrecy.address(disk.image, disk.key)]
                measured = run_json(["qemu-img", "measure", "--output=json", *words], timeout=600)
            needed[folder] = needed.get(folder, 0) + int(measured["required"])
    for folder, size in needed.items():
        check_marks(folder)
        free = file.room(f"{folder}/x")
        if size > free:
            raise Refused(
                f"{folder} has {free >> 20} MiB left, and {size >> 20} MiB are needed. Make room, or say another "
                "directory",
                free=free,
                needed=size,
            )


def check_marks(folder: str) -> None:
    """Raise Refused where files keep no extended attributes; the trial has no name, and is gone when it is closed."""
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            os.setxattr(trial.fileno(), MARK, b"trial")
    except OSError as error:
        raise Refused(
            f"{folder} keeps no marks of files ({error.strerror}); restore to a folder on a file system with extended "
            "attributes, such as ext4 or XFS (directory)"
        ) from None


def bring(place: Place, timeout: float, whole: bool = False) -> None:
    """Make the disk anew, compare it with the backup, and give it its name; never over a file that is there.

    `whole`: the backup's image is based on nothing and used for this only, so it may become the disk itself.
    """
    part = Path(place.path).with_name(f".{Path(place.path).name}.drover-part")
    part.unlink(missing_ok=True)
    try:
        if whole and place.format == "qcow2":
            os.link(place.image, part)
        else:
            with secrecy.told(place.key) as told:
                pair = [secrecy.address(place.image, place.key), str(part)]
                words = [*told, "-q", "-m", "8", "-W", "-f", "qcow2", "-O", place.format]
                run(["qemu-img", "convert", *words, *pair], timeout=timeout)
            store.written(part)
            files.compare(files.Source(str(part), place.format), place.image, timeout, place.key)
        part.chmod(0o600)
        sync([str(part)])
        if place.owner:
            os.setxattr(part, file.MARK, place.owner.encode())
        os.setxattr(part, MARK, _noted(place, part).encode())
        os.link(part, place.path)
    except FileExistsError:
        raise Refused(f"{place.path} appeared meanwhile; look at who else uses this name") from None
    except OSError as error:
        raise Failed(
            f"{place.path} could not be made ({error.strerror}); nothing of it is left. See to {part.parent}, and run "
            "this again"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def finish(disks: list[Place]) -> None:
    """These are disks of a VM from now on."""
    for disk in disks:
        if is_done(disk):
            os.removexattr(disk.path, MARK)


def check_state(kept: Mapping[str, bytes], name: str, uuid: str) -> list[str]:
    """What of the VM's state is still to be put back. Raises Refused where something else is in its place."""
    wanted = []
    here = {files.NVRAM: variables(name), files.TPM: files.TPM_FOLDER / uuid}
    for part, place in here.items():
        if part not in kept or _same(kept[part], place):
            continue
        if place.exists():
            raise Refused(f"{place} exists; it may be another machine's. Move it away")
        wanted.append(part)
    return wanted


def _same(data: bytes, place: Path) -> bool:
    """Whether it was put back already; a TPM's folder gets its name when all of it is there."""
    if place.is_dir():
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [one for one in archive if one.isfile()]
            return all(_holds(place / one.name, archive, one) for one in members)
    return place.is_file() and place.read_bytes() == data


def _holds(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    stream = archive.extractfile(member)
    return path.is_file() and stream is not None and path.read_bytes() == stream.read()


def put_back(part: str, kept: Mapping[str, bytes], name: str, uuid: str) -> None:
    """Put back the variables of UEFI, or the keys of the TPM."""
    place = variables(name) if part == files.NVRAM else files.TPM_FOLDER / uuid
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.drover-part")
    if part == files.NVRAM:
        new.unlink(missing_ok=True)
        new.touch(0o600)
        new.write_bytes(kept[part])
    else:
        shutil.rmtree(new, ignore_errors=True)
        run(["mkdir", "-m", "0711", str(new)])
        with secrecy.in_memory(kept[part]) as packed:
            run(["tar", "-x", "-p", "-f", packed, "-C", str(new)])
    new.rename(place)
