# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups: each node's processes have one of their own, which is also how they are found again."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from .run import LabError, wait_for

ROOT = Path("/sys/fs/cgroup")
PARENT = "drover-lab"
JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 70; shift; done; shift; exec "$@"'


def hierarchies() -> list[Path]:
    """The mounted trees that systemd in a node needs: the one of pure cgroup2, or both of a hybrid host."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    found = [ROOT / name for name in ("systemd", "unified") if (ROOT / name / "cgroup.procs").exists()]
    if not found:
        raise LabError(f"neither {ROOT} nor {ROOT}/unified is a cgroup2 tree: systemd cannot run in a node")
    return found


def inside(lab: str, part: str, argv: Sequence[str]) -> list[str]:
    """The command that runs another one in the cgroup of that part of the lab, from its very first child on."""
    files = []
    for tree in hierarchies():
        folder = tree / PARENT / lab / part
        folder.mkdir(parents=True, exist_ok=True)
        files.append(str(folder / "cgroup.procs"))
    return ["sh", "-c", JOIN, "sh", *files, "--", *argv]


def members(lab: str, part: str = "") -> list[int]:
    """Process ids in the cgroups of a lab, or of one part of it; zombies are left out."""
    wanted = f"/{PARENT}/{lab}/{part}".rstrip("/")
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cgroup", encoding="ascii", errors="replace") as handle:
                paths = [line.rstrip("\n").split(":", 2)[2] for line in handle]
            if any(path == wanted or path.startswith(wanted + "/") for path in paths) and not is_zombie(int(entry)):
                found.append(int(entry))
        except OSError:
            continue
    return found


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and only waits to be collected; True also when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def in_namespaces(inodes: set[int]) -> list[int]:
    """Process ids whose network namespace is one of these."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.stat(f"/proc/{entry}/ns/net").st_ino in inodes and not is_zombie(int(entry)):
                    found.append(int(entry))
            except OSError:
                continue
    return found


def kill(find: Callable[[], list[int]], seconds: float = 20) -> bool:
    """SIGKILL what ``find`` finds until it finds nothing; LabError after ``seconds``. Returns whether any was there."""
    killed = False

    def probe() -> tuple[bool, str]:
        nonlocal killed
        pids = [pid for pid in find() if pid != os.getpid()]
        for pid in pids:
            killed = True
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids, f"processes {pids}"

    wait_for("end of the lab's processes", probe, seconds, step=0.05)
    return killed


def remove(lab: str) -> bool:
    """Remove the lab's (empty) cgroups; returns whether there were any."""
    removed = False
    for tree in hierarchies():
        top = tree / PARENT / lab
        if top.exists():
            removed = True
            wait_for(f"removal of {top}", functools.partial(_remove_tree, top), 10)
        # The parent is shared by the labs: it goes with the last one.
        try:
            (tree / PARENT).rmdir()
        except OSError:
            continue
    return removed


def _remove_tree(top: Path) -> tuple[bool, str]:
    for folder, _folders, _files in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return False, f"{folder} in use"
    return not top.exists(), str(top)
