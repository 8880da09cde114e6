# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the pages are what modules and filters take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.module_utils._domain.inventory import vm_sheet
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, normalise
from ansible_collections.drover.kvm.plugins.modules import image, vm, vm_storage, volume_group

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "docs/vm.md", "docs/storage.md", "docs/backups.md")
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in NAMES}
MODULES = {"vm": vm, "vm_storage": vm_storage, "image": image, "volume_group": volume_group}
BLOCK = re.compile(r"^( *)```yaml\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    """The YAML of a page, without the indentation of the list that it stands in."""
    return [dedent(body) for _indent, body in BLOCK.findall(text)]


def tasks(found: Any) -> Iterator[Mapping[str, Any]]:
    """The tasks of a block; none when it holds variables."""
    for item in found if isinstance(found, list) else []:
        yield from tasks(item["tasks"]) if "tasks" in item else [item]


EXAMPLES = [
    pytest.param(MODULES[name], task[f"drover.kvm.{name}"], id=f"{page}: {task.get('name', name)}")
    for page, text in PAGES.items()
    for block in blocks(text)
    for task in tasks(yaml.safe_load(block))
    for name in MODULES
    if f"drover.kvm.{name}" in task
]


def unknown(fields: tuple[Field, ...], values: Mapping[str, Any]) -> list[str]:
    """The names that are no options, at any depth."""
    known = {field.name: field for field in fields}
    found = [name for name in values if name not in known]
    for name, value in values.items():
        inner = known[name].fields if name in known else ()
        for item in (value if isinstance(value, list) else [value]) if inner else []:
            found += unknown(inner, item)
    return found


def test_the_pages_have_examples():
    assert len(EXAMPLES) >= 20


@pytest.mark.parametrize(("module", "options"), EXAMPLES)
def test_the_examples_are_what_the_module_takes(module, options):
    bulk = {"vms": [{}], **options}["vms"]
    if isinstance(bulk, list):
        for item in bulk:
            whole = {**{name: value for name, value in options.items() if name != "vms"}, **item}
            assert unknown(module.FIELDS, whole) == []
            assert normalise(module.FIELDS, whole)


def machines(section: str) -> list[dict[str, Any]]:
    """The variables of the machines of an inventory that a section of a page writes down."""
    group: dict[str, Any] = {}
    hosts: dict[str, Any] = {}
    for block in blocks(section):
        found = yaml.safe_load(block)
        if isinstance(found, dict):
            group.update({name: value for name, value in found.items() if name.startswith("vm_")})
            hosts.update(found.get("vms", {}).get("hosts", {}))
    return [{**group, **own, "inventory_hostname": name} for name, own in hosts.items()]


INVENTORIES = [
    pytest.param(machines(section), id=f"{page}: {section.splitlines()[0]}")
    for page, text in PAGES.items()
    for section in text.split("\n## ")
    if machines(section)
]


def test_two_pages_have_a_whole_inventory():
    assert len(INVENTORIES) >= 2


@pytest.mark.parametrize("found", INVENTORIES)
def test_an_inventory_gives_sheets_and_no_disk_twice(found):
    disks = [(disk["portal"], disk["iqn"], disk.get("lun", 1)) for one in found for disk in vm_sheet(one)["disks"]]
    assert len(set(disks)) == len(disks) >= len(found)
