# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_volume against a real tgtd of its own (own socket, a port on loopback), with libiscsi as initiator."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _resource
from ansible_collections.drover.kvm.plugins.module_utils import _volume_file as files
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import Tgt
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt_conf import Store
from ansible_collections.drover.kvm.plugins.module_utils._volume_file import MARK, MIB
from ansible_collections.drover.kvm.plugins.modules import iscsi_volume
from ansible_collections.drover.kvm.tests.unit import tgt_server
from ansible_collections.drover.kvm.tests.unit.volume_runs import VolumeRuns, done, refused

pytestmark = [
    pytest.mark.skipif(bool(tgt_server.missing()), reason=f"not here: {tgt_server.missing()}"),
    pytest.mark.slow,
]
PREFIX = tgt_server.PREFIX
IQN = f"{PREFIX}:a"
SECRET, MUTUAL = "hidden-Canary1", "hidden-Canary2"
UUID = "7a1ee0a7-4b9c-5d8e-9d55-08a1b6cf3a52"
OTHER_UUID = "11111111-4b9c-5d8e-9d55-08a1b6cf3a52"


class San(VolumeRuns, tgt_server.PrivateSan):
    """A private SAN, and the module as Ansible runs it."""

    made: ClassVar[dict[str, Any]] = {"iqn_prefix": PREFIX, "size": "16MiB", "initiators": ["127.0.0.1"]}

    def __init__(self, capsys):
        super().__init__()
        self.capsys = capsys

    def logs_in(self, login, target):
        """With CHAP in both directions; each is USER%SECRET."""
        user, _percent, secret = target.partition("%")
        url = f"{self.url(login=f'{login}@')}?target_user={user}&target_password={secret}"
        return self.ask("iscsi-inq", url).returncode == 0


@pytest.fixture
def san(capsys, monkeypatch):
    monkeypatch.setenv("TGT_IPC_SOCKET", "")
    san = San(capsys)
    yield san
    san.close()


# One row per option: the options of a volume before, what is asked then, and what must be seen of it.
def lun(san):
    return Tgt().targets()[IQN].luns[1]


ROWS = {
    "name": ({}, {"name": "b"}, lambda san: f"{PREFIX}:b" in Tgt().targets()),
    "backend": ({"backend": "tgt"}, None, lambda san: IQN in Tgt().targets()),
    "state": ({}, {"state": "absent"}, lambda san: Tgt().targets() == {}),
    "iqn": ({"iqn": f"{PREFIX}:own"}, None, lambda san: list(Tgt().targets()) == [f"{PREFIX}:own"]),
    "iqn_prefix": ({}, None, lambda san: list(Tgt().targets()) == [IQN]),
    "size": (
        {},
        {"size": "32MiB"},
        lambda san: "LOGICAL BLOCK ADDRESS:65535" in san.ask("iscsi-readcapacity16", san.url()).stdout,
    ),
    "directory": ({}, None, lambda san: lun(san).path == str(san.data / "a.img")),
    "path": ({"path": "%s/sub/x.img"}, None, lambda san: lun(san).path == str(san.data / "sub/x.img")),
    "source": ({"source": "%s/images/one.raw"}, None, lambda san: (san.data / "a.img").read_bytes()[:6] == b"image1"),
    "source_directory": ({"source": "%s/images/one.raw"}, None, lambda san: (san.data / "a.img").exists()),
    "initiators": (
        {},
        {"initiators": [f"{PREFIX}:vm", "10.0.0.0/8"]},
        lambda san: Tgt().targets()[IQN].initiators == ["10.0.0.0/8", f"{PREFIX}:vm"],
    ),
    "chap_user": ({}, {"chap_user": "u", "chap_password": SECRET}, lambda san: Tgt().targets()[IQN].accounts == ["u"]),
    "chap_password": (
        {"chap_user": "u", "chap_password": "another-one1"},
        {"chap_password": SECRET},
        lambda san: san.ask("iscsi-inq", san.url(login=f"u%{SECRET}@")).returncode == 0,
    ),
    "portals": ({}, {"portals": [], "size": "32MiB"}, lambda san: IQN in Tgt().targets()),
    "mutual_chap_user": (
        {"chap_user": "u", "chap_password": SECRET},
        {"mutual_chap_user": "san", "mutual_chap_password": MUTUAL},
        lambda san: san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}") and not san.logs_in(f"u%{SECRET}", f"san%{SECRET}"),
    ),
    "mutual_chap_password": (
        {"chap_user": "u", "chap_password": SECRET, "mutual_chap_user": "san", "mutual_chap_password": "another-one1"},
        {"mutual_chap_password": MUTUAL},
        lambda san: san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}"),
    ),
    "readonly": ({}, {"readonly": True}, lambda san: lun(san).readonly),
    "serial": (
        {},
        {"serial": "00c0ffee00c0ffee"},
        lambda san: "00c0ffee00c0ffee" in san.ask("iscsi-inq", "-e", "1", "-c", "128", san.url()).stdout,
    ),
    "owner": ({}, {"owner": "web"}, lambda san: b'"web"' in os.getxattr(san.data / "a.img", MARK)),
    "vm_uuid": ({}, {"vm_uuid": UUID}, lambda san: UUID.encode() in os.getxattr(san.data / "a.img", MARK)),
    "remove_data": ({}, {"state": "absent", "remove_data": True}, lambda san: not (san.data / "a.img").exists()),
    "config_directory": ({}, None, lambda san: (san.conf / "drover-a.conf").stat().st_mode & 0o777 == 0o600),
}


# What tgtd can't do is refused, see below; what follows from LVM has no meaning; copies need a file system for it.
LIO_ONLY = {"store", "vg", "thin_pool", "wipe", "clone_of", "snapshot_of"}


@pytest.mark.parametrize("option", [field.name for field in iscsi_volume.FIELDS if field.name not in LIO_ONLY])
def test_each_option_has_its_effect_and_check_mode_foretells_it(san, option):
    first, then, seen = ROWS[option]
    first = {key: value.replace("%s", str(san.data)) for key, value in first.items()}
    (san.data / "images" / "one.raw").write_bytes(b"image1" + bytes(MIB - 6))
    base: dict[str, Any] = {"name": "a", "iqn_prefix": PREFIX, "size": "16MiB", "chap_user": ""}
    base = {**base, "initiators": ["127.0.0.1"], **first}
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


@pytest.fixture
def small(san):
    """Two file systems of 8 MiB below the SAN's folder, as two logical volumes would be."""
    folders = [san.data / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "drover-test", str(folder)], check=True)
    yield folders
    for process in san.processes:
        process.kill()
        process.wait()
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_volume_that_is_full_takes_no_room_from_another_one(san, small):
    """Each on storage of its own: the writes of the one fail, the other has all that it had (#9)."""

    def write(name, byte, size):
        script = f"write -P {byte} 0 {size}M", f"read -P {byte} 0 {size}M"
        url = san.url(name)
        return san.ask("qemu-io", "-f", "raw", "-t", "none", *(word for one in script for word in ("-c", one)), url)

    for folder in small:
        san.make(folder.name, path=f"{folder}/disk.img")
    free = [shutil.disk_usage(folder).free for folder in small]
    full = write("a", 1, 16)
    assert full.returncode != 0 and "write failed" in full.stdout + full.stderr
    assert [shutil.disk_usage(folder).free for folder in small] == [0, free[1]]
    other = write("b", 2, 7)
    assert other.returncode == 0, other.stdout + other.stderr
    # What fitted is there, and the volume is as declared: nothing is made anew.
    assert san.ask("qemu-io", "-f", "raw", "-c", "read -P 1 0 4M", san.url()).returncode == 0
    assert not done(san(volumes=[{"name": name, "path": f"{san.data}/{name}/disk.img"} for name in "ab"]))["changed"]


def test_options_that_are_not_given_stay(san):
    made = san.make(chap_user="u", chap_password=SECRET, owner="web", vm_uuid=UUID, serial="00c0ffee00c0ffee")
    again = done(san(name="a"))
    assert not again["changed"] and again["volume"] == made["volume"]
    grown = done(san(name="a", size="32MiB"))
    assert grown["volume"] == {**made["volume"], "size": 32 * MIB}
    added = done(san(name="a", initiators={"add": ["10.1.1.1/32"], "remove": ["127.0.0.1"]}))
    assert added["volume"]["initiators"] == ["10.1.1.1"]


def test_volumes_come_back_after_a_restart_as_they_were(san):
    def shape():
        found = Tgt().targets().values()
        return {t.iqn: (t.online, t.luns[1], t.accounts, t.initiators) for t in found}

    san.make("a", chap_user="u", chap_password=SECRET)
    san.make("b", initiators=[f"{PREFIX}:vm"])
    san.make("c", initiators=[])
    before = shape()
    san.restart()
    assert shape() == before
    assert all(not done(san(name=name))["changed"] for name in "abc")
    assert san.ask("iscsi-inq", san.url(login=f"u%{SECRET}@")).returncode == 0
    assert san.ask("iscsi-inq", san.url(login="u%wrong-wrong1@")).returncode != 0
    # tgt-admin opens a target that has only names to all addresses, were there no address that nobody can have.
    for name in ("b", "c"):
        assert san.ask("iscsi-inq", san.url(name)).returncode != 0
    assert san.ask("iscsi-inq", "-i", f"{PREFIX}:vm", san.url("b")).returncode == 0


def test_a_volume_in_use_is_not_removed_and_the_user_is_named(san):
    san.make()
    session = san.log_in()
    assert done(san(name="a"))["volume"]["sessions"] == [
        {"initiator": "iqn.2026-11.test.vm:one", "address": "127.0.0.1"}
    ]
    before = san.state()[1:]
    refused(san(name="a", state="absent", remove_data=True), "iqn.2026-11.test.vm:one from 127.0.0.1", "a is in use")
    refused(san(name="a", serial="00c0ffee00c0ffee"), "serial can't be changed")
    assert san.state()[1:] == before and session.poll() is None
    san.log_out(session)
    done(san(name="a", state="absent", remove_data=True))
    assert list(san.conf.iterdir()) == [] and not (san.data / "a.img").exists()


def test_growing_in_use_keeps_the_initiator_reading(san):
    san.make()
    session = san.log_in()
    result = done(san(name="a", size="32MiB"))
    assert result["rescan_needed"] and result["volume"]["size"] == 32 * MIB
    end = time.monotonic() + 10
    while not (sessions := done(san(name="a"))["volume"]["sessions"]):
        assert time.monotonic() < end
    assert sessions[0]["initiator"] == "iqn.2026-11.test.vm:one" and session.poll() is None
    assert "LOGICAL BLOCK ADDRESS:65535" in san.ask("iscsi-readcapacity16", san.url()).stdout
    assert not done(san(name="a", size="32MiB"))["rescan_needed"]


def test_an_initiator_that_lost_its_right_is_named(san):
    san.make()
    session = san.log_in()
    result = done(san(name="a", initiators=[f"{PREFIX}:vm"]))
    # Where controller code is loaded as well, Ansible shows a warning itself instead of returning it.
    shown = str(result.get("warnings")) + " ".join(san.errors.split())
    assert "vm:one from 127.0.0.1 is not allowed any more but still logged in" in shown
    san.log_out(session)
    assert san.ask("iscsi-inq", san.url()).returncode != 0


def test_what_is_not_ours_is_left_alone(san):
    foreign = san.data / "foreign.img"
    foreign.write_bytes(bytes(MIB))
    Tgt().export(f"{PREFIX}:foreign", str(foreign))
    Tgt().set_account(f"{PREFIX}:foreign", "theirs", "another-one1")
    (san.data / "old.img").write_bytes(b"precious")
    before = san.state()
    for args in ({"name": "foreign"}, {"name": "x", "iqn": f"{PREFIX}:foreign"}, {"name": "old"}):
        for state in ({"size": "16MiB", "chap_user": ""}, {"state": "absent", "remove_data": True}):
            refused(san(**{"iqn_prefix": PREFIX, **args, **state}), "left alone")
    refused(san(name="n", iqn_prefix=PREFIX, size="1MiB", chap_user="theirs", chap_password=SECRET), "is not ours")
    assert not done(san(name="old", state="absent", iqn_prefix=PREFIX))["changed"]
    assert san.state() == before


def test_a_unit_that_somebody_added_to_our_target_does_not_go_with_it(san):
    san.make()
    san.add_unit(2, "0123456789abcdef")
    before = san.state()
    for check in (True, False):
        gone = san(name="a", state="absent", remove_data=True, check=check)
        refused(gone, f"logical unit 2 ({san.data}/0123456789abcdef.img)", "take that off first")
    assert san.state() == before and not done(san(name="a"))["changed"]
    san.admin("delete", "logicalunit", "--lun", "2")
    assert done(san(name="a", state="absent", remove_data=True))["changed"]


def test_another_vms_volume_is_neither_changed_nor_removed(san):
    san.make(vm_uuid=UUID)
    refused(san(name="a", vm_uuid=OTHER_UUID, size="32MiB"), UUID)
    refused(san(name="a", vm_uuid=OTHER_UUID, state="absent", remove_data=True), UUID)
    done(san(name="a", state="absent"))
    refused(san(name="a", iqn_prefix=PREFIX, chap_user="", size="16MiB", vm_uuid=OTHER_UUID), UUID)
    refused(san(name="a", vm_uuid=OTHER_UUID, state="absent", remove_data=True), UUID)
    back = done(san(name="a", iqn_prefix=PREFIX, chap_user="", vm_uuid=UUID))
    assert back["volume"]["size"] == 16 * MIB


def test_data_is_kept_unless_its_removal_is_asked_for(san):
    san.make()
    (san.data / "a.img").write_bytes(b"data" + bytes(16 * MIB - 4))
    done(san(name="a", state="absent"))
    assert Tgt().targets() == {} and (san.data / "a.img").read_bytes()[:4] == b"data"
    assert not done(san(name="a", state="absent"))["changed"]
    san.make()
    assert (san.data / "a.img").read_bytes()[:4] == b"data"


def test_many_at_once_share_a_user_and_change_its_secret_together(san):
    items = [{"name": "a"}, {"name": "b", "size": "32MiB"}]
    common = {"iqn_prefix": PREFIX, "size": "16MiB", "chap_user": "u", "initiators": ["127.0.0.1"]}
    first = done(san(volumes=items, chap_password="another-one1", **common))
    assert [item["volume"]["size"] for item in first["results"]] == [16 * MIB, 32 * MIB]
    refused(san(name="a", chap_password=SECRET), "shared with volume b")
    before = san.state()
    predicted = done(san(check=True, volumes=items, chap_password=SECRET, **common))
    assert san.state() == before
    session = san.log_in(login="u%another-one1@")
    real = done(san(volumes=items, chap_password=SECRET, **common))
    assert (
        predicted["actions"]
        == real["actions"]
        == [
            text
            for name in "ab"
            for text in (f"{name}: set the CHAP secret of u", f"{name}: save it in {san.conf}/drover-{name}.conf")
        ]
    )
    assert session.poll() is None and real["results"][0]["volume"]["sessions"]
    for name in "ab":
        assert san.ask("iscsi-inq", san.url(name, f"u%{SECRET}@")).returncode == 0
        assert san.ask("iscsi-inq", san.url(name, "u%another-one1@")).returncode != 0
        assert san.ask("iscsi-inq", san.url(name)).returncode != 0
    assert not done(san(volumes=items, chap_password=SECRET, **common))["changed"]
    done(san(name="b", state="absent"))
    assert Tgt().accounts() == {"u"}
    san.log_out(session)
    done(san(name="a", state="absent"))
    assert Tgt().accounts() == set()


def test_one_bad_item_stops_the_task_before_the_first_change(san):
    before = san.state()
    common = {"iqn_prefix": PREFIX, "size": "16MiB", "chap_user": ""}
    refused(san(volumes=[{"name": "a"}, {"name": "b", "size": "1"}], **common), "volumes[1].size")
    refused(san(volumes=[{"name": "a"}, {"name": "b", "source": f"{san.data}/images/none"}], **common), "none")
    refused(san(volumes=[{"name": "a", "serial": "0" * 16}, {"name": "b", "serial": "0" * 16}], **common), "a and b")
    refused(san(volumes=[{"name": "a"}, {"name": "b", "iqn": IQN}], **common), "a and b", "iqn")
    refused(san(volumes=[{"name": "a"}, {"name": "a"}], **common), "listed twice")
    assert san.state() == before


def test_two_volumes_with_one_serial_are_refused_naming_both(san):
    serial = san.make()["volume"]["serial"]
    refused(san(name="b", iqn_prefix=PREFIX, size="1MiB", chap_user="", serial=serial), IQN, f"{PREFIX}:b", serial)
    assert san.make("b")["volume"]["serial"] != serial


BAD = [
    ("iqn", "iqn.2026-11.Org.example:a", "lower case"),
    ("iqn", "iqn.2026-13.org.example:a", "qualified"),
    ("iqn", "iqn.2026-11.org.example:a b", "qualified"),
    ("iqn", "iqn.2026-11.org.example:" + "a" * 220, "qualified"),
    ("iqn", "iqn.2026-11.org.example:a\n", "qualified"),
    ("iqn_prefix", "example.org", "qualified"),
    ("name", "../a", "not a valid name"),
    ("name", "-rf", "not a valid name"),
    ("name", "Web_1", "own iqn"),
    ("size", "1.5GiB", "4GiB"),
    ("size", "1000", "MiB"),
    ("size", "0", "MiB"),
    ("chap_password", "hidden-Cana", "12 to 16"),
    ("chap_password", "hidden-Canary1-17", "12 to 16"),
    ("chap_password", "hidden-Can$(id)", "12 to 16"),
    ("chap_password", "hidden Canary1", "12 to 16"),
    ("chap_user", "a b", "CHAP user"),
    ("chap_user", "a;reboot", "CHAP user"),
    ("chap_user", "u", "chap_password is missing"),
    ("initiators", ["10.231.5.300"], "neither"),
    ("initiators", ["10.231.5.10/24"], "neither"),
    ("initiators", ["0.0.0.0/0"], "ALL"),
    ("initiators", ["a,b"], "neither"),
    ("initiators", ["iqn.2026-11.Org:x"], "qualified"),
    ("serial", "xyz", "hexadecimal"),
    ("vm_uuid", "not-one", "UUID"),
    ("owner", "a b", "not a valid name"),
    ("path", "relative.img", "absolute"),
    ("path", "/srv/drover/../../etc/shadow", "path"),
    ("path", "/srv/drover/a,b.img", "path"),
    ("path", "json:{}", "path"),
    ("path", "/dev/sda", "not inside"),
    ("path", "/etc/shadow", "not inside"),
    ("directory", "/etc/tgt", "operating system"),
    ("directory", "/dev", "operating system"),
    ("directory", "/", "path"),
    ("source", "/etc/shadow", "not inside"),
    ("source", "nbd://x/y", "path"),
]


@pytest.mark.parametrize("option,value,word", BAD)
def test_bad_values_are_refused_with_the_rule(san, option, value, word):
    before = san.state()
    args = {"name": "a", "iqn_prefix": PREFIX, "size": "16MiB", "chap_user": "", option: value}
    if option == "chap_password":
        args["chap_user"] = "u"
    result = refused(san(**args))
    assert word in result["msg"] and "hidden" not in san.text
    assert san.state() == before


def test_what_tgt_cannot_do_is_refused(san):
    before = san.state()
    common = {"name": "a", "iqn_prefix": PREFIX, "size": "16MiB", "chap_user": ""}
    for option, value in (("store", "lvm"), ("vg", "vg0"), ("thin_pool", "p")):
        refused(san(**common, **{option: value}), option, "backend tgt")
    refused(san(**common, portals=["127.0.0.9:3260"]), f"tgtd listens on 127.0.0.1:{san.port}", "san_target")
    assert san.state() == before
    assert not done(san(check=True, **common, portals=[f"127.0.0.1:{san.port}"])).get("failed")


def share(target: int, request: int, origin: int) -> int:
    """FICLONE of XFS and Btrfs."""
    assert request == files.FICLONE
    os.pwrite(target, os.pread(origin, os.fstat(origin).st_size, 0), 0)
    return 0


def cannot(*_args: Any) -> int:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_copies_begin_as_the_file_of_their_origin(san, monkeypatch):
    san.make("a")
    (san.data / "a.img").write_bytes(b"guest" + bytes(16 * MIB - 5))
    new: dict[str, Any] = {"name": "b", "iqn_prefix": PREFIX, "chap_user": ""}
    before = san.state()
    monkeypatch.setattr(files.fcntl, "ioctl", cannot)
    refused(san(**new, clone_of="a"), "makes no copies that share blocks")
    monkeypatch.setattr(files.fcntl, "ioctl", share)
    refused(san(**new, clone_of="c"), "no volume c of ours")
    refused(san(**new, clone_of="a", size="1MiB"), "does not fit")
    refused(san(**new, clone_of="a", snapshot_of="a"), "give one of")
    assert san.state() == before
    predicted = done(san(check=True, **new, snapshot_of="a"))
    kept = done(san(**new, snapshot_of="a"))
    assert predicted["actions"] == kept["actions"] and predicted["volume"] == kept["volume"]
    assert kept["volume"]["readonly"] and kept["volume"]["size"] == 16 * MIB
    clone = done(san(**{**new, "name": "c"}, clone_of="a", size="32MiB"))["volume"]
    assert not clone["readonly"] and clone["size"] == 32 * MIB and clone["wwid"] != kept["volume"]["wwid"]
    (san.data / "a.img").write_bytes(b"later" + bytes(16 * MIB - 5))
    assert {(san.data / f"{name}.img").read_bytes()[:5] for name in "bc"} == {b"guest"}
    assert not done(san(**new, snapshot_of="a"))["changed"]
    assert done(san(name="b", state="absent", remove_data=True))["changed"]
    assert not (san.data / "b.img").exists() and (san.data / "a.img").exists()


def test_the_targets_own_secret_is_shared_changed_and_given_up(san):
    own = {"mutual_chap_user": "san", "mutual_chap_password": MUTUAL}
    for name in "ab":
        san.make(name, chap_user="u", chap_password=SECRET, **own)
    assert san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}")
    refused(san(name="a", mutual_chap_password="another-one1"), "shared with volume b")
    refused(san(name="a", mutual_chap_password=SECRET), "the same")
    refused(san(name="a", mutual_chap_user="u", mutual_chap_password="another-one1"), "other direction")
    session = san.log_in(login=f"u%{SECRET}@")
    done(san(volumes=[{"name": "a"}, {"name": "b"}], mutual_chap_password="another-one1"))
    assert session.poll() is None and san.logs_in(f"u%{SECRET}", "san%another-one1")
    san.restart()
    assert not done(san(name="b", mutual_chap_password="another-one1"))["changed"]
    assert san.logs_in(f"u%{SECRET}", "san%another-one1") and not san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}")
    done(san(name="a", mutual_chap_user=""))
    assert Tgt().targets()[IQN].outgoing == "" and Tgt().accounts() == {"u", "san"}
    done(san(name="b", chap_user=""))
    assert Tgt().accounts() == {"u"} and not done(san(name="b"))["changed"]


def test_a_write_protected_volume_stays_so_when_it_grows_and_after_a_restart(san):
    san.make(readonly=True)
    done(san(name="a", size="32MiB"))
    san.restart()
    assert lun(san).readonly and not done(san(name="a"))["changed"]
    Tgt().delete_target(IQN)
    done(san(name="a"))
    assert lun(san).readonly
    done(san(name="a", readonly=False))
    session = san.log_in()
    refused(san(name="a", readonly=True), "in use by iqn.2026-11.test.vm:one")
    san.log_out(session)


def test_the_wwid_is_what_initiators_see(san):
    # Binary, which iscsi-inq shows as characters: a serial whose digits are some.
    made = san.make(serial="1" + "23" * 15)["volume"]
    seen = san.ask("iscsi-inq", "-e", "1", "-c", str(0x83), san.url()).stdout
    assert f"[a{'#' * 15}]" in seen and made["wwid"] == "361" + "23" * 15
    refused(san(name="b", iqn_prefix=PREFIX, size="1MiB", chap_user="", serial=UUID), "hyphens")


def test_ipv6_is_accepted(san):
    made = san.make(initiators=["FD00::5", "fd00:5::/64"])
    assert made["volume"]["initiators"] == ["fd00:5::/64", "fd00::5"]


def test_links_and_directories_are_not_followed(san):
    secret = san.base / "outside"
    secret.write_bytes(bytes(MIB))
    (san.data / "a.img").symlink_to(secret)
    (san.data / "sub").symlink_to(san.base)
    (san.data / "images" / "link.raw").symlink_to("/etc/shadow")
    (san.data / "b.img").mkdir()
    common = {"iqn_prefix": PREFIX, "size": "16MiB", "chap_user": ""}
    refused(san(name="a", **common), "not a plain file")
    refused(san(name="b", **common), "not a plain file")
    refused(san(name="c", path=f"{san.data}/sub/c.img", **common), "not inside")
    refused(san(name="d", source=f"{san.data}/images/link.raw", **common), "not a plain file")


def test_shrinking_is_refused(san):
    san.make()
    before = san.state()
    refused(san(name="a", size="8MiB"), "a has 16MiB; it is not made smaller (8MiB asked): write size: 16MiB")
    many = san(volumes=[{"name": "a", "size": "8MiB"}, {"name": "b"}], iqn_prefix=PREFIX, size="16MiB", chap_user="")
    assert many["msg"].startswith("a has 16MiB; it is not made smaller")
    assert san.state() == before


def test_a_source_is_copied_once_sparse_and_must_fit(san):
    image = san.data / "images" / "one.raw"
    with image.open("wb") as stream:
        stream.write(b"head")
        stream.truncate(64 * MIB)
        stream.seek(32 * MIB)
        stream.write(b"tail")
    common = {"iqn_prefix": PREFIX, "chap_user": "", "source": str(image)}
    refused(san(name="a", size="32MiB", **common), "does not fit")
    made = done(san(name="a", **common))
    copy = san.data / "a.img"
    assert made["volume"]["size"] == 64 * MIB and copy.read_bytes() == image.read_bytes()
    assert copy.stat().st_blocks * 512 < MIB and copy.stat().st_mode & 0o777 == 0o600
    image.unlink()
    assert not done(san(name="a", **common))["changed"]
    image.write_bytes(b"QFI\xfb" + bytes(MIB))
    refused(san(name="b", **common), "qcow2", "qemu-img convert")


def test_a_run_that_was_cut_off_is_finished_by_the_next(san):
    """Cut after each step in turn: an exception stands for the kill, then the same call finishes the work."""
    args: dict[str, Any] = {"name": "a", "iqn_prefix": PREFIX, "size": "16MiB", "chap_user": "u"}
    args = {**args, "chap_password": SECRET, "initiators": ["127.0.0.1"]}
    steps = len(san(check=True, **args)["actions"])
    assert steps == 6
    for cut in range(steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_resource.Step, "run", _cut_after(cut))
            assert san(**args)["failed"]
        if cut < 5:
            assert san.ask("iscsi-inq", san.url(login=f"u%{SECRET}@")).returncode != 0
        assert done(san(**args))["changed"]
        assert san.ask("iscsi-inq", san.url(login=f"u%{SECRET}@")).returncode == 0
        assert san.ask("iscsi-inq", san.url()).returncode != 0
        removal = {"name": "a", "state": "absent", "remove_data": True}
        for kept in range(4):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_resource.Step, "run", _cut_after(kept))
                san(**removal)
        done(san(**removal))
        assert list(san.conf.iterdir()) == [] and not (san.data / "a.img").exists() and Tgt().accounts() == set()


def _cut_after(number):
    left = [number]
    run = _resource.Step.run

    def cut(step):
        if left[0] == 0:
            raise Failed("cut off")
        left[0] -= 1
        run(step)

    return cut


@pytest.mark.parametrize("kind", ["", "mutual_"])
def test_a_secret_that_a_cut_off_run_changed_can_be_taken_back(san, kind):
    """tgtd tells no secret: what the file says of it must not be believed after such a run."""
    old = {"chap_user": "u", "chap_password": SECRET, "mutual_chap_user": "san", "mutual_chap_password": MUTUAL}
    san.make(**old)
    with pytest.MonkeyPatch.context() as patch:
        # The kill between tgtd's new secret and the file.
        patch.setattr(Store, "save", Mock(side_effect=Failed("killed")))
        assert "killed" in san(**{"name": "a", **old, f"{kind}chap_password": "another-one1"})["msg"]
    assert not san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}")
    assert "is not known" in san(name="a")["msg"]
    assert done(san(name="a", **old))["changed"]
    assert san.logs_in(f"u%{SECRET}", f"san%{MUTUAL}") and not done(san(name="a", **old))["changed"]


def test_access_that_was_closed_by_a_cut_off_run_is_opened_again(san):
    made = san.make()
    Tgt().set_initiators(IQN, [])
    assert done(san(name="a"))["volume"] == made["volume"]
    assert Tgt().targets()[IQN].initiators == ["127.0.0.1"]


def test_a_growth_that_was_cut_off_is_finished(san):
    san.make()
    os.truncate(san.data / "a.img", 32 * MIB)
    Tgt().set_online(IQN, False)
    result = done(san(name="a", size="32MiB"))
    assert result["volume"]["size"] == 32 * MIB and result["volume"]["online"]
    assert "LOGICAL BLOCK ADDRESS:65535" in san.ask("iscsi-readcapacity16", san.url()).stdout


def test_a_lost_file_is_not_replaced_by_an_empty_one(san):
    san.make()
    (san.data / "a.img").unlink()
    refused(san(name="a", size="16MiB"), "is gone")


def test_a_target_that_tgtd_lost_is_made_again_as_it_was(san):
    made = san.make(chap_user="u", chap_password=SECRET)
    Tgt().delete_target(IQN)
    assert done(san(name="a"))["volume"] == made["volume"]
    assert san.ask("iscsi-inq", san.url(login=f"u%{SECRET}@")).returncode == 0


def test_secrets_stay_secret(san):
    """Not in the result, the diff, tgtd's log or the arguments of any process while the module works."""
    secret = f"hidden-{os.getpid():08}"  # a worker beside this one may hand tools the secret of all tests
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if secret.encode() in path.read_bytes():
                        seen.add(path)
                except OSError:
                    continue
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    texts = []
    for args in (
        {"chap_user": "u", "chap_password": secret, "size": "16MiB", "iqn_prefix": PREFIX, "check": True},
        {"chap_user": "u", "chap_password": secret, "size": "16MiB", "iqn_prefix": PREFIX},
        {"chap_password": secret, "size": "bad"},
        {"chap_password": secret, "chap_user": "other"},
        {"volumes": [{"name": "a", "chap_password": secret, "no_such_option": 1}]},
    ):
        san(**{"name": "a", "_ansible_diff": True, **args})
        texts.append(san.text)
    stop.set()
    watcher.join()
    assert not seen and secret not in "".join(texts) and secret not in (san.base / "log").read_text()
    holders = [path for path in san.base.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holders == [san.conf / "drover-a.conf"] and holders[0].stat().st_mode & 0o777 == 0o600


def test_without_tgt_the_mend_is_named(san, monkeypatch):
    monkeypatch.setenv("TGT_IPC_SOCKET", str(san.base / "nowhere"))
    refused(san(name="a"), "is the service tgt running")
    refused(san(name="a", config_directory="/nonexistent"), "san_target")


def test_what_tgtd_does_not_serve_yet_is_not_taken_for_unused(san):
    """tgt.service makes its targets after tgtd has begun to answer; the initiators come back only then."""
    san.make()
    san.daemon.kill()
    san.daemon.wait()
    text = next(san.conf.iterdir()).read_text()
    (san.conf / "drover-a.conf").rename(san.base / "kept")
    san.start()
    (san.base / "kept").rename(san.conf / "drover-a.conf")
    for state, word in (("offline", "run this again"), ("ready", "")):
        assert san.ask("tgtadm", "--mode", "sys", "--op", "update", "--name", "State", "-v", state).returncode == 0
        if word:
            refused(san(name="a", state="absent", remove_data=True), "started or stopped", word)
            refused(san(name="a", size="32MiB"), word)
            assert (san.data / "a.img").stat().st_size == 16 * MIB
            assert (san.conf / "drover-a.conf").read_text() == text and Tgt().portals()
    assert done(san(name="a", state="absent", remove_data=True))["changed"] and not (san.data / "a.img").exists()
