# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module fence, with agents that are real programs: one that works, and others that lie, hang or fail."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.modules import fence

# A machine is a file that says on or off.
AGENT = """#!/bin/sh
while read -r line; do echo "$line" >>"$0.said"; case $line in action=*) action=${line#action=} ;; esac; done
%s
case $action in
status) [ "$(cat "$0.power")" = on ] && exit 0; exit 2 ;;
off | on) echo $action >"$0.power" ;;
esac
"""


@pytest.fixture
def agent(tmp_path):
    """An agent whose machine is on; `way` is what it does before anything else."""

    def make(way=""):
        program = tmp_path / "fence_fake"
        program.write_text(AGENT % way, encoding="utf-8")
        program.chmod(0o700)
        (tmp_path / "fence_fake.power").write_text("on\n", encoding="utf-8")
        return program

    return make


@pytest.fixture
def ask(capsys):
    """Run the module; its result."""

    def run(agent, check=False, **options):
        given = {"agent": str(agent), "_ansible_check_mode": check, **options}
        with patch_module_args(given), pytest.raises(SystemExit):
            fence.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_a_machine_is_switched_off_and_on_again(agent, ask):
    program = agent()
    options = {"ip": "10.0.9.13", "password": "geheim"}
    foretold = ask(program, check=True, options=options)
    assert foretold["changed"] and foretold["power"] == "off" and ask(program, check=True)["changed"]
    done = ask(program, options=options)
    assert done["changed"] and done["power"] == "off" and done["actions"] == foretold["actions"]
    assert not ask(program)["changed"]
    assert ask(program, state="on")["power"] == "on"
    said = (program.parent / "fence_fake.said").read_text(encoding="utf-8")
    assert "password=geheim" in said and "geheim" not in json.dumps(done)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("[ $action = off ] && exit 0", "not there after 1 s"),  # It says that it did, and did nothing.
        ("[ $action = off ] && { echo no such plug >&2; exit 1; }", "no such plug"),
        ("exit 1", "failed"),  # It can't tell whether the machine is on.
        ("sleep 5", "gave no answer within 1 s"),
    ],
)
def test_without_the_agents_word_that_it_is_off_the_task_fails(agent, ask, way, words):
    result = ask(agent(way), timeout=1)
    assert result["failed"] and words in result["msg"] and result.get("power") != "off"


def test_an_agent_that_is_not_there_is_named(tmp_path, ask):
    assert "is not installed" in ask(tmp_path / "fence_none")["msg"]


@pytest.mark.parametrize("options", [{"action": "on"}, {"ip": "a\naction=on"}, {"a b": 1}, {"ip": ["x"]}])
def test_options_that_would_say_something_else_are_refused(agent, ask, options):
    program = agent()
    assert ask(program, options=options)["failed"]
    assert not (program.parent / "fence_fake.said").exists()
