# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ovs_switch against a private Open vSwitch."""

from __future__ import annotations

import json
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _ovs
from ansible_collections.drover.kvm.plugins.modules import ovs_switch
from ansible_collections.drover.kvm.tests.unit import hostile, ovs_server

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]


@pytest.fixture
def module(server, capsys):
    def run(**args):
        with patch_module_args({"socket": server.socket, **args}), pytest.raises(SystemExit):
            ovs_switch.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("option", ["other_config", "external_ids"])
def test_keys_are_set_kept_and_removed(module, server, option):
    server.vsctl("--", "set", "Open_vSwitch", ".", f"{option}:old=1", f"{option}:kept=2")
    wanted = {option: {"userspace-tso-enable": True, "old": None}}
    predicted, real = module(_ansible_check_mode=True, **wanted), module(**wanted)
    for key in ("changed", "actions", "diff", "resource"):
        assert predicted[key] == real[key]
    assert real["changed"] and not module(**wanted)["changed"]
    kept = {"kept": "2", "userspace-tso-enable": "true"}
    assert {key: real["resource"][option].get(key) for key in kept} == kept
    assert server.get("Open_vSwitch", ".", f"{option}:userspace-tso-enable") == '"true"'
    assert "old" not in real["resource"][option]


def test_both_at_once_are_one_transaction(module, server, monkeypatch):
    commits = []
    original = _ovs.Ovs.commit

    def counted(self, change):
        commits.append(change)
        return original(self, change)

    monkeypatch.setattr(_ovs.Ovs, "commit", counted)
    result = module(other_config={"max-idle": 30000}, external_ids={"rack": "b 7"})
    assert len(commits) == 1 and len(result["actions"]) == 2


def test_without_options_it_tells_of_the_bridges(module, server):
    server.vsctl("add-br", "br7")
    result = module()
    assert result["bridges"] == ["br7"] and not result["changed"] and result["version"] is None
    server.vsctl("del-br", "br7")


def test_a_switch_that_does_not_run_is_named(module, server):
    with server.frozen("ovs-vswitchd"):
        result = module(timeout=1, other_config={"x": "y"})
    assert result["failed"] and result["error"] == "TimedOut" and "is ovs-vswitchd running?" in result["msg"]


@hostile.fuzz(ovs_switch.FIELDS[:2], {"external_ids": {"rack": "b7"}}, quick=15)
def test_any_input_gets_a_clear_answer(module, server, args):
    hostile.answered(module, partial(settings, server), args)
    for column in ovs_switch.MAPS:
        server.vsctl("clear", "Open_vSwitch", ".", column)


def settings(server):
    with _ovs.connect(server.socket) as client:
        return {key: client.snapshot().root[key] for key in ovs_switch.MAPS}
