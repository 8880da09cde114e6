# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state that can be asked of module vm, from every state of a machine: it gets there, or says why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.modules.vm import FIELDS
from ansible_collections.drover.kvm.tests.unit.hotplug import Hotplug
from ansible_collections.drover.kvm.tests.unit.plugins.modules import test_vm

pytest.importorskip("libvirt")
lab = test_vm.lab

SHEET: dict[str, Any] = {"name": "web1", "memory": "64MiB", "vcpus": 1}
FORCE = "force=true"
BLIND = "resumed blindly"
# From where, to what: the state that it ends in, or words of the refusal. A machine that is not there is `None`.
WITHOUT_FORCE: dict[str, dict[str, str | None]] = {
    "none": {
        "present": "stopped",
        "running": "running",
        "paused": "paused",
        "restarted": "running",
        "stopped": "stopped",
        "absent": None,
    },
    "stopped": {
        "present": "stopped",
        "running": "running",
        "paused": "paused",
        "restarted": "running",
        "stopped": "stopped",
        "absent": None,
    },
    "running": {
        "present": "running",
        "running": "running",
        "paused": "paused",
        "restarted": "running",
        "stopped": "stopped",
        "absent": "stop it first",
    },
    "paused": {
        "present": "paused",
        "running": "running",
        "paused": "paused",
        "restarted": FORCE,
        "stopped": FORCE,
        "absent": FORCE,
    },
    "paused by a watchdog": {
        "present": "paused",
        "running": BLIND,
        "paused": "taken for a machine that was paused by request",
        "restarted": FORCE,
        "stopped": FORCE,
        "absent": FORCE,
    },
}
OFF = {"restarted": "running", "stopped": "stopped", "absent": None}
WITH_FORCE = {start: {**wishes, **OFF} for start, wishes in WITHOUT_FORCE.items()}
TABLES = {False: WITHOUT_FORCE, True: WITH_FORCE}
CASES = [(force, start, wish) for force, table in TABLES.items() for start, wishes in table.items() for wish in wishes]


def test_every_state_is_in_the_table():
    states = next(field.choices for field in FIELDS if field.name == "state")
    assert all(set(wishes) == set(states) for table in TABLES.values() for wishes in table.values())


def begin(lab: test_vm.Lab, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring it there."""
    if start == "none":
        return
    lab.run(**SHEET, state="stopped" if start == "stopped" else "running")
    if not start.startswith("paused"):
        return
    lab.node.suspend("web1")
    if start == "paused by a watchdog":
        really = lab.node.domains

        def domains():
            """libvirt's test driver knows no such reason."""
            found = really()
            return {
                name: replace(one, reason="watchdog") if one.state == "paused" else one for name, one in found.items()
            }

        monkeypatch.setattr(lab.node, "domains", domains)


@pytest.mark.parametrize("force, start, wish", CASES)
def test_it_gets_there_or_says_why_not(lab, monkeypatch, force, start, wish):
    Hotplug(lab.node, monkeypatch)
    begin(lab, start, monkeypatch)
    before = lab.node.domain("web1")
    expected = TABLES[force][start][wish]
    asked: dict[str, Any] = {"force": force} if wish == "absent" else {**SHEET, "force": force}
    if expected not in (None, "stopped", "running", "paused"):
        for check in (True, False):
            result = lab.run(**{**asked, "name": "web1", "state": wish, "_ansible_check_mode": check})
            assert result["error"] == "Refused" and expected in result["msg"], result
        assert lab.node.domain("web1") == before
        return
    options = {**asked, "name": "web1", "state": wish}
    if wish == "restarted":
        # An act: it is done each time.
        predicted, done = lab.run(**options, _ansible_check_mode=True), lab.run(**options)
        assert predicted["actions"] == done["actions"] and done["changed"]
        assert before is None or lab.node.domain("web1").id != before.id
    else:
        done = lab.both(**options)
    there = lab.node.domain("web1")
    assert (None if there is None else there.state) == expected
    assert (None if done["vm"] is None else done["vm"]["state"]) == expected
