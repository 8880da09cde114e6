# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of docs/vm.md, written from the records of the options: `make vm-page`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.drover.kvm.plugins.module_utils._domain.adopt import FIELDS
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import DISKS
from ansible_collections.drover.kvm.plugins.module_utils._domain.nics import NICS
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.modules import vm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vm.md"
BEGIN, END = "<!-- made by make vm-page, from the records of the options -->\n", "<!-- end of it -->\n"
FIXED = "fixed"
WHEN = {
    "live": "at once",
    "unseen": "at once, no guest sees it",
    "power_cycle": "when it was powered off and on",
    FIXED: "never",
}
# The name is what a machine is found by.
AUTOSTART = next(field for field in vm.FIELDS if field.name == "autostart")
COLUMNS = {"of the machine": (*FIELDS[1:], AUTOSTART), "of a disk": DISKS, "of a NIC": NICS}


def when(field: Field) -> str:
    """When a running machine has a new value."""
    return FIXED if field.fixed else field.when


def table() -> str:
    """The table in Markdown."""
    rows = [["a running machine has a new value", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[words, *(_names(fields, kind) for fields in COLUMNS.values())] for kind, words in WHEN.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _names(fields: Iterable[Field], kind: str) -> str:
    # Some options, such as user, are of several kinds of storage.
    return ", ".join(dict.fromkeys(f"`{field.name}`" for field in fields if when(field) == kind)) or "-"


def page(text: str) -> str:
    """The page with the table as it must be."""
    head, _begin, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(page(target.read_text(encoding="utf-8")), encoding="utf-8")
