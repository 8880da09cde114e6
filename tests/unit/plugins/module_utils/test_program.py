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
from ansible_collections.drover.kvm.plugins.module_utils._bridge import rollback as bridge
from ansible_collections.drover.kvm.plugins.module_utils._migration.unit import program
from ansible_collections.drover.kvm.plugins.module_utils._networkd.rollback import UNDO

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


PROGRAMS = {
    "migration": program(),
    **{undo.kind: _program.archive("drover_restore", undo.parts, undo.start) for undo in (bridge.of("br0"), UNDO)},
}
IMPORT = "import sys, importlib as i; sys.path.insert(0, sys.argv[1]); [i.import_module(name) for name in sys.argv[2:]]"


@pytest.mark.parametrize("made", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_has_all_that_it_imports(made, tmp_path):
    """Outside the collection, as on a node."""
    path = _program.install("try", made, tmp_path)
    with zipfile.ZipFile(path) as source:
        names = [name[:-3].replace("/", ".") for name in source.namelist() if name != "__main__.py"]
    argv = [sys.executable, "-I", "-c", IMPORT, str(path), *names]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
