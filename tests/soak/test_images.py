# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of templates and of disks that come from elsewhere: twenty linked clones, one that is flattened as it counts,
a disk of another hypervisor; and a site's power evening.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODE, OTHER = "hv1", "hv2"
FOLDER, DISKS = "/var/lib/libvirt/templates", "/var/lib/libvirt/images"
SOURCE, TEMPLATE = f"{FOLDER}/source.raw", f"{FOLDER}/data.qcow2"
COUNTER, BROUGHT = "cloned1", "brought1"
NAMES = [f"clone{number}" for number in range(20)]
# The lab's guests don't hear the power button.
DEAF: dict[str, Any] = {"force": True, "shutdown_timeout": 5}
SMALL: dict[str, Any] = {"memory": "24MiB", "vcpus": 1}
LINKED = {"type": "file", "target": "vda", "format": "qcow2", "source": TEMPLATE}


def checksum(cluster: Cluster, path: str) -> str:
    """The SHA-256 of a file on the node."""
    return cluster.ssh(NODE, f"sha256sum {path}").split()[0]


def template(cluster: Cluster, path: str, **options: Any) -> dict[str, Any]:
    """Module image, for what SOURCE holds."""
    given = {"source": SOURCE, "checksum": f"sha256:{checksum(cluster, SOURCE)}", "source_format": "raw"}
    return cluster.task(NODE, "image", path=path, format="qcow2", **{**given, **options})


def chain(cluster: Cluster, disk: str) -> list[str]:
    """The files of a disk, the VM's own first, as QEMU's tool sees them."""
    found = json.loads(cluster.ssh(NODE, f"qemu-img info -U --backing-chain --output=json {disk}"))
    return [image["filename"] for image in found]


def running(cluster: Cluster) -> list[str]:
    """The VMs of the node that run; one ssh for all of them."""
    return cluster.ssh(NODE, "virsh", "list", "--name").split()


@pytest.fixture(scope="module")
def folder(site: Cluster) -> Iterator[Cluster]:
    """A folder for templates; at the end VMs, disks and templates are gone."""
    site.ssh(NODE, "mkdir", "-p", FOLDER)
    yield site
    gone = [{"name": name} for name in [*NAMES, COUNTER]]
    left = site.task(NODE, "vm", vms=gone, state="absent", force=True, remove_disks=True)
    assert not left["failed"], left
    assert site.ssh(NODE, f"ls -A {DISKS}").split() == []
    site.ssh(NODE, "rm", "-r", FOLDER)


def test_twenty_linked_clones_of_one_template(folder: Cluster) -> None:
    folder.ssh(NODE, f"head -c 64M /dev/urandom > {SOURCE} && truncate -s 1G {SOURCE}")
    made = template(folder, TEMPLATE)
    assert not made["failed"] and made["image"]["size"] == 2**30, made
    assert not template(folder, TEMPLATE)["changed"]
    content = checksum(folder, TEMPLATE)
    begin = time.monotonic()
    vms = [{"name": name} for name in NAMES]
    built = folder.task(NODE, "vm", vms=vms, disks=[LINKED], state="running", **SMALL)
    assert not built["failed"], built
    print(f"20 linked clones are running after {time.monotonic() - begin:.1f} s")
    assert sorted(running(folder)) == sorted(NAMES)
    assert not folder.task(NODE, "vm", vms=vms, disks=[LINKED], state="running", **SMALL)["changed"]
    assert chain(folder, f"{DISKS}/drover-clone7-0.qcow2") == [f"{DISKS}/drover-clone7-0.qcow2", TEMPLATE]
    assert len(folder.ssh(NODE, "virsh", "list", "--uuid").split()) == 20
    # They take a few hundred KiB each, the template 64 MiB.
    assert int(folder.ssh(NODE, f"du -sk {DISKS}").split()[0]) < 20 * 1024
    assert checksum(folder, TEMPLATE) == content


def test_their_template_is_protected(folder: Cluster) -> None:
    content = checksum(folder, TEMPLATE)
    for options in ({"state": "absent"}, {"source": "/etc/hostname", "checksum": "sha256:" + "0" * 64}):
        refused = template(folder, TEMPLATE, **options)
        assert refused["failed"] and "VM clone7" in refused["msg"] and not refused["changed"], refused
    moved = folder.task(NODE, "migrate", name="clone7", to=OTHER, storage="copy")
    assert moved["failed"] and "flatten it" in json.dumps(moved["details"]), moved
    assert "clone7" in running(folder) and checksum(folder, TEMPLATE) == content


def test_a_clone_is_flattened_as_it_runs_and_can_then_move(folder: Cluster) -> None:
    own = f"{DISKS}/drover-clone7-0.qcow2"
    options: dict[str, Any] = {"name": "clone7", "disks": [{**LINKED, "clone": "full"}]}
    predicted = folder.task(NODE, "vm", check=True, **options)
    flat = folder.task(NODE, "vm", **options)
    assert not flat["failed"] and flat["actions"][0] == f"flatten {own}, which is based on {TEMPLATE}", flat
    assert predicted["actions"] == flat["actions"] and not folder.task(NODE, "vm", **options)["changed"]
    assert chain(folder, own) == [own] and flat["pending_restart"] == []
    assert TEMPLATE not in folder.ssh(NODE, "virsh", "dumpxml", "clone7")
    assert TEMPLATE not in folder.ssh(NODE, "virsh", "dumpxml", "--inactive", "clone7")
    folder.ssh(NODE, f"qemu-img convert -U -f qcow2 -O raw {own} {FOLDER}/seen && cmp {FOLDER}/seen {SOURCE}")
    folder.ssh(NODE, "rm", f"{FOLDER}/seen")
    for node, to in ((NODE, OTHER), (OTHER, NODE)):
        moved = folder.task(node, "migrate", name="clone7", to=to, storage="copy")
        assert moved.get("verified"), moved


def test_a_guest_counts_on_while_it_is_flattened_and_its_template_goes(folder: Cluster) -> None:
    path, own = f"{FOLDER}/counter.qcow2", f"{DISKS}/drover-{COUNTER}-0.qcow2"
    place = folder.lab.machine(NODE).path(SOURCE)
    guests = Guests(folder.lab.base)
    guests.ensure()
    place.unlink(missing_ok=True)
    guests.write_image(place, {"name": COUNTER, "ip": "10.231.100.43/24", "sink": SINK})
    made = template(folder, path)
    assert not made["failed"], made
    disk = {**LINKED, "source": path, "size": "48MiB"}
    sheet: dict[str, Any] = {"name": COUNTER, "memory": "96MiB", "vcpus": 1, "nics": [{"bridge": "br0", "vlan": 100}]}
    with Observer(folder.lab) as watch:
        built = folder.task(NODE, "vm", state="running", disks=[disk], **sheet)
        assert not built["failed"], built
        watch.wait_word(COUNTER, seconds=240)
    with Observer(folder.lab) as watch:
        watch.wait_word(COUNTER)
        assert template(folder, path, state="absent")["failed"]
        flat = folder.task(NODE, "vm", name=COUNTER, disks=[{**disk, "clone": "full"}])
        assert not flat["failed"] and chain(folder, own) == [own], flat
        watch.wait_word(COUNTER, after=time.monotonic())
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    gone = template(folder, path, state="absent")
    assert not gone["failed"] and gone["actions"] == [f"delete {path}"], gone
    assert not folder.task(NODE, "vm", name=COUNTER, state="stopped", **DEAF)["failed"]
    with Observer(folder.lab) as watch:
        assert not folder.task(NODE, "vm", name=COUNTER, state="running")["failed"]
        # It boots without its template.
        watch.wait_word(COUNTER, seconds=240)
    gone = folder.task(NODE, "vm", name=COUNTER, state="absent", force=True, remove_disks=True)
    assert gone["actions"][-1] == f"delete {own}", gone


def test_a_clone_that_was_killed_half_way_is_mended(folder: Cluster) -> None:
    name = NAMES[3]
    own = f"{DISKS}/drover-{name}-0.qcow2"
    gone = folder.task(NODE, "vm", name=name, state="absent", force=True, remove_disks=True)
    assert gone["actions"][-1] == f"delete {own}" and gone["kept"] == [], gone
    # As a run leaves it that was killed while it copied.
    part = f".{own.rpartition('/')[2]}.drover-part"
    folder.ssh(NODE, f"head -c 1M /dev/urandom > {DISKS}/{part}")
    full = {**LINKED, "clone": "full"}
    built = folder.task(NODE, "vm", name=name, disks=[full], state="running", **SMALL)
    assert not built["failed"] and chain(folder, own) == [own], built
    assert part not in folder.ssh(NODE, f"ls -A {DISKS}").split()


def test_the_disk_of_another_hypervisors_machine_boots_here(folder: Cluster) -> None:
    raw, source, own = f"{FOLDER}/{BROUGHT}.raw", f"{FOLDER}/{BROUGHT}.vmdk", f"{DISKS}/drover-{BROUGHT}-0.qcow2"
    guests = Guests(folder.lab.base)
    guests.ensure()
    guests.write_image(folder.lab.machine(NODE).path(raw), {"name": BROUGHT, "ip": "10.231.100.47/24", "sink": SINK})
    folder.ssh(NODE, f"qemu-img convert -f raw -O vmdk -o subformat=streamOptimized {raw} {source}")
    disk = {"type": "file", "target": "vda", "format": "qcow2", "source": source, "source_format": "raw"}
    sheet: dict[str, Any] = {"name": BROUGHT, "memory": "96MiB", "vcpus": 1, "nics": [{"bridge": "br0", "vlan": 100}]}
    refused = folder.task(NODE, "vm", disks=[disk], **sheet)
    assert refused["failed"] and "is vmdk, not raw" in refused["msg"] and BROUGHT not in folder.domains(NODE), refused
    disk |= {"source_format": "vmdk", "checksum": f"sha256:{checksum(folder, source)}"}
    before = checksum(folder, source)
    try:
        with Observer(folder.lab) as watch:
            built = folder.task(NODE, "vm", disks=[disk], state="running", **sheet)
            assert not built["failed"] and f"a copy of {source}, which is vmdk" in built["actions"][0], built
            watch.wait_word(BROUGHT, seconds=240)
        assert not folder.task(NODE, "vm", disks=[disk], state="running", **sheet)["changed"]
        assert chain(folder, own) == [own] and checksum(folder, source) == before
    finally:
        gone = folder.task(NODE, "vm", name=BROUGHT, state="absent", force=True, remove_disks=True)
    assert gone["actions"][-1] == f"delete {own}" and checksum(folder, source) == before, gone


def test_at_last_the_template_can_go(folder: Cluster) -> None:
    vms = [{"name": name} for name in NAMES]
    gone = folder.task(NODE, "vm", vms=vms, state="absent", force=True, remove_disks=True)
    assert not gone["failed"] and len([words for words in gone["actions"] if "delete" in words]) == 20, gone
    removed = template(folder, TEMPLATE, state="absent")
    assert not removed["failed"] and removed["actions"] == [f"delete {TEMPLATE}"], removed


def test_a_power_evening(cluster: Cluster) -> None:
    """All VMs stop in order but one that was off before; these, and no others, start again."""
    before = cluster.where()
    off = cluster.task(before["web2"], "vm", name="web2", state="stopped", **DEAF)
    assert not off["failed"], off
    order = {"drover_start_order": ["ldap"], **DEAF}
    checked = cluster.play("stop_vms", "--check", **order).good()
    assert "web2" not in cluster.where() and len(cluster.where()) == len(before) - 1, checked.output
    stopped = cluster.play("stop_vms", **order).good()
    assert cluster.where() == {} and stopped.changed > 0, stopped.output
    assert stopped.output.index("web1") < stopped.output.index("(item=ldap1, ldap2)"), stopped.output
    assert cluster.play("stop_vms", **order).good().changed == 0
    started = cluster.play("start_vms", **order).good()
    assert cluster.where() == {name: node for name, node in before.items() if name != "web2"}, started.output
    assert cluster.play("start_vms", **order).good().changed == 0
    assert not cluster.task(before["web2"], "vm", name="web2", state="running")["failed"]
    assert cluster.where() == before
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name, seconds=240)
