# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery rules by example: the tables in tests/unit/golden/recovery, one file a rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._migration.rules import decide

GOLDEN = Path(__file__).parents[3] / "golden" / "recovery"
FILES = sorted(GOLDEN.glob("*.yml"))
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['case']}")
    for path in FILES
    for case in yaml.safe_load(path.read_text(encoding="utf-8"))
]


def words(action):
    value = {"True": "true", "False": "false", "None": ""}.get(text := str(action.get("value")), text)
    return " ".join(word for word in (action["verb"], action["node"], value) if word)


@pytest.mark.parametrize("case", CASES)
def test_rule(case):
    options = {key: case[key] for key in ("fenced", "keep", "stalled", "lock_owner") if key in case}
    decision = decide(case["nodes"], **options).as_dict()
    seen = {"rule": decision["rule"], "where": decision["where"], "actions": [words(a) for a in decision["actions"]]}
    assert seen == {key: case[key] for key in seen}, decision["text"]


def test_every_rule_has_its_file():
    names = [path.stem for path in FILES]
    wanted = [f"rule-{number:02}-" for number in range(14)] + [f"foreign-{number:02}-" for number in range(1, 14)]
    assert [start for start in wanted if not any(name.startswith(start) for name in names)] == []
