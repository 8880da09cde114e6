# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_session on a node of files: records, sessions, disks, and what is refused."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _initiator, _session, _session_san
from ansible_collections.drover.kvm.plugins.module_utils._blocks import Blocks
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._session_twins import Arrivals, Unit, twins
from ansible_collections.drover.kvm.plugins.modules import iscsi_session
from ansible_collections.drover.kvm.tests.unit import hostile
from ansible_collections.drover.kvm.tests.unit.iscsi_node import (
    IQN,
    MIB,
    PORTAL_6,
    PORTAL_A,
    PORTAL_B,
    SECRET,
    USER,
    Node,
)

CHAP = {"chap_user": USER, "chap_password": SECRET}
BOTH = {"target": IQN, "portals": [PORTAL_A, PORTAL_B], **CHAP}
LOGIN_A, LOGIN_B = f"log in at {PORTAL_A}", f"log in at {PORTAL_B}"
DISKS = "wait for the disks"
NEW_A, NEW_B = f"write the record at {PORTAL_A}", f"write the record at {PORTAL_B}"


@pytest.fixture
def node(tmp_path, monkeypatch):
    made = Node(tmp_path)
    made.export(IQN, 1)
    monkeypatch.setattr(_initiator, "run", made.run)
    monkeypatch.setattr(_initiator.socket, "create_connection", made.connect)
    monkeypatch.setattr(_session_san, "Initiator", partial(_initiator.Initiator, tmp_path))
    monkeypatch.setattr(_session_san, "Blocks", partial(Blocks, tmp_path))
    monkeypatch.setattr(Blocks, "capacity", lambda _self, name: made.capacity(name))
    monkeypatch.setattr(Blocks, "rescan", lambda _self, name: made.rescan(name))
    return made


@pytest.fixture
def run(node, capsys):
    def module(**args):
        with patch_module_args(args), pytest.raises(SystemExit):
            iscsi_session.main()
        output = capsys.readouterr()
        assert SECRET not in output.out + output.err and "AnotherSecret9" not in output.out + output.err
        return json.loads(output.out)

    return module


def both(run, **args):
    """The same call in check mode, for real, and again; returns the real result."""
    predicted = run(**args, _ansible_check_mode=True)
    real = run(**args)
    assert not real.get("failed"), json.dumps(real)
    for key in ("changed", "actions", "diff"):
        assert predicted[key] == real[key]
    again = run(**args)
    assert (again["changed"], again["actions"]) == (False, []), again
    return real


def test_one_volume_over_two_paths_and_away_again(run, node):
    made = both(run, **BOTH, multipath=True, replacement_timeout=5)
    assert made["actions"] == [NEW_A, LOGIN_A, NEW_B, LOGIN_B, DISKS]
    session = made["session"]
    assert session["initiator"] == "iqn.2026-11.org.example:hv1" and session["pending"] == {}
    assert session["portals"][PORTAL_A] == {"interface": "", "record": True, "state": "LOGGED_IN"}
    (device,) = session["devices"]
    wwid = node.san[IQN]["wwid"]
    assert device["path"] == f"/dev/disk/by-id/dm-uuid-mpath-{wwid}" and device["multipath"] == wwid
    assert (device["wwid"], device["serial"], device["size"], device["lun"]) == (wwid, wwid[8:], 64 * MIB, 1)
    assert [path["portal"] for path in device["paths"]] == [PORTAL_A, PORTAL_B]
    values = node.values(node.record(IQN, f"{PORTAL_A},1"))
    assert values["node.session.timeo.replacement_timeout"] == "5" and values["node.startup"] == "automatic"
    assert values["node.session.iscsi.FastAbort"] == "Yes", "iscsid.conf is the base of a record"
    gone = both(run, target=IQN, state="absent")
    assert gone["actions"] == [
        f"{verb} at {p}" for p in (PORTAL_A, PORTAL_B) for verb in ("log out", "remove the record")
    ]
    assert gone["session"] is None and node.sessions() == []


def test_thirty_volumes_take_one_discovery_for_each_portal(run, node):
    names = [f"iqn.2026-11.org.example:drover-vm{number}-0" for number in range(30)]
    for number, name in enumerate(names):
        node.export(name, number + 2)
    result = run(portals=[PORTAL_A, PORTAL_B], **CHAP, sessions=[{"target": name} for name in names])
    assert not result.get("failed"), result
    assert len(node.sessions()) == 60 and len(result["results"]) == 30
    assert len([words for words in node.calls if "discovery" in words]) == 2
    logins = [words for words in node.calls if "--login" in words]
    waits = [words for words in node.calls if words[0] == "udevadm"]
    assert (len(logins), len(waits), len(node.calls)) == (60, 30, 92), "one wait for a volume, after its logins"
    node.calls.clear()
    assert run(portals=[PORTAL_A, PORTAL_B], **CHAP, sessions=[{"target": name} for name in names])["changed"] is False
    assert node.calls == [], "a run without changes starts no process"


def test_few_want_the_lock_of_iscsiadm_at_one_time(run, node, monkeypatch):
    """It is no queue: with thirty at work, some did not come to it in 30 s."""
    at_work, seen = [], []

    def slow(words, **options):
        at_work.append(words)
        seen.append(sum(one[0] == "iscsiadm" for one in at_work))
        time.sleep(0.01)
        try:
            return node.run(words, **options)
        finally:
            at_work.remove(words)

    monkeypatch.setattr(_initiator, "run", slow)
    names = [f"iqn.2026-11.org.example:drover-vm{number}-0" for number in range(16)]
    for number, name in enumerate(names):
        node.export(name, number + 2)
    result = run(portals=[PORTAL_A, PORTAL_B], **CHAP, sessions=[{"target": name} for name in names])
    assert not result.get("failed") and len(node.sessions()) == 32
    assert 1 < max(seen) <= _initiator.AT_ONCE
    # Each reads the records of all, so that one that went meanwhile made it fail.
    alone: list[bool] = []

    def removing(words, **options):
        try:
            return slow(words, **options)
        finally:
            alone.extend(["delete" not in words or at_work == []])

    monkeypatch.setattr(_initiator, "run", removing)
    gone = run(state="absent", sessions=[{"target": name} for name in names])
    assert not gone.get("failed") and node.sessions() == [] and len(alone) > 60 and all(alone)


def test_the_list_of_portals_means_exactly_these(run, node):
    both(run, **BOTH)
    less = both(run, target=IQN, portals=[PORTAL_B])
    assert less["actions"] == [f"log out at {PORTAL_A}", f"remove the record at {PORTAL_A}"]
    assert node.sessions() == [(IQN, "10.231.7.10")]
    assert both(run, target=IQN, state="absent", portals=[PORTAL_A])["changed"] is False
    assert both(run, target=IQN, state="logged_out")["actions"] == [f"log out at {PORTAL_B}"]
    assert both(run, target=IQN)["actions"] == [LOGIN_B, DISKS], "the portals of the records are meant"


def test_a_session_without_a_record_is_left_alone_or_ended(run, node):
    both(run, **BOTH)
    node.record(IQN, f"{PORTAL_A},1").unlink()
    less = both(run, target=IQN, state="absent", portals=[PORTAL_B])
    assert less["actions"] == [f"log out at {PORTAL_B}", f"remove the record at {PORTAL_B}"]
    assert both(run, target=IQN, state="absent")["actions"] == [f"log out at {PORTAL_A}"]


def test_portals_are_compared_as_addresses_and_not_as_text(run, node):
    node.san[IQN]["portals"] = [PORTAL_6, "10.231.5.1:3260", PORTAL_A]
    both(run, target=IQN, portals=["[FD00:5:0::10]", "10.231.5.1"], **CHAP)
    assert sorted(address for _iqn, address in node.sessions()) == ["10.231.5.1", "fd00:5::10"]
    assert both(run, target=IQN, portals=[PORTAL_6, "10.231.5.1:3260", PORTAL_A])["actions"] == [NEW_A, LOGIN_A, DISKS]


def test_chap_is_compared_and_never_shown(run, node):
    both(run, **BOTH)
    node.san[IQN]["chap"] = (USER, "AnotherSecret9")
    changed = both(run, **{**BOTH, "chap_password": "AnotherSecret9"})
    assert changed["actions"] == [f"write the record at {portal} (chap_password)" for portal in (PORTAL_A, PORTAL_B)]
    assert changed["session"]["pending"] == {PORTAL_A: ["chap_password"], PORTAL_B: ["chap_password"]}
    assert len(node.sessions()) == 2, "sessions go on"
    mutual = both(run, target=IQN, mutual_chap_user="san", mutual_chap_password="MutualSecret1")
    assert mutual["actions"][0] == f"write the record at {PORTAL_A} (mutual_chap_password, mutual_chap_user)"
    values = node.values(node.record(IQN, f"{PORTAL_A},1"))
    assert values["node.session.auth.username_in"] == "san" and values["node.session.auth.authmethod"] == "CHAP"
    assert "mutual_chap_user" in both(run, target=IQN, mutual_chap_user="")["actions"][0]
    off = both(run, target=IQN, chap_user="")
    assert off["actions"][0] == f"write the record at {PORTAL_A} (chap_password, chap_user)"
    assert not [key for key in node.values(node.record(IQN, f"{PORTAL_A},1")) if "auth.password" in key]


def test_a_record_that_others_may_read_is_written_anew(run, node):
    both(run, **BOTH)
    os.chmod(node.record(IQN, f"{PORTAL_A},1"), 0o644)
    assert both(run, **BOTH)["actions"] == [f"{NEW_A} (file mode)"]
    assert node.record(IQN, f"{PORTAL_A},1").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "option, key, value",
    [
        ("startup", "node.startup", "manual"),
        ("startup", "node.startup", "onboot"),
        ("replacement_timeout", "node.session.timeo.replacement_timeout", 7),
        ("noop_interval", "node.conn[0].timeo.noop_out_interval", 2),
        ("noop_timeout", "node.conn[0].timeo.noop_out_timeout", 3),
        ("login_timeout", "node.conn[0].timeo.login_timeout", 9),
    ],
)
def test_a_setting_goes_into_the_record(run, node, option, key, value):
    both(run, **BOTH)
    changed = both(run, **BOTH, **{option: value})
    assert changed["actions"] == [f"{text} ({option})" for text in (NEW_A, NEW_B)]
    assert node.values(node.record(IQN, f"{PORTAL_A},1"))[key] == str(value)
    pending = {PORTAL_A: [option], PORTAL_B: [option]} if option.startswith("noop") else {}
    assert changed["session"]["pending"] == pending


def test_every_option_that_is_a_setting_has_a_line_in_its_table():
    """Without one it would be taken and do nothing; without its file in sysfs it would be pending for ever."""
    others = {"target", "state", "portals", "interfaces", "multipath", "same_units_as"}
    assert {field.name for field in iscsi_session.FIELDS} - others == set(_session.SETTINGS), "give it a line there"
    assert {line.key for line in _session.SETTINGS.values() if line.shown} <= set(_initiator.RUNNING)


def test_a_portal_is_bound_to_an_interface(run, node):
    both(run, **BOTH)
    bound = both(run, **BOTH, interfaces={PORTAL_A: "nic1"})
    assert bound["actions"] == [f"log out at {PORTAL_A}", f"remove the record at {PORTAL_A}", NEW_A, LOGIN_A, DISKS]
    assert bound["session"]["portals"][PORTAL_A]["interface"] == "nic1"
    values = node.values(node.record(IQN, f"{PORTAL_A},1", "nic1"))
    assert values["iface.net_ifacename"] == "nic1"
    assert "iface.net_ifacename = nic1" in (node.root / "var/lib/iscsi/ifaces/nic1").read_text(encoding="utf-8")
    assert both(run, **BOTH)["changed"] is False, "a portal that is not named stays bound"


def test_the_first_login_of_a_node_may_be_bound_already(run, node):
    bound = both(run, **BOTH, interfaces={PORTAL_A: "nic1", PORTAL_B: "nic2"})
    found = {portal: at["interface"] for portal, at in bound["session"]["portals"].items()}
    assert found == {PORTAL_A: "nic1", PORTAL_B: "nic2"}


def test_a_unit_that_grew_gets_its_new_size_everywhere(run, node):
    both(run, **BOTH, multipath=True)
    node.san[IQN]["size"] = 128 * MIB
    grown = both(run, target=IQN)
    assert grown["actions"] == ["take the new size of logical unit 1, 128MiB (64MiB before)"]
    assert grown["session"]["devices"][0]["size"] == 128 * MIB
    assert ["multipathd", "resize", "map", node.san[IQN]["wwid"]] in node.calls
    node.san[IQN]["size"] = 192 * MIB
    node.write("sys/class/iscsi_session/session1/state", "FAILED")
    waits = both(run, target=IQN)
    assert waits["changed"] is False and "taken when 10.231.5.10:3260 is back" in str(waits["warnings"])


def test_a_map_that_did_not_follow_its_paths_is_resized(run, node):
    both(run, **BOTH, multipath=True)
    node.san[IQN]["size"] = 128 * MIB
    for name in ("sdb", "sdc"):
        node.rescan(name)
    assert both(run, target=IQN)["actions"] == ["take the new size of logical unit 1, 128MiB (64MiB before)"]


def mount(node, top):
    number = node.text(node.root / f"sys/class/block/{top}/dev")
    node.write("proc/self/mountinfo", f"36 35 {number} / /srv/data rw - ext4 /dev/{top} rw\n")


def lvm(node, top):
    node.write("sys/class/block/dm-9/dev", "254:9")
    node.write("sys/class/block/dm-9/dm/uuid", "LVM-abc")
    node.write("sys/class/block/dm-9/dm/name", "vgsan-disk1")
    (node.root / f"sys/class/block/{top}/holders/dm-9").mkdir()


def swap(node, top):
    node.write("proc/swaps", f"Filename Type Size\n/dev/{top} partition 1\n")


@pytest.mark.parametrize(
    "use, words", [(mount, "the mount /srv/data"), (lvm, "the logical volume vgsan-disk1"), (swap, "swap")]
)
@pytest.mark.parametrize("multipath", [True, False])
def test_a_disk_in_use_keeps_its_last_path(run, node, use, words, multipath):
    node.multipathd = multipath
    both(run, **(BOTH if multipath else {**BOTH, "portals": [PORTAL_A]}))
    use(node, "dm-0" if multipath else node.disk(IQN))
    for args in ({"state": "absent"}, {"state": "logged_out"}):
        refused = run(target=IQN, **args)
        assert refused["error"] == "Refused" and f"is used by {words}; stop that first" in refused["msg"], refused
    if multipath:
        assert run(target=IQN, portals=[PORTAL_B])["changed"] is True
        assert run(target=IQN, state="absent")["error"] == "Refused"
        assert both(run, **BOTH)["actions"] == [NEW_A, LOGIN_A, DISKS]


def test_a_disk_that_a_process_has_open_stays(run, node, monkeypatch):
    both(run, **BOTH)
    node.write("proc/4711/comm", "qemu-system-x86")
    node.write("proc/4711/cmdline", "qemu-system-x86_64\0-name\0guest=web1,debug-threads=on\0")
    node.write("proc/4711/fd/7", "")
    node.write("proc/12/comm", "multipathd")
    node.write("proc/12/fd/3", "")
    monkeypatch.setattr("ansible_collections.drover.kvm.plugins.module_utils._blocks._number", lambda _path: "254:0")
    refused = run(target=IQN, state="absent")
    assert "is used by VM web1, process 4711 (qemu-system-x86); stop" in refused["msg"]


def test_a_broken_path_is_not_counted_on(run, node):
    both(run, **BOTH)
    mount(node, "dm-0")
    node.write("sys/class/iscsi_session/session2/state", "FAILED")
    assert run(target=IQN, portals=[PORTAL_B])["error"] == "Refused"
    node.deaf.add("10.231.7.10")
    assert run(**BOTH)["changed"] is False, "a broken session is one that the kernel mends"


@pytest.mark.parametrize(
    "args, words",
    [
        ({"target": "iqn.x"}, "not an iSCSI qualified name"),
        ({"portals": ["10.231.5.10:99999"]}, "a port is a number"),
        ({"portals": ["san1:3260"]}, "is not a portal"),
        ({"portals": ["fd00::10"]}, None),
        ({"portals": [PORTAL_A, "10.231.5.10"]}, "listed twice"),
        ({"portals": []}, "at least one"),
        ({"portals": None}, "portals is missing"),
        ({"chap_password": "elevenchars"}, "12 to 16"),
        ({"chap_password": None}, "chap_user is given without chap_password"),
        ({"mutual_chap_user": "san"}, "mutual_chap_user is given without mutual_chap_password"),
        ({"mutual_chap_user": "san", "mutual_chap_password": SECRET}, "are the same"),
        ({"interfaces": {"10.231.9.9": "nic1"}}, "none of its portals"),
        ({"interfaces": {PORTAL_A: "../x"}}, "not the name of a network interface"),
        ({"target": "iqn.2026-11.org.example:other"}, "does not offer iqn.2026-11.org.example:other to iqn."),
    ],
)
def test_what_is_refused_before_anything_is_done(run, node, args, words):
    given = {key: value for key, value in {**BOTH, **args}.items() if value is not None}
    result = run(**given)
    assert result["failed"] and result["changed"] is False
    assert words is None or words in result["msg"], result["msg"]
    assert node.sessions() == [] and not list((node.root / "var/lib/iscsi/nodes").iterdir())


MUTUAL = {"mutual_chap_user": "san", "mutual_chap_password": "AnotherSecret9"}
ITEM = {"target": IQN, "portals": [PORTAL_A], **CHAP, **MUTUAL}


@pytest.mark.parametrize(
    "sessions",
    [
        [{**ITEM, "chap_secret": "x"}],
        [{**ITEM, "startup": "sometimes"}],
        [{**ITEM, "portals": {"a": 1}}],
        [{**ITEM, "noop_interval": "soon"}],
        [{**ITEM, "chap_password": [SECRET]}],
        [{**ITEM, "sessions": [ITEM]}],
        [ITEM, f"target={IQN} chap_password={SECRET} startup"],
        [[ITEM]],
        [["a", ITEM]],
        {"first": ITEM},
        {"first": [{"second": ITEM}]},
        json.dumps([ITEM]),
        [json.dumps(ITEM)[:-1]],
    ],
)
def test_what_is_wrong_beside_a_secret_does_not_show_it(run, node, sessions):
    """The fixture looks for the secrets in all that the module says, what it was called with included."""
    assert run(sessions=sessions)["failed"] and node.sessions() == []
    assert run(**ITEM, sessions=sessions, bogus=1)["failed"]


def test_a_portal_that_does_not_answer(run, node):
    node.deaf.add("10.231.5.10")
    result = run(**BOTH)
    assert result["error"] == "Unreachable" and "10.231.5.10:3260 does not answer: Connection refused" in result["msg"]


def test_a_path_that_was_there_before_may_be_missing_while_another_one_works(run, node):
    """As on a node that was started while a portal is dead: the records are there, the sessions are not."""
    asked = {**BOTH, "multipath": True}
    both(run, **asked)

    def end(number):
        node.run(["iscsiadm", "-m", "session", "-r", str(number), "--logout"])

    end(2)
    node.deaf.add("10.231.7.10")
    left = both(run, **asked)
    assert left["changed"] is False and left["session"]["portals"][PORTAL_B]["state"] is None
    words = f"the portal {PORTAL_B} does not answer; what was logged in there before goes on without it"
    assert words in str(left["warnings"])
    assert run(**BOTH)["error"] == "Unreachable", "without multipath it is not told which path may be missing"
    end(1)
    assert both(run, **asked)["actions"] == [LOGIN_A, DISKS]
    node.write("sys/class/iscsi_session/session3/state", "FAILED")
    assert run(**asked)["error"] == "Unreachable", "no path works"
    node.deaf.clear()
    assert both(run, **asked)["actions"] == [LOGIN_B, DISKS]
    end(4)
    node.deaf.add("10.231.7.10")
    node.write("sys/class/iscsi_session/session3/state", "LOGGED_IN")
    assert run(**{**asked, "portals": [PORTAL_B]})["error"] == "Unreachable", "the path that works would go"


def test_a_new_path_is_wanted_in_full_with_multipath_too(run, node):
    both(run, **{**BOTH, "portals": [PORTAL_A]}, multipath=True)
    node.deaf.add("10.231.7.10")
    for check in (True, False):
        assert run(**BOTH, multipath=True, _ansible_check_mode=check)["error"] == "Unreachable"


def test_a_wrong_secret_is_the_sans_word_and_the_next_run_mends_it(run, node):
    node.san[IQN]["chap"] = (USER, "AnotherSecret9")
    failed = run(**BOTH)
    assert failed["error"] == "Failed" and "authorization failure" in failed["msg"]
    mended = run(**{**BOTH, "chap_password": "AnotherSecret9"})
    assert not mended.get("failed") and len(node.sessions()) == 2


def test_disks_are_waited_for_when_all_logins_are_done_and_the_portal_is_named(run, node, monkeypatch):
    both(run, **BOTH, multipath=True)
    order = [words[-1] if words[0] == "iscsiadm" else words[1] for words in node.calls if "-o" not in words]
    assert order == ["--login", "--login", "settle"]
    both(run, target=IQN, state="absent")
    monkeypatch.setattr(iscsi_session, "DISK_SECONDS", 0.2)
    monkeypatch.setattr(Blocks, "known_to_udev", lambda _self, name: name != node.disk(IQN))
    result = run(**BOTH)
    assert f"wait for the disks: not there after 0.2 s; last seen: at {PORTAL_A}: udev has not seen sd" in result["msg"]
    assert result["actions"] == [NEW_A, LOGIN_A, NEW_B, LOGIN_B]


def test_a_path_without_a_map_is_an_error_where_maps_are_asked_for(run, node, monkeypatch):
    monkeypatch.setattr(iscsi_session, "DISK_SECONDS", 0.2)
    node.multipathd = False
    assert "a path is in no multipath map" in run(**BOTH, multipath=True)["msg"]


def test_a_lock_that_stays_is_named(run, node, monkeypatch):
    monkeypatch.setattr(_initiator, "LOCK_SECONDS", 0.1)
    node.write("run/lock/iscsi/lock.write", "")
    node.write("proc/4711/comm", "iscsiadm\n")
    result = run(**BOTH)
    assert result["error"] == "TimedOut" and "lock.write" in result["msg"]


def test_a_lock_that_a_killed_run_has_left_is_cleared(run, node, monkeypatch):
    """iscsiadm itself would wait for it in vain, until the node starts anew."""
    monkeypatch.setattr(_initiator, "LOCK_SECONDS", 0.3)
    node.write("run/lock/iscsi/lock", "")
    os.link(node.root / "run/lock/iscsi/lock", node.root / "run/lock/iscsi/lock.write")
    assert run(**BOTH)["changed"] and len(node.sessions()) == 2
    assert not (node.root / "run/lock/iscsi/lock.write").exists()


def test_a_lock_that_changes_hands_is_waited_for_and_left_alone(node, monkeypatch):
    """Also when it is another one by the time that it is to be cleared."""
    monkeypatch.setattr(_initiator, "LOCK_SECONDS", 0.3)
    initiator = _initiator.Initiator(node.root)
    lock, held = node.root / "run/lock/iscsi/lock", node.root / "run/lock/iscsi/lock.write"
    node.write("run/lock/iscsi/lock", "")
    os.link(lock, held)
    stale = held.stat().st_ctime_ns
    while held.stat().st_ctime_ns == stale:  # the clock of the file system goes in steps
        held.unlink()
        os.link(lock, held)
    assert initiator._clear(lock, held, stale) is False and held.exists()
    assert initiator._clear(lock, held, held.stat().st_ctime_ns) is True and not held.exists()


def test_two_records_at_one_portal_are_not_ours_to_choose_from(run, node):
    both(run, **BOTH)
    record = node.record(IQN, f"{PORTAL_A},1")
    other = record.read_text(encoding="utf-8").replace("ifacename = default", "ifacename = nic9")
    node.write(f"var/lib/iscsi/nodes/{IQN}/10.231.5.10,3260,1/nic9", other)
    assert "more than one record or session" in run(**BOTH)["msg"]


def test_the_records_of_debian_12_are_below_etc(run, node):
    node.write("usr/sbin/iscsiadm", "\0/etc/iscsi/nodes\0")
    run(**BOTH, state="logged_out")
    assert list((node.root / "etc/iscsi/nodes" / IQN).iterdir())


CLONE = "iqn.2026-11.org.example:drover-web1-clone"
TWINS = {"sessions": [{"target": IQN}, {"target": CLONE}], "portals": [PORTAL_A, PORTAL_B], **CHAP}


def export_clone(node, **options):
    """The SAN has a copy of the volume, with its serial."""
    node.export(CLONE, 7, **{"wwid": node.san[IQN]["wwid"], **options})


@pytest.mark.parametrize("multipath", [True, False])
def test_a_clone_with_the_wwid_of_a_volume_that_is_there_is_logged_out_at_once(run, node, multipath):
    both(run, **BOTH)
    export_clone(node)
    before = node.sessions(), node.blocks()
    node.calls.clear()
    refused = run(**{**BOTH, "target": CLONE}, multipath=multipath)
    assert refused["error"] == "Refused" and refused["details"]["wwid"] == node.san[IQN]["wwid"]
    for words in (f"logical unit 1 of {CLONE} (sdd)", f"logical unit 1 of {IQN} (sdb)", "serial of its own"):
        assert words in refused["msg"], refused["msg"]
    assert f"Logged out again: {CLONE}" in refused["msg"]
    assert (node.sessions(), node.blocks()) == before
    verbs = [words[-1] for words in node.calls if "discovery" not in words]
    assert verbs == ["--login", "--logout", "delete"], "at the first path, before a second one comes"
    assert not list((node.root / f"var/lib/iscsi/nodes/{CLONE}").glob("*/*")), "it does not come with the next boot"
    assert run(**{**BOTH, "target": CLONE})["failed"] and (node.sessions(), node.blocks()) == before
    node.san[CLONE]["wwid"] = f"36001405{7:025x}"
    both(run, **{**BOTH, "target": CLONE})


def test_a_clone_is_found_before_the_kernel_has_made_a_disk_of_it(run, node):
    both(run, **BOTH)
    export_clone(node)
    node.late = True
    refused = run(**{**BOTH, "target": CLONE})
    assert f"logical unit 1 of {CLONE} (3:0:0:1)" in refused["msg"] and f"Logged out again: {CLONE}" in refused["msg"]
    assert len(node.sessions()) == 2 and not [words for words in node.calls[-3:] if words[0] == "udevadm"]


def test_a_record_that_was_there_stays_as_it_was(run, node):
    both(run, **BOTH)
    export_clone(node)
    both(run, **{**BOTH, "target": CLONE}, state="logged_out", startup="manual")
    records = {path: path.read_text(encoding="utf-8") for path in node.root.glob("var/lib/iscsi/nodes/*/*/*")}
    assert "Logged out again: " in run(**{**BOTH, "target": CLONE}, startup="onboot")["msg"]
    assert {path: path.read_text(encoding="utf-8") for path in records} == records


def test_two_new_twins_are_both_logged_out_for_nobody_knows_which_one_is_the_clone(run, node):
    export_clone(node)
    failed = run(**TWINS)
    assert failed["failed"] and f"Logged out again: {IQN}, {CLONE}" in failed["msg"]
    assert node.sessions() == [] and node.blocks() == []
    assert all(not one["session"] or not one["session"]["devices"] for one in failed["results"])
    assert not list((node.root / "var/lib/iscsi/nodes").glob("*/*/*"))


def test_a_login_that_is_under_way_when_its_target_is_refused_is_taken_back_too(node, monkeypatch):
    export_clone(node)
    initiator = _initiator.Initiator(node.root)
    arrivals = Arrivals(initiator)
    login = initiator.login

    def record(target, text):
        portal = _initiator.parse_portal(text)
        values = {**_initiator.new_values(target, portal, 1, ""), **initiator.defaults()}
        chap = {"authmethod": "CHAP", "username": USER, "password": SECRET}
        values.update({f"node.session.auth.{key}": value for key, value in chap.items()})
        found = _initiator.Record(target, portal, 1, "", values)
        initiator.write(found)
        return found

    def late(one):
        with pytest.raises(Refused, match="Logged out again"):
            arrivals.check_new(CLONE, [])
        initiator.write(one)
        login(one)

    for target in (IQN, CLONE):
        arrivals.log_in(record(target, PORTAL_A), None)
    monkeypatch.setattr(initiator, "login", late)
    arrivals.log_in(record(IQN, PORTAL_B), None)
    assert node.sessions() == [(IQN, "10.231.7.10")], "the other thread could not see it"
    with pytest.raises(Refused, match="Logged out again"):
        arrivals.check_new(IQN, [])
    assert node.sessions() == [] and not list(node.root.glob("var/lib/iscsi/nodes/*/*/*"))


class InOrder:
    """A lock that is given to those who ask in their order."""

    def __init__(self):
        self.turn, self.asked, self.served = threading.Condition(), 0, 0

    def __enter__(self):
        with self.turn:
            mine, self.asked = self.asked, self.asked + 1
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.served == mine)

    def __exit__(self, *_error):
        with self.turn:
            self.served += 1
            self.turn.notify_all()

    def waits(self, threads):
        with self.turn:
            assert self.turn.wait_for(lambda: self.asked == threads, 60)


class Seen:
    """Units of an initiator; the first look at them goes on when it may."""

    def __init__(self):
        self.there, self.looks = [(IQN, 1, "sdb", "naa.6001")], []
        self.began, self.may = threading.Event(), threading.Event()

    def units(self):
        found = list(self.there)
        self.looks.append(len(found))
        self.began.set()
        assert self.may.wait(60)
        return found

    def sessions(self, _target):
        return []

    def delete(self, _record):
        self.there.pop()


@pytest.mark.parametrize(
    ("wwid", "looks"),
    [
        pytest.param("naa.6002", [1, 2], id="one look answers all who wait"),
        pytest.param("naa.6001", [1, 2, 1], id="but not once it was taken back"),
    ],
)
def test_a_look_that_began_before_a_login_says_nothing_of_it(wwid, looks):
    seen = Seen()
    arrivals = Arrivals(seen)
    arrivals.lock = InOrder()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(arrivals.check_new, IQN, [])
        assert seen.began.wait(60)
        seen.there.append((CLONE, 1, "sdc", wwid))
        arrivals.made[CLONE] = [(None, None)]
        later = []
        for target in (CLONE, IQN):
            later.append(pool.submit(arrivals.check_new, target, []))
            arrivals.lock.waits(1 + len(later))
        seen.may.set()
        refused = isinstance(later[0].exception(), Refused)
        for one in (first, later[1]):
            one.result()
    assert (seen.looks, refused) == (looks, len(looks) == 3)


def test_twins_that_are_there_already_are_told_and_left_to_the_user(run, node):
    both(run, **BOTH)
    export_clone(node, wwid=f"36001405{7:025x}")
    both(run, **{**BOTH, "target": CLONE})
    for unit in node.root.glob("sys/class/iscsi_session/session*/device/target*/*:1"):
        unit.joinpath("wwid").write_text(f"naa.{node.san[IQN]['wwid'][1:]}\n", encoding="ascii")
    for check in (True, False):
        refused = run(**TWINS, _ansible_check_mode=check)
        assert refused["error"] == "Refused" and "This run logged in to neither" in refused["msg"]
    assert len(node.sessions()) == 4
    for target in (CLONE, IQN):
        assert run(target=target, state="absent")["changed"], "that is the mend"


def test_the_targets_of_one_arrays_controllers_may_share_their_units(run, node):
    export_clone(node)
    ways = {"same_units_as": [IQN, CLONE]}
    made = run(**TWINS, **ways)
    assert not made.get("failed"), made["msg"]
    assert len(node.sessions()) == 4
    assert run(**TWINS, **ways)["changed"] is False
    assert "have the same WWID" in run(**TWINS)["msg"]


def test_a_clone_in_the_target_of_its_origin_is_found_by_its_number():
    units = [Unit(IQN, 1, "sdb", "36001"), Unit(IQN, 1, "sdc", "36001")]
    units += [Unit(CLONE, 1, "sdd", ""), Unit(CLONE, 2, "sde", "")]
    assert twins(units, IQN, []) is None and twins(units, CLONE, []) is None
    copy = Unit(IQN, 2, "sdf", "36001")
    assert twins([*units, copy], IQN, [IQN]) == (units[0], copy)
    other = Unit(CLONE, 2, "sdf", "36001")
    assert twins([*units, other], IQN, [CLONE]) == (units[0], other), "another number is another volume"
    assert twins([*units, copy], CLONE, []) is None, "twins of others are not this task's"


# Another account than that of the target is refused by the SAN itself, which has no way to ask it before.
FUZZED = [field for field in iscsi_session.FIELDS if "chap" not in field.name]


@hostile.fuzz(FUZZED, BOTH, {"target": IQN, "state": "absent"}, {"target": IQN}, quick=20)
def test_any_input_gets_a_clear_answer(run, node, args):
    run(**BOTH, state="logged_out")

    def look():
        return node.sessions(), {path: path.read_text() for path in node.root.glob("var/lib/iscsi/nodes/*/*/*")}

    hostile.answered(run, look, args)
    run(target=IQN, state="absent")
