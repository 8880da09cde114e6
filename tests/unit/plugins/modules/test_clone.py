# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of VMs that run, on the libvirt and QEMU of test_backup."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._backup import acts, cloning, files, job, restoring, taking
from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata, site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.plugins.modules import clone
from ansible_collections.drover.kvm.tests.unit.images import qemu_img
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_backup
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_backup import Killed, Machine

pytestmark = test_backup.pytestmark
libvirt = test_backup.libvirt
daemon, machine = test_backup.daemon, test_backup.machine
running, alone = test_backup.running, test_backup.alone
MADE = ["drover-web2-0.qcow2", "drover-web2-1.qcow2"]


class Site:
    """The VM web1, and module clone, which makes web2 of it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.new = machine.folder / "new"
        self.new.mkdir()

    def run(self, **args: Any) -> dict[str, Any]:
        return self.machine.call(clone.main, **{"source": "web1", "name": "web2", "directory": str(self.new), **args})

    def both(self, **args: Any) -> dict[str, Any]:
        """As check mode said, and a second run changes nothing."""
        before = self.there()
        predicted = self.run(**args, _ansible_check_mode=True)
        assert self.there() == before
        done = self.run(**args)
        assert not done.get("failed") and predicted["actions"] == done["actions"] != [], done.get("msg", done)
        again = self.run(**args)
        assert again.get("actions") == [] and not again["changed"], again.get("msg", again)
        return done

    def there(self) -> list[str]:
        return sorted(one.name for one in self.new.iterdir())

    def chain(self) -> list[str]:
        """The files of the source's first disk, as it runs."""
        disk = parse(self.machine.vm.XMLDesc(0)).findall("devices/disk")[0]
        return [str(source.get("file")) for source in disk.iter("source")]


@pytest.fixture
def place(alone: Machine) -> Site:
    return Site(alone)


def test_a_clone_of_a_vm_that_runs(place: Site) -> None:
    kept, chain = place.machine.content(), place.chain()
    done = place.both()
    assert done["actions"] == [
        "copy vda, vdb of web1 as they are at one moment",
        f"make {place.new}/drover-web2-0.qcow2 (8MiB) of vda of web1",
        f"make {place.new}/drover-web2-1.qcow2 (8MiB) of vdb of web1",
        "define web2",
        f"delete {place.new}/.drover-clone-web2",
    ]
    assert done["clone"]["clone_of"] == "web1" and done["clone"]["moment"] and not done["clone"]["quiesced"]
    # The source: the same files, no checkpoint, no job, and it runs.
    assert place.chain() == chain == [str(place.machine.disk("vda"))]
    assert place.machine.checkpoints() == [] and place.machine.vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert "bitmaps" not in qemu_img("info", "-U", "--output=json", place.machine.disk("vda"))
    place.machine.write(6)
    assert place.there() == MADE and place.machine.raw(place.new / MADE[0]) == kept != place.machine.content()
    for name in MADE:
        disk = place.new / name
        assert (os.getxattr(disk, file.MARK).decode(), disk.stat().st_mode & 0o777) == (vm_uuid("web2"), 0o600)
        assert restoring.MARK not in os.listxattr(disk) and disk.stat().st_nlink == 1
    found = place.machine.connection.lookupByName("web2")
    assert found.UUIDString() == vm_uuid("web2") and vm_mac("web2", 0) in found.XMLDesc(0)
    assert metadata.read(parse(found.XMLDesc(0)))[cloning.CLONE_OF] == "web1"
    found.create()  # beside the one that runs: they share nothing


def test_one_that_is_off_or_raw_or_based_on_another_file(place: Site) -> None:
    vm, top = place.machine.vm, place.machine.folder / "top"
    kept = place.machine.content()
    vm.destroy()
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", place.machine.disk("vda"), top)
    top.rename(place.machine.disk("vda").with_name("linked"))
    qemu_img("convert", "-f", "qcow2", "-O", "raw", place.machine.disk("vdb"), top)
    top.replace(place.machine.disk("vdb"))
    place.machine.formats["vdb"] = "raw"
    for state in ("off", "running"):
        place.machine.define()
        xml = place.machine.vm.XMLDesc(0).replace(f"{place.machine.disk('vda')}'", f"{place.machine.folder}/linked'")
        place.machine.connection.defineXML(xml)
        if state == "running":
            place.machine.vm.create()
        name = f"web2-{state}"
        try:
            done = place.both(name=name, nics="none", bandwidth="100MiB")
            found = place.machine.connection.lookupByName(name)
            assert done["clone"]["clone_of"] == "web1" and "<interface" not in found.XMLDesc(0)
        finally:
            with suppress(libvirt.libvirtError):
                place.machine.connection.lookupByName(name).undefine()
        assert place.machine.raw(place.new / f"drover-{name}-0.qcow2") == kept
        assert "backing" not in qemu_img("info", "--output=json", place.new / f"drover-{name}-0.qcow2")
        second = place.new / f"drover-{name}-1.raw"
        assert second.stat().st_size == 8 * test_backup.MIB and second.stat().st_blocks < 100


def test_nothing_is_cloned_over_anything(place: Site, monkeypatch: Any) -> None:
    def refused(words: str, **args: Any) -> None:
        before = place.there()
        done = place.run(**args)
        assert done.get("failed") and words in done["msg"] and place.there() == before, done

    refused("no VM web9", source="web9")
    refused("a clone of itself", name="web1")
    refused("the folder /nowhere does not exist", directory="/nowhere")
    refused("can't be frozen", quiesce="required")
    with monkeypatch.context() as patch:
        patch.setattr(acts, "room_needed", lambda *_args: 2**60)
        refused("MiB left, and a clone of web1 may take")
    with monkeypatch.context() as patch:
        patch.setattr(site, "ask_peers", lambda call, seconds: {"hv2": Unreachable("silent")})
        refused("hv2 gave no answer")
        patch.setattr(
            site, "ask_peers", lambda call, seconds: {"hv2": [{"name": "web2", "active": True, "claims": []}]}
        )
        refused("web2 runs on hv2")
    (place.new / MADE[1]).write_text("somebody's")
    refused("nothing is written over")
    (place.new / MADE[1]).unlink()
    other = test_backup.XML.format(uuid=vm_uuid("web2"), disks="").replace(">web1<", ">web2<")
    place.machine.connection.defineXML(other.replace("00:00:01", "00:00:02"))
    refused("no clone of web1")


MOMENTS = {
    "as QEMU copies": (job, "wait"),
    "as the disks are made": (restoring, "sync"),
    "as it is defined": (Node, "define"),
    "as it is cleared": (restoring, "finish"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_clone_that_is_killed_is_finished_by_the_next(place: Site, monkeypatch: Any, moment: str) -> None:
    kept = place.machine.content()
    with monkeypatch.context() as patch:

        def die(*_args: Any, **_named: Any) -> None:
            raise Killed

        patch.setattr(*MOMENTS[moment], die)
        # Nothing is cleared by the run itself, as after kill -9.
        patch.setattr(taking, "recover", lambda *_args: None)
        with pytest.raises(Killed):
            place.run()
    if moment == "as it is cleared":
        assert place.run(_ansible_check_mode=True)["actions"] == [f"delete {place.new}/.drover-clone-web2"]
    place.machine.write(6)
    place.both()
    assert place.there() == MADE and place.machine.checkpoints() == []
    assert place.chain() == [str(place.machine.disk("vda"))]
    # What was copied already is of the moment of the first run.
    now = place.machine.content()
    assert place.machine.raw(place.new / MADE[0]) == (now if moment == "as QEMU copies" else kept) and now != kept


def test_what_somebody_put_into_the_folder_stays(place: Site, monkeypatch: Any) -> None:
    scratch = place.new / ".drover-clone-web2"
    scratch.mkdir()
    (scratch / "note").write_text("mine")
    done = place.run()
    assert done["failed"] and (scratch / "note").read_text() == "mine", done
    (scratch / "note").unlink()
    assert place.both()["actions"] == [f"delete {scratch}"]


def test_a_clone_has_no_seed_and_no_variables_of_its_source(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "NVRAM_FOLDER", tmp_path)
    monkeypatch.setattr(file, "seed_path", lambda vm: str(tmp_path / f"{vm}.iso"))
    (tmp_path / "web1.iso").touch()
    (tmp_path / "other.iso").touch()
    drives = "".join(
        f"<disk type='file' device='cdrom'><source file='{tmp_path}/{name}.iso'/><target dev='sd{name[0]}'/></disk>"
        for name in ("web1", "other")
    )
    firmware = f"<os><nvram>{tmp_path}/web1_VARS.fd</nvram></os>"
    root = parse(f"<domain><name>web1</name><uuid>u</uuid>{firmware}<devices>{drives}</devices></domain>")
    restoring.adapt(root, "web2", [], "keep")
    assert restoring.VARIABLES.get(root) == f"{tmp_path}/web2_VARS.fd"
    assert [str(source.get("file")) for source in root.iter("source")] == [f"{tmp_path}/other.iso"]


def test_a_copy_of_a_vm_that_a_drain_shut_down_is_not_started_with_it():
    root = parse("<domain><name>web1</name><uuid>6130e9a7-db6c-4a01-8f07-5d0e2f1a5f11</uuid><devices/></domain>")
    metadata.edit(root, {"stopped": "maintenance", "owner": "team1"})
    restoring.adapt(root, "web2", [], "keep")
    assert metadata.read(root).get("stopped") is None and metadata.read(root)["owner"] == "team1"
