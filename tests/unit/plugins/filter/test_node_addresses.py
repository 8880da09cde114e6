# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of a cluster, as the role takes them from variables."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.filter.node_addresses import node_addresses

MIGRATION, MANAGEMENT = "hypervisor_migration_address", "hypervisor_management_address"


def test_each_address_is_named_once_whatever_the_order():
    nodes = [
        {"inventory_hostname": "hv4", "ansible_host": "192.0.2.4", MANAGEMENT: "fd00::4"},
        {"inventory_hostname": "hv1", "ansible_host": "192.0.2.1", MIGRATION: "198.51.100.1"},
        {"inventory_hostname": "hv2.example.org"},
        {"inventory_hostname": "hv3", "ansible_host": "192.0.2.1"},
    ]
    found = ["192.0.2.1", "198.51.100.1", "fd00::4", "hv2.example.org"]
    assert node_addresses(nodes) == node_addresses(reversed(nodes)) == found
