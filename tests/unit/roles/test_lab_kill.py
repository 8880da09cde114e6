# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller that the stories kill is dead with all that it started, as by a power cut."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

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
    assert time.monotonic() - begin < 30 and not any(map(runs, workers))
