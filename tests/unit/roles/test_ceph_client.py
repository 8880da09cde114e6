# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role ceph_client takes for its user's key, what it calls a cluster where, and whom playbooks ask about Ceph."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.filter.mathstuff import FilterModule
from jinja2 import Environment, StrictUndefined, select_autoescape

from ansible_collections.drover.kvm.tests.unit.playbook_run import run

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


KEY = {"ceph_client_key": "hidden-Canary1", "ceph_client_fsid": "a", "ceph_client_monitors": ["192.0.2.1"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "hosts, refused",
    [
        (
            {
                "first": {},
                "same": {"ceph_client_pools": ["b", "a"]},
                "place": {"ceph_client_monitor_host": "big1"},
                "user": {"ceph_client_user": "big"},
                "pools": {"ceph_client_pools": ["a"]},
                "keyed": KEY,
            },
            {"place", "user", "pools", "keyed"},
        ),
        # Nobody asks, so they may differ.
        ({"first": KEY, "user": {**KEY, "ceph_client_user": "big"}}, set()),
        # What is done once is not done at all where the first host does without the role.
        ({"first": {"takes_it": False}, "keyed": KEY, "other": {}}, {"other"}),
    ],
    ids=["asked", "given", "without"],
)
def test_a_host_that_would_get_what_another_one_asked_for_is_refused(
    tmp_path: Path, hosts: dict[str, dict[str, Any]], refused: set[str]
) -> None:
    known = {"ansible_connection": "local", "ceph_client_pools": ["a", "b"], "ceph_client_monitor_host": "mon1"}
    everywhere = {**load("defaults/main.yml"), **known, "takes_it": True}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": everywhere}}))
    tasks = {"ansible.builtin.import_tasks": str(ROLE / "tasks/preflight.yml"), "when": "takes_it"}
    play = {"hosts": "all", "gather_facts": False, "vars_files": [str(ROLE / "vars/main.yml")], "tasks": [tasks]}
    (tmp_path / "play.json").write_text(json.dumps([play]))
    code, said = run(tmp_path, "-i", str(tmp_path / "hosts.json"), str(tmp_path / "play.json"))
    assert bool(code) == bool(refused) and "hidden-Canary1" not in said
    assert set(re.findall(r"(\w+) would ask for", said)) == refused, said
    assert ("first, which asks for all hosts of this run, for user libvirt" in said) == ("same" in hosts)


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
