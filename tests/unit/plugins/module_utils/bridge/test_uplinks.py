# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VLANs that leave a node, of a real Open vSwitch database and as the kernel's tool tells them."""

from __future__ import annotations

import json

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _ovs
from ansible_collections.drover.kvm.plugins.module_utils._bridge import uplinks
from ansible_collections.drover.kvm.tests.unit import ovs_server

VM = ("set", "interface", "vnet0", "external_ids:iface-id=x")


@pytest.fixture(scope="module")
def switch():
    if missing := ovs_server.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with ovs_server.private_switch() as running:
        yield running


@pytest.fixture
def ovs(switch, monkeypatch):
    """It, with a bridge that has a port of the host and one of a VM, which are no uplinks."""
    monkeypatch.setattr(_ovs, "SOCKET", switch.socket)
    host = ("--", "add-port", "br0", "storage0", "tag=9", "--", "set", "interface", "storage0", "type=internal")
    switch.vsctl("add-br", "br0", *host, "--", "add-port", "br0", "vnet0", "tag=200", "--", *VM)
    yield switch.vsctl
    switch.vsctl("del-br", "br0")


@pytest.mark.parametrize(
    "ports, expected",
    [
        ({"bond0": {"trunks": [5, 6, 100]}}, [5, 6, 100]),
        ({"bond0": {}}, None),
        ({"bond0": {"tag": 7}}, [7]),
        ({"bond0": {"trunks": [5, 6], "tag": 1, "vlan_mode": "native-untagged"}}, [1, 5, 6]),
        ({"bond0": {"tag": 1, "vlan_mode": "native-untagged"}}, None),
        ({"nic1": {"trunks": [5]}, "nic2": {"trunks": [6]}}, [5, 6]),
        ({"nic1": {"trunks": [5]}, "nic2": {}}, None),
        ({}, None),
    ],
)
def test_the_vlans_that_an_ovs_bridge_lets_out(ovs, ports, expected):
    for name, columns in ports.items():
        words = [f"{key}={str(value).strip('[]').replace(' ', '')}" for key, value in columns.items()]
        ovs("add-port", "br0", name, *words)
    assert uplinks.carried(()) == {"br0": expected}


def test_the_vlans_that_a_bridge_of_the_kernel_lets_out(monkeypatch, tmp_path):
    for name in ("eno1", "vnet0", "tap7"):
        (tmp_path / "br0" / "brif" / name).mkdir(parents=True)
        (tmp_path / name).mkdir()
    for name in ("vnet0", "tap7"):
        (tmp_path / name / "tun_flags").touch()
    monkeypatch.setattr(uplinks, "NETWORK", tmp_path)
    said = [
        {"ifname": "eno1", "vlans": [{"vlan": 1, "flags": ["PVID"]}, {"vlan": 10, "vlanEnd": 12}]},
        {"ifname": "vnet0", "vlans": [{"vlan": 200}]},
    ]
    monkeypatch.setattr(_ovs, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(uplinks, "run", lambda argv, timeout: json.dumps(said))
    assert uplinks.carried({"br0"}) == {"br0": [1, 10, 11, 12]}
    assert uplinks.carried(()) == {}
