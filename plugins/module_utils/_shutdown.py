# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would be cut off if this machine were shut down, by the kernel and systemd: VMs, copies, and what others use.

libvirt is not asked: what it has forgotten runs all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ._errors import DroverError
from ._files import told
from ._run import run, run_json

PROCESSES = Path("/proc")
TARGETS = Path("/sys/kernel/config/target")
NFS = Path("/proc/net/rpc/nfsd")
DRBD = Path("/proc/drbd")
ALIVE = "active,reloading,activating,deactivating"
LIST = ("systemctl", "list-units", "--type=service", f"--state={ALIVE}", "--output=json")
# Data, votes and files that others have from here, by the names of Debian, Ceph and cephadm (ceph-FSID@osd.3).
NEEDED = (
    *(f"ceph-{kind}@*.service" for kind in ("osd", "mon", "mds", "radosgw")),
    *(f"ceph-*@{kind}.*.service" for kind in ("osd", "mon", "mds", "rgw", "nfs")),
    *("corosync.service", "pacemaker.service", "etcd.service", "consul.service", "zookeeper.service"),
    *("nfs-ganesha.service", "smbd.service", "glusterd.service"),
)
WORKING = "drover-migrate-*.service"
# Runs wherever it is installed, mostly without a target.
TGT = "tgt.service"
TGT_SHOW = ("tgtadm", "--lld", "iscsi", "--mode", "target", "--op", "show")


def reasons(needed: Iterable[str] = (), ignored: Iterable[str] = ()) -> list[str]:
    """In words, what speaks against it. The patterns are of whole names of services, beside those that are known.

    Raises Failed and TimedOut of systemctl.
    """
    return [*_processes(), *_units([*NEEDED, *needed], list(ignored)), *_kernel()]


def _processes() -> list[str]:
    found = []
    for folder in PROCESSES.iterdir():
        # A process may end as it is looked at.
        with suppress(OSError):
            if folder.name.isdigit() and (words := _qemu((folder / "cmdline").read_bytes())):
                found.append(words)
    return sorted(found)


def _qemu(line: bytes) -> str:
    """The words for a process of QEMU: a machine, or a program that copies or serves a disk."""
    arguments = line.decode("utf-8", "replace").split("\0")
    program = arguments[0].rpartition("/")[2]
    # The agent is that of a node that is a VM itself.
    if not (program.startswith("qemu-") or program == "kvm") or program == "qemu-ga":
        return ""
    # libvirt starts a QEMU without a machine to learn what it can do.
    if _after(arguments, "-machine") == "none":
        return ""
    name = _after(arguments, "-name").removeprefix("guest=")
    return f"{program} runs{' for ' + name if name else ''}"


def _after(arguments: Sequence[str], option: str) -> str:
    """The first word of what follows an option."""
    rest = arguments[arguments.index(option) + 1 :] if option in arguments else []
    return rest[0].split(",")[0] if rest else ""


def _units(needed: Sequence[str], ignored: Sequence[str]) -> list[str]:
    names = sorted(unit["unit"] for unit in run_json(LIST, timeout=30) or [])
    alive = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in ignored)]
    serving = [f"{name} runs" for name in alive if any(fnmatchcase(name, pattern) for pattern in needed)]
    moving = [f"{name} moves a VM" for name in names if fnmatchcase(name, WORKING)]
    return [*moving, *serving, *(_tgt() if TGT in alive else [])]


def _tgt() -> list[str]:
    try:
        names = re.findall(r"^Target \d+: (\S+)", run(TGT_SHOW, timeout=30), re.MULTILINE)
    except DroverError as error:
        return [f"{TGT} runs, and does not say what it serves ({error.message})"]
    return [f"tgt serves {', '.join(names)}"] if names else []


def _kernel() -> list[str]:
    """Servers that are in the kernel: what systemd says of their services tells only that they were started once."""
    found = []
    names = sorted(path.name for path in TARGETS.glob("*/*") if re.match(r"(iqn|naa|eui)\.", path.name))
    if names:
        found.append(f"LIO serves {', '.join(names)}")
    # The number of threads, see nfsd_show_stats of the kernel's fs/nfsd/stats.c.
    if re.search(r"^th [1-9]", told(NFS), re.MULTILINE):
        found.append("the NFS server of the kernel runs")
    if devices := re.findall(r"^ *(\d+): cs:(?!Unconfigured)", told(DRBD), re.MULTILINE):
        found.append(f"DRBD has drbd{', drbd'.join(devices)}")
    return found
