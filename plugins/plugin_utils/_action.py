# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's small sibling on the controller: options in, a result out, for all action plugins alike.

With module_utils/_resource.py it is the only place that knows check mode and diff.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, argument_spec, normalise, tame

display = Display()


class Action(ActionBase):
    """Base of the action plugins that only compute. They never change anything, so check mode is like a real run."""

    FIELDS: ClassVar[Sequence[Field]] = ()
    TRANSFERS_FILES = False
    _requires_connection = False

    def act(self, params: dict[str, Any]) -> dict[str, Any]:
        """The result for the normalised options; may hold `diff`. May raise any DroverError."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What Ansible calls."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if result.get("skipped"):
            return result
        try:
            outcome = {"changed": False, **self.act(self._options())}
        except DroverError as error:
            failure = {"failed": True, "msg": error.message, "error": type(error).__name__}
            outcome = {"changed": False, **error.details, **failure}
        if "diff" in outcome and not self._task.diff:
            del outcome["diff"]
        elif "diff" in outcome:
            # Ansible shows the diff of a task only if the task changed something. stdout may be read by a machine.
            display.display(outcome["diff"]["prepared"], stderr=True)
        return {**result, **outcome}

    def _options(self) -> dict[str, Any]:
        spec = argument_spec(self.FIELDS)
        checked = ArgumentSpecValidator(spec).validate(tame(self._task.args, spec))
        if checked.error_messages:
            raise Invalid("; ".join(checked.error_messages))
        return normalise(self.FIELDS, checked.validated_parameters)


def predicts(action: ActionBase) -> bool:
    """Whether the task only says what it would do."""
    return bool(action._task.check_mode)
