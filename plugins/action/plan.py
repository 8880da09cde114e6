# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute where VMs shall go: placement, drain, return. See the module file of the same name for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._cluster.options import FIELDS
from ansible_collections.drover.kvm.plugins.module_utils._cluster.planner import plan
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.plugin_utils._action import Action


class ActionModule(Action):
    """The action plan: pure, so that the same facts always give the same plan."""

    FIELDS = FIELDS

    def act(self, params: dict[str, Any]) -> dict[str, Any]:
        """The plan; raises Refused with all blockers unless fail_on_blockers is false."""
        result = plan(params)
        result["diff"] = {"prepared": result["text"] + "\n"}
        result["refusal"] = _refusal(params["operation"], result["blockers"], result.get("enough") or ())
        if result["refusal"] and params["fail_on_blockers"]:
            raise Refused(result["refusal"], **result)
        return result


def _refusal(operation: str, blockers: Sequence[Mapping[str, str]], enough: Sequence[str]) -> str:
    if not blockers:
        return ""
    count = "1 blocker" if len(blockers) == 1 else f"{len(blockers)} blockers"
    lines = (f"- {blocker['text']}. Mend: {blocker['mend']}." for blocker in blockers)
    least = [f"It is enough to mend: {'; '.join(enough)}."] if enough and len(blockers) > 1 else []
    return "\n".join([f"{operation} can't be done, {count}:", *lines, *least])
