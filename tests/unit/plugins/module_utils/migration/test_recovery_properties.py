# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery rules over the whole product of what two or three nodes can say.

A small world carries out what the rules ask for, and refuses what must never happen.
"""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._migration.rules import decide

STATES = (
    ("absent", ""),
    ("unreachable", ""),
    ("shutoff", "shutdown"),
    ("shutoff", "failed"),
    ("running", "booted"),
    ("running", "migrated"),
    ("paused", "migrating"),
    ("paused", "user"),
    ("paused", "ioerror"),
    ("paused", "postcopy-failed"),
    ("crashed", "panicked"),
)
ACTIVE = ("running", "paused", "crashed")
TELLING = ("report", "wait")
FILES = ("remove_copies", "remove_originals", "release_copies", "forget")


def ends(was, jobs, copies=()):
    """Everything that one node can say."""
    marker = {"id": "m1", "from": "hv1", "to": "hv2", "was": was, "autostart": True, "copies": list(copies)}
    marker["state"] = [f"{path}.fd" for path in copies]
    noted = {**marker, "ran": True}
    for state, reason in STATES:
        if state in ("absent", "unreachable"):
            yield {"state": state}
            yield {"state": state, "qemu_alive": True}
            yield {"state": state, "qemu_alive": False}
            continue
        for job in jobs if state in ACTIVE else (None,):
            for persistent, mark in itertools.product((True, False) if state in ACTIVE else (True,), (None, marker)):
                yield {"state": state, "reason": reason, "job": job, "persistent": persistent, "marker": mark}
    yield {"state": "shutoff", "reason": "unknown", "persistent": True, "marker": marker, "qemu_alive": True}
    yield {"state": "shutoff", "reason": "unknown", "persistent": True, "marker": noted}


class World:
    """What the nodes hold; performs actions and checks each against what must never happen."""

    def __init__(self, nodes, fenced, keep=None):
        self.nodes = {name: dict(said) for name, said in nodes.items()}
        self.fenced, self.keep = fenced, keep
        self.marked = any(said.get("marker") for said in nodes.values())
        self.files = {"hv1", "hv2"}

    def perform(self, action):
        if action.verb in TELLING:
            return
        said = self.nodes[action.node]
        assert said["state"] != "unreachable", f"{action.verb} where nothing is known"
        assert said["state"] != "absent" or action.verb in FILES, f"{action.verb} where nothing is"
        getattr(self, action.verb)(action.node, said)

    def may_run(self, node):
        said = self.nodes[node]
        if said["state"] == "running" or (said.get("qemu_alive") and said["state"] not in ACTIVE):
            return True
        proven = said.get("qemu_alive") is False or node in self.fenced
        return said["state"] == "unreachable" and not proven

    def resume(self, node, said):
        assert said["state"] == "paused" and said["reason"] in ("migrating", "user"), "never resumed by us"
        assert not said["job"], "never resumed under a job"
        if said["reason"] == "user":
            assert said["marker"] and said["marker"]["was"] == "running", "its user paused it"
            source = self.nodes["hv1"]
            ran = source.get("reason") == "shutdown" or (source.get("marker") or {}).get("ran")
            assert not (node == "hv2" and ran) or self.keep == "hv2", "memory that is older than the disks"
        others = [name for name in self.nodes if name != node and self.may_run(name)]
        if said["reason"] == "migrating" and said["marker"] and said["marker"]["from"] == node:
            # The source's QEMU lives, so a target that gives no answer has never run the VM.
            others = [name for name in others if self.nodes[name]["state"] != "unreachable"]
        if self.marked:
            others = [name for name in others if name != "hv3"]  # had no part in the migration
        assert not others, f"resumed on {node} while it may run on {others}"
        said.update(state="running", reason="unpaused")

    def destroy(self, node, said):
        assert said["state"] in ACTIVE
        left = [name for name, other in self.nodes.items() if name != node and other["state"] in ACTIVE]
        chosen = self.nodes.get(self.keep, {}).get("persistent") and self.keep != node
        assert left or chosen, "the last copy"
        self.nodes[node] = {**said, "state": "shutoff", "reason": "destroyed", "job": None}
        if not said["persistent"]:
            self.nodes[node] = {"state": "absent"}

    def undefine(self, node, said):
        assert said["state"] == "shutoff", "undefined while active"
        left = [o for name, o in self.nodes.items() if name != node and o.get("persistent")]
        assert left, "the last definition"
        self.nodes[node] = {"state": "absent"}

    def note(self, node, said):
        assert said["state"] == "running" and said["marker"]
        said["marker"] = {**said["marker"], "ran": True}

    def abort_job(self, node, said):
        assert said["state"] == "running" and said["job"]
        said["job"] = None
        for name, other in self.nodes.items():
            if name != node and other.get("job") == "incoming":
                self.nodes[name] = {"state": "absent"}

    def set_autostart(self, node, said):
        assert said["persistent"]
        others = [o for name, o in self.nodes.items() if name != node and o["state"] == "running"]
        assert not others, "autostart beside a copy that runs"

    def remove_copies(self, node, said):
        assert node == "hv2", "only what was copied"
        self.lose(node, "hv1")

    def remove_originals(self, node, said):
        assert node == "hv1", "only where it was copied from"
        self.lose(node, "hv2")

    def lose(self, node, other):
        assert self.nodes[node]["state"] == "absent", "the files of a VM that is there"
        assert self.nodes[other]["state"] not in ("absent", "unreachable"), "the VM is not seen on the other node"
        assert self.nodes[other].get("reason") != "migrating" and other in self.files, "the last whole copy"
        self.files.discard(node)

    def forget(self, node, said):
        assert node == "hv1", "only where the VM came from"
        assert self.nodes[node]["state"] == "absent", "the keys of a VM that is there"
        assert self.nodes["hv2"]["state"] not in ("absent", "unreachable"), "the VM is not seen on the other node"

    def release_copies(self, node, said):
        assert node == "hv2" and node in self.files

    def clear_marker(self, node, said):
        assert said["marker"]
        said["marker"] = None


def check(nodes, fenced=(), **options):
    world = World(nodes, fenced, options.get("keep"))
    for _round in range(4):
        decision = decide(world.nodes, fenced=fenced, **options)
        for action in decision.actions:
            world.perform(action)
        running = [name for name, said in world.nodes.items() if said["state"] == "running"]
        assert len(running) < 2 or all(nodes[name]["state"] == "running" for name in running), "made a second copy run"
        assert decision.where in (*nodes, "none", "unknown")
        if all(action.verb in TELLING for action in decision.actions):
            return decision
    raise AssertionError("the rules do not come to an end")


@pytest.mark.parametrize("was", ["running", "paused", "shutoff"])
@pytest.mark.parametrize("stalled", [False, True])
def test_two_nodes_nothing_forbidden_is_ever_asked_for(was, stalled):
    said = list(ends(was, (None, "outgoing", "incoming")))
    count = 0
    for first, second in itertools.product(said, said):
        for fenced in ((), ("hv1",), ("hv2",)):
            silent = [name for name, node in (("hv1", first), ("hv2", second)) if node["state"] == "unreachable"]
            if fenced and (fenced[0] not in silent or {"hv1": first, "hv2": second}[fenced[0]].get("qemu_alive")):
                continue
            check({"hv1": first, "hv2": second}, fenced, stalled=stalled)
            count += 1
    assert count > 9000


@pytest.mark.parametrize("was", ["running", "paused"])
def test_of_disks_that_were_copied_a_whole_one_is_left(was):
    said = list(ends(was, (None,), ("/srv/a.raw",)))
    for first, second, keep in itertools.product(said, said, (None, "hv1", "hv2")):
        check({"hv1": first, "hv2": second}, keep=keep)


@pytest.mark.parametrize("keep", ["hv1", "hv2"])
def test_the_operators_choice_never_loses_the_vm(keep):
    said = list(ends("running", (None,)))
    for first, second in itertools.product(said, said):
        check({"hv1": first, "hv2": second}, keep=keep)


@pytest.mark.parametrize("lock_owner", ["hv1", "hv2"])
def test_the_owner_of_the_disk_lock_never_loses_the_vm(lock_owner):
    said = [node for node in ends("running", (None,)) if not node.get("marker")]
    for first, second in itertools.product(said, said):
        check({"hv1": first, "hv2": second}, lock_owner=lock_owner)


def test_a_third_node_is_never_overlooked():
    said = list(ends("running", (None,)))
    third = [node for node in said if not node.get("marker")]
    for first, second, other in itertools.product(said, said, third):
        nodes = {"hv1": first, "hv2": second, "hv3": other}
        decision = decide(nodes)
        resumed = [action.node for action in decision.actions if action.verb == "resume"]
        if other["state"] in ACTIVE or other.get("qemu_alive"):
            assert set(resumed) <= {"hv3"}
        for action in decision.actions:
            assert action.verb in TELLING or nodes[action.node]["state"] not in ("absent", "unreachable")


def test_without_a_marker_a_silent_node_forbids_every_resume():
    for said in ends("running", (None,)):
        if not said.get("marker"):
            decision = decide({"hv1": said, "hv2": "unreachable"})
            assert "resume" not in [action.verb for action in decision.actions]
