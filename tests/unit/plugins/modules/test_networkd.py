# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module networkd against a private systemd-networkd and the kernel's bridges."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.unit import networkd_server

pytestmark = pytest.mark.skipif(bool(networkd_server.missing()), reason=networkd_server.missing())
BRIDGE = {"name": "br100", "ports": [{"name": "nic1"}]}
GIVEN = {"name": "br100", "addresses": ["10.9.9.1/24"]}
SITE = {"bridges": [BRIDGE], "addresses": [GIVEN]}


@pytest.fixture
def machine():
    with networkd_server.private_networkd() as found:
        yield found


def good(result):
    assert not result.get("failed"), result
    return result


def test_a_bridge_with_a_port_and_an_address(machine):
    predicted = good(machine.module(_ansible_check_mode=True, **SITE))
    assert predicted["changed"] and machine.link("br100") is None
    made = good(machine.module(**SITE))
    assert made["actions"] == predicted["actions"] and made["diff"] == predicted["diff"]
    assert machine.ports("br100") == ["nic1"] and machine.addresses("br100") == ["10.9.9.1/24"]
    assert machine.link("br100")["operstate"] == "UP"
    again = good(machine.module(**SITE))
    assert not again["changed"] and again["resource"] == made["resource"]
