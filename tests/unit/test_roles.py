# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles and playbooks say what they take: the documented defaults are the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> dict[str, Any]:
    """Read a YAML file; one that is not there is empty."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}


def role_problems(role: Path) -> list[str]:
    """List where a role's defaults/main.yml and meta/argument_specs.yml disagree, and a missing README."""
    specs = load(role / "meta" / "argument_specs.yml").get("argument_specs", {})
    options = {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}
    said = {name: option["default"] for name, option in options.items() if "default" in option}
    real = load(role / "defaults" / "main.yml")
    found = [] if specs else ["no argument_specs"]
    found += [f"{name}: not in argument_specs" for name in real if name not in options]
    found += [f"{name}: required, yet it has a default" for name in real if options.get(name, {}).get("required")]
    for name in sorted({*said, *real} & {*options}):
        if name not in real or name not in said or (said[name], type(said[name])) != (real[name], type(real[name])):
            found.append(f"{name}: documented {said.get(name)!r}, really {real.get(name)!r}")
    if not (role / "README.md").exists():
        found.append("no README.md (Galaxy refuses the collection)")
    return [f"{role.name}: {words}" for words in found]


def has_header(playbook: Path) -> bool:
    """Tell whether a playbook begins with a comment, after the document's start."""
    lines = playbook.read_text(encoding="utf-8").removeprefix("---\n").splitlines()
    return bool(lines) and lines[0].startswith("# ")


@pytest.mark.parametrize("role", sorted(p for p in ROOT.glob("roles/*") if p.is_dir()), ids=lambda path: path.name)
def test_a_role_documents_its_defaults(role):
    assert role_problems(role) == []


@pytest.mark.parametrize("playbook", sorted(ROOT.glob("playbooks/*.yml")), ids=lambda path: path.name)
def test_a_playbook_says_what_it_does(playbook):
    assert has_header(playbook), "a playbook begins with a comment: what it does, what it needs"


@pytest.mark.parametrize("playbook", sorted(ROOT.glob("playbooks/*.yml")), ids=lambda path: path.name)
def test_no_host_runs_ahead_of_the_others(playbook):
    """With strategy free, which a site may have as its default, Ansible runs on each host what is said to be run once.

    Nor does a host wait for the others then: it plans without nodes that have not answered yet, and all update at once.
    """
    plays = [play for play in load(playbook) if "hosts" in play]
    assert [play["name"] for play in plays if play.get("strategy") != "linear"] == []


def test_the_switchs_role_passes_every_option_of_a_bridge():
    module = (ROOT / "plugins/modules/ovs_bridge.py").read_text(encoding="utf-8")
    options = set(yaml.safe_load(module.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"])
    role = ROOT / "roles/open_vswitch"
    spec = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]["open_vswitch_bridges"]
    task = next(task for task in load(role / "tasks/run.yml") if "drover.kvm.ovs_bridge" in task)
    # The role waits by itself, and knows the socket.
    passed = options - {"wait_lacp", "timeout", "socket"}
    assert set(task["drover.kvm.ovs_bridge"]) == set(spec["options"]) == passed


def names(options: dict[str, Any], inner: str) -> dict[str, Any]:
    """The names of options, those within them included."""
    return {name: names(option.get(inner, {}), inner) for name, option in options.items()}


def test_the_role_without_the_switch_takes_what_its_module_takes():
    module = (ROOT / "plugins/modules/networkd.py").read_text(encoding="utf-8")
    options = names(yaml.safe_load(module.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"], "suboptions")
    role = ROOT / "roles/linux_bridge"
    spec = names(load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"], "options")
    for name in ("bonds", "vlans", "bridges", "addresses"):
        assert spec[f"linux_bridge_{name}"] == options[name]
    task = next(task for task in load(role / "tasks/run.yml") if "drover.kvm.networkd" in task)
    assert set(task["drover.kvm.networkd"]) == set(options)


def test_the_hypervisors_role_takes_what_the_module_of_ksm_takes():
    module = (ROOT / "plugins/modules/ksm.py").read_text(encoding="utf-8")
    options = yaml.safe_load(module.split('DOCUMENTATION = r"""')[1].split('"""')[0])["options"]
    role = ROOT / "roles/hypervisor"
    spec = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]["hypervisor_ksm"]["options"]
    (task,) = load(role / "tasks/ksm.yml")
    assert set(task["drover.kvm.ksm"]) == set(options) == {*spec, "state"}
    for name, option in spec.items():
        said = [{key: one.get(key) for key in ("type", "default")} for one in (option, options[name])]
        assert said[0] == said[1], name


def make_role(folder: Path, defaults: str, options: str) -> Path:
    role = folder / "bad"
    for name, text in (("defaults/main.yml", defaults), ("meta/argument_specs.yml", options), ("README.md", "# bad")):
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(text)
    return role


@pytest.mark.parametrize(
    "defaults, option, words",
    [
        ("bad_x: 1", "{type: int, default: 2}", "documented 2, really 1"),
        ("bad_x: 1", "{type: bool, default: true}", "documented True, really 1"),
        ("bad_x: 1", "{type: int}", "documented None, really 1"),
        ("", "{type: int, default: 2}", "documented 2, really None"),
        ("{bad_x: 1, bad_y: 2}", "{type: int, default: 1}", "bad_y: not in argument_specs"),
        ("bad_x: 1", "{type: int, default: 1, required: true}", "required, yet"),
    ],
)
def test_the_role_checker_finds_what_differs(tmp_path, defaults, option, words):
    options = f"argument_specs: {{main: {{options: {{bad_x: {option}}}}}}}"
    found = role_problems(make_role(tmp_path, defaults, options))
    assert len(found) == 1
    assert words in found[0]


def test_the_role_checker_wants_specs_and_a_readme(tmp_path):
    (tmp_path / "bare").mkdir()
    assert role_problems(tmp_path / "bare") == [
        "bare: no argument_specs",
        "bare: no README.md (Galaxy refuses the collection)",
    ]
