# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of two hypervisors with Ceph's disks and a third server that only votes."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import (
    RECORD_OFFSET,
    RECORD_SIZE,
    Guests,
    parse_record,
)
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, SINK, Cluster, tasks, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

EXAMPLE = ROOT / "examples/ceph-quorum"
LONGEST_STALL = 30.0
# Ceph takes an OSD that is silent for lost after 20 to 30 s.
LONGEST_LOSS = 60.0
# A task of a module whose cluster does not answer: 5 s for each connection, and the way to the node.
LONGEST_WAIT = 40.0
THIEF = {"name": "thief", "memory": "64MiB", "vcpus": 1}
# Any client: it has an image open and says nothing to anybody.
HOLDER = """
import rados, rbd, time
with rados.Rados(conffile="/etc/ceph/ceph.conf", name="client.admin") as cluster:
    with cluster.open_ioctx("vms") as pool, rbd.Image(pool, "open"):
        time.sleep(120)
"""
# A new object, written and read back: what Ceph says of its health is old for some seconds after a change.
PROBE = """
set -e
head -c 64 /dev/urandom >/run/probe
timeout 20 rados -p vms -N probe put probe /run/probe
timeout 20 rados -p vms -N probe get probe /run/probe.read
timeout 20 rados -p vms -N probe rm probe
cmp /run/probe /run/probe.read
"""


# What a guest has on its disk, read by an administrator of Ceph beside the VM.
READ = f"""
import rados, rbd, sys
with rados.Rados(conffile="/etc/ceph/ceph.conf", name="client.admin") as cluster:
    with cluster.open_ioctx("vms") as pool, rbd.Image(pool, *sys.argv[1:], read_only=True) as image:
        print(image.read({RECORD_OFFSET}, {RECORD_SIZE}).rstrip(bytes(1)).decode())
"""


@pytest.fixture(scope="module", name="quorum")
def the_site(quorum: Cluster) -> Cluster:
    """The example as its README.md builds it, with its VMs counting."""
    write_images(quorum)
    quorum.play(str(EXAMPLE / "site.yml")).good()
    quorum.play("build_vms").good()
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name, seconds=240)
    return quorum


def write_images(quorum: Cluster) -> None:
    """An image for each declared VM on the controller, where the example looks for the files of its templates."""
    guests = Guests(quorum.lab.base)
    folder = quorum.lab.state / "images"
    folder.mkdir(exist_ok=True)
    for name, sheet in quorum.sheets().items():
        guests.write_image(folder / f"{name}.img", {"name": name, "ip": str(sheet["guest_address"]), "sink": SINK})


def ceph(quorum: Cluster, command: str) -> dict[str, Any]:
    """What Ceph answers."""
    return dict[str, Any](json.loads(quorum.ssh("q1", f"ceph --connect-timeout 10 {command} -f json")))


def watchers(quorum: Cluster, name: str) -> list[str]:
    """The addresses of those that have a VM's image open."""
    found = json.loads(quorum.ssh("q1", f"rbd status --format json vms/drover-{name}-0"))
    return [one["address"].split(":")[0] for one in found["watchers"]]


def flags(quorum: Cluster) -> dict[str, Any]:
    """Host → flags of its OSDs."""
    return {host: found for host, found in ceph(quorum, "osd dump")["crush_node_flags"].items() if found}


def is_clean(quorum: Cluster) -> bool | str:
    """Whether all data has its two copies, and a new object can be written and read."""
    found = ceph(quorum, "status")
    states = {one["state_name"]: one["count"] for one in found["pgmap"]["pgs_by_state"]}
    up = found["osdmap"]["num_up_osds"]
    if up != 4 or set(states) != {"active+clean"}:
        return f"{up} OSDs up, {states}"
    quorum.ssh("q1", "bash", "-s", stdin=PROBE)
    return True


def test_the_hypervisors_user_can_use_its_pool_and_nothing_else(quorum):
    paths = "/etc/ceph/ceph.client.libvirt.keyring"
    assert quorum.ssh("hv1", "stat", "-c", "%a:%U", paths).split() == ["600:root"]
    tried = {
        "rbd -n client.libvirt ls vms": True,
        "ceph -n client.libvirt osd pool ls": True,
        "rbd -n client.libvirt ls .mgr": False,
        "rados -n client.libvirt -p .mgr ls": False,
        "ceph -n client.libvirt osd pool set vms size 1": False,
        "ceph -n client.libvirt auth ls": False,
        "ceph -n client.libvirt osd pool rm vms vms --yes-i-really-really-mean-it": False,
    }
    script = "; ".join(f"timeout 20 {command} >/dev/null 2>&1; echo $?" for command in tried)
    codes = quorum.ssh("hv1", script).split()
    assert {command: code == "0" for command, code in zip(tried, codes)} == tried


def on_disk(quorum: Cluster, name: str, *snapshot: str) -> int:
    """The counter on a VM's disk, or in a snapshot of it."""
    record = parse_record(quorum.ssh("q1", "python3", "-", f"drover-{name}-0", *snapshot, stdin=READ).encode())
    assert record and record.name == name
    return record.counter


def test_templates_are_made_once_and_a_run_that_was_cut_off_is_finished(quorum):
    play = str(EXAMPLE / "templates.yml")
    assert quorum.play(play).good().changed == 0
    # Cut off in the import of one file, and after that of another one.
    more = [{"name": f"image-{name}", "file": str(quorum.lab.state / "images/web1.img")} for name in ("cut", "bare")]
    quorum.ssh("q1", "rbd create --size 8M vms/image-cut.part; rbd create --size 8M vms/image-bare")
    try:
        told = quorum.play(play, "--check", templates=more).good()
        done = quorum.play(play, templates=more).good()
        assert told.changed > 0 and "image-cut.part" not in quorum.ssh("q1", "rbd ls vms")
        protected = [quorum.ssh("q1", f"rbd info vms/{one['name']}@base") for one in more]
        assert all("protected: True" in text for text in protected), protected
        assert "size 32 MiB" in protected[0] and quorum.play(play, templates=more).good().changed == 0, done.output
    finally:
        for one in more:
            words = (f"snap unprotect vms/{one['name']}@base", f"snap purge vms/{one['name']}", f"rm vms/{one['name']}")
            quorum.ssh("q1", "; ".join(f"rbd {word}" for word in words), check=False)


def test_a_second_run_changes_nothing_and_no_key_is_shown(quorum):
    key = quorum.ssh("q1", "ceph auth get-key client.libvirt").strip()
    again = quorum.play("site", "--tags", "ceph_client", "--diff", "-vvv").good()
    assert again.changed == 0 and key not in again.output
    # The key is lost on one node, and comes back.
    quorum.ssh("hv2", "rm /etc/ceph/ceph.client.libvirt.keyring")
    mended = quorum.play("site", "--tags", "ceph_client", "--diff", "-vvv").good()
    assert mended.changed == 1 and key not in mended.output
    assert quorum.play("build_vms").good().changed == 0


def test_vms_run_on_the_hypervisors_with_one_watcher_each(quorum):
    where = quorum.where()
    assert sorted(where) == sorted(quorum.sheets()) and set(where.values()) <= {"hv1", "hv2"}
    for name, node in where.items():
        assert watchers(quorum, name) == [quorum.lab.topology.networks["storage"].address(number(quorum, node))]


def number(quorum: Cluster, node: str) -> int:
    return quorum.lab.topology.node(node).number


def test_an_image_that_is_open_keeps_its_vm_from_starting(quorum):
    name, node = next(iter(quorum.where().items()))
    other = "hv2" if node == "hv1" else "hv1"
    disk = {"type": "rbd", "pool": "vms", "image": f"drover-{name}-0"}
    told = quorum.task(other, "vm", **THIEF, disks=[disk], state="running", check=True)
    assert told["failed"] and "made for another VM" in told["msg"]
    # Here nobody but Ceph knows of the client.
    quorum.ssh("q1", "rbd create --size 8M vms/open", check=False)
    quorum.ssh(
        "q1", "nohup", "timeout", "120", "python3", "-c", shlex.quote(HOLDER), ">/dev/null", "2>&1", "</dev/null", "&"
    )
    wait_until(lambda: "watcher=" in quorum.ssh("q1", "rbd status vms/open"), 60, "a client that has it open")
    told = quorum.task(other, "vm", **THIEF, disks=[{**disk, "image": "open"}], state="running")
    assert told["failed"] and "10.231.5.13 has it open" in told["msg"], told
    assert "thief" not in quorum.domains(other)


def test_a_running_vm_moves_and_its_disk_does_not(quorum):
    name, node = next(iter(quorum.where().items()))
    other = "hv2" if node == "hv1" else "hv1"
    with Observer(quorum.lab) as watch:
        watch.wait_word(name)
        begin = time.monotonic()
        for source, to in ((node, other), (other, node)):
            done = quorum.task(source, "migrate", name=name, to=to)
            assert not done["failed"] and done["verified"], done
            said = watch.wait_word(name, after=time.monotonic())["counter"]
            # What a guest says, it has written before.
            assert on_disk(quorum, name) >= said
            assert watchers(quorum, name) == [quorum.lab.topology.networks["storage"].address(number(quorum, to))]
        assert watch.longest_gap(name, begin) <= LONGEST_STALL
    assert watch.verdict().ok, str(watch.verdict())


def test_a_node_with_osds_is_drained_and_comes_back(quorum):
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name)
        begin = time.monotonic()
        assert "hv1" in quorum.where().values()
        quorum.play("drain_node", node="hv1").good()
        assert flags(quorum) == {"hv1": ["noout"]}
        assert ceph(quorum, "status")["osdmap"]["num_up_osds"] == 2
        quorum.ssh("q1", "bash", "-s", stdin=PROBE)
        assert set(quorum.where().values()) == {"hv2"} and quorum.domains("hv1") == {}
        assert [len(watchers(quorum, name)) for name in quorum.sheets()] == [1, 1]
        quorum.play("undrain_node", node="hv1").good()
        assert flags(quorum) == {} and "drover" not in quorum.ssh("q1", "ceph config-key ls")
        wait_until(lambda: is_clean(quorum), 120, "two copies of everything")
        said = {name: watch.wait_word(name, after=time.monotonic())["counter"] for name in quorum.sheets()}
        assert all(on_disk(quorum, name) >= counter for name, counter in said.items()), said
        stalls = {name: watch.longest_gap(name, begin) for name in quorum.sheets()}
    print("longest stalls of a drain and the way back:", stalls)
    assert max(stalls.values()) <= LONGEST_STALL, stalls
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_a_drain_that_ceph_does_not_allow_changes_nothing_and_ends_what_was_left(quorum):
    quorum.ssh("hv2", "systemctl stop ceph-osd.target")
    try:
        wait_until(lambda: ceph(quorum, "status")["osdmap"]["num_up_osds"] == 2, 60, "hv2's OSDs down")
        before = quorum.where()
        # What a run leaves that was killed between noout and the rest.
        quorum.ssh("q1", "ceph config-key set drover/maintenance/hv1 '{}'; ceph osd set-group noout hv1")
        told = quorum.play("drain_node", node="hv1", drover_ceph_wait=0)
        assert told.code != 0 and "may not stop now" in told.output and "offline" in told.output, told.output
        assert quorum.where() == before and flags(quorum) == {}
    finally:
        quorum.ssh("hv2", "systemctl start ceph-osd.target")
    wait_until(lambda: is_clean(quorum), 120, "two copies of everything")


def test_a_unit_of_osds_that_is_not_there_is_refused_before_anything_is_changed(quorum):
    before = quorum.where()
    for options in (["--check"], []):
        told = quorum.play("drain_node", *options, node="hv1", drover_osd_unit="ceph-fsid.target")
        told.refused("hv1: there is no unit ceph-fsid.target", "drover_osd_unit", "Nothing was changed")
    assert quorum.where() == before and flags(quorum) == {}


def test_a_unit_that_does_not_stop_the_osds_leaves_no_noout(quorum):
    try:
        # It is there, and holds no OSD. Moves of VMs are not what this is about.
        told = quorum.play("drain_node", node="hv1", drover_osd_unit="multi-user.target")
        assert told.code != 0 and "still up" in told.output, told.output
        assert flags(quorum) == {} and ceph(quorum, "status")["osdmap"]["num_up_osds"] == 4
    finally:
        quorum.play("undrain_node", node="hv1").good()


def test_a_second_cluster_has_files_and_a_user_of_its_own(quorum):
    """One cluster under two names does: what differs is what the nodes and the monitor's host call it."""
    role = {"name": "drover.kvm.ceph_client"}
    own = {"ceph_client_cluster": "big", "ceph_client_user": "big", "ceph_client_packages": ["ceph-common"]}
    task = {"name": "The second one", "ansible.builtin.include_role": role, "vars": own}
    play = {"hosts": "hypervisors", "gather_facts": False, "tasks": [task]}
    book = quorum.lab.state / "second.json"
    book.write_text(json.dumps([{"name": "A second cluster", **play}]), encoding="utf-8")
    ours = quorum.ssh("hv1", "md5sum /etc/ceph/ceph.*")
    try:
        # A user that is not there yet has no key to tell.
        told = quorum.play(str(book), "--check").good()
        assert "would be handed over" in told.output and "client.big" not in quorum.ssh("q1", "ceph auth ls")
        assert quorum.play(str(book)).good().changed == 7
        assert quorum.play(str(book)).good().changed == 0
        for node in ("hv1", "hv2"):
            assert quorum.ssh(node, "stat -c %a /etc/ceph/big.client.big.keyring").strip() == "600"
            assert "image-web1" in quorum.ssh(node, "timeout 20 rbd --cluster big -n client.big ls vms")
            assert "client.big" in quorum.ssh(node, "virsh secret-list")
        assert quorum.ssh("hv1", "md5sum /etc/ceph/ceph.*") == ours
        # On the monitor's host no files are called so.
        told = quorum.play(str(book), ceph_client_monitor_cluster="big")
        assert told.code != 0 and "/etc/ceph/big.conf" in told.output, told.output
    finally:
        quorum.ssh("q1", "ceph auth rm client.big")
        for node in ("hv1", "hv2"):
            quorum.task(node, "secret", usage="client.big", type="ceph", state="absent")
            quorum.ssh(node, "rm -f /etc/ceph/big.*")


def monitors(quorum: Cluster, act: str, *nodes: str) -> None:
    for node in nodes:
        quorum.ssh(node, f"systemctl {act} ceph-mon@{node}", timeout=120)


def votes(quorum: Cluster) -> int:
    """How many monitors agree; 0 when they don't answer."""
    said = quorum.ssh("q1", "ceph --connect-timeout 10 status -f json", check=False)
    return len(json.loads(said)["quorum"]) if said.strip() else 0


def is_alone(quorum: Cluster, node: str) -> bool | str:
    """Whether its monitor knows that it is in no majority, as it says through its own socket."""
    state = json.loads(quorum.ssh(node, f"ceph daemon mon.{node} mon_status"))["state"]
    return state not in ("leader", "peon") or str(state)


def asked(quorum: Cluster, node: str, *given: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of modules on a node; each must end in time, whatever Ceph does."""
    results = tasks(quorum, node, [{**task, "ignore_errors": True} for task in given])
    late = [(task, result) for task, result in zip(given, results) if result["seconds"] > LONGEST_WAIT]
    assert late == []
    return results


ASK = (
    {"drover.kvm.ceph_pool": {"name": "vms", "size": 2}},
    {"drover.kvm.ceph_user": {"name": "libvirt", "pools": ["vms"]}},
    {"drover.kvm.ceph_maintenance": {"hosts": ["hv1"], "wait": 0}, "check_mode": True},
)
NEW = {"drover.kvm.vm": {**THIEF, "disks": [{"type": "rbd", "pool": "vms", "size": "8MiB"}], "state": "stopped"}}


def test_one_of_three_monitors_may_be_lost(quorum):
    with Observer(quorum.lab) as watch:
        begin = time.monotonic()
        monitors(quorum, "stop", "q1")
        try:
            # They need some seconds to agree, and answer nobody in that time.
            wait_until(lambda: votes(quorum) == 2, 60, "a majority of two")
            print(f"a majority again after {time.monotonic() - begin:.1f} s")
            results = asked(quorum, "q1", *ASK) + asked(quorum, "hv1", {**NEW, "check_mode": True})
            # Whoever drains hv1 may switch it off, and its monitor is needed now.
            told = [result["msg"] for result in results if result.get("failed")]
            assert len(told) == 1 and "mon.hv1 of hv1 may not stop now" in told[0], told
            quorum.ssh("q1", "bash", "-s", stdin=PROBE)
        finally:
            monitors(quorum, "start", "q1")
        for name in quorum.sheets():
            watch.wait_word(name, after=time.monotonic())
            assert watch.longest_gap(name, begin) <= LONGEST_STALL
    wait_until(lambda: votes(quorum) == 3, 60, "three monitors")


def test_without_a_majority_modules_say_so_in_time_and_vms_write_on(quorum):
    with Observer(quorum.lab) as watch:
        begin = time.monotonic()
        monitors(quorum, "stop", "q1", "hv2")
        try:
            # Until its lease is over, the one that is left answers from what it knew.
            wait_until(lambda: is_alone(quorum, "hv1"), 60, "a monitor that knows that it is alone")
            results = asked(quorum, "q1", *ASK) + asked(quorum, "hv1", NEW)
            assert [result.get("error") for result in results] == ["Unreachable"] * 4, results
            assert all("Ceph cluster ceph gives no answer" in result["msg"] for result in results), results
            told = quorum.play("drain_node", node="hv1")
            told.refused("Ceph cluster ceph gives no answer")
        finally:
            monitors(quorum, "start", "q1", "hv2")
        for name in quorum.sheets():
            watch.wait_word(name, after=time.monotonic())
            assert watch.longest_gap(name, begin) <= LONGEST_STALL
    assert watch.verdict().ok, str(watch.verdict())
    wait_until(lambda: is_clean(quorum), 120, "two copies of everything")
    assert "thief" not in quorum.domains("hv1")


def is_full(quorum: Cluster) -> bool:
    found = next(pool for pool in ceph(quorum, "osd dump")["pools"] if pool["pool_name"] == "vms")
    return "full" in found["flags_names"].split(",")


def test_a_full_pool_stops_its_vms_until_there_is_room(quorum):
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name)
        quorum.ssh("q1", "ceph osd pool set-quota vms max_bytes 1")
        try:
            wait_until(lambda: is_full(quorum), 60, "a pool that is full")
            time.sleep(10)
            still = {name: watch.words(name)[-1]["counter"] for name in quorum.sheets()}
            assert set(quorum.where()) == set(still)
            (told,) = asked(quorum, "hv1", NEW)
            assert told["failed"] and "full" in told["msg"], told
            assert still == {name: watch.words(name)[-1]["counter"] for name in still}
        finally:
            quorum.ssh("q1", "ceph osd pool set-quota vms max_bytes 0")
        end = time.monotonic()
        for name in quorum.sheets():
            assert watch.wait_word(name, after=end)["failed"] == 0
        print(f"after there was room again VMs wrote within {time.monotonic() - end:.1f} s")
    assert watch.verdict().ok, str(watch.verdict())
    assert "thief" not in quorum.domains("hv1")
    assert [one for one in quorum.ssh("q1", "rbd ls vms").split() if "thief" in one] == []


def test_a_killed_osd_costs_no_write(quorum):
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name)
        begin = time.monotonic()
        quorum.ssh("hv1", "systemctl kill -s KILL ceph-osd@0")
        wait_until(lambda: ceph(quorum, "status")["osdmap"]["num_up_osds"] == 3, 60, "an OSD that is down")
        wait_until(lambda: is_clean(quorum), 180, "two copies of everything")
        stalls = {name: watch.longest_gap(name, begin) for name in quorum.sheets()}
    print("longest stalls with a killed OSD:", stalls)
    assert max(stalls.values()) <= LONGEST_STALL and watch.verdict().ok, (stalls, str(watch.verdict()))


def holders(quorum: Cluster, name: str) -> list[int]:
    """The OSDs that have an object of the VMs' pool, the one that answers for it first."""
    return list(ceph(quorum, f"osd map vms {name}")["acting"])


def written_object(quorum: Cluster, name: str) -> str:
    """The object that a VM writes its counter to."""
    found = json.loads(quorum.ssh("q1", f"rbd info --format json vms/drover-{name}-0"))
    return f"{found['block_name_prefix']}.{RECORD_OFFSET >> found['order']:016x}"


def slow_ops(quorum: Cluster) -> str:
    """What Ceph says of operations that wait."""
    found = ceph(quorum, "health detail")["checks"].get("SLOW_OPS")
    return str(found["summary"]["message"]) if found else ""


@contextmanager
def held(quorum: Cluster, osd: int, host: str) -> Iterator[None]:
    """An OSD that does nothing, as on a disk that does not answer, and is not taken for lost; Ceph tells of it soon."""
    quorum.ssh("q1", f"ceph config set osd osd_op_complaint_time 2; ceph osd set-group nodown osd.{osd}")
    try:
        quorum.ssh(host, f"systemctl kill -s STOP ceph-osd@{osd}")
        yield
    finally:
        quorum.ssh(host, f"systemctl kill -s CONT ceph-osd@{osd}")
        quorum.ssh("q1", f"ceph osd unset-group nodown osd.{osd}; ceph config rm osd osd_op_complaint_time")


def refused_while_slow(quorum: Cluster, first: int) -> None:
    """No node is drained while operations of that OSD wait, also not the one on which the slow one is."""
    before = quorum.where()
    for node, options in (("hv1", ["--check"]), ("hv1", []), ("hv2", [])):
        told = quorum.play("drain_node", *options, node=node, drover_ceph_wait=0)
        # Check mode shows the plan as a change before it.
        assert told.code != 0 and "may not stop now" in told.output and (options or told.changed == 0), told.output
        assert re.search(rf"too long: \d+ slow ops, .*?osd\.{first}\b", told.output), told.output
    assert quorum.where() == before and flags(quorum) == {}
    assert quorum.play("undrain_node", node="hv1").good().changed == 0
    assert not [result for result in asked(quorum, "q1", *ASK[:2]) if result.get("failed")]


def told_of(quorum: Cluster, first: int, slow: int) -> None:
    """Ceph reports that operations of `first` wait for the slow one, and would let any host go all the same."""
    begin = time.monotonic()
    wait_until(lambda: f"osd.{first}" in (seen := slow_ops(quorum)) or seen or "none", 90, "slow operations")
    print(f"after {time.monotonic() - begin:.1f} s: {slow_ops(quorum)}")
    waiting = quorum.ssh("q1", f"timeout 20 ceph tell osd.{first} dump_ops_in_flight")
    assert f"waiting for subops from {slow}" in waiting, waiting
    quorum.ssh("q1", "ceph osd ok-to-stop 0 1 && ceph osd ok-to-stop 2 3")


def new_vm_on(quorum: Cluster, osd: int) -> tuple[str, dict[str, Any]]:
    """A VM whose image would have a copy on this OSD, and the task that makes it."""
    names = (f"slow{number}" for number in range(32))
    name = next(name for name in names if osd in holders(quorum, f"rbd_id.drover-{name}-0.part"))
    return name, {"drover.kvm.vm": {**NEW["drover.kvm.vm"], "name": name}}


def is_finished(quorum: Cluster, name: str, task: dict[str, Any]) -> None:
    """What the time limit cut off is done by the same task, leaves nothing, and goes again."""
    (made,) = asked(quorum, "hv1", task)
    assert made["changed"] and not made.get("failed"), made
    assert [one for one in quorum.ssh("q1", "rbd ls vms").split() if name in one] == [f"drover-{name}-0"]
    gone = quorum.task("hv1", "vm", name=name, state="absent", remove_disks=True)
    assert gone["changed"] and not gone["failed"], gone


def test_an_osd_that_answers_nobody_refuses_a_drain_and_vms_write_on_when_it_is_given_up(quorum):
    victim = min(quorum.sheets())
    first, slow = holders(quorum, written_object(quorum, victim))
    hosts = {osd: one["name"] for one in ceph(quorum, "osd tree")["nodes"] for osd in one.get("children", ())}
    new, task = new_vm_on(quorum, slow)
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name)
        with held(quorum, slow, hosts[slow]):
            begin = time.monotonic()
            told_of(quorum, first, slow)
            refused_while_slow(quorum, first)
            (told,) = tasks(quorum, "hv1", [{**task, "ignore_errors": True}])
            assert told["failed"] and told["error"] == "TimedOut" and f"drover-{new}-0" in told["msg"], told
            # More than one of its questions goes to the OSD that is silent.
            assert told["seconds"] <= LONGEST_LOSS, told
            up, still = ceph(quorum, "status")["osdmap"]["num_up_osds"], watch.words(victim)[-1]["time"] < begin + 5
            assert up == 4 and still and slow_ops(quorum), f"not exercised: {up} OSDs up, {victim} writes: {not still}"
            # As whoever finds it would: the other copy is enough.
            begin = time.monotonic()
            quorum.ssh("q1", f"ceph osd unset-group nodown osd.{slow}; ceph osd down {slow}")
            watch.wait_word(victim, after=begin, seconds=LONGEST_LOSS)
            print(f"{victim} wrote {time.monotonic() - begin:.1f} s after osd.{slow} was given up")
        wait_until(lambda: is_clean(quorum), 180, "two copies of everything")
        wait_until(lambda: slow_ops(quorum) == "" or slow_ops(quorum), 60, "no slow operations")
        for name in quorum.sheets():
            said = watch.wait_word(name, after=time.monotonic())
            assert said["failed"] == 0 and on_disk(quorum, name) >= said["counter"], said
    assert watch.verdict().ok, str(watch.verdict())
    is_finished(quorum, new, task)
    quorum.play("drain_node", "--check", node="hv1").good()


def start_elsewhere(quorum: Cluster, lost: str) -> None:
    """Ceph forgets a dead client after some time; until then a start is refused."""
    told = quorum.play("build_vms", drover_fenced=[lost])
    end = time.monotonic() + 120
    while told.code and time.monotonic() < end:
        told.refused("has it open", "run this again")
        told = quorum.play("build_vms", drover_fenced=[lost])
    told.good()


def test_a_lost_host_stops_no_other_and_its_vms_start_elsewhere_when_it_is_said_to_be_off(quorum):
    before = quorum.where()
    lost, stay = ([vm for vm, node in before.items() if node == one] for one in ("hv1", "hv2"))
    assert lost and stay, before
    with Observer(quorum.lab) as watch:
        for name in before:
            watch.wait_word(name)
        begin = time.monotonic()
        quorum.lab.power_off("hv1")
        try:
            wait_until(lambda: ceph(quorum, "status")["osdmap"]["num_up_osds"] == 2, 90, "its OSDs taken for lost")
            for name in stay:
                watch.wait_word(name, after=time.monotonic())
            stalls = {name: watch.longest_gap(name, begin) for name in stay}
            print("longest stalls when the other host is lost:", stalls)
            assert max(stalls.values()) <= LONGEST_LOSS, stalls
            quorum.play("build_vms").refused("fenced")
            start_elsewhere(quorum, "hv1")
            for name in lost:
                watch.wait_word(name, after=time.monotonic(), seconds=240)
                assert len(watchers(quorum, name)) == 1
        finally:
            quorum.lab.power_on("hv1")
            wait_until(lambda: set(lost) <= set(seen := quorum.domains("hv1")) or str(seen), 120, "libvirt of the node")
            for name in lost:
                assert quorum.domains("hv1")[name] == "shut off"
                quorum.ssh("hv1", "virsh", "undefine", name)
        wait_until(lambda: is_clean(quorum), 180, "two copies of everything")
    assert watch.verdict().ok, str(watch.verdict())
    assert quorum.play("build_vms").good().changed == 0


def test_a_running_vm_gets_more_room(quorum):
    # The one that is removed after it: the inventory goes on saying the smaller size.
    name, node = max(quorum.where().items())
    disks = [{"type": "rbd", "pool": "vms", "size": "48MiB"}]
    with Observer(quorum.lab) as watch:
        watch.wait_word(name)
        done = quorum.task(node, "vm", name=name, disks=disks)
        assert done["actions"] == ["grow vda as it runs to 48MiB"], done
        watch.wait_word(name, after=time.monotonic())
    assert "50331648" in quorum.ssh(node, "virsh", "domblkinfo", name, "vda")
    assert json.loads(quorum.ssh("q1", f"rbd info --format json vms/drover-{name}-0"))["size"] == 48 << 20
    smaller = quorum.task(node, "vm", name=name, disks=[{**disks[0], "size": "40MiB"}])
    assert smaller["failed"] and "smaller" in smaller["msg"]


def test_a_removed_vm_leaves_its_image_in_the_trash(quorum):
    name, node = max(quorum.where().items())
    done = quorum.task(node, "vm", name=name, state="absent", force=True, remove_disks=True)
    assert not done["failed"] and len(done["actions"]) == 3, done
    assert f"drover-{name}-0" in quorum.ssh("q1", "rbd trash ls vms")
    assert f"drover-{name}-0" not in quorum.ssh("q1", "rbd ls vms").split()
