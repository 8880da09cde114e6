# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that waits for the SAN at boot and starts what libvirt could not, with virsh as a small stateful fake."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from runpy import run_path

import pytest

from ansible_collections.drover.kvm.tests.unit import libvirt_server, tgt_server

PROGRAM = Path(__file__).resolve().parents[3] / "roles/san_initiator/files/drover-late-san"
# `vms` are those of this node: whether it runs, whether it has autostart, and the port of its disk. `there` is what a
# peer knows, or null when it gives no answer. `fails` is how many starts fail before one does not.
VIRSH = """#!{python}
import json, sys
path = {state!r}
state = json.load(open(path))
words = sys.argv[2:]
state["log"].append(" ".join(words))
status = 0
if words[0] == "-c":
    there = state["there"][words[1]]
    status = there is None
    print("\\n".join(there or ["no route"]))
elif words[0] == "list":
    print("\\n".join(name for name, vm in state["vms"].items() if vm["autostart"] and not vm["runs"]))
elif words[0] == "dumpxml":
    host = "<host name='127.0.0.1' port='%s'/>" % state["vms"][words[-1]]["port"]
    disk = "<disk type='network'><source protocol='iscsi'>" + host + "</source></disk>"
    print("<domain><name>" + words[-1] + "</name><devices>" + disk + "</devices></domain>")
elif words[0] == "start":
    state["fails"] -= 1
    status = state["fails"] >= 0
    state["vms"][words[1]]["runs"] = not status
json.dump(state, open(path, "w"))
sys.exit(status)
"""


class Node:
    """libvirt of a node with one VM, and of a peer."""

    def __init__(self, folder, port):
        self.folder, self.path, self.late = folder, folder / "state.json", folder / "late"
        vm = {"runs": False, "autostart": True, "port": port}
        self.write(vms={"web1": vm}, there={"qemu+tls://hv2/system": []}, fails=0, log=[])
        (folder / "virsh").write_text(VIRSH.format(python=sys.executable, state=str(self.path)))
        (folder / "virsh").chmod(0o755)
        nodes = {"hv1": {"uri": "here"}, "hv2": {"uri": "qemu+tls://hv2/system"}}
        nodes["hv3"] = {"uri": "quorum only", "vm_capable": False}
        (folder / "cluster.json").write_text(json.dumps({"node": "hv1", "nodes": nodes}))
        self.late.write_text(json.dumps([["127.0.0.1", port]]))
        self.program = run_path(str(PROGRAM))
        self.program["start"].__globals__.update(
            CLUSTER=str(folder / "cluster.json"), LATE=str(self.late), ANSWER=1, PAUSE=0, TRIES=3
        )

    def write(self, **values):
        self.path.write_text(json.dumps({**(self.state if self.path.exists() else {}), **values}))

    @property
    def state(self):
        return json.loads(self.path.read_text())

    def starts(self):
        return [words for words in self.state["log"] if words.startswith("start")]

    def at_pause(self, *acts):
        """What happens while the program sleeps, one act each time; after the last one it is cut off."""
        todo = list(acts)

        def sleep(_seconds):
            if not todo:
                raise KeyboardInterrupt
            todo.pop(0)()

        self.program["start"].__globals__["time"] = type("Time", (), {"sleep": sleep, "monotonic": time.monotonic})


@pytest.fixture
def portal():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found


@pytest.fixture
def node(tmp_path, monkeypatch, portal):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Node(tmp_path, portal.getsockname()[1])


def test_a_vm_is_started_when_its_portal_answers_and_not_before(node, portal):
    node.at_pause(lambda: None, portal.listen, lambda: None)
    node.program["start"]()
    assert node.starts() == ["start web1"] and node.state["vms"]["web1"]["runs"]
    assert not node.late.exists()
    words = node.state["log"]
    assert words.index("start web1") - 1 == words.index("-c qemu+tls://hv2/system list --all --uuid"), "asked before it"


def test_a_vm_whose_portal_was_there_or_that_runs_or_has_no_autostart_is_left_alone(node, portal):
    portal.listen()
    vm = node.state["vms"]["web1"]
    others = {"early": {**vm, "port": 1}, "runs": {**vm, "runs": True}, "manual": {**vm, "autostart": False}}
    node.write(vms=others)
    node.program["start"]()
    assert node.starts() == [] and not node.late.exists()


@pytest.mark.parametrize("change", [{"runs": True}, {"autostart": False}])
def test_one_that_somebody_has_taken_care_of_meanwhile_is_left_alone(node, portal, change):
    def meanwhile():
        node.write(vms={"web1": {**node.state["vms"]["web1"], **change}})
        portal.listen()

    node.at_pause(meanwhile, lambda: None)
    node.program["start"]()
    assert node.starts() == []


def test_a_vm_that_another_node_knows_is_not_started(node, portal, capsys):
    portal.listen()
    node.write(there={"qemu+tls://hv2/system": ["web1"]})
    node.program["start"]()
    assert node.starts() == [] and "not started, as hv2 knows it too" in capsys.readouterr().out


def test_while_a_node_gives_no_answer_nothing_is_started_however_long_it_takes(node, portal, capsys):
    portal.listen()
    node.write(there={"qemu+tls://hv2/system": None})
    node.at_pause(*[lambda: None] * 9, lambda: node.write(there={"qemu+tls://hv2/system": []}), lambda: None)
    node.program["start"]()
    assert node.starts() == ["start web1"] and capsys.readouterr().out.count("hv2 gives no answer") == 1


@pytest.mark.parametrize("fails, runs", [(2, True), (9, False)])
def test_a_start_that_fails_is_tried_again_and_not_for_ever(node, portal, fails, runs):
    portal.listen()
    node.write(fails=fails)
    node.program["start"]()
    assert len(node.starts()) == 3 and node.state["vms"]["web1"]["runs"] is runs


def test_the_wait_ends_with_its_limit_or_with_the_answer(node, portal):
    port = portal.getsockname()[1]
    node.late.unlink()
    node.program["wait"]("0", "127.0.0.1", str(port))
    assert json.loads(node.late.read_text()) == [["127.0.0.1", port]]
    node.at_pause(portal.listen)
    node.program["wait"]("60", "127.0.0.1", str(port))
    node.late.unlink()
    node.program["wait"]("60", "127.0.0.1", str(port))
    assert not node.late.exists(), "a SAN that was there is not late"


def test_it_runs_as_systemd_runs_it(node, portal):
    portal.listen()
    argv = [sys.executable, PROGRAM, "wait", "5", "127.0.0.1", str(portal.getsockname()[1])]
    assert subprocess.run(argv, check=True, timeout=30, capture_output=True).stdout == b""


MACHINE = """<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os>
<devices><disk type='network' device='disk'><driver name='qemu' type='raw'/>
<source protocol='iscsi' name='{iqn}/1'><host name='127.0.0.1' port='{port}'/></source><target dev='vda' bus='virtio'/>
</disk></devices></domain>"""
LACKING = [tool for tool in ("virsh", "qemu-system-x86_64") if shutil.which(tool) is None]


def virsh(*argv):
    return subprocess.run(["virsh", "-q", *argv], capture_output=True, text=True, timeout=60, check=False)


def wait_until(done, said):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, said
        time.sleep(0.1)


@pytest.fixture
def san(tmp_path, monkeypatch):
    """A target that is away, and a libvirt with a VM that starts with the node and has its disk there."""
    lacking = [*LACKING, *tgt_server.missing(), *filter(None, [libvirt_server.missing()])]
    if lacking:
        pytest.skip(f"not here: {lacking}")
    with libvirt_server.private_libvirtd() as daemon, closing(tgt_server.PrivateSan()) as found:
        monkeypatch.setenv("LIBVIRT_DEFAULT_URI", daemon.uri())
        found.daemon.kill()
        found.daemon.wait()
        definition = tmp_path / "web1.xml"
        definition.write_text(MACHINE.format(iqn=f"{tgt_server.PREFIX}:web1", port=found.port))
        assert not virsh("define", str(definition)).returncode + virsh("autostart", "web1").returncode
        yield found
        virsh("destroy", "web1")


@pytest.mark.slow
def test_a_real_vm_runs_when_its_target_comes_with_its_volume_some_time_after_the_portal(san, tmp_path):
    failed = virsh("start", "web1")
    assert failed.returncode and "iSCSI" in failed.stderr, failed
    late = tmp_path / "late"
    late.write_text(json.dumps([["127.0.0.1", san.port]]))
    program, said = run_path(str(PROGRAM)), []
    program["start"].__globals__.update(
        CLUSTER=str(tmp_path / "none"), LATE=str(late), PAUSE=0.1, TRIES=600, say=lambda *words: said.append(words)
    )
    running = threading.Thread(target=program["start"])
    running.start()
    try:
        san.start()
        wait_until(lambda: [words for name, words in said if name == "web1" and "iSCSI" in words], said)
        san.admin("new", "target", "-T", f"{tgt_server.PREFIX}:web1")
        san.admin("bind", "target", "--initiator-address", "127.0.0.1")
        san.add_unit(1, "00c0ffee00c0ffee")
        wait_until(lambda: virsh("domstate", "web1").stdout.strip() == "running", said)
        running.join(60)
        assert not late.exists()
    finally:
        virsh("autostart", "web1", "--disable")
        running.join(60)
