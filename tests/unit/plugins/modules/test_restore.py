# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs come back from real backups, on the libvirt and QEMU of test_backup."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._backup import files, restoring, store
from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._domain import metadata, site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_mac, vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.plugins.modules import backup_info, restore
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_backup
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_backup import Killed, Machine

pytestmark = test_backup.pytestmark
libvirt = test_backup.libvirt
daemon, machine = test_backup.daemon, test_backup.machine
running, alone = test_backup.running, test_backup.alone


class Site:
    """The VM, its backups, and module restore."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.kept = machine.content()
        self.id = machine.take()["backup"]["id"]
        self.new = machine.folder / "new"
        self.new.mkdir()

    def run(self, **args: Any) -> dict[str, Any]:
        return self.machine.call(restore.main, **{"name": "web1", "path": str(self.machine.root), **args})

    def both(self, **args: Any) -> dict[str, Any]:
        """As check mode said, and a second run changes nothing."""
        predicted, done = self.run(**args, _ansible_check_mode=True), self.run(**args)
        assert not done.get("failed") and predicted["actions"] == done["actions"] != [], done
        again = self.run(**args)
        assert again["actions"] == [] and not again["changed"], again
        return done


@pytest.fixture
def place(alone: Machine) -> Site:
    return Site(alone)


def test_under_another_name_it_is_another_machine(place: Site) -> None:
    place.machine.write(6)
    done = place.both(new_name="web2", directory=str(place.new))
    disk = place.new / "drover-web2-0.qcow2"
    assert done["restored"] == {
        "name": "web2",
        "backup": place.id,
        "files": [str(disk), str(disk.with_name("drover-web2-1.qcow2"))],
    }
    assert place.machine.raw(disk) == place.kept != place.machine.content()
    assert (os.getxattr(disk, file.MARK).decode(), disk.stat().st_mode & 0o777) == (vm_uuid("web2"), 0o600)
    assert restoring.MARK not in os.listxattr(disk)
    found = place.machine.connection.lookupByName("web2")
    root = parse(found.XMLDesc(0))
    assert found.UUIDString() == vm_uuid("web2") and vm_mac("web2", 0) in found.XMLDesc(0)
    assert metadata.read(root)["restored"] == place.id
    found.create()  # beside the one that runs: they share nothing


def test_the_same_machine_comes_back_where_it_was(place: Site) -> None:
    vm = place.machine.vm
    vm.destroy()
    vm.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    try:
        refused = place.run()
        assert refused["failed"] and "nothing is written over" in refused["msg"], refused
        for target in place.machine.formats:
            place.machine.disk(target).unlink()
        place.both()
        vm = place.machine.vm
        assert vm.UUIDString() == test_backup.UUID and "52:54:00:00:00:01" in vm.XMLDesc(0)
        assert place.machine.raw(place.machine.disk("vda")) == place.kept
        vm.create()
        assert place.machine.take(type="incremental")["backup"]["type"] == "full"
    finally:
        with suppress(libvirt.libvirtError):
            place.machine.define()


def no_marks(*_args: Any) -> None:
    raise OSError(95, "Operation not supported")


def test_nothing_is_restored_over_anything(place: Site, monkeypatch: Any) -> None:
    def refused(words: str, **args: Any) -> None:
        done = place.run(**args)
        assert done.get("failed") and words in done["msg"] and list(place.new.iterdir()) == [], done

    elsewhere = {"new_name": "web2", "directory": str(place.new)}
    refused("goes over none")
    refused("no backup 20000101T000000Z", id="20000101T000000Z")
    refused("has no disk vdz; choose of vda, vdb", disks=["vdz"], directory=str(place.new))
    with monkeypatch.context() as patch:
        patch.setattr(file, "room", lambda path: 1000)
        refused("are needed", **elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", no_marks)
        refused(f"{place.new} keeps no marks of files", **elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(site, "ask_peers", lambda call, seconds: {"hv2": Unreachable("silent")})
        refused("hv2 gave no answer", **elsewhere)
        other = {"name": "web2", "active": True, "claims": []}
        patch.setattr(site, "ask_peers", lambda call, seconds: {"hv2": [other]})
        refused("web2 runs on hv2; a VM has one home: give this one another name", **elsewhere)
    image = place.machine.root / "web1" / place.id / "vda.qcow2"
    data = image.read_bytes()
    image.write_bytes(data[:-1] + b"!")
    refused("is damaged", **elsewhere)


def test_a_restore_that_is_killed_is_finished_by_the_next(place: Site, monkeypatch: Any) -> None:
    args = {"new_name": "web2", "directory": str(place.new)}

    def die(*_args: Any) -> None:
        raise Killed

    for moment in ("compare", "define"):
        owner = files if moment == "compare" else restore.Restore
        with monkeypatch.context() as patch:
            patch.setattr(owner, moment, die)
            with pytest.raises(Killed):
                place.run(**args)
    assert sorted(one.name for one in place.new.iterdir()) == ["drover-web2-0.qcow2", "drover-web2-1.qcow2"]
    (place.new / ".drover-web2-0.qcow2.drover-part").write_text("half")
    done = place.both(**args)
    assert [text.split()[0] for text in done["actions"]] == ["compare", "define"], done


def test_one_disk_as_a_file(place: Site) -> None:
    done = place.both(disks=["vdb"], directory=str(place.new))
    disk = place.new / "drover-web1-1.qcow2"
    assert done["restored"]["files"] == [str(disk)]
    # It is nobody's disk: who removes web1 leaves it, and web1 itself does not come back with it.
    assert file.MARK not in os.listxattr(disk)
    whole = place.run(new_name="web1", directory=str(place.new), id=place.id)
    assert "goes over none" in whole["msg"]
    with pytest.raises(Refused, match="nothing is written over"):
        restoring.check_new(restoring.places(store.read(place.machine.root, "web1")[0], "web1", str(place.new), None))
    (place.new / "drover-web1-0.qcow2").write_text("somebody's")
    assert "nothing is written over" in place.run(disks=["vda"], directory=str(place.new))["msg"]


def test_a_single_disk_that_was_written_to_since_is_not_what_was_restored(place: Site) -> None:
    done = place.both(disks=["vdb"], directory=str(place.new))
    path = Path(done["restored"]["files"][0])
    with path.open("r+b") as stream:
        stream.write(b"lost")
    for check in (True, False):
        again = place.run(disks=["vdb"], directory=str(place.new), _ansible_check_mode=check)
        assert again.get("failed") and "nothing is written over" in again["msg"], again


def test_a_machine_that_had_the_name_before_is_not_restored_unasked(place: Site) -> None:
    later = place.machine.take()["backup"]["id"]
    place.machine.damage(later, uuid="22222222-2222-4222-8222-222222222222")
    options = {"new_name": "web2", "directory": str(place.new)}
    done = place.run(**options)
    assert done.get("failed") and f"{place.id} (of {test_backup.UUID})" in done["msg"], done
    assert place.run(**options, id=place.id, _ansible_check_mode=True)["changed"]


def test_a_disk_has_its_file_by_its_target_alone() -> None:
    disk = {"identity": "iscsi:x", "format": "raw", "size": 1, "file": "x.qcow2"}
    vm = {"name": "web1", "uuid": test_backup.UUID}

    def named(*targets: str) -> list[str]:
        made = store.Backup(Path("/b/1"), {"vm": vm, "disks": [{**disk, "target": one} for one in targets]})
        return [Path(one.path).name for one in restoring.places(made, "web2", None, None)]

    assert named("vda", "vdc") == ["drover-web2-0.qcow2", "drover-web2-2.qcow2"]
    assert named("vdc", "vda", "sda") == ["drover-web2-2.qcow2", "drover-web2-0.qcow2", "drover-web2-sda.qcow2"]


def test_the_list(place: Site) -> None:
    with patch_module_args({"path": str(place.machine.root)}), pytest.raises(SystemExit):
        backup_info.main()
    found = json.loads(place.machine.capsys.readouterr().out)["backups"]
    assert [(one["id"], one["good"], one["type"]) for one in found["web1"]] == [(place.id, True, "full")]


def test_variables_and_keys_are_put_back_and_nothing_else_is_touched(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "NVRAM_FOLDER", tmp_path / "nvram")
    monkeypatch.setattr(files, "TPM_FOLDER", tmp_path / "swtpm")
    keys = tmp_path / "swtpm" / "u1" / "tpm2"
    keys.mkdir(parents=True)
    (keys / "tpm2-00.permall").write_bytes(b"keys")
    (tmp_path / "nvram").mkdir()
    (tmp_path / "nvram" / "web1_VARS.fd").write_bytes(b"vars")
    kept = files.state_of(parse("<domain><os firmware='efi'/></domain>"), "web1", "u1")
    made = [files.NVRAM, files.TPM]
    assert list(kept) == made
    assert restoring.check_state(kept, "web1", "u1") == []
    assert restoring.check_state(kept, "web2", "u2") == made
    for part in made:
        restoring.put_back(part, kept, "web2", "u2")
    assert restoring.check_state(kept, "web2", "u2") == []
    assert (tmp_path / "swtpm" / "u2" / "tpm2" / "tpm2-00.permall").read_bytes() == b"keys"
    (tmp_path / "nvram" / "web2_VARS.fd").write_bytes(b"other")
    with pytest.raises(Refused, match="another machine's"):
        restoring.check_state(kept, "web2", "u2")


def test_the_readme_of_a_backup_is_enough(place: Site) -> None:
    """Its commands with qemu-img, and virsh define; no code of this collection."""
    vm, folder = place.machine.vm, place.machine.root / "web1" / place.id
    place.machine.write(7)
    last = place.machine.take(type="incremental")["backup"]
    folder = place.machine.root / "web1" / last["id"]
    kept = place.machine.content()
    vm.destroy()
    lines = (folder / "README.txt").read_text(encoding="utf-8").splitlines()
    commands = [line.strip() for line in lines if line.startswith("  ") and not line.strip().startswith("virsh")]
    assert [line.split()[0] for line in commands] == ["qemu-img", "sha256sum", "qemu-img", "qemu-img"]
    definition = (folder / "domain.xml").read_text(encoding="utf-8").replace(test_backup.UUID, vm_uuid("web2"))
    for command in commands:
        words = [word.replace("/var/lib/libvirt/images", str(place.new)) for word in command.split("  ")[0].split()]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    for target in place.machine.formats:
        definition = definition.replace(str(place.machine.disk(target)), f"{place.new}/web1-{target}.qcow2")
    place.machine.connection.defineXML(definition.replace("<name>web1<", "<name>web2<"))
    place.machine.connection.lookupByName("web2").create()
    assert place.machine.raw(place.new / "web1-vda.qcow2") == kept
    vm.create()


def test_with_its_memory_it_goes_on_at_that_moment(place: Site) -> None:
    """The commands of docs/backups.md: the memory is saved beside a backup, both while the VM is paused."""
    machine, memory = place.machine, place.machine.folder / "web1.memory"

    def virsh(*words: str) -> None:
        subprocess.run(["virsh", "-q", "-c", machine.uri, *words], check=True, capture_output=True)

    def seen(name: str) -> tuple[bytes, bytes]:
        """What is in the guest's first memory, and on its disk."""
        path = machine.folder / name
        flags = test_backup.libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        test_backup.libvirt_qemu.qemuMonitorCommand(machine.vm, f'pmemsave 0 0x9f000 "{path}"', flags)
        return path.read_bytes(), machine.raw(machine.disk("vda"))

    machine.write(8)
    virsh("suspend", "web1")
    kept = seen("before")
    spared = [word for target in machine.formats for word in ("--diskspec", f"{target},snapshot=no")]
    spec = ["--no-metadata", "--memspec", f"file={memory},snapshot=external"]
    virsh("snapshot-create-as", "web1", "memory", *spec, *spared)
    made = machine.run()["backup"]
    virsh("resume", "web1")
    machine.write(9)
    machine.vm.destroy()
    machine.vm.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    for target in machine.formats:
        machine.disk(target).unlink()
    done = place.run(id=made["id"])
    assert not done.get("failed"), done["msg"]
    virsh("restore", str(memory), "--paused")
    assert seen("after") == kept and any(kept[0])
    virsh("resume", "web1")
    assert machine.vm.isPersistent() and machine.vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
