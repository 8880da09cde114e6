# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume group that the nodes share, on a volume that each of them reaches over two storage networks.

Each session is bound to the NIC of its network. Each test goes on from the one before. With DROVER_LAB_NAME=NAME and
DROVER_LAB_KEEP=1 a lab of examples/san-multipath that is up already is used.
"""

from __future__ import annotations

import json
import os
import re
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
    WEB,
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
    PORTALS,
    PREFIX,
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
BOUND = dict(zip(PORTALS, NICS))
GROUP: dict[str, Any] = {
    "san_initiator_lvm_groups": [{"name": "vmsan", "devices": ["vms1"]}],
    "san_initiator_interfaces": BOUND,
}
LEAN = {**DB, "disks": [{**DB["disks"][0], "size": "4MiB"}]}
BIGGER = [{**DB["disks"][0], "size": "320MiB"}]
MIB = 2**20
# The devices of the group, all that LVM looks at, and the maps.
DEVICES = f"""readlink -f $(pvs --noheadings -o pv_name -S vg_name=vmsan)
echo; {LVM_SEES}; echo; readlink -f /dev/mapper/vms1 /dev/mapper/web1"""
# The map, its two paths, and the device as LVM sees it, in bytes.
LAYERS = """map=$(basename $(readlink -f /dev/mapper/vms1))
blockdev --getsize64 /dev/$map $(ls /sys/block/$map/slaves | sed s,^,/dev/,)
pvs --noheadings --units b --nosuffix -o dev_size -S vg_name=vmsan"""
# A session of web1 begins anew while the route to its portal leads over the other NIC: by which one 8 MiB come in.
WIRE = f"""set -e
ip route add 10.231.5.10/32 dev nic2
trap 'ip route del 10.231.5.10/32 dev nic2' EXIT
ip route get 10.231.5.10 | head -1
for how in --logout --login; do iscsiadm -m node -T {PREFIX}:web1 -p {PORTALS[0]} $how >/dev/null; done
udevadm settle --timeout=300
for session in /sys/class/iscsi_session/session*; do
    [ $(cat $session/targetname) = {PREFIX}:web1 ] || continue
    [ $(cat $session/device/connection*/iscsi_connection/*/persistent_address) = 10.231.5.10 ] || continue
    disk=/dev/$(basename $session/device/target*/*/block/*)
done
came() {{ cat /sys/class/net/nic1/statistics/rx_bytes /sys/class/net/nic2/statistics/rx_bytes; }}
came; dd if=$disk of=/dev/null bs=1M count=8 iflag=direct status=none; came"""
# The group's metadata without what a node says of itself.
METADATA = """vgcfgbackup -f /run/vmsan vmsan >/dev/null
sed -e '/^#/d' -e '/^creation_/d' -e '/^description/d' -e '/device = /d' /run/vmsan"""
ACTIVE = "lvs --noheadings -o lv_name -S lv_active=active vmsan"
# All that is free of the group, filled; and what a volume shows there that nobody wiped.
OLD_DATA = """set -e
lvcreate -q -y -l 100%FREE -n old vmsan >/dev/null
yes drover-old-data | dd of=/dev/vmsan/old bs=1M iflag=fullblock oflag=direct status=none 2>/dev/null || true
lvremove -q -y vmsan/old >/dev/null
lvcreate -q -y -Wn -Zn -l 100%FREE -n see vmsan >/dev/null
dd if=/dev/vmsan/see bs=1M count=16 iflag=direct status=none | grep -c drover-old-data
lvremove -q -y vmsan/see >/dev/null"""
# How many bytes of a volume are no zeroes, and how many it has.
SHOWS = """set -e
lvchange -aey vmsan/drover-new1-0
dd if=/dev/vmsan/drover-new1-0 bs=1M iflag=direct status=none | tr -d '\\0' | wc -c
blockdev --getsize64 /dev/vmsan/drover-new1-0
lvchange -an vmsan/drover-new1-0"""
LATE_SECONDS = 60
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


def named(vms: list[str]) -> list[dict[str, str]]:
    """VMs as module vm takes a list of them."""
    return [{"name": name} for name in vms]


def layers(nodes: Cluster) -> set[int]:
    """The sizes of the group's volume in bytes, by the SAN and by all that the nodes make of it."""
    asked = do(nodes, "san1", "iscsi_volume", backend="lio", iqn_prefix=PREFIX, name="vms1")
    seen = [int(word) for node in NODES for word in nodes.ssh(node, LAYERS, timeout=120).split()]
    assert len(seen) == 4 * len(NODES), seen
    return {asked["volume"]["size"], *seen}


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


def test_each_session_is_bound_to_its_nic_whatever_the_routes_say(nodes: Cluster) -> None:
    for node in NODES:
        said = nodes.ssh(node, "iscsiadm -m session -P 1", timeout=120)
        found = re.findall(r"Current Portal: (\S+),\d+\s.*?Iface Netdev: (\S+)", said, re.DOTALL)
        assert sorted(found) == sorted(2 * list(BOUND.items())), said
    said = nodes.ssh("hv2", WIRE, timeout=600)
    print(said)
    route, *figures = said.splitlines()
    assert "dev nic2" in route, f"not exercised: {route}"
    bound, other = (int(after) - int(before) for before, after in zip(figures[:2], figures[2:]))
    assert bound > 8 * MIB > 16 * other, said
    wait_until(partial(has_active, nodes, "web1", 2, "hv2"), 120, "two paths again")


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
        vms = [f"{node}-{number}" for number in range(4)]
        for vm in vms:
            do(nodes, node, "vm", **{**LEAN, "name": vm})
        return vms

    with ThreadPoolExecutor() as pool:
        made = dict(zip(NODES, pool.map(make, NODES)))
    expected = {f"drover-{vm}-0" for vms in made.values() for vm in vms}
    lists = [nodes.ssh(node, "lvs --noheadings -o lv_name,lv_uuid,lv_size vmsan", timeout=120) for node in NODES]
    assert lists[0] == lists[1] and expected <= set(lists[0].split()), lists
    for node, vms in made.items():
        for vm in vms:
            do(nodes, node, "vm", name=vm, state="absent", remove_disks=True)
    left = nodes.ssh("hv1", "lvs --noheadings -o lv_name vmsan", timeout=120).split()
    assert not expected & set(left), left


def test_twenty_volumes_from_alternating_nodes_are_the_same_on_both(nodes: Cluster) -> None:
    made: dict[str, list[str]] = {node: [] for node in NODES}
    for number in range(0, 20, 2):
        node, pair = NODES[number // 2 % 2], [f"many{number + more:02}" for more in range(2)]
        do(nodes, node, "vm", **{key: value for key, value in LEAN.items() if key != "name"}, vms=named(pair))
        made[node] += pair
    first, second = (nodes.ssh(node, METADATA, timeout=120) for node in NODES)
    assert first == second
    volumes = {node: [f"vmsan/drover-{name}-0" for name in vms] for node, vms in made.items()}
    assert not [one for each in volumes.values() for one in each if f"{one.partition('/')[2]} {{" not in first], first
    for node in NODES:
        nodes.ssh(node, f"lvchange -aey {' '.join(volumes[node])}", timeout=300)
    for node in NODES:
        tries = f"for one in {' '.join(volumes[other_than(node)])}; do lvchange -asy $one 2>&1; done; {ACTIVE}"
        said = nodes.ssh(node, tries, timeout=300)
        assert said.count("locked by other host") == 10, said
        active = {f"vmsan/{word}" for word in said.split() if word.startswith("drover-many")}
        assert active == set(volumes[node]), said
    for node in NODES:
        nodes.ssh(node, f"lvchange -an {' '.join(volumes[node])}", timeout=300)
        do(nodes, node, "vm", vms=named(made[node]), state="absent", remove_disks=True)
    assert "drover-many" not in nodes.ssh("hv1", METADATA, timeout=120)


def test_old_data_does_not_show_through_a_new_volume_nor_through_its_growth(nodes: Cluster) -> None:
    assert int(nodes.ssh("hv1", OLD_DATA, timeout=600)) > MIB / len("drover-old-data"), "not exercised"
    for size in (32, 64):
        disks = [{**DB["disks"][0], "size": f"{size}MiB"}]
        assert do(nodes, "hv2", "vm", **{**DB, "name": "new1", "disks": disks})["changed"]
        assert nodes.ssh("hv2", SHOWS, timeout=300).split() == ["0", str(size * MIB)]
    do(nodes, "hv2", "vm", name="new1", state="absent", remove_disks=True)


def test_what_the_volume_of_the_san_grew_by_is_the_groups_and_its_vms(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    before = counts(nodes, home, DEVICE)
    assert layers(nodes) == {512 * MIB}
    early = nodes.task(home, "vm", name="db1", disks=BIGGER)
    assert early["failed"] and "volume group vmsan has" in early["msg"] and not early["changed"], early
    done = site(nodes, *VOLUMES, san_volumes=GROWN, **GROUP).good()
    # The volume, a session of each node, and the group on one of them.
    assert done.changed == 4, done.output
    assert layers(nodes) == {768 * MIB}
    assert site(nodes, "--check", *VOLUMES, san_volumes=GROWN, **GROUP).good().changed == 0
    assert do(nodes, home, "vm", name="db1", disks=BIGGER)["changed"]
    assert str(320 * MIB) in nodes.ssh(home, "virsh -q domblkinfo db1 vda", timeout=120)
    assert look(nodes, home).split()[-1] == str(320 * MIB)
    assert not do(nodes, home, "vm", name="db1", disks=BIGGER)["changed"]
    counts(nodes, home, DEVICE, before)
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


def test_vms_start_with_a_node_whose_san_comes_a_minute_late(nodes: Cluster) -> None:
    home = home_of(nodes, "db1")
    write_guest(nodes, home, "/dev/san/web1")
    do(nodes, home, "vm", **WEB, autostart=True, state="running")
    do(nodes, home, "vm", name="db1", autostart=True)
    before = {device: counts(nodes, home, device) for device in ("/dev/san/web1", DEVICE)}
    nodes.ssh(home, "sync", timeout=120)
    nodes.lab.power_off(home)
    for nic in NICS:
        nodes.lab.cut(home, nic, silent=True)
    try:
        nodes.lab.power_on(home)
        time.sleep(LATE_SECONDS)
        said = nodes.ssh(home, "ls /dev/san; systemctl is-active open-iscsi libvirtd", check=False, timeout=120)
        assert said.split() == ["activating", "inactive"], said
    finally:
        nodes.lab.restore(home)
    begin = time.monotonic()
    # Asks no libvirt that does not run yet.
    running = "ls /run/libvirt/qemu/web1.pid /run/libvirt/qemu/db1.pid 2>/dev/null | wc -l"
    wait_until(lambda: nodes.ssh(home, running, check=False, timeout=120) == "2\n", BOOT_SECONDS, "both VMs run")
    print(f"the VMs ran {time.monotonic() - begin:.0f} s after the SAN came")
    assert nodes.domains(home) == {"web1": "running", "db1": "running"}
    for device, count in before.items():
        counts(nodes, home, device, count)
    log = nodes.ssh(home, "journalctl -b -u libvirtd --no-pager -o cat", timeout=120)
    assert "Failed to autostart" not in log, log
    wait_until(partial(alone, nodes, home), 180, f"{home} has it alone")
    do(nodes, home, "vm", name="web1", state="absent", force=True)


def test_the_group_goes_when_the_other_node_left_it(nodes: Cluster) -> None:
    gone: dict[str, Any] = {"name": "vmsan", "state": "absent"}
    do(nodes, home_of(nodes, "db1"), "vm", name="db1", state="absent", force=True, remove_disks=True)
    for check in (True, False):
        refused = nodes.task("hv1", "volume_group", check=check, **gone)
        assert refused["failed"] and "is still shared with hv2" in refused["msg"], refused
    nodes.ssh("hv2", "vgchange --lock-stop vmsan", timeout=300)
    begin = time.monotonic()
    predicted = nodes.task("hv1", "volume_group", check=True, **gone)
    refused = nodes.task("hv2", "volume_group", **gone)
    assert refused["failed"] and "vgchange --lock-start vmsan first" in refused["msg"], refused
    done = do(nodes, "hv1", "volume_group", **gone)
    print(f"removed {time.monotonic() - begin:.0f} s after hv2 had left")
    assert done["actions"] == predicted["actions"] == ["remove volume group vmsan"]
    for node in NODES:
        assert "vmsan" not in nodes.ssh(node, "vgs --noheadings; lvmlockctl --info", timeout=120)
        assert not do(nodes, node, "volume_group", **gone)["changed"]
    anew = do(nodes, "hv2", "volume_group", name="vmsan", devices=["/dev/san/vms1"], shared=True)
    assert anew["group"]["locks"] and anew["group"]["size"] > 256 * MIB
