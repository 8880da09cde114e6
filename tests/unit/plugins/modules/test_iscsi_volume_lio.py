# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_volume on LIO: rtslib and LVM are fakes with a state (tests/soak/test_lio.py has the real ones)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _lvm, _resource, _target_lio, _units
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._volume_file import MARK, MIB
from ansible_collections.drover.kvm.plugins.modules import iscsi_volume
from ansible_collections.drover.kvm.tests.unit import lio_fake, lvm_fake
from ansible_collections.drover.kvm.tests.unit.volume_runs import VolumeRuns, done, refused

PREFIX = "iqn.2026-11.test.drover"
IQN = f"{PREFIX}:a"
HOST, OTHER = f"{PREFIX}:hv1", f"{PREFIX}:hv2"
SECRET, MUTUAL = "hidden-Canary1", "hidden-Canary2"
UUID = "7a1ee0a7-4b9c-5d8e-9d55-08a1b6cf3a52"
STORES = {
    "file": {"store": "file"},
    "lvm": {"store": "lvm", "vg": "vg0"},
    "lvm_thin": {"store": "lvm_thin", "vg": "vg0", "thin_pool": "pool0"},
}


class San(VolumeRuns):
    """LIO and LVM as fakes, and the module as Ansible runs it."""

    given: ClassVar[dict[str, Any]] = {"backend": "lio"}
    made: ClassVar[dict[str, Any]] = {"iqn_prefix": PREFIX, "size": "2MiB", "initiators": [HOST]}

    def __init__(self, base: Path, capsys, patch):
        self.base, self.capsys, self.patch = base, capsys, patch
        self.data, self.conf, self.devices = base / "srv", base / "lio", base / "vg0"
        for path in (self.data / "images", self.conf, self.devices, base / "cfs"):
            path.mkdir(parents=True)
        self.lio, self.lvm = lio_fake.Kernel(base / "cfs"), lvm_fake.Lvm(self.devices)
        patch.setattr(_target_lio, "rtslib", self.lio.module)
        patch.setattr(_lvm, "run", self.lvm.run)
        patch.setattr(_lvm, "run_json", self.lvm.report)
        patch.setattr(_lvm, "DEVICES", str(base))

    def state(self):
        files = {str(path): path.read_bytes() for path in self.base.rglob("*") if path.is_file()}
        return self.lio.state(), files, json.dumps(self.lvm.volumes)

    def group(self, name="a"):
        return self.lio.group(f"{PREFIX}:{name}")

    def log_in(self, name="a", initiator=HOST, user="", password=""):
        return self.lio.log_in(f"{PREFIX}:{name}", initiator, user, password)

    def restart(self):
        self.lio.restart(json.loads((self.conf / "saveconfig.json").read_text()))


@pytest.fixture
def san(capsys, monkeypatch):
    base = Path(tempfile.mkdtemp(prefix="drover-lio-", dir="/var/tmp"))
    yield San(base, capsys, monkeypatch)
    shutil.rmtree(base)


def mark(san):
    return json.loads(os.getxattr(san.data / "a.img", MARK))


def made_serial(san):
    return san.lio.stores["fileio", "a"].wwn


THIN = STORES["lvm_thin"]
# One row per option: the options of a volume before, what is asked then (None: it is made), what must be seen of it.
ROWS = {
    "name": ({}, {"name": "b"}, lambda san: f"{PREFIX}:b" in san.lio.targets),
    "backend": ({}, None, lambda san: IQN in san.lio.targets),
    "state": ({}, {"state": "absent"}, lambda san: not san.lio.targets and not san.lio.stores),
    "iqn": ({"iqn": f"{PREFIX}:own"}, None, lambda san: list(san.lio.targets) == [f"{PREFIX}:own"]),
    "iqn_prefix": ({}, None, lambda san: list(san.lio.targets) == [IQN]),
    "size": ({}, {"size": "4MiB"}, lambda san: san.lio.stores["fileio", "a"].size == 4 * MIB),
    "store": (STORES["lvm"], None, lambda san: ("block", "a") in san.lio.stores),
    "directory": ({}, None, lambda san: (san.data / "a.img").stat().st_size == 2 * MIB),
    "path": ({"path": "%s/sub/x.img"}, None, lambda san: (san.data / "sub/x.img").exists()),
    "vg": (STORES["lvm"], None, lambda san: "a" in san.lvm.volumes),
    "thin_pool": (THIN, None, lambda san: san.lvm.volumes["a"]["pool"] == "pool0"),
    "wipe": ({**STORES["lvm"], "wipe": "none"}, None, lambda san: b"D" in (san.devices / "a").read_bytes()),
    "source": ({"source": "%s/images/one.raw"}, None, lambda san: (san.data / "a.img").read_bytes()[:6] == b"image1"),
    "source_directory": ({"source": "%s/images/one.raw"}, None, lambda san: (san.data / "a.img").exists()),
    "clone_of": (THIN, {"name": "b", "clone_of": "a"}, lambda san: san.log_in("b") is True),
    "snapshot_of": (THIN, {"name": "b", "snapshot_of": "a"}, lambda san: san.log_in("b") is False),
    "initiators": ({}, {"initiators": [OTHER]}, lambda san: san.log_in() is None and san.log_in(initiator=OTHER)),
    "portals": ({}, {"portals": ["[::1]:3260", "127.0.0.1:3261"]}, lambda san: len(san.group().nps) == 2),
    "chap_user": ({}, {"chap_user": "u", "chap_password": SECRET}, lambda san: san.log_in(user="u", password=SECRET)),
    "chap_password": (
        {"chap_user": "u", "chap_password": "another-one1"},
        {"chap_password": SECRET},
        lambda san: san.log_in(user="u", password=SECRET) and san.log_in(user="u", password="another-one1") is None,
    ),
    "mutual_chap_user": (
        {"chap_user": "u", "chap_password": SECRET},
        {"mutual_chap_user": "san", "mutual_chap_password": MUTUAL},
        lambda san: san.group().rules[HOST].chap_mutual_userid == "san",
    ),
    "mutual_chap_password": (
        {"chap_user": "u", "chap_password": SECRET, "mutual_chap_user": "san", "mutual_chap_password": "another-one1"},
        {"mutual_chap_password": MUTUAL},
        lambda san: san.group().rules[HOST].chap_mutual_password == MUTUAL,
    ),
    "readonly": ({}, {"readonly": True}, lambda san: san.log_in() is False),
    "serial": ({"serial": "00c0ffee00c0ffee"}, None, lambda san: made_serial(san) == "00c0ffee00c0ffee"),
    "owner": ({}, {"owner": "web"}, lambda san: mark(san)["owner"] == "web"),
    "vm_uuid": ({}, {"vm_uuid": UUID}, lambda san: mark(san)["vm_uuid"] == UUID),
    "remove_data": ({}, {"state": "absent", "remove_data": True}, lambda san: not (san.data / "a.img").exists()),
    "config_directory": ({}, None, lambda san: (san.conf / "saveconfig.json").stat().st_mode & 0o777 == 0o600),
}


@pytest.mark.parametrize("option", [field.name for field in iscsi_volume.FIELDS])
def test_each_option_has_its_effect_and_check_mode_foretells_it(san, option):
    first, then, seen = ROWS[option]
    first = {key: value.replace("%s", str(san.data)) for key, value in first.items()}
    (san.data / "images" / "one.raw").write_bytes(b"image1" + bytes(MIB - 6))
    base = {"name": "a", "iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "", "initiators": [HOST], **first}
    if then is not None:
        san.make(**first)
        base = {**base, **then} if "state" not in then else {"name": "a", **then}
    before = san.state()
    predicted = done(san(check=True, **base))
    assert san.state() == before
    real = done(san(**base))
    assert real["changed"] and seen(san)
    for key in ("changed", "actions", "diff", "volume", "rescan_needed"):
        assert predicted[key] == real[key]
    again = done(san(**base))
    assert not again["changed"] and again["actions"] == []


@pytest.mark.parametrize("store", STORES)
def test_on_each_store_a_volume_lives_grows_comes_back_and_goes(san, store):
    args = {**STORES[store], "chap_user": "u", "chap_password": SECRET, "vm_uuid": UUID}
    made = san.make(**args)["volume"]
    assert made["wwid"] == "36001405" + made["serial"].replace("-", "")[:25]
    device = Path(made["path"])
    assert device.read_bytes() == bytes(2 * MIB)
    device.write_bytes(b"guest" + bytes(2 * MIB - 5))
    grown = done(san(name="a", **STORES[store], size="4MiB"))
    assert grown["volume"] == {**made, "size": 4 * MIB}
    assert device.read_bytes() == b"guest" + bytes(4 * MIB - 5)
    refused(san(name="a", **STORES[store], size="2MiB"), "not made smaller")
    san.restart()
    assert san.log_in(user="u", password=SECRET) is True
    san.lio.log_out(IQN, HOST)
    assert not done(san(name="a", **STORES[store]))["changed"]
    done(san(name="a", **STORES[store], state="absent"))
    assert not done(san(name="a", **STORES[store], state="absent"))["changed"]
    san.restart()
    assert not san.lio.targets and not san.lio.stores and device.exists()
    assert san.make(**args, size="4MiB")["volume"] == grown["volume"]
    done(san(name="a", **STORES[store], state="absent", remove_data=True))
    assert not device.exists() and san.lvm.volumes.keys() == {"pool0"}


def test_the_order_in_which_the_kernel_lists_it_is_no_change_after_a_reboot(san):
    args = {"initiators": [HOST, OTHER], "portals": ["127.0.0.1:3260", "127.0.0.2:3260"]}
    san.make(**args)
    before = san.group().dump()
    san.restart()
    assert san.group().dump() != before
    assert not done(san(name="a", **args))["changed"]
    san.group().nps.popitem()
    assert done(san(name="a", **args))["changed"]


def test_a_port_that_is_left_out_is_no_change(san):
    made = san.make(portals=["127.0.0.1:3260", "[::1]:3260"])
    assert made["volume"]["portals"] == ["127.0.0.1:3260", "[::1]:3260"]
    assert not done(san(name="a", portals=["127.0.0.1", "[0:0::1]"]))["changed"]


def test_old_data_is_wiped_before_a_thick_volume_gets_it(san):
    san.make(**STORES["lvm"])
    assert done(san(name="a", **STORES["lvm"], size="4MiB"))["changed"]
    assert b"D" not in (san.devices / "a").read_bytes()
    wiped = [command.rsplit("/", 1)[1] for command in san.lvm.commands if command.startswith("blkdiscard --zeroout")]
    assert wiped == ["a.part", "a.part"]
    image = san.data / "images" / "one.raw"
    image.write_bytes(b"image" + bytes(MIB - 5))
    for wipe, rest in (("none", b"D"), ("discard", b"?")):
        name = f"w{wipe}"
        san.make(name, **STORES["lvm"], wipe=wipe, source=str(image))
        assert (san.devices / name).read_bytes() == image.read_bytes() + rest * (MIB)
        done(san(name=name, **STORES["lvm"], state="absent", remove_data=True))


def test_a_pool_that_hands_out_old_blocks_is_refused(san):
    san.lvm.volumes["pool0"]["zero"] = "0"
    common = {"name": "a", "iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "", **THIN}
    refused(san(**common), "lvchange --zero y vg0/pool0")
    done(san(**common, wipe="none"))


def test_sizes_are_whole_extents_and_space_is_looked_at_first(san):
    assert san.make(**STORES["lvm"], size="1MiB")["volume"]["size"] == 2 * MIB
    assert not done(san(name="a", **STORES["lvm"], size="1MiB"))["changed"]
    refused(san(name="b", **STORES["lvm"], iqn_prefix=PREFIX, chap_user="", size="1GiB"), "bytes free")
    refused(san(name="a", **STORES["lvm"], size="1GiB"), "bytes free")


def test_clones_and_snapshots_are_copies_of_their_own(san):
    origin = san.make(**THIN, owner="web")["volume"]
    (san.devices / "a").write_bytes(b"guest" + bytes(2 * MIB - 5))
    clone = san.make("b", **THIN, clone_of="a", size="4MiB")["volume"]
    kept = done(san(name="c", iqn_prefix=PREFIX, chap_user="", **THIN, snapshot_of="a"))["volume"]
    assert clone["size"] == 4 * MIB and kept["size"] == 2 * MIB and kept["initiators"] == []
    assert (clone["readonly"], kept["readonly"], clone["owner"]) == (False, True, None)
    assert len({item["wwid"] for item in (origin, clone, kept)}) == 3
    tags = ["drover.group=VG-UUID", f"drover.iqn={PREFIX}:b", "drover.name=b"]
    assert sorted(san.lvm.volumes["b"]["tags"]) == tags
    (san.devices / "a").write_bytes(b"later" + bytes(2 * MIB - 5))
    assert (san.devices / "b").read_bytes()[:5] == b"guest"
    done(san(name="a", **THIN, state="absent", remove_data=True))
    assert not done(san(name="b", **THIN, clone_of="a", size="4MiB"))["changed"]
    new = {"name": "d", "iqn_prefix": PREFIX, "chap_user": "", **THIN}
    refused(san(**new, clone_of="a"), "no volume a of ours")
    refused(san(**new, clone_of="b", snapshot_of="c"), "give one of")
    refused(san(**new, clone_of="b", size="2MiB"), "does not fit")
    refused(san(**new, clone_of="pool0"), "no volume pool0 of ours")
    refused(san(**{**new, **STORES["lvm"], "thin_pool": None}, clone_of="b"), "thin pool")
    on_files = {**new, "store": "file", "vg": None, "thin_pool": None}
    refused(san(**on_files, clone_of="b"), "no volume b of ours in a file")


def test_a_logical_volume_stays_of_which_somebody_has_a_snapshot(san):
    san.make(**STORES["lvm"])
    san.lvm.lvcreate(["--snapshot", "--size", f"{MIB}b", "--name", "before-update", "vg0/a"])
    before = san.state()
    refused(san(name="a", **STORES["lvm"], state="absent", remove_data=True), "vg0/a has the snapshot before-update")
    assert san.state() == before
    assert done(san(name="a", **STORES["lvm"], state="absent"))["changed"] and "before-update" in san.lvm.volumes


@pytest.mark.parametrize(
    "said, word",
    [
        ("ActiveState=activating\nJob=212\n", "is activating just now"),
        ("ActiveState=inactive\nJob=212\n", "waiting to be started"),
        ("ActiveState=deactivating\n", "is deactivating"),
    ],
    ids=["it waits for what the volumes need", "the node boots", "the node goes down"],
)
def test_nothing_is_made_or_removed_while_the_service_restores_what_was_saved(san, said, word):
    """It clears what is there, and until it has restored the targets nobody is logged in whose VM has the volume."""
    san.make(**STORES["lvm"])
    san.lio.targets.clear()
    san.lio.stores.clear()
    before = san.state()
    san.patch.setattr(_units, "run", lambda argv, timeout: said)
    refused(san(name="a", state="absent", remove_data=True, **STORES["lvm"]), word)
    refused(san(name="b", iqn_prefix=PREFIX, size="2MiB", chap_user=""), word)
    assert san.state() == before
    for settled in ("ActiveState=active\n", "ActiveState=inactive\nJob=0\n"):
        san.patch.setattr(_units, "run", lambda argv, timeout, settled=settled: settled)
        assert done(san(name="a", **STORES["lvm"], initiators=[HOST], chap_user="", check=True))["changed"]


def test_a_copy_of_the_group_holds_nothing_of_ours(san):
    """vgimportclone of a LUN that the array has copied: tags stay as they are, as seen with lvm2 2.03.16."""
    san.make(**STORES["lvm"])
    done(san(name="a", state="absent", **STORES["lvm"]))
    san.lvm.import_clone()
    before = san.state()
    for asked in ({"state": "absent", "remove_data": True}, {"iqn_prefix": PREFIX, "size": "4MiB", "chap_user": ""}):
        refused(san(name="a", **STORES["lvm"], **asked), "no mark of it")
    assert san.state() == before


def test_a_volume_in_use_is_left_alone_and_the_user_is_named(san):
    san.make(initiators=[HOST, OTHER])
    assert san.log_in() is True
    assert done(san(name="a"))["volume"]["sessions"] == [{"initiator": HOST, "address": "127.0.0.1"}]
    before = san.state()
    refused(san(name="a", state="absent", remove_data=True), f"{HOST} from 127.0.0.1", "a is in use")
    refused(san(name="a", initiators=[OTHER]), "in use", HOST)
    refused(san(name="a", readonly=True), "in use", HOST)
    refused(san(name="a", serial="00c0ffee00c0ffee"), "serial")
    assert san.state() == before
    assert done(san(name="a", size="4MiB"))["rescan_needed"]
    done(san(name="a", initiators={"remove": [OTHER]}))
    done(san(name="a", chap_user="u", chap_password=SECRET, portals=["127.0.0.1:3260"]))
    done(san(name="a", chap_password="another-one1"))
    assert san.lio.kicked == [] and san.group().rules[HOST].at


def test_a_login_between_the_look_and_the_deletion_is_seen(san):
    san.make(portals=["127.0.0.1:3260", "127.0.0.2:3260"])
    lio = _target_lio.Lio(str(san.conf))
    lio.targets()
    san.log_in()
    with pytest.raises(_target_lio.Refused, match="in use by .*hv1"):
        lio.delete_target(IQN)
    assert len(san.group().nps) == 2 and san.lio.kicked == []


def test_the_same_chap_for_all_initiators_also_for_later_ones(san):
    account = {"chap_user": "u", "chap_password": SECRET, "mutual_chap_user": "san", "mutual_chap_password": MUTUAL}
    san.make(initiators=[], readonly=True, **account)
    assert not done(san(name="a", **account))["changed"]
    done(san(name="a", initiators={"add": [HOST, OTHER]}))
    for initiator in (HOST, OTHER):
        assert san.log_in(initiator=initiator, user="u", password=SECRET) is False
        assert san.group().rules[initiator].chap_mutual_password == MUTUAL
    san.lio.log_out(IQN, HOST)
    san.group().rules[HOST].chap_password = "somebody-else"
    san.group().rules[OTHER].maps[1].write_protect = False
    assert done(san(name="a"))["changed"]
    assert san.log_in(user="u", password=SECRET) is False
    assert san.group().rules[OTHER].maps[1].write_protect
    off = done(san(name="a", chap_user=""))["volume"]
    assert (off["chap_user"], off["mutual_chap_user"]) == ("", "")
    assert san.log_in() is False and san.group().chap_mutual_password == ""


def test_what_is_not_ours_stays_as_it_is_running_and_saved(san):
    foreign = san.data / "foreign.img"
    foreign.write_bytes(bytes(MIB))
    lib = san.lio.module
    group = lib.TPG(lib.Target(None, f"{PREFIX}:foreign"), 1)
    lib.LUN(group, 1, lib.FileIOStorageObject("foreign", dev=str(foreign), size=MIB, wwn="1"))
    lib.FileIOStorageObject("x", dev=str(foreign), size=MIB, wwn="2")
    (san.data / "old.img").write_bytes(b"precious")
    saved = {"storage_objects": [{"name": "theirs", "plugin": "block"}], "targets": [{"wwn": "iqn.x"}], "more": 1}
    (san.conf / "saveconfig.json").write_text(json.dumps(saved))
    san.lvm.lvcreate(["--size", f"{MIB}b", "--name", "lv1", "--addtag", "mine", "vg0"])
    before = san.state()
    for args in ({"name": "foreign"}, {"name": "y", "iqn": f"{PREFIX}:foreign"}, {"name": "old"}, {"name": "x"}):
        for state in ({"size": "2MiB", "chap_user": ""}, {"state": "absent", "remove_data": True}):
            refused(san(**{"iqn_prefix": PREFIX, **args, **state}), "left alone")
    for state in ({"size": "2MiB", "chap_user": ""}, {"state": "absent", "remove_data": True}):
        refused(san(name="lv1", iqn_prefix=PREFIX, **STORES["lvm"], **state), "left alone")
    assert san.state() == before
    theirs = [group.dump(), san.lio.stores["fileio", "foreign"].dump()]
    san.make()
    done(san(name="a", state="absent", remove_data=True))
    assert json.loads((san.conf / "saveconfig.json").read_text()) == {"fabric_modules": [], **saved}
    assert theirs == [group.dump(), san.lio.stores["fileio", "foreign"].dump()]


def test_a_unit_that_somebody_added_to_our_target_does_not_go_with_it(san):
    san.make()
    lib, theirs = san.lio.module, san.base / "theirs"
    theirs.write_bytes(bytes(MIB))
    lib.LUN(san.group(), 2, lib.FileIOStorageObject("theirs", dev=str(theirs), size=MIB, wwn="1"))
    before = san.state()
    refused(san(name="a", state="absent", remove_data=True), "logical unit 2 (theirs)", "take that off first")
    assert san.state() == before
    san.group().units[2].delete()
    done(san(name="a", state="absent", remove_data=True))
    assert list(san.lio.stores) == [("fileio", "theirs")] and theirs.exists()


def test_a_unit_that_was_swapped_behind_our_back_is_noticed(san):
    san.make()
    san.make("b")
    units = [san.group(name).units[1] for name in "ab"]
    units[0].store, units[1].store = units[1].store, units[0].store
    refused(san(name="a", size="4MiB"), "is b, not a")
    refused(san(name="a", state="absent", remove_data=True), "is b, not a")


def test_two_volumes_with_one_wwid_are_refused_naming_both(san):
    serial = san.make()["volume"]["serial"]
    new = {"name": "b", "iqn_prefix": PREFIX, "size": "2MiB", "chap_user": ""}
    refused(san(**new, serial=serial), "b and a", "WWID")
    # Only the first 25 digits are in the WWID.
    refused(san(**new, serial=f"{serial[:-4]}0000"), "b and a")
    # Also of two that are to be made, of which LIO has none yet.
    before, twins = san.state(), [{"name": name, "serial": f"{'0' * 25}{name}"} for name in ("c", "d")]
    refused(san(volumes=twins, **{key: new[key] for key in ("iqn_prefix", "size", "chap_user")}), "c and d", "WWID")
    assert san.state() == before


BAD = [
    ("initiators", ["10.231.5.0/24"], "IQN only"),
    ("initiators", ["ALL"], "IQN only"),
    ("initiators", ["iqn.2026-11.example:x"], "a dot"),
    ("iqn", "iqn.2026-11.example:x", "a dot"),
    ("portals", ["10.231.5.10:"], "portal"),
    ("portals", ["san1:3260"], "write address and port"),
    ("portals", ["[fd00::zz]:3260"], "portal"),
    ("chap_user", "NULL", "NULL"),
    ("chap_password", "NULLhidden-Ca", "NULL"),
    ("chap_password", "hidden-Cana", "12 to 16"),
    ("mutual_chap_password", "hidden-Canary2-17", "12 to 16"),
    ("mutual_chap_password", SECRET, "the same"),
    ("chap_user", "", "needs a chap_user"),
    ("vg", "vg0", "no effect"),
    ("vg", "-rf", "LVM"),
    ("thin_pool", "pool0", "store file"),
    ("store", "lvm", "vg is missing"),
    ("serial", "not-hex", "hexadecimal"),
]


@pytest.mark.parametrize("option,value,word", BAD)
def test_bad_values_are_refused_with_the_rule(san, option, value, word):
    before = san.state()
    args = {"name": "a", "iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "u", "chap_password": SECRET}
    args = {**args, "mutual_chap_user": "san", "mutual_chap_password": MUTUAL, "initiators": [HOST], option: value}
    if option == "vg":
        word = "LVM" if value == "-rf" else "store file"
    assert word in refused(san(**args))["msg"]
    assert "hidden" not in san.text and san.state() == before


def test_names_that_lvm_keeps_for_itself_are_refused(san):
    for name in ("snapshot1", "a_tmeta", "pvmove0"):
        refused(san(name=name, iqn=IQN, size="2MiB", chap_user="", **STORES["lvm"]), "LVM")
    refused(san(name="a", iqn=IQN, size="2MiB", chap_user="", store="lvm", vg="none"), "no volume group none")
    refused(san(name="a", iqn=IQN, size="2MiB", chap_user="", **{**THIN, "thin_pool": "p"}), "no thin pool p")


def test_a_portal_on_an_address_that_is_not_here_fails_and_says_so(san):
    args = {"iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "", "initiators": [HOST]}
    result = san(name="a", **args, portals=["10.1.1.1:3260"])
    assert result["failed"] and "on this machine, and free" in result["msg"] and "let in" not in str(result["actions"])
    done(san(name="a", **args, portals=["127.0.0.1:3260"]))
    done(san(name="a", portals=["0.0.0.0:3260"]))
    done(san(name="a", portals={"set": ["127.0.0.1:3260"], "add": ["127.0.0.2:3260"]}))
    assert list(san.group().nps) == ["127.0.0.1:3260", "127.0.0.2:3260"]


@pytest.mark.parametrize("store", STORES)
def test_a_run_that_was_cut_off_is_finished_by_the_next(san, store):
    args = {"name": "a", "iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "u", "chap_password": SECRET}
    args = {**args, "initiators": [HOST], **STORES[store]}
    removal = {"name": "a", "state": "absent", "remove_data": True, **STORES[store]}
    steps = len(san(check=True, **args)["actions"])
    for cut in range(steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_resource.Step, "run", _cut_after(cut))
            assert san(**args)["failed"]
        assert done(san(**args))["changed"]
        assert san.log_in(user="u", password=SECRET) is True
        san.restart()
        for kept in range(4):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_resource.Step, "run", _cut_after(kept))
                san(**removal)
        done(san(**removal))
        assert not done(san(**removal))["changed"]
        assert not san.lio.targets and not san.lio.stores and san.lvm.volumes.keys() == {"pool0"}


def _cut_after(number):
    left = [number]
    run = _resource.Step.run

    def cut(step):
        if left[0] == 0:
            raise Failed("cut off")
        left[0] -= 1
        run(step)

    return cut


def test_what_a_killed_run_left_half_made_is_mended(san):
    made = san.make()["volume"]
    san.group().units[1].store = None
    san.group().rules[HOST].maps[1].link = ""
    san.lio.stores["fileio", "a"].configured = False
    assert done(san(name="a", chap_user="", initiators=[HOST], portals=made["portals"]))["volume"] == made
    assert san.log_in() is True
    san.lvm.lvcreate(["--size", f"{MIB}b", "--name", "b.part", "--addtag", "drover.name=b", "vg0"])
    assert san.make("b", **STORES["lvm"])["volume"]["size"] == 2 * MIB
    san.lvm.lvcreate(["--size", f"{MIB}b", "--name", "c.part", "vg0"])
    result = san(name="c", iqn_prefix=PREFIX, size="2MiB", chap_user="", **STORES["lvm"])
    assert result["failed"] and "not ours" in result["msg"]


def test_a_growth_that_was_cut_off_is_finished(san):
    san.make()
    os.truncate(san.data / "a.img", 4 * MIB)
    assert done(san(name="a", size="4MiB"))["actions"][0].startswith("grow it")
    assert san.lio.stores["fileio", "a"].size == 4 * MIB


def test_lost_data_is_not_replaced_by_an_empty_volume(san):
    san.make()
    (san.data / "a.img").unlink()
    refused(san(name="a", iqn_prefix=PREFIX, size="2MiB", chap_user=""), "is gone")
    san.lio.targets.clear()
    san.lio.stores.clear()
    refused(san(name="a", iqn_prefix=PREFIX, size="2MiB", chap_user=""), "is gone")
    done(san(name="a", iqn_prefix=PREFIX, state="absent"))
    san.make()


def test_another_vms_volume_and_another_store_are_refused(san):
    san.make(vm_uuid=UUID, **STORES["lvm"])
    other = UUID.replace("7a1", "8a1")
    for state in ({"size": "4MiB"}, {"state": "absent", "remove_data": True}):
        refused(san(name="a", vm_uuid=other, **STORES["lvm"], **state), UUID)
    refused(san(name="a", iqn=f"{PREFIX}:new", **STORES["lvm"]), IQN)
    refused(san(name="a", **THIN), "keeps it")
    refused(san(name="a", iqn_prefix=PREFIX, size="2MiB", chap_user=""), "left alone")


def test_many_at_once_and_one_bad_item_stops_all(san):
    common = {"iqn_prefix": PREFIX, "size": "2MiB", "chap_user": "", "initiators": [HOST]}
    before = san.state()
    refused(san(volumes=[{"name": "a"}, {"name": "b", "initiators": ["ALL"]}], **common), "b: ")
    refused(san(volumes=[{"name": "a"}, {"name": "b", "backend": "tgt"}], **common), "the same for all")
    assert san.state() == before
    made = done(san(volumes=[{"name": "a"}, {"name": "b", **THIN}], **common))
    assert [item["volume"]["size"] for item in made["results"]] == [2 * MIB] * 2
    assert not done(san(volumes=[{"name": "a"}, {"name": "b", **THIN}], **common))["changed"]


def test_secrets_stay_secret(san):
    texts = []
    account = {"chap_user": "u", "chap_password": SECRET, "mutual_chap_user": "s", "mutual_chap_password": MUTUAL}
    base = {"name": "a", "iqn_prefix": PREFIX, "size": "2MiB", **account, "_ansible_diff": True}
    for args in ({"check": True}, {}, {"chap_password": MUTUAL}, {"size": "bad"}, {"mutual_chap_user": "new"}):
        san(**{**base, **args})
        texts.append(san.text)
    assert "hidden" not in "".join(texts) + " ".join(san.lvm.commands)
    holders = [path for path in san.base.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == [san.conf / "saveconfig.json"] and holders[0].stat().st_mode & 0o777 == 0o600


def test_without_lio_the_mend_is_named(san):
    refused(san(name="a", config_directory="/nonexistent"), "san_target")
    san.patch.setattr(_target_lio, "rtslib", None)
    refused(san(name="a"), "python3-rtslib-fb")
