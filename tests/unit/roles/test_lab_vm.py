# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of nodes that are VMs, and the lines into one against a stand-in for QEMU and its agent."""

from __future__ import annotations

import base64
import io
import json
import socket
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab import (
    identity,
    topology,
    vm_channels,
    vm_hardware,
    vm_wire,
)
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.run import LabError

ROOT = Path(__file__).resolve().parents[3]
DEFAULT = (ROOT / "roles/lab/files/topology.json").read_text(encoding="utf-8")
EXAMPLE = json.loads((ROOT / "tests/soak/vm_topology.json").read_text(encoding="utf-8"))


def parsed(**changes: Any) -> topology.Topology:
    data = json.loads(json.dumps(EXAMPLE))
    data["nodes"]["vm1"].update(changes)
    return topology.parse(json.dumps(data), DEFAULT)


def words_after(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def test_a_node_is_a_container_unless_it_says_so() -> None:
    made = parsed()
    assert {name: node.kind for name, node in made.nodes.items()} == {"vm1": "vm", "vm2": "vm", "box1": "container"}
    assert [(node.memory, node.disks) for node in made.nodes.values()] == [("1G", ("64M",)), ("1G", ()), ("512M", ())]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "cloud"}, "kind 'cloud' is none of container, vm"),
        ({"memory": "lots"}, "size 'lots'"),
        ({"memory": 512}, "size 512"),
        ({"disks": ["0G"]}, "size '0G'"),
        ({"vcpus": 0}, "vcpus 0"),
        ({"number": 70000}, "number 70000"),
    ],
)
def test_a_vm_that_cannot_be_built_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(topology.TopologyError, match=f"node vm1: {text}"):
        parsed(**changes)


def test_hardware_addresses_do_not_depend_on_the_order_of_the_nics() -> None:
    first = parsed().node("vm1")
    again = parsed(nics=dict(reversed(EXAMPLE["nodes"]["vm1"]["nics"].items()))).node("vm1")
    addresses = {nic.name: vm_hardware.mac(first, nic) for nic in first.nics}
    assert addresses == {nic.name: vm_hardware.mac(again, nic) for nic in again.nics}
    assert len(set(addresses.values())) == 4
    assert addresses["fibre0"] == "52:54:00:00:0b:00"
    assert addresses["fibre0"] not in [vm_hardware.mac(parsed().node("vm2"), nic) for nic in parsed().node("vm2").nics]


def test_a_nic_has_the_topologys_name_mtu_and_a_speed() -> None:
    node = parsed().node("vm1")
    nic = next(nic for nic in node.nics if nic.name == "nic1")
    text = vm_hardware.link_file(node, nic)
    assert "PermanentMACAddress=52:54:00:00:0b:02\n" in text
    assert "Name=nic1\nMTUBytes=9000\n" in text
    device = next(device for device in vm_hardware.devices(node) if device["id"] == "nic1")
    assert (device["speed"], device["duplex"], device["mac"]) == (10000, "full", "52:54:00:00:0b:02")


def test_a_node_that_boots_has_its_devices_and_one_that_goes_on_gets_them_later() -> None:
    node = parsed().node("vm1")
    wires = {nic.name: number for number, nic in enumerate(node.nics, 7)}
    boots, goes_on = (vm_hardware.command(node, False, wires, saved) for saved in ("", "/image/state/memory"))
    plugged = [json.loads(word)["id"] for word in words_after(boots, "-device") if word.startswith("{")]
    assert plugged == ["disk1", "mgmt0", "nic1", "nic2", "fibre0"]
    assert not [word for word in words_after(goes_on, "-device") if word.startswith("{")]
    assert words_after(goes_on, "-incoming") == ["file:/image/state/memory"]
    assert words_after(boots, "-netdev") == words_after(goes_on, "-netdev")
    assert "tap,id=mgmt0-wire,fd=7" in words_after(boots, "-netdev")
    core = vm_hardware.core("1G", 1, False)
    assert boots[: len(core)] == goes_on[: len(core)] == core


def test_kvm_is_used_where_it_works() -> None:
    assert words_after(vm_hardware.core("1G", 2, True), "-accel") == ["kvm"]
    assert words_after(vm_hardware.core("1G", 2, False), "-cpu") == ["max,-la57"]


def test_every_cable_is_joined_both_ways() -> None:
    text = vm_wire.rules({"nic1": "tap0", "mgmt0": "tap1"})
    for source, target in (("nic1", "tap0"), ("tap0", "nic1"), ("mgmt0", "tap1"), ("tap1", "mgmt0")):
        assert f'hook ingress device "{source}" priority 0; fwd to "{target}";' in text


def test_an_identity_is_an_archive_with_modes() -> None:
    made = identity.tar([identity.Entry("root/.ssh", 0o700), identity.Entry("etc/key", 0o600, b"secret")])
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        assert [(entry.name, entry.mode, entry.isdir()) for entry in archive] == [
            ("root/.ssh", 0o700, True),
            ("etc/key", 0o600, False),
        ]
    assert identity.machine_id() != identity.machine_id()
    assert len(identity.machine_id()) == 33


Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


def serve(path: Path, answer: Answer, greeting: bytes = b"") -> threading.Thread:
    """One conversation on a socket: what `answer` makes of each command is said line by line."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()

    def talk() -> None:
        connection = server.accept()[0]
        with server, connection, connection.makefile("rwb") as lines:
            lines.write(greeting)
            lines.flush()
            for line in lines:
                for said in answer(json.loads(line.lstrip(b"\xff"))):
                    lines.write(json.dumps(said).encode() + b"\n")
                lines.flush()

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


def test_the_monitor_passes_over_events_and_names_errors(tmp_path: Path) -> None:
    def answer(said: dict[str, Any]) -> list[dict[str, Any]]:
        if said["execute"] == "cont":
            return [{"event": "RESUME"}, {"return": {"done": True}}]
        return [{"return": {}}] if said["execute"] == "qmp_capabilities" else [{"error": {"desc": "no such device"}}]

    thread = serve(tmp_path / "qmp", answer, b'{"QMP": {}}\n')
    with vm_channels.monitor(tmp_path / "qmp") as channel:
        assert channel.ask("cont") == {"done": True}
        with pytest.raises(LabError, match="device_add: no such device"):
            channel.ask("device_add", {"id": "nic9"})
    thread.join()


@pytest.mark.parametrize(("status", "said"), [(0, ""), (9, "exit status 9: broken")])
def test_the_agent_runs_a_script_and_hands_over_what_it_said(tmp_path: Path, status: int, said: str) -> None:
    asked: list[dict[str, Any]] = []

    def answer(said: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(said)
        if said["execute"] == "guest-sync-delimited":
            return [{"return": said["arguments"]["id"]}]
        if said["execute"] == "guest-exec":
            return [{"return": {"pid": 5}}]
        if len(asked) < 5:
            return [{"return": {"exited": False}}]
        streams = {"out-data": base64.b64encode(b"hi").decode(), "err-data": base64.b64encode(b"broken").decode()}
        return [{"return": {"exited": True, "exitcode": status, **streams}}]

    thread = serve(tmp_path / "agent", answer, b'{"return": 1}\n')
    if said:
        with pytest.raises(LabError, match=said):
            vm_channels.execute(tmp_path / "agent", "false", feed=b"x")
    else:
        assert vm_channels.execute(tmp_path / "agent", 'echo "$1"', "hi", feed=b"x") == "hi"
    thread.join()
    assert asked[1]["arguments"]["arg"][:2] == ["-ec", asked[1]["arguments"]["arg"][1]]
    assert base64.b64decode(asked[1]["arguments"]["input-data"]) == b"x"


def test_a_line_that_nobody_answers_is_no_endless_wait(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="No such file"):
        vm_channels.Channel(tmp_path / "none", 1)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with server:
        server.bind(str(tmp_path / "mute"))
        server.listen()
        with pytest.raises(LabError, match="no answer in time"):
            vm_channels.execute(tmp_path / "mute", "true", seconds=0.2)
