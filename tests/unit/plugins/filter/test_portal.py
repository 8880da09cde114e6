# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters portal and in_network."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.filter.in_network import in_network
from ansible_collections.drover.kvm.plugins.filter.portal import portal


@pytest.mark.parametrize(
    "text,address,port,shown",
    [
        ("10.231.5.10:3260", "10.231.5.10", 3260, "10.231.5.10:3260"),
        ("10.231.5.10", "10.231.5.10", 3260, "10.231.5.10:3260"),
        ("[fd00:5::10]:860", "fd00:5::10", 860, "[fd00:5::10]:860"),
        ("[FD00:5::0:10]", "fd00:5::10", 3260, "[fd00:5::10]:3260"),
    ],
)
def test_portals(text, address, port, shown):
    assert portal(text) == {"address": address, "port": port, "text": shown}


@pytest.mark.parametrize(
    "text",
    ["san1:3260", "10.231.5.300", "10.231.5.10:", "10.231.5.10:70000", "fd00::1", "[10.0.0.1]:1", "", None, 3260],
)
def test_what_is_no_portal_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"such as 10.231.5.10:3260"):
        portal(text)


def test_networks():
    assert in_network("10.231.5.10", "10.231.5.0/24")
    assert in_network(portal("10.231.5.10:3260"), "10.231.5.0/24")
    assert not in_network("10.231.6.10", "10.231.5.0/24")
    assert not in_network("fd00::1", "10.231.5.0/24")
    for address, network in (("x", "10.0.0.0/8"), ("10.231.5.10", "10.231.5.1/24"), ("10.231.5.10", "")):
        with pytest.raises(ValueError, match="10"):
            in_network(address, network)
