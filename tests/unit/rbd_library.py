# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Ceph cluster in memory that answers as the libraries of RADOS and RBD do, as far as the collection asks them."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


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
    """Images by name; `trash` is what was moved there; the user has no rights in a pool that is `shut`."""

    def __init__(self) -> None:
        super().__init__()
        self.trash: list[str] = []
        self.shut = False
        self.flags = "hashpspool"

    def add(self, name: str, size: int, **more: Any) -> None:
        self[name] = {"size": size, "meta": {}, "watchers": [], "snaps": {}, "parent": None, **more}


class Image:
    """One open image."""

    def __init__(self, pool: Pool, name: str, read_only: bool = False) -> None:
        if name not in pool:
            raise Missing(name)
        self.pool, self.data, self.read_only = pool, pool[name], read_only

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def size(self) -> Any:
        return self.data["size"]

    def metadata_list(self) -> Any:
        return iter(self.data["meta"].items())

    def metadata_set(self, key: str, value: str) -> None:
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
        return iter([{"name": name, "size": snap["size"]} for name, snap in self.data["snaps"].items()])

    def is_protected_snap(self, name: str) -> Any:
        return self.data["snaps"][name]["protected"]


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
        self.rbd = SimpleNamespace(Error=Error, ImageNotFound=Missing, Image=Image, RBD=Rbd)

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
