# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine says of itself beside libvirt: free memory, mounted shared storage, the cordon."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from ._errors import Failed

FACT = Path("/etc/ansible/facts.d/drover.fact")
RUNS = Path("/run/libvirt/qemu")
MEMINFO = Path("/proc/meminfo")
MOUNTS = Path("/proc/self/mounts")
SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.ceph", "fuse.glusterfs", "gfs2", "ocfs2", "gpfs", "lustre"}
)


def cordon() -> dict[str, Any] | None:
    """The cordon (`since`, `by`, `reason`), or None. Raises Failed when the fact is there and can't be read."""
    try:
        fact = json.loads(FACT.read_text(encoding="utf-8"))
        found: dict[str, Any] | None = fact.get("cordon")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise Failed(f"{FACT} can't be read, so it is not known whether this node is cordoned: {error}") from None
    return found


def age(name: str) -> int | None:
    """For how many seconds a VM runs on this node: since it was started here, or came here. None where it does not.

    libvirt writes the file of its QEMU's process id at that moment, and not again.
    """
    try:
        return max(0, int(time.time() - (RUNS / f"{name}.pid").stat().st_mtime))
    except OSError:
        return None


def available_memory() -> int | None:
    """Bytes that programs can get without swapping, by the kernel's estimate; None where it gives none."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def shared_mounts() -> list[str]:
    """Mount points of file systems that other machines can have mounted too."""
    lines = [line.split() for line in MOUNTS.read_text(encoding="utf-8").splitlines()]
    return sorted(_unescaped(words[1]) for words in lines if words[2] in SHARED)


def _unescaped(path: str) -> str:
    """The kernel writes blanks in a path as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)
