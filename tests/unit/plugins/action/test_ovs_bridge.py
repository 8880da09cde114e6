# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions ovs_bridge and networkd: who confirms a change, how often it is tried, what is said without an answer."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ansible_collections.drover.kvm.plugins.action import networkd, ovs_bridge
from ansible_collections.drover.kvm.plugins.plugin_utils import _confirm

DONE = {"changed": True, "actions": ["remove port eth0 from bridge br0"]}


class Machine:
    """A machine that can be reached again after so many attempts; it has a clock and a file that waits."""

    def __init__(self, tmp_path, cut=0, seconds=30, **outcome):
        self.file = tmp_path / "ovs-br0@1.json"
        self.file.touch()
        self.outcome = {**DONE, "rollback": {"file": str(self.file), "unit": "none", "seconds": seconds}, **outcome}
        self.cut = cut
        self.clock = 0.0
        self.resets = 0
        self.asked = 0

    def reset(self):
        self.resets += 1

    def execute(self, command, **_more):
        self.asked += 1
        assert self.resets == self.asked  # each over a connection of its own
        if self.cut:
            self.cut -= 1
            raise AnsibleConnectionFailure("Failed to connect to the host via ssh")
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        return {"rc": done.returncode}

    def sleep(self, seconds):
        self.clock += seconds
        if self.clock > 30:
            self.file.unlink(missing_ok=True)  # the timer has come


@pytest.fixture(params=[ovs_bridge, networkd], ids=["ovs_bridge", "networkd"])
def act(request, monkeypatch):
    def run(machine, check_mode=False, async_val=0, module=None, **args):
        args = {"name": "br0", **args}
        task = SimpleNamespace(
            args=args,
            diff=False,
            check_mode=check_mode,
            async_val=async_val,
            action="drover.kvm.ovs_bridge",
            environment=None,
        )
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None), reset=machine.reset)
        action = request.param.ActionModule(task, connection, None, None, None, None)
        monkeypatch.setattr(action, "_execute_module", module or (lambda **_more: dict(machine.outcome)))
        monkeypatch.setattr(action, "_low_level_execute_command", machine.execute)
        monkeypatch.setattr(_confirm.time, "monotonic", lambda: machine.clock)
        monkeypatch.setattr(_confirm.time, "sleep", machine.sleep)
        return action.run(task_vars={})

    return run


def test_a_change_is_confirmed_over_a_fresh_connection(act, tmp_path):
    machine = Machine(tmp_path)
    result = act(machine, confirm_timeout=30)
    assert result["confirmed"] and result["changed"] and not result.get("failed")
    assert (machine.resets, machine.asked) == (1, 1)
    assert not machine.file.exists() and (tmp_path / "ovs-br0@1.json.confirmed").exists()


def test_a_short_cut_is_waited_for(act, tmp_path):
    machine = Machine(tmp_path, cut=5)
    assert act(machine, confirm_timeout=30)["confirmed"]
    assert machine.asked == 6


def test_a_machine_that_does_not_answer_again_is_a_failure(act, tmp_path):
    machine = Machine(tmp_path, cut=1000)
    result = act(machine, confirm_timeout=30)
    assert result["failed"] and not result["confirmed"] and result["error"] == "TimedOut"
    assert "within 30 s; it takes the change back" in result["msg"]
    assert 45 < machine.clock < 48


def test_a_machine_that_has_taken_the_change_back_is_a_failure(act, tmp_path):
    machine = Machine(tmp_path, cut=40)
    result = act(machine, confirm_timeout=30)
    assert result["failed"] and not result["confirmed"] and machine.asked == 41
    assert "it has taken the change back" in result["msg"]


def test_an_answer_that_got_lost_does_not_undo_the_confirmation(act, tmp_path):
    machine = Machine(tmp_path)
    original, lost = machine.execute, []

    def execute(command, **more):
        answer = original(command, **more)
        if not lost:
            lost.append(answer)
            raise AnsibleConnectionFailure("the answer got lost")
        return answer

    machine.execute = execute
    assert act(machine, confirm_timeout=30)["confirmed"]
    assert machine.asked == 2


def test_what_failed_is_not_confirmed(act, tmp_path):
    machine = Machine(tmp_path, failed=True, msg="eth0 on bridge br0: no such device")
    result = act(machine, confirm_timeout=30)
    assert machine.asked == 0 and machine.file.exists()
    assert result["msg"].startswith("eth0 on bridge br0") and "comes back within 30 s" in result["msg"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_where_nothing_is_to_confirm_nobody_asks(act, tmp_path, check_mode):
    machine = Machine(tmp_path)
    del machine.outcome["rollback"]
    assert act(machine, check_mode=check_mode, confirm_timeout=30) == DONE
    assert (machine.resets, machine.asked) == (0, 0)


def test_a_connection_that_breaks_in_the_module_says_what_will_happen(act, tmp_path):
    def module(**_more):
        raise AnsibleConnectionFailure("Shared connection to hv1 closed")

    with pytest.raises(AnsibleConnectionFailure, match="taken back 30 s after"):
        act(Machine(tmp_path), module=module, confirm_timeout=30)
    with pytest.raises(AnsibleConnectionFailure, match="closed$"):
        act(Machine(tmp_path), module=module)


def test_in_the_background_nobody_could_confirm(act, tmp_path):
    with pytest.raises(AnsibleActionFail, match="without async"):
        act(Machine(tmp_path), async_val=60, confirm_timeout=30)


def test_a_machine_s_answer_is_not_a_command(act, tmp_path):
    machine = Machine(tmp_path, rollback={"file": "/x; reboot", "unit": "u", "seconds": 30})
    with pytest.raises(AnsibleActionFail, match="no file that could be confirmed"):
        act(machine, confirm_timeout=30)
    assert machine.asked == 0
