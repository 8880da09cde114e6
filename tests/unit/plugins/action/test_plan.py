# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plan as Ansible calls it: options checked, nothing changed, all blockers named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.action.plan import ActionModule
from ansible_collections.drover.kvm.plugins.module_utils._cluster.options import FIELDS, ONLY
from ansible_collections.drover.kvm.plugins.module_utils._fields import argument_spec
from ansible_collections.drover.kvm.plugins.modules import plan as documented
from ansible_collections.drover.kvm.tests.unit import hostile

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


def node(name, *vms, **more):
    memory = {"total": 16 * 2**30, "free": 2**30}
    return {
        "node": {"name": name, "memory": memory, "cpus": {"threads": 8}, "bridges": [], "domains": list(vms), **more}
    }


def vm(name, **more):
    return {"name": name, "uuid": name, "state": "running", "memory": {"current": 1, "maximum": 2**30}, **more}


def run(diff=False, check_mode=False, **args):
    task = SimpleNamespace(
        args=args, diff=diff, check_mode=check_mode, async_val=0, action="drover.kvm.plan", environment=None
    )
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
    return ActionModule(task, connection, None, None, None, None).run(task_vars={})


def test_a_drain_is_planned_and_nothing_is_changed():
    result = run(operation="drain", node="hv1", nodes=[node("hv1", vm("web1")), node("hv2")])
    move = {"vm": "web1", "uuid": "web1", "from": "hv1", "to": "hv2", "mode": "live", "memory": 2**30}
    assert result["moves"] == [move]
    assert result["stages"] == [[move]]
    assert result["changed"] is False
    assert not result.get("failed")
    assert "diff" not in result
    vcpus = {"threads": 8, "before": 0, "after": 1}
    row = {"total": 16 * 2**30, "usable": 14 * 2**30, "before": 0, "after": 2**30 + 2**27}
    assert result["nodes"][1] == {"name": "hv2", "memory": row, "vcpus": vcpus, "vms": {"before": 0, "after": 1}}


def test_diff_shows_the_moves_in_their_order_on_standard_error(capsys):
    result = run(diff=True, operation="drain", node=["hv1"], nodes=[node("hv1", vm("web1")), node("hv2")])
    assert "1  web1  hv1 -> hv2  live  1 GiB" in result["diff"]["prepared"]
    captured = capsys.readouterr()
    assert "web1  hv1 -> hv2" in captured.err
    assert captured.out == ""


def test_check_mode_gives_the_same_plan():
    args = {"operation": "drain", "node": ["hv1"], "nodes": [node("hv1", vm("web1")), node("hv2")]}
    assert run(check_mode=True, **args) == run(**args)


def test_blockers_fail_with_all_of_them_named():
    guests = (vm("gpu", hostdevs=["pci"]), vm("dmz", nics=[{"bridge": "br1"}]))
    args = {"operation": "drain", "node": ["hv1"], "nodes": [node("hv1", *guests), node("hv2")]}
    result = run(**args)
    assert result["failed"] and result["error"] == "Refused"
    assert "2 blockers" in result["msg"] and "gpu uses a device" in result["msg"] and "no bridge br1" in result["msg"]
    assert [blocker["reason"] for blocker in result["blockers"]] == ["bridge", "host_device"]
    allowed = run(**args, fail_on_blockers=False)
    assert not allowed.get("failed") and len(allowed["blockers"]) == 2 and allowed["refusal"] == result["msg"]
    assert run(**{**args, "nodes": [node("hv1"), node("hv2")]})["refusal"] == ""


FACTS = [node("hv1", vm("web1"), vm("web2")), node("hv2"), node("hv3")]


def saved(**args):
    return json.loads(json.dumps(run(operation="drain", node="hv1", nodes=FACTS, **args)))


def test_a_saved_plan_is_done_exactly_under_the_cordon_too():
    plan = saved()
    cordoned = [{"node": {**FACTS[0]["node"], "cordon": {"reason": "drain"}}}, *FACTS[1:]]
    other = saved(pins={"web1": ["hv3"], "web2": ["hv3"]})
    assert plan["stages"] != other["stages"]
    again = run(operation="drain", node="hv1", nodes=cordoned[::-1], saved=plan)
    assert again["stages"] == plan["stages"] and "as saved" in again["text"]


def test_the_example_of_simulate_is_planned():
    values = yaml.safe_load((EXAMPLES / "simulate/cluster.yml").read_text(encoding="utf-8"))
    result = run(**values)
    assert result["blockers"] == [] and result["minutes"] == 0.7
    for line in result["text"].splitlines():
        assert line in (EXAMPLES / "../docs/planning.md").read_text(encoding="utf-8")


def test_a_saved_plan_holds_although_its_vms_grew_older():
    def at(age):
        return [node("hv1", vm("web1", age=age), *(vm(f"m{number}") for number in range(6))), node("hv2")]

    asked = {"operation": "rebalance", "hold_off": 3600}
    plan = json.loads(json.dumps(run(nodes=at(1800), **asked)))
    again = run(nodes=at(3700), saved=plan, **asked)
    assert plan["moves"] and again.get("stages") == plan["stages"], again.get("msg")


CHANGED = {
    "another VM": ([node("hv1", vm("web1")), *FACTS[1:]], {}, "(hv1)"),
    "another node": ([*FACTS[:2], node("hv3", bridges=[{"name": "br9"}])], {}, "(hv3)"),
    "other rules": (FACTS, {"anti_affinity": ["web"]}, "(the rules)"),
    "a node less": (FACTS[:2], {}, "(hv3)"),
}


@pytest.mark.parametrize("nodes, more, words", CHANGED.values(), ids=list(CHANGED))
def test_a_saved_plan_is_refused_when_the_facts_changed(nodes, more, words):
    result = run(operation="drain", node="hv1", nodes=nodes, saved=saved(), **more)
    assert result["error"] == "Refused" and f"facts changed since the plan was saved {words}" in result["msg"]


ALTERED = [
    ({"to": "hv9"}, "Refused", "was altered: hv9 is no node of this cluster"),
    ({"to": "the rules"}, "Refused", "was altered: the rules is no node of this cluster"),
    ({"to": "hv1"}, "Refused", "was altered, it does not hold: web1 is to move to where it is"),
    ({"vm": "web9"}, "Refused", "was altered: web9 is not on hv1"),
    ({"vm": "web2"}, "Refused", "was altered, it does not hold: web2 is not on hv1 when its turn comes"),
    ({"from": "hv2"}, "Refused", "was altered: web1 is not on hv2"),
    ({"to": None}, "Invalid", "not a plan that was saved (None is no text)"),
    ({"vm": ["web1"]}, "Invalid", "not a plan that was saved (['web1'] is no text)"),
]


@pytest.mark.parametrize("change, error, words", ALTERED)
def test_a_saved_plan_that_was_altered_is_refused(change, error, words):
    plan = saved()
    assert plan["stages"][0][0]["vm"] == "web1"
    plan["stages"][0][0].update(change)
    result = run(operation="drain", node="hv1", nodes=FACTS, saved=plan)
    assert result["error"] == error and words in result["msg"], result["msg"]


@pytest.mark.parametrize("key", ["facts", "notes", "stages", "operation"])
@pytest.mark.parametrize("value", [None, 1, [None], [{}], [[{}]], {1: ""}])
def test_what_is_no_saved_plan_is_told(key, value):
    result = run(operation="drain", node="hv1", nodes=FACTS, saved={**saved(), key: value})
    assert result.get("error") in ("Invalid", "Refused") and "saved" in result["msg"], result


def test_of_a_saved_plan_only_who_goes_where_counts():
    plan = saved()
    altered = json.loads(json.dumps(plan))
    for move in altered["stages"][0]:
        move.update(uuid="x", memory=-1, mode="offline", storage="copy")
    again = run(operation="drain", node="hv1", nodes=FACTS, saved=altered)
    assert again["stages"] == plan["stages"]


CROWDED = [node("hv1", *(vm(f"m{number}") for number in range(6))), node("hv2")]


def test_a_saved_plan_says_what_it_said_when_it_was_made():
    plan = json.loads(json.dumps(run(operation="rebalance", nodes=CROWDED)))
    again = run(operation="rebalance", nodes=CROWDED, saved=plan, threshold=90)
    assert len(plan["moves"]) == 3 and again["moves"] == plan["moves"]
    assert again["notes"] == plan["notes"] and again["text"].replace("(as saved)", "(balance)") == plan["text"]


@pytest.mark.parametrize("budget", [{"max_moves": 2}, {"max_memory_moved": "2GiB"}])
def test_a_saved_plan_that_moves_more_than_the_budget_is_refused(budget):
    plan = json.loads(json.dumps(run(operation="rebalance", nodes=CROWDED)))
    result = run(operation="rebalance", nodes=CROWDED, saved=plan, **budget)
    assert result["error"] == "Refused" and "the saved plan moves 3 VMs with 3 GiB, more than" in result["msg"]
    # The way home is free.
    lost = [node("hv1", *(vm(f"m{n}", metadata={"home": "hv2"}) for n in range(6))), node("hv2")]
    plan = json.loads(json.dumps(run(operation="spread", nodes=lost, **budget)))
    assert len(plan["moves"]) == 6
    assert run(operation="spread", nodes=lost, saved=plan, **budget)["moves"] == plan["moves"]


def test_a_speed_of_zero_is_none():
    asked = {"operation": "drain", "node": "hv1", "nodes": FACTS}
    assert run(bandwidth=0, **asked) == run(**asked)


BASES = [
    {"operation": "drain", "node": ["hv1"], "nodes": FACTS},
    {"operation": "spread", "nodes": CROWDED},
    {"operation": "rebalance", "nodes": CROWDED, "saved": run(operation="rebalance", nodes=CROWDED)},
    {"operation": "rolling", "nodes": FACTS},
    {"operation": "place", "nodes": FACTS, "vms": [{"name": "web3", "memory": "1GiB"}]},
    {"operation": "report", "nodes": CROWDED},
]


@hostile.fuzz(FIELDS, *BASES)
def test_any_input_gets_a_clear_answer(args):
    result = run(**args)
    assert not result.get("failed") or result["error"] in ("Invalid", "Refused"), result
    assert result.get("changed") is not True


def test_a_saved_plan_is_for_its_own_operation():
    result = run(operation="consolidate", nodes=FACTS, saved=saved())
    assert result["error"] == "Refused" and "for drain, not for consolidate" in result["msg"]


WRONG = {
    "no operation": ({}, "missing required arguments: nodes, operation"),
    "unknown operation": ({"operation": "move", "nodes": []}, "value of operation must be one of: place, drain"),
    "unknown option": (
        {"operation": "drain", "nodes": [], "host": "hv1"},
        "host. Supported parameters include: affinity, anti_affinity",
    ),
    "drain of nothing": ({"operation": "drain", "nodes": []}, "node is missing"),
    "place of nothing": ({"operation": "place", "nodes": []}, "vms is missing"),
    "new without memory": ({"operation": "place", "nodes": [], "vms": [{"name": "a"}]}, "vms[0].memory is missing"),
    "no such size": ({"operation": "place", "nodes": [], "vms": [{"name": "a", "memory": "4GB"}]}, "vms[0].memory"),
    "vcpus": ({"operation": "place", "nodes": [], "vms": [{"name": "a", "memory": 1, "vcpus": "two"}]}, "vms[0].vcpus"),
    "bad name": ({"operation": "place", "nodes": [], "vms": [{"name": "../a", "memory": 1}]}, "vms[0].name"),
    "twice": ({"operation": "place", "nodes": [], "vms": [{"name": "a", "memory": 1}] * 2}, "name given twice: a"),
    "names": ({"operation": "undrain", "node": "hv1", "nodes": [], "names": ["a"]}, "names: operation undrain has"),
    "weights": ({"operation": "rebalance", "nodes": [], "weights": {"hv1": "much"}}, "hv1: 'much' is not a number"),
    "no weight at all": ({"operation": "rebalance", "nodes": [], "weights": {"hv1": 0}}, "weight above 0"),
    "a weight below zero": ({"operation": "rebalance", "nodes": [], "weights": {"hv1": -1}}, "a number from 0 on"),
    "a node without weight": (
        {"operation": "rebalance", "nodes": [node("hv1"), node("hv2")], "weights": {"hv1": 1}},
        "weights: say it of every node that takes VMs, also of hv2",
    ),
    "a weight of no kind": ({"operation": "rebalance", "nodes": [], "weights": {"hv1": True}}, "True is not a number"),
    "weights of others": (
        {"operation": "rebalance", "nodes": [node("hv1"), node("hv2")], "weights": {"hv1": 0, "hv2": 0, "hv9": 1}},
        "one of the nodes that take VMs must have a weight above 0 (hv1, hv2)",
    ),
    "threshold": ({"operation": "rebalance", "nodes": [], "threshold": 101}, "between 0 and 100"),
    "moves": ({"operation": "spread", "nodes": [], "max_moves": -1}, "-1 is below 0"),
    "budget of a drain": ({"operation": "drain", "node": "a", "nodes": [], "max_moves": 1}, "no use for it, only"),
    "not saved": ({"operation": "consolidate", "nodes": [], "saved": {"x": 1}}, "not a plan that was saved"),
    "reserve": ({"operation": "drain", "node": "hv1", "nodes": [], "memory_reserve": "-1"}, "memory_reserve"),
    "pins": ({"operation": "drain", "node": "hv1", "nodes": [], "pins": {"a": 3}}, "pins: a: write one node"),
    "not facts": ({"operation": "drain", "node": "hv1", "nodes": [{"msg": "x"}]}, "not a result of node_info"),
    "node twice": (
        {"operation": "drain", "node": "hv1", "nodes": [node("hv1")], "unreachable": ["hv1"]},
        "named twice",
    ),
    "domains of no kind": ({"operation": "drain", "node": "hv1", "nodes": [node("hv1", {"x": 1})]}, "nodes: hv1"),
}


@pytest.mark.parametrize("args, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_by_name(args, words):
    result = run(**args)
    assert result["failed"] and words in result["msg"]
    assert result["error"] == "Invalid"


def test_the_documentation_names_exactly_the_options():
    def plain(spec):
        keys = ("type", "elements", "choices", "default", "required")
        found = {}
        for name, option in spec.items():
            found[name] = {key: option[key] for key in keys if key in option}
            inner = option.get("suboptions") or option.get("options")
            if inner:
                found[name]["options"] = plain(inner)
        return found

    assert plain(yaml.safe_load(documented.DOCUMENTATION)["options"]) == plain(argument_spec(FIELDS))


def passed_on(name):
    """What a file of playbooks gives to the module, by option."""

    def found(tasks):
        for task in tasks:
            yield from [task["drover.kvm.plan"]] if "drover.kvm.plan" in task else ()
            yield from found([*task.get("tasks", []), *task.get("block", [])])

    (options,) = found(yaml.safe_load((EXAMPLES / f"../playbooks/{name}").read_text(encoding="utf-8")))
    return options


def test_playbooks_pass_every_option_on():
    names = {field.name for field in FIELDS}
    # Sheets are for place.yml; whether room is made, and what a VM takes beside its memory, is no matter of a site.
    assert set(passed_on("tasks/plan_moves.yml")) == names - {"vms", "make_room", "memory_overhead"}
    assert set(passed_on("simulate.yml")) == names - {"saved"}
    text = (EXAMPLES / "../playbooks/simulate.yml").read_text(encoding="utf-8")
    assert set(re.split(r"[\s,]+", re.search(r"drover_options: \[\s*([^]]+)\]", text)[1])) == names - {"saved"}


def test_a_variable_for_all_playbooks_is_given_to_those_that_have_a_use_for_it():
    options = passed_on("tasks/plan_moves.yml")
    # Those are said by the playbook itself, or with -e.
    for option in ONLY.keys() - {"node", "names", "vms", "saved"}:
        operations = re.findall(r"'(\w+)'", options[option])
        assert sorted(operations) == sorted(ONLY[option]), option


def test_every_value_that_is_returned_is_documented():
    result = run(operation="drain", node="hv1", nodes=[node("hv1", vm("web1")), node("hv2")])
    assert set(result) - {"changed"} <= set(yaml.safe_load(documented.RETURN))
