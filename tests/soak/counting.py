# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that count on their disks: a small Linux in a file, and one of one sector on a device of a VM node."""

from __future__ import annotations

import base64
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster, wait_until

WRITE = "base64 -d > /run/sector && dd if=/run/sector of={} oflag=direct bs=512 status=none"
# The counter of the boot sector: sector 16 holds DRVT and 32 bits.
COUNT = "dd if={} iflag=direct bs=512 skip=16 count=1 status=none | od -An -tx4 -N8"


def build_guest(site: Cluster, node: str, name: str, ip: str, disk: str) -> None:
    """A VM on a node that is a container, which runs with the small Linux on `disk`, a qcow2 file that is made."""
    guests, image = Guests(site.lab.base), f"{disk}.raw"
    guests.ensure()
    guests.write_image(site.lab.machine(node).path(image), {"name": name, "ip": ip, "sink": SINK})
    site.ssh(node, f"qemu-img convert -f raw -O qcow2 {image} {disk} && rm {image}", timeout=300)
    drive = {"type": "file", "target": "vda", "format": "qcow2", "path": disk}
    sheet: dict[str, Any] = {"memory": "96MiB", "vcpus": 1, "nics": [{"bridge": "br0", "vlan": 100}], "disks": [drive]}
    built = site.task(node, "vm", name=name, state="running", **sheet)
    assert not built["failed"], built


def write_guest(nodes: Cluster, node: str, device: str) -> None:
    """Put the guest on a device."""
    guests = Guests(nodes.lab.base)
    guests.ensure()
    sector = base64.b64encode(guests.boot_sector.read_bytes().ljust(17 * 512, b"\0")).decode()
    nodes.ssh(node, WRITE.format(device), stdin=sector, timeout=120)


def counter(nodes: Cluster, node: str, device: str) -> int:
    """How far the guest has counted, from its disk; -1 before its first word."""
    words = nodes.ssh(node, COUNT.format(device), timeout=120).split()
    return int(words[1], 16) if words[0] == "54565244" else -1


def counts(nodes: Cluster, node: str, device: str, beyond: int = -1) -> int:
    """The counter, once it is beyond a number and goes on."""
    seen: list[int] = []

    def goes_on() -> bool | str:
        seen.append(counter(nodes, node, device))
        return (seen[-1] > max(beyond, seen[0])) or str(seen)

    wait_until(goes_on, 120, f"the guest on {node} counts")
    return seen[-1]
