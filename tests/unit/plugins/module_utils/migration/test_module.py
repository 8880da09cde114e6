# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module migrate against a small cluster: helpers are replaced by what they would do to it."""

from __future__ import annotations

import copy
import json
import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _seed
from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._leases import ELSEWHERE, Leases
from ansible_collections.drover.kvm.plugins.module_utils._migration import client, mending, moving, prechecks
from ansible_collections.drover.kvm.plugins.module_utils._migration.client import Client
from ansible_collections.drover.kvm.plugins.module_utils._migration.site import Site
from ansible_collections.drover.kvm.plugins.module_utils._peers import Cluster
from ansible_collections.drover.kvm.plugins.modules import migrate

NODES = ("hv1", "hv2", "hv3")
MARKER = {"id": "1", "from": "hv1", "to": "hv2", "was": "running", "autostart": False}
NEED = {
    "running": True,
    "memory": 2**30,
    "paged": False,
    "disks": [],
    "bridges": [],
    "hostdevs": [],
    "filesystems": [],
    "kept": [],
    "state": [],
    "unmoved": [],
    "snapshots": 0,
    "managed_save": False,
    "copies": [],
    "devices": [],
    "copying": False,
    "ejecting": False,
    "lease": None,
}


class World:
    """VMs by node; `helpers` are the units that run, `script` is what happens to the next migrations."""

    def __init__(self):
        self.nodes: dict[str, dict[str, Any]] = {name: {} for name in NODES}
        self.silent = set()
        self.rounds = []
        self.log = []
        self.script = []
        self.helpers = {}
        self.free = 64 * 2**30
        self.media = {}
        self.locked = False
        self.cut = {}
        self.coming = []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def add(self, name, node, state="running", reason="booted", marker=None, job=""):
        self.nodes[node][name] = {
            "state": state,
            "reason": reason,
            "uuid": f"uuid-{name}",
            "job": job,
            "persistent": True,
            "autostart": False,
            "marker": marker,
        }

    def drives(self, name):
        """The drive of a VM, with what is in it."""
        medium = self.media.get(name)
        drive = {"target": "sda", "device": "cdrom", "type": "file", "shared_storage": False, "optional": False}
        return [{**drive, "identity": f"file:{medium}" if medium else None}]

    def ask(self, question, nodes=None):
        chosen = NODES if nodes is None else nodes
        self.rounds.append(sorted(chosen))
        answers = {node: Unreachable(f"{node} is silent") for node in chosen}
        return {
            **answers,
            **{node: self.answer(question, node) for node in chosen if node not in self.silent},
        }

    def answer(self, question, node):
        try:
            return copy.deepcopy(question(End(self, node)))
        except Failed as error:
            return Unreachable(error.message)

    def carry_out(self, order):
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        self.log.append(f"{order.kind} {order.vm} {order.source} {order.target}")
        step = self.script.pop(0) if self.script else None
        if step:
            result = step(order)
        elif order.kind == "recover":
            result = {"ok": True, "where": "hv1", "complete": True, "error": "", "actions": []}
            for node in NODES:
                if order.vm in self.nodes[node]:
                    self.nodes[node][order.vm].update(marker=None, state="running", reason="unpaused")
        else:
            vm = self.nodes[order.source].pop(order.vm)
            self.nodes[order.target][order.vm] = vm
            result = {
                "ok": True,
                "where": order.target,
                "complete": True,
                "error": "",
                "downtime_ms": 50.0,
                "actions": [],
            }
        self.busy -= 1
        return result


class End:
    def __init__(self, world, node):
        self.world, self.node = world, node

    def find(self, names):
        found = self.world.nodes[self.node]
        on = {name for name, vm in found.items() if vm["marker"] or vm["state"] != "shutoff"}
        return {name: vm for name, vm in found.items() if name in (on if names is None else names)}

    def incoming(self):
        number = self.world.coming.pop(0) if self.world.coming else 0
        return {f"other{each}" for each in range(number)}

    def eject(self, uuid, target):
        if self.world.locked:
            raise Failed("the tray is locked")
        self.world.log.append(f"eject {target} of {uuid} on {self.node}")
        del self.world.media[uuid[len("uuid-") :]]

    def names(self):
        return {name: vm["uuid"] for name, vm in self.world.nodes[self.node].items()}


class Unit:
    world = World()

    def __init__(self, uuid):
        self.uuid = uuid

    def running(self):
        return self.uuid in self.world.helpers

    def state(self):
        return {"to": "hv2"}

    def wait(self, wanted_id, seconds=0):
        return self.world.helpers.pop(self.uuid)()


CLUSTER = Cluster("lab", "hv1", {name: f"qemu+tls://{name}/system" for name in NODES}, {name: name for name in NODES})


@pytest.fixture
def world(monkeypatch):
    world = World()

    class FakeSite(Site):
        def ask(self, question, nodes=None, seconds=0):
            return world.ask(question, nodes)

    @contextmanager
    def of(params):
        slots = threading.Semaphore(params["parallel"])
        limits = {"inbound": params["parallel_inbound"], "everywhere": params["parallel_cluster"]}
        yield Client(FakeSite(CLUSTER), slots, None, params["destinations"] or {}, **limits)

    def carry_out(self, order):
        with self.slots, self.place(order):
            return world.carry_out(order)

    def traits(end, uuid):
        name = uuid[len("uuid-") :]
        running = world.nodes[end.node][name]["state"] != "shutoff"
        return {**NEED, "name": name, "uuid": uuid, "running": running, "disks": world.drives(name)}

    def answer(end, needs, address):
        return {
            "silent": world.cut.get(address, ""),
            "domains": end.names(),
            "free": world.free,
            "against": {},
            "room": {},
            "taken": [],
        }

    monkeypatch.setattr(Client, "of", of)
    monkeypatch.setattr(Client, "carry_out", carry_out)
    monkeypatch.setattr(prechecks, "traits", traits)
    monkeypatch.setattr(prechecks, "answer", answer)
    Unit.world = world
    for module in (moving, mending):
        monkeypatch.setattr(module, "Unit", Unit)
    return world


@pytest.fixture
def run(capsys):
    def go(**args):
        with patch_module_args(args), pytest.raises(SystemExit):
            migrate.main()
        return json.loads(capsys.readouterr().out)

    return go


def test_a_migration_is_a_state(world, run):
    world.add("web1", "hv1")
    predicted = run(name="web1", to="hv2", _ansible_check_mode=True)
    assert world.log == []
    result = run(name="web1", to="hv2")
    assert predicted["actions"] == result["actions"] == ["migrate web1 from hv1 to hv2"]
    assert result["changed"] and result["verified"] and result["where"] == "hv2" and result["downtime_ms"] == 50.0
    again = run(name="web1", to="hv2")
    assert not again["changed"] and again["verified"] and len(world.log) == 1


def test_the_seed_of_cloud_init_does_not_stay_behind(world, run, tmp_path, monkeypatch):
    world.add("web1", "hv1")
    seed, other = (tmp_path / f"drover-{name}-seed.iso" for name in ("web1", "web2"))
    for path, of in ((seed, "uuid-web1"), (other, "uuid-other")):
        path.write_bytes(bytes(_seed.DESCRIPTOR + 574) + f"DROVER {of}".upper().encode().ljust(1474))
    monkeypatch.setattr(file, "DIRECTORY", str(tmp_path))
    run(name="web1", to="hv2", _ansible_check_mode=True)
    assert seed.exists()
    assert run(name="web1", to="hv2")["verified"] and not seed.exists() and other.exists()


def test_a_local_medium_is_a_blocker_until_it_may_be_ejected(world, run):
    world.add("web1", "hv1")
    world.media["web1"] = "/srv/iso/debian.iso"
    refused = run(name="web1", to="hv2")
    assert "sda holds a medium that only this node has (file:/srv/iso/debian.iso)" in refused["msg"] and world.log == []
    predicted = run(name="web1", to="hv2", eject_cdrom=True, _ansible_check_mode=True)
    assert world.log == [] and world.media
    done = run(name="web1", to="hv2", eject_cdrom=True)
    words = ["eject file:/srv/iso/debian.iso from sda of web1", "migrate web1 from hv1 to hv2"]
    assert predicted["actions"] == done["actions"] == words and done["verified"]
    assert world.log == ["eject sda of uuid-web1 on hv1", "live web1 hv1 hv2"]


def test_a_guest_that_locks_its_tray_stays(world, run):
    world.add("web1", "hv1")
    world.media["web1"], world.locked = "/srv/iso/debian.iso", True
    result = run(name="web1", to="hv2", eject_cdrom=True)
    assert "sda of web1 was not ejected, and web1 stays on hv1: the tray is locked" in result["msg"]
    assert result["failed"] and world.log == [] and "web1" in world.nodes["hv1"]


def test_a_vm_that_is_off_moves_by_definition(world, run):
    world.add("web1", "hv1", "shutoff")
    assert run(name="web1", to="hv2")["verified"]
    assert world.log == ["offline web1 hv1 hv2"]


@pytest.mark.parametrize(
    "node,args,words",
    [
        ("hv3", {"to": "hv2"}, "run this task on hv3"),
        ("hv1", {"to": "hv9"}, "hv9 is no node"),
        ("hv1", {"to": "hv2", "uuid": "other"}, "it is another VM"),
        ("hv1", {"to": "hv2", "from": "hv3"}, "the plan is out of date"),
        ("hv1", {"to": "hv2", "name": "web9"}, "no VM web9"),
        ("hv1", {}, "name the VM"),
        ("hv1", {"to": "../x"}, "not a valid name"),
        ("hv1", {"to": "hv2", "timeout": 1}, "too short"),
        ("hv1", {"to": "hv2", "parallel": 99}, "not from 1"),
        ("hv1", {"to": "hv2", "max_downtime": 1}, "not from 10 to 60000 ms"),
        ("hv1", {"to": "hv2", "policies": [{"tag": "db", "max_pause": 0}]}, "policies[0].max_pause"),
    ],
)
def test_refusals_change_nothing(world, run, node, args, words):
    world.add("web1", node)
    result = run(**{"name": "web1", **args})
    assert result["failed"] and words in result["msg"] and not result["changed"] and world.log == []


def test_one_blocked_move_stops_all(world, run):
    world.add("web1", "hv1")
    world.add("web2", "hv1")
    world.free = int(1.5 * 2**30)
    result = run(moves=[{"vm": "web1", "to": "hv2"}, {"vm": "web2", "to": "hv2"}])
    assert result["failed"] and "web2 can't go" in result["msg"] and world.log == []


def test_all_destinations_are_asked_at_once(world, run):
    world.add("web1", "hv1")
    world.add("web2", "hv1")
    world.silent = {"hv2", "hv3"}
    result = run(moves=[{"vm": "web1", "to": "hv2"}, {"vm": "web2", "to": "hv3"}])
    assert result["failed"] and world.rounds.count(["hv2", "hv3"]) == 1
    assert ["hv2"] not in world.rounds and ["hv3"] not in world.rounds


def test_a_policy_applies_to_the_vms_of_its_tag(world, run, monkeypatch):
    monkeypatch.setitem(NEED, "tags", ["db"])
    world.add("web1", "hv1")
    orders = []
    world.script = [lambda order: orders.append(order) or {"ok": False, "where": "hv1", "complete": True, "error": "x"}]
    policies = [{"tag": "db", "when_stuck": "pause", "max_pause": 30, "bandwidth": "9MiB", "timeout_per_gib": 300}]
    assert run(name="web1", to="hv2", policies=policies, bandwidth="5MiB")["failed"]
    (order,) = orders
    assert (order.max_pause, order.bandwidth, order.timeout) == (30, 5 * 2**20, 300)


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, ""),
        ({"parallel": 0}, "parallel"),
        ({"bandwidth": "fast"}, "bandwidth"),
        ({"policies": [{"tag": "db", "compression": "zstd"}]}, "compression zstd needs parallel_connections"),
        ({"policies": [{"tag": "db", "when_stuck": "wait"}]}, "when_stuck"),
    ],
)
def test_no_moves_are_a_look_at_the_options(world, run, options, words):
    result = run(moves=[], **options)
    assert bool(result.get("failed")) == bool(words) and words in result.get("msg", ""), result
    assert not result.get("changed") and not world.log


def test_a_queue_keeps_to_its_places(world, run):
    for number in range(6):
        world.add(f"web{number}", "hv1")
    result = run(moves=[{"vm": f"web{number}", "to": "hv2"} for number in range(6)], parallel=2)
    assert result["changed"] and len(world.nodes["hv2"]) == 6 and world.most == 2


def test_a_destination_takes_in_so_many_at_a_time(world, run, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)
    world.add("web1", "hv1")
    world.coming = [2, 3, 2, 1]
    assert run(name="web1", to="hv2", parallel_inbound=2)["verified"] and world.coming == []


def test_a_destination_that_stays_full_is_told(world, run, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 2)
    world.add("web1", "hv1")
    world.coming = [2] * 9
    result = run(name="web1", to="hv2", parallel_inbound=2, timeout=5)
    assert "was not begun: hv2 took in 2 other VMs for 5 s" in result["msg"] and world.log == []


def test_a_move_waits_for_its_place_in_the_cluster(world, run, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)
    world.add("web1", "hv1")
    # What each of the three nodes takes in, at one look after the other.
    world.coming = [0, 2, 1, 1, 0, 2, 0, 0, 2]
    assert run(name="web1", to="hv2", parallel_cluster=3)["verified"] and world.coming == []
    world.add("web2", "hv1")
    world.coming = [0, 1, 2] * 900
    result = run(name="web2", to="hv2", parallel_cluster=3, parallel_inbound=2, timeout=5)
    assert "was not begun: 3 other VMs moved in the cluster for 5 s" in result["msg"]


def test_moves_of_one_run_count_before_the_destination_knows_them(world, run, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)
    names = ["web1", "web2", "web3", "web4"]
    now, most = [], []

    def carry_out(order):
        now.append(order.vm)
        most.append(len(now))
        time.sleep(0.05)
        now.remove(order.vm)
        return carried(order)

    for name in names:
        world.add(name, "hv1")
    carried = world.carry_out
    monkeypatch.setattr(world, "carry_out", carry_out)
    for limit in ("parallel_inbound", "parallel_cluster"):
        for name in names:
            world.nodes["hv2"].pop(name, None)
            world.add(name, "hv1")
        result = run(moves=[{"name": name, "to": "hv2"} for name in names], parallel=4, **{limit: 1})
        assert not result.get("failed"), result
        assert max(most) == 1 and len(most) == 4
        most.clear()


def test_a_silent_destination_is_a_blocker(world, run):
    world.add("web1", "hv1")
    world.silent = {"hv2"}
    result = run(name="web1", to="hv2")
    assert result["failed"] and "hv2 gives no answer" in result["msg"] and world.log == []


def test_a_migration_network_that_drops_packets_is_a_blocker(world, run):
    world.add("web1", "hv1")
    world.cut = {"hv2": "10.0.0.2 port 49215: no answer within 10 s"}
    result = run(name="web1", to="hv2")
    assert "hv2 does not answer on the migration network (10.0.0.2 port 49215: no answer" in result["msg"]
    assert [one["reason"] for one in result["details"]["blockers"]] == ["migration_network"] and world.log == []
    world.nodes["hv1"]["web1"]["state"] = "shutoff"
    assert run(name="web1", to="hv2")["verified"]


def test_a_vm_that_is_off_does_not_move_while_a_node_is_silent(world, run):
    world.add("web1", "hv1", "shutoff")
    world.silent = {"hv3"}
    assert run(name="web1", to="hv2")["failed"] and world.log == []
    # Of what a move left it is no proof: that is for state=recovered.
    world.nodes["hv1"]["web1"]["marker"] = {"id": "m", "from": "hv3", "to": "hv1", "was": "running"}
    assert run(name="web1", to="hv2", fenced=["hv3"])["failed"] and world.log == []
    world.nodes["hv1"]["web1"]["marker"] = None
    assert run(name="web1", to="hv2", fenced=["hv3"])["where"] == "hv2"
    assert world.log == ["offline web1 hv1 hv2"]


def test_a_failure_tells_where_the_vm_is(world, run):
    world.add("web1", "hv1")
    world.script = [lambda order: {"ok": False, "where": "hv1", "complete": True, "error": "no route", "actions": []}]
    result = run(name="web1", to="hv2")
    assert result["failed"] and "no route" in result["msg"] and "running on hv1" in result["msg"]
    assert result["details"]["where"] == "hv1"


def test_a_running_helper_is_adopted(world, run):
    world.add("web1", "hv1", job="outgoing", marker=MARKER)
    world.add("web1", "hv2", "paused", "migrating", job="incoming", marker=MARKER)

    def end():
        world.nodes["hv1"].clear()
        world.add("web1", "hv2")
        return {"ok": True, "where": "hv2", "complete": True, "error": "", "actions": []}

    world.helpers["uuid-web1"] = end
    refused = run(name="web1", to="hv3")
    assert refused["failed"] and "on its way to hv2" in refused["msg"]
    result = run(name="web1", to="hv2")
    assert result["verified"] and result["actions"] == ["wait for the migration of web1 to hv2, which runs"]
    assert world.log == []


def test_a_vm_with_a_job_of_another_kind_stays_until_that_is_done(world, run):
    """libvirt would wait for half a minute with the marker set, and then fail."""
    world.add("web1", "hv1", job="other")
    result = run(name="web1", to="hv2")
    assert [one["reason"] for one in result["details"]["blockers"]] == ["job"] and "backup" in result["msg"]
    assert world.log == []
    world.nodes["hv1"]["web1"]["job"] = ""
    assert run(name="web1", to="hv2")["changed"]


def test_an_interrupted_migration_is_finished_first(world, run):
    world.add("web1", "hv1", marker=MARKER)
    result = run(name="web1", to="hv2")
    assert world.log == ["recover web1 hv1 hv2", "live web1 hv1 hv2"] and result["verified"]
    assert len(result["actions"]) == 2


def test_a_killed_helper_is_followed_by_a_recovery(world, run):
    world.add("web1", "hv1")

    def killed(order):
        world.nodes["hv1"]["web1"]["marker"] = MARKER
        return {"ok": False, "where": "unknown", "complete": False, "error": "its helper was killed", "actions": []}

    world.script = [killed]
    result = run(name="web1", to="hv2")
    assert world.log == ["live web1 hv1 hv2", "recover web1 hv1 hv2"]
    assert result["failed"] and "its helper was killed" in result["msg"] and result["details"]["where"] == "hv1"


def test_recovered_finds_all_marked_vms_and_then_nothing(world, run):
    world.add("web1", "hv1", marker=MARKER)
    world.add("web2", "hv3")
    predicted = run(state="recovered", _ansible_check_mode=True)
    assert world.log == [] and predicted["changed"]
    result = run(state="recovered")
    assert result["changed"] and result["actions"] == predicted["actions"] and world.log == ["recover web1 hv1 hv2"]
    assert not run(state="recovered")["changed"]


def test_recovered_reports_what_only_a_person_can_decide(world, run):
    world.add("web1", "hv1", marker=MARKER)
    world.add("web1", "hv2", marker=MARKER)
    result = run(state="recovered")
    assert not result["changed"] and "ALARM" in result["open"]["web1"] and not result["verified"]


def test_a_vm_whose_source_died_on_the_way_is_finished_when_that_is_certainly_off(world, run):
    world.add("web1", "hv2", state="paused", reason="user", marker={**MARKER, "from": "hv3"})
    world.silent = {"hv3"}
    left = run(name="web1", state="recovered")
    assert not left["changed"] and world.log == []
    assert "make sure that it is off and name it in fenced" in left["open"]["web1"]
    fenced = []

    def resumed(order):
        fenced.extend(order.fenced)
        world.nodes["hv2"]["web1"].update(state="running", reason="unpaused")
        return {"ok": False, "where": "hv2", "complete": False, "rule": "11", "error": "", "actions": []}

    world.script = [resumed]
    done = run(name="web1", state="recovered", fenced=["hv3"])
    assert done["changed"] and done["where"] == "hv2" and fenced == ["hv3"], done
    assert not run(name="web1", state="recovered", fenced=["hv3"])["changed"]


@pytest.mark.parametrize("which", [{"name": "web1"}, {}])
def test_two_copies_that_run_without_a_marker_are_an_alarm_as_well(world, run, which):
    world.add("web1", "hv1")
    world.add("web1", "hv2")
    result = run(**which, state="recovered")
    assert not result["changed"] and "ALARM" in result["open"]["web1"] and not result["verified"]


@pytest.mark.parametrize("which", [{"name": "web1"}, {}])
def test_a_vm_that_a_migration_without_a_marker_left_is_told_as_long_as_the_other_end_is_silent(world, run, which):
    world.add("web1", "hv1", state="paused", reason="migrating")
    world.silent = {"hv2"}
    result = run(**which, state="recovered")
    assert result["places"] == {"web1": "unknown"} and not result["verified"]
    assert "gives no answer" in result["open"]["web1"]


def test_of_all_vms_only_those_that_a_migration_left_are_looked_at(world, run):
    """A migration of another tool goes on, somebody has paused a VM, and two VMs have one name: nobody's business."""
    world.add("web1", "hv1", job="migration")
    world.add("web1", "hv2", state="paused", reason="migrating", job="incoming")
    world.add("db1", "hv1", state="paused", reason="user")
    world.add("db1", "hv3", state="shutoff")
    world.add("mail1", "hv1")
    world.add("mail1", "hv2")
    world.nodes["hv2"]["mail1"]["uuid"] = "another"
    result = run(state="recovered")
    assert not result["changed"] and result["places"] == {} and result["verified"]
    world.add("old1", "hv3", state="paused", reason="migrating")
    assert run(state="recovered", _ansible_check_mode=True)["actions"] == [
        "recover old1 by rule B4.7: resume it on hv3"
    ]


@pytest.mark.parametrize(
    "state,held,words", [("running", False, "nobody holds"), ("running", True, ""), ("paused", False, "")]
)
def test_after_a_move_the_lease_must_be_held(world, run, monkeypatch, state, held, words):
    world.add("web1", "hv1", state)
    monkeypatch.setitem(NEED, "lease", "/srv/leases/uuid-web1")
    monkeypatch.setattr(prechecks, "blockers", lambda *_args: [])
    monkeypatch.setattr(Cluster, "own_leases", Leases("/srv/leases", "one"))
    monkeypatch.setattr(Leases, "holder", lambda self, uuid: ELSEWHERE if held else None)
    result = run(name="web1", to="hv2")
    assert bool(result.get("failed")) is bool(words) and words in result.get("msg", "")
    assert list(world.nodes["hv2"]) == ["web1"]


def test_silence_of_this_nodes_libvirt_is_an_error(world, run):
    world.add("web1", "hv1")
    world.silent = {"hv1"}
    result = run(name="web1", to="hv2")
    assert result["failed"] and "libvirt on hv1 does not answer" in result["msg"]
