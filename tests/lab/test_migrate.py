# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of migrations and their faults. They need a lab that is up, whose name is in DROVER_LAB.

Each story sees that it hit its phase, else it fails as not exercised. After each: one copy, no counter counted twice.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from .migration_site import CANARY, SECOND, VM, Site

LAB = os.environ.get("DROVER_LAB", "")
GUEST = os.environ.get("DROVER_GUEST", "")
pytestmark = pytest.mark.skipif(not (LAB and GUEST), reason="DROVER_LAB (its name) and DROVER_GUEST (folder) not set")
SLOW = "3MiB"


@pytest.fixture(scope="session")
def cluster():
    site = Site(LAB)
    site.prepare(Path(GUEST))
    return site


@pytest.fixture
def site(cluster):
    cluster.fresh_vm("hv1")
    yield cluster
    for node in ("hv1", "hv2", "hv3"):
        cluster.signal(node, "CONT")


def rests_on(site, node, autostart="enable"):
    """The VM is on this node only, runs, is complete, and nobody ever counted beside it."""
    assert site.where() == {node: ("running", "yes", autostart)}
    assert site.marked() == []
    assert site.counts_on(node)
    assert site.doubles() == 0


def test_back_and_forth(site):
    for source, target in (("hv1", "hv2"), ("hv2", "hv3"), ("hv3", "hv1")):
        predicted = site.migrate(source, name=VM, to=target, check=True)
        result = site.migrate(source, name=VM, to=target)
        assert predicted["actions"] == result["actions"] == [f"migrate {VM} from {source} to {target}"]
        assert result["changed"] and result["verified"] and result["where"] == target
        assert 0 < result["downtime_ms"] < 3000
        again = site.migrate(source, name=VM, to=target)
        assert not again["changed"] and again["verified"]
        rests_on(site, target)


def test_the_guests_memory_is_not_on_the_wire(site):
    site.ssh("hv2", "systemd-run -q --unit sniff tcpdump -i mgmt0 -s 0 -w /run/sniff.pcap tcp portrange 49152-49215")
    time.sleep(2)
    assert site.migrate("hv1", name=VM, to="hv2")["verified"]
    site.ssh("hv2", "systemctl stop sniff")
    size = int(site.ssh("hv2", "stat -c %s /run/sniff.pcap"))
    assert size > 10 << 20, "the stream was not seen"
    assert site.ssh("hv2", f"grep -c {CANARY} /run/sniff.pcap", check=False).strip() == "0"
    memory = site.ssh("hv2", f"pid=$(cat /run/libvirt/qemu/{VM}.pid); grep -c {CANARY} /proc/$pid/cmdline", check=False)
    assert memory.strip() == "1", "the guest was started without its canary"
    site.ssh("hv2", "rm /run/sniff.pcap")


def test_a_vm_that_is_shut_off_moves_by_definition(site):
    site.virsh("hv1", f"destroy {VM}")
    result = site.migrate("hv1", name=VM, to="hv2")
    assert result["verified"] and result["vm_state"] == "shutoff on hv2"
    assert site.where() == {"hv2": ("shut off", "yes", "enable")} and site.marked() == []
    assert not site.migrate("hv1", name=VM, to="hv2")["changed"]


def test_a_paused_vm_stays_paused(site):
    site.virsh("hv1", f"suspend {VM}")
    assert site.migrate("hv1", name=VM, to="hv2")["verified"]
    assert site.where() == {"hv2": ("paused", "yes", "enable")} and site.marked() == []


def test_all_blockers_come_at_once_and_nothing_is_changed(site):
    site.ssh("hv1", "qemu-img create -q -f raw /var/lib/libvirt/images/local.img 1M")
    site.virsh("hv1", f"attach-disk {VM} /var/lib/libvirt/images/local.img vdb --live")
    result = site.migrate("hv1", name=VM, to="hv2", destinations={"hv2": {"cordon": {"since": "now", "by": "a"}}})
    reasons = [blocker["reason"] for blocker in result["details"]["blockers"]]
    site.virsh("hv1", f"detach-disk {VM} vdb --live")
    assert result["failed"] and reasons == ["local_disk", "cordoned"]
    rests_on(site, "hv1")


def kill_the_controller(process):
    """Ansible and its ssh, as by a power cut of the controller."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_e2_the_controller_dies_in_perform(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    kill_the_controller(process)
    assert "running" in site.reason("hv1"), "not exercised: it was over"
    predicted = site.migrate("hv1", name=VM, to="hv2", check=True)
    assert predicted["actions"] == [f"wait for the migration of {VM} to hv2, which runs"]
    result = site.migrate("hv1", name=VM, to="hv2")
    assert result["verified"] and result["actions"] == predicted["actions"]
    rests_on(site, "hv2")
    assert not site.migrate("hv1", name=VM, to="hv2")["changed"]


def test_e3_the_destinations_libvirtd_dies_in_perform(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    begin = time.monotonic()
    site.signal("hv2", "KILL")
    result = site.end(process)
    assert result["failed"] and result["details"]["where"] == "hv1" and "running on hv1" in result["msg"]
    assert time.monotonic() - begin < 30
    rests_on(site, "hv1")
    assert site.migrate("hv1", name=VM, to="hv2")["verified"]
    rests_on(site, "hv2")


def test_e4_the_sources_libvirtd_dies_in_perform(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    site.signal("hv1", "KILL")
    result = site.end(process)
    assert result["failed"] and result["details"]["where"] == "hv1"
    rests_on(site, "hv1")
    assert site.migrate("hv1", name=VM, to="hv2")["verified"]
    rests_on(site, "hv2")


def test_e7_the_destinations_libvirtd_freezes_before_finish(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.freeze_before_finish("hv1", "hv2")
    result = site.end(process)
    assert result["failed"] and result["details"]["where"] == "hv1"
    assert "running on hv1" in result["msg"] and "no answer from hv2" in result["msg"]
    assert site.counts_on("hv1")
    site.signal("hv2", "CONT")
    time.sleep(5)
    assert "paused (user)" in site.reason("hv2"), "not exercised: the queued Finish was not carried out"
    assert site.counts_on("hv1") and site.doubles() == 0
    result = site.migrate("hv1", name=VM, to="hv2")
    assert result["verified"] and len(result["actions"]) == 2
    rests_on(site, "hv2")
    assert not site.migrate("hv1", name=VM, to="hv2")["changed"]


def test_e8_the_sources_libvirtd_dies_when_all_is_sent(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW, "stall_timeout": 300})
    site.freeze_before_finish("hv1", "hv2")
    time.sleep(2)
    site.signal("hv1", "KILL")
    time.sleep(1)
    site.until("libvirtd of hv1", lambda: "paused" in site.reason("hv1"), 30)
    assert "migrating" in site.reason("hv1"), "not exercised: the source recovered by itself"
    site.signal("hv2", "CONT")
    result = site.end(process)
    where = result["details"]["where"] if result.get("failed") else result["where"]
    assert where in ("hv1", "hv2")
    final = result if where == "hv2" and not result.get("failed") else site.migrate("hv1", name=VM, to="hv2")
    assert final["verified"]
    rests_on(site, "hv2")


def test_e8_with_the_destination_still_frozen_the_source_runs_again(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW, "stall_timeout": 300})
    site.freeze_before_finish("hv1", "hv2")
    time.sleep(2)
    site.signal("hv1", "KILL")
    result = site.end(process)
    assert result["failed"] and result["details"]["where"] == "hv1"
    assert site.counts_on("hv1")
    site.signal("hv2", "CONT")
    time.sleep(5)
    assert "paused" in site.reason("hv2"), "not exercised: nothing was left at the destination"
    recovered = site.migrate("hv3", state="recovered")
    assert recovered["changed"] and recovered["places"] == {VM: "hv1"}
    rests_on(site, "hv1")
    assert not site.migrate("hv3", state="recovered")["changed"]


def helper(site, node):
    uuid = site.virsh(node, f"domuuid {VM}")
    return f"drover-migrate-{uuid}"


def test_the_helper_is_killed_in_perform(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    unit = helper(site, "hv1")
    kill_the_controller(process)
    site.ssh("hv1", "pkill -KILL -f drover.kvm.migrate; pkill -KILL -f AnsiballZ_migrate", check=False)
    site.ssh("hv1", f"systemctl kill -s KILL {unit}")
    site.until("the job that goes on alone", lambda: site.processed("hv1") > 1, 5)
    result = site.migrate("hv3", state="recovered")
    assert result["places"] == {VM: "hv2"} and result["changed"]
    rests_on(site, "hv2")


def test_the_helper_is_killed_and_the_module_sees_to_it(site):
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    site.ssh("hv1", f"systemctl kill -s KILL {helper(site, 'hv1')}")
    result = site.end(process)
    assert result["verified"] and result["where"] == "hv2"
    rests_on(site, "hv2")


def test_a_second_run_beside_the_first_waits_for_it(site):
    first = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW})
    site.in_perform("hv1")
    refused = site.migrate("hv1", name=VM, to="hv3")
    assert refused["failed"] and "on its way to hv2" in refused["msg"]
    second = site.start("hv1", {"name": VM, "to": "hv2"})
    results = [site.end(process) for process in (first, second)]
    assert all(result["verified"] and result["where"] == "hv2" for result in results)
    rests_on(site, "hv2")


def test_a_stall_ends_on_the_source(site):
    """The memory stream is cut, the control path stays: nothing but our own timer ends that."""
    process = site.start("hv1", {"name": VM, "to": "hv2", "bandwidth": SLOW, "stall_timeout": 5})
    site.in_perform("hv1")
    rule = "nft add table ip cut; nft 'add chain ip cut in { type filter hook input priority 0; }'; "
    site.ssh("hv2", rule + "nft add rule ip cut in tcp dport 49152-49215 drop")
    try:
        result = site.end(process)
    finally:
        site.ssh("hv2", "nft delete table ip cut")
    assert result["failed"] and result["details"]["where"] == "hv1"
    rests_on(site, "hv1")
    assert site.migrate("hv1", name=VM, to="hv2")["verified"]


def test_a_dead_controller_begins_no_further_move(site):
    site.second_vm("hv1")
    moves = [{"vm": VM, "to": "hv2", "bandwidth": SLOW}, {"vm": SECOND, "to": "hv2"}]
    process = site.start("hv1", {"moves": moves, "parallel": 1})
    site.in_perform("hv1")
    kill_the_controller(process)
    site.until("the end of the first move", lambda: "running" in site.reason("hv2"), 90)
    time.sleep(25)
    assert SECOND in site.virsh("hv1", "list --name") and SECOND not in site.virsh("hv2", "list --name")
    rests_on(site, "hv2")
    result = site.migrate("hv1", moves=moves)
    assert [one["changed"] for one in result["results"]] == [False, True]
    site.virsh("hv2", f"destroy {SECOND}")
    site.virsh("hv2", f"undefine {SECOND}")
