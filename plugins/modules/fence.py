#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switch a machine off or on from outside, and see that it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fence
short_description: Switch a machine off or on from outside
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Calls a fence agent, such as C(fence_ipmilan) of the package C(fence-agents-ipmilan), which talks to the management
    controller, the power strip or the like of another machine. Run it on a machine that reaches that.
  - The agent is asked before and after. When it does not say afterwards that the machine is as wanted, the task fails,
    whatever it said while it switched.
  - An agent that is wrong about the machine can't be found out by this. Playbook C(drover.kvm.failover_node) therefore
    also looks whether the machine still answers.
  - Options go to the agent by standard input, never by its command line.
  - See U(https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md).
options:
  agent:
    description: The agent's name or path.
    type: str
    required: true
  options:
    description:
      - What the agent needs, by its own names, such as C(ip), C(username), C(password), C(lanplus) or C(plug). They are
        not shown and not logged.
      - C(action) is set by the module.
    type: dict
    default: {}
  state:
    description: What the machine shall be.
    type: str
    choices: ['off', 'on']
    default: 'off'
  timeout:
    description: How long one call of the agent may take, in seconds, and then how long the machine may need.
    type: int
    default: 60
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
requirements:
  - the agent, from one of the packages C(fence-agents-*)
seealso:
  - module: drover.kvm.cordon
"""

EXAMPLES = r"""
- name: Switch hv3 off by its management controller
  drover.kvm.fence:
    agent: fence_ipmilan
    options:
      ip: 10.0.9.13
      username: drover
      password: "{{ vault_bmc_password }}"
      lanplus: 1
  delegate_to: hv1

- name: Is it off?
  drover.kvm.fence:
    agent: fence_ipmilan
    options: "{{ hostvars.hv3.drover_fence.options }}"
  check_mode: true
  register: power
  delegate_to: hv1

- name: Wake it in the morning
  drover.kvm.fence:
    agent: fence_ipmilan
    options: "{{ hostvars.hv3.drover_fence.options }}"
    state: 'on'
    timeout: 180
  delegate_to: hv1
"""

RETURN = r"""
power:
  description: What the agent says of the machine at the end; in check mode what it would be.
  returned: always
  type: str
  sample: 'off'
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["switch it off (fence_ipmilan)"]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._fence import Agent
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module


def check_agent(value: str) -> str:
    """A name or a path, not an option or several words."""
    if not value or value.startswith("-") or any(letter.isspace() for letter in value):
        raise ValueError(f"{value!r} is no name of a program")
    return value


def check_options(value: dict[str, Any]) -> dict[str, Any]:
    """One line each; the action is the module's."""
    for name, text in value.items():
        if name == "action" or not str(name).replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"{name} can't be set here")
        if isinstance(text, (dict, list)) or "\n" in str(text):
            raise ValueError(f"{name} is not one line of text")
    return {str(name): text for name, text in value.items()}


def check_timeout(value: int) -> int:
    """At least a second."""
    if value < 1:
        raise ValueError(f"{value} s is too short")
    return value


FIELDS = (
    Field("agent", required=True, check=check_agent),
    Field("options", type="dict", default={}, no_log=True, check=check_options),
    Field("state", choices=("off", "on"), default="off"),
    Field("timeout", type="int", default=60, check=check_timeout),
)


class Power(Resource):
    """Whether a machine is on, by what its agent says."""

    key = "agent"

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Agent]:
        """The agent with its options."""
        return nullcontext(Agent(params["agent"], params["options"], params["timeout"]))

    def read(self) -> State:
        """What it says now."""
        return {"power": self.client.power()}

    def wanted(self, before: State) -> State:
        """What was asked for."""
        return {"power": self.params["state"]}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Switch, and wait until the agent says so."""
        power = self.params["state"]
        if before == wanted:
            return []
        return [
            Step(
                f"switch it {power} ({self.params['agent']})",
                partial(self.client.switch, power),
                lambda: self.client.power() == power or f"it is not {power}",
                timeout=self.params["timeout"],
            )
        ]

    def result(self, state: State) -> dict[str, Any]:
        """What it says."""
        return {"power": (state or {}).get("power", "unknown")}


def main() -> None:
    """Run the module."""
    run_module(Power, FIELDS)


if __name__ == "__main__":
    main()
