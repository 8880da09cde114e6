# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of variables that nothing reads, and those that are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.drover.kvm.plugins.filter.variable_faults import WORD, variable_faults

ROOT = Path(__file__).resolve().parents[4]
PAGES = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("roles/*/README.md"), *ROOT.glob("examples/**/*.yml")]


def faults(*names: str, own: tuple[str, ...] = ()) -> list[str]:
    return variable_faults([{"inventory_hostname": "hv1", **dict.fromkeys(names)}], own)


@pytest.mark.parametrize(
    "name, near",
    [
        ("drover_pinz", "drover_pins"),
        ("drover_anti_afinity", "drover_anti_affinity"),
        ("drover_memory_reserved", "drover_memory_reserve"),
        ("hypervisor_migration_adress", "hypervisor_migration_address"),
        ("hypervisors_firmware", None),
        ("san_initiator_portls", "san_initiator_portals"),
        ("open_vswitch_bridge", "open_vswitch_bridges"),
    ],
)
def test_the_nearest_right_name_is_told(name, near):
    assert faults(name) == ([] if near is None else [f"{name} (of hv1): {near} may be meant"])


def test_what_is_like_nothing_is_told_too_and_what_is_the_sites_own_is_not():
    assert faults("drover_zzz", "drover_room") == ["drover_room (of hv1)", "drover_zzz (of hv1)"]
    assert faults("drover_zzz", "drover_room", own=("drover_room", "drover_zzz")) == []


def test_names_that_are_not_like_ours_are_nobodys_business():
    assert faults("vm_memroy", "ansible_host", "mydrover_pinz", "backup_path", "lab_name", "drover") == []


def test_a_name_that_many_hosts_have_is_told_once():
    hosts = [{"inventory_hostname": f"web{number}", "drover_pinz": 1} for number in range(5)]
    assert variable_faults(hosts) == ["drover_pinz (of web0, web1, web2 and 2 more): drover_pins may be meant"]


def test_all_options_of_the_roles_are_right():
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
        assert faults(*options) == [], path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_pages_and_examples_name_is_right(path):
    names = [name for name in WORD.findall(path.read_text(encoding="utf-8")) if not name.endswith("_")]
    assert faults(*names) == []


def test_what_the_inventory_of_libvirt_sets_is_right():
    assert faults("drover_state", "drover_tags", "drover_reachable", "drover_memory") == []
