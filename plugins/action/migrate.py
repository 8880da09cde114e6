# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run module migrate and show meanwhile how far each VM is, a line every few seconds on standard error."""

from __future__ import annotations

import copy
import json
import os
import threading
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.drover.kvm.plugins.plugin_utils._action import predicts

SECONDS = 3
DIRECTORY = "/run/drover"
READ = f'for file in {DIRECTORY}/migrate-*.json; do cat "$file" 2>/dev/null && echo; done; touch '
display = Display()


def size(number: float) -> str:
    """Bytes for people."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def line(host: str, state: dict[str, Any]) -> str:
    """How far one VM is: web1: hv1 -> hv2, 42 %, 110 MiB/s, 1.2 GiB to go, second pass."""
    words = f"{host}: {state['vm']}: {state['from']} -> {state['to']}: {state['phase']}"
    progress = state.get("progress")
    if state["phase"] != "migrating" or not progress or not progress["total"]:
        return words
    percent = 100 * (1 - progress["remaining"] / progress["total"])
    rate = f", {size(progress['rate'])}/s" if progress["rate"] else ""
    again = f", pass {progress['pass']} over its memory" if progress["pass"] > 1 else ""
    return f"{words}: {percent:.0f} %{rate}, {size(progress['remaining'])} to go{again}"


def states(text: str) -> list[dict[str, Any]]:
    """What helpers told, from the text of their files; what is no such file is left out."""
    found = []
    for row in text.splitlines():
        with suppress(ValueError):
            state = json.loads(row)
            if isinstance(state, dict) and {"id", "vm", "from", "to", "phase"} <= set(state):
                found.append(state)
    return found


class Watcher(threading.Thread):
    """Looks at the helpers' files over a connection of its own, and keeps the heartbeat fresh as it does."""

    def __init__(self, action: ActionBase, host: str, heartbeat: str) -> None:
        super().__init__(daemon=True)
        # The task uses its connection meanwhile, and what escalates privileges keeps state for each command.
        self.action = copy.copy(action)
        self.action._connection = copy.copy(action._connection)
        if self.action._connection.become is not None:
            self.action._connection.become = copy.copy(action._connection.become)
        self.host, self.heartbeat = host, heartbeat
        self.ended = threading.Event()
        self.shown: dict[str, str] = {}
        self.old: set[str] = set()
        self.parent = os.getppid()

    def look(self, first: bool = False) -> None:
        """Read the files and touch the heartbeat; what had ended before the first look is old. Raises AnsibleError."""
        answer = self.action._low_level_execute_command(READ + self.heartbeat, sudoable=True)
        if answer["rc"] != 0:
            raise AnsibleError(answer["stderr"] or answer["stdout"])
        for state in states(answer["stdout"]):
            done = state.get("result") is not None
            if state["id"] not in self.old and not (first and done):
                self.show(state["vm"], line(self.host, state))
            if done:
                self.old.add(state["id"])

    def show(self, vm: str, words: str) -> None:
        """One line, if it says something new."""
        if self.shown.get(vm) != words:
            self.shown[vm] = words
            display.display(words, stderr=True)

    def run(self) -> None:
        """Look until the task is done, or the play is gone: then the heartbeat stops, and with it the queue."""
        with suppress(Exception):
            self.look(first=True)
        while not self.ended.wait(SECONDS) and os.getppid() == self.parent:
            with suppress(Exception):
                self.look()


class ActionModule(ActionBase):
    """Progress for module migrate; everything else is the module's."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; beside it a watcher, unless nothing will move."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        if predicts(self):
            result.update(self._execute_module(module_args=args, task_vars=variables))
            return result
        heartbeat = f"{DIRECTORY}/heartbeat-{os.urandom(8).hex()}"
        self._low_level_execute_command(f"umask 077; mkdir -p {DIRECTORY} && touch {heartbeat}", sudoable=True)
        watcher = Watcher(self, str(variables.get("inventory_hostname", "")), heartbeat)
        watcher.start()
        try:
            module_args = {**args, "heartbeat": heartbeat}
            result.update(self._execute_module(module_args=module_args, task_vars=variables))
        finally:
            watcher.ended.set()
            watcher.join(SECONDS)
            self._low_level_execute_command(f"rm -f {heartbeat}", sudoable=True)
        return result
