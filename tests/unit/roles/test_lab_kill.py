# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller that the stories kill is dead with all that it started, and one that they leave behind ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, wait_until

# As Ansible: each worker leads a session of its own.
PROGRAM = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        print(os.getpid(), os.getppid(), flush=True)
time.sleep(60)
"""

# The stories' process: it starts a playbook in a session of its own, as `Cluster.start` does, and is ended meanwhile.
STORY = """
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.drover.kvm.tests.lab.cluster import LEASH
code = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'; main()"
local = ["-i", "localhost,", "-c", "local", "-e", "ansible_python_interpreter=" + sys.executable]
words = [*LEASH, sys.executable, "-c", code, *local, sys.argv[2]]
print(subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True).pid, flush=True)
time.sleep(120)
"""


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_die_with_their_controller():
    argv = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    workers = process.stdout.readline().split()
    begin = time.monotonic()
    assert Cluster.kill(process) == "" and len(workers) == 2
    # Else its output stays open until they have ended by themselves.
    assert time.monotonic() - begin < 30
    # A process closes its files a moment before it has ended.
    wait_until(lambda: not any(map(runs, workers)) or str(workers), 20, "the end of the workers")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_story_has_started_ends_with_the_stories(tmp_path, number):
    note, book = tmp_path / "note", tmp_path / "book.json"
    # As a module at work: a worker of Ansible waits for it, in a session of its own.
    task = {"name": "Work", "ansible.builtin.shell": f"echo $$ $PPID >{note}; exec sleep 60"}
    book.write_text(json.dumps([{"name": "Work", "hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    argv = [sys.executable, "-c", STORY, str(ROOT.parents[2]), str(book)]
    story = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        pids = [story.stdout.readline().strip()]
        wait_until(lambda: note.exists() and len(note.read_text().split()) == 2, 60, "a task at work")
        pids += note.read_text().split()
        assert all(map(runs, pids)), "not exercised"
        story.send_signal(number)
        assert story.wait(10) == -number
        wait_until(lambda: not (seen := [pid for pid in pids if runs(pid)]) or str(seen), 20, "the end of all")
    finally:
        story.kill()
        story.communicate()
