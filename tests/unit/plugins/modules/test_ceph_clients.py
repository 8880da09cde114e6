# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules ceph_user and ceph_maintenance against a monitor that remembers what it was told."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._ceph import OPTIONS
from ansible_collections.drover.kvm.plugins.module_utils._errors import NotFound, Refused
from ansible_collections.drover.kvm.plugins.modules import ceph_maintenance, ceph_user
from ansible_collections.drover.kvm.tests.unit import hostile

FSID = "5a1fb9a4-6a4c-4b0e-9f0c-0d7b1c9b8f11"
KEY = "AQDcanaryDROVERcanary=="
PROFILE = {"mon": "profile rbd", "osd": "profile rbd pool=vms", "mgr": "profile rbd pool=vms"}


class Monitor:
    """Users, OSDs, flags and keys of a cluster; `log` is what changed it."""

    def __init__(self):
        self.users = {"client.admin": {"mon": "allow *", "osd": "allow *"}}
        self.hosts = {"hv1": [0, 1], "hv2": [2, 3], "empty": []}
        self.down, self.out = set(), set()
        self.monitors = {"a": "q1", "b": "hv1", "c": "hv2"}
        self.flags = {}
        self.keys = {}
        self.slow = ""
        self.log = []

    def ask(self, prefix, **said):
        return getattr(self, "ask_" + prefix.replace(" ", "_").replace("-", "_"))(**said)

    def tell(self, prefix, **said):
        self.log.append(prefix)
        return getattr(self, "tell_" + prefix.replace(" ", "_").replace("-", "_"))(**said)

    def ask_auth_get(self, entity):
        if entity not in self.users:
            raise NotFound(f"auth get: failed to find {entity} in keyring")
        return [{"entity": entity, "key": KEY, "caps": self.users[entity]}]

    def tell_auth_add(self, entity, caps):
        self.users[entity] = dict(zip(caps[::2], caps[1::2]))

    tell_auth_caps = tell_auth_add

    def tell_auth_rm(self, entity):
        del self.users[entity]

    def ask_mon_dump(self):
        vector = [{"type": "v2", "addr": "10.231.5.13:3300"}, {"type": "v1", "addr": "10.231.5.13:6789"}]
        return {"fsid": FSID, "mons": [{"name": "q1", "public_addrs": {"addrvec": vector}}]}

    def ask_osd_tree(self):
        nodes = [{"type": "host", "name": name, "children": osds} for name, osds in self.hosts.items()]
        return {"nodes": [{"type": "root", "name": "default", "children": [-2, -3]}, *nodes]}

    def ask_osd_dump(self):
        every = [osd for osds in self.hosts.values() for osd in osds]
        osds = [{"osd": osd, "up": int(osd not in self.down), "in": int(osd not in self.out)} for osd in every]
        return {"osds": osds, "crush_node_flags": {host: sorted(flags) for host, flags in self.flags.items()}}

    def ask_osd_ok_to_stop(self, ids):
        # Two copies, one a host: data is there as long as one host is whole.
        gone = self.down | {int(one) for one in ids}
        if all(gone & set(osds) for osds in self.hosts.values() if osds):
            raise Refused("osd ok-to-stop: unsafe to stop osd(s) at this time (8 PGs are or would become offline)")
        return {"ok_to_stop": True}

    def ask_health(self, detail):
        assert detail == "detail"
        found = {"severity": "HEALTH_WARN", "summary": {"message": self.slow, "count": 1}, "muted": False}
        return {"status": "HEALTH_WARN", "checks": {"SLOW_OPS": found} if self.slow else {}, "mutes": []}

    def ask_mon_metadata(self):
        # Of a monitor that was down since the others started they know the name.
        return [{"name": name, **({"hostname": host} if host else {})} for name, host in self.monitors.items()]

    def ask_mon_ok_to_stop(self, ids):
        if len([name for name, host in self.monitors.items() if host and name not in ids]) < 2:
            raise Refused(f"mon ok-to-stop: not enough monitors would be available after stopping mons {ids}")

    def ask_config_key_get(self, key):
        if key not in self.keys:
            raise NotFound(f"config-key get: error obtaining '{key}'")
        return json.loads(self.keys[key])

    def tell_config_key_set(self, key, val):
        self.keys[key] = val

    def tell_config_key_rm(self, key):
        self.keys.pop(key, None)

    def tell_osd_set_group(self, flags, who):
        for host in who:
            self.flags.setdefault(host, set()).add(flags)

    def tell_osd_unset_group(self, flags, who):
        for host in who:
            self.flags.get(host, set()).discard(flags)


@pytest.fixture
def monitor(monkeypatch):
    found = Monitor()

    @contextmanager
    def connect(_options):
        yield found

    for module in (ceph_user, ceph_maintenance):
        monkeypatch.setattr(module, "connect", connect)
    return found


@pytest.fixture
def run(capsys):
    def play(module, **args):
        with patch_module_args(args), pytest.raises(SystemExit):
            module.main()
        text = capsys.readouterr().out
        return {**json.loads(text), "text": text}

    return play


@pytest.fixture
def both(run, monitor):
    """The real run; check mode said the same and told the monitor nothing, and a second run does nothing."""

    def play(module, **args):
        predicted = run(module, **args, _ansible_check_mode=True)
        assert monitor.log == []
        real = run(module, **args)
        assert not real.get("failed"), real
        assert (predicted["changed"], predicted["actions"]) == (real["changed"], real["actions"])
        monitor.log.clear()
        assert run(module, **args)["actions"] == [] and monitor.log == []
        return real

    return play


def test_a_user_has_the_profile_on_its_pools_and_nothing_else(monitor, both):
    made = both(ceph_user, name="libvirt", pools=["vms"])
    assert made["actions"] == ["make client.libvirt with profile rbd on vms"]
    assert monitor.users["client.libvirt"] == PROFILE
    assert made["cluster"] == {"fsid": FSID, "monitors": ["10.231.5.13:6789"]}
    assert KEY not in made["text"]
    more = both(ceph_user, name="client.libvirt", pools=["vms", "fast/shop"])
    assert more["user"]["caps"]["osd"] == "profile rbd pool=fast namespace=shop, profile rbd pool=vms"
    assert both(ceph_user, name="libvirt", state="absent")["actions"] == ["remove client.libvirt"]


def test_the_key_is_shown_only_when_it_is_asked_for(monitor, run):
    assert run(ceph_user, name="libvirt", pools=["vms"], show_key=True, _ansible_check_mode=True)["key"] is None
    assert run(ceph_user, name="libvirt", pools=["vms"], show_key=True)["key"] == KEY
    assert KEY not in run(ceph_user, name="libvirt", pools=["vms"], _ansible_diff=True)["text"]


@pytest.mark.parametrize(
    "args, words",
    [
        ({"name": "admin", "pools": ["vms"]}, "other rights than those of images"),
        ({"name": "admin", "state": "absent"}, "other rights than those of images"),
        ({"name": "libvirt"}, "pools is missing"),
        ({"name": "libvirt", "pools": []}, "at least one pool"),
        ({"name": "libvirt", "pools": ["vms, allow *"]}, "not a valid name"),
        ({"name": "lib virt", "pools": ["vms"]}, "not a valid name"),
    ],
)
def test_a_user_that_is_refused(monitor, run, args, words):
    result = run(ceph_user, **args)
    assert result["failed"] and words in result["msg"]
    assert monitor.log == []


def test_maintenance_begins_and_ends(monitor, both, run):
    begun = both(ceph_maintenance, hosts=["hv1"], reason="dimm", by="alice")
    assert begun["actions"] == ["set noout for hv1 (osd.0, osd.1)"]
    (host,) = begun["maintenance"]
    assert (host["noout"], host["up"], host["mark"]["by"]) == (True, [0, 1], "alice")
    monitor.down = {0, 1}
    assert run(ceph_maintenance, hosts=["hv1"])["changed"] is False
    monitor.down = set()
    assert both(ceph_maintenance, hosts=["hv1"], state="ended")["changed"]
    assert monitor.flags == {"hv1": set()} and monitor.keys == {}


def test_the_flag_goes_although_the_osds_stay_down(monitor, run):
    run(ceph_maintenance, hosts=["hv1"])
    monitor.down = {1}
    result = run(ceph_maintenance, hosts=["hv1"], state="ended", wait=0)
    assert result["failed"] and "osd.1 down" in result["msg"]
    assert monitor.flags == {"hv1": set()} and monitor.keys == {}


def test_an_end_that_had_nothing_to_take_away_waits_for_the_osds_too(monitor, run, monkeypatch):
    monitor.down = {1}
    for _time in range(2):
        result = run(ceph_maintenance, hosts=["hv1"], state="ended", wait=0)
        assert result["failed"] and "wait until osd.1 is up: not there" in result["msg"] and monitor.log == []
    monitor.out = {1}
    assert run(ceph_maintenance, hosts=["hv1"], state="ended", wait=0)["changed"] is False
    monitor.out = set()
    monkeypatch.setattr("time.sleep", lambda _seconds: monitor.down.clear())
    assert run(ceph_maintenance, hosts=["hv1"], state="ended", wait=5)["maintenance"][0]["up"] == [0, 1]


@pytest.mark.parametrize("down, hosts", [({2}, ["hv1"]), (set(), ["hv1", "hv2"])])
def test_osds_that_may_not_stop(monitor, run, down, hosts):
    monitor.down = down
    result = run(ceph_maintenance, hosts=hosts, wait=0)
    assert result["failed"] and result["error"] == "Refused"
    assert "unsafe to stop" in result["msg"] and "Ceph has healed" in result["msg"]
    assert monitor.log == [] and monitor.flags == {}


@pytest.mark.parametrize("hosts", [["hv1"], ["hv2"]])
def test_osds_may_not_stop_while_operations_wait_and_an_end_does_not_ask(monitor, run, hosts):
    monitor.slow = "3 slow ops, oldest one blocked for 33 sec, osd.0 has slow ops"
    for mode in ({"_ansible_check_mode": True}, {}):
        result = run(ceph_maintenance, hosts=hosts, wait=0, **mode)
        assert result["failed"] and result["error"] == "Refused" and "may not stop now" in result["msg"]
        assert monitor.slow in result["msg"] and "mend or stop that one" in result["msg"]
    assert monitor.log == [] and monitor.flags == {}
    monitor.keys, monitor.flags = {f"drover/maintenance/{hosts[0]}": "{}"}, {hosts[0]: {"noout"}}
    assert run(ceph_maintenance, hosts=hosts, state="ended", wait=0)["changed"] and monitor.keys == {}
    # A host whose OSDs are down already has nothing to ask for.
    monitor.down = {0, 1} if hosts == ["hv1"] else {2, 3}
    assert run(ceph_maintenance, hosts=hosts, wait=0)["changed"]


def test_a_monitor_whose_loss_would_leave_no_majority_may_not_stop(monitor, run):
    monitor.monitors["a"] = None
    result = run(ceph_maintenance, hosts=["hv1"], wait=0)
    assert result["failed"] and "mon.b of hv1 may not stop now" in result["msg"] and "not enough" in result["msg"]
    assert monitor.log == [] and monitor.flags == {}
    # The monitor says the whole name of its host, and CRUSH has the first part.
    monitor.monitors["b"] = "hv1.example.org"
    assert "mon.b of hv1 may not stop now" in run(ceph_maintenance, hosts=["hv1"], wait=0)["msg"]
    # A cluster whose monitors are elsewhere is not asked about them.
    monitor.monitors = {"a": "q1"}
    assert run(ceph_maintenance, hosts=["hv1"])["changed"]


def test_a_run_that_was_cut_off_is_ended_by_its_mark_and_a_flag_of_others_stays(monitor, run):
    monitor.keys["drover/maintenance/hv1"] = "{}"
    monitor.flags = {"hv1": {"noout"}, "hv2": {"noout"}}
    assert run(ceph_maintenance, hosts=["hv2"])["changed"] is False
    assert run(ceph_maintenance, hosts=["hv1", "hv2"], state="ended")["changed"]
    assert monitor.flags == {"hv1": set(), "hv2": {"noout"}} and monitor.keys == {}


@pytest.mark.parametrize("host", ["hv9", "empty"])
def test_a_host_without_osds(monitor, run, host):
    result = run(ceph_maintenance, hosts=[host])
    assert result["failed"] and f"no host {host} with OSDs (hosts with OSDs: hv1, hv2)" in result["msg"]


OPERATED = [(ceph_user, {"name": "libvirt", "pools": ["vms"]}), (ceph_maintenance, {"hosts": ["hv1"]})]


@pytest.mark.parametrize("module, base", OPERATED, ids=["user", "maintenance"])
def test_any_input_gets_a_clear_answer(run, monitor, module, base):
    def look():
        return json.dumps([monitor.users, monitor.flags, monitor.keys], default=sorted)

    @hostile.fuzz([field for field in module.FIELDS if field not in OPTIONS], base, {**base, "wait": 1}, quick=20)
    def check(args):
        monitor.__init__()
        hostile.answered(partial(run, module), look, {"wait": 1, **args} if module is ceph_maintenance else args)

    check()
