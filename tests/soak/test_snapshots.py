# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot on real libvirt and QEMU, with a guest that counts as the witness: what it wrote is never lost.

The guest writes its counter to its disk and then says it on its serial port. A snapshot with memory holds one value of
it; after the way back the guest goes on from exactly there. Runs that are killed are in test_kills.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import AGENT, DISK, FOLDER, NODE, XML, Vm


@pytest.fixture(scope="module")
def site(lab: Lab) -> Cluster:
    """The lab's nodes, whether its site is set up or not."""
    return Cluster(lab)


@pytest.fixture
def vm(site: Cluster, request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A VM of its own; its disks by the parameter of the test."""
    found = Vm(site, "snap1", getattr(request, "param", {"vda": "qcow2", "vdb": "qcow2"})).make()
    yield found
    found.remove()


def same_twice(vm: Vm, **options: Any) -> dict[str, Any]:
    """What check mode foretells happens, and a second run does nothing."""
    foretold, real, again = vm.task(check=True, **options), vm.good(**options), vm.good(**options)
    assert foretold["actions"] == real["actions"] and real["changed"], (foretold, real)
    assert not again["changed"] and again["actions"] == []
    return real


def test_a_revert_with_memory_goes_on_at_the_very_count(vm: Vm) -> None:
    made = same_twice(vm, snapshot="s1", memory=True, description="before all", tags=["story"])
    (one,) = made["vms"][0]["snapshots"]
    assert one["kind"] == "internal" and one["size"] > 0 and vm.snapshots() == ["s1"]
    held = vm.kept("s1")
    vm.counts()
    refused = vm.task(snapshot="s1", state="reverted")
    assert refused["failed"] and refused["error"] == "Refused" and "discard_changes_since: s1" in refused["msg"]
    assert vm.snapshots() == ["s1"]
    said, last = len(vm.said()), vm.said()[-1]
    assert last > held
    act = {"snapshot": "s1", "state": "reverted", "discard_changes_since": "s1", "id": "CHG-1"}
    back = same_twice(vm, **act)
    lost = back["lost"][vm.name]
    assert lost["age"] >= 0 and lost["bytes"] is not None, lost
    vm.counts()
    # From the safety snapshot's moment it counted on until it was set back; then it goes on from what s1 holds.
    assert vm.returned(said)[0] in (held, held + 1), (held, vm.said()[said:])
    assert vm.snapshots() == ["before-s1-CHG-1", "s1"] and "CHG-1" in vm.virsh("dumpxml")
    # Nothing was lost: what it was is in the safety snapshot.
    assert vm.kept("before-s1-CHG-1") >= last
    safety = "before-s1-CHG-1"
    vm.good(snapshot=safety, state="reverted", discard_changes_since=safety, safety_snapshot=False)
    assert vm.counts() > last
    gone = vm.good(state="retained", keep=0)
    assert len(gone["actions"]) == 2 and vm.snapshots() == []
    vm.is_sound()


@pytest.mark.parametrize("vm", [{"vda": "raw", "vdb": "qcow2"}], indirect=True)
def test_disks_of_other_formats_are_kept_outside(vm: Vm) -> None:
    made = same_twice(vm, snapshot="e1")
    assert made["vms"][0]["chain_length"] == 2 and len(vm.chain()) == 2
    count = vm.counts()
    same = same_twice(vm, snapshot="e2", memory=True)
    # Memory has the guest's secrets: nobody but root and QEMU's user can read it.
    files = [path for one in same["vms"][0]["snapshots"] for path in one["files"]]
    modes = vm.site.ssh(NODE, f"stat -c %a {' '.join(files)}").split()
    assert len(files) == 5 and set(modes) == {"600"}, (files, modes)
    vm.counts()
    vm.good(snapshot="e1", state="reverted", discard_changes_since="e1", id="A")
    assert vm.counts() <= count and vm.snapshots() == ["before-e1-A", "e1", "e2"]
    refused = vm.task(snapshot="e1", state="absent")
    assert refused["failed"] and "is the ground of e2 and of what runs now" in refused["msg"], refused
    vm.good(snapshot="e2", state="reverted", discard_changes_since="e2", id="B", safety_snapshot=False)
    assert vm.counts() >= count
    # e2 is the ground of the safety snapshot and of what runs, so it goes last.
    gone = vm.good(state="retained", keep=0)
    assert [words.split()[4] for words in gone["actions"]] == ["e1", "before-e1-A", "e2"], gone
    assert vm.snapshots() == [] and len(vm.chain()) == 1 and vm.counts() > count
    left = vm.site.ssh(NODE, f"ls {FOLDER}").split()
    assert not [name for name in left if ".e" in name or "before" in name], left
    vm.is_sound()


def test_a_machine_that_is_off(vm: Vm) -> None:
    vm.virsh("destroy")
    held = vm.said()[-1]
    same_twice(vm, snapshot="off")
    vm.virsh("start")
    assert vm.counts() > held
    said = len(vm.said())
    vm.good(snapshot="off", state="reverted", discard_changes_since="off", id="A")
    wait_until(lambda: "running" in vm.state(), 30, "it boots again")
    vm.counts()
    assert vm.returned(said)[0] in (held, held + 1, held + 2), (held, vm.said()[said:])
    vm.good(state="retained", keep=0)
    vm.is_sound()


@pytest.mark.parametrize("vm", [{"vda": "raw", "vdb": "raw"}], indirect=True)
def test_a_folder_that_is_full_harms_nobody(vm: Vm) -> None:
    vm.site.ssh(NODE, "mkdir -p /srv/tight; mount -t tmpfs -o size=68M tmpfs /srv/tight")
    try:
        refused = vm.task(snapshot="e1", memory=True, directory="/srv/tight")
        assert refused["failed"] and refused["error"] == "Refused" and "free; make room for" in refused["msg"]
        assert vm.snapshots() == [] and len(vm.chain()) == 1
        vm.is_sound()
    finally:
        vm.remove()
        vm.site.ssh(NODE, "umount /srv/tight")


UNIT = "drover-thaw-$(virsh domuuid $vm)"


@pytest.fixture
def tiny(site: Cluster, tmp_path: Path) -> Iterator[Vm]:
    """A VM with a guest agent on a raw disk."""
    found = Vm(site, "agent1", {"vda": "raw"})
    found.remove()
    guests = Guests(site.lab.base)
    guests.ensure()
    folder = site.lab.machine(NODE).path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    guests.write_image(folder / "agent1-vda.raw", {"name": "agent1"})
    disks = DISK.format(folder=FOLDER, name="agent1", target="vda", format="raw")
    xml = XML.format(folder=FOLDER, name="agent1", memory=192, disks=disks, agent=AGENT)
    site.ssh(NODE, f"cat >{FOLDER}/agent1.xml; virsh define {FOLDER}/agent1.xml; virsh start agent1", stdin=xml)
    wait_until(lambda: "thawed" in found.asked("guest-fsfreeze-status") or "no agent", 180, "the agent answers")
    yield found
    found.remove()


def test_a_guest_is_frozen_for_the_moment_only(tiny: Vm) -> None:
    made = tiny.good(snapshot="q1", quiesce="required")
    (one,) = made["vms"][0]["snapshots"]
    assert one["quiesced"] is True
    left = tiny.site.ssh(NODE, "systemctl list-units --all --plain --no-legend 'drover-thaw-*'")
    assert left == "" and "thawed" in tiny.asked("guest-fsfreeze-status")
    tiny.good(snapshot="q1", state="absent")
    tiny.killed(f"systemctl is-active {UNIT}.timer", snapshot="q2", quiesce="required")
    # The timer comes, thaws, and is gone.
    units = "systemctl list-units --all --plain --no-legend 'drover-thaw-*'"
    wait_until(lambda: tiny.site.ssh(NODE, units) == "" or "the timer is there", 30, "the timer came")
    assert "thawed" in tiny.asked("guest-fsfreeze-status")
    journal = tiny.site.ssh(NODE, "journalctl -u 'drover-thaw-*.service' -o cat --no-pager")
    assert "drover: thaw agent1" in journal, journal
    tiny.settled(snapshot="q2", quiesce="required")
    assert tiny.snapshots() == ["q2"]
