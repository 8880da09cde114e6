# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease directory: real files and real locks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _leases
from ansible_collections.drover.kvm.plugins.module_utils._errors import Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._leases import HERE, MARK, Leases
from ansible_collections.drover.kvm.tests.unit.lock_holder import holding

ROOT = Path(__file__).resolve().parents[4]
UUID = "7d4da458-de51-4138-9921-aae15234a969"


@pytest.fixture
def leases(tmp_path):
    (tmp_path / MARK).write_text(json.dumps({"cluster": "lab", "id": "one"}), encoding="utf-8")
    return Leases(str(tmp_path), "one")


def test_without_a_directory_there_are_none():
    none = Leases()
    none.make(UUID), none.remove(UUID)
    assert none.path(UUID) is None and none.holder(UUID) is None


def test_who_holds_a_lease_is_seen(leases, tmp_path):
    assert leases.holder(UUID) is None
    leases.make(UUID)
    assert leases.path(UUID) == str(tmp_path / UUID) and leases.holder(UUID) is None
    with holding(tmp_path / UUID):
        assert leases.holders([UUID, "other"]) == {UUID: HERE, "other": None}
    assert leases.holder(UUID) is None


def test_a_file_stays_the_same_and_a_held_one_is_not_deleted(leases, tmp_path):
    leases.make(UUID)
    before = (tmp_path / UUID).stat().st_ino
    with holding(tmp_path / UUID):
        leases.make(UUID)
        leases.remove(UUID)
        assert (tmp_path / UUID).stat().st_ino == before and leases.holder(UUID) == HERE
    leases.remove(UUID)
    leases.remove(UUID)
    assert [path.name for path in tmp_path.iterdir()] == [MARK]


@pytest.mark.parametrize(
    "mark,words",
    [(None, "is it mounted"), ('{"id": "two"}', "another directory"), ("{", "can't be read"), ("[]", "can't be read")],
)
def test_a_directory_that_is_not_the_shared_one_is_not_touched(leases, tmp_path, mark, words):
    (tmp_path / MARK).unlink()
    if mark is not None:
        (tmp_path / MARK).write_text(mark, encoding="utf-8")
    for call in (leases.holder, leases.make, leases.remove):
        with pytest.raises(Unreachable, match=words):
            call(UUID)
    assert not (tmp_path / UUID).exists()


def test_a_file_server_that_hangs_is_not_waited_for(leases, monkeypatch):
    monkeypatch.setattr(_leases, "SECONDS", 0.2)
    monkeypatch.setattr(_leases, "_holder", lambda path: time.sleep(60))
    with pytest.raises(Unreachable, match="no answer within"):
        leases.holder(UUID)


def probe(act, path):
    program = (ROOT / "roles/hypervisor/files/drover-lease-probe").read_text(encoding="utf-8")
    program = program.replace("40, 30", "9, 1")
    return subprocess.Popen([sys.executable, "-c", program, act, str(path)], stderr=subprocess.PIPE, text=True)


def test_the_roles_probe_sees_the_lock_of_another_and_leaves_nothing(tmp_path):
    with probe("hold", tmp_path / "probe") as holder, probe("see", tmp_path / "probe") as seer:
        assert seer.wait(10) == 0 and holder.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_roles_probe_says_when_no_lock_is_seen(tmp_path):
    with probe("see", tmp_path / "probe") as seer:
        assert "is not seen" in seer.communicate(timeout=10)[1] and seer.returncode == 1
