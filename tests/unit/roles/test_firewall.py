# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall of role hypervisor: its tasks on a node of files, and what nft makes of its rules and units."""

from __future__ import annotations

import getpass
import grp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.tests.unit.playbook_run import ROOT, run

ROLE = ROOT / "roles/hypervisor"
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
UNIT, RULES = "etc/systemd/system/drover-firewall.service", "etc/drover/firewall.nft"
ADDITION = "etc/systemd/system/nftables.service.d/drover-firewall.conf"
# systemctl, nft and getent of the node; `fails` is a verb of systemctl that is cut off.
PROGRAM = """#!{python}
import json, os, sys, time
path = {state!r}
state = json.load(open(path))
program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
verb, status = (words + [""])[0], 0
if program == "getent":
    found = state["names"].get(words[1], [])
    print("\\n".join(one + "   " + kind for one in found for kind in ("STREAM " + words[1], "DGRAM", "RAW")))
    status = 0 if found else 2
elif program == "nft":
    status = int(verb == "list" and not state["table"])
elif verb == state["fails"]:
    status = 1
elif verb == "show":
    moment = time.strftime("%a %Y-%m-%d %H:%M:%S", time.gmtime(state["since"])) + ".000000 UTC"
    active = "active" if state["active"] else "inactive"
    print("LoadState=loaded\\nActiveState=" + active + "\\nNeedDaemonReload=no\\nStateChangeTimestamp=" + moment)
elif verb in ("start", "restart", "stop"):
    state.update(active=verb != "stop", table=verb != "stop", since=time.time() + 1)
elif verb in ("enable", "disable"):
    state["enabled"] = verb == "enable"
elif verb == "is-enabled":
    print("enabled" if state["enabled"] else "disabled")
    status = 0 if state["enabled"] else 1
if program == "systemctl" and verb in ("start", "restart", "stop", "enable", "disable", "daemon-reload"):
    state["log"].append(verb)
json.dump(state, open(path, "w"))
sys.exit(status)
"""


def steps() -> list[dict[str, Any]]:
    """The tasks of the role that include those of the firewall, for a play."""
    files = [yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text(encoding="utf-8")) for name in ("preflight", "main")]
    tasks = [task for file in files for outer in file for task in outer.get("block", [outer])]
    found = [task for task in tasks if re.search("names|firewall", task.get("ansible.builtin.include_tasks", ""))]
    for task in found:
        name = task.pop("ansible.builtin.include_tasks")
        task["ansible.builtin.include_role"] = {"name": "hypervisor", "tasks_from": name}
    return found


class Node:
    """A node whose role has another /etc, with hv2 and hv3 as its peers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "state.json"
        self.write(active=False, enabled=False, table=False, since=0, fails="", names={}, log=[])
        for program in ("systemctl", "nft", "getent"):
            (folder / program).write_text(PROGRAM.format(python=sys.executable, state=str(self.path)))
            (folder / program).chmod(0o755)
        for place in ("etc/drover", "etc/systemd/system"):
            (folder / place).mkdir(parents=True)
        shutil.copytree(ROLE, folder / "roles/hypervisor")
        owner, group = f"owner: {getpass.getuser()}", f"group: {grp.getgrgid(os.getgid()).gr_name}"
        for file in [*folder.glob("roles/hypervisor/tasks/*.yml"), folder / "roles/hypervisor/vars/main.yml"]:
            text = re.sub("owner: root", owner, re.sub("group: root", group, file.read_text(encoding="utf-8")))
            file.write_text(text.replace("/etc/", f"{folder}/etc/"), encoding="utf-8")
        self.hosts = {"hv1": {"ansible_host": "192.0.2.1", **LOCAL}, "hv2": {"ansible_host": "192.0.2.2"}}
        self.hosts["hv3"] = {"ansible_host": "fd00::3"}

    def write(self, **values):
        self.path.write_text(json.dumps({**(self.state if self.path.exists() else {}), **values}))

    @property
    def state(self):
        return json.loads(self.path.read_text())

    def play(self, *words: str, on: bool = True) -> tuple[int, str]:
        """What the role does of the firewall; how many tasks changed something (-1 when it fails), and its output."""
        book, inventory = self.folder / "book.json", self.folder / "hosts.json"
        more = {"hypervisor_firewall": on}
        book.write_text(json.dumps([{"hosts": "hv1", "gather_facts": False, "vars": more, "tasks": steps()}]))
        inventory.write_text(json.dumps({"all": {"children": {"hypervisors": {"hosts": self.hosts}}}}))
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "ANSIBLE_ROLES_PATH": str(self.folder / "roles")}
        code, said = run(self.folder, "-i", str(inventory), str(book), *words, more=environment)
        recap = re.search(r"hv1 : ok=\d+ changed=(\d+)", said)
        return (int(recap[1]) if recap and code == 0 else -1), said

    def loaded(self) -> None:
        """As a run has left it."""
        for name in (UNIT, RULES, ADDITION):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).touch()
        self.write(active=True, enabled=True, table=True)

    def files(self) -> set[str]:
        """Those of the firewall that are there."""
        return {name for name in (UNIT, RULES, ADDITION) if (self.folder / name).exists()}


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.mark.slow
def test_it_is_loaded_once_and_again_when_its_table_was_lost_or_a_run_was_killed(node):
    assert node.play()[0] > 0 and node.files() == {UNIT, RULES, ADDITION}
    assert node.state["active"] and node.state["enabled"] and node.state["table"]
    changed, said = node.play()
    assert changed == 0, said
    node.write(table=False, log=[])
    changed, said = node.play("--check")
    assert (changed, node.state["log"]) == (1, []), said
    changed, said = node.play()
    assert (changed, node.state["log"], node.state["table"]) == (1, ["restart"], True), said
    later = node.state["since"] + 2
    os.utime(node.folder / ADDITION, (later, later))
    node.write(log=[])
    changed, said = node.play()
    assert (changed, node.state["log"]) == (1, ["daemon-reload", "restart"]), said


@pytest.mark.slow
def test_switched_off_it_takes_all_of_itself_away(node):
    node.loaded()
    foretold, said = node.play("--check", on=False)
    assert node.files() == {UNIT, RULES, ADDITION} and node.state["log"] == [], said
    changed, said = node.play(on=False)
    assert changed == foretold > 0 and node.files() == set(), said
    assert not node.state["active"] and not node.state["enabled"] and not node.state["table"]
    node.write(log=[])
    changed, said = node.play(on=False)
    assert (changed, node.state["log"]) == (0, []), said


@pytest.mark.slow
def test_a_run_that_was_cut_off_as_it_took_it_away_is_made_good(node):
    node.loaded()
    node.write(fails="stop")
    assert node.play(on=False)[0] == -1 and UNIT in node.files()
    node.write(fails="")
    assert node.play(on=False)[0] > 0 and node.files() == set() and not node.state["active"]


@pytest.mark.slow
def test_names_of_peers_are_written_as_all_their_addresses(node):
    """Its own name, which may mean lo, is not looked up."""
    hv2 = {"ansible_host": "hv2.example.org", "hypervisor_migration_address": "198.51.100.2"}
    node.hosts = {"hv1": LOCAL, "hv2": hv2, "hv3": {}}
    node.write(names={"hv3": ["192.0.2.32", "192.0.2.31", "fd00::3"], "hv2.example.org": ["192.0.2.2"]})
    assert node.play()[0] > 0
    let_in = re.findall(r"(ip6?) saddr (\S+) accept", (node.folder / RULES).read_text())
    four = ["192.0.2.2", "192.0.2.31", "192.0.2.32", "198.51.100.2"]
    assert let_in == [*(("ip", one) for one in four), ("ip6", "fd00::3")]
    node.write(names={"hv3": ["fd00::3", "192.0.2.31", "192.0.2.32"], "hv2.example.org": ["192.0.2.2"]})
    assert node.play("--check")[0] == 0
    node.write(names={"hv3": ["192.0.2.32"]})
    changed, said = node.play()
    assert changed == -1 and "hv1 finds no address of hv2.example.org, which its firewall is to let in." in said, said


def namespace(script: str) -> str:
    """What a script of the shell says in a network namespace of its own."""
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-e", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stdout}{done.stderr}"


def commands(file: str, setting: str) -> list[str]:
    """What a unit runs, as words of the shell."""
    lines = (ROLE / "files" / file).read_text(encoding="utf-8").splitlines()
    found = [line.partition("=")[2].removeprefix("-") for line in lines if line.startswith(f"{setting}=")]
    return [shlex.join(shlex.split(one)) for one in found]


@pytest.fixture
def rules(tmp_path):
    if namespace("nft list ruleset"):
        pytest.skip("no nft in a network namespace here")
    path = tmp_path / "firewall.nft"
    text = re.sub(r"{%.*%}\n|.*saddr.*\n", "", (ROLE / "templates/firewall.nft.j2").read_text(encoding="utf-8"))
    text = text.replace("{{ hypervisor_tls_port }}", "1").replace("{{ hypervisor_migration_ports }}", "2-3")
    path.write_text(text)
    return path


@pytest.mark.parametrize("setting", ["ExecStartPost", "ExecReload", "ExecStopPost"])
def test_nftables_loads_the_rules_again_whatever_it_does(rules, setting):
    (again,) = (one.replace("/etc/drover/firewall.nft", str(rules)) for one in commands("nftables.conf", setting))
    said = namespace(f"nft -f {rules}; nft flush ruleset; {again}; nft list tables")
    assert said == "table inet drover_hypervisor\n"


def test_its_end_takes_only_its_own_table_also_when_that_is_gone(rules):
    (end,) = commands("drover-firewall.service", "ExecStop")
    said = namespace(f"nft -f {rules}; nft add table inet other; {end}; {end}; nft list tables")
    assert said == "table inet other\n"


def test_at_boot_it_comes_after_what_removes_all_tables():
    unit = (ROLE / "files/drover-firewall.service").read_text(encoding="utf-8")
    assert "nftables.service" in unit.partition("\nAfter=")[2].splitlines()[0].split()
