# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By which interfaces a machine is reached, from what `ip` prints."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _lifelines, _run

PRINTED = {
    "address": [
        {},
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "eth0", "addr_info": [{"local": "192.0.2.11"}, {"local": "fe80::1"}]},
        {"ifname": "mgmt0", "addr_info": [{"local": "10.0.1.11"}]},
        {"ifname": "nic1"},
    ],
    "-4": [{"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}, {"dst": "10.0.1.0/24", "dev": "mgmt0"}],
    "-6": [],
}


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (None, {"eth0": "the default route"}),
        ("10.0.1.11", {"eth0": "the default route", "mgmt0": "the connection of Ansible (10.0.1.11)"}),
        ("192.0.2.11", {"eth0": "the connection of Ansible (192.0.2.11)"}),
        ("10.0.1.1", {"eth0": "the default route"}),
    ],
)
def test_what_a_machine_hangs_on(monkeypatch, address, found):
    monkeypatch.setattr(_run, "run_json", lambda argv: PRINTED[argv[2]])
    monkeypatch.setattr(_lifelines, "came_in", lambda: address)
    assert _lifelines.read() == found
