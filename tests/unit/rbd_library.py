# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Ceph cluster in memory that answers as the libraries of RADOS and RBD do, as far as the collection asks them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from types import SimpleNamespace
from typing import Any

OBJECT = 4 << 20
FAST_DIFF = 16
USER = 0
IDS = count(4)


class Error(Exception):
    """An error of the library."""

    def __init__(self, words: str, errno: int) -> None:
        super().__init__(words)
        self.errno = errno


class Missing(Error):
    """There is no such thing."""

    def __init__(self, words: str) -> None:
        super().__init__(f"[errno 2] RBD image not found ({words})", 2)


class Pool(dict[str, Any]):
    """Images by name, with what is written to them by offset (`data`), also in each of their `snaps`.

    `trash` is what was moved there; the user has no rights in a pool that is `shut`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trash: list[str] = []
        self.shut = False
        self.flags = "hashpspool"

    def add(self, name: str, size: int, **more: Any) -> None:
        fresh: dict[str, Any] = {"size": size, "meta": {}, "watchers": [], "snaps": {}, "parent": None, "data": {}}
        fresh["unseen"] = set()
        self[name] = {**fresh, "features": FAST_DIFF, **more}

    def snap(self, name: str, snap: str, **more: Any) -> None:
        """What somebody does with `rbd snap create`."""
        image = self[name]
        if snap in image["snaps"]:
            raise Error(f"[errno 17] RBD image exists (error creating snapshot {snap} from {name})", 17)
        own = {"id": next(IDS), "size": image["size"], "time": time.time(), "protected": False, "namespace": USER}
        image["snaps"][snap] = {**own, "data": dict(image["data"]), **more}


class Image:
    """One open image, or one of its snapshots."""

    def __init__(self, pool: Pool, name: str, snapshot: str | None = None, read_only: bool = False) -> None:
        if name not in pool or (snapshot and snapshot not in pool[name]["snaps"]):
            raise Missing(name)
        self.pool, self.name, self.data = pool, name, pool[name]
        self.read_only = read_only or snapshot is not None
        self.seen = self.data["snaps"][snapshot] if snapshot else self.data

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def size(self) -> Any:
        return self.seen["size"]

    def features(self) -> Any:
        return self.data["features"]

    def metadata_list(self) -> Any:
        return iter(self.data["meta"].items())

    def metadata_set(self, key: str, value: str) -> None:
        assert not self.read_only
        self.data["meta"][key] = value

    def metadata_remove(self, key: str) -> None:
        assert not self.read_only
        del self.data["meta"][key]

    def watchers_list(self) -> Any:
        return iter([{"addr": f"{one}:0/1234", "id": 1, "cookie": 1} for one in self.data["watchers"]])

    def resize(self, size: int) -> None:
        assert not self.read_only
        self.data["size"] = size

    def list_snaps(self) -> Any:
        keys = ("id", "size", "namespace")
        return iter([{"name": name, **{key: snap[key] for key in keys}} for name, snap in self.data["snaps"].items()])

    def get_snap_timestamp(self, number: int) -> Any:
        (moment,) = [snap["time"] for snap in self.data["snaps"].values() if snap["id"] == number]
        return datetime.fromtimestamp(moment, timezone.utc).replace(tzinfo=None, microsecond=0)

    def is_protected_snap(self, name: str) -> Any:
        return self.data["snaps"][name]["protected"]

    def snap_get_id(self, name: str) -> Any:
        return self.data["snaps"][name]["id"]

    def create_snap(self, name: str) -> None:
        assert not self.read_only
        self.pool.snap(self.name, name)

    def remove_snap(self, name: str) -> None:
        assert not self.read_only
        if name not in self.data["snaps"]:
            raise Missing(f"{self.name}@{name}")
        if self.data["snaps"][name]["protected"]:
            raise Error(f"[errno 16] RBD image is busy (error removing snapshot {name} from {self.name})", 16)
        del self.data["snaps"][name]

    def rollback_to_snap(self, name: str) -> None:
        assert not self.read_only and not self.data["watchers"]
        snap = self.data["snaps"][name]
        old, new = self.data["data"], snap["data"]
        self.data["unseen"] |= {one for one in {*old, *new} if old.get(one) != new.get(one)}
        self.data.update(size=snap["size"], data=dict(snap["data"]))

    def diff_iterate(
        self, offset: int, length: int, since: str | None, call: Any, include_parent: bool, whole_object: bool
    ) -> None:
        """A write is of 512 bytes here, and an object of 4 MiB. Whole objects come from the map of them, which a
        rollback puts back too: later it knows nothing of what was undone.
        """
        assert whole_object or not include_parent
        old, new = self.data["snaps"][since]["data"] if since else {}, self.seen["data"]
        changed = [one for one in sorted({*old, *new}) if old.get(one) != new.get(one) and 0 <= one - offset < length]
        if whole_object:
            objects = sorted({one // OBJECT for one in changed if one not in self.data["unseen"]})
            found = [(one * OBJECT, OBJECT, any(place // OBJECT == one for place in new)) for one in objects]
        else:
            found = [(one, 512, one in new) for one in changed]
        for one in found:
            call(*one)

    def read(self, offset: int, length: int) -> bytes:
        """All that was written there, each write with its offset."""
        inside = {one: text for one, text in self.seen["data"].items() if 0 <= one - offset < length}
        return repr(sorted(inside.items())).encode()


class Rbd:
    """What is done with whole images."""

    def list(self, pool: Pool) -> list[str]:
        if pool.shut:
            raise Error("[errno 1] RBD permission error", 1)
        return sorted(pool)

    def create(self, pool: Pool, name: str, size: int, old_format: bool) -> None:
        assert not old_format
        pool.add(name, size)

    def clone(self, parents: Pool, parent: str, snap: str, pool: Pool, name: str) -> None:
        pool.add(name, parents[parent]["snaps"][snap]["size"], parent=f"{parent}@{snap}")

    def rename(self, pool: Pool, old: str, new: str) -> None:
        if new in pool:
            raise Error("[errno 17] RBD image exists", 17)
        pool[new] = pool.pop(old)

    def remove(self, pool: Pool, name: str) -> None:
        del pool[name]

    def trash_move(self, pool: Pool, name: str, delay: int) -> None:
        pool.trash.append(name)
        del pool[name]


class Cluster:
    """The pools of a cluster by name, or by `POOL/NAMESPACE`; `users` is who asked."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {"vms": Pool(), "other": Pool()}
        self.users: list[str] = []
        names = {"Error": Error, "ImageNotFound": Missing, "Image": Image, "RBD": Rbd}
        self.rbd = SimpleNamespace(**names, RBD_FEATURE_FAST_DIFF=FAST_DIFF)

    @contextmanager
    def connect(self, options: dict[str, Any]) -> Any:
        self.users.append(options["user"])
        yield self

    @contextmanager
    def pool(self, name: str, namespace: str = "") -> Any:
        yield self.pools[f"{name}/{namespace}" if namespace else name]

    def ask(self, prefix: str) -> Any:
        assert prefix == "osd dump"
        said: dict[str, Any] = {"application_metadata": {"rbd": {}}}
        return {"pools": [{**said, "pool_name": name, "flags_names": pool.flags} for name, pool in self.pools.items()]}
