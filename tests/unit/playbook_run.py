# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-playbook of the Python that runs the tests, with this collection or one beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT.parents[2]
CODE = "import sys; from ansible.cli.playbook import main; main()"
SECONDS = 180


def run(folder: Path, *words: str, place: Path | None = None, more: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run it with these words, from the folder `place`; its exit status and output as one line.

    What it keeps is in `folder`. `more` is added to the environment of the tests.
    """
    own = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        env={**os.environ, **own, **(more or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        cwd=place,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())
