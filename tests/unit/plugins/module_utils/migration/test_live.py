# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live migration against two small nodes that share one world: what is done, and in which order."""

from __future__ import annotations

import os
import threading
import time

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._disks.file import MARK
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata
from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Failed, Refused
from ansible_collections.drover.kvm.plugins.module_utils._migration import live, order
from ansible_collections.drover.kvm.plugins.module_utils._migration.ends import End

UUID = "7d4da458-de51-4138-9921-aae15234a969"


class World:
    """Two nodes, one VM; `log` holds every change in order. The knobs choose what the migration does."""

    def __init__(self, was="running", autostart=True):
        self.log = []
        self.nodes = {"hv1": {"state": (was, "user" if was == "paused" else "booted"), "autostart": autostart}}
        self.nodes["hv1"].update(marker=None, home=None)
        self.ears = {}
        self.full, self.capacity, self.cut = False, 7, False
        self.error = None
        self.finish = True
        self.stop_source = True
        self.call_seconds = 0.0
        self.hold = threading.Event()
        self.sent = iter(range(10**6))
        self.passes = 1
        self.reader, self.writer = os.pipe()
        self.marked = None


class Node:
    def __init__(self, name, world):
        self.name, self.world = name, world

    @property
    def vm(self):
        return self.world.nodes[self.name]

    def note(self, text):
        self.world.log.append(f"{text} on {self.name}")

    def state(self, uuid):
        return self.world.nodes[self.name]["state"] if self.name in self.world.nodes else None

    def marker(self, uuid):
        return self.vm["marker"]

    def set_marker(self, uuid, marker):
        self.note("mark" if marker else "unmark")
        self.vm["marker"] = marker
        self.world.marked = marker or self.world.marked

    def autostart(self, uuid):
        return self.vm["autostart"]

    def set_autostart(self, uuid, on):
        self.note(f"autostart {'on' if on else 'off'}")
        self.vm["autostart"] = on

    def home(self, uuid):
        return self.vm["home"]

    def set_home(self, uuid, home):
        self.note(f"home {home}")
        self.vm["home"] = home

    rehome = End.rehome

    def on_event(self, uuid, heard):
        self.world.ears[self.name] = heard

    def undefine(self, uuid):
        self.note("undefine")
        del self.world.nodes[self.name]

    def process(self, name, uuid):
        return self.world.reader

    def resume(self, uuid):
        assert "hv1" not in self.world.nodes or self.world.nodes["hv1"]["state"][0] == "stopped", "two copies run"
        self.note("resume")
        self.vm["state"] = ("running", "unpaused")

    def progress(self, uuid):
        return {"sent": next(self.world.sent), "pass": self.world.passes}

    def allow_downtime(self, uuid, milliseconds):
        self.note(f"allow {milliseconds} ms")
        return True

    def limit(self, uuid, speed):
        self.note(f"limit {speed} MiB/s")
        return True

    def totals(self, uuid):
        return {"sent": 9, "passes": self.world.passes}

    @property
    def volumes(self):
        return self

    def make(self, copies):
        self.note(f"make {', '.join(copy['path'] for copy in copies)}")
        if self.world.full:
            raise Failed("No space left on device")

    def claim(self, paths):
        self.note(f"claim {', '.join(paths)}")
        if self.world.full:
            raise Refused("it has one already")

    def release(self, paths):
        self.note(f"release {', '.join(paths)}")

    def capacity(self, uuid, target):
        return self.world.capacity

    def uses(self, path):
        return False

    def forget(self, paths):
        for path in paths:
            self.note(f"forget {path}")

    def abort(self, uuid):
        self.note("abort")
        self.world.error = Failed("aborted")
        self.world.finish = False
        self.world.hold.set()

    def share(self, wanted):
        self.note("share")

    def reach(self, wanted):
        if self.world.cut:
            raise Refused("hv2 does not answer")

    def phase(self, name):
        return "begin3"

    def migrate(self, wanted):
        world = self.world
        self.note("migrate")
        if world.call_seconds:
            world.hold.wait(world.call_seconds)
        if world.finish:
            world.ears["hv1"]("suspended", "migrated")
            world.nodes["hv2"] = {**world.nodes["hv1"], "state": ("paused", "user"), "autostart": False}
            world.ears["hv2"]("suspended", "paused")
        if world.finish and world.stop_source:
            del world.nodes["hv1"]
            os.close(world.writer)
            time.sleep(0.3)
        self.note("return")
        if world.error:
            raise world.error


def move(world, tmp_path, **options):
    values = {"id": "1", "kind": "live", "vm": "vm1", "uuid": UUID, "source": "hv1", "target": "hv2", "here": "hv1"}
    wanted = order.Order(**{**values, **options})
    journal = order.Journal(wanted, tmp_path)
    return live.LiveMove(wanted, Node("hv1", world), Node("hv2", world), journal).run()


def test_order_of_a_good_migration(tmp_path):
    world = World()
    measured = move(world, tmp_path)
    assert world.log == [
        "mark on hv1",
        "autostart off on hv1",
        "migrate on hv1",
        "resume on hv2",
        "return on hv1",
        "autostart on on hv2",
        "unmark on hv2",
    ]
    assert measured["resumed_early"] and 0 <= measured["downtime_ms"] < 250
    assert list(world.nodes) == ["hv2"] and (measured["sent"], measured["passes"]) == (9, 1)


def test_without_the_early_resume_it_waits_for_the_return(tmp_path):
    world = World(autostart=False)
    measured = move(world, tmp_path, early=False)
    assert world.log == ["mark on hv1", "migrate on hv1", "return on hv1", "resume on hv2", "unmark on hv2"]
    assert measured["downtime_ms"] > 250


def test_a_finish_while_the_source_lives_is_no_proof(tmp_path):
    world = World()
    world.stop_source = False
    world.error = Failed("client socket is closed")
    with pytest.raises(Failed, match="client socket"):
        move(world, tmp_path)
    assert "resume on hv2" not in world.log
    assert world.nodes["hv1"]["marker"] and not any(text.startswith("unmark") for text in world.log)


def test_a_dead_source_without_a_finish_is_no_proof(tmp_path):
    world = World()
    world.finish = False
    world.error = Failed("QEMU is gone")
    os.close(world.writer)
    with pytest.raises(Failed):
        move(world, tmp_path)
    assert "resume on hv2" not in world.log


def test_a_good_return_with_the_source_still_there_is_not_believed(tmp_path):
    world = World()
    world.stop_source = False
    with pytest.raises(Failed, match="still running on hv1"):
        move(world, tmp_path)
    assert "resume on hv2" not in world.log


def test_an_error_after_the_early_resume_leaves_the_marker_for_recovery(tmp_path):
    world = World()
    world.error = Failed("End of file while reading data")
    with pytest.raises(Failed):
        move(world, tmp_path)
    assert world.log[-2:] == ["resume on hv2", "return on hv1"]
    assert world.nodes["hv2"]["marker"]


def test_a_paused_vm_is_never_resumed(tmp_path):
    world = World(was="paused")
    move(world, tmp_path)
    assert "resume on hv2" not in world.log and world.nodes["hv2"]["state"] == ("paused", "user")
    assert world.nodes["hv2"]["marker"] is None


def test_a_destination_that_memory_does_not_reach_is_refused_before_anything_is_changed(tmp_path):
    world = World()
    world.cut = True
    with pytest.raises(Refused):
        move(world, tmp_path)
    assert world.log == []


def test_an_abort_without_an_effect_says_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.02)
    monkeypatch.setattr(live, "ABORT_PATIENCE", 0.1)
    monkeypatch.setattr(Node, "abort", lambda self, uuid: self.note("abort"))
    world = World()
    world.finish, world.call_seconds = False, 5
    world.sent = iter([0] * 10**6)
    with pytest.raises(Failed, match="did not end although it was aborted: no progress.*hv2 still prepares"):
        move(world, tmp_path, stall_timeout=0.2)
    world.hold.set()


def test_a_marker_refuses_before_anything_is_changed(tmp_path):
    world = World()
    world.nodes["hv1"]["marker"] = {"id": "0"}
    with pytest.raises(Refused, match="recover it first"):
        move(world, tmp_path)
    assert world.log == []


def test_the_marker_tells_all_that_recovery_needs(tmp_path):
    world = World()
    world.finish, world.error = False, Failed("no")
    with pytest.raises(Failed):
        move(world, tmp_path)
    marker = world.nodes["hv1"]["marker"]
    assert {key: marker[key] for key in ("id", "from", "to", "was", "autostart")} == {
        "id": "1",
        "from": "hv1",
        "to": "hv2",
        "was": "running",
        "autostart": True,
    }


@pytest.mark.parametrize(
    "home,option,expected",
    [
        (None, "source", "hv1"),
        ("hv3", "source", "hv3"),
        (None, "destination", None),
        ("hv1", "destination", "hv2"),
        ("hv1", "keep", "hv1"),
    ],
)
def test_home(tmp_path, home, option, expected):
    world = World()
    world.nodes["hv1"]["home"] = home
    move(world, tmp_path, home=option)
    assert world.nodes["hv2"]["home"] == expected
    assert world.log[-1] == "unmark on hv2"


def test_a_stall_is_aborted(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.02)
    world = World()
    world.call_seconds = 30
    world.sent = iter([5] * 10**6)
    with pytest.raises(DroverError, match="no progress for 0.2 s: .*hv2 still prepares.*: aborted"):
        move(world, tmp_path, stall_timeout=0.2)
    assert "abort on hv1" in world.log and "resume on hv2" not in world.log
    assert "no progress" in (order.read(order.state_path(UUID, tmp_path)) or {})["reason"]


def test_a_vm_that_does_not_converge_may_stand_still_for_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.02)
    world = World()
    world.call_seconds, world.passes = 0.5, 4
    move(world, tmp_path, max_downtime=2000)
    assert world.log.count("allow 1200 ms on hv1") == 1 and "resume on hv2" in world.log


def test_what_others_leave_of_the_link_is_taken_when_it_is_free_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.02)
    others, world = iter([3, 3, 1, 3, 3, 2, 2, 1, 1]), World()

    def under_way():
        number = next(others, 0)
        if not number:
            world.hold.set()
        return number or 1

    monkeypatch.setattr(live, "under_way", under_way)
    world.call_seconds = 30
    move(world, tmp_path, together=300 * 2**20)
    assert [words for words in world.log if "limit" in words] == [
        f"limit {speed} MiB/s on hv1" for speed in (100, 150, 300)
    ]


def test_a_migration_that_takes_too_long_is_aborted(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK", 0.02)
    world = World()
    world.call_seconds = 30
    with pytest.raises(DroverError, match="aborted"):
        move(world, tmp_path, timeout=0.2)
    assert "not done after" in (order.read(order.state_path(UUID, tmp_path)) or {})["reason"]


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data")
    os.setxattr(path, MARK, UUID.encode())
    return path


def copies_of(path):
    return [{"target": "vda", "path": str(path), "format": "raw", "size": 7}]


def test_files_that_go_along_are_made_after_the_mark_and_deleted_at_the_end(tmp_path, original):
    world = World(autostart=False)
    measured = move(world, tmp_path, copies=copies_of(original))
    assert world.log == [
        "mark on hv1",
        f"make {original} on hv2",
        "migrate on hv1",
        "resume on hv2",
        "return on hv1",
        f"release {original} on hv2",
        "unmark on hv2",
    ]
    assert measured["left"] == [] and not original.exists()


def test_the_variables_of_uefi_go_where_the_vm_was_once_it_runs_elsewhere(tmp_path):
    world = World(autostart=False)
    move(world, tmp_path, state=["/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"])
    claimed, forgotten, released = (
        f"{what} /var/lib/libvirt/qemu/nvram/vm1_VARS.fd on {node}"
        for what, node in (("claim", "hv2"), ("forget", "hv1"), ("release", "hv2"))
    )
    assert world.log[:3] == ["mark on hv1", claimed, "migrate on hv1"]
    assert world.log[-4:] == ["return on hv1", forgotten, released, "unmark on hv2"]
    # By the marker a recovery finds what libvirt leaves on either node.
    assert world.marked["copies"] == world.marked["state"] == ["/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"]
    world = World(autostart=False)
    world.finish, world.error = False, Failed("no")
    with pytest.raises(Failed):
        move(world, tmp_path, state=["/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"])
    assert forgotten not in world.log


def test_nothing_is_sent_where_a_file_of_that_name_has_come_meanwhile(tmp_path):
    world = World(autostart=False)
    world.full = True
    with pytest.raises(Refused):
        move(world, tmp_path, state=["/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"])
    assert "migrate on hv1" not in world.log


@pytest.mark.parametrize("fault", ["full", "capacity"])
def test_a_file_stays_until_its_copy_is_whole(tmp_path, original, fault):
    world = World(autostart=False)
    setattr(world, fault, 6)
    with pytest.raises(Failed):
        move(world, tmp_path, copies=copies_of(original))
    assert original.exists() and "unmark on hv2" not in world.log


def test_logical_volumes_are_shared_between_the_mark_and_the_migration(tmp_path):
    world = World()
    device = {"target": "vda", "path": "/dev/vg0/web1", "identity": "LVM-1", "size": 0, "lock": "vg0/web1"}
    move(world, tmp_path, devices=[device])
    marked, shared, moved = (world.log.index(f"{what} on hv1") for what in ("mark", "share", "migrate"))
    assert marked < shared < moved


def test_a_marker_that_a_recovery_elsewhere_took_away_ends_the_migration_before_it_begins(tmp_path, monkeypatch):
    world = World()
    # It can take minutes until a node that is late has joined the locks.
    monkeypatch.setattr(Node, "share", lambda node, _wanted: node.set_marker(UUID, None))
    with pytest.raises(Failed, match="no longer carries the marker"):
        move(world, tmp_path, devices=[{"path": "/dev/vg/lv", "identity": "LVM-1", "size": 0, "lock": "vg/lv"}])
    assert "migrate on hv1" not in world.log and world.nodes["hv1"]["state"] == ("running", "booted")


def test_a_device_goes_into_the_marker_and_without_a_lock_nothing_is_shared(tmp_path):
    world = World()
    device = {"target": "vda", "path": "/dev/san/web1", "identity": "3600", "size": 1024, "lock": ""}
    move(world, tmp_path, devices=[device])
    assert "share on hv1" not in world.log
    assert "<device path='/dev/san/web1' identity='3600' size='1024'/>" in metadata.marker_xml(world.marked)


def test_what_a_killed_helper_left_goes_with_the_next(tmp_path):
    values = {"kind": "live", "vm": "vm1", "source": "hv1", "target": "hv2", "here": "hv1"}
    paths = [
        order.save(order.Order(id=number, uuid=uuid, **values), tmp_path)
        for number, uuid in (("1", UUID), ("2", UUID), ("3", "another"))
    ]
    order.forget_others(paths[1], order.load(paths[1]))
    assert [path.exists() for path in paths] == [False, True, True]
