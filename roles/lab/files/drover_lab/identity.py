# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes one node of many: its name, keys and addresses, as files. Pure, but for the keys that it reads."""

from __future__ import annotations

import io
import tarfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from .topology import Node, Topology, hosts_file, networkd_files


@dataclass(frozen=True)
class Entry:
    """A file of a node's root folder by its path from there; without ``data`` a folder."""

    path: str
    mode: int
    data: bytes | None = None


def identity(topology: Topology, node: Node, host_key: Path, authorized: Path) -> list[Entry]:
    """The files by which a node differs from the others, folders before what is in them."""
    texts = {"etc/hostname": node.name + "\n", "etc/hosts": hosts_file(topology)}
    for name, text in networkd_files(topology, node).items():
        texts[f"etc/systemd/network/{name}"] = text
    return [
        Entry("root", 0o700),
        Entry("root/.ssh", 0o700),
        Entry("root/.ssh/authorized_keys", 0o600, authorized.read_bytes()),
        Entry("etc/ssh/ssh_host_ed25519_key", 0o600, host_key.read_bytes()),
        Entry("etc/ssh/ssh_host_ed25519_key.pub", 0o644, host_key.with_suffix(".pub").read_bytes()),
        *(Entry(path, 0o644, text.encode("ascii")) for path, text in texts.items()),
    ]


def machine_id() -> bytes:
    """The content of a new /etc/machine-id."""
    return uuid.uuid4().hex.encode("ascii") + b"\n"


def tar(files: list[Entry]) -> bytes:
    """An archive of these files, owned by root."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for entry in files:
            about = tarfile.TarInfo(entry.path)
            about.mode = entry.mode
            about.mtime = int(time.time())
            about.type = tarfile.DIRTYPE if entry.data is None else tarfile.REGTYPE
            about.size = len(entry.data or b"")
            archive.addfile(about, io.BytesIO(entry.data or b""))
    return made.getvalue()
