# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest does at the moment of its backup, with a guest agent that is played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._backup import moments
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Refused

NODE: Any = SimpleNamespace()
VM: Any = SimpleNamespace(name="web1", uuid="u1", state="running", active=True, live_xml="<domain/>")


class Agent:
    """A guest whose file systems are held still; `fails` when it is asked, `late`: it wrote again too early."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails, self.late, self.missing = False, False, ""

    def __call__(self, *_args: Any) -> Agent:
        return self

    def begin(self) -> None:
        if self.fails:
            raise Failed("the agent does not answer")
        self.log.append("freeze")

    def held(self) -> bool:
        return not self.late

    def end(self) -> None:
        self.log.append("thaw")


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    found = Agent()
    monkeypatch.setattr(moments, "Freeze", found)
    monkeypatch.setattr(moments, "why_not", lambda _xml: found.missing or None)
    return found


def take(agent: Agent, quiesce: str, vm: Any = VM) -> bool:
    with moments.moment_of(NODE, vm, "snapshot", quiesce, 1) as seen:
        agent.log.append("copy")
    return seen["quiesced"]


@pytest.mark.parametrize("quiesce", ["auto", "required"])
def test_the_guest_is_frozen_while_the_copy_begins(agent: Agent, quiesce: str) -> None:
    assert take(agent, quiesce) is True and agent.log == ["freeze", "copy", "thaw"]


def test_without_an_agent_it_goes_on_unless_it_is_required(agent: Agent) -> None:
    assert take(agent, "never") is False and agent.log == ["copy"]
    agent.fails = True
    assert take(agent, "auto") is False and agent.log == ["copy", "copy"]
    with pytest.raises(Failed, match="does not answer"):
        take(agent, "required")
    agent.missing = "it has no channel"
    assert take(agent, "auto") is False
    moments.check_quiesce(VM, "auto")
    with pytest.raises(Refused, match="can't be frozen, since it has no channel"):
        moments.check_quiesce(VM, "required")
    paused: Any = SimpleNamespace(**{**vars(VM), "state": "paused"})
    moments.check_quiesce(paused, "required")
    assert take(agent, "required", paused) is False


def test_a_guest_that_wrote_again_is_not_called_quiesced(agent: Agent) -> None:
    agent.late = True
    assert take(agent, "auto") is False
    with pytest.raises(Failed, match="wrote again"):
        take(agent, "required")
    assert agent.log[-2:] == ["copy", "thaw"]


def test_it_is_thawed_when_the_copy_fails(agent: Agent) -> None:
    with pytest.raises(Failed, match="full"), moments.moment_of(NODE, VM, "snapshot", "auto", 1):
        raise Failed("full")
    assert agent.log == ["freeze", "thaw"]
