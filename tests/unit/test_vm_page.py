# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/vm.md says of each option when a running machine has it, and its examples are what the module takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, normalise
from ansible_collections.drover.kvm.plugins.modules.vm import FIELDS
from ansible_collections.drover.kvm.tests.unit import vm_page

TEXT = vm_page.PAGE.read_text(encoding="utf-8")
TASKS = [task for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) for task in yaml.safe_load(block)]
EXAMPLES = [task["drover.kvm.vm"] for task in TASKS if "drover.kvm.vm" in task]


def test_the_table_is_what_the_records_say():
    assert vm_page.page(TEXT) == TEXT, "run make vm-page"


@pytest.mark.parametrize("fields", vm_page.COLUMNS.values(), ids=vm_page.COLUMNS)
def test_every_record_says_when(fields):
    assert [field.name for field in fields if vm_page.when(field) not in vm_page.WHEN] == []


def unknown(fields: tuple[Field, ...], values: dict[str, Any]) -> list[str]:
    """The names that are no options, at any depth."""
    known = {field.name: field for field in fields}
    found = [name for name in values if name not in known]
    for name, value in values.items():
        inner = known[name].fields if name in known else ()
        for item in (value if isinstance(value, list) else [value]) if inner else []:
            found += unknown(inner, item)
    return found


def test_there_are_ten_examples():
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("options", EXAMPLES, ids=[task["name"] for task in TASKS if "drover.kvm.vm" in task])
def test_the_examples_are_what_the_module_takes(options):
    assert unknown(FIELDS, options) == []
    assert normalise(FIELDS, options)["name"] == options["name"]
