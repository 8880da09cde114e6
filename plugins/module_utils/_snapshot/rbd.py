# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of RBD images, see https://docs.ceph.com/en/reef/rbd/rbd-snapshot/. The mark is an image's metadata.

They need no group of RBD: an image can be in one group only, which may be somebody else's. Those of several images are
of one moment as the VM stands still meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from xml.etree.ElementTree import Element

from .._disks import rbd
from .._rbd import Images
from .storage import Extent, Look, Part, Storage


class Image:
    """One image."""

    def __init__(self, images: Images, image: str) -> None:
        self.images, self.image = images, image
        self.name = f"{images.pool}/{image}"

    def look(self) -> Look:
        """What it is now."""
        found = self.images.look(self.image, rbd.SNAPSHOT)
        # Those of backups are no ways back: the next backup takes them away.
        kept = [one for one in found["snapshots"] if not one["name"].startswith(rbd.BACKUP)]
        parts = [Part(**{**one, "id": str(one["id"])}) for one in kept]
        return Look(found["size"], found["watchers"], found["marks"], parts)

    def mark(self, snapshot: str, text: str | None) -> None:
        """Note something of a snapshot, or nothing any more."""
        if text is None:
            self.images.unmark(self.image, rbd.SNAPSHOT + snapshot)
        else:
            self.images.mark(self.image, rbd.SNAPSHOT + snapshot, text)

    def take(self, snapshot: str) -> str:
        """Make it."""
        return str(self.images.take(self.image, snapshot))

    def drop(self, snapshot: str) -> None:
        """Remove it."""
        self.images.drop(self.image, snapshot)

    def roll_back(self, snapshot: str) -> None:
        """Set the image back to it."""
        self.images.roll_back(self.image, snapshot)

    def written(self, since: str) -> list[Extent]:
        """What was written since."""
        return [Extent(*one) for one in self.images.written(self.image, since)]

    def held(self, parts: Iterable[Part]) -> dict[str, int | None]:
        """What came with each since the one before it, in whole objects, as `rbd du` tells it."""
        found: dict[str, int | None] = {}
        before = None
        for part in parts:
            found[part.name] = self.images.used(self.image, before, part.name)
            before = part.name
        return found

    def is_like(self, snapshot: str, places: Collection[tuple[int, int]]) -> bool:
        """Whether it is what it was, there."""
        return self.images.is_like(self.image, snapshot, places)


@contextmanager
def _opened(disk: Element) -> Iterator[Image]:
    options = {field.name: field.place.get(disk) for field in rbd.FIELDS if field.place}
    with rbd.opened(options) as images:
        yield Image(images, options["image"])


def _in_use(volume: str, users: Sequence[str]) -> str:
    return rbd.in_use(volume, list(users), "is not set back")


STORAGE = Storage("rbd", rbd.RBD.recognises, _opened, _in_use)
