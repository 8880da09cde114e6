# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SAN on the kernel's own target, LIO: volumes on every store, with a login of open-iscsi from another machine.

Each test goes on from the one before. With DROVER_LAB_NAME=NAME and DROVER_LAB_KEEP=1 a lab of examples/san-multipath
that is up already is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, tasks, wait_until
from ansible_collections.drover.kvm.tests.soak.counting import counter, counts, write_guest

PREFIX = "iqn.2026-11.org.example.lio"
HOST = f"{PREFIX}:hv1"
PORTALS = ["10.231.5.10:3260", "10.231.7.10:3260"]
SECRETS = {"chap_password": "hidden-Canary1", "mutual_chap_password": "hidden-Canary2"}
LATER = {"chap_password": "hidden-Canary3", "mutual_chap_password": "hidden-Canary4"}
THIN: dict[str, Any] = {"store": "lvm_thin", "vg": "lio0", "thin_pool": "pool0"}
VOLUMES = [{"name": "lf"}, {"name": "lt", "store": "lvm", "vg": "lio0"}, {"name": "ln", **THIN}]
COMMON = {"backend": "lio", "iqn_prefix": PREFIX}
MIB = 2**20
DISK = "/dev/disk/by-id/virtio-disk2"
PLAY = "- hosts: san1\n  gather_facts: false\n  roles: [drover.kvm.san_target]\n"
GROUP = f"vgs lio0 || {{ vgcreate -y lio0 {DISK} && lvcreate -y -L 1G -T lio0/pool0; }}"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
# An interface of our own: the machine's initiator name and its other sessions are left alone.
LOGIN = f"""set -e
systemctl start iscsid
iscsiadm -m iface -I lio -o new
iscsiadm -m iface -I lio -o update -n iface.transport_name -v tcp
iscsiadm -m iface -I lio -o update -n iface.initiatorname -v {HOST}
for volume in lf lt ln; do
    node="iscsiadm -m node -T {PREFIX}:$volume -p 10.231.5.10:3260 -I lio"
    $node -o new
    for pair in authmethod=CHAP username=drover username_in=san; do
        $node -o update -n node.session.auth.${{pair%%=*}} -v ${{pair#*=}}
    done
    $node -o update -n node.session.auth.password -v {SECRETS["chap_password"]}
    $node -o update -n node.session.auth.password_in -v {SECRETS["mutual_chap_password"]}
    $node -l
done
udevadm settle"""
SEE = """iscsiadm -m session --rescan >&2; udevadm settle
for disk in /dev/disk/by-path/*example.lio*; do
    echo $disk $(/usr/lib/udev/scsi_id -g -u $disk) $(blockdev --getsize64 $disk) $(dd if=$disk bs=16 count=1)
done"""
WRITE = "for disk in /dev/disk/by-path/*example.lio*; do echo canary | dd of=$disk bs=512 conv=sync oflag=direct; done"
VM = f"""<domain type='qemu'><name>lio1</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type machine='pc'>hvm</type></os><devices><disk type='network' device='disk'>
<driver name='qemu' type='raw' cache='none'/><source protocol='iscsi' name='{PREFIX}:ln/1'>
<host name='10.231.5.10' port='3260'/><auth username='drover'><secret type='iscsi' usage='lio'/></auth>
<initiator><iqn name='{HOST}'/></initiator></source><target dev='vda' bus='virtio'/></disk></devices></domain>"""
# The backup, as a raw file, and what it was read from.
SAME = {"hv1": "/srv/backup/raw", "san1": "/dev/lio0/lb"}
LOGOUT = """iscsiadm -m node -I lio -u; iscsiadm -m node -I lio -o delete; iscsiadm -m iface -I lio -o delete; true"""


@pytest.fixture(scope="module")
def san() -> Iterator[Cluster]:
    """The machines, and san1 as the role leaves it."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with example_lab(os.environ.get("DROVER_LAB_NAME", "drover-lio"), ROOT / "examples/san-multipath") as found:
        yield found
        found.ssh("hv1", LOGOUT, timeout=300)


def play(san: Cluster, path: Any, **variables: Any) -> Any:
    path.write_text(PLAY)
    place = {"san_target_vg": "lio0", "san_target_thin_pool": "pool0", "san_target_store": "lvm_thin"}
    return san.play(
        str(path),
        **place,
        san_target_backend="lio",
        san_target_portals=PORTALS,
        san_target_storage_network="10.231.0.0/16",
        **variables,
    )


def ask(san: Cluster, options: dict[str, Any], check: bool = False, **args: Any) -> dict[str, Any]:
    """The result of the module on the SAN; it never shows a secret."""
    found = san.task("san1", "iscsi_volume", check=check, **{**COMMON, **options, **args})
    assert "hidden-Canary" not in json.dumps(found)
    return found


def seen(san: Cluster) -> dict[str, list[str]]:
    """WWID, size and first word of each disk on the initiator, by the volume's name."""
    lines = [line.split() for line in san.ssh("hv1", SEE, timeout=300).splitlines()]
    return {line[0].partition("example.lio:")[2].partition("-")[0]: line[1:] for line in lines}


def test_the_role_sets_it_up_once(san: Cluster, tmp_path: Any) -> None:
    san.ssh("san1", GROUP, timeout=300)
    play(san, tmp_path / "san.yml").good()
    assert play(san, tmp_path / "san.yml").good().changed == 0


def test_volumes_on_each_store_are_made_as_foretold(san: Cluster) -> None:
    args: dict[str, Any] = {"volumes": VOLUMES, "size": "64MiB", "initiators": [HOST], "portals": PORTALS}
    args = {**args, "chap_user": "drover", "mutual_chap_user": "san", **SECRETS}
    predicted = ask(san, args, check=True)
    made = ask(san, args)
    assert not made["failed"], made
    assert made["actions"] == predicted["actions"]
    assert [item["volume"] for item in made["results"]] == [item["volume"] for item in predicted["results"]]
    assert not ask(san, args)["changed"]


def test_the_initiator_sees_them_by_the_wwid_that_was_told(san: Cluster) -> None:
    san.ssh("hv1", LOGIN, timeout=300)
    told = {item["name"]: item["volume"] for item in ask(san, {"volumes": VOLUMES})["results"]}
    found = seen(san)
    assert {name: disk[:2] for name, disk in found.items()} == {
        name: [volume["wwid"], str(64 * MIB)] for name, volume in told.items()
    }
    assert all(volume["sessions"][0]["initiator"] == HOST for volume in told.values())
    san.ssh("hv1", WRITE, timeout=300)


def test_what_is_in_use_is_refused_and_the_rest_does_not_disturb(san: Cluster) -> None:
    removal: dict[str, Any] = {"state": "absent", "remove_data": True}
    away: dict[str, Any] = {"initiators": []}
    for args in (removal, away, {"readonly": True}):
        result = ask(san, args, name="lf")
        assert result["failed"] and HOST in result["msg"] and not result["changed"]
    grown = ask(san, LATER, volumes=VOLUMES, size="96MiB", portals=PORTALS[:1])
    assert all(item["rescan_needed"] and item["volume"]["sessions"] for item in grown["results"]), grown
    assert {name: disk[1:] for name, disk in seen(san).items()} == {
        name: [str(96 * MIB), "canary"] for name in ("lf", "lt", "ln")
    }


def test_the_next_login_needs_the_new_secrets(san: Cluster) -> None:
    node = f"iscsiadm -m node -T {PREFIX}:lf -p {PORTALS[0]} -I lio"
    assert san.ssh("hv1", f"{node} -u >&2; {node} -l >&2; echo $?", timeout=300) == "24\n"
    update = f"{node} -o update -n node.session.auth.password"
    wrong = f"{update} -v {LATER['chap_password']}; {node} -l >&2; echo $?"
    # 19: the initiator gave the login up, 24: the target refused it (iscsiadm(8), EXIT STATUS).
    assert san.ssh("hv1", wrong, timeout=300) == "19\n", "the target did not prove itself, and was let in"
    right = f"{update}_in -v {LATER['mutual_chap_password']}; {node} -l >&2; echo $?"
    assert san.ssh("hv1", right, timeout=300) == "0\n"


def test_copies_have_the_content_and_a_name_of_their_own(san: Cluster) -> None:
    copies = [{"name": "lc", "clone_of": "ln", **THIN}, {"name": "ls", "snapshot_of": "ln", **THIN}]
    chap = {**SECRETS, "chap_user": "drover", "mutual_chap_user": "san"}
    made = ask(san, chap, volumes=copies, initiators=[HOST], portals=PORTALS)
    assert [item["volume"]["readonly"] for item in made["results"]] == [False, True]
    content = san.ssh("san1", "head -c 6 /dev/lio0/lc; head -c 6 /dev/lio0/ls", timeout=300)
    assert content == "canarycanary"


@pytest.fixture
def guest(san: Cluster) -> Iterator[None]:
    """A VM on hv1 that counts on the thin volume; QEMU logs in to it itself."""
    write_guest(san, "san1", "/dev/lio0/ln")
    secret: dict[str, Any] = {"usage": "lio", "value": LATER["chap_password"]}
    assert not san.task("hv1", "secret", **secret)["failed"]
    define = "install -d -m 0711 /srv/backup; cat >/srv/lio1.xml; virsh define /srv/lio1.xml"
    san.ssh("hv1", define, stdin=VM, timeout=300)
    try:
        san.ssh("hv1", "virsh start lio1", timeout=300)
        yield
    finally:
        gone = "virsh destroy lio1; virsh undefine lio1; rm -rf /srv/backup /srv/lio1.xml"
        san.ssh("hv1", gone, check=False, timeout=300)
        san.task("hv1", "secret", usage="lio", state="absent")
        ask(san, {"state": "absent", "remove_data": True}, name="lb", **THIN)


def test_a_backup_is_read_from_a_snapshot_in_the_pool(san: Cluster, guest: None) -> None:
    counts(san, "san1", "/dev/lio0/ln")
    chap = {**LATER, "chap_user": "drover", "mutual_chap_user": "san"}
    copy = {**COMMON, **THIN, **chap, "name": "lb", "snapshot_of": "ln", "initiators": [HOST], "portals": PORTALS}
    still = {"name": "lio1", "pause": True, "hold": 200}
    place = {"target": "vda", "iqn": f"{PREFIX}:lb"}
    told = {"moment": "{{ frozen.moment }}", "quiesced": False, "disks": [place]}
    frozen, made, thawed, saved = tasks(
        san,
        "hv1",
        [
            {"drover.kvm.vm_freeze": still, "register": "frozen"},
            {"drover.kvm.iscsi_volume": copy, "delegate_to": "san1"},
            {"drover.kvm.vm_freeze": {"name": "lio1", "state": "thawed"}},
            {"drover.kvm.backup": {"name": "lio1", "path": "/srv/backup", "from_snapshot": told}},
        ],
    )
    print(f"still for {made['seconds']:.1f} + {thawed['seconds']:.1f} s at most, read in {saved['seconds']:.0f} s")
    assert thawed["was"] == frozen["vm"] and frozen["vm"]["paused"] and made["volume"]["readonly"], (frozen, thawed)
    convert = "qemu-img convert -f qcow2 -O raw {}/vda.qcow2 /srv/backup/raw"
    san.ssh("hv1", convert.format(saved["backup"]["folder"]), timeout=300)
    kept = counter(san, "hv1", "/srv/backup/raw")
    # It is the snapshot, bit by bit, and the guest counted on meanwhile.
    sums = [san.ssh(node, f"sha256sum <{path}", timeout=300) for node, path in SAME.items()]
    assert sums[0] == sums[1] and kept == counter(san, "san1", "/dev/lio0/lb") >= 0
    counts(san, "san1", "/dev/lio0/ln", beyond=kept)
    assert not ask(san, {"state": "absent", "remove_data": True}, name="lb", **THIN)["failed"]
    assert " lb " not in san.ssh("san1", "lvs lio0", timeout=300)


def test_all_of_it_is_back_after_a_reboot_and_sessions_go_on(san: Cluster) -> None:
    before = san.ssh("san1", BOOT_ID, timeout=300)
    san.ssh("san1", "reboot", check=False, timeout=300)
    wait_until(lambda: san.ssh("san1", BOOT_ID, check=False, timeout=300) not in ("", before), 600, "san1 is up")
    told = ask(san, {"volumes": [*VOLUMES, {"name": "lc", **THIN}, {"name": "ls", **THIN}]})
    assert not told["changed"] and not told["failed"], told
    assert seen(san)["lf"][1:] == [str(96 * MIB), "canary"]


def test_nothing_is_left(san: Cluster) -> None:
    san.ssh("hv1", LOGOUT, timeout=300)
    volumes = [*VOLUMES, {"name": "lc", **THIN}, {"name": "ls", **THIN}]
    removal = {"volumes": volumes, "state": "absent", "remove_data": True}
    assert not ask(san, removal)["failed"]
    assert not ask(san, removal)["changed"]
    left = "ls /sys/kernel/config/target/iscsi /srv/drover; lvs lio0; cat /etc/rtslib-fb-target/saveconfig.json"
    text = san.ssh("san1", left, timeout=300)
    assert "example.lio" not in text and ".img" not in text and " ln " not in text
