# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Children that may hang leave what is their parent's alone."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._run import bounded

# A program whose child tells its process number and does as it is told once the program has been killed.
PROGRAM = """
import os, sys, time
from ansible_collections.drover.kvm.plugins.module_utils import _run

def call():
    parent = os.getppid()
    print(os.getpid(), file=told, flush=True)
    while os.getppid() == parent:
        time.sleep(0.01)
    {then}

told = os.fdopen(os.dup(1), "w")
_run.ORPHAN_SECONDS = 0.5
_run.bounded({{"hv1": call}}, {seconds})
"""


def test_a_child_finalizes_nothing_of_its_parent(tmp_path):
    class Open:
        def __init__(self):
            self.itself = self

        def __del__(self):
            (tmp_path / "closed").write_text(str(os.getpid()))

    gc.collect()
    Open()
    assert bounded({"hv1": lambda: len([[i] for i in range(10**5)])}, 10) == {"hv1": 10**5}
    assert not (tmp_path / "closed").exists()
    gc.collect()
    assert (tmp_path / "closed").read_text() == str(os.getpid())


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("then", "seconds"),
    [
        pytest.param("return 'x' * (1 << 20)", 300, id="a long answer that nobody reads"),
        pytest.param("time.sleep(300)", 3, id="a call that hangs"),
    ],
)
def test_a_child_ends_when_its_parent_was_killed(then, seconds):
    """It read its own pipe, and hung in the write for ever; and one that hangs had nobody who ends it."""
    program = PROGRAM.format(then=then, seconds=seconds)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        end = time.monotonic() + 20
        while runs(child):
            assert time.monotonic() < end, "it still runs"
            time.sleep(0.05)
    finally:
        parent.stdout.close()
        if runs(child):
            os.kill(child, signal.SIGKILL)


def test_an_answer_is_heard_while_another_process_holds_its_pipe(tmp_path):
    def call():
        if (pid := os.fork()) == 0:
            time.sleep(300)
        (tmp_path / "holder").write_text(str(pid))
        return "here"

    try:
        assert bounded({"hv1": call}, 30) == {"hv1": "here"}
    finally:
        os.kill(int((tmp_path / "holder").read_text()), signal.SIGKILL)
