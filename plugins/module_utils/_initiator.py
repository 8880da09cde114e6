# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's iSCSI initiator: node records of open-iscsi, and sessions of the kernel.

Node records are written as files, not by `iscsiadm -o update -v`, which takes a CHAP secret as an argument that every
user of the machine can read in the process list. A record is the file that iscsiadm itself would write: the `node.`
lines of iscsid.conf and ours, mode 0600, replaced as a whole while we hold iscsiadm's own lock. What sessions there are
is read from sysfs, so only discovery, login and logout start a process. See iscsiadm(8).
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ._errors import Failed, NotFound, TimedOut, Unreachable
from ._files import replace_file, told
from ._run import run

LINE = re.compile(r"^\s*([A-Za-z][^=#]*?)\s*=\s*(.*?)\s*$")
OFFERED = re.compile(r"^(\S+),(\d+) (\S+)$", re.MULTILINE)
EMPTY = "<empty>"
LOCK_SECONDS = 30
CONNECT_SECONDS = 5
# iscsiadm tries again by itself for up to two minutes; `answers` has shown before that somebody listens.
ISCSIADM_SECONDS = 90
# How many want iscsiadm's lock at one time. Each iscsiadm takes it several times, and it is no queue: with thirty at
# work, some had not come to it after 30 s.
AT_ONCE = 8
# udev deals with one disk after the other: those of many logins take a busy node minutes.
SETTLE_SECONDS = 300
SESSION_EXISTS, NO_RECORDS = 15, 21
SCSI_DISK = "0"
RUNNING = {
    "node.session.timeo.replacement_timeout": "iscsi_session/recovery_tmo",
    "node.session.auth.username": "iscsi_session/username",
    "node.session.auth.password": "iscsi_session/password",
    "node.session.auth.username_in": "iscsi_session/username_in",
    "node.session.auth.password_in": "iscsi_session/password_in",
    # The kernel sends a ping after `recv` seconds of silence, and waits `ping` seconds for its answer.
    "node.conn[0].timeo.noop_out_interval": "iscsi_connection/recv_tmo",
    "node.conn[0].timeo.noop_out_timeout": "iscsi_connection/ping_tmo",
}


class Portal(NamedTuple):
    """An address and a port of the SAN, compared as such and not as text."""

    address: str
    port: int

    def __str__(self) -> str:
        """As in 10.231.5.10:3260 or [fd00::10]:3260."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def parse_portal(text: str) -> Portal:
    """An address with a port, 3260 when left out. Raises ValueError: a name is gone with the DNS, so it is refused."""
    address, port = text, "3260"
    if text.startswith("["):
        address, _bracket, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else rest or "3260"
    elif text.count(":") == 1:
        address, _colon, port = text.partition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r} is not a portal; a port is a number from 1 to 65535")
    try:
        return Portal(str(ipaddress.ip_address(address)), int(port))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a portal; write address and port, such as 10.231.5.10:3260 or [fd00::10]:3260"
        ) from None


class Record(NamedTuple):
    """A node record: how to log in to a target at a portal; `nic` is the interface it is bound to, or empty."""

    target: str
    portal: Portal
    tpgt: int
    nic: str
    values: dict[str, str]
    private: bool = True

    @property
    def where(self) -> list[str]:
        """The words that choose it, for iscsiadm."""
        return ["-T", self.target, "-p", f"{self.portal},{self.tpgt}", "-I", self.nic or "default"]


class Session(NamedTuple):
    """A session of the kernel: `state` (LOGGED_IN, FAILED, FREE), the disks it brought, the settings it runs with."""

    number: int
    target: str
    portal: Portal
    tpgt: int
    nic: str
    state: str
    disks: dict[str, int]
    running: dict[str, str]


class Initiator:
    """open-iscsi and the kernel below `root`, which is a folder of files in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.database = root / _database(root / "usr/sbin/iscsiadm")
        self.lock = root / "run/lock/iscsi"
        self.known: dict[str, str] = {}
        self.turns = threading.BoundedSemaphore(AT_ONCE)
        self.alone = threading.Lock()

    def name(self) -> str:
        """This node's initiator name. Raises NotFound."""
        for line in _lines(self.root / "etc/iscsi/initiatorname.iscsi"):
            if line[0] == "InitiatorName":
                return line[1]
        raise NotFound("there is no /etc/iscsi/initiatorname.iscsi; is open-iscsi installed?")

    def defaults(self) -> dict[str, str]:
        """What iscsid.conf says of nodes: a record begins with it."""
        lines = _lines(self.root / "etc/iscsi/iscsid.conf")
        return {key: value for key, value in lines if key.startswith("node.")}

    def records(self, target: str) -> list[Record]:
        """The node records of a target."""
        found = []
        for folder in sorted((self.database / "nodes" / target).glob("*")):
            files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
            found += [_record(target, folder.name, path) for path in files]
        return found

    def sessions(self, target: str) -> list[Session]:
        """The kernel's sessions with a target."""
        folders = sorted((self.root / "sys/class/iscsi_session").glob("session*"))
        ours = (folder for folder in folders if self._target(folder) == target)
        return [found for folder in ours if (found := _session(folder, target)) is not None]

    def units(self) -> list[tuple[str, int, str, str]]:
        """Target, number, disk and WWID, in the kernel's words, of each disk that sessions brought.

        They are there as soon as the kernel has asked the unit. Its disk (sdb) comes after that; until then it has its
        SCSI address.
        """
        found = []
        for folder in sorted((self.root / "sys/class/iscsi_session").glob("session*")):
            for unit in _children(folder / "device", "target*/*:*:*:*"):
                if _attribute(unit / "type") == SCSI_DISK:
                    disk = next((path.name for path in _children(unit, "block/*")), unit.name)
                    lun = int(unit.name.split(":")[3])
                    found.append((self._target(folder), lun, disk, _attribute(unit / "wwid")))
        return found

    def _target(self, folder: Path) -> str:
        """Whose session it is; read once, as the kernel gives no number twice."""
        if not self.known.get(folder.name):
            self.known[folder.name] = _attribute(folder / "targetname")
        return self.known[folder.name]

    def discover(self, portal: Portal) -> dict[str, int]:
        """The targets that the portal offers this node, with their portal group. Leaves no record behind.

        Goes where the routes lead: over an interface that has no record yet, iscsiadm finds nothing, with the status of
        an empty list. Raises Unreachable and Failed.
        """
        self.answers(portal)
        words = ["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-o", "nonpersistent", "-p", str(portal)]
        # 21: the answer is an empty list.
        text = run([*words, "-I", "default"], timeout=ISCSIADM_SECONDS, ok=(0, NO_RECORDS))
        offered = [(parse_portal(match[1]), int(match[2]), match[3]) for match in OFFERED.finditer(text)]
        return {target: tpgt for where, tpgt, target in offered if where == portal}

    def answers(self, portal: Portal) -> None:
        """Prove that somebody listens. Raises Unreachable."""
        try:
            socket.create_connection(portal, CONNECT_SECONDS).close()
        except OSError as error:
            raise Unreachable(
                f"the portal {portal} does not answer: {error.strerror or error}", portal=str(portal)
            ) from None

    def write(self, record: Record) -> None:
        """Write a record, and the interface that it is bound to."""
        with self.turns, self._locked():
            if record.nic:
                iface = self.database / "ifaces" / record.nic
                iface.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(iface, _text(_interface(record.nic)))
            folder = self._folder(record)
            if folder.is_file():
                folder.unlink()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(folder / (record.nic or "default"), _text(record.values))

    def delete(self, record: Record) -> None:
        """Remove a record."""
        words = ["iscsiadm", "-m", "node", *record.where, "-o", "delete"]
        with self._all_turns():
            run(words, timeout=ISCSIADM_SECONDS, ok=(0, NO_RECORDS))

    def login(self, record: Record) -> None:
        """Log in; returns when the kernel has the session. Raises Unreachable, Failed."""
        self.answers(record.portal)
        try:
            words = ["iscsiadm", "-m", "node", *record.where, "--login"]
            with self.turns:
                run(words, timeout=ISCSIADM_SECONDS, ok=(0, SESSION_EXISTS))
        except Failed as error:
            raise Failed(f"login to {record.target} at {record.portal}: {error.message}", **error.details) from None

    def logout(self, session: Session) -> None:
        """End a session, also one without a record."""
        words = ["iscsiadm", "-m", "session", "-r", str(session.number), "--logout"]
        with self.turns:
            run(words, timeout=ISCSIADM_SECONDS, ok=(0, NO_RECORDS))

    def settle(self) -> None:
        """Wait until udev has dealt with the disks that came."""
        run(["udevadm", "settle", f"--timeout={SETTLE_SECONDS}"], timeout=SETTLE_SECONDS + 10, ok=(0, 1))

    def resize(self, multipath: str) -> None:
        """Let multipathd take the size of the paths. Raises Failed."""
        answer = run(["multipathd", "resize", "map", multipath]).strip()
        if answer != "ok":
            raise Failed(f"multipathd did not resize {multipath}: {answer}", map=multipath)

    @contextmanager
    def _all_turns(self) -> Iterator[None]:
        """Hold all turns: each iscsiadm reads all records, whichever was named, and fails where one goes meanwhile."""
        # Two that each had some of the turns would wait for each other.
        with self.alone, ExitStack() as held:
            for _turn in range(AT_ONCE):
                held.enter_context(self.turns)
            yield

    def _folder(self, record: Record) -> Path:
        return self.database / "nodes" / record.target / f"{record.portal.address},{record.portal.port},{record.tpgt}"

    def _clear(self, lock: Path, held: Path, seen: int) -> bool:
        """Take away a lock that a killed run has left, as no iscsiadm would come by it until the node's next start.

        Who works holds it for an instant: one that has been the same all the time, without an iscsiadm, is nobody's.
        False when it is somebody's.
        """
        if any(told(process / "comm") == "iscsiadm" for process in (self.root / "proc").glob("[0-9]*")):
            return False
        with lock.open("rb") as stream:
            # Of several that wait, one clears it; the others see that it is another one then.
            fcntl.flock(stream, fcntl.LOCK_EX)
            left = seen != 0 and _changed(held) == seen
            if left:
                held.unlink()
        return left

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of iscsiadm, which is a hard link. Raises TimedOut."""
        self.lock.mkdir(mode=0o660, parents=True, exist_ok=True)
        lock, held = self.lock / "lock", self.lock / "lock.write"
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600))
        end, seen = time.monotonic() + LOCK_SECONDS, _changed(held)
        while True:
            try:
                os.link(lock, held)
                break
            except FileExistsError:
                if time.monotonic() > end and not self._clear(lock, held, seen):
                    raise TimedOut(f"{held} has been there for {LOCK_SECONDS} s; is an iscsiadm at work?") from None
                # As often as iscsiadm looks.
                time.sleep(0.01)
        try:
            yield
        finally:
            held.unlink()


def _changed(path: Path) -> int:
    """When a file was last linked or unlinked, in nanoseconds; 0 when it is not there."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


def new_values(target: str, portal: Portal, tpgt: int, nic: str) -> dict[str, str]:
    """The lines that say which record it is; iscsid.conf and the options add the others."""
    return {
        "node.name": target,
        "node.tpgt": str(tpgt),
        "node.conn[0].address": portal.address,
        "node.conn[0].port": str(portal.port),
        "node.discovery_address": portal.address,
        "node.discovery_port": str(portal.port),
        "node.discovery_type": "send_targets",
        **(_interface(nic) if nic else {"iface.iscsi_ifacename": "default", "iface.transport_name": "tcp"}),
    }


def _database(program: Path) -> str:
    """Where iscsiadm keeps its records: Debian 13 and Enterprise Linux below /var, Debian 12 below /etc.

    That is compiled in and can't be asked for; a record in the other folder would be none.
    """
    try:
        return "var/lib/iscsi" if b"/var/lib/iscsi/nodes" in program.read_bytes() else "etc/iscsi"
    except OSError:
        return "etc/iscsi"


def _interface(nic: str) -> dict[str, str]:
    return {"iface.iscsi_ifacename": nic, "iface.net_ifacename": nic, "iface.transport_name": "tcp"}


def _text(values: Mapping[str, Any]) -> bytes:
    lines = [f"{key} = {value}" for key, value in values.items()]
    return "\n".join(["# BEGIN RECORD drover.kvm", *lines, "# END RECORD", ""]).encode()


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = [LINE.match(line) for line in text.splitlines()]
    return [(match[1], match[2]) for match in found if match and match[2] != EMPTY]


def _record(target: str, where: str, path: Path) -> Record:
    """A record from its file; the file's folder is called ADDRESS,PORT,GROUP."""
    values = dict(_lines(path))
    address, port, *group = where.split(",")
    nic = values.get("iface.net_ifacename", "")
    private = path.stat().st_mode & 0o077 == 0
    return Record(target, Portal(address, int(port)), int(group[0]) if group else -1, nic, values, private)


def _session(folder: Path, target: str) -> Session | None:
    """A session from its folder in sysfs; None when it went away meanwhile, or never got a connection."""
    device = folder / "device"
    try:
        connection = next(device.glob("connection*/iscsi_connection/connection*"))
        port = int((connection / "persistent_port").read_text(encoding="ascii"))
        address = (connection / "persistent_address").read_text(encoding="ascii").strip()
        nic = _attribute(folder / "ifacename")
        places = {"iscsi_session": folder, "iscsi_connection": connection}
        running = {}
        for key, place in RUNNING.items():
            kind, _slash, name = place.partition("/")
            running[key] = _attribute(places[kind] / name)
        return Session(
            number=int(folder.name[len("session") :]),
            target=target,
            portal=Portal(address, port),
            tpgt=int(_attribute(folder / "tpgt") or -1),
            nic="" if nic == "default" else nic,
            state=_attribute(folder / "state"),
            disks={path.name: int(path.parents[1].name.split(":")[3]) for path in device.glob("target*/*/block/*")},
            running=running,
        )
    except (OSError, StopIteration, ValueError):
        return None


def _children(folder: Path, pattern: str) -> list[Path]:
    """What is there of a device; nothing when it went away meanwhile."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _attribute(path: Path) -> str:
    text = told(path)
    return "" if text == "(null)" else text
