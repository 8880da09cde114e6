# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node with open-iscsi and multipathd, and a SAN: a folder of the files that a real node has, and what acts on them.

It does what iscsiadm, the kernel and multipathd do as far as the collection uses them: it logs in with what the record
file says, so that a record which is written wrong fails here as it would there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed

PORTAL_A, PORTAL_B, PORTAL_6 = "10.231.5.10:3260", "10.231.7.10:3260", "[fd00:5::10]:3260"
IQN = "iqn.2026-11.org.example:drover-web1-0"
USER, SECRET = "drover", "ChapOfTheLab42"
MIB = 2**20
CONF = """# A comment
node.startup = manual
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
node.session.iscsi.FastAbort = Yes
discovery.sendtargets.auth.authmethod = None
"""


class Node:
    """The node below `root`; `san` is, by target, its CHAP and the size and unit id of its one logical unit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.san: dict[str, dict[str, Any]] = {}
        self.multipathd = True
        # Whether the kernel makes the disks only after the login has come back.
        self.late = False
        self.deaf: set[str] = set()
        self.calls: list[list[str]] = []
        self.next = 1
        # The module logs in to many targets at once.
        self.lock = Lock()
        # As Debian 13 has it.
        self.write("usr/sbin/iscsiadm", "\0/var/lib/iscsi/nodes\0")
        for folder in (
            "var/lib/iscsi/nodes",
            "sys/class/iscsi_session",
            "sys/class/block",
            "dev",
            "run/udev/data",
            "proc/self",
        ):
            (root / folder).mkdir(parents=True)
        self.write("etc/iscsi/iscsid.conf", CONF)
        self.write("etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.2026-11.org.example:hv1\n")
        self.write("proc/self/mountinfo", "")

    def export(self, target: str, number: int, portals: Sequence[str] = (PORTAL_A, PORTAL_B), **options: Any) -> None:
        """Let the SAN have a target with one logical unit."""
        wwid = f"36001405{number:025x}"
        self.san[target] = {"portals": portals, "size": 64 * MIB, "wwid": wwid, "chap": (USER, SECRET), **options}

    def write(self, path: str, text: object) -> None:
        """A file of the node."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}", encoding="utf-8")

    def connect(self, portal: tuple[str, int], _seconds: float) -> Any:
        """What socket.create_connection does."""
        if portal[0] in self.deaf:
            raise ConnectionRefusedError(111, "Connection refused")
        return open(self.root / "etc/iscsi/iscsid.conf", encoding="utf-8")

    def run(self, argv: Sequence[str], stdin: str | None = None, timeout: float = 60, ok: Sequence[int] = (0,)) -> str:
        """What the collection's `run` does."""
        assert SECRET not in " ".join(argv)
        self.calls.append(list(argv))
        if argv[0] == "multipathd":
            block = next(b for b in self.blocks() if self.text(b / "dm/name") == argv[3])
            size = min(int(self.text(block.parent / path.name / "size")) for path in (block / "slaves").iterdir())
            (block / "size").write_text(str(size), encoding="ascii")
            return "ok\n"
        if argv[0] == "iscsiadm":
            words = dict(zip(argv[1:-1], argv[2:]))
            if words["-m"] == "discovery":
                return self._discovery(words["-p"], argv[-1])
            if words["-m"] == "session":
                return self._logout(int(words["-r"]))
            record = self.record(words["-T"], words["-p"], words["-I"])
            if words.get("-o") == "delete":
                record.unlink(missing_ok=True)
            else:
                self._login(words["-T"], record)
        return ""

    def record(self, target: str, portal: str, nic: str = "default") -> Path:
        """The file of a node record; the portal with its group."""
        address, _colon, rest = portal.rpartition(":")
        return self.root / f"var/lib/iscsi/nodes/{target}/{address.strip('[]')},{rest}/{nic}"

    def values(self, record: Path) -> dict[str, str]:
        """What a record says."""
        lines = record.read_text(encoding="utf-8").splitlines()
        return dict(line.split(" = ", 1) for line in lines if " = " in line)

    def sessions(self) -> list[tuple[str, str]]:
        """Target and address of each session."""
        folders = sorted((self.root / "sys/class/iscsi_session").iterdir())
        found = [(folder, next((folder / "device").glob("connection*/*/*/persistent_address"))) for folder in folders]
        return [(self.text(folder / "targetname"), self.text(address)) for folder, address in found]

    def blocks(self) -> list[Path]:
        """All block devices."""
        return sorted((self.root / "sys/class/block").iterdir())

    def disk(self, target: str) -> str:
        """The name of the first path to a target."""
        wwid = self.san[target]["wwid"]
        return next(
            b.name for b in self.blocks() if b.name.startswith("sd") and self.text(b / "device/wwid")[4:] == wwid[1:]
        )

    def text(self, path: Path) -> str:
        """A file's text."""
        return path.read_text(encoding="utf-8").strip()

    def capacity(self, name: str) -> int | None:
        """The size that the SAN tells for a path."""
        wwid = self.text(self.root / f"sys/class/block/{name}/device/wwid")[4:]
        return next((int(unit["size"]) for unit in self.san.values() if unit["wwid"][1:] == wwid), None)

    def rescan(self, name: str) -> None:
        """What a write to the file `rescan` of a disk does."""
        self.write(f"sys/class/block/{name}/size", (self.capacity(name) or 0) // 512)

    def _discovery(self, portal: str, nic: str) -> str:
        if nic != "default" and not (self.root / f"var/lib/iscsi/ifaces/{nic}").exists():
            return ""
        found = [
            (where, target)
            for target, unit in self.san.items()
            for where in unit["portals"]
            if portal in unit["portals"]
        ]
        return "".join(f"{where},1 {target}\n" for where, target in found)

    def _login(self, target: str, record: Path) -> None:
        values, unit = self.values(record), self.san[target]
        auth = "node.session.auth."
        chap = (values.get(auth + "username"), values.get(auth + "password"))
        assert (record.stat().st_mode & 0o777, values["node.name"], values["node.tpgt"]) == (0o600, target, "1")
        if unit["chap"] and (values.get(auth + "authmethod") != "CHAP" or chap != unit["chap"]):
            raise Failed(
                "iscsiadm failed: initiator reported error (24 - iSCSI login failed due to authorization failure)"
            )
        with self.lock:
            number, self.next = self.next, self.next + 1
        name = "sd" + chr(ord("a") + number)
        session = f"sys/class/iscsi_session/session{number}"
        for key, value in {
            "targetname": target,
            "ifacename": values["iface.iscsi_ifacename"],
            "state": "LOGGED_IN",
            "tpgt": 1,
            "username": values.get(auth + "username", "(null)"),
            "password": values.get(auth + "password", "(null)"),
            "username_in": values.get(auth + "username_in", "(null)"),
            "password_in": values.get(auth + "password_in", "(null)"),
        }.items():
            self.write(f"{session}/{key}", f"{value}\n")
        connection = f"{session}/device/connection{number}:0/iscsi_connection/connection{number}:0"
        self.write(f"{connection}/persistent_address", values["node.conn[0].address"])
        self.write(f"{connection}/persistent_port", values["node.conn[0].port"])
        self.write(f"{connection}/recv_tmo", values["node.conn[0].timeo.noop_out_interval"])
        self.write(f"{connection}/ping_tmo", values["node.conn[0].timeo.noop_out_timeout"])
        for lun, kind, wwid in ((0, 12, "t10.IET     00010000"), (1, 0, f"naa.{unit['wwid'][1:]}")):
            scsi = f"{session}/device/target{number}:0:0/{number}:0:0:{lun}"
            self.write(f"{scsi}/type", f"{kind}\n")
            self.write(f"{scsi}/wwid", f"{wwid}\n")
        if not self.late:
            (self.root / f"{scsi}/block/{name}").mkdir(parents=True)
            self._add_disk(name, f"8:{number * 16}", unit)

    def _add_disk(self, name: str, number: str, unit: dict[str, Any]) -> None:
        wwid, block = unit["wwid"], f"sys/class/block/{name}"
        self.write(f"{block}/dev", number)
        self.write(f"{block}/size", unit["size"] // 512)
        self.write(f"{block}/device/wwid", f"naa.{wwid[1:]}")
        (self.root / block / "holders").mkdir()
        self.write(f"dev/{name}", "")
        links = "" if self.multipathd else f"S:disk/by-id/wwn-0x{wwid[1:]}\n"
        self.write(f"run/udev/data/b{number}", f"{links}E:ID_SERIAL={wwid}\nE:SCSI_IDENT_SERIAL={wwid[8:]}\n")
        if self.multipathd:
            self._add_map(name, unit)

    def _add_map(self, name: str, unit: dict[str, Any]) -> None:
        with self.lock:
            self._join_map(name, unit)

    def _join_map(self, name: str, unit: dict[str, Any]) -> None:
        number = list(self.san.values()).index(unit)
        block = f"sys/class/block/dm-{number}"
        # A second path joins the map that is there; others may be reading it.
        if not (self.root / block).exists():
            self.write(f"{block}/dev", f"254:{number}")
            self.write(f"{block}/size", unit["size"] // 512)
            self.write(f"{block}/dm/uuid", f"mpath-{unit['wwid']}")
            self.write(f"{block}/dm/name", unit["wwid"])
            self.write(f"dev/dm-{number}", "")
            self.write(f"run/udev/data/b254:{number}", f"S:disk/by-id/dm-uuid-mpath-{unit['wwid']}\nE:DM_NAME=x\n")
        for link in (f"{block}/slaves/{name}", f"{block}/holders", f"sys/class/block/{name}/holders/dm-{number}"):
            (self.root / link).mkdir(parents=True, exist_ok=True)

    def _logout(self, number: int) -> str:
        with self.lock:
            return self._end(number)

    def _end(self, number: int) -> str:
        session = self.root / f"sys/class/iscsi_session/session{number}"
        for path in session.glob("device/target*/*/block/*"):
            shutil.rmtree(self.root / "sys/class/block" / path.name)
            for slave in (self.root / "sys/class/block").glob(f"*/slaves/{path.name}"):
                slave.rmdir()
                if not list(slave.parent.iterdir()):
                    shutil.rmtree(slave.parents[1])
        shutil.rmtree(session)
        return ""
