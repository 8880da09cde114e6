# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a physical server carries, from what two looks at it say."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.drover.kvm.plugins.filter.physical_audit import physical_audit

GIB = 2**30
FILES = ["uptime", "loadavg", "stat", "meminfo", "diskstats", "net/dev"]
LOOK = """\
{uptime}.00 9999.00
0.20 0.30 {load} 2/345 6789
cpu  {user} 0 500 {idle} 100 0 0 0 50 0
cpu0 1 0 1 1 1 0 0 0 0 0
cpu1 1 0 1 1 1 0 0 0 0 0
cpu10 1 0 1 1 1 0 0 0 0 0
cpu11 1 0 1 1 1 0 0 0 0 0
intr 1 2 3
MemTotal:       33554432 kB
MemFree:          100000 kB
MemAvailable:   {free} kB
   8       0 sda 100 0 {read} 5 200 0 {write} 9 0 1 2 0 0 0 0
   8       1 sda1 100 0 999999 5 200 0 999999 9 0 1 2 0 0 0 0
 253       0 dm-0 100 0 999999 5 200 0 999999 9 0 1 2 0 0 0 0
 259       0 nvme0n1 100 0 10 5 200 0 10 9 0 1 2
Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls
    lo: 77777777 1 0 0 0 0 0 0 77777777 1 0 0 0 0 0 0
  eth0: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0
"""
IDLE = {"uptime": 100, "load": "0.10", "user": 1000, "idle": 9000, "free": 33554432 - 2 * 2**20}
IDLE |= {"read": 2048, "write": 4096, "received": 1000, "sent": 500}
ROOT = {"device": "/dev/sda1", "size_total": 100 * GIB, "size_available": 80 * GIB}


def look(**values):
    return LOOK.format(**{**IDLE, **values})


# Four CPUs and ten seconds: 4000 ticks.
LATER = look(uptime=110, user=3000, idle=11000, read=22528, write=44096, received=11000, sent=20500)


def test_what_it_carries_is_what_changed_between_the_looks():
    found = physical_audit(look(), LATER, [ROOT, {**ROOT, "size_available": 80 * GIB}])
    assert [found[name] for name in ("cpus", "cpus_busy", "load")] == [4, 2.0, 0.1]
    assert (found["memory"], found["memory_used"], found["disk_used"]) == (32 * GIB, 2 * GIB, 20 * GIB)
    assert [found[name] for name in ("disk_read", "disk_write", "received", "sent")] == [1048576, 2048000, 1000, 2000]
    assert found["needs"] == {"vcpus": 3, "memory": 3 * GIB, "disk": 25 * GIB} and found["profile"] == "standard"


@pytest.mark.parametrize(
    "changed, mounts, profile",
    [
        ({"load": "3.10"}, [], "large"),
        ({"free": 33554432 - 8 * 2**20}, [], "large"),
        ({"load": "99.00"}, [], "large"),
        ({"free": 2**20}, [], None),
        ({}, [ROOT, {**ROOT, "device": "/dev/sdb1"}], None),
        ({}, [ROOT, {**ROOT, "device": "san:/vms"}, {**ROOT, "device": "/dev/loop0"}], "standard"),
    ],
)
def test_the_profile_is_the_first_that_is_big_enough(changed, mounts, profile):
    assert physical_audit(look(), look(uptime=160, user=1010, idle=14990, **changed), mounts)["profile"] == profile


def test_a_server_that_was_started_between_the_looks_is_refused():
    with pytest.raises(ValueError, match="not one after the other"):
        physical_audit(look(), look(uptime=5))


@pytest.mark.parametrize("text", ["", "Windows", LOOK[:200].format(**IDLE)])
def test_what_is_no_linux_is_refused(text):
    with pytest.raises(ValueError, match="not what"):
        physical_audit(text, text)


def test_this_very_machine_is_understood():
    argv = ["cat", *(f"/proc/{name}" for name in FILES)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    later = said.replace(said.split(".", maxsplit=1)[0], str(int(said.split(".", maxsplit=1)[0]) + 10), 1)
    found = physical_audit(said, later)
    assert found["cpus"] >= 1 and 0 < found["memory_used"] < found["memory"] and found["needs"]["vcpus"] >= 1
