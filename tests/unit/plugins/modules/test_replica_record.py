# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module replica_record on real files."""

from __future__ import annotations

import json
import shutil

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.modules import replica_record
from ansible_collections.drover.kvm.tests.unit import hostile

TIME = "2026-11-21T20:15:00Z"
TORN = {"vm": "db1", "slot": "a", "whole": False}
WHOLE = {**TORN, "whole": True, "time": TIME, "uuid": "U", "sheet": {"name": "db1"}, "run": None}


@pytest.fixture
def run(tmp_path, capsys):
    def module(*records, **args):
        given = {"records": list(records), "directory": f"{tmp_path}/replicas", **args}
        with patch_module_args(given), pytest.raises(SystemExit):
            replica_record.main()
        return json.loads(capsys.readouterr().out)

    return module


def test_a_replica_that_is_written_again_is_not_whole_meanwhile(run, tmp_path):
    assert run()["records"] == [] and not run()["changed"]
    assert run(WHOLE, _ansible_check_mode=True)["actions"] == [f"write that replica a of db1 is of {TIME}"]
    assert not (tmp_path / "replicas").exists()
    assert run(WHOLE)["records"] == [WHOLE] and not run(WHOLE)["changed"]
    path = tmp_path / "replicas/db1.a.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert run(TORN)["actions"] == ["write that replica a of db1 is being written"]
    assert run()["records"] == [{**TORN, "time": None, "uuid": None, "sheet": None, "run": None}]
    assert run({**WHOLE, "slot": "b"})["changed"] and len(run()["records"]) == 2


def test_a_replica_that_another_run_has_begun_to_write_is_not_whole(run):
    """Else it would be taken for whole, with the moment of the first run, while the second one writes over it."""
    for name in ("one", "two"):
        run({**TORN, "run": name})
    late = run({**WHOLE, "run": "one"})
    assert not late["changed"] and "another run writes replica a of db1" in str(late["warnings"])
    assert not run()["records"][0]["whole"]
    assert run({**WHOLE, "run": "two"})["changed"] and run()["records"][0]["whole"]
    assert not run({**WHOLE, "run": "two"})["changed"]


@pytest.mark.parametrize(
    "record,words",
    [
        ({**WHOLE, "time": None}, "has a time and a sheet"),
        ({**WHOLE, "sheet": None}, "has a time and a sheet"),
        ({**WHOLE, "time": "yesterday"}, "is not a moment"),
        ({**WHOLE, "vm": "../db1"}, "is not a valid name"),
    ],
)
def test_what_is_refused(run, tmp_path, record, words):
    result = run(record)
    assert result["failed"] and words in result["msg"] and not (tmp_path / "replicas").exists()


def test_a_file_that_is_no_record_is_named(run, tmp_path):
    run(WHOLE)
    (tmp_path / "replicas/db1.b.json").write_text("{}")
    assert "db1.b.json is no record" in run()["msg"]


RECORDS = {"records": [WHOLE]}, {"records": [TORN, {**WHOLE, "slot": "b"}]}


@hostile.fuzz(replica_record.FIELDS[:1], *RECORDS, quick=20)
def test_any_input_gets_a_clear_answer(run, tmp_path, args):
    folder = tmp_path / "replicas"
    hostile.answered(run, lambda: {path.name: path.read_text() for path in folder.glob("*")}, {"records": [], **args})
    shutil.rmtree(folder, ignore_errors=True)
