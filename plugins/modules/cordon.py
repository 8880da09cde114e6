#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep VMs off a hypervisor."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cordon
short_description: Keep VMs off a hypervisor
version_added: "0.1.0"
description:
  - Marks the node that it runs on as cordoned. While the mark stands, libvirt itself refuses to start a VM there or to
    receive one, whoever asks, also after a reboot. VMs that run there go on, and migrating them away works.
  - The mark is a local fact in C(/etc/ansible/facts.d/drover.fact). It is enforced by the hook that role
    P(drover.kvm.hypervisor#role) installs, see U(https://libvirt.org/hooks.html).
options:
  state:
    description: Whether the node is cordoned.
    type: str
    choices: [present, absent]
    default: present
  reason:
    description: Why, for the next person who looks. A cordon that stands already keeps its reason.
    type: str
  by:
    description: Who cordons. A cordon that stands already keeps its owner.
    type: str
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
seealso:
  - module: drover.kvm.node_info
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Keep VMs off hv1 while its memory is replaced
  drover.kvm.cordon:
    reason: replace a DIMM
    by: alice

- name: Let VMs come back
  drover.kvm.cordon:
    state: absent

- name: Show what would be done
  drover.kvm.cordon:
    reason: firmware update
  check_mode: true
  diff: true
"""

RETURN = r"""
cordon:
  description: The cordon, or null when there is none.
  returned: always
  type: dict
  contains:
    since:
      description: When the node was cordoned (UTC, ISO 8601).
      type: str
    by:
      description: Who cordoned it.
      type: str
    reason:
      description: Why.
      type: str
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
"""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._files import replace_file
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FACT = "/etc/ansible/facts.d/drover.fact"

FIELDS = (
    Field("state", choices=("present", "absent"), default="present"),
    Field("reason"),
    Field("by"),
)


class Cordon(Resource):
    """The cordon of the node that the module runs on."""

    name = "cordon"

    def read(self) -> State:
        """The cordon's facts. Raises Failed when the file is there and can't be read."""
        try:
            with open(FACT, encoding="utf-8") as stream:
                cordon: State = json.load(stream)["cordon"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failed(f"{FACT} can't be read ({error}); mend or remove it") from None
        return cordon

    def wanted(self, before: State) -> State:
        """A new cordon starts now; one that stands stays as it is."""
        if self.params["state"] == "absent":
            return None
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return before or {"since": now, "by": self.params["by"], "reason": self.params["reason"]}

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Write or clear the fact."""
        if before == wanted:
            return []
        return [Step("cordon the node" if wanted else "end the cordon", lambda: self._write(wanted))]

    def result(self, state: State) -> dict[str, Any]:
        """Return the cordon itself."""
        return {"cordon": state}

    @staticmethod
    def _write(cordon: State) -> None:
        path = Path(FACT)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(path, json.dumps({"cordon": cordon}).encode(), mode=0o644)


def main() -> None:
    """Run the module."""
    run_module(Cordon, FIELDS)


if __name__ == "__main__":
    main()
