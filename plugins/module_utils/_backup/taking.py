# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup comes into being: under another name, until all of it is there and proved."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import _later
from .._disks.template import sync
from .._domain.power import IO_ERROR
from .._domain.stillness import still
from .._errors import DroverError, Failed, Refused
from .._files import free_space, locked, replace_file
from .._libvirt import Domain, Node
from .._xml import parse
from . import files, job, origins, rbd, secrecy, store
from .disks import Disk, disks_of, whole
from .moments import is_off, moment_of, start_unit, until
from .readme import readme
from .store import Backup

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CLOSE_SECONDS = 600  # QEMU writes out what it has still in memory
SPARE = 64 << 20  # bytes for everything that is no image
LESS = "let it take less: fewer histories (keep), type: incremental, or compression: none"


class Order(NamedTuple):
    """What is asked for. `bandwidth` in bytes a second (0: no limit), the timeouts in seconds.

    `checkpoint`: later backups are to be based on it, so QEMU notes what the guest writes from then on.
    `from_snapshot` says where snapshots of the disks are that the storage keeps, see `origins`; with a `passphrase` it
    is encrypted, see `secrecy`.
    """

    root: Path
    vm: str
    type: str = "full"
    max_incrementals: int = 6
    mode: str = "snapshot"
    quiesce: str = "auto"
    bandwidth: int = 0
    compression: str = "zstd"
    timeout: float = 86400
    shutdown_timeout: float = 180
    checkpoint: bool = True
    from_snapshot: Mapping[str, Any] | None = None
    passphrase: str | None = None


def base_of(
    order: Order, domain: Domain, disks: Sequence[Disk], backups: Sequence[Backup]
) -> tuple[Backup | None, str]:
    """What an incremental backup is based on, and which disks it holds as a whole; or why it has to be a full one."""
    if order.type == "full":
        return None, "asked for"
    images = rbd.are_images(disks)
    if not images and (reason := _unnoted(order, domain, disks)):
        return None, reason
    own = [backup for backup in backups if backup.uuid == domain.uuid]
    if not own:
        return None, "there is none yet"
    last = own[-1]
    if last.complaint:
        return None, f"the last one, {last.id}, is not good: {last.complaint}"
    if last.encrypted != (order.passphrase is not None):
        return None, f"the last one, {last.id}, is {'' if last.encrypted else 'not '}encrypted"
    if not last.manifest["checkpoint"]:
        return None, f"with the last one, {last.id}, no checkpoint was made"
    now = [(disk.target, disk.identity, disk.size) for disk in disks]
    if now != [(disk["target"], disk["identity"], disk["size"]) for disk in last.manifest["disks"]]:
        return None, f"the disks are not those of the last one, {last.id}"
    if len(store.chain(own, last)) > order.max_incrementals:
        return None, f"the history has {order.max_incrementals} incremental ones"
    if images and (image := rbd.lacks(disks, last.manifest["checkpoint"])):
        return None, f"{image} has the snapshot of the last one, {last.id}, no more"
    return last, "" if images else whole(disks)


def _unnoted(order: Order, domain: Domain, disks: Sequence[Disk]) -> str:
    """Why QEMU notes in no disk what changes; empty where it does."""
    if order.from_snapshot is not None:
        return origins.NO_NOTES
    if not domain.active:
        return f"{order.vm} is off, and nothing notes what changed"
    return "" if any(disk.noted for disk in disks) else whole(disks)


def room_needed(node: Node, order: Order, disks: Sequence[Disk], base: Backup | None) -> int:
    """The bytes that a backup may take while it is made; what compression will save can't be known."""
    images, known, copied = rbd.are_images(disks), None, list(disks)
    if base is not None:
        mark = base.manifest["checkpoint"]
        known = rbd.changed(disks, mark) if images else job.changed(node, order.vm, mark)
    if known is not None:
        copied = [disk for disk in disks if not images and not disk.noted]
    sizes = [disk.allocation for disk in copied]
    # What QEMU has copied is packed afterwards; a snapshot of the storage is packed as it is read.
    twice = order.compression != "none" and not images and order.from_snapshot is None
    return 2 * (known or 0) + sum(sizes) + (max(sizes, default=0) if twice else 0) + SPARE


def check_room(root: Path, needed: int, what: str = "a backup", mend: str = LESS) -> None:
    """Raise Refused where so many bytes might not fit. The folder itself may not be there yet.

    `what` needs them, and `mend` is what a user can do but make room.
    """
    free = free_space(root if root.is_dir() else root.parent)
    if needed > free:
        raise Refused(
            f"{root} has {free >> 20} MiB left, and {what} may take {needed >> 20} MiB. Make room, or {mend}",
            free=free,
            needed=needed,
        )


def check_clock(node: Node, backups: Sequence[Backup]) -> str:
    """The name of a backup that begins now. Raises Refused where the last one would be newer."""
    now = datetime.now(timezone.utc).strftime(store.STAMP)
    if backups and now < backups[-1].id:
        raise Refused(
            f"the clock of {node.name} says {now}, before the last backup {backups[-1].id}; set it. If it was wrong "
            f"when that one was made, move {backups[-1].folder} away"
        )
    return now


def is_held(node: Node, vm: str, was: str) -> bool:
    """Whether a guest that ran is paused as it could not write: what was there could not be copied before."""
    domain = node.domain(vm) if was == "running" else None
    return domain is not None and (domain.state, domain.reason) == ("paused", IO_ERROR)


def go_on(node: Node, vm: str, was: str) -> None:
    """Resume such a guest. QEMU, which paused it for that (error_policy of the disk), writes once more then.

    Is it the VM's own disk that fails, it is paused again.
    """
    if is_held(node, vm, was):
        node.resume(vm)


def recover(node: Node, vm: str, folder: Path) -> None:
    """Undo what a run that was cut off has begun: its job, its checkpoint, its pause, its folder."""
    begun = store.begun(folder) or {}
    if begun.get("secret") and node.has_secret(begun["secret"]):
        node.undefine_secret(begun["secret"])
    rbd.drop(begun.get("images", []), [str(begun.get("snapshot"))])
    domain = node.domain(vm)
    if domain is not None:
        running = node.backup(vm)
        if running and any(path.startswith(f"{folder}/") for path in job.targets_of(running)):
            with suppress(Failed):  # it may have ended just now
                node.abort_job(vm)
            words = f"the backup of {vm} that was cut off does not end; see virsh domjobinfo {vm}, and run this again"
            until(lambda: node.backup(vm) is None, 60, words)
        if begun.get("was"):
            go_on(node, vm, begun["was"])
        job.drop_all(node, vm, [job.checkpoint_name(store.id_of(folder))])
        here = (begun.get("node"), begun.get("boot")) == (node.name, BOOT_ID.read_text(encoding="ascii").strip())
        if here and begun["was"] == "running" and begun["mode"] != "snapshot":
            if domain.state == "stopped":
                node.start(vm)
                _later.disarm(start_unit(domain.uuid))
            elif (domain.state, domain.reason) == ("paused", "user"):
                node.resume(vm)
    store.clear(folder)


class Taking:
    """One backup of one VM that is on this node."""

    def __init__(self, node: Node, order: Order, domain: Domain) -> None:
        self.node, self.order, self.domain = node, order, domain
        self.place = order.root / order.vm
        self.quiesced = False

    def run(self, base: Backup | None, reason: str, kept: Mapping[str, bytes]) -> Backup:
        """Make it. `kept` is what is beside the disks in its base. Raises what went wrong; nothing is left then."""
        self.base, self.reason, self.kept, order = base, reason, kept, self.order
        self.key = None if order.passphrase is None else files.key_of(kept) or secrecy.new_key()
        self.style = files.Style(order.compression, order.timeout, order.bandwidth, self.key)
        self.disks, self.spared = disks_of(self.node, self.domain)
        if not self.place.is_dir():
            self.place.mkdir()
            self.place.chmod(0o711)
        with locked(self.place, "mount the folder of backups", store.LOCK):
            for folder in store.left(self.order.root, self.order.vm):
                recover(self.node, self.order.vm, folder)
            self._begin()
            try:
                moment = self._copy()
                return self._finish(moment)
            except BaseException:
                with suppress(DroverError):
                    recover(self.node, self.order.vm, self.part)
                raise

    def _begin(self) -> None:
        """The folder under its passing name, with a note of what is going on."""
        backups = store.read(self.order.root, self.order.vm)
        self.id = check_clock(self.node, backups)
        while backups and self.id == backups[-1].id:
            time.sleep(0.1)
            self.id = check_clock(self.node, backups)
        self.part = self.place / f".{self.id}.part"
        self.part.mkdir()
        said = {"id": self.id, "vm": self.order.vm, "node": self.node.name, "mode": self.order.mode}
        state = {"was": self.domain.state, "boot": BOOT_ID.read_text(encoding="ascii").strip()}
        self.snapshot = rbd.snapshot_name(self.id) if rbd.are_images(self.disks) else None
        images = {"images": rbd.identities(self.disks), "snapshot": self.snapshot} if self.snapshot else {}
        self.secret = str(uuid.uuid4())  # by which libvirt knows the key
        opened = {"secret": self.secret} if self.key else {}
        replace_file(self.part / store.BEGUN, json.dumps({**said, **state, **images, **opened}).encode())
        # QEMU, which is another user, opens the files that libvirt makes for it.
        self.part.chmod(0o711)

    def _copy(self) -> datetime:
        if self.order.from_snapshot is not None:
            return self._copy_origins(self.order.from_snapshot)
        if self.snapshot is not None:
            return self._copy_images(self.snapshot)
        if not self.domain.active:
            return self._copy_stopped()
        copies = {disk.target: self.part / f"{disk.target}.copy" for disk in self.disks}
        for disk in self.disks if self.key else ():  # QEMU would take seconds for it, in which the guest stands still
            files.create(copies[disk.target], disk.size, self.key)
        limit = self.order.shutdown_timeout
        with moment_of(self.node, self.domain, self.order.mode, self.order.quiesce, limit) as seen:
            self._start({target: str(path) for target, path in copies.items()})
            moment = datetime.now(timezone.utc)
        self.quiesced = seen["quiesced"]
        with files.watched(copies.values()) as check:
            self._wait()
            for disk in self.disks:
                self._pack(disk, copies[disk.target])
                check(copies[disk.target])
        for copy in copies.values():
            copy.unlink(missing_ok=True)
        return moment

    def _wait(self) -> None:
        for disk in self.disks if self.order.bandwidth else ():
            with suppress(Failed):  # it may be done already
                self.node.limit_block_job(self.order.vm, disk.target, self.order.bandwidth)
        held = partial(is_held, self.node, self.order.vm, self.domain.state)
        job.wait(self.node, self.order.vm, self.order.timeout, held)
        go_on(self.node, self.order.vm, self.domain.state)

    def _pack(self, disk: Disk, copy: Path) -> None:
        held = f"QEMU keeps its copy of {disk.target} of {self.order.vm} open; see whether {self.order.root} works"
        until(partial(files.is_free, copy), CLOSE_SECONDS, held)
        below = self.base.id if self.base is not None and disk.noted else None
        files.pack(copy, self.part / files.image_name(disk.target), below, self.style)

    def _copy_images(self, snapshot: str) -> datetime:
        """RBD keeps the moment, so that the VM may do meanwhile what it likes."""
        order, domain, name = self.order, self.domain, self.domain.name
        several = len(self.disks) > 1 and order.mode == "snapshot" and domain.state == "running"
        pause = still(self.node, name, domain.uuid, partial(self.node.suspend, name)) if several else nullcontext()
        with moment_of(self.node, domain, order.mode, order.quiesce, order.shutdown_timeout) as seen:
            with pause:
                rbd.take(self.disks, snapshot)
            moment = datetime.now(timezone.utc)
        self.quiesced = seen["quiesced"]
        for disk in self.disks:
            image = self.part / files.image_name(disk.target)
            if self.base is None:
                rbd.copy(disk, snapshot, image, self.style)
                continue
            copy, pair = self.part / f"{disk.target}.copy", (self.base.manifest["checkpoint"], snapshot)
            rbd.copy_changed(disk, pair, copy, self.style)
            files.pack(copy, image, self.base.id, self.style)
            copy.unlink(missing_ok=True)
        self.checkpoint = snapshot if order.checkpoint and order.type == "incremental" else None
        if self.checkpoint is None:
            rbd.drop(rbd.identities(self.disks), [snapshot])
        return moment

    def _copy_origins(self, asked: Mapping[str, Any]) -> datetime:
        """The storage keeps the moment, and somebody else saw to it that the guest stood still."""
        found = origins.of_disks(self.node, self.domain, asked)
        self.quiesced, self.checkpoint = bool(asked["quiesced"]), None
        for number, disk in enumerate(self.disks):
            image = self.part / files.image_name(disk.target)
            self.disks[number] = origins.copy(disk, found[disk.target], image, self.style)
        return store.moment(asked["moment"] or self.id)

    def _start(self, copies: dict[str, str]) -> None:
        """Have QEMU begin; a full one where libvirt can't tell what has changed."""
        name, noted = self.order.vm, [disk.target for disk in self.disks if disk.noted]
        others = [*self.spared, *(target for target in copies if target not in noted)]
        self.checkpoint = job.checkpoint_name(self.id) if self.order.checkpoint and noted else None
        mark = self.checkpoint and job.checkpoint_xml(self.checkpoint, noted, others)
        with job.known_key(self.node, self.secret, self.key) as secret:
            if self.base is not None:
                try:
                    self._adopt(self.base)
                    base = self.base.manifest["checkpoint"]
                    xml = job.backup_xml(copies, self.spared, base, noted, secret)
                    return self.node.begin_backup(name, xml, mark, made=secret is not None)
                except DroverError as error:
                    if self.node.backup(name) is not None:
                        raise
                    self.reason = f"libvirt can't tell what has changed since {self.base.id}: {error.message}"
                    self.base = None
                    check_room(self.order.root, room_needed(self.node, self.order, self.disks, None))
                    for path in copies.values() if secret is None else ():
                        Path(path).unlink(missing_ok=True)
            xml = job.backup_xml(copies, self.spared, None, noted, secret)
            return self.node.begin_backup(name, xml, mark, made=secret is not None)

    def _adopt(self, base: Backup) -> None:
        """A VM that came from another node has the marks in its disks, and libvirt here has to be told."""
        if base.manifest["checkpoint"] not in self.node.checkpoints(self.order.vm):
            self.node.adopt_checkpoint(self.order.vm, self.kept[files.CHECKPOINT].decode())

    def _copy_stopped(self) -> datetime:
        """QEMU's own locks keep the VM from being started meanwhile, where its disks are files of this node."""
        moment, self.checkpoint = datetime.now(timezone.utc), None
        for disk in self.disks:
            image, source = self.part / files.image_name(disk.target), files.Source(str(disk.path), disk.format)
            files.copy(source, image, self.style)
        if not is_off(self.node, self.order.vm):
            raise Failed(f"{self.order.vm} was started while its disks were copied; nothing is kept. Run this again")
        return moment

    def _finish(self, moment: datetime) -> Backup:
        """All that is not an image; then it gets its name."""
        domain, part, base = self.domain, self.part, self.base
        now = self.node.domain(self.order.vm) or domain
        parts = files.state_of(parse(now.live_xml or now.xml), domain.name, domain.uuid)
        parts[files.DEFINITION] = now.xml.encode()
        if self.checkpoint and not self.snapshot:
            parts[files.CHECKPOINT] = self.node.checkpoint(self.order.vm, self.checkpoint).encode()
        files.keep(parts, part, self.order.passphrase, self.key)
        for disk in self.disks:
            store.check_image(part / files.image_name(disk.target), self.key)
        manifest = {
            "id": self.id,
            "vm": {"name": domain.name, "uuid": domain.uuid},
            "type": "full" if base is None else "incremental",
            "reason": self.reason if self.reason and self.order.type != "full" else None,
            "base": None if base is None else base.id,
            "history": self.id if base is None else base.history,
            "moment": moment.strftime(store.STAMP),
            "finished": datetime.now(timezone.utc).strftime(store.STAMP),
            "node": self.node.name,
            "mode": self.order.mode,
            "quiesced": self.quiesced,
            "state": domain.state,
            "checkpoint": self.checkpoint,
            "encryption": None if self.key is None else "luks",
            "disks": [disk.facts() for disk in self.disks],
            "not_included": self.spared,
        }
        files.seal(part, manifest, readme(manifest, parts, part))
        (part / store.BEGUN).unlink()
        folder = part.rename(self.place / self.id)
        sync([str(self.place)])
        backups = store.read(self.order.root, self.order.vm)
        marks = [one.manifest["checkpoint"] for one in backups if one.id != self.id and one.manifest["checkpoint"]]
        if self.snapshot:
            rbd.drop(rbd.identities(self.disks), marks)
        elif self.checkpoint:
            job.drop_all(self.node, self.order.vm, marks)
        return next(one for one in backups if one.folder == folder)
