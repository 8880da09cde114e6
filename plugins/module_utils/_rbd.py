# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of RBD: the images of one pool or namespace. The only file that imports the library.

Every verb takes the open pool (an `ioctx` of the library of RADOS). Nothing here opens an image for writing longer than
one verb, so the module never is one of the watchers that it looks for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timezone
from typing import Any

from ._errors import DroverError, Failed, NotFound, Refused, TimedOut, Unreachable

try:
    import rbd
except ImportError:
    rbd = None

USERS_OWN = 0  # RBD_SNAP_NAMESPACE_TYPE_USER: neither of a group, nor of mirroring, nor in the trash
Extent = tuple[int, int, bool]
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


def is_there() -> bool:
    """Whether the library is installed."""
    return rbd is not None


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
                    "watchers": _watchers(opened),
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
        self._clear(part, marks)
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

    def _clear(self, image: str, marks: Mapping[str, str]) -> None:
        """Remove what an interrupted run left: it has its marks, or none yet and nothing in it. Raises Refused."""
        known = {key: self.info(image, key) for key in marks}
        found = {key: one["mark"] for key, one in known.items() if one}
        if not found:
            return
        used = any(one["watchers"] for one in known.values() if one)
        if found != marks and (used or any(found.values()) or self.written(image, None)):
            raise Refused(f"{self._name(image)} exists and is not ours; it is left alone")
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

    # ---- snapshots

    def look(self, image: str, prefix: str) -> dict[str, Any]:
        """Size in bytes, watchers, the metadata whose names begin with `prefix`, and its snapshots, the oldest first.

        Each with `name`, `id` (never used twice), `size` in bytes, `time` (s since the epoch) and `protected`.
        """
        with translated(f"look at {self._name(image)}"), rbd.Image(self.ioctx, image, read_only=True) as opened:
            own = [one for one in opened.list_snaps() if one.get("namespace", USERS_OWN) == USERS_OWN]
            found = []
            for one in sorted(own, key=lambda one: one["id"]):
                moment = opened.get_snap_timestamp(one["id"]).replace(tzinfo=timezone.utc).timestamp()
                told = {name: one[name] for name in ("name", "id", "size")}
                found.append({**told, "time": moment, "protected": bool(opened.is_protected_snap(one["name"]))})
            marks = {key[len(prefix) :]: text for key, text in opened.metadata_list() if key.startswith(prefix)}
            return {"size": opened.size(), "watchers": _watchers(opened), "marks": marks, "snapshots": found}

    def mark(self, image: str, key: str, text: str) -> None:
        """Write one of its metadata."""
        with translated(f"mark {self._name(image)}"), rbd.Image(self.ioctx, image) as opened:
            opened.metadata_set(key, text)

    def take(self, image: str, name: str) -> int:
        """Make a snapshot; returns its id. Who has the image open makes it, and writes out before what it holds."""
        with translated(f"make snapshot {name} of {self._name(image)}"), rbd.Image(self.ioctx, image) as opened:
            opened.create_snap(name)
            return int(opened.snap_get_id(name))

    def drop(self, image: str, name: str) -> None:
        """Remove a snapshot."""
        with translated(f"remove snapshot {name} of {self._name(image)}"), rbd.Image(self.ioctx, image) as opened:
            opened.remove_snap(name)

    def roll_back(self, image: str, name: str) -> None:
        """Make the image what it was, its size too; one that was broken off is gone on with by the same call."""
        with translated(f"set {self._name(image)} back to {name}"), rbd.Image(self.ioctx, image) as opened:
            opened.rollback_to_snap(name)

    def written(self, image: str, since: str | None, until: str | None = None) -> list[Extent]:
        """What was written (or, with False, discarded) between two snapshots, or until now: offsets, lengths in bytes.

        All objects are asked, as `rbd export-diff` does. The feature fast-diff would be quicker, and misses what a
        rollback between the two has undone (seen with Ceph 18.2).
        """
        found: list[Extent] = []
        what = f"compare {self._name(image)} with {since}"
        with translated(what), rbd.Image(self.ioctx, image, snapshot=until, read_only=True) as opened:
            opened.diff_iterate(0, opened.size(), since, lambda *one: found.append(one), False, False)
        return found

    def used(self, image: str, since: str | None, until: str | None, parents: bool = False) -> int | None:
        """About how many bytes an image or a snapshot (`until`) has more than an older one: those of whole objects.

        `parents`: of a clone also those that are its template's. None for an image without the feature fast-diff.
        """
        found: list[Extent] = []
        what = f"measure {self._name(image)}"
        with translated(what), rbd.Image(self.ioctx, image, snapshot=until, read_only=True) as opened:
            if not opened.features() & rbd.RBD_FEATURE_FAST_DIFF:
                return None
            opened.diff_iterate(0, opened.size(), since, lambda *one: found.append(one), parents, True)
        return sum(length for _offset, length, there in found if there)

    def is_like(self, image: str, name: str, places: Collection[tuple[int, int]]) -> bool:
        """Whether it holds in these places (offset and length in bytes) what the snapshot has there."""
        found = []
        for snapshot in (None, name):
            what = f"read {self._name(image)}"
            with translated(what), rbd.Image(self.ioctx, image, snapshot=snapshot, read_only=True) as opened:
                size = opened.size()
                found.append([size, *(opened.read(*place) for place in places if sum(place) <= size)])
        return found[0] == found[1]


def _watchers(opened: Any) -> list[str]:
    return sorted({one["addr"].rpartition(":")[0] for one in opened.watchers_list()})
