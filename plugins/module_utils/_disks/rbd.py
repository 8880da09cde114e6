# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image of a Ceph cluster, opened by QEMU itself: made, cloned, grown, and removed only through the trash.

The mark is the image's metadata `drover.vm` with the VM's UUID. See https://docs.ceph.com/en/reef/rbd/libvirt/.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .. import _ceph, _rbd
from .._ceph_conf import Conf, check_monitor, cluster_of, clusters, host_of, identity
from .._errors import Invalid, NotFound, Refused, Unreachable
from .._fields import Field, check_name, normalise
from .._identity import volume_name
from .._rbd import Images
from .._xml import Property, drop, find, make
from .iscsi import check_account, check_user
from .kind import ANOTHER, Kind, Options, Store, Volume

MARK = "drover.vm"
# Beside the mark: the image is a copy that no VM uses yet.
UNFINISHED = "drover.copy"
# Before the name of a snapshot: what module snapshot notes of it.
SNAPSHOT = "drover.snapshot."
# With it begin the names of the snapshots that module backup keeps.
BACKUP = "drover-backup-"
USER = "libvirt"
SILENT_SECONDS = 15.0
SOURCE = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)/([A-Za-z0-9][\w.-]*)@([A-Za-z0-9][\w.-]*)", re.ASCII)

_silent: dict[str, tuple[float, Unreachable | None]] = {}


@dataclass(frozen=True)
class Part:
    """Pool, namespace or image: libvirt keeps them in one attribute, `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`."""

    name: str

    def get(self, disk: Element) -> str | None:
        """The one part."""
        parts = (Property("source/@name").get(disk) or "").split("/")
        known = {"pool": parts[0], "namespace": parts[1] if len(parts) > 2 else "", "image": "/".join(parts[1:][-1:])}
        return known[self.name] or None

    def put(self, disk: Element, value: str | None) -> None:
        """Write the one part and keep the others."""
        parts = [value if name == self.name else Part(name).get(disk) for name in ("pool", "namespace", "image")]
        Property("source/@name").put(disk, "/".join([parts[0] or "", *(part for part in parts[1:] if part)]))


@dataclass(frozen=True)
class Auth:
    """User or secret; libvirt takes them in the source or beside it, and leaves them where they are."""

    path: str
    fixed: tuple[tuple[str, str], ...] = ()

    def _place(self, disk: Element) -> Property:
        where = "auth" if find(disk, "auth") is not None else "source/auth"
        return Property(f"{where}{self.path}", fixed=self.fixed)

    def get(self, disk: Element) -> Any:
        """The value."""
        return self._place(disk).get(disk)

    def put(self, disk: Element, value: str | None) -> None:
        """Write it."""
        self._place(disk).put(disk, value)


class Monitors:
    """The monitors, as in 10.231.5.21:6789."""

    def get(self, disk: Element) -> list[str]:
        """All hosts of the source."""
        source = find(disk, "source")
        hosts = [] if source is None else [child for child in source if child.tag == "host"]
        named = [(host.get("name", ""), host.get("port", "6789")) for host in hosts]
        return [f"{f'[{name}]' if ':' in name else name}:{port}" for name, port in named]

    def put(self, disk: Element, value: list[str]) -> None:
        """Write exactly these."""
        source = make(disk, "source")
        for child in [child for child in source if child.tag == "host"]:
            drop(source, child)
        for monitor in value:
            SubElement(source, "host", {"name": host_of(monitor), "port": monitor.rpartition(":")[2]})


def check_monitors(value: list[str]) -> list[str]:
    """Addresses with ports."""
    return [check_monitor(str(monitor)) for monitor in value]


FIELDS = (
    Field("pool", check=check_name, place=Part("pool"), fixed=ANOTHER),
    Field("image", check=lambda value: check_name(value, 95), place=Part("image"), fixed=ANOTHER),
    Field("namespace", check=check_name, place=Part("namespace"), fixed=ANOTHER),
    Field("monitors", type="list", elements="str", check=check_monitors, place=Monitors()),
    Field("user", check=check_user, place=Auth("/@username")),
    # The name of a libvirt secret; what it holds never comes here.
    Field("secret", no_log=False, check=check_account, place=Auth("/secret/@usage", fixed=(("type", "ceph"),))),
)


def _recognises(disk: Element) -> bool:
    return disk.get("type") == "network" and Property("source/@protocol").get(disk) == "rbd"


def _source() -> Element:
    disk = Element("disk", {"type": "network"})
    # Ceph's own cache obeys the guest's flushes, and a migration empties it.
    SubElement(disk, "driver", {"name": "qemu", "cache": "writeback", "discard": "unmap"})
    SubElement(disk, "source", {"protocol": "rbd"})
    return disk


def _fill(options: Options, vm: str, number: int) -> Options:
    given = {name: value for name, value in options.items() if value not in (None, "")}
    known = clusters()
    user = given.get("user") or USER
    filled = {"format": "raw", "image": volume_name(vm, number), "user": user, "secret": f"client.{user}"}
    return {**options, **filled, "monitors": list(known[0].monitors) if known else None, **given}


def _complaint(options: Options) -> str | None:
    if options["format"] != "raw":
        return "a disk of type rbd has the format raw"
    if not options.get("monitors"):
        return "no file in /etc/ceph names the monitors; apply role ceph_client to the node, or give monitors"
    source = options.get("source")
    if source and not SOURCE.fullmatch(source):
        return f"source {source!r} is not a snapshot; write POOL/IMAGE@SNAPSHOT"
    return None


def _name(options: Options) -> str:
    return "/".join(part for part in (options["pool"], options.get("namespace"), options["image"]) if part)


def _identity(options: Options) -> str | None:
    if not options.get("pool") or not options.get("image"):
        return None
    return identity(_name(options), map(host_of, options.get("monitors") or []))


@contextmanager
def _images(conf: Conf, user: str | None, pool: str, namespace: str | None) -> Iterator[Images]:
    """The images of a pool or namespace, with the user's own key. Raises Unreachable within seconds."""
    name = "/".join(part for part in (pool, namespace) if part)
    with _connected(conf, user) as cluster, cluster.pool(pool, namespace or "") as ioctx:
        yield Images(ioctx, name)


@contextmanager
def _connected(conf: Conf, user: str | None) -> Iterator[Any]:
    """A cluster that gave no answer a moment ago is not waited for again: a task may have a hundred images on it."""
    told, error = _silent.get(conf.path, (0.0, None))
    if error and time.monotonic() - told < SILENT_SECONDS:
        raise error
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(_ceph.connect(_as_user(conf, user)))
        except Unreachable as silence:
            _silent[conf.path] = time.monotonic(), silence
            raise
        yield cluster


def _as_user(conf: Conf, user: str | None) -> dict[str, Any]:
    given = {"cluster": conf.name, "user": f"client.{user or _own_user(conf)}"}
    return {**normalise(_ceph.OPTIONS, {}), **given}


def _own_user(conf: Conf) -> str:
    """The node's user: the role wrote its key under the name that the site chose."""
    if Path(conf.keyring(USER)).exists():
        return USER
    others = sorted(Path(conf.path).parent.glob(f"{conf.name}.client.*.keyring"))
    users = [path.name[len(f"{conf.name}.client.") : -len(".keyring")] for path in others]
    return next((one for one in users if one != "admin"), USER)


def _conf(options: Options) -> Conf:
    """The cluster of a disk."""
    hosts = [host_of(monitor) for monitor in options.get("monitors") or []]
    conf = cluster_of(hosts, clusters())
    if conf is None:
        raise NotFound(
            f"{_name(options)}: no file in /etc/ceph of this node has its monitors ({', '.join(hosts)}); apply role "
            "ceph_client to the node"
        )
    return conf


@contextmanager
def opened(options: Options) -> Iterator[Images]:
    """Where the image of a disk is."""
    with _images(_conf(options), options.get("user"), options["pool"], options.get("namespace")) as images:
        yield images


def _check_room(options: Options) -> None:
    """Raise Refused for a pool that is full: a write there is not refused by Ceph, it waits until there is room."""
    pool = options["pool"]
    with _connected(_conf(options), options.get("user")) as cluster:
        flags = {one["pool_name"]: one["flags_names"].split(",") for one in cluster.ask("osd dump")["pools"]}
    if "full" in flags.get(pool, []):
        raise Refused(
            f"{_name(options)} can't be made: pool {pool} is full. Until there is room all writes to it wait, those of "
            "running VMs too: raise its quota (quota_bytes of ceph_pool), add OSDs, or remove what is not needed "
            "(ceph health detail says what is full)"
        )


def inspect(options: Options) -> Volume | None:
    """The image behind a disk; None when there is none."""
    with opened(options) as images:
        found = images.info(options["image"], MARK)
    return None if found is None else Volume(_identity(options) or "", found["size"], found["mark"])


def _snapshot(options: Options) -> tuple[str, str | None, str, str] | None:
    match = SOURCE.fullmatch(options.get("source") or "")
    if not match:
        return None
    pool, _slash, namespace = match[1].partition("/")
    return pool, namespace or None, match[2], match[3]


def _check_new(options: Options) -> int | None:
    if options["image"].endswith(".part"):
        raise Invalid(f"{_name(options)} is how an image is called that is being made; choose another name")
    _check_room(options)
    source = _snapshot(options)
    if source is None:
        return None
    pool, namespace, image, name = source
    with opened({**options, "pool": pool, "namespace": namespace}) as images:
        found = images.snapshot(image, name)
    if found is None:
        raise Invalid(f"there is no snapshot {options['source']} from which {_name(options)} could be made")
    if not found["protected"]:
        raise Refused(f"snapshot {options['source']} is not protected; protect it with rbd snap protect first")
    if options.get("size") and options["size"] < found["size"]:
        raise Refused(f"{_name(options)}: {options['source']} has {found['size']} bytes, more than {options['size']}")
    return int(found["size"])


def create(options: Options, size: int | None, uuid: str, unfinished: bool = False) -> bool:
    """Make an image that carries our mark; never over one that is there."""
    source = _snapshot(options)
    with opened(options) as images:
        if source is None:
            images.create(options["image"], size or 0, {MARK: uuid, **({UNFINISHED: "1"} if unfinished else {})}, None)
            return True
        pool, namespace, image, name = source
        with opened({**options, "pool": pool, "namespace": namespace}) as parents:
            images.create(options["image"], size or 0, {MARK: uuid}, (parents, image, name))
    return True


def is_unfinished(options: Options, uuid: str) -> bool:
    """Whether the image is a copy for this VM that was begun and not finished."""
    with opened(options) as images:
        marks = [images.info(options["image"], key) or {} for key in (MARK, UNFINISHED)]
    return marks[0].get("mark") == uuid and bool(marks[1].get("mark"))


def finish(options: Options) -> None:
    """The copy is a VM's disk now."""
    with opened(options) as images:
        images.unmark(options["image"], UNFINISHED)


def _grow(options: Options, size: int) -> None:
    with opened(options) as images:
        images.grow(options["image"], size)


def holders(options: Options) -> list[str]:
    """The addresses of the clients that have the image open."""
    with opened(options) as images:
        found = images.info(options["image"], MARK)
    return list(found["watchers"]) if found else []


def _marked(vm: str, uuid: str, disks: list[Options]) -> list[Volume]:
    """Looks at the disks given, and at the images named after the VM in all pools that the node's user may use."""
    found = [volume for volume in map(inspect, disks) if volume and volume.mark == uuid]
    for conf in clusters():
        if conf.fsid and any(Path(conf.path).parent.glob(f"{conf.name}.client.*.keyring")):
            found += [volume for volume in _named_after(conf, vm) if volume.mark == uuid]
    return sorted({volume.identity: volume for volume in found}.values())


def _named_after(conf: Conf, vm: str) -> Iterator[Volume]:
    with _connected(conf, None) as cluster:
        for pool in cluster.ask("osd dump")["pools"]:
            if "rbd" in pool["application_metadata"]:
                with cluster.pool(pool["pool_name"]) as ioctx:
                    yield from _of_pool(Images(ioctx, pool["pool_name"]), conf, vm)


def _of_pool(images: Images, conf: Conf, vm: str) -> Iterator[Volume]:
    try:
        names = images.names()
    except Refused:
        return  # A pool of others; the node's user has no rights there, so this VM has no image in it.
    prefix = volume_name(vm, 0)[:-1]
    for name in names:
        if name.startswith(prefix) and name[len(prefix) :].isdecimal():
            found = images.info(name, MARK)
            if found:
                yield Volume(f"rbd:{conf.fsid}/{images.pool}/{name}", found["size"], found["mark"])


def _parts(identity: str) -> tuple[Conf, list[str], str]:
    """Cluster, pool (and namespace), and image. Raises NotFound for a cluster that this node does not know."""
    fsid, *pool, image = identity.partition(":")[2].split("/")
    conf = next((conf for conf in clusters() if conf.fsid == fsid), None)
    if conf is None:
        raise NotFound(f"no file in /etc/ceph of this node is of the cluster {fsid}")
    return conf, pool, image


@contextmanager
def named(identity: str) -> Iterator[tuple[Images, str]]:
    """Where the image of an identity is, and its name there."""
    conf, pool, image = _parts(identity)
    with _images(conf, None, pool[0], pool[1] if pool[1:] else None) as images:
        yield images, image


def is_known(identity: str | None) -> bool:
    """Whether it is an image, and this node can ask RBD for it: it has the library, and settings and a key for it."""
    if identity is None or not identity.startswith("rbd:") or not _rbd.is_there():
        return False
    known = [conf for conf in clusters() if identity.startswith(f"rbd:{conf.fsid}/")]
    return any(Path(conf.keyring(_own_user(conf))).exists() for conf in known)


def address(identity: str, snapshot: str) -> str:
    """A snapshot as QEMU's programs take it, see qemu-block-drivers(7); the key stays in its file."""
    conf, pool, image = _parts(identity)
    user = _own_user(conf)
    path = "/".join(re.sub(r"([\\:@/=])", r"\\\1", part) for part in (*pool, image))
    return f"rbd:{path}@{snapshot}:conf={conf.path}:id={user}:keyring={conf.keyring(user)}"


def remove(identity: str, uuid: str) -> None:
    """Move an image to the trash; looks at the mark, and at who has it open, once more."""
    pool = "/".join(_parts(identity)[1])
    with named(identity) as (images, image):
        found = images.info(image, MARK)
        if found is None:
            return
        if found["mark"] != uuid:
            raise Refused(f"{pool}/{image} no longer carries the mark of this VM; it was left as it is")
        if found["watchers"]:
            raise Refused(in_use(f"{pool}/{image}", found["watchers"], "is not removed"))
        images.trash(image)


def in_use(name: str, watchers: list[str], act: str) -> str:
    """The words for an image that a client has open."""
    return (
        f"image {name} {act}: the client at {', '.join(watchers)} has it open. If a VM runs there, that is the one. A "
        "client that died is forgotten by Ceph after 30 s: then run this again. When a machine that does not answer "
        "may still hold it, power that machine off, or shut it out with: ceph osd blocklist add ADDRESS"
    )


def _kept(options: Options) -> list[str]:
    with opened(options) as images:
        found = images.look(options["image"], SNAPSHOT)
    return [one["name"] for one in found["snapshots"] if one["name"] in found["marks"]]


def check_free(options: Options) -> None:
    """Raise Refused when a client has the image open: Ceph itself lets two VMs write to it."""
    watchers = holders(options)
    if watchers:
        raise Refused(in_use(_name(options), watchers, "has a user"), watchers=watchers)


RBD = Kind(
    "rbd",
    FIELDS,
    ("pool",),
    _recognises,
    _source,
    _fill,
    _identity,
    _complaint,
    Store(inspect, _check_new, create, _grow, _marked, remove, check_free=check_free, kept=_kept),
)
