# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module backup of RBD images: libvirt's test driver, a Ceph cluster in memory, and QEMU's programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _rbd
from ansible_collections.drover.kvm.plugins.module_utils._backup import files, secrecy, store, taking
from ansible_collections.drover.kvm.plugins.module_utils._disks import rbd
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, libvirt
from ansible_collections.drover.kvm.plugins.modules import backup
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_snapshot import both, run, vms
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_snapshot_rbd import FILE, MIB, Site
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import FSID, ceph

__all__ = ["both", "ceph", "run", "vms"]
pytestmark = [
    pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt"),
    pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed"),
    pytest.mark.slow,
]
IMAGES = ["web1-0", "web1-1"]


class Saved(Site):
    """The VM web1 with two images, and its backups."""

    def __init__(self, vms, ceph, monkeypatch, folder, capsys):
        super().__init__(vms, ceph, monkeypatch)
        self.folder, self.capsys, self.root = folder, capsys, folder / "backups"
        self.root.mkdir()
        for image in IMAGES:
            self.images.add(image, 12 * MIB)
        self.define()

    def address(self, identity, snapshot):
        """A snapshot for QEMU's programs, which here is a file with the same in it."""
        name = identity.rpartition("/")[2]
        assert identity == f"rbd:{FSID}/vms/{name}"
        path = self.folder / f"{name}@{snapshot}"
        path.write_bytes(self.bytes(name, snapshot))
        return str(path)

    def bytes(self, image, snapshot=None):
        """What a guest would read."""
        found = self.images[image]["snaps"][snapshot] if snapshot else self.images[image]
        whole = bytearray(found["size"])
        for offset, text in found["data"].items():
            whole[offset : offset + 512] = text.encode().ljust(512, b"\0")
        return bytes(whole)

    def take(self, check=False, **args):
        given = {"name": "web1", "path": str(self.root), "type": "incremental", **args, "_ansible_check_mode": check}
        with patch_module_args(given), pytest.raises(SystemExit):
            backup.main()
        return json.loads(self.capsys.readouterr().out)

    def good(self, **args):
        """A backup, as check mode said."""
        foretold, done = self.take(check=True, **args), self.take(**args)
        assert not done.get("failed"), done
        assert foretold["actions"] == done["actions"]
        return done["backup"]

    def restored(self, made, target="vda"):
        """What is in a backup, with qemu-img alone."""
        out = self.folder / "restored"
        image = self.root / "web1" / made["id"] / f"{target}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(out)], check=True)
        return out.read_bytes()

    def left(self):
        place = self.root / "web1"
        return sorted(one.name for one in place.iterdir() if one.name.startswith(".") and one.name != store.LOCK)


@pytest.fixture
def saved(vms, ceph, monkeypatch, tmp_path, capsys):
    @contextmanager
    def same(_uri):
        yield vms.node

    found = Saved(vms, ceph, monkeypatch, tmp_path, capsys)
    monkeypatch.setattr(backup, "connect", same)
    monkeypatch.setattr(rbd, "address", found.address)
    # The test driver knows neither jobs of backups nor checkpoints.
    monkeypatch.setattr(Node, "backup", lambda *_args: None)
    monkeypatch.setattr(Node, "checkpoints", lambda *_args: [])
    monkeypatch.setattr(Node, "block_sizes", lambda *_args: {"capacity": MIB, "allocation": MIB})
    return found


def test_each_point_of_a_chain_comes_back_as_it_was(saved):
    seen = []
    for number in range(4):
        saved.write("web1-0", number * 3 * MIB + 512, f"round {number}")
        saved.write("web1-1", 10 * MIB, f"round {number}")
        if number == 2:  # what was given back must not shine through from below
            del saved.images["web1-0"]["data"][512]
        kept = [saved.bytes(one) for one in IMAGES]
        made = saved.good(compression=("zstd", "none")[number % 2], bandwidth="1GiB" if number == 3 else None)
        assert made["type"] == ("incremental" if number else "full"), made
        seen.append((made, kept))
    for made, kept in seen:
        assert [saved.restored(made, target) for target in ("vda", "vdb")] == kept
    # Of the incremental ones only what changed is in the folder, and of the snapshots only the last is left.
    assert all(made["size"] < MIB for made, _kept in seen[1:])
    snapshots = [saved.snaps(one) for one in IMAGES]
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) == 1
    assert snapshots[0][0].startswith(f"drover-backup-{seen[-1][0]['id']}-")
    assert saved.left() == [] and not saved.take(state="verified")["changed"]


def test_an_encrypted_chain_comes_back_with_the_key_of_its_history(saved, monkeypatch):
    monkeypatch.setattr(secrecy, "SLOW", 10)
    for number, kind in enumerate(("full", "incremental")):
        saved.write("web1-0", number * 3 * MIB + 512, f"round {number}")
        kept = [saved.bytes(one) for one in IMAGES]
        made = saved.good(encryption="luks", passphrase="it is a secret")
        assert (made["type"], made["encryption"]) == (kind, "luks"), made
    folder = saved.root / "web1" / made["id"]
    assert not [one for one in saved.root.rglob("*.*") if one.is_file() and b"round" in one.read_bytes()]
    key = secrecy.unlock(folder / secrecy.STATE, "it is a secret")[secrecy.KEY].decode()
    out = saved.folder / "restored"
    for target, content in zip(("vda", "vdb"), kept):
        with secrecy.told(key) as told:
            image = secrecy.address(folder / f"{target}.qcow2", key)
            subprocess.run(["qemu-img", "convert", *told, "-O", "raw", image, str(out)], check=True)
        assert out.read_bytes() == content
    wrong = saved.take(encryption="luks", passphrase="it is another")
    assert wrong["failed"] and "another passphrase" in wrong["msg"], wrong


def test_all_images_are_of_one_moment(saved):
    saved.events.clear()
    assert saved.good(quiesce="required")["quiesced"]
    taken = [event for event in saved.events if event.startswith("take")]
    assert len(taken) == 2 and all(event.endswith("paused ['web1']") for event in taken), taken
    assert saved.node.domain("web1").state == "running" and not saved.vms.guests["web1"].frozen


def test_what_a_rollback_undid_is_in_the_next_one(saved):
    saved.images.snap("web1-0", "before")
    saved.write("web1-0", 8 * MIB, "a change that goes wrong")
    saved.good()
    with _rbd.rbd.Image(saved.images, "web1-0") as image:
        saved.open("web1", False)
        image.rollback_to_snap("before")
    made = saved.good()
    assert made["type"] == "incremental" and saved.restored(made) == saved.bytes("web1-0")


def test_one_that_is_off_moved_or_lost_its_node_goes_on(saved):
    first = saved.good()
    saved.node.destroy("web1")
    saved.write("web1-0", 0, "written elsewhere")
    second = saved.good()
    assert (second["type"], second["base"], second["state"]) == ("incremental", first["id"], "stopped")
    assert saved.restored(second) == saved.bytes("web1-0")


def test_without_its_ground_it_is_a_full_one(saved):
    saved.good(type="full")
    # Nobody asked for more, so the pool keeps nothing.
    assert saved.snaps() == []
    first = saved.good()
    assert first["type"] == "full" and "no checkpoint" in first["reason"]
    del saved.images["web1-1"]["snaps"][saved.snaps()[0]]
    second = saved.good()
    assert second["type"] == "full" and "vms/web1-1 has the snapshot of the last one" in second["reason"]
    saved.images["web1-0"]["size"] += MIB
    assert "the disks are not those" in saved.good()["reason"]


def test_snapshots_of_others_stay_and_ours_are_none_of_module_snapshot(saved, run):
    name = "drover-backup-20200101T000000Z-deadbeef"  # that of another folder of backups
    saved.images.snap("web1-0", name)
    saved.images.snap("web1-0", "theirs")
    for _number in range(2):
        saved.good()
    assert {name, "theirs"} < set(saved.snaps()) and len(saved.snaps()) == 3
    listed = run(name="web1", state="retained", keep=0, check=True)["vms"][0]["snapshots"]
    assert [one["name"] for one in listed] == ["theirs"]
    # One that somebody cloned stays too.
    mine = next(one for one in saved.snaps("web1-1"))
    saved.images["web1-1"]["snaps"][mine]["protected"] = True
    saved.good()
    assert mine in saved.snaps("web1-1") and len(saved.snaps("web1-1")) == 2


def test_when_the_vm_is_gone_its_last_snapshot_goes_with_its_backups(saved):
    made = saved.good()
    assert made["id"] in saved.snaps()[0]
    saved.node.destroy("web1")
    saved.node.undefine("web1")
    del saved.images["web1-1"]
    done = saved.take(state="absent", older_than="0s")
    assert done["changed"] and saved.snaps() == [] and saved.left() == []


@pytest.mark.parametrize("lacking", ["library", "key"])
def test_a_node_that_can_ask_nobody_lets_qemu_copy(saved, monkeypatch, lacking):
    if lacking == "library":
        monkeypatch.setattr(_rbd, "rbd", None)
    else:
        (saved.folder / "ceph/ceph.client.libvirt.keyring").rename(saved.folder / "ceph/ceph.client.admin.keyring")
    saved.node.destroy("web1")
    assert "can be read while it runs only" in saved.take()["msg"]


def test_a_mixture_of_disks_is_qemus(saved):
    saved.node.destroy("web1")
    saved.define(more=FILE, start=False)
    assert "can be read while it runs only" in saved.take()["msg"]


class Killed(BaseException):
    """The process ends here, and cleans up nothing."""


def dying(*_args, **_named):
    raise Killed


PLACES = {
    "begun": (_rbd.Images, "take"),
    "taken": (_rbd.Images, "written"),
    "copying": (files, "copy_places"),
    "packing": (files, "pack"),
    "sealing": (files, "seal"),
}


@pytest.mark.parametrize("moment", PLACES)
def test_a_run_that_is_killed_is_cleared_by_the_next(saved, monkeypatch, moment):
    good = saved.good()
    ground = saved.snaps()
    saved.write("web1-0", 4 * MIB, "more")
    with monkeypatch.context() as patch:
        patch.setattr(*PLACES[moment], dying)
        patch.setattr(taking, "recover", dying)
        with pytest.raises(Killed):
            saved.take()
    assert saved.left()
    again = saved.good()
    assert again["base"] == good["id"] and saved.left() == [] and saved.restored(again) == saved.bytes("web1-0")
    assert len(saved.snaps()) == len(saved.snaps("web1-1")) == 1 and saved.snaps() != ground


def test_one_killed_before_the_older_snapshot_went_loses_nothing(saved, monkeypatch):
    saved.good()
    with monkeypatch.context() as patch:
        patch.setattr(_rbd.Images, "drop", dying)
        patch.setattr(taking, "recover", dying)
        with pytest.raises(Killed):
            saved.take()
    assert saved.left() == [] and len(saved.snaps()) == 2
    assert saved.good()["type"] == "incremental" and len(saved.snaps()) == 1


def test_a_failure_leaves_nothing(saved, monkeypatch):
    saved.good()
    ground = saved.snaps()

    def full(*_args, **_named):
        raise Failed("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "pack", full)
        done = saved.take()
    assert done["failed"] and "No space left" in done["msg"]
    assert saved.left() == [] and saved.snaps() == saved.snaps("web1-1") == ground
    assert saved.node.domain("web1").state == "running"


def test_qemu_is_told_of_files_only(ceph, tmp_path):
    said = rbd.address(f"rbd:{FSID}/vms/ns/web1:0", "s1")
    folder = tmp_path / "ceph"
    assert said == (
        f"rbd:vms/ns/web1\\:0@s1:conf={folder}/ceph.conf:id=libvirt:keyring={folder}/ceph.client.libvirt.keyring"
    )


def test_a_copy_that_lacks_a_place_is_found():
    held = [(0, 65536), (65536, 131072), (1 << 20, 2 << 20)]
    assert files.lacking([(0, 131072), (1 << 20, 512)], held) == []
    assert files.lacking([(0, 131073), (500000, 1), ((2 << 20) - 1, 2)], held) == [0, 500000, (2 << 20) - 1]
    assert files.lacking([], []) == [] and files.lacking([(3, 1)], []) == [3]
