# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module and, when it made a change that takes itself back, confirm it over a fresh connection."""

from __future__ import annotations

import re
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

GRACE = 15  # seconds after the time limit in which the machine brings the old configuration back
PAUSE = 1
SAFE = re.compile(r"[A-Za-z0-9@._/-]+", re.ASCII)
# Whoever renames the file first, this or the program that restores, has decided. An answer may get lost on its way:
# what was confirmed once can be confirmed again.
CONFIRM = "{ test -e FILE.confirmed || mv -- FILE FILE.confirmed; } && { systemctl stop UNIT.timer || true; }"


class ConfirmingAction(ActionBase):
    """Everything is the module's but the confirmation: that Ansible can still come in is seen from outside only."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; confirm its change when it asks for that."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        seconds = self._task.args.get("confirm_timeout")
        if seconds and self._task.async_val:
            raise AnsibleActionFail("confirm_timeout needs a task that waits: use it without async")
        try:
            outcome = self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val)
        except AnsibleConnectionFailure as error:
            if not seconds:
                raise
            raise AnsibleConnectionFailure(
                f"{error}\nWhat was changed is taken back {seconds} s after the change"
            ) from error
        result.update(outcome)
        rollback = result.get("rollback")
        if rollback and result.get("failed"):
            result["msg"] += f"; not confirmed, the previous configuration comes back within {rollback['seconds']} s"
        elif rollback:
            self._settle(result, rollback)
        return result

    def _settle(self, result: dict[str, Any], rollback: dict[str, Any]) -> None:
        """Confirm, and put into the result how it went."""
        answer = self._confirm(str(rollback["file"]), str(rollback["unit"]), int(rollback["seconds"]))
        result["confirmed"] = answer is True
        if answer is not True:
            taken = "has taken" if answer is False else "takes"
            result["failed"] = True
            result["error"] = "TimedOut"
            result["msg"] = (
                f"after the change the machine could not be reached within {rollback['seconds']} s; it {taken} the "
                f"change back by itself (journalctl -u {rollback['unit']} on the machine tells how that went)"
            )

    def _confirm(self, file: str, unit: str, seconds: int) -> bool | None:
        """Try until the machine answers: True when the change stays, False when it was too late, None without one."""
        if not SAFE.fullmatch(file) or not SAFE.fullmatch(unit):
            raise AnsibleActionFail(f"the machine names no file that could be confirmed: {shlex.quote(file)}")
        command = CONFIRM.replace("FILE", file).replace("UNIT", unit)
        end = time.monotonic() + seconds + GRACE
        while True:
            try:
                # An open connection may live on where a new one can't be made.
                self._connection.reset()
                answer = self._low_level_execute_command(command, sudoable=True)
                return bool(answer["rc"] == 0)
            except AnsibleConnectionFailure:
                if time.monotonic() > end:
                    return None
                time.sleep(PAUSE)
