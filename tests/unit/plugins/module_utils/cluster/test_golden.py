# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans by example: the scenarios in tests/unit/golden/plan, written as short as a sysadmin would draw them.

A node is `{memory, threads, bridges, vlans, machines, types, firmware, cordon, vm_capable, hugepages, lease_directory,
vms}`, a VM on it `{memory, ...}` where the rest is as in a domain of node_info. `expect` names only what matters: moves
("stage vm from -> to mode"), blockers ("vm node reason"), placements, enough, emptied, minutes, n_minus_1, not_borne,
notes, the steps of a cycle ("node operation moves"), shutdowns, left and starts ("vm node"), memory of the nodes before
and after in percent, or parts of the text.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._cluster import fixed, maintenance, report
from ansible_collections.drover.kvm.plugins.module_utils._cluster.options import FIELDS
from ansible_collections.drover.kvm.plugins.module_utils._cluster.planner import plan
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import ON_MAINTENANCE
from ansible_collections.drover.kvm.plugins.module_utils._fields import normalise, parse_size
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import PAUSED

GOLDEN = Path(__file__).parents[3] / "golden" / "plan"
FILES = sorted(GOLDEN.glob("*.yml"))


def domain(name, given):
    """A domain as node_info describes it; running, with one disk on the SAN, on bridge br0."""
    memory = parse_size(given.get("memory", "4GiB"))
    san = {"target": "vda", "device": "disk", "type": "iscsi", "identity": f"iscsi:{name}", "shared_storage": True}
    usual = {
        "name": name,
        "uuid": f"uuid-{name}",
        "state": "running",
        "reason": "booted",
        "job": None,
        "persistent": True,
        "machine": "pc-q35-10.0",
        "virt_type": "kvm",
        "disks": [san],
        "nics": [{"mac": "52:54:00:00:00:01", "bridge": given.get("bridge", "br0"), "vlan": 100}],
        "hostdevs": [],
        "filesystems": [],
        "state_files": [],
        "state_elsewhere": [],
        "hugepages": None,
        "lease": None,
        "age": None,
        "has_snapshots": False,
        "managed_save": False,
        "cpu": None,
        "marker": None,
    }
    metadata = {"managed": True, **{key: given.get(key) for key in ("tags", "home", "on_maintenance", "stopped")}}
    vcpus = {"current": given.get("vcpus", 2), "maximum": given.get("vcpus", 2)}
    own = {key: value for key, value in given.items() if key in usual}
    return {**usual, "metadata": metadata, "vcpus": vcpus, **own, "memory": {"current": memory, "maximum": memory}}


def node_info(name, given):
    """A result of node_info; 32 GiB, bridge br0, QEMU 10."""
    given = given or {}
    memory = parse_size(given.get("memory", "32GiB"))
    facts = {
        "name": name,
        "memory": {"total": memory, "free": memory},
        "cpus": {"threads": given.get("threads", 16)},
        "machine_types": given.get("machines", ["pc-q35-7.2", "pc-q35-10.0"]),
        "virt_types": given.get("types", ["qemu", "kvm"]),
        "firmware": given.get("firmware"),
        "bridges": [
            {
                "name": bridge,
                "type": "ovs",
                "reserved_vlans": given.get("reserved", {}).get(bridge, []),
                "vlans": given.get("vlans", {}).get(bridge),
            }
            for bridge in given.get("bridges", ["br0"])
        ],
        "cordon": {"reason": given["cordon"], "by": "me", "since": "2025-01-01"} if "cordon" in given else None,
        "hugepages": given.get("hugepages", {}),
        "lease_directory": given.get("lease_directory"),
        "domains": [domain(vm, values or {}) for vm, values in (given.get("vms") or {}).items()],
    }
    if "vm_capable" in given:
        facts["vm_capable"] = given["vm_capable"]
    return {"changed": False, "node": facts}


def percent(memory):
    """What running VMs take on a node, before and after, of what they may take."""
    return "{} -> {}".format(*(round(100 * memory[when] / memory["usable"]) for when in ("before", "after")))


def seen(result, expect):
    """The result in the short words of the scenario."""
    stages = [(number, move) for number, stage in enumerate(result["stages"], 1) for move in stage]
    short = {
        "moves": [f"{number} {m['vm']} {m['from']} -> {m['to']} {m['mode']}" for number, m in stages],
        "blockers": [" ".join(filter(None, (b["vm"], b["node"], b["reason"]))) for b in result["blockers"]],
        **{what: [f"{row['vm']} {row['node']}" for row in result.get(what, [])] for what in report.POWER},
        "not_borne": {row["node"]: row["vms"] for row in result.get("not_borne", [])},
        "cycle": [f"{each['node']} {each['operation']} {len(each['moves'])}" for each in result.get("cycle", [])],
        "percent": {row["name"]: percent(row["memory"]) for row in result.get("nodes", [])},
        "says": [text for text in expect.get("says", []) if text in result["text"]],
    }
    return {key: short.get(key, result.get(key)) for key in expect}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_plan(path):
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    expect = scenario.pop("expect")
    nodes = [node_info(name, given) for name, given in scenario.pop("nodes").items()]
    result = plan(normalise(FIELDS, {"nodes": nodes, **scenario}))
    assert seen(result, expect) == expect, result["text"]
    assert all(blocker["text"] and blocker["mend"] for blocker in result["blockers"])
    assert result == plan(normalise(FIELDS, {"nodes": nodes[::-1], **scenario})), "the order of the facts matters"


@pytest.mark.parametrize("reason", fixed.FAULTY)
def test_what_stops_a_vm_is_called_as_libvirts_client_calls_it(reason):
    assert reason in PAUSED
    found = fixed.obstacles(domain("m1", {"state": "paused", "reason": reason}))
    assert [one.reason for one in found] == ["state"]


def test_what_a_vm_may_say_is_what_the_planner_knows_and_another_word_is_a_refusal():
    assert ON_MAINTENANCE == maintenance.VERBS
    found = fixed.obstacles(domain("m1", {"on_maintenance": "evict"}))
    assert [one.reason for one in found] == ["on_maintenance"] and "refuse" in found[0].text


def test_every_kind_of_blocker_has_its_scenario():
    shown = " ".join(path.read_text(encoding="utf-8") for path in FILES)
    kinds = """host_device filesystem local_disk local_iso cpu cpu_return machine_type virt_type firmware bridge vlan
        anti_affinity memory pinned interrupted job state defined_twice node_unreachable unknown_node no_destination
        unknown_place reserved_vlan unknown_vm state_file n_minus_1 hugepages lease on_maintenance managed_save"""
    assert [kind for kind in kinds.split() if f" {kind}\n" not in shown + "\n"] == []
