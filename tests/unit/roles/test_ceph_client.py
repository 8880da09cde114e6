# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role ceph_client takes for its user's key, what it calls a cluster where, and whom playbooks ask about Ceph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.filter.mathstuff import FilterModule
from jinja2 import Environment, StrictUndefined, select_autoescape

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles/ceph_client"


def load(name: str) -> Any:
    return yaml.safe_load((ROLE / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "given, asked, key",
    [
        ("", {"key": "AQ=="}, "AQ=="),
        # Check mode, and the user is not there yet.
        ("", {"key": None}, ""),
        ("", {"skipped": True}, ""),
        ("mine", {"skipped": True}, "mine"),
    ],
)
def test_the_key_is_a_text_always(given: str, asked: dict[str, Any], key: str) -> None:
    environment = Environment(undefined=StrictUndefined, autoescape=select_autoescape([], default_for_string=False))
    text = load("vars/main.yml")["ceph_client_its_key"]
    assert environment.from_string(text).render(ceph_client_key=given, ceph_client_asked=asked) == key


def test_the_monitors_host_has_its_own_name_for_the_cluster() -> None:
    there = [task["drover.kvm.ceph_user"]["cluster"] for task in load("tasks/user.yml")]
    assert there == ["{{ ceph_client_monitor_cluster }}"] * 2
    here = (ROLE / "tasks/configure.yml").read_text(encoding="utf-8")
    assert "/etc/ceph/{{ ceph_client_cluster }}" in here and "ceph_client_monitor_cluster" not in here


def test_the_first_monitor_that_stays_and_answers_is_asked() -> None:
    """It has the administrator's key, which others need not have; a set, as of `difference`, knows no first one."""
    text = yaml.safe_load((ROOT / "playbooks/vars/ceph.yml").read_text(encoding="utf-8"))["drover_ceph_host"]
    environment = Environment(undefined=StrictUndefined, autoescape=select_autoescape([], default_for_string=False))
    environment.filters.update(FilterModule().filters())
    names = [f"m{number}" for number in range(8)]

    def chosen(monitors: list[str], nodes: list[str], silent: list[str]) -> str:
        known = {"drover_monitors": monitors, "drover_nodes": nodes, "drover_unreachable": silent}
        return environment.from_string(text).render(**known)

    for first in range(8):
        monitors = names[first:] + names[:first]
        assert chosen(monitors, [], []) == monitors[0]
        assert chosen(monitors, monitors[:1], monitors[1:2]) == monitors[2]
    assert chosen(names, names, []) == names[0]
