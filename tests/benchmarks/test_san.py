# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thirty volumes and the sessions with them: one task each of ours, beside the tools' commands in a loop, in turn.

tgtd is a private one on this machine. LIO and the kernel's initiator need a kernel of their own: two VMs of a lab.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, seconds_of_tasks, typical
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, example_lab, tasks
from ansible_collections.drover.kvm.tests.unit.tgt_server import PrivateSan, missing

VOLUMES = 30
ROUNDS = {"tgt": 5, "lio": 2}
LOOPS = 2  # a loop takes a minute
TGT_GOAL, LIO_GOAL = 10.0, 3.0
LIO, HOST = "san1", "hv1"
PREFIX = "iqn.2026-11.org.example.bench"
INITIATOR = f"{PREFIX}:{HOST}"
FOLDER = "/srv/drover"
PORTAL = "10.231.5.10:3260"
# Emulated nodes are slow.
PLAY_SECONDS = 1800
NETWORKS = {"management": "10.231.0.0/24", "storage": "10.231.5.0/24"}
ONE_NETWORK_A_SWITCH = {
    "mgmt0": {"to": "mgmt", "network": "management"},
    "nic1": {"to": "fabric", "network": "storage"},
}
NODE = {"networks": list(NETWORKS), "nics": ONE_NETWORK_A_SWITCH}
TOPOLOGY = {
    "networks": {name: {"subnet": subnet} for name, subnet in NETWORKS.items()},
    "switches": {name: {"kind": "bridge", "network": net} for name, net in zip(("mgmt", "fabric"), NETWORKS)},
    "nodes": {
        LIO: {**NODE, "kind": "vm", "memory": "1G", "groups": ["san"], "number": 10},
        HOST: {**NODE, "kind": "vm", "memory": "1G", "groups": ["hypervisors"], "number": 11},
    },
}
PLAY = f"""
- hosts: {LIO}
  gather_facts: false
  vars:
    san_target_backend: lio
    san_target_portals: ["{{{{ lab_addresses.storage }}}}:3260"]
  roles: [drover.kvm.san_target]
- hosts: {HOST}
  gather_facts: false
  tasks:
    - ansible.builtin.apt: {{name: open-iscsi, update_cache: true}}
    - ansible.builtin.copy:
        dest: /etc/iscsi/initiatorname.iscsi
        content: "InitiatorName={INITIATOR}\\n"
        mode: "0600"
    # An emulated node with thirty sessions answers later than a server.
    - ansible.builtin.lineinfile:
        path: /etc/iscsi/iscsid.conf
        regexp: "^[^#]*timeo.{{{{ item }}}} ="
        line: "node.conn[0].timeo.{{{{ item }}}} = 60"
      loop: [noop_out_interval, noop_out_timeout]
    - ansible.builtin.systemd_service: {{name: iscsid.service, state: restarted}}
"""
COMMON = {"iqn_prefix": PREFIX, "directory": FOLDER, "initiators": [INITIATOR], "size": "8MiB", "chap_user": ""}
OURS = [f"ours{number:02}" for number in range(VOLUMES)]
LOOPED = [f"loop{number:02}" for number in range(VOLUMES)]
FIRST_TID = 1000
# tgtd forgets these at its next start; a playbook would write its configuration besides.
TGTADM = [
    "truncate -s 8M {folder}/{name}.img",
    "tgtadm --lld iscsi --op new --mode target --tid {tid} -T {prefix}:{name}",
    "tgtadm --lld iscsi --op new --mode logicalunit --tid {tid} --lun 1 -b {folder}/{name}.img",
    "tgtadm --lld iscsi --op bind --mode target --tid {tid} --initiator-name {initiator}",
]
NO_TGTADM = "tgtadm --lld iscsi --op delete --mode target --tid {tid} --force; rm {folder}/{name}.img"
TARGETCLI = """targetcli <<'END'
/backstores/fileio create {name} {folder}/{name}.img 8M
/iscsi create {prefix}:{name}
/iscsi/{prefix}:{name}/tpg1/luns create /backstores/fileio/{name}
/iscsi/{prefix}:{name}/tpg1/acls create {initiator}
END"""
NO_TARGETCLI = (
    "targetcli <<'END'\n/iscsi delete {prefix}:{name}\n/backstores/fileio delete {name}\nEND\nrm {folder}/{name}.img"
)
DISCOVERY = f"iscsiadm -m discovery -t sendtargets -p {PORTAL}"
LOGIN = f"iscsiadm -m node -T {{prefix}}:{{name}} -p {PORTAL} --login"
NO_SESSIONS = "iscsiadm -m node -u; iscsiadm -m node -o delete"
DISKS = "udevadm settle; ls /dev/disk/by-path | grep -c {name}"
Task = dict[str, Any]


@pytest.fixture
def san(tmp_path: Path) -> Iterator[Cluster]:
    """A SAN on LIO and an initiator, in a lab of their own."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    (tmp_path / "topology.json").write_text(json.dumps(TOPOLOGY), encoding="utf-8")
    (tmp_path / "inventory").mkdir()
    book = tmp_path / "san.yml"
    book.write_text(PLAY, encoding="utf-8")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-bench-san"), tmp_path) as found:
        found.play_seconds = PLAY_SECONDS
        found.play(str(book)).good()
        yield found


def commands(text: str, folder: str = FOLDER) -> list[str]:
    """A tool's command for each volume."""
    values = {"prefix": PREFIX, "folder": folder, "initiator": INITIATOR}
    return [text.format(name=name, tid=FIRST_TID + number, **values) for number, name in enumerate(LOOPED)]


def looped(text: str, **more: str) -> Task:
    """One task that runs a command for each volume, one after another."""
    return {"name": "loop", "ansible.builtin.shell": "{{ item }}", "loop": commands(text, **more)}


def at_once(name: str, text: str, **more: str) -> Task:
    """One task that runs all commands in one shell."""
    return {"name": name, "ansible.builtin.shell": "\n".join(commands(text, **more))}


def unchanged(task: Task) -> Task:
    """The same task again, which has nothing to do."""
    return {**task, "name": "again", "register": "again", "failed_when": "again is failed or again is changed"}


def volumes(name: str, **options: Any) -> Task:
    """One task of ours for all volumes."""
    items = [{"name": one} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_volume": {**COMMON, "volumes": items, **options}}


def sessions(name: str, **options: Any) -> Task:
    """One task of ours for all sessions."""
    items = [{"target": f"{PREFIX}:{one}"} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_session": {"portals": [PORTAL], "sessions": items, **options}}


def run(san: Cluster, node: str, each: list[Task], found: dict[str, list[float]]) -> None:
    """Run tasks on a node and add their seconds by name; those of one name are one. AssertionError where one failed."""
    seconds: dict[str, float] = defaultdict(float)
    for task, result in zip(each, tasks(san, node, each)):
        assert not result.get("failed"), result
        seconds[task["name"]] += result["seconds"]
    for name, value in seconds.items():
        found[name].append(value)


def table(title: str, found: dict[str, list[float]], words: dict[str, str]) -> None:
    """The medians; the first row is ours, the others with how many times ours they take."""
    each = {name: typical(found[name]) for name in words}
    ours = next(iter(each.values()))
    report(title, [(words[name], f"{value:.2f} s, {value / ours:.2f} times") for name, value in each.items()])


def sees(san: Cluster, name: str) -> int:
    """How many disks of volumes whose names begin so the initiator has."""
    return int(san.ssh(HOST, DISKS.format(name=name), check=False, timeout=300))


@pytest.mark.skipif(missing() != [], reason=f"not here: {missing()}")
def test_thirty_volumes_on_tgtd(tmp_path: Path) -> None:
    with closing(PrivateSan()) as daemon:
        place = {"config_directory": str(daemon.conf), "directory": str(daemon.data)}
        folder = str(daemon.data)
        each: list[Task] = []
        for number in range(ROUNDS["tgt"]):
            made = volumes("made", **place)
            each += [made, unchanged(made), volumes("removed", **place, state="absent", remove_data=True)]
            if number < LOOPS:
                each += [looped(text, folder=folder) for text in TGTADM] + [at_once("clear", NO_TGTADM, folder=folder)]
            each += [at_once("shell", "\n".join(TGTADM), folder=folder), at_once("clear", NO_TGTADM, folder=folder)]
        found = seconds_of_tasks(each, tmp_path)
    # One for each of the commands, and these for each round.
    found["loop"] = [sum(found["loop"][number * len(TGTADM) :][: len(TGTADM)]) for number in range(LOOPS)]
    words = {
        "made": "`iscsi_volume`, one task",
        "again": "again, nothing to do",
        "loop": f"{len(TGTADM)} loops, a command a volume",
        "shell": "one shell script, which checks and keeps nothing",
    }
    table(f"{VOLUMES} volumes on tgtd (medians of {ROUNDS['tgt']} rounds)", found, words)
    assert typical(found["loop"]) >= TGT_GOAL * typical(found["made"]), found


def test_thirty_volumes_on_lio_and_their_sessions(san: Cluster) -> None:
    made: dict[str, list[float]] = defaultdict(list)
    joined: dict[str, list[float]] = defaultdict(list)
    exported, entered = volumes("made", backend="lio"), sessions("made")
    for _round in range(ROUNDS["lio"]):
        run(san, LIO, [exported, unchanged(exported)], made)
        run(san, HOST, [entered, unchanged(entered)], joined)
        assert sees(san, "ours") == VOLUMES
        run(san, HOST, [sessions("left", state="absent")], joined)
        run(san, LIO, [volumes("removed", backend="lio", state="absent", remove_data=True)], made)

        run(san, LIO, [looped(TARGETCLI)], made)
        run(san, HOST, [{"name": "loop", "ansible.builtin.command": DISCOVERY}, looped(LOGIN)], joined)
        assert sees(san, "loop") == VOLUMES
        san.ssh(HOST, NO_SESSIONS, timeout=300)
        run(san, LIO, [at_once("clear", NO_TARGETCLI)], made)
    again = {"again": "again, nothing to do"}
    title, rounds = f"{VOLUMES} volumes on LIO", f"medians of {ROUNDS['lio']} rounds"
    loops = ({"loop": "loop, a `targetcli` a volume"}, {"loop": "discovery, loop of `iscsiadm --login`"})
    table(f"{title} ({rounds})", made, {"made": "`iscsi_volume`, one task", **again, **loops[0]})
    table(f"{title}: sessions ({rounds})", joined, {"made": "`iscsi_session`, one task", **again, **loops[1]})
    ours, looping = (sum(typical(found[name]) for found in (made, joined)) for name in ("made", "loop"))
    assert looping >= LIO_GOAL * ours, (made, joined)
