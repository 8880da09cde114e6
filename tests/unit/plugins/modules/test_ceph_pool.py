# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ceph_pool against a monitor that keeps pools and has the real one's ways; the real one is in tests/lab."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _ceph
from ansible_collections.drover.kvm.plugins.modules import ceph_pool
from ansible_collections.drover.kvm.tests.unit import hostile
from ansible_collections.drover.kvm.tests.unit.ceph_monitor import Library, Monitor, Refusal

EC = {"erasure_profile": "k2m1", "erasure_k": 2, "erasure_m": 1, "failure_domain": "osd"}


@pytest.fixture
def monitor():
    return Monitor()


@pytest.fixture
def library(monitor, monkeypatch):
    found = Library(monitor)
    monkeypatch.setattr(_ceph, "rados", found)
    return found


@pytest.fixture
def run(library, capsys):
    def module(**args):
        with patch_module_args({"name": "vms", **args}), pytest.raises(SystemExit):
            ceph_pool.main()
        assert library.left_open == 0
        return json.loads(capsys.readouterr().out)

    return module


@pytest.fixture
def both(run, monitor):
    """The same call in check mode, for real, and again; returns the real result."""

    def calls(**args):
        there = args.get("rename_from", args.get("name", "vms")) in monitor.pools
        predicted = run(**args, _ansible_check_mode=True)
        told = len(monitor.told)
        real = run(**args)
        for key in ("changed", "actions", "diff", *(["pool"] if there else [])):
            assert predicted[key] == real[key]
        assert len(monitor.told) - told == len(real["actions"])
        again = run(**args)
        assert (again["changed"], again["actions"], again["pool"]) == (False, [], real["pool"])
        assert len(monitor.told) - told == len(real["actions"])
        return real

    return calls


@pytest.fixture
def refused(run, monitor):
    """The message of a call that fails alike in check mode and for real, and changes nothing."""

    def call(**args):
        before, told = json.dumps(monitor.pools), list(monitor.told)
        results = [run(**args, _ansible_check_mode=check) for check in (True, False)]
        assert [result.get("failed") for result in results] == [True, True]
        assert results[0]["msg"] == results[1]["msg"]
        assert (json.dumps(monitor.pools), monitor.told) == (before, told)
        return f"{results[0].get('error', 'by Ansible')}: {results[0]['msg']}"

    return call


def test_a_pool_from_nothing_to_nothing(both, monitor):
    made = both(size=2, crush_rule="hosts", failure_domain="host", applications=["rbd"], target_size_ratio=0.1)
    assert made["actions"] == [
        "make CRUSH rule hosts",
        "make replicated pool vms",
        "set target_size_ratio of vms to 0.1",
        "mark vms for application rbd",
    ]
    assert made["pool"]["crush_rule"] == "hosts"
    assert both(state="absent", confirm_name="vms")["actions"] == ["remove pool vms"]
    assert monitor.pools == {}


def test_a_missing_pool_is_absent_already(both):
    assert both(state="absent")["actions"] == []
    both()
    assert both(name="other", rename_from="vms", state="absent", confirm_name="vms")["actions"] == []


def test_an_empty_list_of_options_makes_the_clusters_default(both):
    assert both()["actions"] == ["make replicated pool vms"]


OPTIONS = [
    ({"size": 2}, ["set size of vms to 2", "set min_size of vms to 2"]),
    ({"min_size": 3}, ["set min_size of vms to 3"]),
    ({"size": 2, "min_size": 1, "accept_risk": True}, ["set size of vms to 2", "set min_size of vms to 1"]),
    ({"pg_autoscale_mode": "off", "pg_num": 64}, ["set pg_autoscale_mode of vms to off", "set pg_num of vms to 64"]),
    ({"pg_autoscale_mode": "warn"}, ["set pg_autoscale_mode of vms to warn"]),
    ({"pg_autoscale_bias": 4}, ["set pg_autoscale_bias of vms to 4.0"]),
    ({"pg_num_max": 64}, ["set pg_num_max of vms to 64"]),
    ({"pg_num_min": 1}, ["set pg_num_min of vms to 1"]),
    ({"target_size_ratio": 0.3}, ["set target_size_ratio of vms to 0.3"]),
    ({"target_size": "2TiB"}, ["set target_size of vms to 2TiB"]),
    ({"bulk": True}, ["set bulk of vms to true"]),
    ({"applications": ["rbd"]}, ["mark vms for application rbd"]),
    ({"applications": {"add": ["a"]}}, ["mark vms for application a"]),
    ({"quota_bytes": "500GiB"}, ["set quota_bytes of vms to 500GiB"]),
    ({"quota_objects": "10k"}, ["set quota_objects of vms to 10000"]),
    ({"compression_mode": "none"}, ["set compression_mode of vms to none"]),
    ({"compression_algorithm": "zstd"}, ["set compression_algorithm of vms to zstd"]),
    ({"compression_required_ratio": 0.875}, ["set compression_required_ratio of vms to 0.875"]),
    ({"compression_min_blob_size": "8KiB"}, ["set compression_min_blob_size of vms to 8KiB"]),
    ({"compression_max_blob_size": 65536}, ["set compression_max_blob_size of vms to 64KiB"]),
    ({"flags": ["nodelete", "noscrub"]}, ["set flag nodelete of vms", "set flag noscrub of vms"]),
    ({"crush_rule": "disks", "failure_domain": "osd"}, ["make CRUSH rule disks", "set crush_rule of vms to disks"]),
    ({"size": 1, "accept_risk": True}, ["set size of vms to 1", "set min_size of vms to 1"]),
]


@pytest.mark.parametrize(
    "options, actions", OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_each_option_of_a_pool_that_is_there(both, options, actions):
    both(accept_risk=True)
    if options.get("size") == 1:
        both(min_size=1, accept_risk=True)
    assert both(**options)["actions"] == actions


def test_every_option_is_tested():
    tested = {name for options, _actions in OPTIONS for name in options}
    elsewhere = {"name", "id", "rename_from", "state", "confirm_name", "type", "device_class", "crush_root"}
    elsewhere |= {"erasure_profile", "erasure_k", "erasure_m", "allow_ec_overwrites"}
    elsewhere |= {option.name for option in _ceph.OPTIONS}
    assert {field.name for field in ceph_pool.FIELDS} == tested | elsewhere


def test_what_is_not_given_stays(both, monitor):
    both(crush_rule="hosts", failure_domain="host", pg_autoscale_mode="warn", bulk=True, quota_bytes="1GiB")
    both(flags=["noscrub"], applications=["rbd", "x"])
    before = json.dumps(monitor.pools)
    assert both(applications={"add": ["rbd"]})["actions"] == []
    assert json.dumps(monitor.pools) == before


def test_min_size_stays_when_the_size_changes(both, monitor):
    both(size=3, min_size=1, accept_risk=True)
    both(size=4)
    assert monitor.pools["vms"]["min_size"] == 1


def test_a_ratio_of_32_bits_is_the_same_ratio(both, monitor):
    both(target_size_ratio=0.1)
    monitor.pools["vms"]["options"]["target_size_ratio"] = 0.10000000149011612
    assert both(target_size_ratio=0.1)["actions"] == []
    assert both(target_size_ratio=0)["actions"] == ["set target_size_ratio of vms to 0.0"]


def test_a_bias_of_0_is_the_1_of_a_pool_that_has_none(both, monitor):
    assert both(pg_autoscale_bias=0)["actions"] == ["make replicated pool vms"]
    raised = both(pg_autoscale_bias=2.5)
    assert raised["diff"]["before"] == {"pg_autoscale_bias": 1.0}
    assert raised["diff"]["after"] == {"pg_autoscale_bias": 2.5}
    assert both(bulk=True)["pool"]["pg_autoscale_bias"] == 2.5
    assert both(pg_autoscale_bias=0)["actions"] == ["set pg_autoscale_bias of vms to 1.0"]
    assert both(pg_autoscale_bias=1)["actions"] == []
    monitor.pools["vms"]["options"].clear()
    assert both(pg_autoscale_bias=1)["pool"]["pg_autoscale_bias"] == 1.0


def test_a_new_pool_gets_its_bias(both):
    made = both(pg_autoscale_bias=1000)
    assert made["actions"] == ["make replicated pool vms", "set pg_autoscale_bias of vms to 1000.0"]


def test_the_aim_is_compared_while_pgs_are_split(both, monitor):
    both(pg_autoscale_mode="off", pg_num=64)
    monitor.pools["vms"]["pg_num"] = 13
    assert both(pg_num=64)["actions"] == []


def test_pg_num_and_its_bounds_change_in_an_order_that_is_accepted(both):
    both(pg_autoscale_mode="off", pg_num=8, pg_num_min=4, pg_num_max=8)
    both(pg_num=64, pg_num_min=32, pg_num_max=128)
    both(pg_num=4, pg_num_min=2, pg_num_max=4)
    both(pg_num=16, pg_num_min=0, pg_num_max=0)


def test_bounds_that_the_present_number_breaks(both):
    assert both(pg_num_min=8)["pool"]["pg_num"] == 8
    assert both(pg_num_min=16)["actions"] == ["set pg_num of vms to 16", "set pg_num_min of vms to 16"]
    assert both(pg_num_min=0, pg_num_max=4)["actions"] == [
        "set pg_num_min of vms to 0",
        "set pg_num of vms to 4",
        "set pg_num_max of vms to 4",
    ]


def test_pg_num_is_the_autoscalers_while_it_is_on(both, run):
    both(pg_num=8)
    result = run(pg_num=32)
    assert result["actions"] == []
    assert "the autoscaler is on" in json.dumps(result["warnings"])
    assert "no power of two" in json.dumps(run(pg_autoscale_mode="off", pg_num=12)["warnings"])


def test_applications_are_a_set(both):
    both(applications={"add": ["foo", "bar"]})
    assert both(applications=["rbd"])["actions"] == [
        "mark vms for application rbd",
        "unmark vms for application bar",
        "unmark vms for application foo",
    ]
    assert both(applications={"remove": ["rbd", "foo"]})["pool"]["applications"] == []


def test_a_flag_is_taken_away_before_and_set_after_what_it_forbids(both):
    both(size=3, flags=["nosizechange"])
    assert both(size=2, flags=["nodelete"])["actions"] == [
        "take flag nosizechange from vms",
        "set size of vms to 2",
        "set min_size of vms to 2",
        "set flag nodelete of vms",
    ]


def test_an_erasure_coded_pool_with_its_profile_and_rule(both, monitor):
    made = both(**EC, device_class="hdd", allow_ec_overwrites=True, min_size=2)
    assert made["actions"] == [
        "make erasure code profile k2m1",
        "make erasure pool vms",
        "set min_size of vms to 2",
        "set allow_ec_overwrites of vms to true",
    ]
    assert monitor.profiles["k2m1"]["crush-device-class"] == "hdd"
    assert made["pool"]["size"] == 3
    assert both(crush_rule="parts", **EC)["actions"] == ["make CRUSH rule parts", "set crush_rule of vms to parts"]
    assert both(name="second", erasure_profile="k2m1")["actions"] == ["make erasure pool second"]


def test_a_pool_is_renamed_and_keeps_its_id(both, monitor):
    number = both(size=2)["pool"]["id"]
    assert both(name="disks", rename_from="vms", bulk=True)["actions"] == [
        "rename pool vms to disks",
        "set bulk of disks to true",
    ]
    assert monitor.pools["disks"]["pool_id"] == number
    assert both(name="disks", id=number)["actions"] == []


def test_a_rename_that_did_not_happen_is_found_out(run, monitor, monkeypatch):
    run(size=2)
    monkeypatch.setattr(monitor, "osd_pool_rename", lambda given: monitor.told.append("lost"))
    monkeypatch.setattr(ceph_pool, "RENAME_SECONDS", 0.2)
    result = run(name="disks", rename_from="vms")
    assert result["error"] == "TimedOut"
    assert "vms" in monitor.pools


def test_rename_is_refused_when_it_is_not_clear_what_is_meant(both, refused):
    both()
    both(name="disks")
    assert "both are there" in refused(name="disks", rename_from="vms")
    assert "NotFound: no pool x or y" in refused(name="y", rename_from="x").replace("y or x", "x or y")
    assert "has id 1, not 7" in refused(id=7)
    assert "has id 1, not 7" in refused(id=7, state="absent", confirm_name="vms")


REFUSED = [
    ({"name": ".dot"}, "is not a name for a pool"),
    ({"name": "a/b"}, "is not a name for a pool"),
    ({"name": "a b"}, "is not a name for a pool"),
    ({"name": "new", "size": 99}, "from 1 to 10"),
    ({"name": "new", "size": 0}, "from 1 to 10"),
    ({"name": "new", "size": 1}, "accept_risk"),
    ({"size": 1}, "accept_risk"),
    ({"min_size": 1}, "min_size 1 takes writes that only one disk has"),
    ({"name": "new", "size": 2, "min_size": 1}, "accept_risk"),
    ({"name": "new", "min_size": 2}, "needs its size"),
    ({"min_size": 4}, "more than its size 3"),
    ({"size": 1, "accept_risk": True}, "min_size 2 of pool vms is more than its size 1"),
    ({"type": "erasure"}, "is replicated and can't become erasure"),
    ({"erasure_profile": "default"}, "erasure"),
    ({"allow_ec_overwrites": True}, "for pools of type erasure"),
    ({"name": "ec", "type": "erasure", "size": 2}, "k + m parts"),
    ({"name": "ec", "erasure_profile": "nope"}, "no erasure code profile nope"),
    ({"name": "ec", "type": "erasure", "erasure_k": 2}, "needs erasure_profile"),
    ({"name": "ec", "erasure_profile": "default", "erasure_k": 4}, "has erasure_k 2, not 4"),
    ({"crush_rule": "nope"}, "no CRUSH rule nope"),
    ({"failure_domain": "host"}, "needs crush_rule"),
    ({"crush_rule": "replicated_rule", "failure_domain": "osd"}, "has failure_domain host, not osd"),
    ({"crush_rule": "racks", "failure_domain": "rack"}, "no rack below default"),
    ({"crush_rule": "ssds", "failure_domain": "osd", "device_class": "ssd"}, "no osd with OSDs of class ssd"),
    ({"crush_rule": "away", "failure_domain": "osd", "crush_root": "away"}, "no osd below away"),
    ({"pg_num_min": 64, "pg_num_max": 32}, "more than pg_num_max"),
    ({"pg_autoscale_mode": "off", "pg_num": 8, "pg_num_min": 16}, "not between"),
    ({"pg_num": 65537}, "from 1 to 65536"),
    ({"target_size_ratio": -1}, "out of range"),
    ({"name": "new", "pg_autoscale_bias": 1000.5}, "pg_autoscale_bias: 1000.5 is out of range"),
    ({"pg_autoscale_bias": -0.5}, "from 0 to 1000"),
    ({"pg_autoscale_bias": "nan"}, "from 0 to 1000"),
    ({"compression_required_ratio": 1.5}, "from 0 to 1"),
    ({"quota_objects": "10 apples"}, "not a number of objects"),
    ({"quota_bytes": "much"}, "not a size"),
    ({"applications": ["a b"]}, "not a name"),
    ({"flags": ["hashpspool"]}, "no flag of a pool"),
    ({"timeout": 0}, "from 1 to 60"),
]


@pytest.mark.parametrize("options, words", REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_refused_changes_nothing(both, refused, options, words):
    both()
    assert words in refused(**options)


def test_what_can_not_be_taken_back_is_refused(both, refused):
    both(**EC, allow_ec_overwrites=True)
    assert "can't be taken back" in refused(allow_ec_overwrites=False)
    assert "has the erasure code profile k2m1 for its life" in refused(erasure_profile="default")
    assert "can't become replicated" in refused(type="replicated")
    assert "is for replicated pools" in refused(crush_rule="replicated_rule")
    assert "is for erasure coded pools" in refused(name="new", crush_rule="vms")


def test_a_flag_that_stays_forbids_what_it_says(both, refused):
    both(pg_autoscale_mode="off", flags=["nosizechange", "nopgchange", "nodelete"])
    assert "flag nosizechange, so size can't be changed" in refused(size=2)
    assert "flag nopgchange, so pg_num can't be changed" in refused(pg_num=64)
    assert "protected by its flag nodelete" in refused(state="absent", confirm_name="vms")


def test_a_pool_goes_only_by_its_name_typed_again_and_empty(both, refused, monitor):
    both(applications=["rbd"])
    assert "only when confirm_name is vms too" in refused(state="absent")
    assert "only when confirm_name is vms too" in refused(state="absent", confirm_name="vm")
    sure = {"state": "absent", "confirm_name": "vms"}
    monitor.settings["mon_allow_pool_delete"] = "false"
    assert "ceph config set mon mon_allow_pool_delete true" in refused(**sure)
    monitor.settings["mon_allow_pool_delete"] = "true"
    monitor.objects["vms"] = ["rbd_directory", "rbd_id.web1", "rbd_header.1a", "rbd_data.1a.0"]
    assert "it holds images web1." in refused(**sure)
    monitor.objects["vms"] = ["rbd_directory", "rbd_trash", "rbd_header.1a"]
    assert "rbd trash ls" in refused(**sure)
    monitor.objects["vms"] = ["something"]
    assert "objects such as something" in refused(**sure)
    monitor.objects["vms"] = ["rbd_directory", "rbd_info", "rbd_trash"]
    assert both(**sure)["actions"] == ["remove pool vms"]


def test_a_risk_that_is_accepted_is_not_said(run):
    # The warnings of a process are never forgotten: those of other names may be there.
    assert "quiet" not in json.dumps(run(name="quiet", size=2, min_size=1, accept_risk=True).get("warnings", []))


def test_risks_are_said(run):
    run(name="one", size=3, min_size=1, accept_risk=True)
    assert "one copy left" in json.dumps(run(name="one", size=2)["warnings"])
    short = run(name="three", size=3, crush_rule="hosts", failure_domain="host")
    assert "wants 3 copies or parts, each on another host; there is 2" in json.dumps(short["warnings"])


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (22, "Failed", "osd pool set: bad today"),
        (1, "Refused", "osd pool set: bad today"),
        (2, "NotFound", "osd pool set: bad today"),
        (13, "Failed", "client.admin may not do this (bad today)"),
        (110, "Unreachable", "osd pool set: Ceph cluster ceph gives no answer"),
    ],
)
def test_the_monitors_own_words_are_kept(run, monitor, monkeypatch, number, error, words):
    run(size=3, min_size=1, accept_risk=True)

    def broken(_given):
        raise Refusal(number, "bad today")

    monkeypatch.setattr(monitor, "osd_pool_set", broken)
    result = run(size=2)
    assert (result["error"], result["changed"]) == (error, False)
    assert words in result["msg"]


def test_a_user_who_may_not_ask_the_monitors_for_a_setting_learns_it_from_their_refusal(run, monitor, monkeypatch):
    run()

    def denied(_given):
        raise Refusal(13, "access denied")

    def disabled(_given):
        raise Refusal(
            1, "pool deletion is disabled; you must first set the mon_allow_pool_delete config option to true"
        )

    monkeypatch.setattr(monitor, "config_get", denied)
    monkeypatch.setattr(monitor, "osd_pool_delete", disabled)
    result = run(state="absent", confirm_name="vms")
    assert (result["error"], result["changed"]) == ("Refused", False)
    assert "pool deletion is disabled" in result["msg"]


CONNECTIONS = [
    (110, {}, "Unreachable", "no monitor of 10.231.5.13 within 5 s"),
    (95, {}, "Refused", "no key of this user in /etc/ceph/ceph.client.admin.keyring"),
    (2, {"user": "client.x"}, "Refused", "can't be opened as client.x"),
    (13, {}, "Refused", "does not let client.admin in"),
    (22, {}, "Failed", "error connecting"),
    (0, {"cluster": "other"}, "NotFound", "/etc/ceph/other.conf can't be read"),
]


@pytest.mark.parametrize("failure, options, error, words", CONNECTIONS)
def test_a_cluster_that_can_not_be_opened(run, library, failure, options, error, words):
    library.failure = failure
    result = run(**options)
    assert (result["failed"], result["error"]) == (True, error)
    assert words in result["msg"]


def test_any_user_keyring_file_and_patience(run, library):
    run(user="client.pools", keyring="/root/pools.keyring", conf="/root/other.conf", timeout=3)
    times = dict.fromkeys(("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"), "3")
    assert library.opened == [
        {
            "name": "client.pools",
            "clustername": "ceph",
            "conffile": "/root/other.conf",
            "conf": {"keyring": "/root/pools.keyring", **times},
        }
    ]


def test_without_the_library_its_package_is_named(run, monkeypatch):
    monkeypatch.setattr(_ceph, "rados", None)
    assert "python3-rados" in run()["msg"]


FUZZED = [field for field in ceph_pool.FIELDS if field not in _ceph.OPTIONS]


@hostile.fuzz(FUZZED, {}, {"name": "old"}, {"name": "old", "state": "absent", "confirm_name": "old"}, EC, quick=25)
def test_any_input_gets_a_clear_answer(run, monitor, args):
    monitor.__init__()
    run(name="old")
    hostile.answered(run, lambda: json.dumps([monitor.pools, monitor.rules, monitor.profiles]), args)
