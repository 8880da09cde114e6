# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bridges of module ovs_bridge do with frames: a real switch whose ports are read and fed by the tests."""

from __future__ import annotations

import json
import threading
import time

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _links, _ovs
from ansible_collections.drover.kvm.plugins.modules import ovs_bridge
from ansible_collections.drover.kvm.tests.unit import frames, ovs_server

pytestmark = [
    pytest.mark.skipif(bool(ovs_server.missing()), reason=f"not installed: {', '.join(ovs_server.missing())}"),
    pytest.mark.skipif(not _ovs.HAS_BINDINGS, reason="not installed: Python package ovs"),
]
TESTS = 0x88B5  # the type of frames for experiments


class Wires:
    """The ports of the switch as cables: `send` into one, `heard` at another."""

    def __init__(self, server, folder):
        self.server = server
        self.folder = folder
        self.number = 0

    def record(self, *ports):
        """Keep what leaves these ports from now on."""
        words = [
            word for port in ports for word in ("--", "set", "interface", port, f"options:tx_pcap={self._file(port)}")
        ]
        self.server.vsctl(*words[1:])

    def send(self, port, source=frames.MAC, vlan=None):
        """A broadcast into a port; what is to be looked for."""
        self.number += 1
        mark = b"frame" + self.number.to_bytes(8, "big")
        frame = frames.ether(TESTS, mark, source)
        self.server.appctl("netdev-dummy/receive", port, (frame if vlan is None else frames.tagged(vlan, frame)).hex())
        return mark

    def heard(self, port, mark):
        """Whether a frame left by this port; tagged frames have their mark four bytes later."""
        return any(mark in frame for frame in frames.recorded(self._file(port)))

    def arrives(self, port, mark):
        """Wait for a frame that must leave by this port."""
        end = time.monotonic() + 5
        while not self.heard(port, mark):
            assert time.monotonic() < end, f"{mark!r} did not leave by {port}"
            time.sleep(0.01)

    def _file(self, port):
        return self.folder / f"{port}.pcap"


@pytest.fixture
def wires(server, tmp_path, monkeypatch):
    """The private switch without bridges; the machine has all NICs that are named."""
    devices = tmp_path / "net"
    devices.mkdir()
    for name in ("up0", "up1", "vm1", "vm2", "vm3", "vm4"):
        (devices / name).touch()
    monkeypatch.setattr(_links, "DEVICES", devices)
    server.bare()
    return Wires(server, tmp_path)


@pytest.fixture
def bridge(server, capsys):
    """Declare a bridge; the result."""

    def run(name, *ports, **args):
        listed = [{"name": port, **settings} for port, settings in ports]
        with (
            patch_module_args({"name": name, "socket": server.socket, "ports": listed, **args}),
            pytest.raises(SystemExit),
        ):
            ovs_bridge.main()
        result = json.loads(capsys.readouterr().out)
        assert not result.get("failed"), result
        return result

    return run


VLAN20 = [("up0", {}), ("vm1", {"tag": 20}), ("vm2", {"tag": 20})]


def test_a_vlan_ends_where_it_ends(wires, bridge):
    bridge("br0", *VLAN20, ("vm3", {"tag": 30}))
    wires.record("up0", "vm2", "vm3")
    mark = wires.send("vm1")
    wires.arrives("vm2", mark)
    wires.arrives("up0", mark)
    assert not wires.heard("vm3", mark)
    # From the cable each VLAN reaches its own, and a tag within a VLAN opens no other.
    thirty = wires.send("up0", vlan=30)
    wires.arrives("vm3", thirty)
    assert not wires.heard("vm2", thirty)
    twice = wires.send("vm1", vlan=30)
    after = wires.send("vm1")
    wires.arrives("vm2", after)
    assert not any(wires.heard(port, twice) for port in ("up0", "vm2", "vm3"))


def test_a_vlan_more_costs_no_frame_of_the_others(wires, bridge):
    bridge("br0", *VLAN20)
    wires.record("vm2")
    marks, meanwhile, stop = [], 0, threading.Event()

    def speak():
        while not stop.is_set():
            marks.append(wires.send("vm1"))

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        end = time.monotonic() + 20
        # A change takes no longer than a few frames: as many changes as let some fall into them.
        while meanwhile < 5:
            assert time.monotonic() < end and speaker.is_alive(), f"not exercised: {meanwhile} frames during changes"
            more = [("vm3", {"tag": 30}), ("host30", {"type": "internal", "tag": 30})]
            for ports in (more, []):
                before = len(marks)
                assert bridge("br0", *VLAN20, *ports)["changed"]
                meanwhile += len(marks) - before
    finally:
        stop.set()
        speaker.join()
    wires.arrives("vm2", wires.send("vm1"))
    assert [mark for mark in marks if not wires.heard("vm2", mark)] == []


def test_a_switch_without_a_cable_keeps_to_itself(wires, bridge):
    bridge("br0", ("up0", {}), ("vm1", {}))
    bridge("br1", ("vm3", {}), ("vm4", {}))
    wires.record("up0", "vm1", "vm4")
    inside = wires.send("vm3")
    wires.arrives("vm4", inside)
    outside = wires.send("vm1")
    wires.arrives("up0", outside)
    assert not any(wires.heard(port, inside) for port in ("up0", "vm1")) and not wires.heard("vm4", outside)


def test_two_senders_use_both_members_of_a_bond(wires, bridge):
    bond = {"name": "bond0", "members": ["up0", "up1"], "mode": "balance-slb"}
    bridge("br0", ("vm1", {"tag": 20}), bonds=[bond])
    wires.record("up0", "up1")
    used = set()
    for number in range(16):
        mark = wires.send("vm1", source=f"52:54:00:00:01:{number:02x}")
        end = time.monotonic() + 5
        while not (leaves := {port for port in ("up0", "up1") if wires.heard(port, mark)}):
            assert time.monotonic() < end, f"{mark!r} left by no member"
            time.sleep(0.01)
        assert len(leaves) == 1, "a frame left twice"
        used |= leaves
    assert used == {"up0", "up1"}
