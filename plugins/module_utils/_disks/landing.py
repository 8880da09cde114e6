# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running VM's disk is copied to: one small class for each kind of storage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Callable, NamedTuple

from .._errors import Failed, Refused
from .._run import run, run_json
from . import file, rbd
from .kind import Options

# A partition table, a boot sector, the label of LVM and the super block of a file system are all within it.
BEGINNING = 2**20


class Place(NamedTuple):
    """What a disk shall lie on, as it is now.

    `exists`: something is there that must not be written to, unless it is a copy of ours which was not finished
    (`unfinished`). `free`: the bytes that there are for a new one; None where nobody can tell. A volume that must be
    there beforehand has its `size` in bytes, and is `blank` when its beginning reads as zeroes.
    """

    identity: str
    format: str
    exists: bool
    unfinished: bool = False
    free: int | None = None
    size: int | None = None
    blank: bool = True

    @property
    def name(self) -> str:
        """The storage, for people."""
        return self.identity.partition(":")[2]


class FileLanding:
    """A file, which is made for the copy."""

    def __init__(self, options: Options, uuid: str, password: Callable[[str, str], str]) -> None:
        self.options, self.uuid, self.password = options, uuid, password

    def look(self, identity: str, _used: bool) -> Place:
        """What is there. Raises Refused for what must not be a disk, Invalid without a folder."""
        path = self.options["path"]
        exists = file.inspect({"path": path, "format": "raw"}) is not None
        return Place(identity, self.options["format"], exists, file.is_unfinished(path, self.uuid), file.room(path))

    def prepare(self, size: int) -> bool:
        """Make it; False when it could not be marked as ours."""
        return file.create(self.options, size, self.uuid, unfinished=True)

    def finish(self) -> None:
        """The VM uses it from now on."""
        file.finish(self.options["path"])

    def clean(self) -> None:
        """Delete what an unfinished copy left."""
        path = self.options["path"]
        if file.is_unfinished(path, self.uuid):
            file.remove(f"file:{path}", self.uuid)


class RbdLanding(FileLanding):
    """An image of Ceph, which is made for the copy."""

    def look(self, identity: str, _used: bool) -> Place:
        """What is there. Raises Unreachable and Refused."""
        exists = rbd.inspect(self.options) is not None
        return Place(identity, "raw", exists, exists and rbd.is_unfinished(self.options, self.uuid))

    def prepare(self, size: int) -> bool:
        """Make it."""
        return rbd.create({**self.options, "source": None}, size, self.uuid, unfinished=True)

    def finish(self) -> None:
        """The VM uses it from now on."""
        rbd.finish(self.options)

    def clean(self) -> None:
        """Move what an unfinished copy left to the trash."""
        volume = rbd.inspect(self.options)
        if volume and rbd.is_unfinished(self.options, self.uuid):
            rbd.remove(volume.identity, self.uuid)


class IscsiLanding(FileLanding):
    """A volume of the SAN, which is there beforehand."""

    def look(self, identity: str, used: bool) -> Place:
        """What the SAN says of it; a volume that the VM has open already (`used`) is not logged in to once more."""
        if used:
            return Place(identity, "raw", exists=True)
        try:
            facts = run_json(*self._command("info", "--output=json", "--image-opts", self._image()))
        except Failed as error:
            words = str(error.details.get("stderr", error.message)).rpartition(": iSCSI: ")[2]
            raise Refused(f"{identity.partition(':')[2]} can't be opened by the VM: {words}") from None
        return Place(identity, "raw", exists=True, size=int(facts["virtual-size"]), blank=self._blank())

    def prepare(self, _size: int) -> bool:
        """Nothing is to be made."""
        return True

    def finish(self) -> None:
        """It carries no mark of an unfinished copy."""

    def clean(self) -> None:
        """The volume stays; it is the SAN's."""

    def _image(self) -> str:
        options = self.options
        values = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": options["portal"],
            "target": options["iqn"],
            "lun": options["lun"],
            "initiator-name": options["initiator"],
            "user": options["user"] or None,
            "password-secret": "chap" if options["user"] else None,
        }
        return ",".join(f"{name}={value}" for name, value in values.items() if value is not None)

    def _command(self, verb: str, *words: str) -> tuple[list[str], str | None]:
        if not self.options["user"]:
            return ["qemu-img", verb, *words], None
        password = self.password("iscsi", self.options["secret"])
        return ["qemu-img", verb, "--object", "secret,id=chap,file=/dev/stdin", *words], password

    def _blank(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "beginning"
            words = ["--image-opts", "-O", "raw", f"bs={BEGINNING}", "count=1", f"if={self._image()}", f"of={out}"]
            run(*self._command("dd", *words))
            return not any(out.read_bytes())


LANDINGS = {"file": FileLanding, "rbd": RbdLanding, "iscsi": IscsiLanding}
