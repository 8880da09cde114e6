# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm on a node with a lease directory. A process of ours holds the leases as virtlockd would."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _leases, _peers
from ansible_collections.drover.kvm.plugins.module_utils._domain import site
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node
from ansible_collections.drover.kvm.tests.unit.lock_holder import holding
from ansible_collections.drover.kvm.tests.unit.plugins.modules.test_vm import WEB, lab

__all__ = ["lab"]
UUID = vm_uuid("web1")
START, DESTROY = Node.start, Node.destroy


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The lease directory of this node and of its cluster."""
    found = tmp_path / "shared" / "leases"
    found.mkdir(parents=True)
    (found / _leases.MARK).write_text('{"cluster": "lab", "id": "one"}', encoding="utf-8")
    nodes = {"hv1": {"uri": "test:///default", "lease_directory": str(found)}}
    cluster = {"version": 1, "cluster": "lab", "node": "hv1", "lease_id": "one", "nodes": nodes}
    monkeypatch.setattr(_peers, "CLUSTER", tmp_path / "cluster.json")
    _peers.CLUSTER.write_text(json.dumps(cluster), encoding="utf-8")
    return found


@pytest.fixture
def lockd(folder, monkeypatch):
    """What runs holds its lease."""
    held = {}

    def started(node, name, *rest):
        START(node, name, *rest)
        held[name] = ExitStack()
        held[name].enter_context(holding(folder / node.domain(name).uuid))

    def stopped(node, name):
        DESTROY(node, name)
        held.pop(name).close()

    monkeypatch.setattr(Node, "start", started)
    monkeypatch.setattr(Node, "destroy", stopped)
    yield held
    for one in held.values():
        one.close()


def told(result, folder):
    """The warnings about this test's leases; Ansible keeps those of other tests of the same process."""
    return [words for words in result.get("warnings", []) if str(folder) in str(words)]


def test_a_vm_has_its_lease_from_its_definition_to_its_removal(lab, folder, lockd):
    made = lab.both(**WEB, state="running")["vm"]
    assert made["lease"] == str(folder / UUID) and (folder / UUID).exists()
    assert f"<target path='{folder.parent}'/>" in lab.node.domain("web1").xml
    lab.run(name="web1", state="stopped", force=True)
    assert lab.both(name="web1", state="absent")["actions"] == ["undefine web1"]
    assert not (folder / UUID).exists()


def test_a_vm_made_before_gets_it_at_its_next_start(lab, folder, lockd, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(site.Site, "leases", _leases.Leases())
        before.setattr(Node, "start", START)
        assert lab.run(**WEB, state="running")["vm"]["lease"] is None
    words = f"lease none -> {folder / UUID}"
    result = lab.both(**WEB)
    assert result["actions"] == [f"change web1: {words} (from its next start)"]
    assert result["pending_restart"] == [words] and not told(result, folder)
    DESTROY(lab.node, "web1")
    assert lab.both(**WEB, state="running")["pending_restart"] == []


@pytest.mark.parametrize("state,words", [("running", "this node holds its lease"), ("present", None)])
def test_a_start_with_a_held_lease_is_refused(lab, folder, lockd, state, words):
    lab.run(**WEB)
    with holding(folder / UUID):
        for check in (True, False):
            result = lab.run(**WEB, state=state, _ansible_check_mode=check)
            assert bool(result.get("failed")) is bool(words) and (words or "") in result.get("msg", "")
    assert lab.node.domain("web1").state == "stopped"


def test_a_start_that_takes_no_lease_is_an_error(lab, folder):
    result = lab.run(**WEB, state="running")
    assert result["failed"] and f"nobody holds its lease {folder / UUID}" in result["msg"]


def test_a_vm_that_lost_its_lease_is_named_on_every_run(lab, folder, lockd):
    lab.run(**WEB, state="running")
    assert not told(lab.run(**WEB), folder)
    lockd["web1"].close()
    for _run in range(2):
        result = lab.run(**WEB, state="running")
        assert not result["changed"] and "nobody holds its lease" in str(told(result, folder))


@pytest.mark.parametrize(
    "peer,stays",
    [
        ([], False),
        ([{"name": "web1", "active": False, "claims": [["UUID", UUID]]}], True),
        (Unreachable("no answer"), True),
    ],
)
def test_the_file_goes_with_the_last_definition(lab, folder, lockd, peer, stays):
    lab.run(**WEB)
    lab.peers = {"hv2": peer}
    assert not lab.run(name="web1", state="absent").get("failed")
    assert (folder / UUID).exists() is stays


def test_a_directory_that_is_not_mounted_stops_all_that_would_count_on_it(lab, folder, lockd):
    (folder / _leases.MARK).unlink()
    result = lab.run(**WEB, state="running")
    assert result["failed"] and "is it mounted?" in result["msg"] and lab.node.domains() == {}
    assert list(folder.iterdir()) == []
