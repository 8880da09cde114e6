# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of twenty VMs from one template: linked clones beside full copies, interleaved, without libvirt."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ansible_collections.drover.kvm.plugins.module_utils._checksum import hash_of
from ansible_collections.drover.kvm.plugins.module_utils._disks import file, making
from ansible_collections.drover.kvm.tests.benchmarks.measure import report

VMS = 20
DATA = 512 * 2**20
GOAL = 10.0
UUID = "7d4da458-de51-4138-9921-aae15234a969"


def test_twenty_linked_clones_beside_full_copies(tmp_path: Path) -> None:
    source, template = tmp_path / "source.raw", tmp_path / "template.qcow2"
    with source.open("wb") as stream:
        for _number in range(DATA // 2**20):
            stream.write(os.urandom(2**20))
    making.make(making.Order(str(template), str(source), hash_of(str(source)), "raw", "qcow2", 60), lambda: None)
    source.unlink()
    seconds = {"linked": 0.0, "full": 0.0}
    room = dict.fromkeys(seconds, 0)
    for number in range(VMS):
        for kind in seconds:
            path = tmp_path / f"{kind}-{number}.qcow2"
            options = {"path": str(path), "format": "qcow2", "source": str(template), "clone": kind}
            begin = time.monotonic()
            assert file.create(options, None, UUID)
            seconds[kind] += time.monotonic() - begin
            room[kind] += path.stat().st_blocks * 512
            # Twenty copies at once would take ten gigabytes.
            path.unlink()
    times = seconds["full"] / seconds["linked"]
    rows = [
        (f"{VMS} linked clones", f"{seconds['linked']:.2f} s, {room['linked'] >> 20} MiB"),
        (
            f"{VMS} full copies",
            f"{seconds['full']:.2f} s, {room['full'] >> 20} MiB, {times:.0f} times (goal: {GOAL:.0f})",
        ),
    ]
    report(f"The disks of {VMS} VMs from a template with {DATA >> 20} MiB of data", rows)
    assert times >= GOAL, rows
