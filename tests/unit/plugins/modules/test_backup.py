# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of VMs on a real libvirt and QEMU of their own. The guest's writes are QEMU's own (qemu-io)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _files, _later, _libvirt
from ansible_collections.drover.kvm.plugins.module_utils._backup import acts, files, job, moments, store, taking
from ansible_collections.drover.kvm.plugins.module_utils._backup.acts import Acts
from ansible_collections.drover.kvm.plugins.module_utils._domain import site, stillness
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.plugins.modules import backup
from ansible_collections.drover.kvm.tests.unit import images, libvirt_server
from ansible_collections.drover.kvm.tests.unit.images import qemu_img

libvirt = pytest.importorskip("libvirt")
libvirt_qemu = pytest.importorskip("libvirt_qemu")
LACKING = libvirt_server.missing() or next(
    (f"{one} is not installed" for one in ("qemu-img", "qemu-system-x86_64") if not shutil.which(one)), None
)
pytestmark = [pytest.mark.skipif(LACKING is not None, reason=str(LACKING)), pytest.mark.slow]
MIB = 2**20
UUID = "11111111-1111-4111-8111-111111111111"
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>
<target dev='{target}' bus='virtio'/><alias name='ua-{target}'/></disk>"""
XML = """<domain type='qemu'><name>web1</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disks}
<disk type='file' device='cdrom'><target dev='sda' bus='ide'/><readonly/></disk>
<interface type='user'><mac address='52:54:00:00:00:01'/></interface></devices></domain>"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[libvirt_server.Daemon]:
    with libvirt_server.private_libvirtd() as running:
        yield running


class Machine:
    """The VM web1 with two disks, a folder of backups, and module backup."""

    def __init__(self, folder: Path, uri: str, capsys: Any) -> None:
        self.folder, self.uri, self.capsys = folder, uri, capsys
        self.root = folder / "backups"
        self.root.mkdir()
        self.connection = libvirt.open(uri)
        self.timers: list[str] = []
        self.formats = {"vda": "qcow2", "vdb": "qcow2"}
        for target, image_format in self.formats.items():
            qemu_img("create", "-q", "-f", image_format, self.disk(target), "8M")
        self.define()

    def systemd(self, argv: Any, **_named: Any) -> None:
        """Timers of systemd, as they are set and stopped."""
        words = dict(word.split("=", 1) for word in argv if word.startswith("--unit="))
        if words:
            self.timers.append(words["--unit"])
        elif argv[-1].endswith(".timer") and argv[-1][: -len(".timer")] in self.timers:
            self.timers.remove(argv[-1][: -len(".timer")])

    def disk(self, target: str) -> Path:
        return self.folder / f"{target}.img"

    def define(self) -> None:
        """Define it with the disks as they are."""
        disks = [
            DISK.format(format=kind, path=self.disk(target), target=target) for target, kind in self.formats.items()
        ]
        self.connection.defineXML(XML.format(uuid=UUID, disks="".join(disks)))

    @property
    def vm(self) -> Any:
        return self.connection.lookupByName("web1")

    def write(self, pattern: int, at: str = "1M", length: str = "64k", target: str = "vda") -> None:
        """The guest writes."""
        command = f'qemu-io -d /machine/peripheral/ua-{target}/virtio-backend "write -P {pattern} {at} {length}"'
        said = libvirt_qemu.qemuMonitorCommand(self.vm, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert "rror" not in said and "failed" not in said, said

    def content(self, target: str = "vda") -> bytes:
        """What is on a disk of the VM, which is paused for it."""
        self.vm.suspend()
        try:
            return self.raw(self.disk(target), self.formats[target])
        finally:
            self.vm.resume()

    def raw(self, path: Path, image_format: str = "qcow2") -> bytes:
        """What a guest sees in an image."""
        return images.content(path, self.folder / "content", image_format)

    def call(self, main: Callable[[], None], **args: Any) -> dict[str, Any]:
        """A module."""
        with patch_module_args({"uri": self.uri, **args}), pytest.raises(SystemExit):
            main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def run(self, **args: Any) -> dict[str, Any]:
        """The module."""
        return self.call(backup.main, **{"name": "web1", "path": str(self.root), **args})

    def take(self, **args: Any) -> dict[str, Any]:
        """A backup, as check mode said."""
        before = self.there()
        predicted = self.run(**args, _ansible_check_mode=True)
        assert not predicted.get("failed"), predicted["msg"]
        assert self.there() == before
        done = self.run(**args)
        assert not done.get("failed"), done["msg"]
        assert predicted["actions"] == done["actions"] and done["changed"]
        return done

    def there(self) -> list[str]:
        """All that is in the VM's folder."""
        place = self.root / "web1"
        return sorted(one.name for one in place.iterdir() if one.name != store.LOCK) if place.exists() else []

    def checkpoints(self) -> list[str]:
        return sorted(one.getName() for one in self.vm.listAllCheckpoints(0))

    def damage(self, backup_id: str, uuid: str = UUID) -> None:
        """A backup is known to be bad; `uuid` is of the machine that it is of."""
        folder = self.root / "web1" / backup_id
        said = json.loads((folder / store.MANIFEST).read_text())
        (folder / store.MANIFEST).write_text(json.dumps({**said, "vm": {"name": "web1", "uuid": uuid}}))
        (folder / store.DAMAGED).write_text(json.dumps({"complaint": "rot"}))

    def restored(self, backup_id: str, target: str = "vda") -> bytes:
        """What is in a backup, with qemu-img alone."""
        out = self.folder / "restored"
        qemu_img("convert", "-O", "raw", self.root / "web1" / backup_id / f"{target}.qcow2", out)
        return out.read_bytes()


@pytest.fixture
def machine(tmp_path: Path, daemon: libvirt_server.Daemon, capsys: Any, monkeypatch: Any) -> Iterator[Machine]:
    found = Machine(tmp_path, daemon.uri(), capsys)
    monkeypatch.setattr(_later, "run", found.systemd)
    # A machine that computes much else beside the tests is no node that hangs.
    monkeypatch.setattr(_libvirt, "OPEN_SECONDS", 60.0)
    monkeypatch.setattr(stillness, "STILL_SECONDS", 60)
    yield found
    with suppress(libvirt.libvirtError):
        found.vm.destroy()
    found.vm.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    found.connection.close()


@pytest.fixture
def running(machine: Machine) -> Machine:
    machine.vm.create()
    return machine


@pytest.fixture
def alone(running: Machine, monkeypatch: Any) -> Iterator[Machine]:
    """It wrote something, and the node has no peers; VM web2, which is made of it, goes at the end."""
    monkeypatch.setattr(site, "ask_peers", lambda call, seconds: {})
    running.write(5)
    yield running
    with suppress(libvirt.libvirtError):
        found = running.connection.lookupByName("web2")
        with suppress(libvirt.libvirtError):
            found.destroy()
        found.undefine()


def test_each_point_of_a_chain_of_five_comes_back_as_it_was(running: Machine) -> None:
    seen = {}
    for number in range(6):
        running.write(number + 1, f"{number}M")
        running.write(0x77, "7M", target="vdb")
        if number == 3:  # what was thrown away must not shine through from below
            running.write(0, "1M")
        kept = running.content()
        done = running.take(type="incremental", compression=("zstd", "none", "zlib")[number % 3])
        assert done["backup"]["type"] == ("incremental" if number else "full"), done
        seen[done["backup"]["id"]] = kept
    assert len(seen) == 6 and running.there() == sorted(seen)
    assert len(set(seen.values())) == 6
    for backup_id, kept in seen.items():
        assert running.restored(backup_id) == kept
    assert running.checkpoints() == [f"drover-{max(seen)}"]
    last = running.root / "web1" / max(seen)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=last, check=True)
    assert (last.stat().st_mode & 0o777, {one.stat().st_mode & 0o777 for one in last.iterdir()}) == (0o700, {0o600})
    assert "qemu-img convert" in (last / "README.txt").read_text()
    again = running.take(type="incremental", max_incrementals=5)
    assert again["backup"]["type"] == "full" and "5 incremental" in again["backup"]["reason"]


@pytest.fixture
def volumes(machine: Machine) -> Iterator[Machine]:
    """It runs with both disks on devices of the node, as logical volumes are."""
    with ExitStack() as stack:
        disks = []
        for target in machine.formats:
            qemu_img("create", "-q", "-f", "raw", machine.disk(target), "8M")
            argv = ["losetup", "-f", "--show", str(machine.disk(target))]
            found = subprocess.run(argv, capture_output=True, text=True, check=False)
            if found.returncode:
                pytest.skip(f"no loop device: {found.stderr.strip()}")
            device = found.stdout.strip()
            stack.callback(subprocess.run, ["losetup", "-d", device], check=True)
            disk = DISK.format(format="raw", path=device, target=target)
            disks.append(disk.replace("type='file'", "type='block'").replace("source file", "source dev"))
        machine.formats = dict.fromkeys(machine.formats, "raw")
        machine.connection.defineXML(XML.format(uuid=UUID, disks="".join(disks)))
        machine.vm.create()
        stack.callback(machine.vm.destroy)
        yield machine


def test_each_of_six_backups_of_volumes_comes_back_as_it_was(volumes: Machine) -> None:
    """QEMU can note no changes there, so each is a full one, and says so."""
    seen = {}
    for number in range(6):
        for target in volumes.formats:
            volumes.write(number + 1, f"{number}M", target=target)
        kept = {target: volumes.content(target) for target in volumes.formats}
        made = volumes.take(type="incremental", keep=9)["backup"]
        assert made["type"] == "full" and made["reason"].startswith("all of vda (raw), vdb (raw)"), made
        seen[made["id"]] = kept
    assert len({kept["vda"] for kept in seen.values()}) == 6 and volumes.there() == sorted(seen)
    for backup_id, kept in seen.items():
        assert {target: volumes.restored(backup_id, target) for target in kept} == kept


def test_two_histories_are_kept_and_never_fewer_good_ones(running: Machine) -> None:
    first, second, third = (running.take()["backup"]["id"] for _number in range(3))
    assert running.there() == [second, third]
    # The one that would stay is bad: the older one stays too, and the next run knows.
    with (running.root / "web1" / third / "vda.qcow2").open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"rot")
    (running.root / "web1" / "20200101T000000Z").mkdir()
    (running.root / "web1" / "notes.txt").write_text("not ours")
    done = running.run()
    assert done["failed"] and "damaged" in done["msg"] and f"history {second} stays" in done["msg"], done
    fourth = done["backup"]["id"]
    mine = ["20200101T000000Z", "notes.txt"]
    assert running.there() == sorted([*mine, second, third, fourth]) and list(done["damaged"]) == [third]
    checked = running.run(state="verified")
    assert not checked["changed"] and list(checked["damaged"]) == [third]
    # With one more good one the damaged one goes with the older ones.
    fifth = running.take()["backup"]["id"]
    assert running.there() == sorted([*mine, fourth, fifth]) and first not in running.there()
    assert running.run(newer_than="1h")["changed"] is False


def test_a_young_backup_of_a_machine_that_had_the_name_before_does_not_do(running: Machine, monkeypatch: Any) -> None:
    running.take()
    monkeypatch.setattr(Acts, "_uuid", lambda _acts: "11111111-4b9c-5d8e-9d55-08a1b6cf3a52")
    for check in (True, False):
        assert running.run(newer_than="1h", _ansible_check_mode=check)["changed"]


def test_damage_is_noted_and_not_built_upon(running: Machine) -> None:
    full = running.take()["backup"]["id"]
    place = running.root / "web1" / full / "vdb.qcow2"
    whole = place.read_bytes()
    place.write_bytes(whole[:-1] + b"x")
    for check in (True, False):
        said = running.run(state="verified", _ansible_check_mode=check)
        assert said["changed"] and "vdb.qcow2" in said["damaged"][full]
    assert running.run(state="verified", newer_than="1h")["changed"] is False
    done = running.take(type="incremental")
    assert done["backup"]["type"] == "full" and "is not good" in done["backup"]["reason"]
    place.write_bytes(whole)
    assert running.run(state="verified")["actions"] == [f"note of {full}: good again"]


def test_one_that_is_removed_while_all_are_read_is_not_damaged(running: Machine, monkeypatch: Any) -> None:
    first, second = (running.take()["backup"]["id"] for _number in range(2))
    read = store.verify

    def slowly(one: store.Backup) -> Any:
        if one.id == first:
            store.remove(one)  # another run, with the lock
        return read(one)

    monkeypatch.setattr(store, "verify", slowly)
    said = running.run(state="verified")
    assert not said["changed"] and not said.get("failed") and said["damaged"] == {}, said
    assert running.there() == [second]


def test_a_folder_without_links_and_attributes_will_do(running: Machine, monkeypatch: Any) -> None:
    """As NFS before 4.2 and much else."""

    def lacking(*_args: object, **_more: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for verb in ("link", "symlink", "setxattr", "getxattr"):
        monkeypatch.setattr(os, verb, lacking)
    for kind in ("full", "incremental"):
        running.write(3)
        assert running.take(type=kind)["backup"]["good"]
    assert not running.run(state="verified")["damaged"]


def test_nothing_else_is_done_while_another_run_has_the_lock(running: Machine, monkeypatch: Any) -> None:
    full = running.take()["backup"]["id"]
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0)
    with _files.locked(running.root / "web1", "", store.LOCK):
        done = running.run()
        assert done["failed"] and "another run has held" in done["msg"] and running.there() == [full]
    # Some file systems have no locks.
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert "can't be locked: No locks available" in running.run()["msg"] and running.there() == [full]


def no_locks(*_args: Any) -> None:
    raise OSError(37, "No locks available")


def test_backups_of_a_vm_that_is_gone_stay_until_they_are_old_and_named(running: Machine, monkeypatch: Any) -> None:
    first, second = (running.take(keep=3)["backup"]["id"] for _number in range(2))
    absent = {"state": "absent", "older_than": "1s"}
    assert "web1 is on" in running.run(**absent)["msg"]
    assert "say older_than" in running.run(state="absent")["msg"]
    vm, other = running.vm, "22222222-2222-4222-8222-222222222222"
    monkeypatch.setattr(Acts, "_uuid", lambda _acts: other)  # another machine has its name now
    young = running.run(state="absent", older_than="1d")
    assert not young["changed"] and f"{second}, is younger" in str(young["warnings"])
    monkeypatch.setattr(acts, "age", lambda _one: 90000.0)
    (running.root / "web1" / "notes.txt").write_text("not ours")
    for check in (True, False):
        done = running.run(state="absent", older_than="1d", _ansible_check_mode=check)
        assert done["actions"] == [f"remove the history {one} of web1 (1)" for one in (first, second)], done
    assert running.there() == ["notes.txt"] and vm.isActive()
    assert not running.run(state="absent", older_than="1d")["changed"]


def open_image(path: Path) -> subprocess.Popen[bytes]:
    """A program that holds the image open for writing, until it is told to quit; it says so by its prompt."""
    for _try in range(100):  # whoever looks at the image just then is in its way
        found = subprocess.Popen(["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert found.stdout
        if found.stdout.read(8) == b"qemu-io>":
            return found
        found.communicate()
    raise AssertionError(f"{path} can't be opened")


def test_a_copy_that_qemu_has_not_closed_yet_is_waited_for(running: Machine, monkeypatch: Any) -> None:
    wait, free, writers, looks = job.wait, files.is_free, [], []

    def early(*args: Any) -> None:
        wait(*args)
        writers.append(open_image(next((running.root / "web1").glob(".*.part/vda.copy"))))

    def look(copy: Path) -> bool:
        looks.append(free(copy))
        if len(looks) == 2:
            writers[0].communicate(b"quit\n")
        return looks[-1]

    monkeypatch.setattr(job, "wait", early)
    monkeypatch.setattr(files, "is_free", look)
    try:
        done = running.run()
        assert not done.get("failed"), done["msg"]
        assert looks[:2] == [False, False] and looks[-1]
    finally:
        writers[0].kill()
        writers[0].wait()


def failing(words: str) -> Any:
    """A function that fails."""

    def call(*_args: Any, **_named: Any) -> None:
        raise Failed(words)

    return call


class Killed(BaseException):
    """The process ends here, and cleans up nothing."""


@pytest.mark.parametrize("moment", ["begun", "copying", "packed", "named", "removing"])
def test_a_run_that_is_killed_is_cleared_by_the_next(running: Machine, monkeypatch: Any, moment: str) -> None:
    good = running.take(keep=1)["backup"]["id"]

    def die(*_args: Any, **_named: Any) -> None:
        raise Killed

    place = {
        "begun": (Node, "begin_backup"),
        "copying": (job, "wait"),
        "packed": (files, "seal"),
        "named": (Path, "rename"),
        "removing": (store, "clear"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[moment], die)
        if moment != "removing":
            patch.setattr(taking, "recover", die)
        with pytest.raises(Killed):
            running.run(type="full" if moment == "removing" else "incremental", keep=1)
    assert any(name.startswith(".") for name in running.there()), running.there()
    again = running.take(type="incremental", keep=1)
    left = running.there()
    assert not [name for name in left if name.startswith(".")] and again["backup"]["id"] in left
    if moment != "removing":
        assert again["backup"]["base"] == good
    assert len(running.checkpoints()) == 1 and running.restored(again["backup"]["id"]) == running.content()


def test_a_machine_that_is_off_and_one_whose_marks_are_lost(machine: Machine) -> None:
    off = machine.take(type="incremental")["backup"]
    assert (off["type"], off["state"]) == ("full", "stopped") and "is off" in off["reason"]
    machine.vm.create()
    machine.write(9)
    first = machine.take(type="incremental")["backup"]
    assert first["type"] == "full" and "no checkpoint" in first["reason"]
    # Moved to a node that does not know the checkpoint: the marks are in the disks.
    machine.vm.checkpointLookupByName(machine.checkpoints()[0]).delete(
        libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    )
    machine.write(10)
    second = machine.take(type="incremental")["backup"]
    assert second["base"] == first["id"] and machine.restored(second["id"]) == machine.content()
    # The marks themselves are gone.
    machine.vm.checkpointLookupByName(machine.checkpoints()[0]).delete(0)
    third = machine.take(type="incremental")["backup"]
    assert third["type"] == "full" and "can't tell" in third["reason"], third


def test_of_mixed_disks_those_are_incremental_that_can_be(machine: Machine) -> None:
    machine.formats["vdb"] = "raw"
    qemu_img("create", "-q", "-f", "raw", machine.disk("vdb"), "8M")
    machine.define()
    machine.vm.create()
    machine.write(1, target="vdb")
    first = machine.take(type="incremental")["backup"]
    assert (first["type"], first["reason"]) == ("full", "there is none yet") and len(machine.checkpoints()) == 1
    seen = {}
    for number in (2, 3):
        machine.write(number, f"{number}M")
        machine.write(number, f"{number}M", target="vdb")
        kept = [machine.content(target) for target in ("vda", "vdb")]
        done = machine.take(type="incremental")
        assert done["backup"]["type"] == "incremental" and done["actions"][-1].endswith(
            ", all of vdb (raw), where QEMU can't note what changes"
        )
        assert done["backup"]["reason"] == "all of vdb (raw), where QEMU can't note what changes"
        seen[done["backup"]["id"]] = kept
    for backup_id, kept in seen.items():
        assert [machine.restored(backup_id, target) for target in ("vda", "vdb")] == kept
        place = machine.root / "web1" / backup_id
        told = [qemu_img("info", "--output=json", place / f"{one}.qcow2") for one in machine.formats]
        assert ["backing-filename" in one for one in told] == [True, False]
    # A VM of such disks only: there is nothing that an incremental one could be based on.
    machine.vm.destroy()
    machine.formats["vda"] = "raw"
    qemu_img("create", "-q", "-f", "raw", machine.disk("vda"), "8M")
    machine.vm.checkpointLookupByName(machine.checkpoints()[0]).delete(
        libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    )
    machine.define()
    machine.vm.create()
    last = machine.take(type="incremental")["backup"]
    assert last["type"] == "full" and last["reason"].startswith("all of vda (raw), vdb (raw)"), last


def test_snapshots_of_the_storage_are_read_in_place_of_the_disks(running: Machine) -> None:
    running.write(1)
    snapshots = {target: running.folder / f"{target}.snapshot" for target in running.formats}
    kept = {target: running.content(target) for target in running.formats}
    for target, path in snapshots.items():
        path.write_bytes(kept[target])
    running.write(2)
    disks = [{"target": target, "path": str(path)} for target, path in snapshots.items()]
    told = {"disks": disks, "moment": "20261122T030000Z", "quiesced": True}

    def refused(words: str, **args: Any) -> None:
        done = running.run(**args)
        assert done["failed"] and words in done["msg"] and running.there() == [], done

    refused("name each once", from_snapshot={"disks": disks[:1]})
    refused("name each once", from_snapshot={"disks": [*disks, disks[0]]})
    for words, one in {
        "is vda of web1 itself": {"path": str(running.disk("vda"))},
        "give either path or iqn": {},
        "needs a portal": {"iqn": "iqn.2026-11.org.example:a"},
    }.items():
        refused(words, from_snapshot={"disks": [{"target": "vda", **one}, disks[1]]})
    refused("mode: stop has no effect", from_snapshot=told, mode="stop")
    refused("not a", from_snapshot={"disks": disks, "moment": "yesterday"})
    made = running.take(from_snapshot=told, type="incremental")["backup"]
    assert (made["type"], made["moment"], made["quiesced"]) == ("full", "20261122T030000Z", True)
    assert "don't tell what has changed" in made["reason"] and running.checkpoints() == [] and running.timers == []
    assert {target: running.restored(made["id"], target) for target in kept} == kept
    assert running.restored(made["id"]) != running.content()
    # One of another size is of another disk; nothing of the backup is left, and the snapshot is not touched.
    snapshots["vdb"].write_bytes(bytes(4 * MIB))
    done = running.run(from_snapshot=told)
    assert done["failed"] and "has 4194304 bytes and the disk 8388608" in done["msg"], done
    assert running.there() == [made["id"]] and all(path.exists() for path in snapshots.values())
    # What a killed run leaves is cleared, and it works for a VM that is off.
    running.vm.destroy()
    snapshots["vdb"].write_bytes(kept["vdb"])
    off = running.take(from_snapshot=told)["backup"]
    assert off["state"] == "stopped" and running.restored(off["id"]) == kept["vda"]


def test_what_is_refused_changes_nothing(running: Machine, monkeypatch: Any) -> None:
    def refused(words: str, **args: Any) -> None:
        done = running.run(**args)
        assert done.get("failed") and words in done["msg"] and running.there() == [], done

    refused("does not exist", path="/nowhere/at/all")
    refused("no VM web9", name="web9")
    refused("can't be frozen", quiesce="required")
    refused("is no span of time", newer_than="yesterday")
    monkeypatch.setattr(taking, "SPARE", 2**60)
    refused("may take")
    monkeypatch.undo()
    monkeypatch.setattr(_later, "run", running.systemd)
    monkeypatch.setattr(files, "pack", failing("No space left on device"))
    refused("No space left")
    assert running.checkpoints() == [] and running.vm.info()[0] == 1


def test_a_clock_that_was_set_back_removes_and_makes_nothing(running: Machine, monkeypatch: Any) -> None:
    """F-26: by its name the new backup would be the oldest, and the next to go."""
    running.take()
    before = running.there()
    clock = SimpleNamespace(now=lambda zone: datetime.now(zone) - timedelta(hours=1))
    monkeypatch.setattr(taking, "datetime", clock)
    done = running.run(type="full", keep=1)
    assert done.get("failed") and "before the last backup" in done["msg"], done
    assert running.there() == before
    monkeypatch.setattr(taking, "datetime", datetime)
    running.take()


def test_one_of_the_future_does_not_stand_for_those_that_are_due(running: Machine, monkeypatch: Any) -> None:
    """A clock that was a year ahead and was set right: nothing was backed up for that year, and nobody was told."""
    with monkeypatch.context() as patch:
        patch.setattr(taking, "datetime", SimpleNamespace(now=lambda zone: datetime.now(zone) + timedelta(days=365)))
        running.take()
    before = running.there()
    for check in (True, False):
        done = running.run(newer_than="20h", keep=1, _ansible_check_mode=check)
        assert done.get("failed") and "before the last backup" in done["msg"] and "move " in done["msg"], done
    assert running.there() == before


def test_one_whose_manifest_can_t_be_read_is_named_and_counts_no_more(running: Machine) -> None:
    first, second = (running.take()["backup"]["id"] for _number in range(2))
    (running.root / "web1" / second / store.MANIFEST).write_bytes(b"\0" * 100)
    mine = running.root / "web1" / "20200101T000000Z"
    mine.mkdir()
    (mine / store.MANIFEST).write_bytes(b"not ours, and no JSON")
    (mine / store.SUMS).write_text("not ours")
    listed = store.read(running.root, "web1")
    assert [(one.id, one.complaint is None) for one in listed] == [(first, True), (second, False)]
    assert listed[1].facts()["complaint"].startswith("manifest.json: ")
    said = running.run(state="verified")
    assert not said.get("failed") and list(said["damaged"]) == [second], said
    assert not running.run(state="verified")["changed"]
    # The last good one stays, and what can't be read is not taken for another machine's.
    third = running.take(keep=1, type="incremental")["backup"]
    assert third["type"] == "full" and running.there() == sorted([mine.name, first, second, third["id"]])


def test_what_is_based_on_one_that_is_gone_is_named(running: Machine, monkeypatch: Any) -> None:
    """Of an encrypted one the checksums alone are read, which don't show it."""
    full = running.take()["backup"]["id"]
    above = running.take(type="incremental")["backup"]["id"]
    shutil.rmtree(running.root / "web1" / full)
    monkeypatch.setattr(store, "verify", lambda _one: None)
    said = running.run(state="verified")
    assert not said.get("failed") and said["damaged"] == {above: f"{full}, on which it is based, is gone"}, said


def test_what_the_disk_has_lost_of_the_copy_is_no_backup(running: Machine, monkeypatch: Any) -> None:
    """As with a server of NFS that was away for a while: the kernel says so once, and reads holes from then on."""
    fsync, names = os.fsync, {"zstd": "vdb.copy", "none": "vdb.qcow2"}

    def lost(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(names[compression]):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lost)
    for compression in names:
        done = running.run(compression=compression)
        assert done.get("failed") and "has lost what was written to it: Input/output error" in done["msg"], done
        assert running.there() == [] and running.checkpoints() == []


def test_what_is_compared_is_what_the_disk_has(running: Machine, monkeypatch: Any) -> None:
    compare, kept = files._compare, []

    def look(words: list[str], pair: list[str], *more: Any) -> None:
        image = str(json.loads(pair[1][len("json:") :])["file"]["filename"])
        said = subprocess.run(["fincore", "-b", "-n", "-o", "RES", image], capture_output=True, text=True, check=True)
        kept.append(int(said.stdout))
        compare(words, pair, *more)

    if subprocess.run(["stat", "-f", "-c", "%T", running.root], capture_output=True, check=True).stdout == b"tmpfs\n":
        pytest.skip("what is on a tmpfs is in memory only")
    monkeypatch.setattr(files, "_compare", look)
    running.write(5, length="1M")
    running.take()
    assert kept == [0, 0]


def test_a_folder_where_root_is_somebody_else_or_that_is_away_is_refused(running: Machine, monkeypatch: Any) -> None:
    def refused(words: str) -> None:
        for check in (True, False):
            done = running.run(_ansible_check_mode=check)
            assert done.get("failed") and words in done["msg"] and "Traceback" not in str(done), done

    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1)
        refused("no_root_squash")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", stale)
        refused("can't be written to: Stale file handle")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_why_no_folder", lambda _path: time.sleep(60))
        patch.setattr(store, "LOOK_SECONDS", 0.5)
        refused("gave no answer within 0.5 s; look at its server")
    assert running.there() == []


def stale(**_named: Any) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_guest_that_the_failing_copy_stopped_goes_on(running: Machine, monkeypatch: Any) -> None:
    """QEMU lets it overwrite nothing that could not be copied before: where the folder is full, it pauses the guest."""
    monkeypatch.setattr(taking, "IO_ERROR", "user")  # libvirt says another word of ours

    def stopped(*_args: Any) -> None:
        running.vm.suspend()
        raise Failed("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(job, "wait", stopped)
        done = running.run()
    assert done["failed"] and "No space left" in done["msg"] and running.there() == []
    assert running.vm.info()[0] == libvirt.VIR_DOMAIN_RUNNING
    # One that somebody had paused before stays so.
    running.vm.suspend()
    with monkeypatch.context() as patch:
        patch.setattr(job, "wait", stopped)
        assert running.run()["failed"]
    assert running.vm.info()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_suspend_and_stop_go_on(running: Machine, monkeypatch: Any) -> None:
    assert running.take(mode="suspend")["backup"]["mode"] == "suspend" and running.vm.info()[0] == 1
    monkeypatch.setattr(Node, "shutdown", lambda node, name: node.destroy(name))
    before = running.vm.ID()
    assert running.take(mode="stop", bandwidth="1GiB", type="incremental")["backup"]["type"] == "incremental"
    assert running.vm.info()[0] == 1 and running.vm.ID() != before
    assert running.timers == []
    monkeypatch.setattr(moments, "until", failing("did not shut down"))
    assert running.run(mode="stop")["failed"]
    assert running.vm.info()[0] == 1 and running.timers == []


def test_a_guest_that_goes_off_too_late_is_started_again(running: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr(Node, "shutdown", lambda *_args: None)
    done = running.run(mode="stop", shutdown_timeout=1)
    unit = f"drover-start-{UUID}"
    assert done["failed"] and f"Should it go off in the next 10 min, {unit} starts it again" in done["msg"]
    assert running.timers == [unit] and running.there() == [] and running.vm.info()[0] == 1
    # The next run takes it over; this time the guest goes off at once.
    monkeypatch.setattr(Node, "shutdown", lambda node, name: node.destroy(name))
    assert not running.run(mode="stop").get("failed") and running.timers == []
    monkeypatch.setattr(Node, "shutdown", failing("no ACPI"))
    assert "no ACPI" in running.run(mode="stop")["msg"] and running.timers == [] and running.vm.info()[0] == 1


def test_a_guest_that_ran_again_too_early_is_not_of_one_moment(running: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr(stillness, "STILL_SECONDS", 0)
    for mode in ("suspend", "stop"):
        monkeypatch.setattr(Node, "shutdown", lambda node, name: node.destroy(name))
        done = running.run(mode=mode)
        assert done["failed"] and "ran again before all was done" in done["msg"] and running.there() == []
        assert running.vm.info()[0] == 1 and running.checkpoints() == []
