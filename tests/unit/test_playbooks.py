# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks do and leave when a node, Ceph or an earlier run is not as it should be; the nodes are scripted."""

from __future__ import annotations

import pytest

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
    site.answers["hv2"] = {"node_info": "ssh: no route to host"}
    assert site.play("recover_migrations", drover_fenced=["hv2"])[0] == 0


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


def test_what_a_dead_node_left_defined_is_neither_stopped_nor_started_there(tmp_path):
    site = Site(tmp_path, hv1={"vms": {"web1": {}}}, hv2={}, hv3={"vms": {"web1": {"state": "stopped"}}})
    code, said = site.play("stop_vms")
    assert code == 0, said
    for module in ("stop_record", "vm"):
        assert [call["where"] for call in site.calls(module)] == ["hv1"]
    stopped = {"state": "stopped", "stopped": "outage"}
    site = Site(
        tmp_path / "morning", hv1={"vms": {"web1": stopped}}, hv2={}, hv3={"vms": {"web1": {"state": "stopped"}}}
    )
    code, said = site.play("start_vms")
    assert code == 0 and [call["where"] for call in site.calls("vm")] == ["hv1"], said
    site = Site(tmp_path / "twice", hv1={"vms": {"web1": stopped}}, hv2={}, hv3={"vms": {"web1": stopped}})
    code, said = site.play("start_vms")
    assert code != 0 and "web1 is off on two nodes" in said and site.calls("vm") == [], said


def with_ceph(folder, **nodes):
    """A site whose nodes all have OSDs; hv3 has the monitor that is asked."""
    site = Site(folder, **{"hv1": {}, "hv2": {}, "hv3": {}, **nodes})
    site.groups = {"ceph_osd": ["hv1", "hv2", "hv3"], "ceph_mon": ["hv3"]}
    return site


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
