# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_storage on real files, with a VM whose QEMU is played: a copy writes the bytes, a pivot changes over."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._disks import file
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.module_utils._xml import Property, parse
from ansible_collections.drover.kvm.plugins.modules import vm_storage

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
UUID = "7d4da458-de51-4138-9921-aae15234a969"
MIB = 2**20
XML = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='KiB'>1024</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>{mirror}
<target dev='vda' bus='virtio'/></disk></devices></domain>"""


class Node:
    """One node with the VM web1; `full` breaks a copy off, `slow` are the looks until it has caught up."""

    def __init__(self, path):
        self.path, self.format, self.copy, self.full, self.slow = str(path), "raw", None, False, 0
        self.state, self.others = "running", {}

    def domain(self, name):
        if name != "web1":
            return None
        mirror = ""
        if self.copy:
            self.slow -= 1
            ready = "yes" if self.slow < 0 else "no"
            mirror = f"<mirror type='file' ready='{ready}'><source file='{self.copy[0]}'/></mirror>"
        values = {"name": "web1", "uuid": UUID, "path": self.path, "format": self.format}
        live = XML.format(**values, mirror=mirror) if self.state == "running" else None
        return Domain(
            name="web1", uuid=UUID, id=1, state=self.state, reason="booted", persistent=True, autostart=False,
            has_managed_save=False, xml=XML.format(**values, mirror=""), live_xml=live, job=None,
        )  # fmt: skip

    def domains(self):
        return {"web1": self.domain("web1"), **self.others}

    def block_sizes(self, name, target):
        return {"capacity": MIB}

    def block_job(self, name, target):
        return {"cur": 1, "end": 2}

    def start_block_copy(self, name, target, xml, rate):
        disk = parse(xml)
        path = Property("source/@file").get(disk)
        if self.full == "at once":
            raise Failed("no room")
        if not self.full:
            self.copy = (path, Property("driver/@type").get(disk))

    def pivot(self, name, target):
        (self.path, self.format), self.copy = self.copy, None

    def abort_block_job(self, name, target):
        self.copy = None


@pytest.fixture
def node(tmp_path, monkeypatch):
    file.create({"path": f"{tmp_path}/a.raw", "format": "raw"}, MIB, UUID)
    found = Node(tmp_path / "a.raw")

    @contextmanager
    def same():
        yield found

    monkeypatch.setattr(vm_storage, "connect", same)
    return found


@pytest.fixture
def run(node, tmp_path, capsys):
    def module(path="b.qcow2", image_format="qcow2", **args):
        disk = {"target": "vda", "path": f"{tmp_path}/{path}", "format": image_format}
        with patch_module_args({"name": "web1", "disks": [disk], **args}), pytest.raises(SystemExit):
            vm_storage.main()
        return json.loads(capsys.readouterr().out)

    return module


def names(tmp_path):
    return sorted(os.listdir(tmp_path))


@pytest.mark.parametrize("remove", [False, True])
def test_a_disk_moves_and_a_second_run_changes_nothing(node, run, tmp_path, remove):
    node.slow = 3
    predicted = run(remove_source=remove, _ansible_check_mode=True)
    assert names(tmp_path) == ["a.raw"]
    node.slow = 3
    real = run(remove_source=remove)
    assert real["actions"] == predicted["actions"] == [
        f"copy vda of web1 from {tmp_path}/a.raw to {tmp_path}/b.qcow2 (qcow2, 1MiB)",
        f"change vda of web1 to {tmp_path}/b.qcow2",
        *([f"delete {tmp_path}/a.raw"] if remove else []),
    ]  # fmt: skip
    assert real["disks"] == [{"target": "vda", "storage": f"file:{tmp_path}/b.qcow2", "format": "qcow2"}]
    assert names(tmp_path) == (["b.qcow2"] if remove else ["a.raw", "b.qcow2"])
    assert not file.is_unfinished(f"{tmp_path}/b.qcow2", UUID)
    assert run(remove_source=remove)["actions"] == []


@pytest.mark.parametrize("full", [True, "at once"])
def test_a_copy_that_breaks_off_leaves_nothing_and_the_vm_where_it_was(node, run, tmp_path, full):
    node.full = full
    result = run()
    assert result["failed"] and names(tmp_path) == ["a.raw"] and node.path == f"{tmp_path}/a.raw"
    node.full = False
    assert run()["changed"]


def test_a_run_after_a_killed_one_goes_on_or_cleans_up(node, run, tmp_path):
    file.create({"path": f"{tmp_path}/b.qcow2", "format": "qcow2"}, MIB, UUID, unfinished=True)
    node.copy = (f"{tmp_path}/b.qcow2", "qcow2")
    assert run("a.raw", "raw")["actions"] == [f"end the copy of vda of web1 to {tmp_path}/b.qcow2"]
    assert names(tmp_path) == ["a.raw"]
    file.create({"path": f"{tmp_path}/b.qcow2", "format": "qcow2"}, MIB, UUID, unfinished=True)
    assert run()["actions"][0] == f"delete {tmp_path}/b.qcow2, which an unfinished copy left"
    assert node.path == f"{tmp_path}/b.qcow2"


def test_what_is_not_ours_stays(node, run, tmp_path):
    os.removexattr(tmp_path / "a.raw", file.MARK)
    assert len(run(remove_source=True)["actions"]) == 2
    assert names(tmp_path) == ["a.raw", "b.qcow2"]
    before = (tmp_path / "a.raw").read_bytes()
    assert "is there already" in run("a.raw", "raw")["msg"] and (tmp_path / "a.raw").read_bytes() == before


def test_what_is_refused(node, run, tmp_path, monkeypatch):
    assert "does not exist" in run("none/b.qcow2")["msg"]
    assert "belongs to the operating system" in run(disks=[{"target": "vda", "path": "/dev/sda"}])["msg"]
    assert "has no disk vdz" in run(disks=[{"target": "vdz", "path": f"{tmp_path}/b.raw"}])["msg"]
    assert "there is no VM web2" in run(name="web2")["msg"]
    monkeypatch.setattr(file, "room", lambda path: MIB)
    assert "does not fit" in run()["msg"] and names(tmp_path) == ["a.raw"]
    node.state = "stopped"
    assert "start it first" in run()["msg"]
    assert Path(node.path).exists()
