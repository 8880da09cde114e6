# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks do and leave when a node, Ceph or an earlier run is not as it should be; the nodes are scripted."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from ansible_collections.drover.kvm.tests.unit.playbook_run import ROOT
from ansible_collections.drover.kvm.tests.unit.scripted_site import Site

pytestmark = pytest.mark.slow
HUNG = {"failed": True, "msg": "libvirt gave no answer within 30 s"}
AGENT = {"drover_fence": {"agent": "fence_ipmilan"}}


def failover(folder, **nodes):
    """A site whose hv3 is dead and had web1."""
    site = Site(folder, hv1={}, hv2={}, hv3={}, **nodes)
    site.vms = ["web1"]
    site.nodes["hv3"] = AGENT
    site.answers["hv3"] = {"node_info": "ssh: no route to host"}
    return site


def test_a_failover_cuts_off_no_node_that_answers_ansible(tmp_path):
    site = failover(tmp_path)
    site.answers["hv3"] = {"node_info": HUNG}
    code, said = site.play("failover_node", node="hv3")
    assert code != 0 and "hv3 answers Ansible (libvirt gave no answer within 30 s), so it is not dead" in said, said
    assert site.calls("fence") == []


def test_a_failover_cuts_off_nothing_while_another_node_is_silent(tmp_path):
    site = failover(tmp_path, hv4={}, hv5={})
    site.answers["hv4"] = {"node_info": "ssh: no route to host"}
    code, said = site.play("failover_node", node="hv3")
    assert code != 0 and "hv4 gives no answer either" in said and site.calls("fence") == [], said


def test_a_failover_cuts_off_nothing_that_has_no_room_elsewhere(tmp_path):
    site = failover(tmp_path)
    code, said = site.play("failover_node", node="hv3", vm_memory="1TiB", vm_vcpus=1)
    assert code != 0 and "web1 (1024 GiB) has no place" in said and site.calls("fence") == [], said
    code, said = site.play("failover_node", "--check", node="hv3", vm_memory="1GiB", vm_vcpus=1)
    assert code == 0 and "web1 hv1 new" in said, said


def test_consolidate_moves_nothing_when_one_node_could_not_be_switched_on_again(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={"vms": {"web2": {}}}, hv3={}, hv4={}, hv5={})
    site.nodes |= dict.fromkeys(("hv1", "hv2", "hv3", "hv4"), AGENT)
    code, said = site.play("consolidate", drover_power_off=True, drover_require_n_minus_1=False)
    assert code != 0 and "hv5 has no drover_fence in the inventory" in said, said
    assert site.calls("migrate") == [] and "drover_fenced" not in said, said


def test_recovery_names_a_node_that_nobody_sees_and_looks_from_one_that_holds_vms(tmp_path):
    site = Site(tmp_path, hv0={"vm_capable": False}, hv1={"vms": {"web1": {}}}, hv2={})
    assert site.play("recover_migrations")[0] == 0
    assert [call["where"] for call in site.calls("migrate")] == ["hv1"]
    site.answers["hv2"] = {"node_info": HUNG}
    code, said = site.play("recover_migrations")
    assert code != 0 and "what is on hv2 is not known, as it gives no answer (hv2: libvirt gave no answer" in said, said
    site.answers["hv2"] = {"node_info": "ssh: no route to host", "migrate": "ssh: no route to host"}
    assert site.play("recover_migrations", drover_fenced=["hv2"])[0] == 0
    (web1,) = site.answers["hv1"]["node_info"]["node"]["domains"]
    web1["marker"] = {"id": "m1", "from": "hv2", "to": "hv1", "phase": "perform3"}
    code, said = site.play("recover_migrations", drover_fenced=["hv2"])
    assert code == 0 and [call["args"].get("name") for call in site.calls("migrate")] == ["web1", None], said
    site.answers["hv1"] = {"node_info": HUNG}
    code, said = site.play("recover_migrations")
    assert code != 0 and "No hypervisor that holds VMs answers (hv1: libvirt gave no answer" in said, said


def test_a_report_that_lacks_a_node_fails(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={})
    assert site.play("placement_report")[0] == 0
    site.answers["hv3"] = {"node_info": "ssh: no route to host"}
    code, said = site.play("placement_report")
    assert code != 0 and "what runs on hv3 is not known" in said, said
    assert site.play("placement_report", drover_fenced=["hv3"])[0] == 0


def test_check_mode_says_that_a_move_would_be_finished_first(tmp_path):
    marker = {"id": "m1", "from": "hv1", "to": "hv2", "phase": "perform3"}
    site = Site(tmp_path, hv1={"vms": {"web1": {"marker": marker}, "web2": {}}}, hv2={}, hv3={})
    site.answers["hv1"]["migrate"] = {"changed": True, "actions": ["finish the migration"]}
    code, said = site.play("drain_node", "--check", node="hv1")
    assert code == 0 and "would be finished first; what is planned after that is known then: web1" in said, said
    assert site.calls("cordon", check=True) == []


def test_what_a_dead_node_left_defined_is_not_stopped_there_and_refused_before_any_start(tmp_path):
    stale, own = {"web1": {"state": "stopped"}}, {"web1": {}, "web2": {}}
    site = Site(tmp_path, hv1={"vms": own}, hv2={}, hv3={"vms": stale})
    code, said = site.play("stop_vms")
    assert (
        code == 0 and "so that start_vms will refuse to start: web1 on hv1, web1 on hv3; virsh undefine it" in said
    ), said
    for module in ("stop_record", "vm"):
        assert [call["where"] for call in site.calls(module)] == ["hv1"]
    stopped = {name: {"state": "stopped", "stopped": "outage"} for name in own}
    for number, there in enumerate((stale, {"web1": stopped["web1"]})):
        site = Site(tmp_path / str(number), hv1={"vms": stopped}, hv2={}, hv3={"vms": there})
        code, said = site.play("start_vms")
        assert code != 0 and "On more than one node: web1 on hv1, web1 on hv3; virsh undefine it" in said, said
        assert site.calls("vm") == []
        assert site.play("start_vms", vms="web2")[0] == 0 and len(site.calls("vm")) == 1


def with_ceph(folder, **nodes):
    """A site whose nodes all have OSDs; hv3 has the monitor that is asked."""
    site = Site(folder, **{"hv1": {}, "hv2": {}, "hv3": {}, **nodes})
    site.groups = {"ceph_osd": ["hv1", "hv2", "hv3"], "ceph_mon": ["hv3"]}
    return site


def taken_back(site):
    """The hosts whose maintenance was ended, by call."""
    calls = [call["args"] for call in site.calls("ceph_maintenance")]
    return [args["hosts"] for args in calls if args.get("state") == "ended"]


def test_a_refused_drain_leaves_the_flag_of_a_node_whose_osds_are_down_on_purpose(tmp_path):
    site = with_ceph(tmp_path, hv2={"vms": {"web1": {}}})
    hosts = [{"host": "hv1", "up": [], "osds": [0]}, {"host": "hv2", "up": [1], "osds": [1]}]
    told = {"when": {"state": ["ended", "started"]}, "changed": True, "maintenance": hosts}
    site.answers["hv3"]["ceph_maintenance"] = {"failed": True, "msg": "osd.1 may not stop now", "cases": [told]}
    code, said = site.play("drain_node", node="hv1,hv2", drover_osd_unit="basic.target")
    assert code != 0 and "osd.1 may not stop now" in said, said
    assert [call["args"]["hosts"] for call in site.calls("ceph_maintenance")] == [["hv2"]]
    site.answers["hv3"]["ceph_maintenance"].pop("cases")
    code, said = site.play("drain_node", "--check", node="hv1,hv2", drover_osd_unit="basic.target")
    assert code != 0 and "changed=1" not in said, "what is refused would change nothing"


def test_the_osds_of_a_node_that_did_not_get_empty_are_left_alone(tmp_path):
    site = with_ceph(tmp_path, hv1={"vms": {"web1": {}}})
    code, said = site.play("drain_node", node="hv1", drover_osd_unit="basic.target")
    assert code != 0 and "hv1 still holds web1" in said and "drover_osd_unit" not in said, said
    assert site.calls("ceph_maintenance") == []


WORK = "packages, reboot if_needed"
NOW, LONG_AGO = time.time(), time.time() - 100 * 3600


@pytest.mark.parametrize(
    "record, options, todo, filling",
    [
        ({}, {}, [], []),
        ({}, {"drover_upgrades": True}, ["hv1"], []),
        ({"work": WORK, "done": NOW}, {"drover_rebooting": "always"}, [], []),
        ({"work": WORK, "done": 0, "filling": NOW}, {}, ["hv1"], ["hv1"]),
        ({"work": WORK, "done": 0, "filling": LONG_AGO}, {}, ["hv1"], ["hv1"]),
        ({"work": "/firmware.yml, reboot never", "done": 0, "filling": NOW}, {}, ["hv1"], ["hv1"]),
        ({"work": WORK, "done": 0, "filling": NOW}, {"drover_upgrades": True}, ["hv1"], []),
        ({"work": "other", "done": 0, "filling": NOW}, {"drover_update_tasks": "firmware.yml"}, ["hv1"], []),
        ({"work": WORK, "done": 0, "filling": NOW}, {"drover_rebooting": "always"}, ["hv1"], ["hv1"]),
        ({"work": WORK, "done": 0, "had": {}}, {"cordon": "rolling_update"}, ["hv1"], []),
        ({"work": WORK, "done": 0, "filling": NOW}, {"cordon": "rolling_update"}, ["hv1"], ["hv1"]),
    ],
)
def test_a_cycle_knows_which_nodes_lack_only_the_way_home(tmp_path, record, options, todo, filling):
    """The tasks that choose, with what those before them have found."""
    cordon = {"reason": options["cordon"]} if "cordon" in options else None
    site = Site(tmp_path, hv1={})
    wanted = ("See whether it is to be done", "Choose the nodes")
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/rolling_work.yml").read_text(encoding="utf-8"))
    known = {"drover_asked": ["hv1"], "drover_facts": [{"name": "hv1", "cordon": cordon}], "drover_work": WORK}
    known |= {"drover_rebooting": "if_needed", "drover_upgrades": False, **options}
    local = {"drover_rolling": record} if record else {}
    found = {"ansible.builtin.set_fact": {"ansible_local": local, "cacheable": True}}
    say = {"ansible.builtin.debug": {"msg": "todo={{ drover_todo | to_json }} filling={{ drover_filling | to_json }}"}}
    play = {"hosts": "hv1", "gather_facts": False, "vars": known}
    play["tasks"] = [found, *(task for task in tasks if task["name"] in wanted), say]
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    code, said = site.play(tmp_path / "play.yml")
    assert code == 0 and f"todo={json.dumps(todo)} filling={json.dumps(filling)}" in said.replace("\\", ""), said


def test_a_word_of_the_nodes_variables_is_looked_at_on_the_nodes(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"a1": {}}}, hv2={})
    site.nodes["hv1"] = {"drover_reboot": "true"}
    code, said = site.play("rolling_update")
    assert code != 0 and "drover_reboot is true; it is one of" in said and site.calls("node_info") == [], said
    site.nodes["hv1"] = {"drover_ignore_units": "certbot*"}
    code, said = site.play("rolling_update")
    assert code != 0 and "drover_ignore_units is a list" in said and site.calls("node_info") == [], said


def test_a_drain_whose_osds_do_not_stop_takes_back_only_what_it_did(tmp_path):
    """hv1 was emptied yesterday; the unit of hv2 holds no OSD."""
    site = with_ceph(tmp_path)
    hosts = [{"host": "hv1", "up": [], "osds": [0]}, {"host": "hv2", "up": [1], "osds": [1]}]
    site.answers["hv3"]["ceph_maintenance"] = {"maintenance": hosts}
    code, said = site.play("drain_node", node="hv1,hv2", drover_osd_unit="basic.target")
    assert code != 0 and "The OSDs of hv2 were not stopped, and noout is not set: they are still up" in said, said
    assert taken_back(site) == [["hv2"]]


def test_osds_that_came_up_during_the_moves_are_taken_back_too(tmp_path):
    site = with_ceph(tmp_path)
    down, up = [{"host": "hv1", "up": [], "osds": [0]}], [{"host": "hv1", "up": [0], "osds": [0]}]
    cases = [
        {"when": {"state": ["ended", "started"]}},
        {"when": {"reason": ["drain_node", None]}, "maintenance": up, "diff": {"after": {"hv1": {"noout": True}}}},
        {"when": {"wait": [0, None]}, "maintenance": up},
    ]
    site.answers["hv3"]["ceph_maintenance"] = {"maintenance": down, "cases": cases}
    code, said = site.play("drain_node", node="hv1", drover_osd_unit="basic.target")
    assert code != 0 and "The OSDs of hv1 were not stopped, and noout is not set: they are still up" in said, said
    assert taken_back(site) == [["hv1"]]


def test_why_osds_were_not_stopped_is_said_also_when_they_do_not_start_again(tmp_path):
    site = with_ceph(tmp_path)
    cases = [
        {"when": {"state": ["ended", "started"]}, "failed": True, "msg": "osd.0 down"},
        {"when": {"reason": ["drain_node", None]}, "failed": True, "msg": "no answer from any monitor"},
    ]
    site.answers["hv3"]["ceph_maintenance"] = {"maintenance": [{"host": "hv1", "up": [0], "osds": [0]}], "cases": cases}
    code, said = site.play("drain_node", node="hv1", drover_osd_unit="basic.target")
    words = (
        "not stopped, and what was done could not be taken back (look whether they run, and for noout in ceph osd dump"
    )
    assert code != 0 and words in said and ": no answer from any monitor" in said, said


def test_a_monitor_that_can_not_be_reached_after_the_stop_leaves_no_osd_stopped(tmp_path):
    site = with_ceph(tmp_path)
    up = [{"host": "hv1", "up": [0], "osds": [0]}]
    cases = [
        {"when": {"reason": ["drain_node", None]}, "maintenance": up, "diff": {"after": {"hv1": {"noout": True}}}},
        {"when": {"wait": [0, None], "state": ["started", "started"]}, "unreachable": "ssh: no route to host"},
    ]
    site.answers["hv3"]["ceph_maintenance"] = {"maintenance": up, "cases": cases}
    code, said = site.play("drain_node", node="hv1", drover_osd_unit="basic.target")
    assert code != 0 and "were not stopped, and noout is not set: hv3 can't be reached: " in said, said
    assert "changed: [hv1]" in said.split("TASK [Start them]")[1] or "ok: [hv1]" in said.split("TASK [Start them]")[1]
    assert taken_back(site) == [["hv1"]]


def test_osds_without_a_monitor_to_ask_are_refused(tmp_path):
    site = with_ceph(tmp_path)
    del site.groups["ceph_mon"]
    for name in ("drain_node", "undrain_node"):
        code, said = site.play(name, node="hv1")
        assert code != 0 and "hv1 has OSDs (group ceph_osd), and nobody is in group ceph_mon" in said, said
    code, said = site.play("drain_node", node=["hv1"])
    assert code != 0 and "node is no list here" in said, said


def test_a_failover_names_a_vm_of_which_only_an_old_definition_is_seen(tmp_path):
    site = failover(tmp_path)
    site.answers["hv1"] = Site(tmp_path / "old", hv1={"vms": {"web1": {"state": "stopped"}}}).answers["hv1"]
    for mode in ([], ["--check"]):
        code, said = site.play("failover_node", *mode, node="hv3")
        assert code != 0 and "web1 is off where it is seen (hv1), so it is not taken for one of hv3" in said, said
        assert site.calls("fence") + site.calls("fence", check=True) == []
    assert site.play("failover_node", node="hv3", vm_state="stopped")[0] == 0


def test_the_next_stage_waits_for_what_could_not_be_started_on_another_node(tmp_path):
    lic = {"state": "stopped", "on_maintenance": "restart", "stopped": "maintenance"}
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={"vms": {"lic1": lic}})
    site.answers["hv3"]["vm"] = {"failed": True, "msg": "lic1 did not start"}
    code, said = site.play("drain_node", node="hv1")
    assert code != 0 and "lic1 did not start" in said, said
    assert [call for call in site.calls("migrate") if call["args"]["moves"]] == []


def test_nothing_is_planned_without_a_node_whose_recovery_failed(tmp_path):
    marker = {"id": "m1", "from": "hv1", "to": "hv3", "phase": "perform3"}
    site = Site(tmp_path, hv1={"vms": {"web1": {"marker": marker}}}, hv2={"vms": {"web2": {}}}, hv3={})
    site.answers["hv1"]["migrate"] = {"failed": True, "msg": "web1 is not recovered"}
    code, said = site.play("drain_node", node="hv2")
    assert code != 0 and "web1 is not recovered" in said and site.calls("cordon") == [], said
    code, said = site.play("recover_migrations")
    assert code != 0 and "hv1: it answered before, and a task failed there" in said, said


def test_consolidate_switches_nothing_off_while_a_node_is_silent_and_says_so_before(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={"vms": {"web2": {}}}, hv3={}, hv4={}, hv5={})
    site.nodes |= dict.fromkeys(site.nodes, AGENT)
    site.answers["hv5"] = {"node_info": HUNG}
    for mode in ([], ["--check"]):
        code, said = site.play("consolidate", *mode, drover_power_off=True)
        assert code != 0 and "hv5 gives no answer (hv5: libvirt gave no answer" in said, said
        assert site.calls("migrate") + site.calls("migrate", check=True) + site.calls("cordon") == []


def test_repair_network_moves_nobody_whose_word_is_against_it(tmp_path):
    own = {word: {"on_maintenance": word} for word in ("leave", "restart", "shutdown")}
    site = Site(tmp_path, hv1={"vms": {**own, "web2": {}}}, hv2={}, hv3={})
    for name, silent in {"hv1": [*own, "web2"], "hv2": [], "hv3": []}.items():
        site.answers[name]["vm_ports"] = {"silent": silent, "ports": []}
    code, said = site.play("repair_network", migrate=True)
    assert code != 0 and "leave, restart, shutdown can't be moved while it runs (on_maintenance" in said, said
    assert not [call for call in site.calls("migrate") if call["args"].get("moves")] and site.calls("vm") == []
    site.play("repair_network", vms="vms:!leave:!restart:!shutdown")
    assert {str(call["args"]["names"]) for call in site.calls("vm_ports")} == {"['web2']"}


def test_a_cordon_under_which_the_plan_is_refused_is_taken_away(tmp_path):
    site = Site(tmp_path / "site", hv1={"vms": {"web1": {}}}, hv2={})
    tied = Site(tmp_path / "tied", hv1={"vms": {"gpu1": {"hostdevs": ["pci"]}}}, hv2={})
    site.answers["hv1"]["cordon"] = {"changed": True}
    own = tmp_path / "own.yml"
    content = json.dumps({**site.answers, "hv1": {**site.answers["hv1"], **tied.answers["hv1"]}})
    copy = {"content": content, "dest": "{{ lookup('ansible.builtin.env', 'SCRIPTED_ANSWERS') }}", "mode": "0600"}
    own.write_text(json.dumps([{"name": "A VM comes", "ansible.builtin.copy": copy}]))
    code, said = site.play("drain_node", node="hv1", drover_before_tasks=str(own))
    assert code != 0 and "gpu1 uses a device of its node" in said and "no cordon is left" in said, said
    assert [call["args"].get("state") for call in site.calls("cordon")] == [None, "absent"]
    assert not [call for call in site.calls("migrate") if call["args"].get("moves")]


def test_vms_that_a_silent_node_may_run_are_no_success_of_undrain(tmp_path):
    site = Site(tmp_path, hv1={}, hv2={"vms": {"web1": {"home": "hv1"}}}, hv3={})
    site.answers["hv2"]["cordon"] = {}
    assert site.play("undrain_node", node="hv1")[0] == 0
    site.answers["hv3"] = {"node_info": HUNG}
    assert site.play("undrain_node", "--check", node="hv1")[0] != 0
    code, said = site.play("undrain_node", node="hv1")
    assert code != 0 and "hv3 gives no answer (hv3: libvirt gave no answer" in said, said
    assert [one["vm"] for call in site.calls("migrate") for one in call["args"].get("moves", [])] == ["web1"]
    site.answers["hv3"] = {"node_info": "ssh: no route to host"}
    assert site.play("undrain_node", node="hv1", drover_fenced=["hv3"])[0] == 0


def test_a_monitor_is_not_stopped_with_osds_that_are_down(tmp_path):
    """Ceph was not asked whether it may."""
    site = with_ceph(tmp_path)
    site.answers["hv3"]["ceph_maintenance"] = {"maintenance": [{"host": "hv1", "up": [], "osds": [0]}]}
    code, said = site.play("drain_node", "-v", node="hv1", drover_osd_unit="basic.target")
    assert code == 0 and "TASK [Stop them] *" in said, said
    assert "skipping: [hv1]" in said.split("TASK [Stop them]")[1].split("TASK")[0], said


def test_vms_that_nobody_hears_are_moved(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={})
    for name, silent in {"hv1": ["web1"], "hv2": [], "hv3": []}.items():
        site.answers[name]["vm_ports"] = {"silent": silent, "ports": []}
    for mode in (["--check"], []):
        _code, said = site.play("repair_network", *mode, migrate=True)
        assert "web1 hv1 -> hv" in said, said
    (moved,) = [call for call in site.calls("migrate") if call["args"]["moves"]]
    assert moved["where"] == "hv1" and [one["vm"] for one in moved["args"]["moves"]] == ["web1"]


def test_a_check_that_can_not_save_its_plan_fails(tmp_path):
    site = Site(tmp_path / "site", hv1={"vms": {"web1": {"marker": {"from": "hv1", "to": "hv2", "id": "1"}}}}, hv2={})
    site.answers["hv1"]["migrate"] = {"changed": True}
    code, said = site.play("drain_node", "--check", node="hv1", drover_save_plan=str(tmp_path / "plan.json"))
    assert code != 0 and "No plan was saved, as these are to be finished first: web1." in said, said
    assert not (tmp_path / "plan.json").exists()


def test_nodes_that_hold_no_vms_are_not_asked_what_moves_take(tmp_path):
    site = Site(tmp_path, hv1={"vm_capable": False}, hv2={"vms": {"web1": {}}}, hv3={})
    code, said = site.play("drain_node", "--check", node="hv2", drover_parallel=3)
    asked = [(call["where"], call["args"]["moves"]) for call in site.calls("migrate", check=True)]
    assert code == 0 and sorted(asked) == [("hv2", []), ("hv3", [])], said


def test_values_that_moves_do_not_take_are_refused_before_a_cordon(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={})
    refused = {"when": {"moves": [[], None]}, "failed": True, "msg": "parallel: 0 is too few"}
    site.answers["hv1"]["migrate"] = {"cases": [refused]}
    for mode in ([], ["--check"]):
        code, said = site.play("drain_node", *mode, node="hv1", drover_parallel=0)
        assert code != 0 and "parallel: 0 is too few" in said, said
        assert not site.calls("cordon") + site.calls("cordon", check=True)
    site.play("drain_node", "--check", node="hv1")
    assert not site.calls("migrate", check=True), "nothing is to be looked at"


@pytest.mark.parametrize("name", ["drain_node", "spread"])
def test_what_is_said_of_rebalance_for_all_playbooks_hinders_no_other(name, tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={})
    told = {"drover_max_moves": 5, "drover_max_memory_moved": "9GiB", "drover_threshold": 5, "drover_hold_off": 60}
    told |= {"drover_weights": {"hv1": 1, "hv2": 1, "hv3": 1}, "drover_come_home": True, "drover_require_off": False}
    code, said = site.play(name, "--check", **{"node": "hv1"} if "drain" in name else {}, **told)
    assert code == 0, said


def test_a_plan_and_facts_are_saved_where_they_are_said_to_be_and_with_the_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path / "site", hv1={"vms": {"web1": {}}}, hv2={})
    site.nodes["hv1"] = {"drover_pins": {"web1": ["hv1"]}}
    code, said = site.play("drain_node", "--check", node="hv2", drover_save_plan="plan.json")
    assert code == 0 and json.loads((tmp_path / "plan.json").read_text())["operation"] == "drain", said
    assert site.play("drain_node", "--check", node="hv2", drover_plan_file="plan.json")[0] == 0
    code, said = site.play("simulate", drover_save_facts="facts.yml")
    told = yaml.safe_load((tmp_path / "facts.yml").read_text())
    assert code == 0 and told["pins"] == {"web1": ["hv1"]} and len(told["nodes"]) == 2, said
    asked = {"drover_cluster_file": "facts.yml", "drover_operation": "drain", "node": "hv1"}
    assert "pinned" in site.play("simulate", **asked)[1]
    code, said = site.play("simulate", **asked, drover_pinz={})
    assert code != 0 and "No such variable: drover_pinz" in said, said
    site.answers = {name: {"node_info": HUNG} for name in site.answers}
    code, said = site.play("simulate", drover_save_facts="none.yml")
    assert code != 0 and "No hypervisor answers" in said and not (tmp_path / "none.yml").exists(), said
