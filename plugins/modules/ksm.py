#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set the kernel's samepage merging, now and at each boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ksm
short_description: Set the kernel's samepage merging (KSM)
version_added: "0.1.0"
description:
  - Has the kernel of a node keep equal pages of its VMs once, or no longer. The settings hold at once, and at each boot
    by C(/etc/tmpfiles.d/drover-ksm.conf). Role P(drover.kvm.hypervisor#role) sets it with
    O(drover.kvm.hypervisor#role:main:hypervisor_ksm).
  - The options are files of C(/sys/kernel/mm/ksm), by the kernel's names. What is not given has the kernel's default.
  - B(Merged pages are a way between VMs.) A guest can measure how long a write to a page takes, and so learn whether
    another VM has that page too; attacks on keys and on the addresses of programs were built on it. Use it where all
    VMs of a node trust each other, and take the others out with O(drover.kvm.vm#module:nosharepages).
  - Only memory of VMs without huge pages is merged, see O(drover.kvm.vm#module:hugepages).
  - Refused in a container, which has its host's kernel, and while a service sets the same files (ksm, ksmtuned, and
    qemu-kvm of Ubuntu), as each would undo what the other does.
  - See U(https://docs.kernel.org/admin-guide/mm/ksm.html).
options:
  run:
    description:
      - V(1) merges, V(2) stops and gives each VM its pages back, V(0) stops and leaves merged what is.
      - Giving back needs as much memory as was saved (C(memory.merged) of M(drover.kvm.node_info)), and takes the
        kernel a while. It is refused, before anything is changed, where the node has less than that and a fiftieth of
        its memory available.
    type: int
    default: 1
  pages_to_scan:
    description:
      - How many pages the kernel looks at before it pauses, 1 or more. The more, the sooner it finds equal ones, and
        the more of a CPU it takes.
      - With O(advisor_mode=scan-time) the kernel chooses itself, and this counts for nothing.
    type: int
    default: 100
  sleep_millisecs:
    description: How long it pauses, in milliseconds.
    type: int
    default: 20
  merge_across_nodes:
    description:
      - Whether pages of different NUMA nodes are merged. V(false) saves less, and no VM reads through the memory of
        another NUMA node for it.
      - The kernel changes it while nothing is merged only, so what is merged is given back first, see O(run), and
        merged anew. So it is with O(max_page_sharing).
    type: bool
    default: true
  max_page_sharing:
    description: For how many pages one can stand at most, 2 or more.
    type: int
    default: 256
  use_zero_pages:
    description: Whether empty pages are merged with the kernel's own one. Not for all CPUs is that faster.
    type: bool
    default: false
  smart_scan:
    description: Whether pages that were not merged for long are looked at less often. Linux 6.7 has it.
    type: bool
    default: true
  advisor_mode:
    description:
      - V(scan-time) lets the kernel choose O(pages_to_scan) so that it has looked at all in 200 seconds. Linux 6.8 has
        it; it does there what ksmtuned was for.
    type: str
    choices: [none, scan-time]
    default: none
  state:
    description:
      - V(absent) takes back what this module has set - all is unmerged as with O(run=2), the settings are the kernel's
        defaults, the file is gone. Where this module has set nothing, KSM is left alone.
    type: str
    choices: [present, absent]
    default: present
requirements:
  - systemd
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.node_info
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Merge equal pages of the VMs
  drover.kvm.ksm:

- name: Look at more pages at a time, and keep to the NUMA nodes
  drover.kvm.ksm:
    pages_to_scan: 1000
    merge_across_nodes: false

- name: Let the kernel find its own pace (Debian 13)
  drover.kvm.ksm:
    advisor_mode: scan-time

- name: Give all pages back, and keep KSM off
  drover.kvm.ksm:
    run: 2

- name: Take back what was set
  drover.kvm.ksm:
    state: absent
"""

RETURN = r"""
ksm:
  description: The settings by the names of the options, as far as the kernel has them, and what stands in the file.
  returned: always
  type: dict
  contains:
    run: {description: As the option., type: int}
    file: {description: Its lines; null where there is none., type: list, elements: str}
  sample:
    run: 1
    pages_to_scan: 100
    file: ["w /sys/kernel/mm/ksm/pages_to_scan - - - - 100", "w /sys/kernel/mm/ksm/run - - - - 1"]
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["pages_to_scan 100 -> 1000", "run 0 -> 1", "write /etc/tmpfiles.d/drover-ksm.conf"]
"""

import os
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _ksm
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, size_text
from ansible_collections.drover.kvm.plugins.module_utils._node import available_memory
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("run", type="int", default=1, check=between(0, 2)),
    Field("pages_to_scan", type="int", default=100, check=between(1)),
    Field("sleep_millisecs", type="int", default=20, check=between(0)),
    Field("merge_across_nodes", type="bool", default=True),
    Field("max_page_sharing", type="int", default=256, check=between(2)),
    Field("use_zero_pages", type="bool", default=False),
    Field("smart_scan", type="bool", default=True),
    Field("advisor_mode", choices=("none", "scan-time"), default="none"),
    Field("state", choices=("present", "absent"), default="present"),
)
# Seconds in which the kernel's counters follow.
COUNTED = 60
# One in so many parts of the node's memory is not for that.
SPARE = 50


class Ksm(Resource):
    """The one KSM of the kernel that the module runs on."""

    name = "ksm"
    container: str | None = None

    def read(self) -> State:
        """The settings that the kernel has, and those that it gets at boot."""
        self.container = _ksm.container()
        # A container sees those of its host.
        return {**({} if self.container else _ksm.settings()), "file": _ksm.at_boot()}

    def wanted(self, before: State) -> State:
        """Exactly what the options say, or as it was before them. Raises Refused."""
        now = dict(before or {})
        file = now.pop("file", None)
        if self.params["state"] == "absent":
            after = now if file is None else {name: _ksm.DEFAULTS[name] for name in now}
            after = {**after, "file": None}
        else:
            self._check_kernel(now)
            after = {name: self.params[name] for name in now}
            if after.get("advisor_mode") == "scan-time":
                after.pop("pages_to_scan")
            after["file"] = _ksm.lines(after)
        after = {**now, **after}
        if self._gives_back(before or {}, after):
            _check_room()
        return after

    def _check_kernel(self, now: dict[str, Any]) -> None:
        if self.container:
            raise Refused(f"this is a container ({self.container}): KSM is its host's, as the kernel is; set it there")
        if not now:
            raise Refused(f"the kernel {os.uname().release} has no KSM ({_ksm.FOLDER}, CONFIG_KSM)")
        lacks = [name for name, value in _ksm.DEFAULTS.items() if name not in now and self.params[name] != value]
        if lacks:
            raise Refused(f"the kernel {os.uname().release} has no {', '.join(lacks)} in {_ksm.FOLDER}; leave it out")
        if units := _ksm.rivals():
            raise Refused(
                f"{', '.join(units)} would set KSM too, and undo this; systemctl disable --now {' '.join(units)}, or "
                "leave KSM to it",
                units=units,
            )

    @staticmethod
    def _gives_back(before: dict[str, Any], after: dict[str, Any]) -> bool:
        """Whether what is merged must be unmerged: for good, or for settings that change in no other way."""
        if "run" not in before:
            return False
        if after.get("run") == 2:
            return bool(before["run"] != 2)
        left = before["file"] is not None and after["file"] is None
        changed = any(before[name] != after[name] for name in _ksm.UNMERGED if name in before)
        return (left or changed) and (before.get("run") == 1 or not _ksm.settled() or bool(_ksm.merged()))

    def steps(self, before: State, wanted: State) -> list[Step]:
        """A step for each setting, and one for the file at the end, by which a run that was cut off is known."""
        now, after = dict(before or {}), wanted or {}
        steps = []
        if self._gives_back(now, after):
            words = f"give back what is merged (run {now['run']} -> 2)"
            steps.append(Step(words, partial(_ksm.put, "run", 2), _nothing_merged, COUNTED))
            now["run"] = 2
        if now.get("advisor_mode") != after.get("advisor_mode"):
            # As set_advisor_defaults() of mm/ksm.c sets it with that.
            now["pages_to_scan"] = _ksm.DEFAULTS["pages_to_scan"]
        for name in _ksm.DEFAULTS:
            # The adviser sets that itself, and lets nobody else.
            advised = name == "pages_to_scan" and after.get("advisor_mode") == "scan-time"
            if name in now and now[name] != after[name] and not advised:
                words = f"{name} {now[name]} -> {after[name]}"
                steps.append(Step(words, partial(_ksm.put, name, after[name])))
        if now["file"] != after["file"]:
            words = "remove" if after["file"] is None else "write"
            steps.append(Step(f"{words} {_ksm.AT_BOOT}", partial(_ksm.put_at_boot, after["file"])))
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """All of it."""
        return {"ksm": state}


def _check_room() -> None:
    """Whether the node has the memory for what is merged; the kernel would end a process that it needs for it."""
    needed, free = _ksm.merged() or 0, available_memory()
    spare = os.sysconf("SC_PHYS_PAGES") // SPARE * os.sysconf("SC_PAGE_SIZE")
    if needed and free is not None and free < needed + spare:
        raise Refused(
            f"{size_text(needed)} are merged, and to give them back the node needs {size_text(needed + spare)} of "
            f"memory and has {size_text(free)}; move VMs away first",
            needed=needed + spare,
            available=free,
        )


def _nothing_merged() -> object:
    return (_ksm.settled() and not _ksm.merged()) or "pages are still merged"


def main() -> None:
    """Run the module."""
    run_module(Ksm, FIELDS)


if __name__ == "__main__":
    main()
