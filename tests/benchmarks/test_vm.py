# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that are as declared: a hundred in one task beside a loop of community.libvirt.virt, and one beside a ping."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import PEERS, report, seconds_of_tasks, typical
from ansible_collections.drover.kvm.tests.unit import libvirt_server

VMS = 100
ROUNDS = 5
LOOPS = 2  # a loop takes half a minute and more
ONE_GOAL, ALL_GOAL, LOOP_GOAL = 2.0, 1.0, 50.0
DISK = {"type": "iscsi", "portal": "10.231.5.10:3260"}
# What a template of a site that writes XML has, with the names that the others have, too.
XML = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='KiB'>65536</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='network' device='disk'>
<driver name='qemu' type='raw'/><source protocol='iscsi' name='iqn.2026-11.org.example:{name}/1'>
<host name='10.231.5.10' port='3260'/></source><target dev='vda' bus='virtio'/></disk></devices></domain>"""


@pytest.fixture
def inside() -> Iterator[list[str]]:
    """A command that runs others where libvirt's usual socket is that of a private daemon."""
    with libvirt_server.private_libvirtd() as daemon:
        folder = daemon.path("/run/libvirt")
        folder.mkdir(exist_ok=True)
        for name in ("libvirt-sock", "libvirt-sock-ro"):
            if not (folder / name).exists():
                (folder / name).symlink_to(Path(libvirt_server.SOCKET).with_name(name))
        yield ["nsenter", "--mount", "--target", str(daemon.process.pid)]


def sheet(name: str, number: int) -> dict[str, Any]:
    """A VM with a disk."""
    disks = [{**DISK, "iqn": f"iqn.2026-11.org.example:{name}-{number}"}]
    return {"name": f"{name}{number}", "memory": "64MiB", "vcpus": 1, "virt_type": "qemu", "disks": disks}


def theirs(number: int) -> str:
    """One of those that are declared as XML."""
    return XML.format(name=f"theirs{number}", uuid=f"00000000-0000-4000-8000-{number:012d}")


def test_a_hundred_vms_that_are_as_declared(tmp_path: Path, inside: list[str]) -> None:
    assert PEERS, "DROVER_PEERS names the folder with community.libvirt (make bench)"
    (tmp_path / "theirs.json").write_text(json.dumps([theirs(number) for number in range(VMS)]), encoding="utf-8")
    every = {"drover.kvm.vm": {"vms": [sheet("ours", number) for number in range(VMS)]}}
    one = {"drover.kvm.vm": sheet("ours", 0)}
    texts = f"{{{{ lookup('ansible.builtin.file', '{tmp_path}/theirs.json') | from_json }}}}"
    loop = {
        "community.libvirt.virt": {"command": "define", "xml": "{{ item }}"},
        "loop": texts,
        "loop_control": {"label": "one"},
    }
    tasks: list[dict[str, Any]] = [{"name": "made", **every}, {"name": "made theirs", **loop}]
    tasks.append({"name": "warm", "ansible.builtin.ping": {}})
    for number in range(ROUNDS):
        tasks.append({"name": "ping", "ansible.builtin.ping": {}})
        tasks += [{"name": "one", **one}, {"name": "all", **every}]
        if number < LOOPS:
            tasks.append({"name": "loop", **loop})
    found = seconds_of_tasks(tasks, tmp_path, inside=inside, unchanged=("one", "all"))
    ping, single, many, looped = (typical(found[name]) for name in ("ping", "one", "all", "loop"))
    rows = [
        ("task ping", f"{ping:.3f} s"),
        ("vm, one that is as declared", f"{single:.3f} s, {single / ping:.2f} pings (goal: at most {ONE_GOAL})"),
        (f"vm, {VMS} in one task", f"{many:.3f} s, {many - ping:.3f} s more than a ping (goal: at most {ALL_GOAL})"),
        ("loop of community.libvirt.virt", f"{looped:.1f} s, {looped / many:.0f} times (goal: {LOOP_GOAL:.0f})"),
    ]
    report(f"{VMS} VMs that are as declared (QEMU driver; medians of {ROUNDS} rounds, {LOOPS} loops)", rows)
    assert single <= ONE_GOAL * ping and many <= ping + ALL_GOAL and looped >= LOOP_GOAL * many, rows
