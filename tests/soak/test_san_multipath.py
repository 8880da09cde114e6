# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example with two storage networks: one disk over two paths, and names that follow what a disk is.

Each test goes on from the one before. With DROVER_LAB_NAME=NAME and DROVER_LAB_KEEP=1 a lab of examples/san-multipath
that is up already is used.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, Played, example_lab, wait_until
from ansible_collections.drover.kvm.tests.soak.counting import counts, write_guest

EXAMPLE = ROOT / "examples/san-multipath"
NODES = ("hv1", "hv2")
PREFIX = "iqn.2026-11.org.example"
SECRETS = ("ChapOfTheLab42", "SanOfTheLab4242")
SMALL = [{"name": name, "size": "64MiB"} for name in ("web1", "ldap1")]
BIG = [{"name": "web1", "size": "96MiB"}, SMALL[1]]
MANY = [*BIG, *({"name": f"lun{number:02}", "size": "8MiB"} for number in range(28))]
VM: dict[str, Any] = {
    "name": "ldap1",
    "memory": "32MiB",
    "vcpus": 1,
    "machine": "pc",
    "disks": [{"type": "block", "path": "/dev/san/ldap1"}],
    "state": "running",
}
PROBE: dict[str, Any] = {"name": "probe", "size": "8MiB"}
PORTALS = ["10.231.5.10:3260", "10.231.7.10:3260"]
# An emulated node that gets 60 sessions on a busy machine answers later than a server: its paths would come and go.
PATIENT: dict[str, Any] = {"san_initiator_noop_interval": 10, "san_initiator_noop_timeout": 60}
MIB = 2**20
# The role's defaults: a ping after 2 s of silence, 2 s for its answer, 5 s for the session to come back.
PATH_TIMEOUT = 2 + 2 + 5
SLACK = 5
# With 58 sessions, emulated beside two other labs: 610 s.
BOOT_SECONDS = 1200
# Emulated, and beside another lab: 13 minutes were seen.
SITE_SECONDS = 1800
# Only what a changed list of volumes takes, where nothing else was changed.
VOLUMES = ("--tags", "san_volumes,san_initiator_volumes")
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
# Name and WWID of each link, and the kernel's name of the disk behind it; a link that dangles has neither.
NAMES = """cd /dev/san 2>/dev/null || exit 0; for name in $(ls); do
    disk=$(basename $(readlink -f $name)); echo $name $(cat /sys/block/$disk/dm/uuid 2>/dev/null && echo $disk)
done"""
PATHS = "multipathd show paths raw format '%m %t %o %i'"
# Writes at LBA 8 until told to stop; prints how many, how many failed, and the longest time from one to the next.
LOAD = """import mmap, os, time
disk = os.open("/dev/san/web1", os.O_RDWR | os.O_DIRECT)
block, done, failed, longest, last = mmap.mmap(-1, 4096), 0, 0, 0.0, time.monotonic()
open("/run/load", "w").close()
while os.path.exists("/run/load"):
    block[:8] = done.to_bytes(8, "big")
    try:
        os.pwrite(disk, block, 4096)
        done += 1
    except OSError:
        failed += 1
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
    time.sleep(0.02)
print(done, failed, longest)
"""
# In the other order, and by open-iscsi itself.
ANOTHER_ORDER = f"""iscsiadm -m node -u >/dev/null
# multipathd takes the maps away after the last path.
for second in $(seq 60); do [ -n "$(ls /dev/san 2>/dev/null)" ] || break; sleep 1; done; ls /dev/san 2>/dev/null
for name in %s; do iscsiadm -m node -T {PREFIX}:$name --login >/dev/null || echo $name; done
# For an emulated node, two minutes of udev are not enough.
udevadm settle --timeout=600"""
# A clone that kept the serial of its origin, as an array may make one; module iscsi_volume refuses to.
CLONE = f"""set -e
core=/sys/kernel/config/target/core target={PREFIX}:clone
truncate -s 64M /srv/clone.img
targetcli set global auto_add_default_portal=false
targetcli /backstores/fileio create clone /srv/clone.img
sed 's/.*: //' $core/*/web1/wwn/vpd_unit_serial > /run/serial
cat /run/serial > $core/fileio_*/clone/wwn/vpd_unit_serial
targetcli /iscsi create $target
for address in 10.231.5.10 10.231.7.10; do targetcli /iscsi/$target/tpg1/portals create $address; done
targetcli /iscsi/$target/tpg1/luns create /backstores/fileio/clone
targetcli /iscsi/$target/tpg1/acls create {PREFIX}:hv1"""
NO_CLONE = f"targetcli /iscsi delete {PREFIX}:clone; targetcli /backstores/fileio delete clone; rm /srv/clone.img"


@pytest.fixture(scope="module")
def example() -> Iterator[Cluster]:
    """The machines of the example; nothing is set up yet."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-multipath"), EXAMPLE) as found:
        found.play_seconds = SITE_SECONDS
        yield found


def site(example: Cluster, *options: str, **variables: Any) -> Played:
    """Run the example's own playbook; no secret is in what it prints."""
    done = example.play(str(EXAMPLE / "site.yml"), *options, **variables)
    assert not [secret for secret in SECRETS if secret in done.output]
    return done


def names(example: Cluster, node: str) -> dict[str, str]:
    """The WWID behind each name; an empty one behind a link that dangles."""
    found = {}
    for line in example.ssh(node, NAMES, timeout=300).splitlines():
        words = line.split()
        found[words[0]] = words[1].removeprefix("mpath-") if len(words) == 3 else ""
    return found


def disks(example: Cluster, node: str) -> dict[str, str]:
    """What the kernel calls the paths to each name."""
    script = "cd /dev/san && for name in *; do echo $name $(ls /sys/block/$(basename $(realpath $name))/slaves); done"
    lines = example.ssh(node, script, timeout=300).splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def told(example: Cluster, volumes: list[dict[str, Any]]) -> dict[str, str]:
    """The WWIDs that the SAN foretells."""
    asked = [{"name": volume["name"]} for volume in volumes]
    found = example.task("san1", "iscsi_volume", backend="lio", iqn_prefix=PREFIX, volumes=asked)
    return {item["name"]: item["volume"]["wwid"] for item in found["results"]}


def has_active(example: Cluster, name: str, number: int, node: str = "hv1") -> bool | str:
    """Whether so many of the two paths to a volume work, else how the paths are."""
    text = example.ssh(node, PATHS, timeout=120)
    mine = [line.split() for line in text.splitlines() if line.split()[0] == name]
    works = sum(line[1] == "active" and line[2] == "running" for line in mine)
    return (len(mine) == 2 and works == number) or text


def sorted_paths(example: Cluster) -> list[str]:
    """Map, states and place of each path of hv1."""
    return sorted(example.ssh("hv1", PATHS, timeout=120).splitlines())


def has_names(example: Cluster, node: str, expected: dict[str, str]) -> bool | str:
    """Whether the node has these names of these WWIDs, and no other, else those that differ."""
    found = names(example, node)
    return found == expected or str(set(found.items()) ^ set(expected.items()))


def reboot(example: Cluster, node: str) -> None:
    before = example.ssh(node, BOOT_ID, timeout=120)
    example.ssh(node, "reboot", check=False, timeout=120)
    up = "echo $(cat /proc/sys/kernel/random/boot_id) $(systemctl is-system-running)"

    def back() -> bool | str:
        said = example.ssh(node, up, check=False, timeout=120).split()
        return (len(said) == 2 and said[0] != before.strip() and said[1] == "running") or str(said)

    wait_until(back, BOOT_SECONDS, f"{node} is up again")


def test_the_site_is_set_up_as_check_mode_foretold(example: Cluster) -> None:
    predicted = site(example, "--check").good()
    done = site(example).good()
    assert predicted.changed == done.changed, predicted.output + done.output
    print(f"set up in {done.seconds:.0f} s")


def test_a_second_run_changes_nothing(example: Cluster) -> None:
    assert site(example).good().changed == 0


def test_each_node_has_the_names_and_two_paths_to_each(example: Cluster) -> None:
    expected = told(example, SMALL)
    for node in NODES:
        assert names(example, node) == expected
    for name in expected:
        wait_until(partial(has_active, example, name, 2), 60, f"two paths of {name}")
    secret = "find /var/lib/iscsi/nodes /etc/iscsi -type f ! -perm 600"
    assert example.ssh("hv1", secret, timeout=120) == ""


def test_two_volumes_of_one_name_or_wwid_are_refused_naming_both(example: Cluster) -> None:
    first, second = ({"name": "web1", "target": f"{PREFIX}:{name}"} for name in ("web1", "ldap1"))
    done = site(example, "--limit", "hv1", san_initiator_volumes=[first, second])
    done.refused(f"{PREFIX}:web1", f"{PREFIX}:ldap1", "have the same name")
    clone = [{**first, "wwid": "36001"}, {**second, "name": "ldap1", "wwid": "36001"}]
    site(example, "--limit", "hv1", san_initiator_volumes=clone).refused("web1", "ldap1", "have the same WWID 36001")
    assert names(example, "hv1") == told(example, SMALL)


@pytest.mark.parametrize("silent", [False, True], ids=["pulled", "silent"])
def test_a_path_may_be_cut_under_load(example: Cluster, silent: bool) -> None:
    said: list[str] = []
    load = threading.Thread(target=lambda: said.append(example.ssh("hv1", "python3 -", stdin=LOAD, timeout=400)))
    load.start()
    try:
        wait_until(lambda: "load" in example.ssh("hv1", "ls /run", timeout=60), 60, "the load runs")
        time.sleep(5)
        example.lab.cut("hv1", "nic1", silent=silent)
        try:
            wait_until(lambda: has_active(example, "web1", 1), 60, "one failed path")
        finally:
            example.lab.restore("hv1")
        wait_until(lambda: has_active(example, "web1", 2), 120, "two paths again")
    finally:
        example.ssh("hv1", "rm -f /run/load", timeout=60)
        load.join()
    done, failed, longest = (float(word) for word in said[0].split())
    print(f"{done:.0f} writes, the longest gap {longest:.2f} s")
    assert failed == 0
    assert longest <= PATH_TIMEOUT + SLACK, said
    assert longest > 2, f"not exercised: {said}"


def test_the_site_goes_on_while_a_path_is_cut(example: Cluster) -> None:
    """With a session that is broken (ldap1), and one that can't begin, as after a boot (web1)."""
    logout = f"iscsiadm -m node -T {PREFIX}:web1 -p {PORTALS[0]} --logout >/dev/null"
    example.ssh("hv1", logout, timeout=120)
    example.lab.cut("hv1", "nic1", silent=True)
    try:
        wait_until(lambda: has_active(example, "ldap1", 1), 60, "one failed path")
        for words in (("--check",), ()):
            done = site(example, "--limit", "hv1", *words).good()
            assert done.changed == 0, done.output
            assert f"DEGRADED: hv1 gets no answer from {PORTALS[0]}" in done.output, done.output
            assert "DEGRADED: 1 session(s) of hv1 do not work" in done.output, done.output
    finally:
        example.lab.restore("hv1")
    wait_until(lambda: has_active(example, "ldap1", 2), 120, "two paths again")
    back = site(example, "--limit", "hv1").good()
    # The login of web1.
    assert back.changed == 1 and "DEGRADED" not in back.output, back.output
    wait_until(lambda: has_active(example, "web1", 2), 60, "two paths of web1")


def test_a_vm_on_a_map_moves_while_a_path_is_cut(example: Cluster) -> None:
    role = {"role": "drover.kvm.hypervisor", "vars": {"hypervisor_ca_directory": str(example.lab.state / "pki")}}
    book = example.lab.state / "hypervisors.json"
    book.write_text(json.dumps([{"name": "Hypervisors", "hosts": "hypervisors", "roles": [role]}]), encoding="utf-8")
    example.play(str(book)).good()
    write_guest(example, "hv1", VM["disks"][0]["path"])
    done = example.task("hv1", "vm", **VM)
    assert not done["failed"], done
    before = counts(example, "hv1", "/dev/san/ldap1")
    example.lab.cut("hv2", "nic1", silent=True)
    try:
        wait_until(lambda: has_active(example, "ldap1", 1, "hv2"), 60, "one failed path on hv2")
        for source, target in (NODES, NODES[::-1]):
            # A libvirt that starts when it is asked takes longer where it is emulated than a peer may take to answer.
            assert example.domains(target) == {}
            moved = example.task(source, "migrate", name="ldap1", to=target, stall_timeout=300)
            assert not moved["failed"], moved
            print(f"moved to {target}: {moved}")
            assert (example.domains(source), example.domains(target)) == ({}, {"ldap1": "running"})
            before = counts(example, target, "/dev/san/ldap1", before)
    finally:
        example.lab.restore("hv2")
    gone = example.task("hv1", "vm", name="ldap1", state="absent", force=True)
    assert not gone["failed"], gone


def test_a_volume_grows_from_the_san_to_the_map(example: Cluster) -> None:
    done = site(example, *VOLUMES, san_volumes=BIG).good()
    for node in NODES:
        assert example.ssh(node, "blockdev --getsize64 /dev/san/web1", timeout=120) == f"{96 * MIB}\n", done.output
    # The volume, and a session of each node; nothing else.
    assert done.changed == 3, done.output
    assert site(example, "--check", *VOLUMES, san_volumes=BIG).good().changed == 0


def test_a_wrong_secret_is_refused_by_name(example: Cluster) -> None:
    chap: dict[str, Any] = {"chap_user": "drover", "chap_password": "another-Secret1"}
    place: dict[str, Any] = {"backend": "lio", "iqn_prefix": PREFIX, "portals": PORTALS}
    made = example.task("san1", "iscsi_volume", **place, **chap, **PROBE, initiators=[f"{PREFIX}:hv2"])
    assert not made["failed"], made
    done = site(example, "--limit", "hv2", *VOLUMES, san_volumes=[*BIG, PROBE])
    assert done.code != 0 and "authorization failure" in done.output and f"{PREFIX}:probe" in done.output, done.output
    assert names(example, "hv2") == told(example, BIG)
    gone = example.task("hv2", "iscsi_session", target=f"{PREFIX}:probe", state="absent")
    assert not gone["failed"], gone
    away = example.task("san1", "iscsi_volume", **place, name="probe", state="absent", remove_data=True)
    assert not away["failed"], away


def test_a_clone_with_the_wwid_of_its_origin_is_logged_out_again(example: Cluster) -> None:
    example.ssh("san1", CLONE, timeout=300)
    try:
        before = sorted_paths(example)
        refused = example.task("hv1", "iscsi_session", target=f"{PREFIX}:clone", portals=PORTALS, chap_user="")
        words = refused["msg"]
        print(words)
        assert refused["failed"] and f"{PREFIX}:web1" in words and "Logged out again" in words, refused
        left = f"grep -h clone /sys/class/iscsi_session/*/targetname; ls /var/lib/iscsi/nodes/{PREFIX}:clone/*"
        assert example.ssh("hv1", left, check=False, timeout=120) == ""
        wait_until(lambda: sorted_paths(example) == before, 120, "the paths are those of before")
        log = example.ssh("hv1", "journalctl -u multipathd --since -2min --no-pager -o cat", timeout=120)
        print(log)
    finally:
        example.task("hv1", "iscsi_session", target=f"{PREFIX}:clone", state="absent")
        example.ssh("san1", NO_CLONE, check=False, timeout=300)


def test_thirty_volumes_have_thirty_names(example: Cluster) -> None:
    site(example, "--limit", "san1", *VOLUMES, san_volumes=MANY).good()
    done = site(example, "--limit", "hv1", san_volumes=MANY, **PATIENT).good()
    print(f"28 more volumes over two paths in {done.seconds:.0f} s")
    found = names(example, "hv1")
    assert found == told(example, MANY)
    assert len(set(found.values())) == 30


def test_another_login_order_changes_no_name(example: Cluster) -> None:
    before, order = names(example, "hv1"), disks(example, "hv1")
    script = ANOTHER_ORDER % " ".join(sorted(before, reverse=True))
    assert example.ssh("hv1", script, timeout=1500) == "", "a name without its disk, or a login that failed"
    wait_until(lambda: has_names(example, "hv1", before), 180, "the names")
    assert disks(example, "hv1") != order, "not exercised: the kernel took the same order"


def test_a_volume_that_is_removed_takes_its_name_along(example: Cluster) -> None:
    gone = example.task("hv1", "iscsi_session", target=f"{PREFIX}:lun27", state="absent")
    assert not gone["failed"], gone
    wait_until(lambda: "lun27" not in names(example, "hv1"), 60, "the name is gone")
    place: dict[str, Any] = {"backend": "lio", "iqn_prefix": PREFIX, "name": "lun27"}
    away = example.task("san1", "iscsi_volume", **place, state="absent", remove_data=True)
    assert not away["failed"], away
    site(example, "--limit", "hv1", *VOLUMES, san_volumes=MANY[:-1], **PATIENT).good()
    assert names(example, "hv1") == told(example, MANY[:-1])


def test_a_reboot_changes_no_name_and_libvirt_comes_after_the_logins(example: Cluster) -> None:
    before = names(example, "hv1")
    reboot(example, "hv1")
    wait_until(lambda: has_names(example, "hv1", before), 180, "the names")
    times = "for unit in open-iscsi libvirtd; do systemctl show -P %s $unit; done"
    logins = example.ssh("hv1", times % "ActiveEnterTimestampMonotonic", timeout=120).split()[0]
    libvirt = example.ssh("hv1", times % "InactiveExitTimestampMonotonic", timeout=120).split()[1]
    assert 0 < int(logins) < int(libvirt)
    assert site(example, "--limit", "hv1", san_volumes=MANY[:-1], **PATIENT).good().changed == 0


def test_a_node_boots_without_its_san_and_has_the_names_when_it_comes(example: Cluster) -> None:
    before = names(example, "hv1")
    example.lab.power_off("hv1")
    for nic in ("nic1", "nic2"):
        example.lab.cut("hv1", nic, silent=True)
    try:
        example.lab.power_on("hv1")
        time.sleep(30)
        assert names(example, "hv1") == {}, "not exercised: the SAN was there"
    finally:
        example.lab.restore("hv1")
    begin = time.monotonic()
    wait_until(lambda: has_names(example, "hv1", before), BOOT_SECONDS, "the names")
    print(f"the names came {time.monotonic() - begin:.0f} s after the SAN")
    wait_until(lambda: "qemu" in example.ssh("hv1", "virsh uri", check=False, timeout=120), 300, "libvirt answers")
