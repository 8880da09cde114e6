# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/acceptance.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"`((?:unit|lab|soak)/[^`:]+)::(\w+)`")


def test_the_tests_that_the_page_names_are_there() -> None:
    named = NAME.findall((ROOT / "docs/acceptance.md").read_text(encoding="utf-8"))
    texts = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _test in named}
    missing = [f"{file}::{test}" for file, test in named if not re.search(rf"^def {test}\(", texts[file], re.MULTILINE)]
    assert named and missing == []
