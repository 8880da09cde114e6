# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_replica with a VM of two disks whose QEMU is played: copies run, and end in one moment or break off."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _later
from ansible_collections.drover.kvm.plugins.module_utils._disks import landing
from ansible_collections.drover.kvm.plugins.module_utils._domain import copying, site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._hypervisor import Domain
from ansible_collections.drover.kvm.plugins.module_utils._xml import find, parse, text_of
from ansible_collections.drover.kvm.plugins.modules import vm_replica

UUID = "7d4da458-de51-4138-9921-aae15234a969"
MIB = 2**20
PORTAL = "10.231.7.10:3260"
XML = """<domain type='qemu'><name>db1</name><uuid>{uuid}</uuid><memory unit='MiB'>96</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disks}
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/x.iso'/><readonly/>
<target dev='sda' bus='sata'/></disk></devices></domain>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/{target}.raw'/>{mirror}
<target dev='{target}' bus='virtio'/></disk>"""
MIRROR = "<mirror type='network' job='copy' ready='{ready}'><format type='raw'/>{source}</mirror>"


class Node:
    """A node with the VM db1; `broken` are disks whose copy breaks off, `log` what was done and in which state."""

    name = "hv1"

    def __init__(self):
        self.copies, self.broken, self.state, self.log = {}, set(), "running", []
        self.failing = set()

    def domain(self, name):
        if name != "db1":
            return None
        mirrors = {target: MIRROR.format(ready="yes", source=source) for target, source in self.copies.items()}
        disks = [DISK.format(target=target, mirror=mirrors.get(target, "")) for target in ("vda", "vdb")]
        plain = [DISK.format(target=target, mirror="") for target in ("vda", "vdb")]
        live = XML.format(uuid=UUID, disks="".join(disks)) if self.state != "stopped" else None
        return Domain(
            name="db1", uuid=UUID, id=1, state=self.state, reason="booted", persistent=True, autostart=True,
            has_managed_save=False, xml=XML.format(uuid=UUID, disks="".join(plain)), live_xml=live, job=None,
        )  # fmt: skip

    def domains(self, brief=False):
        return {"db1": self.domain("db1")}

    def password(self, kind, usage):
        return "ChapOfTheLab42"

    def block_sizes(self, name, target):
        return {"capacity": MIB}

    def block_job(self, name, target):
        return {}

    def start_block_copy(self, name, target, xml, rate):
        self.log.append(("copy", target, rate))
        if target not in self.broken:
            self.copies[target] = text_of(find(parse(xml), "source")).strip()

    def abort_block_job(self, name, target):
        self.log.append(("end", target, self.state))
        if target in self.failing:
            raise Failed("no job")
        del self.copies[target]

    def suspend(self, name):
        self.state = "paused"

    def resume(self, name):
        self.state = "running"


@pytest.fixture
def node(monkeypatch):
    found = Node()

    @contextmanager
    def same():
        yield found

    def qemu_img(argv, stdin=None):
        if argv[1] == "dd":
            with open(argv[-1].partition("=")[2], "wb") as out:
                out.write(bytes(MIB))
        return {"virtual-size": found.volume}

    found.volume = MIB
    monkeypatch.setattr(vm_replica, "connect", same)
    monkeypatch.setattr(landing, "run_json", qemu_img)
    monkeypatch.setattr(landing, "run", qemu_img)
    monkeypatch.setattr(_later, "run", lambda argv, **_named: found.log.append((argv[0], argv[-1])))
    monkeypatch.setattr(site, "ask_peers", lambda _call, _seconds: {})
    return found


def place(target):
    return {"target": target, "iqn": f"iqn.2026-11.org.example:replica-db1-{target}-a", "portal": PORTAL}


BOTH = [place("vda"), place("vdb")]


@pytest.fixture
def run(node, capsys):
    def module(disks=tuple(BOTH), **args):
        with patch_module_args({"name": "db1", "disks": list(disks), **args}), pytest.raises(SystemExit):
            vm_replica.main()
        return json.loads(capsys.readouterr().out)

    return module


def test_all_disks_are_copied_and_end_in_one_moment(node, run):
    predicted = run(_ansible_check_mode=True)
    assert node.log == [] and predicted["replica"] is None
    real = run(bandwidth="1MiB", slot="b")
    assert real["actions"] == predicted["actions"] == [
        f"copy vda of db1 to iqn.2026-11.org.example:replica-db1-vda-a/1@{PORTAL} (1MiB)",
        f"copy vdb of db1 to iqn.2026-11.org.example:replica-db1-vdb-a/1@{PORTAL} (1MiB)",
        "end the copies of db1 in one moment",
    ]  # fmt: skip
    assert node.log == [
        ("copy", "vda", MIB),
        ("copy", "vdb", MIB),
        # Who resumes the VM is there before it is paused.
        ("systemd-run", UUID),
        ("end", "vda", "paused"),
        ("end", "vdb", "paused"),
        ("systemctl", f"drover-resume-{UUID}.timer"),
        ("systemctl", f"drover-resume-{UUID}.service"),
    ]
    assert node.state == "running" and not node.copies
    replica = real["replica"]
    assert (replica["vm"], replica["slot"], replica["uuid"]) == ("db1", "b", UUID)
    disks = replica["sheet"]["disks"]
    assert [(disk["target"], disk["type"], disk["iqn"][-5:]) for disk in disks] == [
        ("vda", "iscsi", "vda-a"),
        ("vdb", "iscsi", "vdb-a"),
    ]
    assert run()["changed"]


def test_copies_of_a_killed_run_are_ended_by_the_next(node, run):
    source = f"<source protocol='iscsi' name='{BOTH[0]['iqn']}/1'><host name='10.231.7.10' port='3260'/></source>"
    node.copies["vda"] = source
    assert run()["replica"] and ("copy", "vda", 0) not in node.log
    # It went to the other replica: that one is not wanted now.
    node.copies["vda"] = source.replace("vda-a", "vda-b")
    assert run()["actions"][0].startswith("end the copy of vda of db1 to iqn.2026-11.org.example:replica-db1-vda-b")


def test_a_vm_that_stands_still_is_left_so(node, run):
    node.state = "paused"
    assert run()["replica"] and node.state == "paused" and "systemd-run" not in dict(x[:2] for x in node.log)


def test_a_vm_runs_on_when_a_copy_can_not_be_ended(node, run):
    node.failing = {"vdb"}
    result = run()
    assert result["failed"] and result["replica"] is None and node.state == "running"


def test_a_copy_that_breaks_off_is_no_replica(node, run):
    node.broken = {"vdb"}
    result = run()
    assert "broke off" in result["msg"] and result["replica"] is None


@pytest.mark.parametrize(
    "disks,size,words",
    [
        ([place("vda")], MIB, "also has vdb"),
        (BOTH, 2 * MIB, "only the same size"),
        (BOTH, MIB // 2, "does not fit"),
        ([place("vda"), {**place("vda"), "target": "vdb"}], MIB, "is for"),
    ],
)
def test_what_is_refused(node, run, disks, size, words):
    node.volume = size
    assert words in run(disks)["msg"] and node.log == []
    node.state = "stopped"
    assert "start it first" in run(disks)["msg"]


def test_a_vm_is_not_copied_onto_what_it_runs_from(node, run, monkeypatch):
    there = "iscsi:iqn.2026-11.org.example:replica-db1-vda-a/1@10.231.7.10:3260"
    real = copying.transfer.disks
    monkeypatch.setattr(
        copying.transfer,
        "disks",
        lambda *trees: {
            target: disk._replace(identity=there, defined=there) if target == "vda" else disk
            for target, disk in real(*trees).items()
        },
    )
    assert "so that can't be its replica" in run()["msg"]
    assert node.log == []
