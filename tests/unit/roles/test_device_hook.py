# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook that gives a VM its devices, run as libvirt runs it, with LVM's commands as a small stateful fake."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._xml import parse

HOOK = Path(__file__).resolve().parents[3] / "roles/hypervisor/files/drover-devices"
UUID = "7d4da458-de51-4138-9921-aae15234a969"
# `here` are the locks of this node, `there` those of another; vmsan is a shared group, vmdata a local one.
LVM = """#!{python}
import json, os, sys
path = {state!r}
state = json.load(open(path))
program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
state["log"].append(" ".join([program, *words]))
status, said = 0, ""
if program == "vgs":
    said = "  vmsan sanlock\\n  vmdata "
elif program == "vgchange":
    state["joined"] = True
elif program == "lvchange":
    volume, how = words[-1], words[1]
    other = state["there"].get(volume)
    if how == "n":
        state["here"].pop(volume, None)
    elif not state["joined"]:
        status, said = 5, "Cannot access VG vmsan due to failed lock."
    elif other and not (how == "sy" and other == "sh"):
        status, said = 5, "LV locked by other host: " + volume
    else:
        state["here"][volume] = how
elif program == "systemd-run" and state["silent"]:
    status, said = 1, "Failed to connect to bus"
json.dump(state, open(path, "w"))
sys.stderr.write(said) if program != "vgs" else print(said)
sys.exit(status)
"""
DOMAIN = """<domain type='kvm'><name>web1</name><uuid>{uuid}</uuid>{metadata}<devices>
<disk type='block' device='disk'><source dev='/dev/{volume}'/></disk>
<disk type='block' device='disk'><source dev='/dev/san/db1'/></disk>
<disk type='file' device='disk'><source file='/srv/a.img'/></disk></devices></domain>"""
MARKER = """<metadata><drover:migration xmlns:drover="urn:drover:migration:1" from="hv1" to="hv2">{}</drover:migration>
</metadata>"""


class Node:
    """LVM of a node."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "state.json"
        self.write(here={}, there={}, joined=True, silent=False, log=[])
        for program in ("vgs", "lvchange", "vgchange", "systemd-run", "systemctl"):
            (folder / program).write_text(LVM.format(python=sys.executable, state=str(self.path)))
            (folder / program).chmod(0o755)

    def write(self, **values):
        self.path.write_text(json.dumps({**(self.state if self.path.exists() else {}), **values}))

    @property
    def state(self):
        return json.loads(self.path.read_text())

    @property
    def env(self):
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def hook(self, *words, metadata="", volume="vmsan/web1"):
        text = DOMAIN.format(uuid=UUID, metadata=metadata, volume=volume)
        argv = [sys.executable, str(HOOK), "web1", *words, "-"]
        return subprocess.run(argv, input=text, env=self.env, capture_output=True, text=True, check=False)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_vm_has_its_volume_alone_from_its_start_to_its_end(node):
    assert node.hook("prepare", "begin").returncode == 0
    assert node.state["here"] == {"vmsan/web1": "ey"}
    assert node.hook("started", "begin").returncode == 0
    assert node.hook("release", "end").returncode == 0
    assert node.state["here"] == {}


def test_a_volume_that_another_node_holds_refuses_the_start(node):
    node.write(there={"vmsan/web1": "ex"})
    done = node.hook("prepare", "begin")
    assert done.returncode == 1 and "web1 refused: vmsan/web1" in done.stderr and "other host" in done.stderr


def test_a_local_volume_is_only_made_to_appear(node):
    node.hook("prepare", "begin", volume="vmdata/web1")
    assert node.state["here"] == {"vmdata/web1": "y"}
    node.hook("release", "end", volume="vmdata/web1")
    assert node.state["here"] == {"vmdata/web1": "y"}


def test_a_node_that_is_late_joins_the_locks_first(node):
    node.write(joined=False)
    assert node.hook("prepare", "begin").returncode == 0
    assert "vgchange --lock-start vmsan" in node.state["log"]


def test_a_vm_that_comes_in_shares_its_volume_with_the_source(node):
    node.write(there={"vmsan/web1": "sh"})
    assert node.hook("migrate", "begin", metadata=MARKER.format("")).returncode == 0
    assert node.state["here"] == {"vmsan/web1": "sy"}
    later = [line for line in node.state["log"] if line.startswith("systemd-run")]
    assert len(later) == 1 and later[0].endswith(f"web1 settle {UUID} vmsan/web1")


@pytest.mark.parametrize("moment, metadata", [("migrate", MARKER.format("")), ("prepare", "")])
def test_what_waits_since_the_vm_left_is_ended_before_its_volume_is_taken_again(node, moment, metadata):
    assert node.hook(moment, "begin", metadata=metadata).returncode == 0
    words = [line.split()[0] for line in node.state["log"] if not line.startswith("vgs")]
    assert f"systemctl stop drover-devices-{UUID}.service" in node.state["log"]
    # What makes a shared volume exclusive again is there before it is shared.
    assert words == ["systemctl", *(["systemd-run"] if metadata else []), "lvchange"]


def test_the_source_shares_its_volumes_only_with_what_ends_that(node):
    node.write(here={"vmsan/web1": "ey", "vmsan/web2": "ey"})
    argv = [sys.executable, str(HOOK), "web1", "share", UUID, "vmsan/web1", "vmsan/web2"]
    share = partial(subprocess.run, argv, env=node.env, capture_output=True, text=True, check=False)
    assert share().returncode == 0 and node.state["here"] == {"vmsan/web1": "sy", "vmsan/web2": "sy"}
    stop, settle, *rest = node.state["log"]
    assert stop == f"systemctl stop drover-devices-{UUID}.service" and len(rest) == 2
    assert settle.endswith(f"web1 settle {UUID} vmsan/web1 vmsan/web2")
    node.write(there={"vmsan/web1": "ex"})
    assert "vmsan/web1 is not to be had: LV locked by other host" in share().stderr
    node.write(here={"vmsan/web1": "ey"}, there={}, silent=True)
    done = share()
    assert done.returncode == 1 and "web1 refused: nothing would end the sharing" in done.stderr
    assert node.state["here"] == {"vmsan/web1": "ey"}


def test_what_a_vm_needs_that_comes_in_is_not_ended_as_it_is_prepared(node):
    node.hook("prepare", "begin", metadata=MARKER.format(""))
    assert not [line for line in node.state["log"] if line.startswith("systemctl")]


def test_a_migration_of_others_is_refused_as_the_source_has_the_volume(node):
    node.write(there={"vmsan/web1": "ex"})
    assert node.hook("migrate", "begin").returncode == 0
    assert node.hook("prepare", "begin").returncode == 1


def test_another_disk_of_the_same_name_is_refused(node):
    device = '<drover:device path="/dev/san/db1" identity="3600a"/>'
    done = node.hook("migrate", "begin", metadata=MARKER.format(device))
    assert done.returncode == 1 and "/dev/san/db1 is missing on this node, not 3600a" in done.stderr


@pytest.mark.parametrize("more, refused", [(0, False), (512, True)])
def test_a_disk_that_did_not_grow_here_yet_is_refused(node, more, refused):
    """By a block device of this machine, whichever it has."""
    device = next(path for path in sorted(Path("/sys/class/block").iterdir()) if int((path / "size").read_text()))
    size = int((device / "size").read_text()) * 512 + more
    wwid = run_path(str(HOOK))["identity"](f"/dev/{device.name}")
    text = f'<drover:device path="/dev/{device.name}" identity="{wwid}" size="{size}"/>'
    done = node.hook("migrate", "begin", metadata=MARKER.format(text))
    assert done.returncode == int(refused), done.stderr
    assert not refused or "let this node see that it grew" in done.stderr


def test_other_operations_and_vms_without_volumes_ask_nothing(node):
    for words in (("start", "begin"), ("stopped", "end"), ("reconnect", "begin")):
        assert node.hook(*words).returncode == 0
    assert node.hook("prepare", "begin", volume="mapper/x").returncode == 0
    assert node.state["log"] == []


@pytest.mark.parametrize(
    "kind, uuid, activated",
    [
        (stat.S_IFBLK, "", {}),
        (stat.S_IFBLK, "mpath-3600a", {}),
        (stat.S_IFBLK, "LVM-abc", {"md/vm1": "y"}),
        # What was written to the path of a volume that was not active.
        (stat.S_IFREG, "", {"md/vm1": "y"}),
        (None, "", {"md/vm1": "y"}),
    ],
)
def test_lvm_is_not_asked_for_an_array_of_mdadm(node, monkeypatch, kind, uuid, activated):
    real, program = os.stat, run_path(str(HOOK))

    def status(path, **more):
        if path != "/dev/md/vm1":
            return real(path, **more)
        if kind is None:
            raise FileNotFoundError(path)
        return SimpleNamespace(st_mode=kind, st_rdev=os.makedev(9, 127))

    monkeypatch.setattr(os, "stat", status)
    monkeypatch.setenv("PATH", node.env["PATH"])
    program["answer"].__globals__["read"] = {"/sys/dev/block/9:127/dm/uuid": uuid}.get
    root = parse(DOMAIN.format(uuid=UUID, metadata="", volume="md/vm1"))
    program["answer"]("prepare", root)
    assert node.state["here"] == activated and bool(node.state["log"]) is bool(activated)


NETWORK = """<domain type='kvm'><name>web1</name><uuid>{}</uuid>{}<devices><disk type='network' device='disk'>
<source protocol='{}' name='a/1'>{}</source></disk></devices></domain>"""


@pytest.fixture
def ports():
    """A port at which somebody listens, and one at which nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield {"served": server.getsockname()[1], "refused": bound.getsockname()[1]}


@pytest.mark.parametrize(
    "moment, protocol, hosts, marker, refused",
    [
        ("migrate", "iscsi", ["served"], True, False),
        ("migrate", "iscsi", ["refused"], True, True),
        ("migrate", "iscsi", ["refused"], False, False),
        ("migrate", "rbd", ["refused", "served"], True, False),
        ("migrate", "rbd", ["refused", "refused"], True, True),
        ("migrate", "gluster", ["refused"], True, False),
        ("prepare", "iscsi", ["served"], False, False),
        ("prepare", "iscsi", ["refused"], False, True),
        ("prepare", "rbd", ["refused", "served"], False, False),
        ("release", "iscsi", ["refused"], False, False),
    ],
)
def test_a_vm_whose_storage_does_not_answer_neither_comes_in_nor_starts(
    ports, moment, protocol, hosts, marker, refused
):
    text = "".join(f"<host name='127.0.0.1' port='{ports[host]}'/>" for host in hosts)
    domain = NETWORK.format(UUID, MARKER.format("") if marker else "", protocol, text)
    argv = [sys.executable, str(HOOK), "web1", moment, "end" if moment == "release" else "begin", "-"]
    done = subprocess.run(argv, input=domain, capture_output=True, text=True, check=False)
    assert done.returncode == int(refused), done.stderr
    assert not refused or f"127.0.0.1 port {ports['refused']}: " in done.stderr


HALF = """<metadata><drover:snapshots xmlns:drover="urn:drover:snapshot:1"><snapshot name="s1" made="yes"/>
<reverted snapshot="s1" id="CHG-1" state="{}"/></drover:snapshots></metadata>"""


@pytest.mark.parametrize("moment", [("prepare", "begin"), ("migrate", "begin")])
def test_what_is_half_set_back_to_a_snapshot_does_not_start(node, moment):
    done = node.hook(*moment, metadata=HALF.format("rolling"))
    assert done.returncode == 1 and node.state["here"] == {}
    assert "half set back to a snapshot; finish that first (state=reverted, snapshot=s1, id=CHG-1" in done.stderr
    assert node.hook(*moment, metadata=HALF.format("done")).returncode == 0
    assert node.hook("release", "end", metadata=HALF.format("rolling")).returncode == 0
