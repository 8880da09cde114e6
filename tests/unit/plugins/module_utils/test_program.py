# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs made of a module's own parts, which Ansible imports from a zip file."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _program

PARTS = [f"part{number}" for number in range(12)]


@pytest.fixture
def zipped(tmp_path, monkeypatch):
    """Modules imported from a zip file, name -> module; threads change as often as they can."""
    payload = tmp_path / "payload.zip"
    with zipfile.ZipFile(payload, "w") as target:
        for name in PARTS:
            target.writestr(f"{name}.py", f"def main(words):\n    print({name!r}, words[1])\n" + "# filler\n" * 300)
    monkeypatch.syspath_prepend(str(payload))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield {name: importlib.import_module(name) for name in PARTS}
    sys.setswitchinterval(interval)
    for name in PARTS:
        del sys.modules[name]


def test_threads_make_the_same_program_at_once(zipped, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _number: _program.archive("drover_try", {"": zipped}, "part7"), range(200)))
    assert len(set(made)) == 1
    path = _program.install("try", made[0], tmp_path)
    said = subprocess.run([sys.executable, str(path), "hello"], capture_output=True, text=True, check=True).stdout
    assert said == "part7 hello\n"
