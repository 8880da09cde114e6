# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thirty volumes on a private tgtd: one task of ours beside loops of its commands, and beside one script, in turn."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, seconds_of_tasks, typical
from ansible_collections.drover.kvm.tests.unit.tgt_server import PrivateSan, missing

VOLUMES = 30
ROUNDS = 5
LOOPS = 2  # a loop takes a minute
GOAL = 10.0
PREFIX = "iqn.2026-11.org.example.bench"
INITIATOR = f"{PREFIX}:hv1"
COMMON = {"iqn_prefix": PREFIX, "initiators": [INITIATOR], "size": "8MiB", "chap_user": ""}
OURS = [f"ours{number:02}" for number in range(VOLUMES)]
LOOPED = [f"loop{number:02}" for number in range(VOLUMES)]
FIRST_TID = 1000
# tgtd forgets these at its next start; a playbook would write its configuration besides.
TGTADM = [
    "truncate -s 8M {folder}/{name}.img",
    "tgtadm --lld iscsi --op new --mode target --tid {tid} -T {prefix}:{name}",
    "tgtadm --lld iscsi --op new --mode logicalunit --tid {tid} --lun 1 -b {folder}/{name}.img",
    "tgtadm --lld iscsi --op bind --mode target --tid {tid} --initiator-name {initiator}",
]
NO_TGTADM = "tgtadm --lld iscsi --op delete --mode target --tid {tid} --force; rm {folder}/{name}.img"
Task = dict[str, Any]


def commands(text: str, folder: str) -> list[str]:
    """A tool's command for each volume."""
    values = {"prefix": PREFIX, "folder": folder, "initiator": INITIATOR}
    return [text.format(name=name, tid=FIRST_TID + number, **values) for number, name in enumerate(LOOPED)]


def looped(text: str, folder: str) -> Task:
    """One task that runs a command for each volume, one after another."""
    return {"name": "loop", "ansible.builtin.command": "{{ item }}", "loop": commands(text, folder)}


def at_once(name: str, text: str, folder: str) -> Task:
    """One task that runs all commands in one shell."""
    return {"name": name, "ansible.builtin.shell": "\n".join(commands(text, folder))}


def unchanged(task: Task) -> Task:
    """The same task again, which has nothing to do."""
    return {**task, "name": "again", "register": "again", "failed_when": "again is failed or again is changed"}


def volumes(name: str, **options: Any) -> Task:
    """One task of ours for all volumes."""
    items = [{"name": one} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_volume": {**COMMON, "volumes": items, **options}}


@pytest.mark.skipif(missing() != [], reason=f"not here: {missing()}")
def test_thirty_volumes_on_tgtd(tmp_path: Path) -> None:
    with closing(PrivateSan()) as daemon:
        place = {"config_directory": str(daemon.conf), "directory": str(daemon.data)}
        folder = str(daemon.data)
        each: list[Task] = []
        for number in range(ROUNDS):
            made = volumes("made", **place)
            each += [made, unchanged(made), volumes("removed", **place, state="absent", remove_data=True)]
            if number < LOOPS:
                each += [looped(text, folder) for text in TGTADM] + [at_once("clear", NO_TGTADM, folder)]
            each += [at_once("shell", "\n".join(TGTADM), folder), at_once("clear", NO_TGTADM, folder)]
        found = seconds_of_tasks(each, tmp_path)
    # One for each of the commands, and these for each round.
    found["loop"] = [sum(found["loop"][number * len(TGTADM) :][: len(TGTADM)]) for number in range(LOOPS)]
    words = {
        "made": "`iscsi_volume`, one task",
        "again": "again, nothing to do",
        "loop": f"{len(TGTADM)} loops, a command a volume",
        "shell": "one shell script, which checks and keeps nothing",
    }
    ours = typical(found["made"])
    rows = [
        (said, f"{typical(found[name]):.2f} s, {typical(found[name]) / ours:.2f} times") for name, said in words.items()
    ]
    report(f"{VOLUMES} volumes on tgtd (medians of {ROUNDS} rounds, goal of the loops: {GOAL:.0f} times)", rows)
    assert typical(found["loop"]) >= GOAL * ours, found
