# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter physical_audit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import PROFILES

GIB = 2**30
# What is used may grow by a quarter, and a CPU may be busy for two thirds of the time. A load beyond its CPUs says that
# they are too few, and not how many would do.
ROOM = 1.25
BUSY = 1.5
# Of /proc/diskstats and /proc/stat, https://docs.kernel.org/admin-guide/iostats.html and proc_stat(5).
SECTOR = 512
IDLE = (3, 4)
DISK = re.compile(r"^ *\d+ +\d+ (?:(?:s|h|v|xv)d[a-z]+|nvme\d+n\d+|mmcblk\d+) (.*)$", re.MULTILINE)
UPTIME = re.compile(r"^(\d+\.\d+) \d+\.\d+$", re.MULTILINE)
LOAD = re.compile(r"^(?:\S+ ){2}(\S+) \d+/", re.MULTILINE)
CPU = re.compile(r"^cpu +(.*)$", re.MULTILINE)
SIZE = re.compile(r"^(Mem\w+): +(\d+) kB$", re.MULTILINE)
NIC = re.compile(r"^ *([^\s:]+): *(\d[\d ]+)$", re.MULTILINE)


def physical_audit(before: str, after: str, mounts: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What a Linux server carries, and which profile of a VM would do.

    `before` and `after` are what it said of itself (/proc/uptime, loadavg, stat, meminfo, diskstats, net/dev, one after
    the other), `mounts` its file systems as facts have them. Sizes are bytes, rates are per second.
    """
    old, new = _read(before), _read(after)
    seconds = new["uptime"] - old["uptime"]
    if seconds <= 0:
        raise ValueError("the two looks at the server are not one after the other, or it was started between them")
    rates = {name: round((new[name] - old[name]) / seconds) for name in ("disk_read", "disk_write", "received", "sent")}
    busy = (new["work"] - old["work"]) / max(1, new["ticks"] - old["ticks"]) * new["cpus"]
    disk = sum({one["device"]: one["size_total"] - one["size_available"] for one in mounts if _is_own(one)}.values())
    needs = {
        "vcpus": max(1, math.ceil(BUSY * max(busy, min(new["load"], new["cpus"])))),
        "memory": math.ceil(ROOM * new["memory_used"] / GIB) * GIB,
        "disk": math.ceil(ROOM * disk / GIB) * GIB,
    }
    fits = (name for name, profile in PROFILES.items() if all(needs[key] <= profile[key] for key in needs))
    facts = {name: new[name] for name in ("cpus", "load", "memory", "memory_used")}
    used = {"cpus_busy": round(busy, 2), "disk_used": disk, **rates}
    return {**facts, **used, "needs": needs, "profile": next(fits, None)}


def _is_own(mount: Mapping[str, Any]) -> bool:
    return str(mount["device"]).startswith("/dev/") and not str(mount["device"]).startswith("/dev/loop")


def _read(text: str) -> dict[str, Any]:
    """The counters of one look."""
    uptime, load, cpu = (pattern.search(text) for pattern in (UPTIME, LOAD, CPU))
    sizes = dict(SIZE.findall(text))
    if not (uptime and load and cpu and {"MemTotal", "MemAvailable"} <= sizes.keys()):
        raise ValueError("that is not what /proc/uptime, loadavg, stat and meminfo of a Linux say")
    # Guests are counted in user time already.
    ticks = [int(word) for word in cpu.group(1).split()][:8]
    disks = [[int(word) for word in words.split()] for words in DISK.findall(text)]
    nics = [[int(word) for word in words.split()] for name, words in NIC.findall(text) if name != "lo"]
    total, free = (int(sizes[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {
        "uptime": float(uptime.group(1)),
        "load": float(load.group(1)),
        "cpus": len(re.findall(r"^cpu\d+ ", text, re.MULTILINE)),
        "ticks": sum(ticks),
        "work": sum(ticks) - sum(ticks[place] for place in IDLE),
        "memory": total,
        "memory_used": total - free,
        "disk_read": sum(disk[2] for disk in disks) * SECTOR,
        "disk_write": sum(disk[6] for disk in disks) * SECTOR,
        "received": sum(nic[0] for nic in nics),
        "sent": sum(nic[8] for nic in nics),
    }


class FilterModule:
    """The filter as Ansible finds it."""

    def filters(self) -> dict[str, object]:
        """Its name and its function."""
        return {"physical_audit": physical_audit}
