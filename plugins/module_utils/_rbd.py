# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of RBD: the images of one pool or namespace. The only file that imports the library.

Every verb takes the open pool (an `ioctx` of the library of RADOS). Nothing here opens an image for writing longer than
one verb, so the module never is one of the watchers that it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ._errors import DroverError, Failed, NotFound, Refused, TimedOut, Unreachable

try:
    import rbd
except ImportError:
    rbd = None

ERRORS: dict[int, type[DroverError]] = {1: Refused, 2: NotFound, 13: Refused, 16: Refused, 17: Refused, 110: TimedOut}


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the library as ours, with what was asked and of which image. Raises Refused, NotFound, Failed ..."""
    if rbd is None:
        raise NotFound("the Python library of RBD is missing on this node; install python3-rbd (role ceph_client)")
    try:
        yield
    except rbd.Error as error:
        number = abs(getattr(error, "errno", 0) or 0)
        if number == 108:
            raise Unreachable(f"{what}: this client is blocklisted by the cluster", errno=number) from None
        raise ERRORS.get(number, Failed)(f"{what}: {error}", errno=number) from None


class Images:
    """The images of one pool, or of one of its namespaces; `pool` is its name for messages."""

    def __init__(self, ioctx: Any, pool: str) -> None:
        self.ioctx = ioctx
        self.pool = pool

    def _name(self, image: str) -> str:
        return f"{self.pool}/{image}"

    def names(self) -> list[str]:
        """All images."""
        with translated(f"list the images of {self.pool}"):
            return sorted(rbd.RBD().list(self.ioctx))

    def info(self, image: str, key: str) -> dict[str, Any] | None:
        """Size in bytes, metadata of the name `key`, and watchers (addresses); None when there is no image."""
        try:
            with translated(f"look at {self._name(image)}"), rbd.Image(self.ioctx, image, read_only=True) as opened:
                return {
                    "size": opened.size(),
                    "mark": dict(opened.metadata_list()).get(key),
                    "watchers": sorted({one["addr"].rpartition(":")[0] for one in opened.watchers_list()}),
                }
        except NotFound:
            if rbd is None:
                raise
            return None

    def create(self, image: str, size: int, marks: Mapping[str, str], source: tuple[Images, str, str] | None) -> None:
        """Make an image with these metadata, empty or as a clone of a snapshot (`source`: where, image, name).

        It is made under another name first: what is there under its own name is whole and carries its marks.
        """
        part = f"{image}.part"
        if self.info(part, "") is not None:
            self._remove(part)
        with translated(f"make {self._name(image)}"):
            if source is None:
                rbd.RBD().create(self.ioctx, part, size, old_format=False)
            else:
                rbd.RBD().clone(source[0].ioctx, source[1], source[2], self.ioctx, part)
            with rbd.Image(self.ioctx, part) as opened:
                for key, value in marks.items():
                    opened.metadata_set(key, value)
                if opened.size() < size:
                    opened.resize(size)
            rbd.RBD().rename(self.ioctx, part, image)

    def _remove(self, image: str) -> None:
        with translated(f"remove {self._name(image)}, which an interrupted run left"):
            rbd.RBD().remove(self.ioctx, image)

    def unmark(self, image: str, key: str) -> None:
        """Take a mark away; that it is not there is no error."""
        with translated(f"unmark {self._name(image)}"), rbd.Image(self.ioctx, image) as opened:
            if key in dict(opened.metadata_list()):
                opened.metadata_remove(key)

    def grow(self, image: str, size: int) -> None:
        """Make an image bigger; never smaller."""
        with translated(f"grow {self._name(image)}"), rbd.Image(self.ioctx, image) as opened:
            if opened.size() < size:
                opened.resize(size)

    def snapshot(self, image: str, name: str) -> dict[str, Any] | None:
        """Size in bytes of a snapshot, and whether it is protected; None when there is none."""
        try:
            with translated(f"look at {self._name(image)}"), rbd.Image(self.ioctx, image, read_only=True) as opened:
                found = next((one for one in opened.list_snaps() if one["name"] == name), None)
                return {"size": found["size"], "protected": opened.is_protected_snap(name)} if found else None
        except NotFound:
            if rbd is None:
                raise
            return None

    def trash(self, image: str) -> None:
        """Move an image to the trash of its pool, from where it can be restored until somebody purges it."""
        with translated(f"move {self._name(image)} to the trash"):
            rbd.RBD().trash_move(self.ioctx, image, 0)
