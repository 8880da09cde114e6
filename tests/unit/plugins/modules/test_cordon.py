# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module cordon on a real file, and the hook that enforces it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.modules import cordon
from ansible_collections.drover.kvm.tests.unit import hostile

HOOK = Path(__file__).resolve().parents[4] / "roles/hypervisor/files/drover-cordon"


@pytest.fixture
def fact(tmp_path, monkeypatch):
    path = tmp_path / "facts.d" / "drover.fact"
    monkeypatch.setattr(cordon, "FACT", str(path))
    return path


def module(capsys, **args):
    with patch_module_args(args), pytest.raises(SystemExit):
        cordon.main()
    return json.loads(capsys.readouterr().out)


def hook(fact, *args):
    program = HOOK.read_text().replace("/etc/ansible/facts.d/drover.fact", str(fact))
    return subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)


def test_cordon_stands_keeps_its_start_and_ends(fact, capsys):
    predicted = module(capsys, reason="dimm", by="alice", _ansible_check_mode=True)
    assert predicted["changed"] and not fact.exists()
    first = module(capsys, reason="dimm", by="alice")
    assert first["changed"] and first["actions"] == predicted["actions"] == ["cordon the node"]
    again = module(capsys, reason="other", by="bob")
    assert not again["changed"] and again["cordon"] == first["cordon"]
    assert module(capsys, state="absent")["changed"]
    assert not module(capsys, state="absent")["changed"]


def test_a_broken_fact_is_named_not_overwritten(fact, capsys):
    fact.parent.mkdir()
    fact.write_text("{")
    result = module(capsys)
    assert result["failed"] and str(fact) in result["msg"]
    assert fact.read_text() == "{"


@pytest.mark.parametrize("operation", ["prepare", "migrate", "restore"])
def test_the_hook_refuses_what_comes_in_while_the_cordon_stands(fact, capsys, operation):
    assert hook(fact, "web1", operation, "begin", "-").returncode == 0
    module(capsys, reason="dimm", by="alice")
    refused = hook(fact, "web1", operation, "begin", "-")
    assert refused.returncode == 1 and "web1 refused" in refused.stderr and "dimm" in refused.stderr
    module(capsys, state="absent")
    assert hook(fact, "web1", operation, "begin", "-").returncode == 0


@pytest.mark.parametrize("operation", ["start", "started", "stopped", "release", "reconnect", "attach"])
def test_the_hook_lets_what_runs_go_on(fact, capsys, operation):
    module(capsys, reason="dimm")
    assert hook(fact, "web1", operation, "begin", "-").returncode == 0


def test_the_hook_refuses_when_the_fact_cannot_be_read(fact):
    fact.parent.mkdir()
    fact.write_text("not json")
    refused = hook(fact, "web1", "prepare", "begin", "-")
    assert refused.returncode == 1 and "mend or remove" in refused.stderr


@hostile.fuzz(cordon.FIELDS, quick=20)
def test_any_input_gets_a_clear_answer(fact, capsys, args):
    hostile.answered(partial(module, capsys), lambda: fact.exists() and fact.read_text(), args)
    module(capsys, state="absent")
