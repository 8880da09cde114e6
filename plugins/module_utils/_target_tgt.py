# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of tgtd, the user space iSCSI target: verbs in, plain data out.

It speaks tgtd's own management protocol on its socket instead of starting tgtadm: tgtadm (and tgt-admin, which calls
it through a shell) takes a CHAP password only as an argument, where every user of the machine can read it in /proc.
The requests are tgt's `struct tgtadm_req` (usr/tgtadm.h, unchanged from 1.0.85 to 1.0.97), the answers its texts.
Only root may connect: tgtd compares the peer's user and group with its own.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ._errors import Failed, NotFound, TimedOut, Unreachable

REQUEST = struct.Struct("=II64sIiQQIIIIII")
ANSWER = struct.Struct("=II")
ANSWER_SIZE = struct.calcsize("=II")
SYSTEM, TARGET, DEVICE, PORTAL, CONNECTION, ACCOUNT = 0, 1, 2, 3, 6, 7
OUTGOING_ACCOUNT = 0x100 + ACCOUNT  # what is above the mode itself is `ac_dir`
NEW, DELETE, SHOW, BIND, UNBIND, UPDATE = range(6)
ALL_TARGETS = -1
LUN = 1
OUTGOING = " (outgoing)"
# tgt-admin opens a target that has no initiator-address to everybody, also when it has initiator names. No peer can
# have this address, so the line that holds it says "nobody by address".
NOBODY = "255.255.255.255"
GONE = (("no such session",), ("no such connection",))
ERRORS = (
    "success",
    "unknown error",
    "out of memory",
    "no such driver",
    "no such target",
    "no such logical unit",
    "no such session",
    "no such connection",
    "no such binding",
    "the target exists",
    "the logical unit exists",
    "the binding exists",
    "the access rule exists",
    "no such access rule",
    "the account exists",
    "no such account",
    "too many accounts",
    "invalid request",
    "the target has an outgoing account",
    "the target is in use",
    "the logical unit is in use",
    "the driver is busy",
    "not supported",
    "unknown parameter",
    "the device prevents its removal",
)


@dataclass(frozen=True)
class Session:
    """One initiator that is logged in; `connections` are (session id, connection id)."""

    initiator: str
    address: str
    connections: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Lun:
    """A logical unit. tgtd tells its size only as a rounded number of megabytes (10**6 bytes), see `megabytes`."""

    number: int
    path: str
    serial: str
    megabytes: int
    readonly: bool = False


@dataclass
class Target:
    """A target as tgtd shows it."""

    tid: int
    iqn: str
    online: bool = True
    luns: dict[int, Lun] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    outgoing: str = ""
    initiators: list[str] = field(default_factory=list)


def socket_path() -> str:
    """The socket of the tgtd that is meant; TGT_IPC_SOCKET names another one, as it does for tgtadm."""
    return os.environ.get("TGT_IPC_SOCKET", "/var/run/tgtd/socket") + ".0"


def _received(connection: socket.socket) -> bytes:
    """All that tgtd sends until it closes."""
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def megabytes(size: int) -> int:
    """How tgtd shows a size of so many bytes (its own integer arithmetic)."""
    sectors = size // 512
    return (sectors - (sectors // 625 - 974)) // 1950


class Tgt:
    """The tgtd of this machine. Every method raises Unreachable, or Failed with tgtd's own words."""

    def __init__(self, timeout: float = 30) -> None:
        self.timeout = timeout
        self._targets: dict[str, Target] | None = None
        self._ready = False

    def targets(self, again: bool = False) -> dict[str, Target]:
        """All targets by IQN, as they were after the last change that was made here; `again` asks in any case."""
        # Hundreds of volumes are planned from one list: to read it for each of them would take their square.
        if self._targets is None or again:
            listed = parse_targets(self._ask(TARGET, SHOW, "list the targets"))
            self._ready = self._ready or self._is_ready()
            self._targets = {target.iqn: target for target in listed}
        return self._targets

    def _is_ready(self) -> bool:
        """Always; raises Unreachable while tgt.service starts or stops it: what it has then is not what it serves.

        The service sets it offline before tgt-admin makes the targets, or takes them away, and ready after that.
        """
        if "State: offline" in self._ask(SYSTEM, SHOW, "tell its state").partition("LLDs:")[0]:
            raise Unreachable(
                "tgtd is being started or stopped just now, and does not have all targets; run this again when tgt is "
                "active (systemctl status tgt)"
            )
        return True

    def accounts(self) -> set[str]:
        """The names of all CHAP accounts (they belong to the daemon, not to a target)."""
        lines = self._ask(ACCOUNT, SHOW, "list the accounts").splitlines()
        return {line.strip() for line in lines if line.startswith(" ")}

    def portals(self) -> list[str]:
        """The addresses on which it listens, such as 10.231.5.10:3260."""
        lines = self._ask(PORTAL, SHOW, "list the portals").splitlines()
        return [line[len("Portal: ") :].rpartition(",")[0] for line in lines if line.startswith("Portal: ")]

    def export(self, iqn: str, path: str) -> None:
        """A target whose logical unit is the file. A new one lets nobody in yet."""
        if iqn not in self.targets():
            tid = max([target.tid for target in self.targets().values()], default=0) + 1
            self._ask(TARGET, NEW, f"make the target {iqn}", tid, text=f"targetname={iqn}")
        self._ask(DEVICE, NEW, f"export {path}", self._tid(iqn), text=f"path={path},bstype=rdwr")

    def delete_target(self, iqn: str) -> None:
        """Refused by tgtd itself when a session exists: there is no moment between a look and the deletion."""
        self._ask(TARGET, DELETE, f"delete the target {iqn}", self._tid(iqn))

    def set_serial(self, iqn: str, serial: str) -> None:
        """The serial number (VPD page 0x80) and the device id (page 0x83), which by default follow the target's
        number and so change with the order in which targets are made.
        """
        self._update_lun(iqn, f"scsi_sn={serial},scsi_id={serial}", "set the serial")

    def set_readonly(self, iqn: str, readonly: bool) -> None:
        """Write-protect the logical unit, or not."""
        self._update_lun(iqn, f"readonly={int(readonly)}", "set the write protection")

    def reopen_lun(self, iqn: str, path: str) -> None:
        """Let tgtd open the grown file again: it learns the size of a file only then.

        While it opens the file, tgtd's I/O threads hold a closed descriptor, so no command may be in flight: access is
        closed, then the connections, and when they are gone the file is opened again and access too. Initiators log
        in again by themselves and repeat what was not answered. (An offline target would lose commands: tgtd answers
        none that it gets then.) Raises TimedOut when commands don't end.
        """
        initiators = self.targets()[iqn].initiators
        self.set_initiators(iqn, [])
        try:
            self._drop_sessions(iqn)
            self._update_lun(iqn, f"online=0,path={path}", "open the grown file")
        finally:
            self.set_initiators(iqn, initiators)

    def set_online(self, iqn: str, online: bool) -> None:
        """An offline target accepts no login, and does not even answer commands."""
        self._ask(TARGET, UPDATE, "change the state", self._tid(iqn), text=f"state={'ready' if online else 'offline'}")

    def set_initiators(self, iqn: str, initiators: Sequence[str]) -> None:
        """Who may log in: ALL, addresses, networks, IQNs; one that matches is enough. Sessions that exist go on."""
        target = self.targets()[iqn]
        for initiator in target.initiators:
            if initiator not in initiators:
                self._ask(TARGET, UNBIND, f"forbid {initiator}", target.tid, text=_rule(initiator))
        for initiator in initiators:
            if initiator not in target.initiators:
                self._ask(TARGET, BIND, f"allow {initiator}", target.tid, text=_rule(initiator))

    def set_account(self, iqn: str, user: str | None, password: str | None) -> None:
        """Make this the target's only CHAP account; without a user no CHAP is asked for.

        The account is made anew, also for the other targets that share it. As a target without an account asks for
        no CHAP, access is closed to all new logins while the accounts change; sessions that exist go on.
        """
        targets = self.targets()
        shared = [target for target in targets.values() if target.iqn == iqn or (user and user in target.accounts)]
        with self._closed(shared):
            # The last one first: tgtd keeps the accounts in an array and crashes on a hole in it.
            for old in reversed(targets[iqn].accounts):
                self._account(UNBIND, old, targets[iqn])
            if not user:
                return
            if user in self.accounts():
                self._account(DELETE, user)
            self._account(NEW, user, text=f"user={user},password={password}")
            for target in shared:
                self._account(BIND, user, target)

    def set_outgoing(self, iqn: str, user: str, password: str | None) -> None:
        """The account with which the target proves who it is (mutual CHAP); without a user it does not.

        Without a password an account that exists is bound as it is. Sessions that exist go on.
        """
        target = self.targets()[iqn]
        sharing = [other for other in self.targets().values() if user and other.outgoing == user and other.iqn != iqn]
        if target.outgoing:
            self._account(UNBIND, target.outgoing, target, mode=OUTGOING_ACCOUNT)
        if user and password is not None:
            if user in self.accounts():
                self._account(DELETE, user)
            self._account(NEW, user, text=f"user={user},password={password}")
        for other in [target, *(sharing if password is not None else [])] if user else []:
            self._account(BIND, user, other, mode=OUTGOING_ACCOUNT)

    def bind_account(self, iqn: str, user: str) -> None:
        """Make an account that exists the target's only one; closed to new logins meanwhile, as in `set_account`."""
        target = self.targets()[iqn]
        with self._closed([target]):
            for old in reversed(target.accounts):
                self._account(UNBIND, old, target)
            self._account(BIND, user, target)

    def delete_account(self, user: str) -> None:
        """Delete the account unless a target has it."""
        used = any(user in (*target.accounts, target.outgoing) for target in self.targets().values())
        if not used and user in self.accounts():
            self._account(DELETE, user)

    @contextmanager
    def _closed(self, targets: Sequence[Target]) -> Iterator[None]:
        for target in targets:
            self.set_initiators(target.iqn, [])
        yield
        # Not in a `finally`: after an error nobody may come in without CHAP. The next run opens the access again.
        for target in targets:
            self.set_initiators(target.iqn, target.initiators)

    def _drop_sessions(self, iqn: str) -> None:
        end = time.monotonic() + self.timeout
        asked: set[tuple[int, int]] = set()
        while (target := self.targets(again=True)[iqn]).sessions:
            open_now = {connection for session in target.sessions for connection in session.connections}
            for connection in open_now - asked:
                self._ask(CONNECTION, DELETE, "close a connection", target.tid, connection=connection)
            asked |= open_now
            if time.monotonic() > end:
                raise TimedOut(f"{iqn}: sessions did not end within {self.timeout:g} s: {target.sessions}")
            time.sleep(0.002)

    def _tid(self, iqn: str) -> int:
        try:
            return self.targets()[iqn].tid
        except KeyError:
            raise NotFound(f"tgtd has no target {iqn}", iqn=iqn) from None

    def _update_lun(self, iqn: str, changes: str, what: str) -> None:
        self._ask(DEVICE, UPDATE, f"{what} of {iqn}", self._tid(iqn), text=f"targetOps {changes},")

    def _account(
        self, operation: int, user: str, target: Target | None = None, text: str = "", mode: int = ACCOUNT
    ) -> None:
        tid = target.tid if target else 0
        self._ask(mode, operation, f"change the account {user}", tid, text=text or f"user={user}")

    def _ask(
        self,
        mode: int,
        operation: int,
        what: str,
        tid: int = ALL_TARGETS,
        text: str = "",
        connection: tuple[int, int] = (0, 0),
    ) -> str:
        body = text.encode() + b"\0" if text else b""
        lun = LUN if mode == DEVICE else 0
        sid, cid = connection
        direction, mode = divmod(mode, 0x100)
        size = REQUEST.size + len(body)
        head = REQUEST.pack(mode, operation, b"iscsi", size, tid, sid, lun, cid, 0, 0, direction, 0, 0)
        if operation != SHOW:
            self._targets = None
        error, answer = self._exchange(head + body)
        # A connection that ended by itself is as well closed as one that we closed.
        if error and not (mode == CONNECTION and ERRORS[error : error + 1] in GONE):
            words = ERRORS[error] if error < len(ERRORS) else f"error {error}"
            raise Failed(f"tgtd could not {what}: {words}", code=error)
        return answer

    def _exchange(self, request: bytes) -> tuple[int, str]:
        path = socket_path()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout)
                connection.connect(path)
                connection.sendall(request)
                answer = _received(connection)
        except OSError as error:
            raise Unreachable(
                f"tgtd gave no answer on {path}: {error}; is the service tgt running, and does this run as root?",
                socket=path,
            ) from None
        if len(answer) < ANSWER_SIZE:
            raise Unreachable(f"tgtd closed {path} without an answer; only root may ask it", socket=path)
        error_code, size = ANSWER.unpack_from(answer)
        return error_code, answer[ANSWER_SIZE:size].decode("utf-8", "replace").rstrip("\0")


def _rule(initiator: str) -> str:
    by_name = initiator.startswith(("iqn.", "eui.", "naa."))
    return f"initiator-{'name' if by_name else 'address'}={initiator}"


def parse_targets(text: str) -> list[Target]:
    """The targets in the text of `tgtadm --op show --mode target`."""
    return [_target(block) for block in re.split(r"^(?=Target \d+: )", text, flags=re.MULTILINE) if block.strip()]


def _target(block: str) -> Target:
    heading, *lines = block.splitlines()
    number, _colon, iqn = heading[len("Target ") :].partition(": ")
    parts: dict[str, list[str]] = {}
    lines_of_part: list[str] = []
    for line in lines:
        if re.match(r" {4}\S", line):
            lines_of_part = parts.setdefault(line.strip(" :"), [])
        else:
            lines_of_part.append(line.strip())
    accounts = parts.get("Account information", [])
    luns = [_lun(values) for values in _groups(parts.get("LUN information", []), "LUN")]
    return Target(
        tid=int(number),
        iqn=iqn,
        online="State: ready" in parts.get("System information", []),
        luns={lun.number: lun for lun in luns},
        sessions=[_session(values) for values in _groups(parts.get("I_T nexus information", []), "I_T nexus")],
        accounts=[name for name in accounts if not name.endswith(OUTGOING)],
        outgoing=next((name[: -len(OUTGOING)] for name in accounts if name.endswith(OUTGOING)), ""),
        initiators=sorted(rule for rule in parts.get("ACL information", []) if rule != NOBODY),
    )


def _groups(lines: Sequence[str], first: str) -> list[list[tuple[str, str]]]:
    """`Key: value` lines cut into groups, each beginning with the key `first`."""
    groups: list[list[tuple[str, str]]] = []
    for line in lines:
        key, _colon, value = line.partition(": ")
        if key == first:
            groups.append([])
        if groups:
            groups[-1].append((key, value))
    return groups


def _lun(pairs: Sequence[tuple[str, str]]) -> Lun:
    values = dict(pairs)
    size = values.get("Size", "0 MB").split(" ", 1)[0]
    path, serial = values.get("Backing store path", ""), values.get("SCSI SN", "")
    return Lun(int(values["LUN"]), path, serial, int(size), values.get("Readonly") == "Yes")


def _session(pairs: Sequence[tuple[str, str]]) -> Session:
    values = dict(pairs)
    sid = int(values["I_T nexus"])
    connections = tuple((sid, int(value)) for key, value in pairs if key == "Connection")
    initiator = values.get("Initiator", "").partition(" alias: ")[0]
    return Session(initiator, values.get("IP Address", ""), connections)
