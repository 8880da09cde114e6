# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Debian with cloud-init and IPv6 only: set up by its seed, reached by ssh, its seed taken out by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import run
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.soak.cloud_guest import CloudGuest

NODE, NAME = "hv1", "cloud1"
IMAGE = f"/var/lib/libvirt/images/{NAME}.raw"
SEED = f"/var/lib/libvirt/images/drover-{NAME}-seed.iso"
ADDRESS, ROUTER = "fd00:100::21", "fd00:100::1"
CANARY = "corr3ct-h0rse"
BRIDGE = f"""ip link add br-guests type bridge && ip link set br-guests up
ip address add {ROUTER}/64 dev br-guests nodad"""
KEY = "rm -f /root/guest /root/guest.pub && ssh-keygen -q -t ed25519 -N '' -f /root/guest && cat /root/guest.pub"
# The host key is one of this guest's own making, at its first boot.
SSH = f"ssh -i /root/guest -o StrictHostKeyChecking=accept-new -o ConnectTimeout=20 root@{ADDRESS}"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
BOOT_SECONDS = 1500  # under emulation, on a machine with other things to do


class Guest:
    """The VM, from its node."""

    def __init__(self, lab: Lab) -> None:
        self.cluster = Cluster(lab)
        self.key = self.ssh(KEY).strip()

    def ssh(self, command: str, check: bool = True) -> str:
        """Run it on the node."""
        return self.cluster.ssh(NODE, command, check=check, timeout=120)

    def run(self, command: str) -> str:
        """Run it in the guest."""
        return self.ssh(f"{SSH} {command!r}").strip()

    def vm(self, **options: Any) -> dict[str, Any]:
        """Module vm."""
        disk = {"type": "file", "format": "raw", "path": IMAGE}
        nic = {"bridge": "br-guests", "addresses": [f"{ADDRESS}/64"], "gateway": [ROUTER], "nameservers": [ROUTER]}
        files = f"write_files: [{{path: /root/told, content: {CANARY}}}]"
        data = f"#cloud-config\nssh_authorized_keys: ['{self.key}']\n{files}\n"
        seed = {"user_data": data, "eject": True, "eject_timeout": 60}
        sheet = {"memory": "512MiB", "vcpus": 1, "disks": [disk], "nics": [nic], "cloud_init": seed}
        return self.cluster.task(NODE, "vm", name=NAME, **{"state": "running", **sheet, **options})

    def opened_the_tray(self) -> bool | str:
        """Whether it is done with its first boot, as libvirt says."""
        return "tray='open'" in self.ssh(f"virsh dumpxml {NAME}") or "it is closed"

    def reached(self) -> bool | str:
        """Whether it answers to ping."""
        text = self.ssh(f"ping -c 1 -W 2 {ADDRESS}", check=False)
        return " 0% packet loss" in text or text


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    disk = CloudGuest(lab.base).ensure()
    run(["cp", "--sparse=always", str(disk), str(lab.machine(NODE).path(IMAGE))], timeout=300)
    lab.ssh(NODE, BRIDGE)
    yield Guest(lab)
    found = Cluster(lab).task(NODE, "vm", name=NAME, state="absent", force=True)
    lab.ssh(NODE, f"ip link del br-guests; rm -f {IMAGE} /root/guest*")
    assert not found["failed"] and lab.ssh(NODE, f"ls {SEED}", check=False) == ""


def test_a_guest_with_ipv6_only_is_set_up_by_its_seed(guest: Guest) -> None:
    begin = time.monotonic()
    made = guest.vm(state="present")
    assert not made["failed"] and made["vm"]["seed"]["medium"] == SEED, made
    # The module would wait as long; a task of the stories must not.
    guest.ssh(f"virsh start {NAME}")
    wait_until(guest.opened_the_tray, BOOT_SECONDS, "the guest opens the tray")
    print(f"first boot: {time.monotonic() - begin:.0f} s")
    made = guest.vm()
    assert made["actions"] == [f"wait until cloud-init is done in {NAME}", f"take the seed out of {NAME} and delete it"]
    assert guest.ssh(f"ls {SEED}", check=False) == "" and made["vm"]["seed"]["medium"] is None
    assert made["pending_restart"] == [] and CANARY not in str(made)
    wait_until(guest.reached, 60, "the guest answers to ping")
    assert guest.run("hostname; cat /root/told").split() == [NAME, CANARY]
    shown = guest.run("ip -o address show scope global; ip -6 route show default; cloud-init status")
    assert f"{ADDRESS}/64" in shown and f"via {ROUTER}" in shown and " inet " not in shown and "done" in shown
    again = guest.vm()
    assert again["changed"] is False and again["actions"] == [], again
    # Without the seed, it is still what it was told to be.
    boot = guest.run(BOOT_ID)
    guest.ssh(f"{SSH} reboot", check=False)
    wait_until(lambda: guest.ssh(f"{SSH} {BOOT_ID}", check=False).strip() not in ("", boot), 900, "it is up again")
    assert guest.run("hostname") == NAME
