# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/vm.md says of each option when a running machine has it."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.unit import vm_page

TEXT = vm_page.PAGE.read_text(encoding="utf-8")


def test_the_table_is_what_the_records_say():
    assert vm_page.page(TEXT) == TEXT, "run make vm-page"


@pytest.mark.parametrize("fields", vm_page.COLUMNS.values(), ids=vm_page.COLUMNS)
def test_every_record_says_when(fields):
    assert [field.name for field in fields if vm_page.when(field) not in vm_page.WHEN] == []
