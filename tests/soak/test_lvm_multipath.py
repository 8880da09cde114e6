# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume group that the nodes share, on a volume that each of them reaches over two storage networks.

Each test goes on from the one before. With DROVER_LAB_NAME=NAME and DROVER_LAB_KEEP=1 a lab of examples/san-multipath
that is up already is used.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.counting import counts, write_guest
from ansible_collections.drover.kvm.tests.soak.test_block_disks import (
    BOOT_ID,
    DB,
    DEAD_SECONDS,
    LVM_SEES,
    NO_GROUP,
    NODES,
    VOLUME,
    alone,
    attempt,
    do,
    home_of,
    look,
    move,
    other_than,
)
from ansible_collections.drover.kvm.tests.soak.test_san_multipath import (
    BOOT_SECONDS,
    EXAMPLE,
    PATH_TIMEOUT,
    SITE_SECONDS,
    SLACK,
    VOLUMES,
    has_active,
    site,
)

DEVICE = f"/dev/{VOLUME}"
NICS = ("nic1", "nic2")
# web1 is a VM's whole disk, in which LVM must not look. The locks of the group take 256 MiB of vms1.
SAN = [{"name": "web1", "size": "64MiB"}, {"name": "vms1", "size": "512MiB"}]
GROWN = [SAN[0], {"name": "vms1", "size": "768MiB"}]
GROUP: dict[str, Any] = {"san_initiator_lvm_groups": [{"name": "vmsan", "devices": ["vms1"]}]}
BIGGER = [{**DB["disks"][0], "size": "320MiB"}]
MIB = 2**20
# The devices of the group, all that LVM looks at, and the maps.
DEVICES = f"""readlink -f $(pvs --noheadings -o pv_name -S vg_name=vmsan)
echo; {LVM_SEES}; echo; readlink -f /dev/mapper/vms1 /dev/mapper/web1"""
# Reads the guest's counter until told to stop; prints how often it changed, and the longest time without a change.
WATCH = f"""import mmap, os, time
disk = os.open("{DEVICE}", os.O_RDONLY | os.O_DIRECT)
block, seen, changes, longest, last = mmap.mmap(-1, 4096), b"", 0, 0.0, time.monotonic()
open("/run/watch", "w").close()
while os.path.exists("/run/watch"):
    os.preadv(disk, [block], 8192)
    if block[:8] != seen:
        seen, changes, now = block[:8], changes + 1, time.monotonic()
        longest, last = max(longest, now - last), now
    time.sleep(0.02)
print(changes, max(longest, time.monotonic() - last))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The machines of the example; nothing is set up yet."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-group"), EXAMPLE) as found:
        found.play_seconds = SITE_SECONDS
        yield found


def make_hypervisors(nodes: Cluster) -> int:
    """The rest of a site: the number of changes."""
    settings = {"hypervisor_ca_directory": str(nodes.lab.state / "pki"), "hypervisor_guests_shutdown_timeout": 10}
    book = nodes.lab.state / "hypervisors.json"
    play = {"name": "Hypervisors", "hosts": "hypervisors", "roles": [{"role": "drover.kvm.hypervisor"}]}
    book.write_text(json.dumps([play]), encoding="utf-8")
    return nodes.play(str(book), **settings).good().changed


def is_up(nodes: Cluster, node: str, boot: str) -> bool | str:
    """Whether the node has booted since then, and its libvirt runs no VM; else what it says."""
    said = nodes.ssh(node, f"{BOOT_ID}; virsh -q list --name && echo .", check=False, timeout=120).split()
    return (said[:1] != boot.split() and said[1:] == ["."]) or str(said)


def test_the_group_is_set_up_and_a_second_run_changes_nothing(nodes: Cluster) -> None:
    done = site(nodes, san_volumes=SAN, **GROUP).good()
    print(f"set up in {done.seconds:.0f} s")
    make_hypervisors(nodes)
    again = site(nodes, san_volumes=SAN, **GROUP).good()
    assert again.changed == 0, again.output
    assert make_hypervisors(nodes) == 0


def test_it_lies_on_the_map_and_lvm_sees_no_path_and_no_disk_of_a_vm(nodes: Cluster) -> None:
    for node in NODES:
        own, seen, maps = (part.split() for part in nodes.ssh(node, DEVICES, timeout=120).split("\n\n"))
        vms1, web1 = maps
        assert own == [vms1], (own, maps)
        assert {vms1, NO_GROUP} <= set(seen) and web1 not in seen, seen
        assert not [path for path in seen if path.startswith("/dev/sd")], seen
        wait_until(partial(has_active, nodes, "vms1", 2, node), 60, "two paths")


def test_its_volume_is_of_one_node_and_handed_over_while_a_path_is_silent(nodes: Cluster) -> None:
    do(nodes, "hv1", "vm", **DB)
    assert attempt(nodes, "hv1", "ey") == ""
    write_guest(nodes, "hv1", DEVICE)
    assert attempt(nodes, "hv1", "n") == ""
    do(nodes, "hv1", "vm", **DB, state="running")
    assert not do(nodes, "hv1", "vm", **DB, state="running")["changed"]
    counts(nodes, "hv1", DEVICE)
    assert alone(nodes, "hv1") is True
    nodes.lab.cut("hv2", "nic1", silent=True)
    try:
        wait_until(lambda: has_active(nodes, "vms1", 1, "hv2"), 60, "one failed path on hv2")
        for source, target in (NODES, NODES[::-1]):
            move(nodes, source, target, "db1", DEVICE)
            wait_until(partial(alone, nodes, target), 120, f"{target} has it alone")
            assert not look(nodes, source).startswith("active")
    finally:
        nodes.lab.restore("hv2")


@pytest.mark.parametrize("silent", [False, True], ids=["pulled", "silent"])
def test_a_path_may_be_cut_under_its_vm(nodes: Cluster, silent: bool) -> None:
    home, said = home_of(nodes, "db1"), [""]
    boot = nodes.ssh(home, BOOT_ID, timeout=120)
    watch = threading.Thread(target=lambda: said.append(nodes.ssh(home, "python3 -", stdin=WATCH, timeout=400)))
    watch.start()
    try:
        wait_until(lambda: "watch" in nodes.ssh(home, "ls /run", timeout=60), 60, "the watch runs")
        time.sleep(5)
        nodes.lab.cut(home, "nic1", silent=silent)
        try:
            wait_until(lambda: has_active(nodes, "vms1", 1, home), 60, "one failed path")
        finally:
            nodes.lab.restore(home)
        wait_until(lambda: has_active(nodes, "vms1", 2, home), 120, "two paths again")
    finally:
        nodes.ssh(home, "rm -f /run/watch", timeout=60)
        watch.join()
    changes, longest = (float(word) for word in said[-1].split())
    print(f"{changes:.0f} changes seen, the longest gap {longest:.2f} s")
    assert 2 < longest <= PATH_TIMEOUT + SLACK, said
    assert home_of(nodes, "db1") == home and alone(nodes, home) is True
    assert nodes.ssh(home, BOOT_ID, timeout=120) == boot, "the watchdog reset the node"


def test_two_nodes_may_make_volumes_at_once(nodes: Cluster) -> None:
    def make(node: str) -> list[str]:
        # One after the other: the other node's come in between.
        names = [f"{node}-{number}" for number in range(4)]
        for name in names:
            do(nodes, node, "vm", **{**DB, "name": name, "disks": [{**DB["disks"][0], "size": "8MiB"}]})
        return names

    with ThreadPoolExecutor() as pool:
        made = dict(zip(NODES, pool.map(make, NODES)))
    expected = {f"drover-{name}-0" for names in made.values() for name in names}
    lists = [nodes.ssh(node, "lvs --noheadings -o lv_name,lv_uuid,lv_size vmsan", timeout=120) for node in NODES]
    assert lists[0] == lists[1] and expected <= set(lists[0].split()), lists
    for node, names in made.items():
        for name in names:
            do(nodes, node, "vm", name=name, state="absent", remove_disks=True)
    left = nodes.ssh("hv1", "lvs --noheadings -o lv_name vmsan", timeout=120).split()
    assert not expected & set(left), left


def test_what_the_volume_of_the_san_grew_by_is_the_groups_and_its_vms(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    early = nodes.task(home, "vm", name="db1", disks=BIGGER)
    assert early["failed"] and "volume group vmsan has" in early["msg"] and not early["changed"], early
    done = site(nodes, *VOLUMES, san_volumes=GROWN, **GROUP).good()
    # The volume, a session of each node, and the group on one of them.
    assert done.changed == 4, done.output
    assert site(nodes, "--check", *VOLUMES, san_volumes=GROWN, **GROUP).good().changed == 0
    assert do(nodes, home, "vm", name="db1", disks=BIGGER)["changed"]
    assert str(320 * MIB) in nodes.ssh(home, "virsh -q domblkinfo db1 vda", timeout=120)
    assert not do(nodes, home, "vm", name="db1", disks=BIGGER)["changed"]
    counts(nodes, home, DEVICE)
    move(nodes, home, other_than(home), "db1", DEVICE)


def test_a_node_that_lost_its_san_is_reset_before_its_lock_is_free(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    other = other_than(home)
    before, boot = counts(nodes, home, DEVICE), nodes.ssh(home, BOOT_ID, timeout=120)
    begin = time.monotonic()
    for nic in NICS:
        nodes.lab.cut(home, nic, silent=True)
    try:
        wait_until(lambda: attempt(nodes, other, "ey") == "", DEAD_SECONDS, "the lock is free")
        print(f"the lock was free {time.monotonic() - begin:.0f} s after the SAN was lost")
        assert nodes.ssh(home, BOOT_ID, check=False, timeout=120) != boot, "it may still write"
        attempt(nodes, other, "n")
    finally:
        nodes.lab.restore(home)
    wait_until(partial(is_up, nodes, home, boot), BOOT_SECONDS, "it is up")
    wait_until(partial(has_active, nodes, "vms1", 2, home), 300, "two paths again")
    do(nodes, home, "vm", name="db1", state="running")
    counts(nodes, home, DEVICE, before)
    wait_until(partial(alone, nodes, home), 180, f"{home} has it alone")
