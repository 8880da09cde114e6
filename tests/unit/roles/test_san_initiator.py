# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role san_initiator writes for udev and multipath."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined, select_autoescape

from ansible_collections.drover.kvm.plugins.filter.network_of import network_of
from ansible_collections.drover.kvm.plugins.filter.portal import portal
from ansible_collections.drover.kvm.tests.unit.playbook_run import run
from ansible_collections.drover.kvm.tests.unit.role_variables import expression, role_variable

ROLE = Path(__file__).resolve().parents[3] / "roles/san_initiator"
TEMPLATES = ROLE / "templates"
NAMES = [{"name": "db1", "wwid": "36002"}, {"name": "web1", "wwid": "36001"}]


def render(name: str, **variables: object) -> str:
    """A template as Ansible renders it."""
    environment = Environment(
        trim_blocks=True,
        undefined=StrictUndefined,
        autoescape=select_autoescape([], default_for_string=False),
    )
    environment.filters["drover.kvm.portal"] = portal
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        san_initiator_names=NAMES,
        san_initiator_find_multipaths="no",
        san_initiator_path_timeout=5,
        san_initiator_no_path_retry="24",
        **{"san_initiator_lvm_groups": [], **variables},
    )


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["drover.conf.j2", "drover-names.conf.j2"])
def test_multipath_can_read_each_section(name: str) -> None:
    depth = 0
    for line in lines(render(name)):
        assert not ("{" in line and not line.endswith("{")), f"a section on one line: {line}"
        assert "}" not in line or line.strip() == "}"
        depth += line.count("{") - line.count("}")
    assert depth == 0


def test_a_map_is_named_by_its_wwid() -> None:
    words = render("drover-names.conf.j2").split()
    assert words[words.index("36001") + 1 :][:2] == ["alias", "web1"]


@pytest.mark.parametrize(
    "multipath, key", [(True, 'ENV{DM_UUID}=="mpath-36001"'), (False, 'KERNEL=="sd*", ENV{ID_SERIAL}=="36001"')]
)
def test_a_rule_is_keyed_on_the_wwid(multipath: bool, key: str) -> None:
    rules = lines(render("san.rules.j2", san_initiator_multipath=multipath))
    assert len(rules) == 2
    assert key in rules[1] and rules[1].endswith('SYMLINK+="san/web1"')
    assert all("sd[a-z]" not in rule and "dm-" not in rule for rule in rules)


def test_nothing_requires_the_logins() -> None:
    words = ("Requires", "Requisite", "BindsTo", "Wants")
    for name in ("libvirtd.service.j2", "open-iscsi.service.j2"):
        assert not [line for line in lines(render(name)) if line.startswith(words)]
    assert "open-iscsi.service" in render("libvirtd.service.j2").split("After=")[1]


def test_libvirt_waits_for_the_portals_of_vms_that_log_in_themselves() -> None:
    gates = ["10.231.5.10:3260", "[fd00:5::10]"]
    unit = lines(render("drover-san-online.service.j2", san_initiator_boot_timeout=120, san_initiator_gates=gates))
    assert "ExecStart=/usr/local/sbin/drover-late-san wait 120 10.231.5.10 3260 fd00:5::10 3260" in unit
    assert "Before=libvirtd.service virtqemud.service" in unit and not [line for line in unit if "Require" in line]


def test_vms_start_after_the_locks_of_their_groups() -> None:
    assert "lvmlocks.service" not in render("libvirtd.service.j2")
    assert render("libvirtd.service.j2", san_initiator_lvm_groups=[{"name": "vmsan"}]).endswith(" lvmlocks.service")
    assert "open-iscsi.service" in render("lvmlocks.service.j2").split("After=")[1]


def variable(name: str, **known: object) -> Any:
    """A variable of the role, as data."""
    return role_variable(ROLE / "vars/main.yml", name, **known)


def tasks(name: str) -> list[dict[str, Any]]:
    """The tasks of a file of the role, those in blocks too."""
    found = yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text(encoding="utf-8"))
    return [one for task in found for one in (task, *task.get("block", ()), *task.get("rescue", ()))]


def task_value(name: str, title: str, option: str, **known: object) -> Any:
    """What an option of a command in a file of tasks comes to, as data."""
    (task,) = (task for task in tasks(name) if task["name"] == title)
    return expression(task["ansible.builtin.command"][option], **known)


def test_systemd_reads_the_order_once_after_all_of_it_is_written() -> None:
    # What late.yml writes is for transport qemu, and no part of that order.
    names = [path.stem for path in (ROLE / "tasks").glob("*.yml") if path.stem != "late"]
    reloads = [(name, task) for name in names for task in tasks(name) if "daemon_reload: " in yaml.safe_dump(task)]
    ((name, task),) = reloads
    assert name == "boot" and task == {
        "name": "Let systemd read it",
        "ansible.builtin.systemd_service": {"daemon_reload": True},
    }
    words = [task["name"] for task in tasks("boot")]
    assert words.index("Write the order at boot") < words.index("Let systemd read it") < len(words) - 1
    assert "boot.yml" in (text := (ROLE / "tasks/main.yml").read_text(encoding="utf-8"))
    assert text.index("boot.yml") < text.index("groups.yml"), "what groups.yml starts has its order"
    units = variable("san_initiator_ordered", san_initiator_lvm_groups=[{"name": "vmsan"}])
    assert [f"{unit}.j2" for unit in sorted(units)] == sorted(path.name for path in TEMPLATES.glob("[!d]*.service.j2"))
    assert len(variable("san_initiator_ordered", san_initiator_lvm_groups=[])) == 2


@pytest.mark.parametrize(
    "source, networks, good",
    [
        ("10.231.5.11", ["10.231.5.0/24"], True),
        ("10.231.0.11", ["10.231.5.0/24"], False),
        ("10.231.0.11", [], True),
        ("", [], False),
        ("fd00:5::11", ["10.231.5.0/24", "fd00:5::/64"], True),
    ],
)
def test_a_way_outside_the_storage_network_is_found(source: str, networks: list[str], good: bool) -> None:
    gate = network_of(source, networks) if good and networks else (networks or [""])[0]
    known = {"san_initiator_networks": networks, "san_initiator_gate_network": gate, "san_initiator_source": source}
    assert variable("san_initiator_on_storage", **known) is good


def test_a_node_without_a_route_has_no_way() -> None:
    route = {"rc": 0, "stdout": '[{"dst":"10.231.5.10","dev":"storage0","prefsrc":"10.231.5.11"}]'}
    way = variable("san_initiator_way", san_initiator_route=route)
    assert variable("san_initiator_source", san_initiator_way=way) == "10.231.5.11"
    none = variable("san_initiator_way", san_initiator_route={"rc": 2, "stdout": ""})
    assert variable("san_initiator_source", san_initiator_way=none) == ""


def test_the_way_is_proved_over_the_interface_that_the_session_is_bound_to() -> None:
    """Also where the portal is written in another way; the routes may lead over another interface, or nowhere."""
    bound = {"10.231.5.10": "nic1", "[FD00:5::10]:3260": "nic2"}
    for gate, nic in (("10.231.5.10:3260", "nic1"), ("[fd00:5::10]", "nic2"), ("10.231.5.10:3261", "")):
        known = {"san_initiator_interfaces": bound, "san_initiator_gate": gate, "san_initiator_kernel": True}
        assert variable("san_initiator_gate_nic", **known) == nic
        assert variable("san_initiator_gate_nic", **{**known, "san_initiator_kernel": False}) == ""
        way = {"san_initiator_gate_nic": nic, "san_initiator_gate": gate}
        argv = task_value("path", "Find the way to the portal", "argv", **way)
        assert argv[4:] == [portal(gate)["address"], *(["oif", nic] if nic else [])]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_portal_is_asked_over_that_interface(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    program = (ROLE / "files/drover-ask-portal").read_text(encoding="utf-8")

    def ask(port: int, interface: str, seconds: int = 120) -> tuple[int, str]:
        argv = ["timeout", str(seconds), sys.executable, "-", address, str(port), interface]
        done = subprocess.run(argv, input=program, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        assert ask(port, "") == (0, "") and ask(port, "lo") == (0, "")
        # Over another one there is no way, though the routes know one.
        assert ask(port, "no-such-nic", 5)[0] == 124
    code, said = ask(port, "lo")
    assert code == 0 and "refused" in said


NAME, OTHER = "iqn.1993-08.org.debian:01:aaaa", "iqn.1993-08.org.debian:01:bbbb"
HERE = {"san_initiator_iqn": NAME, "inventory_hostname": "hv1", "ansible_play_hosts": ["hv1", "hv2"]}


@pytest.mark.parametrize(
    "hv2, hv3, same",
    [
        ({}, {}, []),
        ({"san_initiator_iqn": NAME}, {}, ["hv2"]),
        ({"san_initiator_iqn": OTHER}, {"ansible_facts": {"iscsi_iqn": NAME}}, ["hv3"]),
        # It gets another name in this run, before anything logs in.
        ({"san_initiator_iqn": OTHER, "ansible_facts": {"iscsi_iqn": NAME}}, {"ansible_facts": {}}, []),
        ({"san_initiator_iqn": NAME}, {"ansible_facts": {"iscsi_iqn": NAME}}, ["hv2", "hv3"]),
    ],
)
def test_nodes_of_one_initiator_name_are_found_in_the_run_and_by_their_facts(
    hv2: dict[str, Any], hv3: dict[str, Any], same: list[str]
) -> None:
    """A machine that was cloned has /etc/iscsi/initiatorname.iscsi of its origin."""
    known = {"hv1": {}, "hv2": hv2, "hv3": hv3, "web1": {"san_initiator_iqn": NAME}}
    hosts = {name: {**said, "inventory_hostname": name} for name, said in known.items()}
    others = variable(
        "san_initiator_others", **HERE, groups={"hypervisors": ["hv1", "hv2", "hv3"], "vms": ["web1"]}, hostvars=hosts
    )
    assert variable("san_initiator_same_iqn", **HERE, san_initiator_others=others) == same
    words = [task["name"] for task in tasks("kernel")]
    assert words.index("Refuse a name that another node has") < words.index("Name the node's initiator")


@pytest.mark.parametrize(
    "asked, text, name",
    [
        ("", f"## a comment\nInitiatorName={NAME}\n", NAME),
        ("", f" InitiatorName = {NAME} \n", NAME),
        (OTHER, f"InitiatorName={NAME}\n", OTHER),
        ("", None, ""),
    ],
)
def test_a_node_has_the_name_that_it_was_given_or_has(asked: str, text: str | None, name: str) -> None:
    slurped = {"failed": True} if text is None else {"content": b64encode(text.encode()).decode()}
    assert variable("san_initiator_own_iqn", san_initiator_name=asked, san_initiator_named=slurped) == name


def session(**states: object) -> dict[str, object]:
    """What module iscsi_session returns of one target."""
    return {"session": {"portals": {portal: {"state": state} for portal, state in states.items()}}}


def test_a_path_that_does_not_work_is_told() -> None:
    results = [session(a="LOGGED_IN", b="FAILED"), session(a="FREE", b=None), {"session": None}]
    found = variable("san_initiator_broken", san_initiator_sessions={"results": results})
    assert [one["key"] for one in found] == ["b", "a"]
    whole = [session(a="LOGGED_IN", b="LOGGED_IN")]
    assert variable("san_initiator_broken", san_initiator_sessions={"results": whole}) == []


@pytest.mark.parametrize(
    "user, mutual, has", [("drover", "san1", "mutual_chap"), ("drover", "", "chap"), ("", "", "none")]
)
def test_chap_goes_both_ways_unless_less_is_meant(user: str, mutual: str, has: str) -> None:
    users = {"san_initiator_chap_user": user, "san_initiator_mutual_chap_user": mutual}
    assert variable("san_initiator_has_auth", **users) == has
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    assert defaults["san_initiator_auth"] == "mutual_chap"


def test_volumes_are_given_back_before_the_locks_are_left() -> None:
    stops = [line for line in lines(render("lvmlocks.service.j2")) if line.startswith("ExecStop=")]
    first, deactivate, leave = (line.partition("=")[2] for line in stops)
    assert first == "", "the unit's own ExecStop would come first"
    # The first one may fail, as for a volume that is still open; the locks are left all the same.
    assert deactivate.startswith("-") and "--activate n" in deactivate and "vg_shared=1" in deactivate
    assert "--stop-lockspaces" in leave


def test_a_new_site_is_foretold_in_full() -> None:
    """Where check mode can't log in, one word stands for the logins: no other change may be left out with them."""
    tasks = yaml.safe_load((ROLE / "tasks/volumes.yml").read_text(encoding="utf-8"))
    (logins,) = (task for task in tasks if "rescue" in task and "Log in" in task["name"])
    changing = [task["name"] for task in logins["block"] if "ansible.builtin.debug" not in task]
    assert changing == ["Log in to the volumes"]


# udev of a node: what the names lead to is in a file, and applied rules put it right.
UDEV = """#!/bin/sh
cd "$NODE" && case $1 in
    info) cat names ;;
    trigger) echo 36002 > names; echo 36001 >> names; touch triggered ;;
esac
"""
# What each node's names lead to, and whether the run has changed the rules or the sessions before.
LED = {
    "whole": ("36002 36001", False, False),
    "killed": ("36002", False, False),
    "other": ("36002 36003", False, False),
    "kept": ("36002 36001 36004", False, False),
    "written": ("36002", True, False),
    "entered": ("36002", False, True),
}


def play_of_names(folder: Path) -> tuple[str, ...]:
    """The words for ansible-playbook: the tasks from the look at the names on, with the udev of each node of `LED`."""
    program = folder / "bin/udevadm"
    program.parent.mkdir()
    program.write_text(UDEV)
    program.chmod(0o755)
    hosts = {}
    for name, (led, rules, logins) in LED.items():
        (folder / name).mkdir()
        (folder / name / "names").write_text("\n".join(led.split()) + "\n")
        hosts[name] = {"san_initiator_rules": {"changed": rules}, "san_initiator_sessions": {"changed": logins}}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    known = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "san_initiator_transport": "lacp",
        "san_initiator_names": NAMES,
    }
    wanted = ("See what the names in /dev/san lead to", "Apply the rules to the disks that are there")
    path = f"{program.parent}:{os.environ['PATH']}"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": known,
        "vars_files": [str(ROLE / "vars/main.yml")],
        "environment": {"PATH": path, "NODE": str(folder / "{{ inventory_hostname }}")},
        "tasks": [task for task in tasks("volumes") if task["name"] in wanted],
    }
    (folder / "play.json").write_text(json.dumps([play]))
    return "-i", str(folder / "hosts.json"), str(folder / "play.json")


@pytest.mark.slow
def test_names_that_a_killed_run_has_not_made_are_made_by_the_next_one(tmp_path: Path) -> None:
    """Check mode foretells it. A run that writes the rules or logs in has said already that it changes something."""
    play = play_of_names(tmp_path)

    def changed(*words: str) -> set[str]:
        code, said = run(tmp_path, *play, *words)
        assert code == 0, said
        return set(re.findall(r"(\w+) : ok=\d+ changed=1", said))

    def triggered() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("*/triggered")}

    assert changed("--check") == {"killed", "other", "kept"} and triggered() == set()
    assert changed() == {"killed", "other", "kept"} and triggered() == set(LED) - {"whole"}
    assert changed() == set()


WEB, LDAP = "iqn.2026-11.org.example:web1", "iqn.2026-11.org.example:ldap1"
BOTH = [f"{portal},1 {target}" for portal in ("10.231.5.10:3260", "10.231.7.10:3260") for target in (WEB, LDAP)]
PROGRAMS = {
    "iscsiadm": 'echo "$RECORDS"',
    "ip": """case " $ASTRAY " in *" $4 "*) echo '[{"dev": "mgmt0", "prefsrc": "192.0.2.9"}]'; exit ;; esac
echo "[{\\"dev\\": \\"nic1\\", \\"prefsrc\\": \\"${4%.*}.11\\"}]\"""",
    "timeout": 'cat >/dev/null; case " $SILENT " in *" $4 "*) exit 124 ;; esac',
}
SAID = {
    "cut": "DEGRADED: cut gets no answer from 10.231.5.10, and goes on over 10.231.7.10:3260;",
    "pulled": "DEGRADED: pulled gets no answer",
    "astray": "astray reaches the portal 10.231.5.10 over interface mgmt0 from 192.0.2.9, which is not in",
    "alone": "None of the portals 10.231.5.10, 10.231.7.10:3260 answers alone;",
    "new": "The portal 10.231.5.10 does not answer new",
    "grown": "The portal 10.231.5.10 does not answer grown",
}
# Of each node: its records, the portals that are silent, and those to which the routes lead over another network.
PATHS: dict[str, tuple[list[str], str, str]] = {
    "whole": (BOTH, "", ""),
    "cut": (BOTH, "10.231.5.10", ""),
    "pulled": (BOTH, "10.231.5.10", "10.231.5.10"),
    "astray": (BOTH, "", "10.231.5.10"),
    "alone": (BOTH, "10.231.5.10 10.231.7.10", ""),
    "new": ([], "10.231.5.10", ""),
    "grown": (BOTH[1::2], "10.231.5.10", ""),
}


@pytest.mark.slow
def test_with_multipath_the_role_goes_on_while_a_portal_is_dead_and_check_mode_says_the_same(tmp_path: Path) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    hosts = {
        name: {"node": {"RECORDS": "\n".join(records), "SILENT": silent, "ASTRAY": astray}}
        for name, (records, silent, astray) in PATHS.items()
    }
    known = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "san_initiator_transport": "multipath",
        "san_initiator_portals": ["10.231.5.10", "10.231.7.10:3260"],
        "san_initiator_storage_networks": ["10.231.5.0/24", "10.231.7.0/24"],
        "san_initiator_iqn_prefix": "iqn.2026-11.org.example",
        "san_initiator_volumes": [{"name": "web1"}, {"name": "ldap1"}],
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": known}}))
    environment = ["{{ node }}", {"PATH": f"{tmp_path}:{os.environ['PATH']}"}]
    play = {"hosts": "all", "gather_facts": False, "environment": environment, "roles": ["drover.kvm.san_initiator"]}
    (tmp_path / "play.json").write_text(json.dumps([play]))
    words = ("-i", str(tmp_path / "hosts.json"), "--tags", "san_initiator_path", str(tmp_path / "play.json"))
    # In check mode the storage network of a node that is new may be made by what comes before.
    for more, refused in ((), {"astray", "alone", "new", "grown"}), (("--check",), {"astray", "alone", "grown"}):
        _code, output = run(tmp_path, *words, *more)
        assert set(re.findall(r"(\w+) : ok=\d+ changed=0 unreachable=0 failed=1", output)) == refused, output
        assert set(re.findall(r"DEGRADED: (\w+)", output)) == {"cut", "pulled"}, output
        assert not [name for name in refused | {"cut", "pulled"} if SAID[name] not in output], output
