# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot beside virsh by hand, interleaved: with memory, back to it, removed; an external one merged."""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _later
from ansible_collections.drover.kvm.plugins.module_utils._domain import site
from ansible_collections.drover.kvm.plugins.modules import snapshot
from ansible_collections.drover.kvm.tests.benchmarks.measure import report, typical
from ansible_collections.drover.kvm.tests.unit import libvirt_server
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_backup import Machine, libvirt

# MiB: of the VM's memory, what is in use of it, and what it writes above an external snapshot.
MEMORY, USED, WRITTEN = 1536, 1472, 1024
ROUNDS, GOAL = 5, 1.1
LOADED = """<qemu:commandline><qemu:arg value='-device'/>
<qemu:arg value='loader,file={},addr=0x1000000,force-raw=on'/></qemu:commandline></domain>"""
# What is done in each round, by virsh and by the module.
ACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "made with memory": ("snapshot-create-as web1 s1", {"snapshot": "s1", "memory": True}),
    "gone back to": (
        "snapshot-revert web1 s1",
        {"snapshot": "s1", "state": "reverted", "discard_changes_since": "s1", "safety_snapshot": False},
    ),
    "removed": ("snapshot-delete web1 s1", {"snapshot": "s1", "state": "absent"}),
    "external": ("snapshot-create-as web1 e1 --disk-only --atomic", {"snapshot": "e1", "kind": "external"}),
    "merged": ("snapshot-delete web1 e1", {"snapshot": "e1", "state": "absent"}),
}


@pytest.fixture
def machine(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A VM that runs, with memory that is in use."""
    monkeypatch.setattr(site, "ask_peers", lambda call, seconds: {})
    with libvirt_server.private_libvirtd() as daemon:
        found = Machine(tmp_path, daemon.uri(), capsys)
        monkeypatch.setattr(_later, "run", found.systemd)
        found.formats = {"vda": "qcow2"}
        qemu_img("create", "-q", "-f", "qcow2", found.disk("vda"), "4G")
        found.define()
        text = found.vm.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        content = tmp_path / "memory"
        with content.open("wb") as out:
            for _mib in range(USED):
                out.write(os.urandom(1 << 20))
        text = text.replace("</domain>", LOADED.format(content)).replace("16384<", f"{MEMORY << 10}<")
        text = text.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ", 1)
        found.connection.defineXML(text)
        found.vm.create()
        yield found
        found.vm.destroy()
        found.vm.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        found.connection.close()


def by_hand(machine: Machine, words: str) -> float:
    """The seconds of virsh."""
    begin = time.monotonic()
    subprocess.run(["virsh", "-q", "-c", machine.uri, *words.split()], check=True, capture_output=True)
    return time.monotonic() - begin


def by_module(machine: Machine, options: Mapping[str, Any]) -> float:
    """The seconds of the module."""
    begin = time.monotonic()
    done = machine.call(snapshot.main, name="web1", **options)
    seconds = time.monotonic() - begin
    assert not done.get("failed") and done["changed"], done
    return seconds


def test_snapshots_beside_the_same_by_hand(machine: Machine) -> None:
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for number in range(2 * ROUNDS):
        ours = bool(number % 2)
        for act, (words, options) in ACTS.items():
            seconds[act, ours].append(by_module(machine, options) if ours else by_hand(machine, words))
            if act == "external":
                machine.write(5, "0", f"{WRITTEN}M")
        (left,) = machine.folder.glob("vda.*")
        assert left == machine.disk("vda")
    rows, over = [], {}
    for act in ACTS:
        bare, own = (typical(seconds[act, ours]) for ours in (False, True))
        over[act] = own / bare
        rows.append((act, f"virsh {bare:.2f} s, module {own:.2f} s: {own / bare:.2f} times, {own - bare:.2f} s more"))
    report(f"Snapshots of a VM with {USED} MiB of memory in use, {WRITTEN} MiB written (goal: {GOAL})", rows)
    # What takes milliseconds by hand is as long as the module looks before and after it.
    assert all(over[act] <= GOAL for act in ("made with memory", "gone back to", "merged")), rows
