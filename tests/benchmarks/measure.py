# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the tasks of a play, as Ansible itself tells it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.tests.lab.cluster import COLLECTIONS

# The collections that ours is measured beside.
PEERS = [path for path in [os.environ.get("DROVER_PEERS")] if path]
SUMMARY = Path(os.environ.get("DROVER_BENCHMARKS", "build/benchmarks.md"))


def seconds_of_tasks(
    tasks: list[dict[str, Any]], folder: Path, *, inside: Sequence[str] = (), unchanged: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Run tasks on this machine in one play; the seconds of each by its name, in order. A name may come often.

    `inside` is a command that runs another one, such as nsenter with its options. Raises AssertionError for a task that
    failed, and for one named in `unchanged` that changed something.
    """
    book = folder / "measured.json"
    variables = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    play = {"name": "Measure", "hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": tasks}
    book.write_text(json.dumps([play]), encoding="utf-8")
    own = {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join([str(COLLECTIONS), *PEERS]),
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    program = Path(sys.executable).parent / "ansible-playbook"
    argv = [*inside, str(program), "-i", "localhost,", str(book)]
    done = subprocess.run(argv, env={**os.environ, **own}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    seconds = defaultdict(list)
    for task in json.loads(done.stdout)["plays"][0]["tasks"]:
        start, end = (datetime.fromisoformat(task["task"]["duration"][key].rstrip("Z")) for key in ("start", "end"))
        name = task["task"]["name"]
        assert name not in unchanged or not task["hosts"]["localhost"]["changed"], f"{name} changed something"
        seconds[name].append((end - start).total_seconds())
    return dict(seconds)


def typical(seconds: list[float]) -> float:
    """Their median."""
    return statistics.median(seconds)


def report(title: str, rows: list[tuple[str, str]]) -> None:
    """Add a table to the summary, which `make bench` shows at its end."""
    table = [f"| {what} | {value} |" for what, value in rows]
    lines = [f"## {title}", "", "| what | measured |", "|---|---|", *table, ""]
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    with SUMMARY.open("a", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")
    print("\n".join(["", *lines]))
