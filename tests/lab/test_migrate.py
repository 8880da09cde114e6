# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of migrations and their faults (letters and numbers are those of the acceptance).

Each sees that its fault fell into its phase, else it fails as not exercised. A witness watches each to its end: no
moment with two running copies, no counter that goes back, one definition.
"""

from __future__ import annotations

import time

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import wait_until
from ansible_collections.drover.kvm.tests.lab.conftest import CANARY
from ansible_collections.drover.kvm.tests.lab.migration import CONTROL, MIB, STREAM, WELL, Mover
from ansible_collections.drover.kvm.tests.lab.wire import Capture, in_memory


def test_back_and_forth(mover: Mover) -> None:
    for source, to in ((mover.source, mover.target), (mover.target, mover.source)):
        predicted = mover.migrate(source, check=True, name=mover.vm, to=to)
        result = mover.migrate(source, name=mover.vm, to=to)
        assert predicted["actions"] == result["actions"] == [f"migrate {mover.vm} from {source} to {to}"]
        assert result["changed"] and result.get("verified") and result["where"] == to, result
        assert 0 < result["downtime_ms"] < 5000
        mover.rests_on(to)
    again = mover.migrate(mover.source, name=mover.vm, to=mover.source)
    assert not again["changed"] and again.get("verified"), again


def test_the_guests_memory_is_not_on_the_wire(mover: Mover) -> None:
    canary = CANARY.encode()
    assert in_memory(mover, mover.source, canary) > 1000, "the guest does not hold its canary"
    with Capture(mover, ("migration0", "mgmt0")) as wire:
        mover.moved()
    flows = wire.flows()
    streams = [flow for flow in flows if 49152 <= flow.port <= 49215 and len(flow.data) > 10 * MIB]
    assert streams, f"the stream was not seen: {[(flow.name, flow.port, len(flow.data)) for flow in flows]}"
    assert all(flow.data.startswith(b"\x16\x03") for flow in streams), "it does not begin with a TLS handshake"
    assert sum(flow.data.count(canary) for flow in flows) == 0
    assert in_memory(mover, mover.target, canary) > 1000, "the canary did not arrive"


def test_a_vm_that_is_shut_off_moves_by_definition(mover: Mover) -> None:
    mover.virsh(mover.source, "destroy", mover.vm)
    result = mover.move()
    assert result.get("verified"), result
    assert result["vm_state"] == f"shutoff on {mover.target}"
    mover.rests_on(mover.target, "shut off")
    assert not mover.move()["changed"]


def test_a_vm_that_its_user_paused_stays_paused(mover: Mover) -> None:
    mover.virsh(mover.source, "suspend", mover.vm)
    mover.moved()
    mover.rests_on(mover.target, "paused")
    assert "paused (user)" in mover.reason(mover.target)


def test_all_blockers_come_at_once_and_nothing_is_changed(mover: Mover) -> None:
    """F-19."""
    image = f"/var/lib/libvirt/images/{mover.vm}-local.img"
    mover.inside(mover.source, "truncate", "--size=1M", image)
    mover.virsh(mover.source, "attach-disk", mover.vm, image, "vdb", "--live", "--targetbus", "virtio")
    known = {"cordon": {"since": "now", "by": "a"}, "bridges": [{"name": "br9", "type": "ovs"}]}
    try:
        result = mover.move(destinations={mover.target: known})
    finally:
        mover.virsh(mover.source, "detach-disk", mover.vm, "vdb", "--live")
    assert result["failed"] and not result["changed"]
    assert [blocker["reason"] for blocker in result["details"]["blockers"]] == ["local_disk", "cordoned", "bridge"]
    mover.rests_on(mover.source)
    wait_until(lambda: "vdb" not in (seen := mover.virsh(mover.source, "domblklist", mover.vm)) or seen, 60, "no vdb")


def test_a_network_that_drops_packets_is_refused_before_anything_is_changed(mover: Mover) -> None:
    """F-16, and a connection that nobody could end for 131 s."""
    mover.cut_stream()
    result = mover.move()
    mover.mend_stream()
    assert result["failed"] and not result["changed"]
    assert [blocker["reason"] for blocker in result["details"]["blockers"]] == ["migration_network"]
    assert "port 49215: no answer within 10 s" in result["msg"]
    mover.rests_on(mover.source)


def test_a_destination_that_does_not_reach_the_storage_takes_no_vm(mover: Mover) -> None:
    mover.cut_storage()
    begin = time.monotonic()
    result = mover.move()
    took = time.monotonic() - begin
    mover.mend_stream()
    assert result["failed"] and result["details"]["where"] == mover.source
    assert "its storage does not answer this node (10.231.5.10 port 3260: timed out)" in result["msg"], result
    assert took < 60, f"{took:.0f} s: QEMU waited for the disk"
    mover.rests_on(mover.source)


def test_e2_the_controller_dies_in_perform(mover: Mover) -> None:
    mover.kill_controller(mover.start_slowly())
    process = mover.start(mover.source, name=mover.vm, to=mover.target)
    predicted = mover.move(check=True)
    mover.in_phase("perform3")
    assert predicted["actions"] == [f"wait for the migration of {mover.vm} to {mover.target}, which runs"]
    mover.speed_up()
    second = mover.end(process)
    assert second.get("verified"), second
    assert second["actions"] == predicted["actions"]
    mover.rests_on(mover.target)
    assert not mover.move()["changed"]


def test_e3_the_destinations_libvirtd_dies_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    begin = time.monotonic()
    mover.kill_daemon(mover.target)
    result = mover.end(process)
    assert time.monotonic() - begin < 60
    assert result["failed"] and result["details"]["where"] == mover.source
    assert f"running on {mover.source}" in result["msg"]
    mover.goes_next_time()


def test_e4_the_sources_libvirtd_dies_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.kill_daemon(mover.source)
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source
    mover.goes_next_time()


def test_e5_the_destinations_qemu_dies_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.kill_qemu(mover.target)
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source, result
    mover.goes_next_time()


def test_e7_the_destinations_libvirtd_freezes_before_finish(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.freeze_before_finish()
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source
    assert f"running on {mover.source}" in result["msg"] and f"no answer from {mover.target}" in result["msg"]
    mover.counts()
    mover.thaw()
    # The Finish that waited in the frozen daemon is carried out now; without the protocol the copy would run.
    mover.hits("the late Finish", lambda: "paused (user)" in (seen := mover.reason(mover.target)) or seen, 20)
    mover.counts()
    recovered = mover.migrate(mover.source, state="recovered")
    assert recovered["changed"] and recovered["places"] == {mover.vm: mover.source}
    mover.goes_next_time()


def test_e8_the_sources_libvirtd_dies_when_all_is_sent(mover: Mover) -> None:
    process = mover.start_slowly(stall_timeout=300)
    mover.freeze_before_finish()
    mover.kill_daemon(mover.source)
    mover.hits("the new libvirtd", lambda: "paused (migrating)" in (seen := mover.reason(mover.source)) or seen)
    mover.thaw()
    result = mover.end(process)
    if result["failed"]:
        assert result["details"]["where"] == mover.source, result
        result = mover.move()
    assert result.get("verified") and result["where"] == mover.target, result
    mover.rests_on(mover.target)


def test_e8b_the_destinations_libvirtd_dies_before_finish(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.freeze_before_finish()
    mover.kill_daemon(mover.target)
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source, result
    mover.goes_next_time()


def test_e11_a_vm_that_runs_twice_is_moved_by_nobody(mover: Mover) -> None:
    """Made by hand, as a tool without our look at the peers would: paused, so that no data is at stake."""
    text = mover.virsh(mover.source, "dumpxml", mover.vm, "--security-info", "--migratable")
    mover.inside(mover.third, "tee", "/run/drover-twice.xml", feed=text)
    both = {mover.source: WELL, mover.third: ("paused", "no")}
    try:
        # A busy node may take longer for it than virsh is given; libvirt goes on.
        mover.virsh(mover.third, "create", "/run/drover-twice.xml", "--paused", check=False)
        wait_until(lambda: mover.says() == both or mover.says(), 60, f"{mover.vm} twice")
        for to in (mover.target, mover.third):
            result = mover.migrate(mover.source, name=mover.vm, to=to)
            assert result["failed"] and not result["changed"], result
            assert mover.third in result["msg"], result["msg"]
        assert mover.says()[mover.source] == WELL
    finally:
        mover.virsh(mover.third, "destroy", mover.vm, check=False)
        mover.inside(mover.third, "rm", "/run/drover-twice.xml")
    mover.rests_on(mover.source)


def test_the_helper_is_killed_and_the_module_sees_to_it(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.kill_helper()
    mover.speed_up()
    result = mover.end(process)
    assert result.get("verified") and result["where"] == mover.target, result
    mover.rests_on(mover.target)


def test_the_helper_and_the_controller_are_killed_in_perform(mover: Mover) -> None:
    mover.kill_controller(mover.start_slowly())
    mover.kill_module()
    mover.kill_helper()
    mover.in_phase("perform3")
    mover.speed_up()
    result = mover.migrate(mover.third, state="recovered")
    assert result["changed"], f"not exercised: there was nothing to recover: {result}"
    assert result["places"] == {mover.vm: mover.target}
    mover.rests_on(mover.target)


def test_a_second_run_beside_the_first_waits_for_it(mover: Mover) -> None:
    """F-04."""
    first = mover.start_slowly()
    second = mover.start(mover.source, name=mover.vm, to=mover.target)
    mover.hits("the second run", lambda: len(mover.modules()) == 2 or mover.modules())
    # What this one has read when it ends, the second, which began before it, has read too.
    other = mover.migrate(mover.source, name=mover.vm, to=mover.third)
    assert other["failed"] and f"on its way to {mover.target}" in other["msg"]
    mover.in_phase("perform3")
    mover.speed_up()
    results = [mover.end(process) for process in (first, second)]
    assert all(result.get("verified") and result["where"] == mover.target for result in results), results
    assert results[1]["actions"] == [f"wait for the migration of {mover.vm} to {mover.target}, which runs"]
    mover.rests_on(mover.target)


def test_a_stall_ends_on_the_source(mover: Mover) -> None:
    """E6: the memory stream is cut, the control path stays: nothing but our own timer ends that."""
    # QEMU's start at the destination, which sends nothing yet, takes its seconds on a busy machine.
    process = mover.start_slowly(stall_timeout=15)
    mover.cut_stream()
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source
    mover.mend_stream()
    mover.goes_next_time()


def test_f11_the_sources_qemu_dies_in_perform(mover: Mover) -> None:
    process = mover.start_slowly()
    mover.kill_qemu(mover.source)
    mover.ends_off(mover.end(process))
    mover.rests_on(mover.source)


@pytest.mark.parametrize("path", ["stream", "control", "both"])
def test_f13_a_cut_of_ten_seconds_delays_it(mover: Mover, path: str) -> None:
    process = mover.start_slowly()
    before = mover.processed(mover.source)
    mover.cut_ports({"stream": [STREAM], "control": [CONTROL], "both": [STREAM, CONTROL]}[path])
    # The length of the cut is the story itself.
    time.sleep(10)
    mover.in_phase("perform3")
    if path != "control":
        assert mover.processed(mover.source) - before < 5 * MIB, "not exercised: the memory went on"
    mover.mend_stream()
    mover.speed_up()
    result = mover.end(process)
    assert result.get("verified") and result["where"] == mover.target, result
    mover.rests_on(mover.target)
