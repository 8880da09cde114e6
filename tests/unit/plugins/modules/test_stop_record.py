# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which VMs are stopped for a while: it stays with them, whatever else changes, and the order of their groups."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.filter.start_order import FilterModule, start_order
from ansible_collections.drover.kvm.plugins.module_utils._domain.facts import domain_facts
from ansible_collections.drover.kvm.plugins.modules import stop_record
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytest.importorskip("libvirt")
lab = test_vm.lab


@pytest.fixture
def record(lab, monkeypatch, capsys):
    monkeypatch.setattr(stop_record, "connect", test_vm.vm.connect)
    lab.run(vms=[{"name": name} for name in ("web1", "web2", "db1")], memory="64MiB", vcpus=1, tags=["gold"])

    def run(*names: str, **args: Any) -> dict[str, Any]:
        with patch_module_args({"vms": list(names), **args}), pytest.raises(SystemExit):
            stop_record.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def stopped(lab) -> list[str]:
    facts = map(domain_facts, lab.node.domains().values())
    return sorted(one["name"] for one in facts if one["metadata"].get("stopped"))


def test_it_is_remembered_through_stop_and_start_and_forgotten(lab, record):
    lab.run(name="web1", state="running")
    predicted = record("web1", "db1", _ansible_check_mode=True)
    assert stopped(lab) == [] and predicted["changed"]
    done = record("web1", "db1")
    words = [f"remember that {name} is stopped for a while" for name in ("db1", "web1")]
    assert done["actions"] == predicted["actions"] == words and done["remembered"] == ["db1", "web1"]
    assert stopped(lab) == ["db1", "web1"] and not record("web1", "db1")["changed"]
    lab.run(name="web1", state="stopped", force=True)
    assert lab.run(name="web1", memory="128MiB", tags=["iron"])["changed"] and stopped(lab) == ["db1", "web1"]
    lab.run(name="web1", state="running")
    gone = record("web1", state="absent")
    assert gone["actions"] == ["forget that web1 is stopped for a while"] and gone["remembered"] == []
    assert stopped(lab) == ["db1"] and not record("web1", state="absent")["changed"]
    shown = domain_facts(lab.node.domain("web1"))["metadata"]
    assert shown["tags"] == ["iron"] and lab.run(name="web1")["pending_restart"] == []


def test_maintenance_is_another_reason_and_each_is_forgotten_by_itself(lab, record):
    done = record("web1", reason="maintenance")
    assert done["actions"] == ["remember that web1 is stopped for maintenance of its node"]
    assert domain_facts(lab.node.domain("web1"))["metadata"]["stopped"] == "maintenance"
    other = record("web1", state="absent")
    assert done["remembered"] == ["web1"] and (other["changed"], other["remembered"]) == (False, [])
    record("web2")
    assert not record("web2", reason="maintenance", state="absent")["changed"] and stopped(lab) == ["web1", "web2"]
    record("web1", reason="maintenance", state="absent")
    assert stopped(lab) == ["web2"]


def test_a_vm_that_is_not_here_is_named(lab, record):
    assert "has no VM none1" in record("web1", "none1")["msg"] and stopped(lab) == []


def test_groups_follow_the_order_of_tags():
    vms = [
        {"name": name, "metadata": {"tags": tags}}
        for name, tags in (("web1", ["web"]), ("app1", []), ("both", ["db", "nas"]), ("db1", ["db"]), ("nas1", ["nas"]))
    ]
    names = [[one["name"] for one in group] for group in start_order(vms, ["nas", "none", "db"])]
    assert names == [["both", "nas1"], ["db1"], ["app1", "web1"]]
    assert start_order(vms, [], {"elsewhere": {}}), "a VM that the inventory does not have"
    again = [{**vms[0], "state": "running"}, {**vms[0], "state": "stopped", "metadata": {"tags": ["db"]}}]
    assert start_order(again, ["db", "web"]) == [[{"name": "web1"}]], "a node that died has it still"
    assert start_order(again[::-1], ["web"]) == [[{"name": "web1"}]]
    assert start_order([], ["db"]) == [] and list(FilterModule().filters()) == ["start_order"]
    assert [[one["name"] for one in group] for group in start_order(vms, [])] == [sorted(vm["name"] for vm in vms)]
    hosts: dict[str, dict[str, Any]] = {vm["name"]: {} for vm in vms}
    hosts["db1"] = {"vm_shutdown_timeout": 600}
    groups = start_order(vms, ["db"], hosts)
    assert groups[0] == [{"name": "both"}, {"name": "db1", "shutdown_timeout": 600}]
    assert start_order(vms, ["db"], {})[0][1] == {"name": "db1"}
