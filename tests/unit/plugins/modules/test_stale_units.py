# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module stale_units: real files, and a systemctl that knows when units changed."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _units
from ansible_collections.drover.kvm.plugins.modules import stale_units

STARTED = 1_795_300_000.25


class Systemd:
    """Units by name: state, moment of its last change, whether its own file is to be read anew."""

    def __init__(self, units):
        self.units, self.calls = units, []

    def run(self, argv, timeout):
        """systemctl show, as systemd 257 prints it: in its own order of properties."""
        assert argv[:3] == ["systemctl", "show", "--timestamp=us+utc"] and argv[4] == "--" and timeout
        self.calls.append(argv)
        return "\n".join(self._block(*self.units.get(unit, ("inactive", None, "no"))) for unit in argv[5:])

    @staticmethod
    def _block(state, moment, reload):
        at = moment and datetime.fromtimestamp(moment, timezone.utc).strftime("%a %Y-%m-%d %H:%M:%S.%f UTC")
        return f"ActiveState={state}\nStateChangeTimestamp={at or ''}\nNeedDaemonReload={reload}\n"


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run the module beside units; its result."""

    def run(known, units):
        systemd = Systemd(known)
        monkeypatch.setattr(_units, "run", systemd.run)
        with patch_module_args({"units": units}), pytest.raises(SystemExit):
            stale_units.main()
        assert len(systemd.calls) <= 1
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def files(tmp_path):
    """Paths of files that were written that many seconds after STARTED."""

    def write(**seconds):
        for name, after in seconds.items():
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (0, STARTED + after))
        return [str(tmp_path / name) for name in seconds]

    return write


def test_a_unit_that_is_older_than_one_of_its_files_is_named(ask, files):
    paths = files(old=-0.001, new=0.002)
    result = ask({"b.service": ("active", STARTED, "no")}, {"b.service": [*paths, "/nonexistent/file"]})
    assert (result["units"], result["files"], result["changed"]) == (["b.service"], {"b.service": [paths[1]]}, False)


def test_a_unit_that_has_read_its_files_is_not_named(ask, files):
    assert ask({"b.service": ("active", STARTED, "no")}, {"b.service": files(one=-3600, two=-0.001)})["units"] == []


@pytest.mark.parametrize("state", ["inactive", "failed", "activating", "deactivating"])
def test_a_unit_that_does_not_run_reads_its_files_when_it_starts(ask, files, state):
    assert ask({"b.service": (state, STARTED, "no")}, {"b.service": files(new=9)})["units"] == []


def test_a_unit_that_is_not_there_is_not_named(ask, files):
    assert ask({}, {"b.service": files(new=9)})["units"] == []


def test_units_are_told_apart_in_one_call(ask, files):
    (old,), (new,) = files(old=-1), files(new=1)
    known = dict.fromkeys(("z.service", "b.socket", "c.service"), ("active", STARTED, "no"))
    result = ask(known, {"z.service": [new], "b.socket": [new], "c.service": [old], "d.service": [new]})
    assert result["units"] == ["b.socket", "z.service"]


def test_the_file_of_the_unit_itself(ask, files):
    assert ask({"b.service": ("active", STARTED, "yes")}, {"b.service": files(old=-1)})["files"] == {"b.service": []}


def test_no_unit_is_no_call(ask):
    assert ask({}, {})["units"] == []


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"libvirtd": []}, "whole name of a unit"),
        ({"--all.service": []}, "whole name of a unit"),
        ({"a.service": "/etc/passwd"}, "list of absolute paths"),
        ({"a.service": ["relative"]}, "list of absolute paths"),
    ],
)
def test_what_is_no_unit_or_no_path_is_refused(ask, units, words):
    result = ask({}, units)
    assert result["failed"] and words in result["msg"] and result["msg"].startswith("units: ")


def test_another_form_of_time_is_an_error_and_no_guess(ask, files, monkeypatch):
    block = "ActiveState=active\nStateChangeTimestamp=@17953\nNeedDaemonReload=no\n"
    monkeypatch.setattr(Systemd, "_block", lambda *_: block)
    result = ask({}, {"b.service": files(new=1)})
    assert result["failed"] and "'@17953'" in result["msg"]
