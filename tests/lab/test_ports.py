# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories about what a VM may do at its port: VLANs of the hosts, how fast it is, and which addresses it sends from."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.network import RUN_NETNS
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import Mover
from ansible_collections.drover.kvm.tests.lab.observer import in_namespace

MBIT = 1_000_000
OFFERED = 40 * MBIT  # bit/s that are sent to the VM: far more than it may get
SIZE = 1400  # bytes of data in a datagram
ETHERNET = 14  # bytes in front of each packet
SECONDS = 2.0  # of measuring
LIAR, OTHER = "52:54:00:de:ad:01", "10.231.100.99"


class Guest:
    """The VM of the stories, from outside: what is declared of it, and what comes and goes at the end of the wire.

    The lab's guest always speaks the truth. It lies when something else is declared of it than it does.
    """

    def __init__(self, mover: Mover) -> None:
        self.mover, self.name, self.node = mover, mover.vm, mover.source
        self.ip = str(mover.cluster.sheets()[mover.vm]["guest_address"]).partition("/")[0]

    def change(self, **nic: Any) -> dict[str, Any]:
        """Module vm on its node; a second run changes nothing, and nothing waits for a restart."""
        first, second = (self.set(**nic) for _run in range(2))
        assert not first.get("failed") and first["changed"] and first["pending_restart"] == [], first
        assert second["actions"] == [], second
        return first

    def set(self, **nic: Any) -> dict[str, Any]:
        """Module vm on its node, once."""
        return self.mover.end(self.mover.start(self.node, module="vm", name=self.name, nics=[nic]))

    def tap(self) -> str:
        """Its tap on the node where it is."""
        return self.mover.virsh(self.node, "domiflist", self.name).split()[0]

    def is_heard(self, seconds: float = 3) -> bool:
        """Whether a word of it arrives that it sends from now on."""
        try:
            # What is on its way already does not count.
            self.mover.watch.wait_word(self.name, after=time.monotonic() + 0.5, seconds=seconds)
        except AssertionError:
            return False
        return True

    def set_id(self, key: str, value: str) -> None:
        """Change an external id of its port by hand."""
        self.mover.cluster.ssh(self.node, f"ovs-vsctl set interface {self.tap()} 'external_ids:{key}=\"{value}\"'")

    def get_id(self, key: str) -> str:
        """An external id of its port; empty when there is none."""
        show = f"ovs-vsctl --if-exists get interface {self.tap()} external_ids:{key}"
        return self.mover.cluster.ssh(self.node, show).strip().strip('"')

    def moved(self, target: str) -> None:
        """Migrate it."""
        result = self.mover.migrate(self.node, name=self.name, to=target)
        assert result.get("verified"), result
        self.node = target


@pytest.fixture
def guest(mover: Mover) -> Iterator[Guest]:
    """The VM; at the end nothing is declared of its NIC beyond the inventory."""
    found = Guest(mover)
    yield found
    found.node = mover.home()
    result = found.set(bandwidth={}, ips=[], anti_spoof=True)
    assert not result.get("failed"), result
    assert found.is_heard(60)


def checksum(data: bytes) -> int:
    """The checksum of ICMP."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xFFFF)


class Pings(threading.Thread):
    """Echo requests for a guest from the other end of the wire, at the rate OFFERED; counts what comes back."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        with in_namespace(RUN_NETNS / guest.mover.cluster.lab.network.namespace("sink")):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.socket.setblocking(False)
        self.guest, self.end, self.answered = guest, threading.Event(), 0
        head, body = struct.pack("!BBHHH", 8, 0, 0, 0xD07E, 1), bytes(SIZE)
        self.frame = head[:2] + struct.pack("!H", checksum(head + body)) + head[4:] + body

    def run(self) -> None:
        """Send and listen until the end."""
        begin, sent = time.monotonic(), 0
        while not self.end.is_set():
            with suppress(BlockingIOError):
                while sent * 8 < OFFERED * (time.monotonic() - begin):
                    sent += self.socket.sendto(self.frame, (self.guest.ip, 0))
            with suppress(BlockingIOError):
                while data := self.socket.recv(65536):
                    self.answered += len(data) + ETHERNET if data[20:21] == b"\0" else 0
            time.sleep(0.001)
        self.socket.close()

    def __enter__(self) -> Pings:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.join()


def carried(guest: Guest) -> tuple[float, float]:
    """Mbit/s that reach the VM's tap, and that come back from the VM, while it is sent far more."""
    counter = ["cat", f"/sys/class/net/{guest.tap()}/statistics/tx_bytes"]
    with Pings(guest) as pings:
        time.sleep(1)  # what was saved up is gone
        begin, before, answered = time.monotonic(), int(guest.mover.inside(guest.node, *counter)), pings.answered
        time.sleep(SECONDS)
        bytes_in, bytes_out = int(guest.mover.inside(guest.node, *counter)) - before, pings.answered - answered
        seconds = time.monotonic() - begin
    return bytes_in * 8 / seconds / MBIT, bytes_out * 8 / seconds / MBIT


def limits(inbound: str, outbound: str) -> dict[str, Any]:
    """Limits both ways."""
    return {"inbound": {"average": inbound, "burst": "64KiB"}, "outbound": {"average": outbound, "burst": "64KiB"}}


def holds(guest: Guest, inbound: int, outbound: int) -> None:
    """Both limits (Mbit/s) hold each time, and one time of three they are used, as far as a busy machine gets there.

    An emulated guest answers in bursts, and then less than it may.
    """
    seen = []
    for _time in range(3):
        into, out = carried(guest)
        assert into <= 1.2 * inbound and out <= 1.2 * outbound, (
            f"{into:.2f} of {inbound} in, {out:.2f} of {outbound} out"
        )
        if into >= 0.8 * inbound and out >= 0.2 * outbound:
            return
        seen.append((into, out))
    raise AssertionError(f"never {inbound} in and {outbound} out, but {seen}")


def test_limits_and_address_checks_change_live_and_move_along(guest: Guest) -> None:
    free = carried(guest)
    # The limits of a real site are above what an emulated network carries on a machine that is busy with other things.
    rate = 10 if min(free[0], 10 * free[1]) > 24 else 2
    assert free[0] > 2.4 * rate and free[1] > 2.4, f"not exercised: {free} Mbit/s in and out without a limit"
    guest.change(bandwidth=limits(f"{rate}Mbit/s", "2Mbit/s"), ips=[guest.ip])
    holds(guest, rate, 2)
    mac = guest.get_id("attached-mac")
    guest.set_id("attached-mac", LIAR)
    assert not guest.is_heard(), "with another MAC address than libvirt's"
    guest.set_id("attached-mac", mac)
    assert guest.is_heard(60)
    guest.set(bandwidth=limits(f"{2 * rate}Mbit/s", "1Mbit/s"))
    holds(guest, 2 * rate, 1)
    guest.set(ips=[OTHER])
    assert not guest.is_heard(), "with another IP address than declared"
    guest.moved(guest.mover.target)
    # libvirt's hook wrote it there before the VM came.
    assert guest.get_id("drover-port") == OTHER
    assert not guest.is_heard(), "with another IP address after the migration"
    guest.set(ips=[OTHER, guest.ip])
    assert guest.is_heard(60)
    holds(guest, 2 * rate, 1)


def test_flows_that_somebody_deleted_come_back_with_the_service(guest: Guest) -> None:
    cluster, node = guest.mover.cluster, guest.node
    tap = guest.tap()
    flow = f"ovs-ofctl -OOpenFlow14 --names dump-flows br0 cookie=0xd07e000000000001/-1 | grep -c in_port={tap}"
    many = int(cluster.ssh(node, flow))
    assert many > 15
    cluster.ssh(node, "systemctl kill -s KILL drover-port-guard; ovs-ofctl del-flows br0 cookie=0xd07e000000000001/-1")
    wait_until(lambda: cluster.ssh(node, flow, check=False).strip() == str(many), 60, "the flows")


def test_vlans_of_the_hosts_are_refused_before_anything_is_made(cluster: Cluster) -> None:
    before = cluster.where()
    nics = [{"bridge": "br0", "vlan": 5}]
    words = "nics[0] of web1 on br0 asks for VLAN 5, which belongs to the hosts (they keep 5, 6)"
    cluster.play("build_vms", vms="web1", vm_nics=nics).refused(words, "open_vswitch_reserved_vlans")
    assert cluster.where() == before
