# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of backups: one folder for each VM, in it one for each backup, which says itself what it is.

    PATH/web1/20261122T030000Z/   manifest.json, SHA256SUMS, domain.xml, vda.qcow2, README.txt, ...

A backup has its name only once it is whole. What begins with a dot is being made (`.ID.part`) or removed (`.ID.gone`).
What is called otherwise, or has no manifest of ours, is never touched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._errors import DroverError, Failed, Invalid, Refused, Unreachable
from .._files import replace_file
from .._run import bounded, run
from . import secrecy

FORMAT, VERSION = "drover.kvm backup", 1
MANIFEST, SUMS, DAMAGED, BEGUN = "manifest.json", "SHA256SUMS", "damaged.json", "begun.json"
# Locked by who changes something. It is a file, as NFS locks no folders between its clients, see flock(2).
LOCK = ".lock"
ID = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
LEFT = re.compile(r"\.(\d{8}T\d{6}Z)\.(part|gone)", re.ASCII)
STAMP = "%Y%m%dT%H%M%SZ"
CHUNK = 4 << 20
# A mount may be made only now, and a server that went down gets time to come back.
LOOK_SECONDS = 100
CHECK_SECONDS_PER_GIB = 150


@dataclass(frozen=True)
class Backup:
    """One backup that is whole. `complaint` says why it is not good, None where nothing is known against it."""

    folder: Path
    manifest: dict[str, Any]
    complaint: str | None = None

    @property
    def id(self) -> str:
        """Its name, the moment at which it was begun (UTC)."""
        return self.folder.name

    @property
    def history(self) -> str:
        """The full backup that it is based on, or it itself."""
        return str(self.manifest["history"])

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return str(self.manifest["vm"]["uuid"])

    @property
    def encrypted(self) -> bool:
        """Whether a passphrase opens it, see `secrecy`."""
        return bool(self.manifest.get("encryption"))

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(self.manifest["files"].values())

    def facts(self) -> dict[str, Any]:
        """What a user sees of it."""
        names = ("type", "base", "history", "moment", "mode", "quiesced", "state", "reason", "node")
        said = {name: self.manifest.get(name) for name in names}
        disks = [{key: disk[key] for key in ("target", "file", "size")} for disk in self.manifest["disks"]]
        uuid, good = self.uuid, self.complaint is None
        return {
            "id": self.id,
            "folder": str(self.folder),
            "vm": self.manifest["vm"]["name"],
            "uuid": uuid,
            **said,
            "encryption": self.manifest.get("encryption") or "none",
            "disks": disks,
            "size": self.size,
            "good": good,
            "complaint": self.complaint,
        }


def moment(said: str) -> datetime:
    """A moment as names of backups say it. Raises ValueError."""
    return datetime.strptime(said, STAMP).replace(tzinfo=timezone.utc)


def check_root(path: str) -> Path:
    """The folder of all backups. Raises Invalid where there is none, Unreachable where its server gives no answer."""
    found = bounded({path: lambda: _why_no_folder(path)}, LOOK_SECONDS)[path]
    if isinstance(found, Unreachable):
        raise Unreachable(f"the folder {found.message}; look at its server, or mount it anew")
    if found:
        raise Invalid(f"the folder {path} {found}; make it, or mount what belongs there")
    return Path(path)


def _why_no_folder(path: str) -> str:
    try:
        return "" if stat.S_ISDIR(os.stat(path).st_mode) else "is no folder"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"can't be read ({error.strerror})"


def check_owner(root: Path) -> None:
    """Raise Refused where we can't write, or are somebody else there; the trial has no name, and is gone at once.

    QEMU, which is another user, is given files there, which takes a server that lets root stay root, exports(5).
    """
    try:
        with tempfile.TemporaryFile(dir=root) as trial:
            owner = os.fstat(trial.fileno()).st_uid
    except OSError as error:
        raise Refused(
            f"{root} can't be written to: {error.strerror}. A server of NFS must have it exported for writing, with "
            "no_root_squash"
        ) from None
    if owner != os.geteuid():
        raise Refused(f"what root writes to {root} belongs to user {owner}; export it with no_root_squash")


def vms(root: Path) -> list[str]:
    """The VMs of which there are backups."""
    return sorted(one.name for one in root.iterdir() if one.is_dir() and _read(one))


def read(root: Path, vm: str) -> list[Backup]:
    """The backups of a VM, the oldest first. A quick look: names and lengths, no content."""
    found: dict[str, Backup] = {}
    for folder, manifest in _read(root / vm):
        complaint = _quick(folder, manifest)
        base = manifest["base"]
        if complaint is None and base is not None:
            below = found.get(base)
            lost = "is gone" if below is None else below.complaint and "is not good"
            complaint = f"{base}, on which it is based, {lost}" if lost else None
        found[folder.name] = Backup(folder, manifest, complaint)
    return list(found.values())


def _read(place: Path) -> list[tuple[Path, dict[str, Any]]]:
    folders = sorted(place.iterdir()) if place.is_dir() else []
    pairs = [(folder, _manifest(folder) or _lost(folder)) for folder in folders if ID.fullmatch(folder.name)]
    return [(folder, manifest) for folder, manifest in pairs if manifest is not None]


def _lost(folder: Path) -> dict[str, Any] | None:
    """What is known of a backup whose manifest can't be read: that it is ours, as its checksums say, and damaged."""
    try:
        json.loads((folder / MANIFEST).read_bytes())
        return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        words = str(getattr(error, "strerror", None) or error)
    with suppress(OSError, UnicodeDecodeError):
        if not (folder / SUMS).read_text(encoding="utf-8").endswith(f"  {MANIFEST}\n"):
            return None
    nothing: dict[str, Any] = {"files": {}, "disks": [], "base": None, "checkpoint": None, "type": "full"}
    vm = {"name": folder.parent.name, "uuid": ""}
    return {**nothing, "vm": vm, "history": folder.name, "lost": f"{MANIFEST}: {words}"}


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What the folder says of itself; None for one that is not ours. Raises Failed for one of a newer version."""
    try:
        said: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        ours = said["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if ours and said["version"] != VERSION:
        raise Failed(f"{folder} was made by a newer version of this collection ({said['version']}); use that one")
    return said if ours else None


def _quick(folder: Path, manifest: dict[str, Any]) -> str | None:
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / DAMAGED).read_bytes())["complaint"])
    if "lost" in manifest:
        return str(manifest["lost"])
    for name, size in manifest["files"].items():
        try:
            seen = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if seen != size:
            return f"{name} has {seen} bytes, not {size}"
    return None


def chain(backups: Iterable[Backup], last: Backup) -> list[Backup]:
    """A backup and what it is based on, the full one first."""
    known = {backup.id: backup for backup in backups}
    found = [last]
    while found[0].manifest["base"] in known:
        found.insert(0, known[found[0].manifest["base"]])
    return found


def surplus(backups: Sequence[Backup], keep: int, coming: bool) -> list[list[Backup]]:
    """The histories that are older than the last `keep` good ones, the oldest first. Pure.

    `coming`: a full backup is made before they are removed, and counts.
    """
    found = histories(backups)
    good = [own[0].id for own in found if own[0].id == own[0].history and own[0].complaint is None]
    kept = keep - int(coming)
    if len(good) < kept:
        return []
    limit = good[-kept] if kept else "~"
    return [own for own in found if own[0].history < limit]


def histories(backups: Iterable[Backup]) -> list[list[Backup]]:
    """The backups by history, the oldest first. Pure."""
    found: dict[str, list[Backup]] = {}
    for backup in backups:
        found.setdefault(backup.history, []).append(backup)
    return [found[one] for one in sorted(found)]


def verify(backup: Backup) -> str | None:
    """Read all of a backup; what is wrong with it, or None. What it is based on is not read.

    The tables of encrypted images were looked at when they were made, and only the passphrase opens them again.
    """
    try:
        lines = (backup.folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        return f"{SUMS}: {error}"
    for name in (MANIFEST, *backup.manifest["files"]):
        try:
            seen = digest_of(backup.folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if seen != sums.get(name):
            return f"{name} does not have the checksum that {SUMS} says"
    try:
        for disk in [] if backup.encrypted else backup.manifest["disks"]:
            check_image(backup.folder / disk["file"], None)
    except DroverError as error:
        return error.message
    return None


def same(one: Backup, other: Backup) -> bool:
    """Whether two backups have the same checksums, by what they say of themselves."""
    sums = [backup.folder / SUMS for backup in (one, other)]
    return all(path.is_file() for path in sums) and sums[0].read_bytes() == sums[1].read_bytes()


def is_there(backup: Backup) -> bool:
    """Whether it still has its name; one that is removed loses it first."""
    try:
        (backup.folder / MANIFEST).lstat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def note(backup: Backup, complaint: str | None) -> None:
    """Write down that a backup is damaged, or that it is not any more."""
    place = backup.folder / DAMAGED
    if complaint is None:
        place.unlink(missing_ok=True)
    else:
        said = {"complaint": complaint, "seen": datetime.now(timezone.utc).strftime(STAMP)}
        replace_file(place, json.dumps(said, indent=2).encode() + b"\n")


def written(path: Path) -> None:
    """Have the disk keep a file, so that what is read of it from now on is what the disk has. Raises Failed."""
    try:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise Failed(f"{path} could not be written: {error.strerror}. Look at its storage and run this again") from None


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, as the disk has it: what is still in memory of it is dropped first."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_image(path: Path, key: str | None) -> None:
    """Raise Failed where the tables of a qcow2 file, which `key` opens, are not in order."""
    seconds = 60 + CHECK_SECONDS_PER_GIB * path.stat().st_size // 2**30
    with secrecy.told(key) as told:
        run(["qemu-img", "check", "-q", *told, "-f", "qcow2", secrecy.address(path, key)], timeout=seconds)


def left(root: Path, vm: str) -> list[Path]:
    """What runs left that were killed: folders in which a backup was being made or removed, and that say so."""
    place = root / vm
    found = [one for one in sorted(place.iterdir()) if LEFT.fullmatch(one.name)] if place.is_dir() else []
    return [one for one in found if begun(one) is not None or _manifest(one) or _is_blank(one)]


def _is_blank(folder: Path) -> bool:
    """Whether a run got no further than to begin its first note (see `replace_file`)."""
    return all(one.name.startswith(".") and one.suffix == ".new" for one in folder.iterdir())


def id_of(folder: Path) -> str:
    """The backup that was being made, or removed, in such a folder."""
    found = LEFT.fullmatch(folder.name)
    return found[1] if found else ""


def begun(folder: Path) -> dict[str, Any] | None:
    """What a run wrote down before it began; None where it wrote nothing."""
    try:
        said: dict[str, Any] = json.loads((folder / BEGUN).read_bytes())
    except (OSError, ValueError):
        return None
    return said


def remove(backup: Backup) -> None:
    """Take a backup away; should this be cut off, the rest is known for what it is."""
    gone = backup.folder.with_name(f".{backup.id}.gone")
    backup.folder.rename(gone)
    clear(gone)


def clear(folder: Path) -> None:
    """Delete a folder of ours; what says that it is ours goes last. Raises Failed."""
    try:
        for one in sorted(folder.iterdir(), key=lambda one: one.name in (MANIFEST, BEGUN)):
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
        folder.rmdir()
    except OSError as error:
        raise Failed(f"{folder} can't be removed: {error.strerror}. Mend that, and run this again") from None
