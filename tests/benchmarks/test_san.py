# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thirty volumes on a private tgtd: one task of ours beside loops of its commands, and beside one script, in turn.

And on LIO, on emulated machines (`-k lio`), with the sessions of a hypervisor over two portals. With
DROVER_LIO_LAB=NAME and DROVER_LAB_KEEP=1 a lab of examples/san-multipath that is up already is used.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.benchmarks.measure import report, seconds_of_tasks, typical
from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, tasks
from ansible_collections.drover.kvm.tests.unit.tgt_server import PrivateSan, missing

VOLUMES = 30
ROUNDS = 5
LOOPS = 2  # a loop takes a minute
GOAL = 10.0
PREFIX = "iqn.2026-11.org.example.bench"
INITIATOR = f"{PREFIX}:hv1"
COMMON = {"iqn_prefix": PREFIX, "initiators": [INITIATOR], "size": "8MiB", "chap_user": ""}
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
Task = dict[str, Any]


def commands(text: str, folder: str) -> list[str]:
    """A tool's command for each volume."""
    values = {"prefix": PREFIX, "folder": folder, "initiator": INITIATOR}
    return [text.format(name=name, tid=FIRST_TID + number, **values) for number, name in enumerate(LOOPED)]


def looped(text: str, folder: str) -> Task:
    """One task that runs a command for each volume, one after another."""
    return {"name": "loop", "ansible.builtin.command": "{{ item }}", "loop": commands(text, folder)}


def at_once(name: str, text: str, folder: str) -> Task:
    """One task that runs all commands in one shell."""
    return {"name": name, "ansible.builtin.shell": "\n".join(commands(text, folder))}


def unchanged(task: Task) -> Task:
    """The same task again, which has nothing to do."""
    return {**task, "name": "again", "register": "again", "failed_when": "again is failed or again is changed"}


def volumes(name: str, **options: Any) -> Task:
    """One task of ours for all volumes."""
    items = [{"name": one} for one in OURS]
    return {"name": name, "drover.kvm.iscsi_volume": {**COMMON, "volumes": items, **options}}


@pytest.mark.skipif(missing() != [], reason=f"not here: {missing()}")
def test_thirty_volumes_on_tgtd(tmp_path: Path) -> None:
    with closing(PrivateSan()) as daemon:
        place = {"config_directory": str(daemon.conf), "directory": str(daemon.data)}
        folder = str(daemon.data)
        each: list[Task] = []
        for number in range(ROUNDS):
            made = volumes("made", **place)
            each += [made, unchanged(made), volumes("removed", **place, state="absent", remove_data=True)]
            if number < LOOPS:
                each += [looped(text, folder) for text in TGTADM] + [at_once("clear", NO_TGTADM, folder)]
            each += [at_once("shell", "\n".join(TGTADM), folder), at_once("clear", NO_TGTADM, folder)]
        found = seconds_of_tasks(each, tmp_path)
    # One for each of the commands, and these for each round.
    found["loop"] = [sum(found["loop"][number * len(TGTADM) :][: len(TGTADM)]) for number in range(LOOPS)]
    words = {
        "made": "`iscsi_volume`, one task",
        "again": "again, nothing to do",
        "loop": f"{len(TGTADM)} loops, a command a volume",
        "shell": "one shell script, which checks and keeps nothing",
    }
    ours = typical(found["made"])
    rows = [
        (said, f"{typical(found[name]):.2f} s, {typical(found[name]) / ours:.2f} times") for name, said in words.items()
    ]
    report(f"{VOLUMES} volumes on tgtd (medians of {ROUNDS} rounds, goal of the loops: {GOAL:.0f} times)", rows)
    assert typical(found["loop"]) >= GOAL * ours, found


LIO_PREFIX = "iqn.2026-11.org.example.lio-bench"
LIO_PORTALS = ["10.231.5.10:3260", "10.231.7.10:3260"]
LIO_NODE = "iqn.2026-11.org.example:hv1"
LIO_ROUNDS = 2
# On an emulated node one targetcli takes seconds: the loops are run for so many volumes, and counted for all.
LIO_LOOPED = 5
LIO_GOAL = 10.0
TARGETCLI = [
    "targetcli /backstores/fileio create name={name} file_or_dev=/srv/{name}.img size=8M",
    "targetcli /iscsi create {prefix}:{name}",
    "targetcli /iscsi/{prefix}:{name}/tpg1/portals create {address_a}",
    "targetcli /iscsi/{prefix}:{name}/tpg1/portals create {address_b}",
    "targetcli /iscsi/{prefix}:{name}/tpg1/luns create /backstores/fileio/{name}",
    "targetcli /iscsi/{prefix}:{name}/tpg1/acls create {initiator}",
]
ATTACH = [
    "iscsiadm -m node -T {prefix}:{name} -p {portal_a} -o new",
    "iscsiadm -m node -T {prefix}:{name} -p {portal_b} -o new",
    "iscsiadm -m node -T {prefix}:{name} --login",
]
NO_ATTACH = "iscsiadm -m node -T {prefix}:{name} --logout; iscsiadm -m node -T {prefix}:{name} -o delete"
NO_TARGETCLI = "targetcli /iscsi delete {prefix}:{name}; targetcli /backstores/fileio delete {name}; rm /srv/{name}.img"


@pytest.fixture
def example() -> Iterator[Cluster]:
    """SAN and hypervisors of the example, set up, without volumes."""
    name = os.environ.get("DROVER_LIO_LAB", "drover-bench-lio")
    with example_lab(name, ROOT / "examples/san-multipath") as found:
        found.play_seconds = 1800
        found.play(str(ROOT / "examples/san-multipath/site.yml"), san_volumes=[]).good()
        found.ssh("san1", "targetcli set global auto_add_default_portal=false", timeout=300)
        yield found


def lio_loop(texts: list[str], name: str) -> list[Task]:
    """One task for each of the commands, for some volumes, one after another."""
    values = {"prefix": LIO_PREFIX, "initiator": LIO_NODE, "portal_a": LIO_PORTALS[0], "portal_b": LIO_PORTALS[1]}
    values.update({f"address_{way}": portal.split(":")[0] for way, portal in zip("ab", LIO_PORTALS)})
    each = [[text.format(name=one, **values) for one in LOOPED[:LIO_LOOPED]] for text in texts]
    return [{"name": name, "ansible.builtin.shell": "{{ item }}", "loop": loop} for loop in each]


def timed(cluster: Cluster, host: str, each: list[Task]) -> dict[str, list[float]]:
    """The seconds of each task by its name; none may fail, and one called `again` changes nothing."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for task, result in zip(each, tasks(cluster, host, each)):
        assert not result.get("failed"), result.get("msg")
        assert task["name"] != "again" or not result["changed"], result
        seconds[task["name"]].append(result["seconds"])
    return seconds


def test_thirty_volumes_on_lio_with_their_sessions(example: Cluster) -> None:
    san = {"backend": "lio", "iqn_prefix": LIO_PREFIX, "volumes": [{"name": one} for one in OURS]}
    made = {"drover.kvm.iscsi_volume": {**COMMON, **san, "initiators": [LIO_NODE], "portals": LIO_PORTALS}}
    removed = {"drover.kvm.iscsi_volume": {**san, "state": "absent", "remove_data": True}}
    targets = [{"target": f"{LIO_PREFIX}:{one}"} for one in OURS]
    attached = {"drover.kvm.iscsi_session": {"portals": LIO_PORTALS, "chap_user": "", "sessions": targets}}
    detached = {"drover.kvm.iscsi_session": {"state": "absent", "sessions": targets}}
    found: dict[str, list[float]] = defaultdict(list)

    def measure(host: str, *each: Task) -> None:
        for name, seconds in timed(example, host, list(each)).items():
            found[f"{host} {name}"].append(sum(seconds))

    for _round in range(LIO_ROUNDS):
        measure("san1", {"name": "made", **made}, {"name": "again", **made})
        measure("hv1", {"name": "made", **attached}, {"name": "again", **attached})
        measure("hv1", {"name": "gone", **detached})
        measure("san1", {"name": "gone", **removed})
    measure("san1", *lio_loop(TARGETCLI, "loop"))
    measure("hv1", *lio_loop(ATTACH, "loop"))
    measure("hv1", *lio_loop([NO_ATTACH], "clear"))
    measure("san1", *lio_loop([NO_TARGETCLI], "clear"))
    whole = {host: typical(found[f"{host} loop"]) * VOLUMES / LIO_LOOPED for host in ("san1", "hv1")}
    ours = {host: typical(found[f"{host} made"]) for host in ("san1", "hv1")}
    rows = [
        (f"{what}, {name}", f"{typical(found[f'{host} {key}']):.1f} s")
        for host, what in (("san1", "`iscsi_volume`"), ("hv1", "`iscsi_session`, two portals"))
        for key, name in (("made", "one task"), ("again", "again, nothing to do"), ("gone", "absent"))
    ]
    rows += [
        (f"{what}, {LIO_LOOPED} volumes, counted for all", f"{whole[host]:.0f} s, {whole[host] / ours[host]:.1f} times")
        for host, what in (("san1", f"{len(TARGETCLI)} loops of targetcli"), ("hv1", "loops of iscsiadm"))
    ]
    report(f"{VOLUMES} volumes on LIO and their sessions (medians of {LIO_ROUNDS} rounds; goal: {LIO_GOAL:.0f})", rows)
    assert sum(whole.values()) >= LIO_GOAL * sum(ours.values()), found
