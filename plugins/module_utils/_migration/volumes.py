# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a VM's disks that are copied to another node: room there, new ones, and away with those left behind.

At the destination all goes through libvirt's storage pools, which reach any node that a migration reaches. A file that
was made for a copy has a claim beside it, an empty file of its name with CLAIM: what has no claim is not ours and is
never deleted there. The claim goes when the copy has become the VM's disk; its mark was set by the node's own hook.
What a VM that is off keeps of UEFI and a TPM goes the same way, by its content; of one that runs the file of UEFI's
variables has a claim for as long as it moves, as libvirt leaves that file where a move has failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from .._disks import file
from .._domain import state_files
from .._errors import DroverError, Failed, NotFound, Refused
from .._libvirt import Node, libvirt, translated

CLAIM = ".drover-copy"
POOL = "drover-copies"
# Two helpers may have the same folder open, and the one that is done closes it for both.
TRIES = 10
PAUSE = 0.3
PASSING = ("NO_STORAGE_POOL", "OPERATION_INVALID", "OPERATION_FAILED")


class Volumes:
    """The files of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node.name
        self.connection = node.connection

    def room(self, folders: Iterable[str]) -> dict[str, dict[str, Any]]:
        """By folder: the bytes that are `free` and the `names` in it; or the `error`, where it can't be opened."""
        found: dict[str, dict[str, Any]] = {}

        def look(pool: Any) -> dict[str, Any]:
            return {"free": pool.info()[3], "names": pool.listVolumes()}

        for folder in sorted(set(folders)):
            try:
                found[folder] = self._in(folder, look, build=False)
            except DroverError as error:
                found[folder] = {"error": error.message}
        return found

    def make(self, copies: Iterable[Mapping[str, Any]]) -> None:
        """Make the empty files, each with its claim; one that an earlier copy left is replaced. Raises Failed."""
        for copy in copies:
            path = PurePosixPath(copy["path"])
            self.remove([str(path)])
            self._make(path, copy["format"], copy["size"])
            self._make(path.with_name(path.name + CLAIM), "raw", 0)

    def _make(self, path: PurePosixPath, image_format: str, size: int) -> None:
        text = volume_xml(path.name, image_format, size)
        self._in(str(path.parent), lambda pool: pool.createXML(text, 0))

    def remove(self, paths: Iterable[str]) -> None:
        """Delete the files that have a claim, then their claims."""
        for path in map(PurePosixPath, paths):
            if path.name + CLAIM in self._in(str(path.parent), lambda pool: pool.listVolumes()):
                self._delete(path)
        self.release(paths)

    def claim(self, paths: Iterable[str]) -> None:
        """Claim files that libvirt is about to make here by itself. Raises Refused when one is there already."""
        wanted = [*paths]
        self.remove(wanted)
        if taken := self.taken(wanted):
            raise Refused(f"{self.node} has a file {', '.join(taken)} already")
        for path in map(PurePosixPath, wanted):
            self._make(path.with_name(path.name + CLAIM), "raw", 0)

    def taken(self, paths: Iterable[str]) -> list[str]:
        """Which of these files are there and have no claim; a folder that is not there has none."""
        places = [PurePosixPath(path) for path in paths]
        names = {folder: room.get("names", ()) for folder, room in self.room(str(one.parent) for one in places).items()}
        there = {path: names[str(path.parent)] for path in places}
        return [str(path) for path, own in there.items() if path.name in own and path.name + CLAIM not in own]

    def read(self, path: str) -> bytes:
        """The content of a file. Raises NotFound."""
        place, found = PurePosixPath(path), bytearray()

        def download(pool: Any) -> None:
            stream = self.connection.newStream(0)
            pool.storageVolLookupByName(place.name).download(stream, 0, 0, 0)
            stream.recvAll(lambda _stream, data, _opaque: found.extend(data), None)
            stream.finish()

        self._in(str(place.parent), download)
        return bytes(found)

    def write(self, path: str, content: bytes) -> None:
        """Make a file, with its claim, that nobody but root can read, and see what it holds then. Raises Failed."""
        place, rest = PurePosixPath(path), memoryview(content)
        self.make([{"path": path, "format": "raw", "size": len(content)}])

        def upload(pool: Any) -> None:
            sent = 0

            def piece(_stream: Any, size: int, _opaque: Any) -> bytes:
                nonlocal sent
                sent += size
                return bytes(rest[sent - size : sent])

            stream = self.connection.newStream(0)
            pool.storageVolLookupByName(place.name).upload(stream, 0, len(content), 0)
            stream.sendAll(piece, None)
            stream.finish()

        self._in(str(place.parent), upload)
        if self.read(path) != content:
            raise Failed(f"{path} on {self.node} does not hold what was written to it")

    def forget(self, paths: Iterable[str]) -> None:
        """Delete files of UEFI and of a TPM; an empty folder of the TPM is as good as none, and stays."""
        for path in map(PurePosixPath, paths):
            self._delete(path)
            if own(str(path.parent)):
                self._delete(path.with_name(state_files.LOCK))

    def release(self, paths: Iterable[str]) -> None:
        """Delete the claims: the files are a VM's now."""
        for path in map(PurePosixPath, paths):
            self._delete(path.with_name(path.name + CLAIM))

    def _delete(self, path: PurePosixPath) -> None:
        with suppress(NotFound):
            self._in(str(path.parent), lambda pool: pool.storageVolLookupByName(path.name).delete(0))

    def _in(self, folder: str, call: Callable[[Any], Any], build: bool = True) -> Any:
        """Call with the pool of a folder, which is there for as long as that takes, unless the node has one anyway."""
        for left in reversed(range(TRIES)):
            try:
                with translated(f"{folder} on {self.node}"):
                    return self._open(folder, call, build)
            except DroverError as error:
                if not left or error.details.get("code") not in PASSING:
                    raise
                time.sleep(PAUSE)
        raise Failed(f"{folder} on {self.node} can't be opened")

    def _open(self, folder: str, call: Callable[[Any], Any], build: bool) -> Any:
        try:
            pool = self.connection.storagePoolLookupByTargetPath(folder)
            pool.refresh(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise
            # That of a TPM comes with it, and only root can enter it.
            flags = libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD if own(folder) and build else 0
            pool = self.connection.storagePoolCreateXML(pool_xml(folder), flags)
        try:
            return call(pool)
        finally:
            if pool.name() == POOL:
                pool.destroy()


def own(folder: str) -> bool:
    """Whether it is the folder of one TPM."""
    return state_files.TPM in PurePosixPath(folder).parents


def pool_xml(folder: str) -> str:
    """The pool of a folder."""
    pool = Element("pool", {"type": "dir"})
    SubElement(pool, "name").text = POOL
    target = SubElement(pool, "target")
    SubElement(target, "path").text = folder
    if own(folder):
        SubElement(SubElement(target, "permissions"), "mode").text = "0700"
    return tostring(pool, "unicode")


def volume_xml(name: str, image_format: str, size: int) -> str:
    """An empty volume that nobody but root can read."""
    volume = Element("volume")
    SubElement(volume, "name").text = name
    SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size)
    SubElement(volume, "allocation").text = "0"
    target = SubElement(volume, "target")
    SubElement(target, "format", {"type": image_format})
    SubElement(SubElement(target, "permissions"), "mode").text = "0600"
    if image_format == "qcow2":
        SubElement(target, "compat").text = "1.1"
    return tostring(volume, "unicode")


def remove_originals(paths: Iterable[str], uuid: str, used: Callable[[str], bool]) -> list[str]:
    """Delete the files, on this node, that the VM has left behind; returns those that stay.

    A file stays when we did not make it for this VM, a domain of this node (`used`) still has it, or a file beside it
    is based on it.
    """
    left = []
    for path in paths:
        if Path(path).exists():
            if file.read_mark(path) != uuid or used(path) or file.based(f"file:{path}"):
                left.append(path)
            else:
                file.remove(f"file:{path}", uuid)
    return left
