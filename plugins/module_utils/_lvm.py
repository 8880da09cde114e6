# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LVM on this machine: volume groups and logical volumes, with our mark in their tags, and new space wiped.

A shared group is one whose locks lvmlockd holds (with sanlock or dlm), see lvmlockd(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._errors import Failed, Invalid, NotFound, Refused
from ._run import run, run_json

COLUMNS = "vg_name,lv_name,lv_size,lv_tags,lv_layout,pool_lv,zero,lv_uuid,origin,vg_uuid"
GROUP_COLUMNS = "vg_name,vg_extent_size,vg_free,vg_uuid,vg_lock_type,vg_size,vg_tags,lv_count"
DEVICE_COLUMNS = "pv_name,vg_name,dev_size,pv_size,pe_start"
# Where sanlock keeps the locks of a group: first those of the hosts, then those of its volumes; sanlock(8).
LEASES = "/dev/mapper/{}-lvmlock"
BEGINNING = 2**20
LEASE = 2**20
HOST = re.compile(r"[0-9a-f-]{36}\.")
LOCKED = "locked by other host"
# For what belongs to no shared group any more: the lock that LVM would take for it may have gone with the group.
NO_LOCKS = ("--config", "global/use_lvmlockd=0")
TAG = "drover."
# Beside a mark: the UUID of the group in which it was written. In a copy of the group, as vgimportclone makes one of a
# copied LUN, the tags and the UUIDs of volumes are those of the original, and only that of the group is new.
HOME = "group"
# The mark of what a volume grows by, while it is wiped: the volume's name.
GROWTH = "part"
# The mark of a group that module volume_group made.
MADE = {"made": "volume_group"}
DEVICES = "/dev"
WIPE_SECONDS = 12 * 3600
# Names that LVM keeps for itself, lvm(8).
RESERVED = re.compile(r"(snapshot|pvmove).*|.*_([crtv](data|meta)|[cv]vol|corig|vorigin|mlog|mimage|pmspare|rimage).*")
NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,100}", re.ASCII)


def check_lvm_name(value: str) -> str:
    """A name of a volume group, thin pool or logical volume."""
    if not NAME.fullmatch(value) or RESERVED.fullmatch(value):
        raise ValueError(f"{value!r} is not a name that LVM allows, lvm(8)")
    return value


def check_volume_name(name: str) -> None:
    """The same. Raises Invalid."""
    try:
        check_lvm_name(name)
    except ValueError as error:
        raise Invalid(str(error), option="name") from None
    if name.endswith(".part"):
        raise Invalid(f"{name} is how a volume is called that is being made; choose another name", option="name")


@dataclass(frozen=True)
class Logical:
    """A logical volume; `pool` is its thin pool, `zeroes` says of a pool whether it hands out zeroed blocks only.

    `origin` is the volume of which it is a snapshot, `group` the UUID of its group.
    """

    size: int
    tags: tuple[str, ...]
    layout: tuple[str, ...]
    pool: str
    zeroes: bool
    uuid: str = ""
    origin: str = ""
    group: str = ""

    @property
    def mark(self) -> dict[str, str]:
        """Our mark; empty when there is none, or it was written in another group, of which this one is a copy."""
        found = _mark(self.tags)
        return found if found.pop(HOME, self.group) == self.group else {}


class Group(NamedTuple):
    """A volume group: sizes in bytes, the kind of its locks (`sanlock`, `dlm`; empty for a local one), our mark."""

    extent: int
    free: int
    uuid: str = ""
    lock: str = ""
    size: int = 0
    mark: Mapping[str, str] = {}
    volumes: int = 0

    @property
    def shared(self) -> bool:
        """Whether lvmlockd holds its locks, so that several nodes may have it."""
        return self.lock in ("sanlock", "dlm")


class Physical(NamedTuple):
    """A device of a group, in bytes: its own size, what of it LVM uses, and where that begins."""

    size: int
    used: int
    start: int


class Lvm:
    """LVM on this machine: verbs in, plain data out. Every method raises Failed with LVM's own words."""

    def __init__(self) -> None:
        self._volumes: dict[tuple[str, str], Logical] | None = None
        self._groups: dict[str, Group] | None = None
        self._devices: list[dict[str, str]] | None = None

    def volumes(self) -> dict[tuple[str, str], Logical]:
        """All logical volumes by group and name, as they were after the last change that was made here."""
        if self._volumes is None:
            rows = _report("lvs", COLUMNS)
            self._volumes = {(row["vg_name"], row["lv_name"]): _logical(row) for row in rows}
        return self._volumes

    def groups(self) -> dict[str, Group]:
        """All volume groups, as they were after the last change that was made here."""
        if self._groups is None:
            self._groups = {row["vg_name"]: _group(row) for row in _report("vgs", GROUP_COLUMNS)}
        return self._groups

    def group(self, name: str) -> Group:
        """One volume group. Raises NotFound."""
        if name not in self.groups():
            raise NotFound(f"there is no volume group {name} on this machine", vg=name)
        return self.groups()[name]

    def physical(self, vg: str) -> dict[str, Physical]:
        """The devices that a group lies on, by their paths."""
        if self._devices is None:
            self._devices = _report("pvs", DEVICE_COLUMNS)
        rows = [row for row in self._devices if row["vg_name"] == vg]
        names = ("dev_size", "pv_size", "pe_start")
        return {row["pv_name"]: Physical(*(int(row[name]) for name in names)) for row in rows}

    def make_group(self, vg: str, devices: Sequence[str], mark: Mapping[str, Any], shared: bool) -> None:
        """A new group. LVM asks before it overwrites anything, and nobody answers."""
        self._do("vgcreate", *(["--shared"] if shared else []), *_adding(mark), vg, *devices)

    def extend_group(self, vg: str, device: str) -> None:
        """Add a device."""
        self._do("vgextend", vg, device)

    def resize_device(self, path: str) -> None:
        """Use what a device has become bigger by."""
        self._do("pvresize", path)

    def remove_group(self, vg: str, devices: Iterable[str]) -> None:
        """A group without volumes, LVM's label on its devices, and what LVM wrote there of it.

        A shared one first becomes a local one, when this node has left it as the last: vgremove of lvm2 2.03.31 with
        sanlock 3.9.5 never ends (sanlock has "no resource" to rename), and lvmlockd is of no use afterwards.
        """
        if self.group(vg).shared:
            self._do("vgchange", "--lock-stop", vg)
            self._do("vgchange", "--yes", "--lock-type", "none", "--lock-opt", "force", vg)
        self._do("vgremove", *NO_LOCKS, vg)
        for path in devices:
            self._do("pvremove", *NO_LOCKS, path)
            self._do("blkdiscard", "--zeroout", "--length", str(BEGINNING), path)

    def start_locks(self, vg: str) -> None:
        """Join the nodes that have a shared group."""
        self._do("vgchange", "--lock-start", vg)

    def locks_started(self, vg: str) -> bool:
        """Whether this node takes part in the locks of a shared group."""
        lines = run(["lvmlockctl", "--info"]).splitlines()
        return any(line.split()[:2] == ["VG", vg] for line in lines)

    def sharers(self, vg: str) -> list[str]:
        """The other nodes that take part in the locks of a shared group and may be alive, as the storage says.

        Asks no other node. This one must take part itself. Of locks of dlm nobody here can tell.
        """
        if self.group(vg).lock != "sanlock":
            return []
        dump = run(["sanlock", "direct", "dump", LEASES.format(vg)])
        return lease_sharers(dump, run(["sanlock", "client", "gets", "-h", "1"]), f"lvm_{vg}")

    def forget(self) -> None:
        """Ask LVM anew, as another node may have changed something."""
        self._volumes = self._groups = self._devices = None

    def create(self, vg: str, name: str, size: int, mark: Mapping[str, Any], pool: str | None = None) -> None:
        """A new volume of so many bytes, thin when a pool is given."""
        space = ["--virtualsize", f"{size}b", "--thinpool", pool] if pool else ["--size", f"{size}b"]
        self._do("lvcreate", "--yes", *space, "--name", name, *_adding(self._at_home(vg, mark)), vg)

    def snapshot(self, vg: str, origin: str, name: str, mark: Mapping[str, Any]) -> None:
        """A thin volume that begins as the other one is now. It does not depend on it."""
        words = ["--snapshot", "--setactivationskip", "n", "--name", name, *_adding(self._at_home(vg, mark))]
        self._do("lvcreate", "--yes", *words, f"{vg}/{origin}")
        # Whatever it has from the origin is not its own.
        self.tag(vg, name, mark)

    def tag(self, vg: str, name: str, mark: Mapping[str, Any]) -> None:
        """Our mark in the volume's tags; tags of others stay."""
        have, new = self.volumes()[vg, name].tags, _tags(self._at_home(vg, mark))
        gone = [word for tag in have if tag.startswith(TAG) and tag not in new for word in ("--deltag", tag)]
        come = [word for tag in new if tag not in have for word in ("--addtag", tag)]
        if gone or come:
            self._do("lvchange", *gone, *come, f"{vg}/{name}")

    def _at_home(self, vg: str, mark: Mapping[str, Any]) -> dict[str, Any]:
        """A mark that counts in this group only."""
        return {**mark, HOME: self.group(vg).uuid}

    def extend(self, vg: str, name: str, size: int, ranges: str = "") -> None:
        """Make it bigger, on these extents if any are named."""
        self._do("lvextend", "--size", f"{size}b", f"{vg}/{name}", *ranges.split())

    def ranges(self, vg: str, name: str) -> str:
        """Where it lies, as `extend` takes it."""
        return " ".join(row["seg_pe_ranges"] for row in _report("lvs", "seg_pe_ranges", f"{vg}/{name}"))

    def rename(self, vg: str, old: str, new: str) -> None:
        """Another name."""
        self._do("lvrename", vg, old, new)

    def activate(self, vg: str, name: str, how: str = "y") -> None:
        """Make its device appear (`y`), on this node alone (`ey`) or beside another (`sy`), or go (`n`).

        An active one takes the lock of the new kind. Raises Refused when another node has it.
        """
        try:
            self._do("lvchange", "--activate", how, "--ignoreactivationskip", f"{vg}/{name}")
        except Failed as error:
            if LOCKED not in error.message:
                raise
            others = ", ".join(self.holders(vg, name, dead=True))
            raise Refused(f"{vg}/{name} is held by {others or 'another node'}") from None

    def holders(self, vg: str, name: str, dead: bool = False) -> list[str]:
        """The other nodes that hold the lock of a volume; empty when none does, or nobody here can tell.

        Reads what sanlock keeps on the storage, and asks no other node. One that is dead loses its lock to who wants
        it, and counts only with `dead`.
        """
        if self.group(vg).lock != "sanlock":
            return []
        place = _report("lvs", "lv_lockargs", f"{vg}/{name}")[0]["lv_lockargs"].rpartition(":")[2]
        leases = LEASES.format(vg)
        try:
            # Without a place it prints the hosts.
            dump = [run(["sanlock", "direct", "dump", path]) for path in (leases, f"{leases}:{place}:{LEASE}")]
            hosts = run(["sanlock", "client", "gets", "-h", "1"])
        except (Failed, NotFound):
            return []
        return lease_owners("\n".join(dump), hosts, f"lvm_{vg}", place, dead)

    def autoactivate(self, vg: str, name: str, on: bool) -> None:
        """Whether it becomes active when its group is found, at boot."""
        self._do("lvchange", "--setautoactivation", "y" if on else "n", f"{vg}/{name}")

    def snapshots(self, vg: str, name: str) -> list[str]:
        """The thick snapshots of a volume, which lvremove takes along; thin ones stand alone."""
        known = self.volumes().items()
        return sorted(own for (group, own), one in known if (group, one.origin, one.pool) == (vg, name, ""))

    def check_remove(self, vg: str, name: str) -> None:
        """Raise Refused for a volume of which somebody has kept a snapshot."""
        if found := self.snapshots(vg, name):
            raise Refused(
                f"{vg}/{name} has the snapshot {', '.join(found)}, which would go with it; look whose that is, and "
                f"remove it first: lvremove {vg}/{found[0]}",
                snapshots=found,
            )

    def remove(self, vg: str, name: str) -> None:
        """The volume and what is in it; LVM refuses while it is open. Raises Refused for one with snapshots."""
        self.forget()
        self.check_remove(vg, name)
        self._do("lvremove", "--yes", f"{vg}/{name}")

    def _do(self, *argv: str) -> None:
        try:
            run(argv, timeout=300)
        finally:
            self.forget()


def _report(program: str, columns: str, *names: str) -> list[dict[str, str]]:
    argv = [program, "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", columns, *names]
    report = run_json(argv)["report"][0]
    return list(report[{"lvs": "lv", "vgs": "vg", "pvs": "pv"}[program]])


def _logical(row: Mapping[str, str]) -> Logical:
    tags = tuple(row["lv_tags"].split(",")) if row["lv_tags"] else ()
    layout = tuple(row["lv_layout"].split(","))
    names = [row[column] for column in ("lv_uuid", "origin", "vg_uuid")]
    return Logical(int(row["lv_size"]), tags, layout, row["pool_lv"], row["zero"] == "1", *names)


def _group(row: Mapping[str, str]) -> Group:
    sizes = [int(row[column]) for column in ("vg_extent_size", "vg_free", "vg_size")]
    mark = _mark(row["vg_tags"].split(","))
    return Group(sizes[0], sizes[1], row["vg_uuid"], row["vg_lock_type"], sizes[2], mark, int(row["lv_count"]))


def _mark(tags: Iterable[str]) -> dict[str, str]:
    words = [tag[len(TAG) :].partition("=") for tag in tags if tag.startswith(TAG)]
    return {key: value for key, _equals, value in words}


def _tags(mark: Mapping[str, Any]) -> list[str]:
    return [f"{TAG}{key}={value}" for key, value in sorted(mark.items()) if value]


def _adding(mark: Mapping[str, Any]) -> list[str]:
    return [word for tag in _tags(mark) for word in ("--addtag", tag)]


def device(vg: str, name: str) -> str:
    """The path of a volume that is active."""
    return f"{DEVICES}/{vg}/{name}"


def content(path: str) -> str:
    """What a device carries, in words; empty when its beginning is blank and nothing on it is known."""
    found = (run_json(["wipefs", "--json", path]) or {}).get("signatures") or []
    if found:
        return ", ".join(str(one["type"]) for one in found)
    with open(path, "rb") as stream:
        return "data of an unknown kind" if any(stream.read(BEGINNING)) else ""


def wipe(vg: str, name: str, how: str = "zero") -> None:
    """Write zeroes over a volume, or tell the storage that nothing of it is needed (`discard`)."""
    words = ["--zeroout"] if how == "zero" else []
    run(["blkdiscard", *words, device(vg, name)], timeout=WIPE_SECONDS)


def grow_wiped(lvm: Lvm, vg: str, name: str, size: int, how: str = "zero") -> None:
    """Make a volume bigger. The new extents are wiped before they are its own: afterwards a guest may write to them."""
    found = lvm.volumes()[vg, name]
    part = f"{name}.part"
    lvm.create(vg, part, size - found.size, {**found.mark, GROWTH: name})
    if how != "none":
        wipe(vg, part, how)
    ranges = lvm.ranges(vg, part)
    lvm.remove(vg, part)
    lvm.extend(vg, name, size, ranges)


def lease_owners(dump: str, hosts: str, space: str, offset: str, dead: bool) -> list[str]:
    """The other nodes that hold the lease at a place of what `sanlock direct dump` prints, by their own names.

    A line of it is: offset, lockspace, resource, time stamp, owner's number, generation, version. Of the hosts the
    resource is the name, HOST or UUID.HOST; a lease that is held by none has the time stamp 0. Those that share one
    have a line `NUMBER GENERATION SH` each, after that. `hosts` is what `sanlock client gets -h 1` prints: a line
    `s LOCKSPACE:OWN NUMBER:...`, followed by `h NUMBER gen N timestamp N STATE`.
    """
    own, states = _hosts(hosts, space)
    names: dict[int, str] = {}
    held: list[int] = []
    place = -1
    for words in map(str.split, dump.splitlines()):
        if len(words) == 3 and words[2] == "SH":
            held += [int(words[0])] if place == int(offset or -1) else []
        elif len(words) >= 6 and words[0].isdecimal():
            place, number = int(words[0]), int(words[4])
            if place < LEASE:
                names[number] = HOST.sub("", words[2], count=1)
            elif place == int(offset or -1) and int(words[3]):
                held.append(number)
    found = [number for number in held if number != own and (dead or states.get(number) != "DEAD")]
    return [names.get(number, f"host {number}") for number in dict.fromkeys(found)]


def lease_sharers(dump: str, hosts: str, space: str) -> list[str]:
    """The other nodes that take part in a lockspace, by their own names: both texts as of `lease_owners`.

    Who leaves sets its time stamp to 0; who died without a word counts until sanlock calls it dead.
    """
    own, states = _hosts(hosts, space)
    found = []
    for words in map(str.split, dump.splitlines()):
        if len(words) >= 6 and words[0].isdecimal() and int(words[0]) < LEASE and int(words[3]):
            number = int(words[4])
            found += [HOST.sub("", words[2], count=1)] if number != own and states.get(number) != "DEAD" else []
    return found


def _hosts(text: str, space: str) -> tuple[int, dict[int, str]]:
    """This node's number in a lockspace, and the states of all nodes there by number."""
    own, states, mine = 0, {}, False
    for words in map(str.split, text.splitlines()):
        if words[:1] == ["s"]:
            mine = words[1].startswith(f"{space}:")
            own = int(words[1].split(":")[1]) if mine else own
        elif words[:1] == ["h"] and mine:
            states[int(words[1])] = words[-1]
    return own, states
