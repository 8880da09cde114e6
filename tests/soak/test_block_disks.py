# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs on volumes to which the nodes log in: a whole one, and a logical volume of a group that the nodes share.

Each test goes on from the one before. With DROVER_LAB_NAME=NAME and DROVER_LAB_KEEP=1 a lab that is up already is used.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.counting import counts, write_guest

SITE = Path(__file__).with_name("block_disks")
NODES = ("hv1", "hv2")
SITE_SECONDS = 1800
BOOT_SECONDS = 600
# An emulated node on a busy machine took more than a minute to start the QEMU that a VM comes to.
PATIENT: dict[str, Any] = {"stall_timeout": 300}
SLOW, TRIES = "gave no answer within", 10
# Of sanlock: some 150 s after the last word of the dead node.
DEAD_SECONDS = 240
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
MIB = 2**20
# Of the topology; the memory goes there too.
MANAGEMENT = {"hv1": "10.231.0.11", "hv2": "10.231.0.12"}
BAD = ("loss 5%", "loss 20%", "delay 200ms", "corrupt 1%", "delay 20ms reorder 75% 50%")
BAD_WAY = """set -e
tc qdisc add dev mgmt0 root handle 1: prio bands 4
tc qdisc add dev mgmt0 parent 1:4 handle 40: netem {fault}
tc filter add dev mgmt0 parent 1: protocol ip u32 match ip dst {other}/32 flowid 1:4
"""
# Bytes of a guest's memory that are sent at least.
LEAST = 200_000
WEB: dict[str, Any] = {
    "name": "web1",
    "memory": "32MiB",
    "vcpus": 1,
    "machine": "pc",
    "disks": [{"type": "block", "path": "/dev/san/web1"}],
}
DB: dict[str, Any] = {**WEB, "name": "db1", "disks": [{"type": "lvm", "vg": "vmsan", "size": "64MiB"}]}
GROWN_DB = {**DB, "disks": [{**DB["disks"][0], "size": "96MiB"}], "autostart": True, "state": "running"}
VOLUME = "vmsan/drover-db1-0"
# Active and open, and its size.
LOOK = f"lvs --noheadings -o lv_active,lv_device_open,lv_size --units b --nosuffix {VOLUME}"
# All devices that LVM looks into: asked for what is of groups too, it names those without one, of which one is there.
LVM_SEES = "readlink -f $(pvs --noheadings -a -o pv_name,vg_name | awk '{print $1}')"
NO_GROUP = "/dev/vda"
# A domain that another tool defined, on the same volume.
THIEF = f"""<domain type='qemu'><name>thief</name><memory unit='MiB'>32</memory><os><type>hvm</type></os><devices>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/{VOLUME}'/><target dev='vda'/></disk>
</devices></domain>"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The machines; nothing is set up yet."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-block"), SITE) as found:
        found.play_seconds = SITE_SECONDS
        yield found


def site(nodes: Cluster, *options: str, **variables: Any) -> Played:
    """Run the site's own playbook."""
    return nodes.play(str(SITE / "site.yml"), *options, **variables)


def do(nodes: Cluster, node: str, module: str, **args: Any) -> dict[str, Any]:
    """The result of a module that must not fail; run again where an emulated node was too slow for its peers."""
    found = nodes.task(node, module, **args)
    for _try in range(TRIES):
        # It was refused before anything was done.
        if not found["failed"] or SLOW not in found["msg"]:
            break
        print(f"{module} on {node}: {found['msg']}")
        found = nodes.task(node, module, **args)
    assert not found["failed"], found
    return found


def look(nodes: Cluster, node: str) -> str:
    """Whether the volume is active and open on a node, and its size in bytes."""
    return " ".join(nodes.ssh(node, LOOK, timeout=120).split())


def attempt(nodes: Cluster, node: str, how: str) -> str:
    """What LVM says to an activation; nothing when it was granted."""
    return nodes.ssh(node, f"lvchange -a{how} {VOLUME} 2>&1 || true", timeout=120).strip()


def alone(nodes: Cluster, node: str) -> bool | str:
    """Whether a node holds the volume, and the other one can't have it even as a shared one."""
    other = other_than(node)
    said = attempt(nodes, other, "sy")
    if not said:
        attempt(nodes, other, "n")
    return ("locked by other host" in said and look(nodes, node).startswith("active")) or f"granted: {said}"


def home_of(nodes: Cluster, vm: str) -> str:
    """The one node on which it runs."""
    (home,) = [node for node in NODES if nodes.domains(node).get(vm) == "running"]
    return home


def other_than(node: str) -> str:
    """The second hypervisor."""
    return next(name for name in NODES if name != node)


def move(nodes: Cluster, source: str, target: str, vm: str, device: str) -> None:
    """Migrate and see that the guest goes on from where it was."""
    before = counts(nodes, source, device)
    moved = do(nodes, source, "migrate", name=vm, to=target, **PATIENT)
    print(f"{vm} moved to {target}: {moved}")
    assert home_of(nodes, vm) == target and vm not in nodes.domains(source)
    assert counts(nodes, target, device, before) > before


def test_the_site_is_set_up(nodes: Cluster) -> None:
    done = site(nodes).good()
    print(f"set up in {done.seconds:.0f} s")


def test_a_second_run_changes_nothing(nodes: Cluster) -> None:
    assert site(nodes).good().changed == 0


def test_a_disk_is_the_same_on_both_nodes_by_what_it_is(nodes: Cluster) -> None:
    script = "for name in web1 vms1; do udevadm info --query=property --value --property=ID_SERIAL /dev/san/$name; done"
    first, second = (nodes.ssh(node, script, timeout=120).split() for node in NODES)
    assert first == second and len(set(first)) == 2


def test_lvm_sees_the_shared_group_and_not_the_disks_of_vms(nodes: Cluster) -> None:
    script = f"{LVM_SEES}; readlink -f /dev/san/web1 /dev/san/vms1"
    for node in NODES:
        assert nodes.ssh(node, "vgs --noheadings -o vg_name,vg_lock_type", timeout=120).split() == ["vmsan", "sanlock"]
        *devices, web, vms = nodes.ssh(node, script, timeout=120).split()
        assert web not in devices and {vms, NO_GROUP} <= set(devices), devices


def test_a_kernel_name_is_refused_with_the_name_to_write(nodes: Cluster) -> None:
    raw = nodes.ssh("hv1", "readlink -f /dev/san/web1", timeout=120).strip()
    refused = nodes.task("hv1", "vm", **{**WEB, "disks": [{"type": "block", "path": raw}]})
    assert refused["failed"] and "write /dev/san/web1" in refused["msg"], refused


def test_a_vm_on_a_whole_volume_moves_there_and_back(nodes: Cluster) -> None:
    write_guest(nodes, "hv1", "/dev/san/web1")
    do(nodes, "hv1", "vm", **WEB, state="running")
    assert not do(nodes, "hv1", "vm", **WEB, state="running")["changed"]
    move(nodes, "hv1", "hv2", "web1", "/dev/san/web1")
    move(nodes, "hv2", "hv1", "web1", "/dev/san/web1")


def test_another_disk_of_the_same_name_is_refused_at_the_destination(nodes: Cluster) -> None:
    names = "basename -a $(readlink -f /dev/san/web1 /dev/san/vms1)"
    web, vms = nodes.ssh("hv2", names, timeout=120).split()
    nodes.ssh("hv2", f"ln -sfn ../{vms} /dev/san/web1", timeout=120)
    try:
        refused = nodes.task("hv1", "migrate", name="web1", to="hv2")
    finally:
        nodes.ssh("hv2", f"ln -sfn ../{web} /dev/san/web1", timeout=120)
    assert refused["failed"] and "it is another disk" in refused["msg"], refused
    assert home_of(nodes, "web1") == "hv1" and "web1" not in nodes.domains("hv2")


@contextmanager
def bad_way(nodes: Cluster, fault: str) -> Iterator[None]:
    """All that the nodes say to each other with a fault, on its way out of each; our ssh is not in it."""
    try:
        for node, other in (NODES, NODES[::-1]):
            nodes.ssh(node, BAD_WAY.format(fault=fault, other=MANAGEMENT[other]), timeout=120)
        yield
    finally:
        for node in NODES:
            nodes.ssh(node, "tc qdisc del dev mgmt0 root", check=False, timeout=120)


@pytest.mark.parametrize("fault", BAD)
def test_f14_over_a_bad_way_a_vm_moves_or_stays(nodes: Cluster, fault: str) -> None:
    source = home_of(nodes, "web1")
    target = other_than(source)
    before = counts(nodes, source, "/dev/san/web1")
    with bad_way(nodes, fault):
        begin = time.monotonic()
        moved = nodes.task(source, "migrate", name="web1", to=target, timeout=200, **PATIENT)
        print(f"{fault}: {time.monotonic() - begin:.0f} s, {moved}")
        figures = nodes.ssh(source, "tc -j -s qdisc show dev mgmt0", timeout=120)
    (bad,) = [one for one in json.loads(figures) if one["kind"] == "netem"]
    print(bad)
    # The guest's memory went that way, or was tried to: where every fifth packet is lost hardly anything gets over.
    assert bad["bytes"] > LEAST or (moved["failed"] and "were sent to tcp://" in moved["msg"]), (bad, moved)
    assert not fault.startswith("loss") or bad["drops"], bad
    home = source if moved["failed"] else target
    assert home_of(nodes, "web1") == home
    wait_until(lambda: [node for node in NODES if "web1" in nodes.domains(node)] == [home], 60, f"only {home} has it")
    assert counts(nodes, home, "/dev/san/web1", before) > before
    if moved["failed"]:
        move(nodes, source, target, "web1", "/dev/san/web1")


def test_a_volume_that_grew_is_bigger_for_its_running_vm(nodes: Cluster) -> None:
    home = home_of(nodes, "web1")
    other = other_than(home)
    disks = [{**WEB["disks"][0], "size": "96MiB"}]
    early = nodes.task(home, "vm", name="web1", disks=disks)
    assert early["failed"] and "grow the volume on the SAN first" in early["msg"], early
    prefix = "iqn.2026-11.org.example"
    do(nodes, "san1", "iscsi_volume", backend="lio", iqn_prefix=prefix, name="web1", size="96MiB")
    do(nodes, home, "iscsi_session", target=f"{prefix}:web1")
    assert do(nodes, home, "vm", name="web1", disks=disks)["actions"] == ["grow vda as it runs to 96MiB"]
    assert str(96 * MIB) in nodes.ssh(home, "virsh -q domblkinfo web1 vda", timeout=120)
    # The other node did not ask the SAN since then: the VM would find the end of its disk missing there.
    early = nodes.task(home, "migrate", name="web1", to=other)
    assert early["failed"] and f"web1 has 96MiB, on {other} 64MiB" in early["msg"], early
    do(nodes, other, "iscsi_session", target=f"{prefix}:web1")
    move(nodes, home, other, "web1", "/dev/san/web1")
    do(nodes, other, "vm", name="web1", state="absent", force=True)


def test_a_logical_volume_is_free_until_its_vm_starts(nodes: Cluster) -> None:
    do(nodes, "hv1", "vm", **DB)
    assert [look(nodes, node).split()[-1] for node in NODES] == [str(64 * MIB)] * 2
    assert not [node for node in NODES if look(nodes, node).startswith("active")]
    assert attempt(nodes, "hv1", "ey") == ""
    write_guest(nodes, "hv1", f"/dev/{VOLUME}")
    assert attempt(nodes, "hv1", "n") == ""


def test_the_node_that_runs_the_vm_has_it_alone(nodes: Cluster) -> None:
    do(nodes, "hv1", "vm", **DB, state="running")
    counts(nodes, "hv1", f"/dev/{VOLUME}")
    assert alone(nodes, "hv1") is True
    said = nodes.ssh("hv2", "virsh create /dev/stdin 2>&1; true", stdin=THIEF, timeout=120)
    assert "thief refused" in said and "locked by other host" in said, said


def test_it_is_handed_over_at_a_live_migration(nodes: Cluster) -> None:
    for source, target in (NODES, NODES[::-1], NODES):
        move(nodes, source, target, "db1", f"/dev/{VOLUME}")
        wait_until(partial(alone, nodes, target), 120, f"{target} has it alone")
        assert not look(nodes, source).startswith("active")


def test_it_grows_on_the_node_that_has_it(nodes: Cluster) -> None:
    disks = [{**DB["disks"][0], "size": "96MiB"}]
    grown = do(nodes, "hv2", "vm", name="db1", disks=disks)
    assert grown["vm"]["disks"][0]["size"] == 96 * MIB
    assert str(96 * MIB) in nodes.ssh("hv2", "virsh -q domblkinfo db1 vda", timeout=120)
    assert not do(nodes, "hv2", "vm", name="db1", disks=disks)["changed"]
    counts(nodes, "hv2", f"/dev/{VOLUME}")


def test_a_migration_that_is_killed_leaves_one_holder(nodes: Cluster) -> None:
    kill = "virsh -q domuuid db1 | xargs -I{} systemctl kill -s KILL drover-migrate-{}"
    with ThreadPoolExecutor() as pool:
        moving = pool.submit(nodes.task, "hv2", "migrate", name="db1", to="hv1", bandwidth="1MiB", **PATIENT)
        wait_until(lambda: look(nodes, "hv1").startswith("active"), 120, "both nodes have it")
        nodes.ssh("hv2", kill, timeout=120)
        print(moving.result())
    do(nodes, "hv2", "migrate", state="recovered", name="db1")
    home = home_of(nodes, "db1")
    wait_until(partial(alone, nodes, home), 180, f"{home} has it alone")
    counts(nodes, home, f"/dev/{VOLUME}")


def test_a_node_that_reboots_has_its_vm_and_its_lock_again(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    do(nodes, home, "vm", name="db1", autostart=True)
    before, boot = counts(nodes, home, f"/dev/{VOLUME}"), nodes.ssh(home, BOOT_ID, timeout=120)
    nodes.ssh(home, "reboot", check=False, timeout=120)
    up = f"{BOOT_ID}; virsh -q list --name"

    def back() -> bool | str:
        said = nodes.ssh(home, up, check=False, timeout=120).split()
        return (said[:1] != boot.split() and said[1:] == ["db1"]) or str(said)

    wait_until(back, BOOT_SECONDS, f"db1 runs on {home} again")
    wait_until(partial(alone, nodes, home), 180, f"{home} has it alone")
    counts(nodes, home, f"/dev/{VOLUME}", before)
    assert site(nodes, "--limit", home, "--tags", "san_initiator_volumes").good().changed == 0


def test_a_node_that_dies_gives_its_lock_free_in_time(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    other = other_than(home)
    before = counts(nodes, home, f"/dev/{VOLUME}")
    nodes.lab.power_off(home)
    begin = time.monotonic()
    try:
        refused = nodes.task(other, "vm", **GROWN_DB)
        assert refused["failed"] and "fenced" in refused["msg"], refused
        early = nodes.task(other, "vm", **GROWN_DB, fenced=[home])
        assert early["failed"] and f"is held by {home}" in early["msg"], early
        wait_until(lambda: attempt(nodes, other, "ey") == "", DEAD_SECONDS, "the lock is free")
        print(f"the lock was free {time.monotonic() - begin:.0f} s after the power cut")
        attempt(nodes, other, "n")
        do(nodes, other, "vm", **GROWN_DB, fenced=[home])
        counts(nodes, other, f"/dev/{VOLUME}", before)
    finally:
        nodes.lab.power_on(home)
    # Its own libvirt would start it, too.
    log = "journalctl -b -u libvirtd --no-pager -o cat"

    def tried() -> bool | str:
        said = nodes.ssh(home, log, check=False, timeout=120)
        return "db1 refused" in said or said

    wait_until(tried, BOOT_SECONDS, "its autostart was refused")
    assert nodes.domains(home) == {"db1": "shut off"}
    wait_until(partial(alone, nodes, other), 180, f"{other} has it alone")
    counts(nodes, other, f"/dev/{VOLUME}")
    nodes.ssh(home, "virsh undefine db1", timeout=120)


def test_a_vm_that_ends_by_itself_gives_it_back(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    nodes.ssh(home, "virsh qemu-monitor-command db1 --hmp quit; true", timeout=120)
    wait_until(lambda: not look(nodes, home).startswith("active"), 60, "the volume is free")
    other = other_than(home)
    assert attempt(nodes, other, "ey") == "" and attempt(nodes, other, "n") == ""


def test_its_vm_goes_with_its_volume_and_no_other(nodes: Cluster) -> None:
    nodes.ssh("hv1", "lvcreate -y -an -L 8M -n drover-db1-7 vmsan", timeout=120)
    try:
        (home,) = [node for node in NODES if "db1" in nodes.domains(node)]
        do(nodes, home, "vm", name="db1", state="absent", remove_disks=True)
        assert nodes.ssh("hv1", "lvs --noheadings -o lv_name vmsan", timeout=120).split() == ["drover-db1-7"]
    finally:
        nodes.ssh("hv1", "lvremove -y vmsan/drover-db1-7", timeout=120)
