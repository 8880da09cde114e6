# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Ceph clusters that a node knows, from the files in /etc/ceph. Standard library only; asks no cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("/etc/ceph")
PORT = 6789
UNKNOWN = "?"
# v1:10.0.0.1:6789/0, v2:[fd00::1]:3300/0, 10.0.0.1 or mon1.example.org:6789
ADDRESS = re.compile(
    r"(?:(v1|v2|any):)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(?::(\d{1,5}))?(?:/\d+)?", re.ASCII
)


@dataclass(frozen=True)
class Conf:
    """One cluster: the name of its files, its UUID when they say it, and its monitors as `address:port`."""

    name: str
    fsid: str | None
    monitors: tuple[str, ...]

    @property
    def path(self) -> str:
        """Its file of settings."""
        return str(FOLDER / f"{self.name}.conf")

    def keyring(self, user: str) -> str:
        """The file of a user's key."""
        return str(FOLDER / f"{self.name}.client.{user}.keyring")


def check_monitor(value: str) -> str:
    """An address with its port (6789 unless given), as in 10.231.5.21:6789 or [fd00::21]:6789. Raises ValueError."""
    match = ADDRESS.fullmatch(value)
    if not match or match[1] or not 1 <= int(match[3] or PORT) <= 65535:
        raise ValueError(f"{value!r} is not a monitor; write its address, such as 10.231.5.21 or [fd00::21]:6789")
    return f"{match[2]}:{int(match[3] or PORT)}"


def monitors(text: str) -> list[str]:
    """The monitors of a setting `mon_host`; of one with several addresses that of the first protocol, if it has it."""
    found = []
    for entry in re.findall(r"\[(?:v\d|any):[^,\s]+(?:,(?:v\d|any):[^,\s]+)*\]|[^,\s]+", text):
        several = entry.startswith(("[v", "[any"))
        matches = [ADDRESS.fullmatch(part) for part in (entry[1:-1].split(",") if several else [entry])]
        known = sorted((match for match in matches if match), key=lambda match: match[1] or "v1")
        if known:
            found.append(f"{known[0][2]}:{known[0][3] or PORT}")
    return found


def addresses(monmap: Mapping[str, Any]) -> list[str]:
    """The monitors of what `mon dump` said."""
    vectors = [one["public_addrs"]["addrvec"] for one in monmap["mons"]]
    texts = [",".join(f"{one['type']}:{one['addr']}" for one in vector) for vector in vectors]
    return [found for text in texts for found in monitors(f"[{text}]")]


def settings(text: str) -> dict[str, str]:
    """The settings of the section `global`; Ceph reads blanks, hyphens and underscores in a name alike."""
    found: dict[str, str] = {}
    section = "global"
    for line in re.sub(r"\\\n", "", text).splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].strip()
        if words.startswith("["):
            section = words.strip("[]").strip()
        elif "=" in words and section == "global":
            name, _equals, value = words.partition("=")
            found[re.sub(r"[ _-]+", "_", name.strip())] = value.strip().strip("\"'")
    return found


def clusters() -> list[Conf]:
    """All clusters that the node knows, that with Ceph's own default name first."""
    found = []
    for path in sorted(FOLDER.glob("*.conf"), key=lambda path: (path.stem != "ceph", path.stem)):
        try:
            known = settings(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if known.get("mon_host"):
            found.append(Conf(path.stem, known.get("fsid", "").lower() or None, tuple(monitors(known["mon_host"]))))
    return found


def host_of(monitor: str) -> str:
    """The address without the port."""
    return monitor.rpartition(":")[0].strip("[]")


def cluster_of(hosts: Iterable[str], known: Iterable[Conf]) -> Conf | None:
    """The cluster that has one of these monitors (addresses without ports)."""
    wanted = set(hosts)
    return next((conf for conf in known if wanted & {host_of(monitor) for monitor in conf.monitors}), None)


def identity(name: str, hosts: Iterable[str], known: Iterable[Conf] | None = None) -> str:
    """The name by which an image (`POOL/IMAGE`) is the same on every node: by the UUID of its cluster.

    The cluster is that of the monitors (`hosts`, without ports); a question mark when the node's files don't tell.
    """
    conf = cluster_of(hosts, clusters() if known is None else known)
    return f"rbd:{(conf.fsid if conf else None) or UNKNOWN}/{name}"


def may_be(name: str, known: Iterable[Conf] | None = None) -> list[str]:
    """All that a disk of this identity may be: an image of an unknown cluster may be in each that the node knows."""
    kind, _colon, rest = name.partition(f":{UNKNOWN}/")
    if kind != "rbd" or not rest:
        return [name]
    return [name, *(f"rbd:{conf.fsid}/{rest}" for conf in (clusters() if known is None else known) if conf.fsid)]
