# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery against nodes that change as they are told: the rules' actions in order, and nothing twice."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._migration import recovery, unit
from ansible_collections.drover.kvm.plugins.module_utils._migration.ends import End
from ansible_collections.drover.kvm.plugins.module_utils._migration.recovery import Limits, Recovery, qemu_alive

MARKER = {"id": "1", "from": "hv1", "to": "hv2", "was": "running", "autostart": True}
FAST = Limits(patience=2, stall=0.5, silence=0.1, pause=0.01)


def copy_of(state, reason="", job="", **marked):
    found = {"state": state, "reason": reason, "job": job, "persistent": True, "autostart": False, "marker": MARKER}
    return {**found, **marked}


class Cluster:
    """Nodes that hold a copy of the VM each, or `absent`, or are unreachable."""

    def __init__(self, **said):
        self.said = {"hv3": "absent", **said}
        self.log = []
        self.script = []
        self.before = lambda action: None

    def look(self, uuid):
        if self.script:
            self.script.pop(0)(self)
        return {node: dict(one) if isinstance(one, dict) else one for node, one in self.said.items()}

    def act(self, uuid, action, expected):
        self.before(action)
        if expected is not None and recovery.standing(expected) != recovery.standing(self.said[action.node]):
            raise Failed("the VM is not as it was when this was decided")
        self.log.append(f"{action.verb} {action.node}")
        one = self.said[action.node]
        if not isinstance(one, dict) or one["state"] == "unreachable":
            raise Unreachable(f"{action.node} gave no answer")
        if action.verb == "destroy":
            one.update(state="shutoff", reason="destroyed", job="")
        elif action.verb == "undefine":
            self.said[action.node] = "absent"
        elif action.verb == "resume":
            others = [node for node, said in self.said.items() if isinstance(said, dict) and said["state"] == "running"]
            assert not others, f"resumed on {action.node} although it runs on {others}"
            one.update(state="running", reason="unpaused")
        elif action.verb in ("set_autostart", "set_home"):
            one[action.verb.removeprefix("set_")] = action.value
        elif action.verb == "clear_marker":
            one["marker"] = None
        elif action.verb == "abort_job":
            one["job"] = ""
        elif action.verb == "note":
            one["marker"] = {**one["marker"], "ran": True}


def recover(cluster, **options):
    return Recovery("u", cluster, lambda text: None, FAST, **options).run()


CASES = {
    "2": (
        {"hv1": copy_of("running", "migration canceled"), "hv2": copy_of("paused", "user")},
        ["destroy hv2", "undefine hv2", "set_autostart hv1", "clear_marker hv1"],
        "hv1",
    ),
    "3": ({"hv1": copy_of("running"), "hv2": "absent"}, ["set_autostart hv1", "clear_marker hv1"], "hv1"),
    "5": (
        {"hv1": copy_of("paused", "migrating"), "hv2": copy_of("paused", "user")},
        ["destroy hv1", "undefine hv1", "resume hv2", "set_autostart hv2", "clear_marker hv2"],
        "hv2",
    ),
    "7": (
        {"hv1": "absent", "hv2": copy_of("paused", "user")},
        ["resume hv2", "set_autostart hv2", "clear_marker hv2"],
        "hv2",
    ),
    "9": (
        {"hv1": copy_of("shutoff"), "hv2": copy_of("running")},
        ["undefine hv1", "set_autostart hv2", "clear_marker hv2"],
        "hv2",
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_is_carried_out_and_a_second_run_does_nothing(rule):
    said, log, where = CASES[rule]
    cluster = Cluster(**said)
    result = recover(cluster)
    assert cluster.log == log
    assert result.complete and result.decision.where == where
    cluster.log.clear()
    again = recover(cluster)
    assert cluster.log == [] and again.complete and again.decision.where == where


@pytest.mark.parametrize("rule", CASES)
@pytest.mark.parametrize("cut", range(1, 5))
def test_a_recovery_that_was_cut_anywhere_is_finished_by_the_next(rule, cut):
    said, _log, where = CASES[rule]
    cluster = Cluster(**said)

    class Cut(BaseException):
        pass

    def cut_here(action):
        if len(cluster.log) == cut:
            raise Cut

    cluster.before = cut_here
    with suppress(Cut):
        recover(cluster)
    cluster.before = lambda action: None
    result = recover(cluster)
    assert result.complete and result.decision.where == where
    holders = {node: one for node, one in cluster.said.items() if isinstance(one, dict)}
    assert set(holders) == {where} and holders[where]["state"] == "running" and not holders[where]["marker"]


@pytest.mark.parametrize("rule", CASES)
def test_a_new_home_is_written_down_by_the_recovery_where_the_vm_went_there(rule):
    """Else the next return of its old home's VMs would take it along, though it was moved on purpose."""
    said, _log, where = CASES[rule]
    new = {"marker": {**MARKER, "home": "hv2"}, "home": "hv1"}
    cluster = Cluster(**{node: {**one, **new} if isinstance(one, dict) else one for node, one in said.items()})
    assert recover(cluster).complete and cluster.said[where]["home"] == where
    if where == "hv2":
        assert cluster.log[-2:] == ["set_home hv2", "clear_marker hv2"]


def test_what_ran_on_is_written_down_before_anything_is_waited_for():
    """A source that loses its power while the recovery waits must not be taken for one that never ran on."""
    cluster = Cluster(hv1=copy_of("running", "migration canceled"), hv2={"state": "unreachable"})

    def dies(cluster):
        cluster.said["hv1"] = copy_of("shutoff", "unknown", marker=cluster.said["hv1"]["marker"])
        cluster.said["hv2"] = copy_of("paused", "user")

    cluster.script = [lambda cluster: None, dies]
    assert not recover(cluster).complete and cluster.log == ["note hv1"]


def test_a_silent_target_leaves_the_marker():
    cluster = Cluster(hv1=copy_of("running"), hv2={"state": "unreachable"})
    result = recover(cluster)
    assert cluster.log == ["note hv1"] and not result.complete and result.decision.where == "hv1"


def test_a_copy_that_is_older_than_the_disks_is_never_resumed():
    cluster = Cluster(hv1=copy_of("running", "migration canceled"), hv2={"state": "unreachable"})
    recover(cluster)
    cluster.said.update(hv1={**cluster.said["hv1"], "state": "shutoff", "reason": "unknown"})
    cluster.said.update(hv2=copy_of("paused", "user"))
    cluster.log.clear()
    result = recover(cluster)
    assert cluster.log == [] and not result.complete and "hv1 ran on" in result.decision.text
    assert recover(cluster, keep="hv1").decision.where == "hv1" and cluster.said["hv2"] == "absent"


DOMAIN = (
    "<domain type='test'><name>web1</name><uuid>7d4da458-de51-4138-9921-aae15234a969</uuid><memory>1024</memory>"
    "<os><type>hvm</type></os></domain>"
)


def test_that_the_source_ran_on_is_written_beside_all_else_in_the_marker():
    device = {"path": "/dev/vg/lv", "identity": "LVM-1", "size": 7}
    with connect("test:///default") as node:
        domain = node.connection.createXML(DOMAIN)
        end, uuid = End(node), domain.UUIDString()
        end.set_marker(uuid, {**MARKER, "devices": [device], "copies": ["/srv/a.raw"]})
        before = end.marker(uuid)
        end.note(uuid)
        assert end.marker(uuid) == {**before, "ran": True} and before["copies"] == ["/srv/a.raw"]
        assert re.search("<[a-z:]*device [^>]*identity=.LVM-1", domain.XMLDesc(0))
        domain.destroy()


def test_a_silent_source_is_never_replaced():
    cluster = Cluster(hv1={"state": "unreachable"}, hv2=copy_of("paused", "user"))
    result = recover(cluster)
    assert cluster.log == [] and not result.complete and result.decision.where == "unknown"


def test_the_copy_that_has_arrived_is_resumed_when_its_source_is_certainly_off():
    cluster = Cluster(hv1={"state": "unreachable"}, hv2=copy_of("paused", "user"))
    result = recover(cluster, fenced=["hv1"])
    assert cluster.log == ["resume hv2"] and (result.decision.rule, result.decision.where) == ("11", "hv2")
    cluster.log.clear()
    assert recover(cluster, fenced=["hv1"]).decision.rule == "11" and cluster.log == []


def test_it_waits_for_a_job_and_then_decides():
    cluster = Cluster(hv1=copy_of("running", job="outgoing"), hv2=copy_of("paused", "migrating", job="incoming"))

    def done(world):
        world.said.update(hv1="absent", hv2=copy_of("paused", "user"))

    cluster.script = [lambda world: None] * 4 + [done]
    result = recover(cluster)
    assert cluster.log[0] == "resume hv2" and result.complete and result.decision.where == "hv2"


def test_a_stalled_job_is_aborted():
    cluster = Cluster(hv1=copy_of("running", job="outgoing"), hv2=copy_of("paused", "migrating", job="incoming"))
    recover(cluster)
    assert cluster.log[0] == "abort_job hv1"


def test_an_abort_that_counts_only_later_is_waited_for_and_not_said_again():
    """The destination still prepares: libvirt takes the abort, and ends the job when that has come back."""
    cluster = Cluster(hv1=copy_of("running", job="outgoing"), hv2=copy_of("paused", "starting up", job="incoming"))

    def late(action):
        if action.verb == "abort_job":
            cluster.said["hv1"]["job"] = "outgoing"

            def back(world):
                world.said.update(hv1=copy_of("running", "migration canceled"), hv2="absent")

            cluster.script = [lambda world: None] * 12 + [back]

    act = cluster.act

    def aborted(uuid, action, expected):
        act(uuid, action, expected)
        late(action)

    cluster.act = aborted
    result = recover(cluster)
    assert cluster.log == ["abort_job hv1", "set_autostart hv1", "clear_marker hv1"]
    assert result.complete and result.decision.where == "hv1"


def test_a_state_that_only_passes_is_not_acted_on():
    cluster = Cluster(hv1=copy_of("running"), hv2=copy_of("paused", "user"))

    def passed(world):
        world.said.update(hv1=copy_of("running", marker=None), hv2="absent")

    cluster.script = [lambda world: None, passed]
    result = recover(cluster)
    assert cluster.log == [] and result.complete


def test_a_node_that_dies_while_it_is_told_ends_without_a_wrong_word():
    cluster = Cluster(hv1=copy_of("running"), hv2=copy_of("paused", "user"))
    cluster.before = lambda action: cluster.said.update(hv2={"state": "unreachable"})
    result = recover(cluster)
    assert not result.complete and result.decision.where == "hv1"
    assert result.actions == ["write down on hv1 that the VM ran on there"]


def test_qemu_of_the_vm_is_found_by_its_command_line(tmp_path):
    (tmp_path / "12").mkdir()
    (tmp_path / "12/cmdline").write_bytes(b"/usr/bin/qemu-system-x86_64\0-name\0a\0-uuid\0abc\0-m\0001\0")
    assert qemu_alive("abc", tmp_path)
    assert not qemu_alive("ab", tmp_path)


def test_the_program_is_installed_once_for_root_alone(tmp_path):
    path = unit.install(tmp_path / "run")
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    before = path.stat().st_mtime_ns
    assert unit.install(tmp_path / "run") == path and path.stat().st_mtime_ns == before


def test_all_verbs_of_the_rules_are_known():
    assert recovery.VERBS | {"wait", "report"} >= {"destroy", "undefine", "resume", "set_autostart", "clear_marker"}


def test_what_another_recovery_resumed_meanwhile_is_not_stopped():
    cluster = Cluster(hv1=copy_of("paused", "migrating"), hv2=copy_of("paused", "user"))

    def resumed(action):
        cluster.before = lambda later: None
        cluster.said["hv1"] = copy_of("running", "unpaused")

    cluster.before = resumed
    result = recover(cluster)
    assert cluster.log[0] == "destroy hv2" and "destroy hv1" not in cluster.log
    assert result.complete and result.decision.where == "hv1"
