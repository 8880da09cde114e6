# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_storage on real files, with a VM whose QEMU is played: a copy writes the bytes, a pivot changes over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _ceph, _ceph_conf, _rbd
from ansible_collections.drover.kvm.plugins.module_utils._disks import file, landing
from ansible_collections.drover.kvm.plugins.module_utils._domain import disks, site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.module_utils._xml import Property, find, parse, text_of
from ansible_collections.drover.kvm.plugins.modules import vm_storage
from ansible_collections.drover.kvm.tests.unit import rbd_library

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
UUID = "7d4da458-de51-4138-9921-aae15234a969"
OTHER = "2f8f1f5e-8a35-4bd0-9e3c-4e0c1d8d0d11"
MIB = 2**20
PASSWORD = "ChapOfTheLab42"
FSID = "4b2f6b9e-5c2e-4a3c-9a0e-6d1f0f6a7c11"
IQN, PORTAL = "iqn.2026-11.org.example:drover-web1-0", "10.231.5.10:3260"
UNIT = f"iscsi:{IQN}/1@{PORTAL}"
VOLUME = {"target": "vda", "type": "iscsi", "iqn": IQN, "portal": PORTAL, "user": "drover", "secret": "san1"}
XML = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='KiB'>1024</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='{kind}' device='disk'><driver name='qemu' type='{format}'/>{source}{mirror}
<target dev='vda' bus='virtio'/></disk></devices></domain>"""
MIRROR = "<mirror type='{kind}' job='copy' ready='{ready}'><format type='{format}'/>{source}</mirror>"


class Storage(NamedTuple):
    """What a disk lies on, in libvirt's words."""

    kind: str
    source: str
    format: str

    @classmethod
    def of(cls, xml):
        disk = parse(xml)
        return cls(disk.get("type"), text_of(find(disk, "source")).strip(), Property("driver/@type").get(disk))

    @property
    def path(self):
        return Property("@file").get(parse(self.source))


def a_file(path, image_format="raw"):
    return Storage("file", f"<source file='{path}'/>", image_format)


def definition(name, uuid, storage, mirror=""):
    return XML.format(name=name, uuid=uuid, mirror=mirror, **storage._asdict())


class Node:
    """One node with the VM web1; `full` breaks a copy off, `slow` are the looks until it has caught up."""

    name = "hv1"

    def __init__(self, path):
        self.disk, self.copy, self.full, self.slow = a_file(path), None, False, 0
        self.state, self.others, self.size, self.started = "running", {}, MIB, 0
        self.snapshots = False

    @property
    def path(self):
        return self.disk.path

    def vm(self, name, uuid, storage, mirror="", state="running"):
        live = definition(name, uuid, storage, mirror) if state == "running" else None
        return Domain(
            name=name, uuid=uuid, id=1, state=state, reason="booted", persistent=True, autostart=False,
            has_managed_save=False, xml=definition(name, uuid, storage), live_xml=live, job=None,
            has_snapshots=self.snapshots,
        )  # fmt: skip

    def domain(self, name):
        if name != "web1":
            return None
        mirror = ""
        if self.copy:
            self.slow -= 1
            mirror = MIRROR.format(ready="yes" if self.slow < 0 else "no", **self.copy._asdict())
        return self.vm("web1", UUID, self.disk, mirror, self.state)

    def domains(self, brief=False):
        return {"web1": self.domain("web1"), **self.others}

    def password(self, kind, usage):
        assert (kind, usage) == ("iscsi", "san1")
        return PASSWORD

    def block_sizes(self, name, target):
        return {"capacity": self.size}

    def block_resize(self, name, target, size):
        self.size = size

    def block_job(self, name, target):
        return {"cur": 1, "end": 2}

    def start_block_copy(self, name, target, xml, rate):
        self.started += 1
        if self.full == "at once":
            raise Failed("no room")
        if not self.full:
            self.copy = Storage.of(xml)

    def pivot(self, name, target):
        self.disk, self.copy = self.copy, None

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
    assert names(tmp_path) == (["b.qcow2"] if remove else ["a.raw", "b.qcow2"]) and not real.get("warnings")
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
    node.copy = a_file(f"{tmp_path}/b.qcow2", "qcow2")
    assert run("a.raw", "raw")["actions"] == [f"end the copy of vda of web1 to {tmp_path}/b.qcow2"]
    assert names(tmp_path) == ["a.raw"]
    file.create({"path": f"{tmp_path}/b.qcow2", "format": "qcow2"}, MIB, UUID, unfinished=True)
    assert run()["actions"][0] == f"delete {tmp_path}/b.qcow2, which an unfinished copy left"
    assert node.path == f"{tmp_path}/b.qcow2"


def test_a_disk_with_snapshots_stays(node, run, tmp_path):
    node.snapshots = True
    result = run(disks=[{"target": "vda", "path": str(tmp_path / "new.raw")}])
    assert "web1 has snapshots, which a copy of its disks would not have" in result["msg"]
    assert not (tmp_path / "new.raw").exists() and node.started == 0


def test_what_another_file_is_based_on_stays(node, run, tmp_path):
    """An overlay that somebody made by hand would be worth nothing without it."""
    words = ["-q", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "a.raw"), str(tmp_path / "theirs.qcow2")]
    subprocess.run(["qemu-img", "create", *words], check=True)
    moved = run(remove_source=True)
    words = f"{tmp_path}/a.raw, where vda was, stays: {tmp_path}/theirs.qcow2 is based on it"
    assert len(moved["actions"]) == 2 and words in json.dumps(moved["warnings"])
    assert names(tmp_path) == ["a.raw", "b.qcow2", "theirs.qcow2"]


def test_what_is_not_ours_stays(node, run, tmp_path):
    os.removexattr(tmp_path / "a.raw", file.MARK)
    moved = run(remove_source=True)
    assert len(moved["actions"]) == 2 and "stays: it does not carry the mark of web1" in json.dumps(moved["warnings"])
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


class San:
    """What qemu-img says of the one volume of the SAN; `peers` are what the other nodes' VMs have."""

    def __init__(self):
        self.data, self.peers, self.looks = bytearray(MIB), {}, 0

    def run(self, argv, stdin=None):
        words = " ".join(argv)
        assert stdin == PASSWORD and PASSWORD not in words, words
        assert f"portal={PORTAL},target={IQN},lun=1,initiator-name=iqn.2026-01.org.drover:vm-web1" in words
        self.looks += 1
        if argv[1] == "dd":
            Path(argv[-1].partition("=")[2]).write_bytes(self.data[:MIB])
        return {"virtual-size": len(self.data)}


@pytest.fixture
def san(monkeypatch):
    found = San()
    monkeypatch.setattr(landing, "run_json", found.run)
    monkeypatch.setattr(landing, "run", found.run)
    monkeypatch.setattr(site, "ask_peers", lambda _call, _seconds: dict(found.peers))
    return found


def test_a_local_disk_moves_to_the_san_and_back_as_its_vm_runs(node, run, tmp_path, san):
    predicted = run(disks=[VOLUME], remove_source=True, _ansible_check_mode=True)
    assert node.disk == a_file(f"{tmp_path}/a.raw")
    real = run(disks=[VOLUME], remove_source=True)
    assert real["actions"] == predicted["actions"] == [
        f"copy vda of web1 from {tmp_path}/a.raw to {UNIT[6:]} (raw, 1MiB)",
        f"change vda of web1 to {UNIT[6:]}",
        f"delete {tmp_path}/a.raw",
    ]  # fmt: skip
    assert real["disks"] == [{"target": "vda", "storage": UNIT, "format": "raw"}] and names(tmp_path) == []
    # What libvirt then has is what module vm makes of the same options.
    kept = disks.read(find(find(parse(node.domain("web1").xml), "devices"), "disk"))
    assert {key: kept[key] for key in VOLUME} == VOLUME and kept["initiator"] == "iqn.2026-01.org.drover:vm-web1"
    san.looks = 0
    assert not run(disks=[VOLUME], remove_source=True)["changed"] and san.looks == 0
    # The volume is the SAN's: it stays.
    assert len(run(remove_source=True)["actions"]) == 2 and node.path == f"{tmp_path}/b.qcow2"


def test_a_bigger_volume_makes_the_disk_bigger(node, run, san):
    san.data = bytearray(4 * MIB)
    assert run(disks=[VOLUME])["actions"][0] == f"grow vda of web1 as it runs to 4MiB, the size of {UNIT[6:]}"
    assert node.size == 4 * MIB


def test_data_on_a_volume_stays_unless_it_may_be_overwritten(node, run, san):
    san.data[1024] = 1
    assert "is not empty" in run(disks=[VOLUME])["msg"] and not node.started
    assert run(disks=[VOLUME], overwrite=True)["changed"]


def test_a_copy_to_the_san_that_was_cut_off_goes_on(node, run, san):
    node.slow, node.full = 10**6, False
    assert "not there after" in run(disks=[VOLUME], timeout=1)["msg"]
    node.slow, san.looks = 2, 0
    assert [words.split()[0] for words in run(disks=[VOLUME])["actions"]] == ["copy", "change"]
    assert node.started == 1 and san.looks == 0


@pytest.mark.parametrize(
    "peer,options,words",
    [
        ([{"name": "db1", "active": False, "claims": [["disk", UNIT]]}], {}, "belongs to db1 on hv2"),
        # Over another portal.
        ([{"name": "db1", "active": False, "claims": [["disk", f"unit:{IQN}/1"]]}], {}, "belongs to db1 on hv2"),
        (Unreachable("no answer"), {}, "hv2 gave no answer"),
        (Unreachable("no answer"), {"fenced": ["hv2"]}, None),
        ([{"name": "web1", "active": False, "claims": [["disk", UNIT]]}], {}, None),
    ],
)
def test_a_volume_that_another_vm_may_use_is_not_written_to(node, run, san, peer, options, words):
    san.peers = {"hv2": peer}
    result = run(disks=[VOLUME], **options)
    assert words in result["msg"] if words else result["changed"]
    assert bool(node.started) == (words is None)


def test_a_volume_that_a_vm_of_the_node_has_is_not_written_to(node, run, san):
    image = source_of(VOLUME)
    node.others = {"db1": node.vm("db1", OTHER, image, state="stopped")}
    assert "belongs to db1 on this node" in run(disks=[VOLUME])["msg"]


def source_of(options):
    """What libvirt has of a disk with these options."""
    kind = disks.KINDS[options["type"]]
    return Storage.of(disks.source_xml({"format": "raw", **kind.fill(options, "web1", 0)}))


@pytest.fixture
def ceph(tmp_path, monkeypatch, san):
    folder = tmp_path / "ceph"
    folder.mkdir()
    (folder / "ceph.conf").write_text(f"[global]\nfsid = {FSID}\nmon host = 10.231.5.13\n")
    (folder / "ceph.client.libvirt.keyring").write_text("")
    found = rbd_library.Cluster()
    monkeypatch.setattr(_ceph_conf, "FOLDER", folder)
    monkeypatch.setattr(_ceph, "connect", found.connect)
    monkeypatch.setattr(_rbd, "rbd", found.rbd)
    return found.pools["vms"]


IMAGE = {"target": "vda", "type": "rbd", "pool": "vms"}


def test_a_disk_moves_to_ceph_and_back(node, run, ceph, tmp_path):
    assert len(run(disks=[IMAGE], _ansible_check_mode=True)["actions"]) == 2 and not ceph
    real = run(disks=[IMAGE])
    assert real["disks"][0]["storage"] == f"rbd:{FSID}/vms/drover-web1-0"
    # It is marked as ours, and no more as unfinished.
    assert ceph["drover-web1-0"] == {**ceph["drover-web1-0"], "size": MIB, "meta": {"drover.vm": UUID}}
    assert not run(disks=[IMAGE])["changed"]
    back = run(remove_source=True)
    assert back["actions"][-1] == f"delete {FSID}/vms/drover-web1-0" and ceph.trash == ["drover-web1-0"]


def test_a_copy_has_nothing_of_the_snapshots_of_an_image(node, run, ceph):
    run(disks=[IMAGE])
    ceph.snap("drover-web1-0", "theirs")
    ceph["drover-web1-0"]["meta"]["drover.snapshot.gone"] = "{}"
    assert run(_ansible_check_mode=True)["changed"]
    ceph["drover-web1-0"]["meta"]["drover.snapshot.s1"] = "{}"
    ceph.snap("drover-web1-0", "s1")
    assert "has snapshots, which a copy of its disks would not have" in run()["msg"]
    assert not run(disks=[IMAGE])["changed"]


def test_an_image_that_is_there_stays_unless_it_is_an_unfinished_copy(node, run, ceph):
    ceph.add("drover-web1-0", MIB, meta={"drover.vm": UUID})
    assert "is there already" in run(disks=[IMAGE])["msg"]
    ceph["drover-web1-0"]["meta"]["drover.copy"] = "1"
    assert run(disks=[IMAGE])["actions"][0].endswith("which an unfinished copy left")
    assert ceph.trash == ["drover-web1-0"]


@pytest.mark.parametrize("full", [True, "at once"])
def test_a_copy_to_ceph_that_breaks_off_leaves_nothing(node, run, ceph, full, tmp_path):
    node.full = full
    assert run(disks=[IMAGE])["failed"] and not ceph and node.path == f"{tmp_path}/a.raw"
