# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fence agent: a program that switches a machine off from outside, and tells whether it is.

Its options go in as lines of standard input, so no password is seen in a list of processes. For the exit codes see
https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._errors import Failed
from ._run import run

# What "status" exits with: 0 is on, 2 is off, all else that it could not tell.
ON, OFF = 0, 2


@dataclass(frozen=True)
class Agent:
    """An agent for one machine: the program, its options, and how many seconds one call may take."""

    program: str
    options: Mapping[str, Any] = field(repr=False)
    timeout: float = 60

    def power(self) -> str:
        """`on` or `off`, by the agent. Raises NotFound, TimedOut, and Failed when it can't tell."""
        try:
            self._call("status", ON)
        except Failed as error:
            if error.details.get("rc") == OFF:
                return "off"
            raise
        return "on"

    def switch(self, power: str) -> None:
        """Switch the machine `on` or `off`. Raises NotFound, TimedOut and Failed."""
        self._call(power, 0)

    def _call(self, action: str, ok: int) -> str:
        lines = [f"{name}={value}" for name, value in self.options.items()]
        return run([self.program], stdin="\n".join([*lines, f"action={action}", ""]), timeout=self.timeout, ok=(ok,))
