# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example of two hypervisors with Ceph's disks and a third server that only votes."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

EXAMPLE = ROOT / "examples/ceph-quorum"
LONGEST_STALL = 30.0
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


@pytest.fixture(scope="module", name="quorum")
def the_site(quorum: Cluster) -> Cluster:
    """The example, with its VMs counting."""
    quorum.play(str(EXAMPLE / "site.yml")).good()
    write_images(quorum)
    quorum.play("build_vms").good()
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name, seconds=240)
    return quorum


def write_images(quorum: Cluster) -> None:
    """An image for each declared VM, with a protected snapshot from which its disk is cloned."""
    guests = Guests(quorum.lab.base)
    guests.ensure()
    folder = quorum.lab.machine("q1").path("/root")
    for name, sheet in quorum.sheets().items():
        guests.write_image(folder / f"{name}.img", {"name": name, "ip": str(sheet["guest_address"]), "sink": SINK})
        words = [f"rbd import --no-progress /root/{name}.img vms/image-{name}", f"rm /root/{name}.img"]
        words += [f"rbd snap {verb} --no-progress vms/image-{name}@base" for verb in ("create", "protect")]
        if f"image-{name}" not in quorum.ssh("q1", "rbd ls vms").split():
            # `protect` takes no option for progress in all versions.
            quorum.ssh("q1", "; ".join(words).replace("protect --no-progress", "protect"))


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


def test_a_running_vm_gets_more_room(quorum):
    name, node = next(iter(quorum.where().items()))
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


def test_a_node_with_osds_is_drained_and_comes_back(quorum):
    with Observer(quorum.lab) as watch:
        for name in quorum.sheets():
            watch.wait_word(name)
        begin = time.monotonic()
        quorum.play("drain_node", node="hv1").good()
        assert flags(quorum) == {"hv1": ["noout"]}
        assert ceph(quorum, "status")["osdmap"]["num_up_osds"] == 2
        quorum.ssh("q1", "bash", "-s", stdin=PROBE)
        assert set(quorum.where().values()) == {"hv2"} and quorum.domains("hv1") == {}
        assert [len(watchers(quorum, name)) for name in quorum.sheets()] == [1, 1]
        quorum.play("undrain_node", node="hv1").good()
        assert flags(quorum) == {} and "drover" not in quorum.ssh("q1", "ceph config-key ls")
        wait_until(lambda: is_clean(quorum), 120, "two copies of everything")
        stalls = {name: watch.longest_gap(name, begin) for name in quorum.sheets()}
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


def test_a_removed_vm_leaves_its_image_in_the_trash(quorum):
    name, node = max(quorum.where().items())
    done = quorum.task(node, "vm", name=name, state="absent", force=True, remove_disks=True)
    assert not done["failed"] and len(done["actions"]) == 3, done
    assert f"drover-{name}-0" in quorum.ssh("q1", "rbd trash ls vms")
    assert f"drover-{name}-0" not in quorum.ssh("q1", "rbd ls vms").split()
