# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories about what a VM may do at its port: VLANs of the hosts, how fast it is, and which addresses it sends from."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.network import RUN_NETNS
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import Mover
from ansible_collections.drover.kvm.tests.lab.observer import in_namespace

MBIT = 1_000_000
OFFERED = 40 * MBIT  # bit/s that are sent to the VM: far more than it may get
SIZE = 1400  # bytes of data in a datagram
PORT = 9009
SECONDS = 3.0  # of measuring
LIAR, OTHER = "52:54:00:de:ad:01", "10.231.100.99/24"


class Guest:
    """The VM of the stories: from inside by its agent, and from the other end of the wire."""

    def __init__(self, mover: Mover) -> None:
        self.mover, self.name, self.node = mover, mover.vm, mover.source
        self.address = str(mover.cluster.sheets()[mover.vm]["guest_address"])

    def ask(self, **question: Any) -> Any:
        """What the guest's agent answers."""
        return json.loads(self.mover.virsh(self.node, "qemu-agent-command", self.name, json.dumps(question)))["return"]

    def run(self, script: str) -> None:
        """Begin a script in the guest."""
        argument = {"path": "/bin/sh", "arg": ["-c", script]}
        assert self.ask(execute="guest-exec", arguments=argument)["pid"]

    def change(self, **nic: Any) -> dict[str, Any]:
        """Module vm on its node; a second run changes nothing, and nothing waits for a restart."""
        first, second = (self._vm(nic) for _run in range(2))
        assert not first.get("failed") and first["changed"] and first["pending_restart"] == [], first
        assert second["actions"] == [], second
        return first

    def _vm(self, nic: dict[str, Any]) -> dict[str, Any]:
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

    def set_address(self, mac: str = "", address: str = "") -> None:
        """Give its NIC another MAC address and, which the first takes away, an IP address."""
        change = [f"ip link set eth0 address {mac}", "ip link set eth0 up"] if mac else []
        words = ["ip link set eth0 down", *change] if mac else ["ip addr flush dev eth0"]
        self.run("; ".join([*words, f"ip addr add {address or self.address} dev eth0"]))

    def moved(self, target: str) -> None:
        """Migrate it."""
        result = self.mover.migrate(self.node, name=self.name, to=target)
        assert result.get("verified"), result
        self.node = target


@pytest.fixture
def guest(mover: Mover) -> Iterator[Guest]:
    """The VM; at the end it has no limits, its own addresses, and is not told which it may use."""
    found = Guest(mover)
    own = mover.cluster.ssh(found.node, "virsh", "domiflist", found.name).split()[-1]
    yield found
    found.node = mover.home()
    found.set_address(mac=own)
    found.run("ip addr show eth0")
    result = found._vm({"bandwidth": {}, "ips": [], "anti_spoof": True})
    assert not result.get("failed"), result


@contextmanager
def sent_to(cluster: Cluster, address: str) -> Iterator[None]:
    """Datagrams for a guest, at the rate OFFERED, from the other end of the wire."""
    with in_namespace(RUN_NETNS / cluster.lab.network.namespace("sink")):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end = threading.Event()

    def send() -> None:
        begin, sent = time.monotonic(), 0
        while not end.is_set():
            while sent * 8 < OFFERED * (time.monotonic() - begin):
                sent += sender.sendto(bytes(SIZE), (address, PORT))
            time.sleep(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        sender.close()


def received(guest: Guest) -> float:
    """Mbit/s that reach the VM's tap while it is offered far more."""
    counter = ["cat", f"/sys/class/net/{guest.tap()}/statistics/tx_bytes"]
    with sent_to(guest.mover.cluster, guest.address.partition("/")[0]):
        time.sleep(1)  # what was saved up is gone
        begin, before = time.monotonic(), int(guest.mover.inside(guest.node, *counter))
        time.sleep(SECONDS)
        after, end = int(guest.mover.inside(guest.node, *counter)), time.monotonic()
    return (after - before) * 8 / (end - begin) / MBIT


def sends(guest: Guest) -> float:
    """Mbit/s that arrive of what the VM sends as fast as it can."""
    with in_namespace(RUN_NETNS / guest.mover.cluster.lab.network.namespace("sink")):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("", PORT))
    sink.settimeout(5)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    guest.run(f"timeout 9 sh -c 'dd if=/dev/zero bs={SIZE} count=99999 2>/dev/null | nc -u 10.231.100.1 {PORT}'")
    sink.recv(65536)
    begin, count = time.monotonic() + 1, 0
    while (now := time.monotonic()) < begin + SECONDS:
        size = len(sink.recv(65536))
        count += size + 42 if now > begin else 0
    sink.close()
    return count * 8 / SECONDS / MBIT


def limit(rate: str) -> dict[str, Any]:
    """The same limit both ways."""
    return {"bandwidth": {way: {"average": rate, "burst": "64KiB"} for way in ("inbound", "outbound")}}


def test_a_limit_holds_changes_live_and_moves_along(guest: Guest) -> None:
    guest.change(**limit("10Mbit/s"))
    assert 8 <= received(guest) <= 12
    assert sends(guest) <= 12
    guest.change(**limit("20Mbit/s"))
    assert 16 <= received(guest) <= 24
    guest.moved(guest.mover.target)
    assert 16 <= received(guest) <= 24


def test_a_vm_that_lies_is_not_heard(guest: Guest) -> None:
    assert guest.is_heard()
    guest.set_address(mac=LIAR)
    assert not guest.is_heard(), "with another MAC address"
    guest.moved(guest.mover.target)
    assert not guest.is_heard(), "after the migration"
    guest.change(anti_spoof=False)
    assert guest.is_heard(10), "not exercised: it says nothing with that MAC address anyway"


def test_a_vm_uses_the_declared_addresses_only(guest: Guest) -> None:
    guest.change(ips=[guest.address.partition("/")[0]])
    assert guest.is_heard(10)
    guest.set_address(address=OTHER)
    assert not guest.is_heard(), "with another IP address"
    guest.moved(guest.mover.target)
    # libvirt's hook wrote it there before the VM came.
    said = guest.mover.cluster.ssh(guest.node, f"ovs-vsctl get interface {guest.tap()} external_ids:drover-port")
    assert said.strip().strip('"') == guest.address.partition("/")[0]
    assert not guest.is_heard(), "with another IP address after the migration"
    guest.change(ips=[])
    assert guest.is_heard(10), "not exercised: it says nothing with that address anyway"


def test_a_guard_that_was_killed_and_a_switch_that_was_restarted(guest: Guest) -> None:
    cluster, node = guest.mover.cluster, guest.node
    tap = guest.tap()
    flow = f"ovs-ofctl -OOpenFlow14 --names dump-flows br0 cookie=0xd07e000000000001/-1 | grep -c in_port={tap}"
    many = int(cluster.ssh(node, flow))
    assert many > 15
    cluster.ssh(node, "systemctl kill -s KILL drover-port-guard; ovs-ofctl del-flows br0 cookie=0xd07e000000000001/-1")
    wait_until(lambda: cluster.ssh(node, flow, check=False).strip() == str(many), 15, "the flows")


def test_vlans_of_the_hosts_are_refused_before_anything_is_made(cluster: Cluster) -> None:
    before = cluster.where()
    nics = [{"bridge": "br0", "vlan": 5}]
    words = "nics[0] of web1 on br0 asks for VLAN 5, which belongs to the hosts (they keep 5, 6)"
    cluster.play("build_vms", vms="web1", vm_nics=nics).refused(words, "open_vswitch_reserved_vlans")
    cluster.play("build_vms", vms="web1", vm_nics=[{"bridge": "br0", "trunks": [6, 100]}]).refused("asks for VLAN 6")
    assert cluster.where() == before
