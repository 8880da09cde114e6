# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lease per VM, on a directory that the nodes share: who asks libvirt for a second copy is refused by libvirt.

The nodes are containers, so the shared file system is the host's own, and its locks are seen on all of them.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.conftest import TRAVELLER
from ansible_collections.drover.kvm.tests.lab.migration import NODES, Mover
from ansible_collections.drover.kvm.tests.lab.wire import is_of

DIRECTORY = "/shared/leases"
LOCKED = "is locked"
FLOCK = struct.Struct("hhqqi4x")


class Leased:
    """The site with leases, as seen from the host."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.lab = cluster, cluster.lab
        self.folder = Path(f"{cluster.lab.state}/shared{DIRECTORY}")

    def site(self) -> int:
        """Set the site up with leases; the number of changes."""
        return self.cluster.play("site", hypervisor_lease_directory=DIRECTORY).good().changed

    def processes(self) -> dict[str, list[int]]:
        """The nodes' VMs: processes of QEMU, without those that libvirt starts to ask what QEMU can."""
        found = {node: self.lab.machine(node).find("qemu-system-x86_64") for node in NODES}
        return {node: sorted(pid for pid in pids if is_of(pid, "-uuid")) for node, pids in found.items()}

    def lockd(self) -> dict[str, list[int]]:
        """Those of virtlockd."""
        return {node: self.lab.machine(node).find("virtlockd") for node in NODES}

    def holder(self, uuid: str) -> str | None:
        """The node whose virtlockd holds the lease."""
        with (self.folder / uuid).open("r+b") as file:
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            kind, _whence, _start, _length, pid = FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return None
        return next((node for node, pids in self.lockd().items() if pid in pids), f"process {pid}")

    def restart(self, mover: Mover) -> None:
        """Cut the VM's power and start it."""
        for state in ("stopped", "running"):
            done = self.cluster.task(mover.source, "vm", name=mover.vm, state=state, force=True)
            assert not done["failed"], done
        mover.watch.wait_word(mover.vm, after=time.monotonic(), seconds=240)


@pytest.fixture(scope="module")
def leased(cluster: Cluster) -> Iterator[Leased]:
    """Leases on the site, and away again."""
    found = Leased(cluster)
    before = found.processes()
    assert found.site() > 0
    assert found.processes() == before and any(before.values())
    yield found
    cluster.play("site").good()


@pytest.fixture
def holder(leased: Leased, mover: Mover) -> Leased:
    """The VM that moves holds its lease."""
    if "<lease>" not in mover.virsh(mover.source, "dumpxml", mover.vm):
        leased.restart(mover)
    assert leased.holder(mover.uuid) == mover.source
    return leased


def test_a_vm_that_ran_before_has_its_lease_from_its_next_start(leased: Leased, mover: Mover) -> None:
    daemons = leased.lockd()
    assert leased.site() == 0
    assert leased.cluster.play("build_vms").good().changed > 0
    assert leased.cluster.play("build_vms").good().changed == 0
    told = leased.cluster.task(mover.source, "vm", name=mover.vm)
    assert told["pending_restart"] == [f"lease none -> {DIRECTORY}/{mover.uuid}"], told
    # It moves as before, and takes the definition along.
    mover.moved()
    mover.rests_on(mover.target)
    assert leased.holder(mover.uuid) is None
    mover.source = mover.target
    leased.restart(mover)
    assert leased.holder(mover.uuid) == mover.source
    assert leased.cluster.play("build_vms").good().changed == 0
    assert leased.site() == 0 and {node: pids for node, pids in leased.lockd().items() if daemons[node]} == {
        node: pids for node, pids in daemons.items() if pids
    }


def test_a_second_start_by_hand_is_refused(holder: Leased, mover: Mover) -> None:
    copy = mover.virsh(mover.source, "dumpxml", "--inactive", "--security-info", mover.vm)
    mover.inside(mover.third, "sh", "-c", "cat > /run/copy.xml; virsh define /run/copy.xml", feed=copy)
    try:
        said = mover.inside(mover.third, "sh", "-c", f"virsh start {mover.vm} 2>&1 || true")
        assert LOCKED in said, said
        assert holder.holder(mover.uuid) == mover.source
    finally:
        mover.virsh(mover.third, "undefine", mover.vm)
    mover.rests_on(mover.source)


def test_a_move_takes_the_lease_along_and_a_paused_vm_has_none(holder: Leased, mover: Mover) -> None:
    mover.moved()
    assert holder.holder(mover.uuid) == mover.target
    mover.rests_on(mover.target)
    mover.virsh(mover.target, "suspend", mover.vm)
    assert holder.holder(mover.uuid) is None
    result = mover.migrate(mover.target, name=mover.vm, to=mover.source)
    assert result.get("verified") and result["vm_state"] == f"paused on {mover.source}", result
    mover.virsh(mover.source, "resume", mover.vm)
    assert holder.holder(mover.uuid) == mover.source


def test_a_move_that_is_aborted_keeps_it(holder: Leased, mover: Mover) -> None:
    process = mover.start_slowly()
    mover.virsh(mover.source, "domjobabort", mover.vm)
    assert mover.end(process)["failed"]
    assert holder.holder(mover.uuid) == mover.source
    mover.rests_on(mover.source)


def test_a_move_whose_helper_is_killed_is_finished_with_it(holder: Leased, mover: Mover) -> None:
    mover.kill_controller(mover.start_slowly())
    mover.kill_module()
    mover.kill_helper()
    mover.in_phase("perform3")
    mover.speed_up()
    mover.hits("the end of Perform", lambda: "paused (user)" in (seen := mover.reason(mover.target)) or seen, 60)
    # Nobody runs it, so nobody holds it, and whoever may run it can take it.
    assert holder.holder(mover.uuid) is None
    result = mover.migrate(mover.third, state="recovered")
    assert result["changed"] and result["places"] == {mover.vm: mover.target}, result
    assert holder.holder(mover.uuid) == mover.target
    mover.rests_on(mover.target)


def test_e7_the_source_has_it_back_and_the_late_copy_does_not(holder: Leased, mover: Mover) -> None:
    process = mover.start_slowly()
    mover.freeze_before_finish()
    assert mover.end(process)["failed"]
    assert holder.holder(mover.uuid) == mover.source
    mover.thaw()
    mover.hits("the late Finish", lambda: "paused (user)" in (seen := mover.reason(mover.target)) or seen, 20)
    # What the protocol can't forbid: somebody resumes the copy by hand.
    said = mover.inside(mover.target, "sh", "-c", f"virsh resume {mover.vm} 2>&1 || true")
    assert LOCKED in said, said
    mover.counts()
    recovered = mover.migrate(mover.source, state="recovered")
    assert recovered["changed"] and recovered["places"] == {mover.vm: mover.source}, recovered
    mover.rests_on(mover.source)


def test_a_node_whose_virtlockd_was_killed_takes_vms_again(holder: Leased, mover: Mover) -> None:
    before = holder.lockd()[mover.target]
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(before) & set(holder.lockd()[mover.target]), 10, "the end of virtlockd")
    mover.moved()
    assert holder.holder(mover.uuid) == mover.target
    mover.rests_on(mover.target)


def test_a_node_without_the_directory_is_no_destination(holder: Leased, mover: Mover) -> None:
    mark = holder.folder / ".drover-leases"
    text = mark.read_text(encoding="utf-8")
    mark.unlink()
    try:
        holder.cluster.play("site", hypervisor_lease_directory=DIRECTORY).refused("mount the lease directory")
        done = holder.cluster.task(mover.source, "vm", name=mover.vm, description="not counted on")
        assert done["failed"] and "is it mounted?" in done["msg"], done
    finally:
        mark.write_text(text, encoding="utf-8")
    mover.inside(mover.target, "umount", "--lazy", "/shared")
    try:
        done = mover.move(check=True)
        assert done["failed"] and f"does not have the lease {DIRECTORY}" in done["msg"], done
    finally:
        holder.lab.power_off(mover.target)
        holder.lab.power_on(mover.target)


def test_a_node_that_died_and_comes_back_starts_no_second_copy(holder: Leased, mover: Mover, cluster: Cluster) -> None:
    dead, uuid = mover.source, mover.uuid
    lost = [vm for vm, node in cluster.where().items() if node == dead]
    assert TRAVELLER in lost and mover.autostart(dead)
    holder.lab.power_off(dead)
    try:
        assert holder.holder(uuid) is None
        cluster.play("build_vms", drover_fenced=[dead]).good()
        place = holder.holder(uuid)
        assert place in NODES and place != dead
    finally:
        holder.lab.power_on(dead)
    wait_until(lambda: set(lost) <= set(seen := cluster.domains(dead)) or str(seen), 120, "libvirt of the node")
    journal = "journalctl -b -u libvirtd --no-pager"
    wait_until(lambda: LOCKED in (said := cluster.ssh(dead, journal)) or said[-500:], 60, "the refused autostart")
    assert cluster.domains(dead)[TRAVELLER] == "shut off" and holder.holder(uuid) == place
    for vm in lost:
        cluster.ssh(dead, "virsh", "undefine", vm)
    mover.watch.wait_word(TRAVELLER, after=time.monotonic(), seconds=240)
