# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two VMs from one template of a real Debian 13, which cloud-init sets up: each is one of its own.

The image is made of the lab's own packages, once, and has no boot loader: its kernel is written into the definition by
hand. Their guests are emulated, so a boot takes minutes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.debian import DebianImage
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.vm_hardware import COMMAND_LINE
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.soak.equipped import BOOT, Equipped

NODE, FOLDER = "hv3", "/var/lib/libvirt/templates"
SOURCE, TEMPLATE = f"{FOLDER}/debian13.raw", f"{FOLDER}/debian13.qcow2"
SEED = "/var/lib/libvirt/images/drover-{}-seed.iso"
# The second one has no IPv4 at all.
ADDRESSES = {"deb1": ["10.231.100.61/24", "fd00:100::61/64"], "deb2": ["fd00:100::62/64"]}
DATA = "#cloud-config\nwrite_files:\n  - {path: /root/told, content: told to NAME}\n"
# Bigger than the template, whose disk has 8 GiB.
DISK = {"type": "file", "target": "vda", "format": "qcow2", "source": TEMPLATE, "size": "9GiB"}
DONE = "test -e /var/lib/cloud/instance/boot-finished && echo done || echo not yet"
LOOK = (
    "hostname; cat /etc/machine-id /root/told; echo; cat /etc/ssh/ssh_host_ed25519_key.pub; "
    "ip -o address show scope global"
)
BOOT_SECONDS = 900


def sheet(name: str) -> dict[str, Any]:
    """What is declared of one of them."""
    nic = {"bridge": "br0", "vlan": 100, "addresses": ADDRESSES[name]}
    seed = {"user_data": DATA.replace("NAME", name)}
    return {"memory": "512MiB", "vcpus": 1, "disks": [DISK], "nics": [nic], "cloud_init": seed}


@pytest.fixture(scope="module")
def template(site: Cluster) -> Iterator[DebianImage]:
    """A template of Debian 13 with cloud-init, and the image with its kernel."""
    image = DebianImage(site.lab.base)
    image.ensure()
    site.ssh(NODE, "mkdir", "-p", FOLDER)
    place = site.lab.machine(NODE).path(SOURCE)
    subprocess.run(["cp", "--sparse=always", str(image.folder / "disk.raw"), str(place)], check=True)
    digest = site.ssh(NODE, "sha256sum", SOURCE, timeout=300).split()[0]
    options: dict[str, Any] = {
        "source": SOURCE,
        "source_format": "raw",
        "checksum": f"sha256:{digest}",
        "format": "qcow2",
    }
    made = site.task(NODE, "image", path=TEMPLATE, **options)
    assert not made["failed"], made
    site.ssh(NODE, "rm", SOURCE)
    yield image
    gone = site.task(NODE, "image", path=TEMPLATE, state="absent")
    site.ssh(NODE, "rm", "-rf", FOLDER)
    assert not gone["failed"], gone


@pytest.fixture(scope="module")
def guests(site: Cluster, template: DebianImage) -> Iterator[dict[str, Equipped]]:
    """Both, set up."""
    found = {name: Equipped(site, name, NODE) for name in ADDRESSES}
    try:
        for name, vm in found.items():
            made = vm.vm(**sheet(name))
            assert made["actions"][0].startswith("make the seed"), made
            vm.boot_from(template.folder / "vmlinuz", template.folder / "initrd.img", COMMAND_LINE, (NODE,))
            assert vm.vm(state="running", **sheet(name))["actions"] == [f"start {name}"]
        for vm in found.values():
            vm.wait_agent(NODE, seconds=BOOT_SECONDS)
        for vm in found.values():
            wait_until(lambda vm=vm: vm.guest(NODE, DONE) == "done", BOOT_SECONDS, "the end of cloud-init")
        yield found
    finally:
        for name, vm in found.items():
            gone = vm.task(state="absent", force=True, remove_disks=True)
            assert not gone["failed"], gone
            assert site.ssh(NODE, f"ls {SEED.format(name)}", check=False) == ""
        site.ssh(NODE, "rm", "-rf", BOOT)


def seen(vm: Equipped) -> list[str]:
    """Host name, machine-id, what it was told, its ssh host key, its addresses."""
    name, identity, told, key, *addresses = vm.guest(NODE, LOOK).splitlines()
    return [name, identity, told, " ".join(key.split()[:2]), *sorted(re.findall(r"inet6? (\S+)", " ".join(addresses)))]


def test_each_is_a_machine_of_its_own(guests: dict[str, Equipped]) -> None:
    looks = {name: seen(vm) for name, vm in guests.items()}
    for name, (host, identity, told, key, *addresses) in looks.items():
        assert (host, told, addresses) == (name, f"told to {name}", sorted(ADDRESSES[name])), looks
        assert re.fullmatch(r"[0-9a-f]{32}", identity) and key.startswith("ssh-ed25519 "), looks
    one, other = looks.values()
    assert one[1] != other[1] and one[3] != other[3], looks
    for vm in guests.values():
        assert vm.guest(NODE, "cloud-init status") == "status: done"
        assert int(vm.guest(NODE, "df --output=size -BM / | tail -1").rstrip("M")) > 8300
    # One reaches the other, which has IPv6 alone, and its ssh server answers with its own key.
    keys = guests["deb1"].guest(NODE, "ssh-keyscan -T 60 -t ed25519 fd00:100::62")
    assert other[3] in keys, keys


def test_what_it_was_told_is_taken_away_and_it_stays_what_it_is(guests: dict[str, Equipped]) -> None:
    name = "deb2"
    vm, cluster = guests[name], guests[name].cluster
    before = seen(vm)
    gone = {**sheet(name), "cloud_init": {**sheet(name)["cloud_init"], "remove": True}}
    done = vm.vm(state="running", **gone)
    assert done["actions"][-1] == f"delete {SEED.format(name)}" and done["pending_restart"] == [], done
    assert cluster.ssh(NODE, f"ls {SEED.format(name)}", check=False) == ""
    # A real system shuts down when it is asked, and comes back as it was without what it had been told.
    number = cluster.ssh(NODE, "virsh", "domid", name)
    restarted = vm.task(state="restarted", shutdown_timeout=300)
    assert restarted["actions"] == [f"shut {name} down", f"start {name}"], restarted
    assert cluster.ssh(NODE, "virsh", "domid", name) != number
    vm.wait_agent(NODE, seconds=BOOT_SECONDS)
    assert seen(vm) == before
