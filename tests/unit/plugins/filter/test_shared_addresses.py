# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each node has addresses of its own."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.filter.shared_addresses import shared_addresses

MIGRATION, MANAGEMENT = "hypervisor_migration_address", "hypervisor_management_address"


def shared(**nodes):
    return shared_addresses([{"inventory_hostname": name, **variables} for name, variables in nodes.items()])


@pytest.mark.parametrize(
    "first, second",
    [
        ({}, {}),
        ({"ansible_host": "192.0.2.1"}, {"ansible_host": "192.0.2.2"}),
        ({MIGRATION: "192.0.2.1"}, {MIGRATION: "192.0.2.2"}),
        # One network for both.
        ({"ansible_host": "192.0.2.1", MIGRATION: "192.0.2.1"}, {"ansible_host": "192.0.2.2"}),
        # Ansible goes through one machine, the peers do not.
        ({"ansible_host": "jump", MANAGEMENT: "192.0.2.1"}, {"ansible_host": "jump", MANAGEMENT: "192.0.2.2"}),
    ],
)
def test_nothing_is_shared(first, second):
    assert shared(hv1=first, hv2=second) == []


@pytest.mark.parametrize(
    "first, second, of",
    [
        ({MIGRATION: "192.0.2.1"}, {MIGRATION: "192.0.2.1"}, ("migration", "migration")),
        ({MIGRATION: "fd00::1"}, {MIGRATION: "fd00:0::0:1"}, ("migration", "migration")),
        ({"ansible_host": "192.0.2.1"}, {"ansible_host": "192.0.2.1"}, ("management", "management")),
        ({"ansible_host": "192.0.2.1"}, {MIGRATION: "192.0.2.1"}, ("management", "migration")),
        ({MANAGEMENT: "192.0.2.1"}, {"ansible_host": "192.0.2.1"}, ("management", "management")),
    ],
)
def test_both_nodes_are_named(first, second, of):
    (found,) = shared(hv1=first, hv2=second, hv3={})
    assert found.endswith(f" is the address of hv1 (hypervisor_{of[0]}_address) and hv2 (hypervisor_{of[1]}_address)")
