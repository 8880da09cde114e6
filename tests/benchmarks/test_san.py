# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thirty volumes and the sessions with them: one task each of ours, beside the tools' commands in a loop, in turn.

LIO and the kernel's initiator need a kernel of their own, so these nodes are VMs; tgtd is on a container.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, typical
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, example_lab, tasks

VOLUMES = 30
ROUNDS = {"tgt": 3, "lio": 2}
TGT_GOAL, LIO_GOAL = 10.0, 3.0
LIO, TGT, HOST = "san1", "san2", "hv1"
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
NODES = {
    LIO: {**NODE, "kind": "vm", "memory": "1G", "groups": ["san"], "number": 10},
    TGT: {**NODE, "groups": ["san"], "number": 12},
    HOST: {**NODE, "kind": "vm", "memory": "1G", "groups": ["hypervisors"], "number": 11},
}
TOPOLOGY = {
    "networks": {name: {"subnet": subnet} for name, subnet in NETWORKS.items()},
    "switches": {name: {"kind": "bridge", "network": net} for name, net in zip(("mgmt", "fabric"), NETWORKS)},
}
PLAY = f"""
- hosts: san
  gather_facts: false
  vars:
    san_target_backend: "{{{{ 'lio' if inventory_hostname == '{LIO}' else 'tgt' }}}}"
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
def san(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """The nodes that a test names, ready to use, in a lab of their own."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    nodes = {name: NODES[name] for name in request.param}
    (tmp_path / "topology.json").write_text(json.dumps({**TOPOLOGY, "nodes": nodes}), encoding="utf-8")
    (tmp_path / "inventory").mkdir()
    book = tmp_path / "san.yml"
    book.write_text(PLAY, encoding="utf-8")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-bench-san"), tmp_path) as found:
        found.play_seconds = PLAY_SECONDS
        found.play(str(book)).good()
        yield found


def commands(text: str, names: list[str] = LOOPED) -> list[str]:
    """A tool's command for each volume."""
    values = {"prefix": PREFIX, "folder": FOLDER, "initiator": INITIATOR}
    return [text.format(name=name, tid=FIRST_TID + number, **values) for number, name in enumerate(names)]


def looped(text: str) -> Task:
    """One task that runs a command for each volume, one after another."""
    return {"name": "loop", "ansible.builtin.shell": "{{ item }}", "loop": commands(text)}


def at_once(name: str, text: str) -> Task:
    """One task that runs all commands in one shell."""
    return {"name": name, "ansible.builtin.shell": "\n".join(commands(text))}


def volumes(name: str, backend: str, **options: Any) -> Task:
    """One task of ours for all volumes."""
    items = [{"name": one} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_volume": {**COMMON, "backend": backend, "volumes": items, **options}}


def sessions(name: str, **options: Any) -> Task:
    """One task of ours for all sessions."""
    items = [{"target": f"{PREFIX}:{one}"} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_session": {"portals": [PORTAL], "sessions": items, **options}}


class Seconds:
    """What each kind of task took, one value a round."""

    def __init__(self, san: Cluster) -> None:
        self.san = san
        self.found: dict[str, list[float]] = defaultdict(list)

    def run(self, node: str, each: list[Task]) -> None:
        """Run tasks; those of one name are added up. AssertionError where one failed, or where a second run changed."""
        round_: dict[str, float] = defaultdict(float)
        for task, result in zip(each, tasks(self.san, node, each)):
            assert not result.get("failed"), result
            assert not task["name"].startswith("again") or not result["changed"], result
            round_[task["name"]] += result["seconds"]
        for name, seconds in round_.items():
            self.found[name].append(seconds)

    def report(self, title: str, words: dict[str, str]) -> None:
        """A table of the medians; the first row is ours, the others with how many times ours they take."""
        each = {name: typical(self.found[name]) for name in words}
        ours = next(iter(each.values()))
        rows = [(words[name], f"{value:.2f} s, {value / ours:.2f} times") for name, value in each.items()]
        report(f"{title} (medians of {len(next(iter(self.found.values())))} rounds)", rows)


def sees(san: Cluster, name: str) -> int:
    """How many disks of volumes whose names begin so the initiator has."""
    return int(san.ssh(HOST, DISKS.format(name=name), check=False, timeout=300))


@pytest.mark.parametrize("san", [[TGT]], indirect=True, ids=["tgt"])
def test_thirty_volumes_on_tgtd(san: Cluster) -> None:
    seconds = Seconds(san)
    removal = {"state": "absent", "remove_data": True}
    for _round in range(ROUNDS["tgt"]):
        seconds.run(TGT, [volumes("made", "tgt"), volumes("again", "tgt"), volumes("removed", "tgt", **removal)])
        seconds.run(TGT, [*map(looped, TGTADM), at_once("loop, removed", NO_TGTADM)])
        seconds.run(TGT, [at_once("shell", "\n".join(TGTADM)), at_once("shell, removed", NO_TGTADM)])
    words = {
        "made": "`iscsi_volume`, one task",
        "again": "again, nothing to do",
        "loop": f"{len(TGTADM)} loops, a command a volume",
        "shell": "one shell script, which checks nothing",
    }
    seconds.report(f"{VOLUMES} volumes on tgtd", words)
    assert typical(seconds.found["loop"]) >= TGT_GOAL * typical(seconds.found["made"]), seconds.found


@pytest.mark.parametrize("san", [[LIO, HOST]], indirect=True, ids=["lio"])
def test_thirty_volumes_on_lio_and_their_sessions(san: Cluster) -> None:
    made, joined = Seconds(san), Seconds(san)
    for _round in range(ROUNDS["lio"]):
        made.run(LIO, [volumes("made", "lio"), volumes("again", "lio")])
        joined.run(HOST, [sessions("made"), sessions("again")])
        assert sees(san, "ours") == VOLUMES
        joined.run(HOST, [sessions("removed", state="absent")])
        made.run(LIO, [volumes("removed", "lio", state="absent", remove_data=True)])

        made.run(LIO, [looped(TARGETCLI)])
        joined.run(HOST, [{"name": "loop", "ansible.builtin.command": DISCOVERY}, looped(LOGIN)])
        assert sees(san, "loop") == VOLUMES
        san.ssh(HOST, NO_SESSIONS, timeout=300)
        made.run(LIO, [at_once("loop, removed", NO_TARGETCLI)])
    rest = {"again": "again, nothing to do"}
    loops = ({"loop": "loop, a `targetcli` a volume"}, {"loop": "discovery, loop of `iscsiadm --login`"})
    made.report(f"{VOLUMES} volumes on LIO, emulated nodes", {"made": "`iscsi_volume`, one task", **rest, **loops[0]})
    joined.report("The sessions with them", {"made": "`iscsi_session`, one task", **rest, **loops[1]})
    ours, looping = (sum(typical(one.found[name]) for one in (made, joined)) for name in ("made", "loop"))
    assert looping >= LIO_GOAL * ours, (made.found, joined.found)
