# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks on nodes that there are not: modules that would ask or change one answer as the test says.

They are replaced by an action on the controller, in a copy of the collection that is made of links; all else, the
planner, the filters and the tasks, is what it is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.tests.unit.playbook_run import COLLECTIONS, ROOT, run
from ansible_collections.drover.kvm.tests.unit.plugins.module_utils.cluster.test_golden import node_info

SCRIPTED: tuple[str, ...] = (
    "node_info",
    "migrate",
    "vm",
    "stop_record",
    "cordon",
    "ceph_maintenance",
    "fence",
    "path_info",
    "shutdown_info",
    "vm_ports",
    "ovs_bridge",
)
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
# Answers by host and module; of a host that has none for it, {}. What is not a dictionary, or stands
# under `unreachable`, is why it can't be reached.
ACTION = """
import json, os
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        module = self._task.action.rsplit(".", 1)[-1]
        host = task_vars["inventory_hostname"]
        where = str(self._task.delegate_to or host)
        call = {"where": where, "module": module, "args": self._task.args, "check": bool(self._task.check_mode)}
        with open(os.environ["SCRIPTED_CALLS"], "a") as calls:
            calls.write(json.dumps(call, default=str) + "\\n")
        with open(os.environ["SCRIPTED_ANSWERS"]) as file:
            answer = json.load(file).get(where, {}).get(module, {})
        if not isinstance(answer, dict):
            raise AnsibleConnectionFailure(answer)
        for case in answer.get("cases", ()):
            if all(self._task.args.get(key, default) == value for key, (value, default) in case["when"].items()):
                answer = case
                break
        if "unreachable" in answer:
            raise AnsibleConnectionFailure(answer["unreachable"])
        return {"changed": False, **{key: value for key, value in answer.items() if key not in ("cases", "when")}}
"""


class Site:
    """The collection with scripted modules; `nodes` are facts as the golden scenarios write them."""

    def __init__(self, folder: Path, **nodes: dict[str, Any]) -> None:
        self.folder = folder
        self.nodes: dict[str, dict[str, Any]] = {name: {} for name in nodes}
        self.answers = {name: {"node_info": _told(name, given)} for name, given in nodes.items()}
        self.vms = sorted({vm for given in nodes.values() for vm in given.get("vms", {})})
        self.groups: dict[str, list[str]] = {}
        copy = folder / "ansible_collections/drover/kvm"
        _link(ROOT, copy, ("plugins",))
        _link(ROOT / "plugins", copy / "plugins", ("action",))
        _link(ROOT / "plugins/action", copy / "plugins/action", tuple(f"{name}.py" for name in SCRIPTED))
        for name in SCRIPTED:
            (copy / f"plugins/action/{name}.py").write_text(ACTION, encoding="utf-8")
        self.playbooks = copy / "playbooks"
        # Ansible's own module asks it; of all units it says that they run.
        systemctl = folder / "systemctl"
        systemctl.write_text("#!/bin/sh\nprintf 'LoadState=loaded\\nActiveState=active\\n'\n", encoding="ascii")
        systemctl.chmod(0o700)

    def play(self, playbook: str | Path, *words: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook of the collection, or a file; its exit status and output as one line."""
        hosts = {name: {**LOCAL, **own} for name, own in self.nodes.items()}
        # The first host of all is a VM, which has no variable of the nodes.
        children: dict[str, Any] = {"vms": {"hosts": {name: {} for name in self.vms}}, "hypervisors": {"hosts": hosts}}
        children |= {group: {"hosts": {name: {} for name in names}} for group, names in self.groups.items()}
        files = {name: self.folder / f"{name}.json" for name in ("hosts", "answers", "calls")}
        files["hosts"].write_text(json.dumps({"all": {"children": children}}), encoding="utf-8")
        files["answers"].write_text(json.dumps(self.answers), encoding="utf-8")
        files["calls"].write_text("", encoding="utf-8")
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": f"{self.folder}:{COLLECTIONS}",
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "SCRIPTED_ANSWERS": str(files["answers"]),
            "SCRIPTED_CALLS": str(files["calls"]),
        }
        file = playbook if isinstance(playbook, Path) else self.playbooks / f"{playbook}.yml"
        said = ["-e", json.dumps(variables)] if variables else []
        return run(self.folder, "-i", str(files["hosts"]), str(file), *words, *said, more=environment)

    def calls(self, module: str, check: bool = False) -> list[dict[str, Any]]:
        """What the last playbook asked of a module, in check mode or not."""
        lines = (self.folder / "calls.json").read_text(encoding="utf-8").splitlines()
        return [call for call in map(json.loads, lines) if (call["module"], call["check"]) == (module, check)]


def _told(name: str, given: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = node_info(name, given)
    told["node"] |= {"clock": 0.0, "vm_capable": given.get("vm_capable", True), "cpu_matrix": []}
    for domain in told["node"]["domains"]:
        domain |= {"autostart": False}
        domain["metadata"] = {key: value for key, value in domain["metadata"].items() if value is not None}
        domain["metadata"].setdefault("tags", [])
    return told


def _link(source: Path, target: Path, but: tuple[str, ...]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in but:
            (target / path.name).symlink_to(path)
