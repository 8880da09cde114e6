# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role hypervisor makes of the variables of the nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.unit.role_variables import role_variable

VARIABLES = Path(__file__).resolve().parents[3] / "roles/hypervisor/vars/main.yml"


@pytest.mark.parametrize("no", [False, "false", "False", "no", 0])
def test_a_node_for_quorum_only_has_no_leases_in_any_kind_of_inventory(no: Any) -> None:
    """In an INI inventory each value of a group is a text."""
    said: dict[str, dict[str, Any]] = {"hv1": {}, "hv2": {"hypervisor_vm_capable": no}}
    said |= {"hv3": {"hypervisor_vm_capable": "true"}, "hv4": {"hypervisor_vm_capable": True}}
    hosts = {name: {**own, "inventory_hostname": name} for name, own in said.items()}
    known = {"hypervisor_group": "hypervisors", "groups": {"hypervisors": list(hosts)}, "hostvars": hosts}
    assert role_variable(VARIABLES, "hypervisor_lease_nodes", **known) == ["hv1", "hv3", "hv4"]


@pytest.mark.parametrize("address", ["FD00:5::0011", "fd00:5:0:0::11", "fd00:5::11"])
def test_addresses_stand_in_the_certificate_as_it_shows_them(address: str) -> None:
    known = {"inventory_hostname": "hv1", "ansible_facts": {"nodename": "hv1.example.org"}}
    addresses = {"hypervisor_management_address": "192.0.2.1", "hypervisor_migration_address": address}
    names = list(role_variable(VARIABLES, "hypervisor_names", **known, **addresses))
    assert names == ["hv1", "hv1.example.org", "192.0.2.1", "fd00:5::11"]
    found = role_variable(VARIABLES, "hypervisor_alt_names", hypervisor_names=names)
    assert found == ["DNS:hv1", "DNS:hv1.example.org", "IP:192.0.2.1", "IP:fd00:5::11"]


def test_one_address_in_two_forms_stands_there_once() -> None:
    known = {"inventory_hostname": "hv1", "ansible_facts": {"nodename": "hv1"}}
    addresses = {"hypervisor_management_address": "fd00::1", "hypervisor_migration_address": "FD00:0::1"}
    assert list(role_variable(VARIABLES, "hypervisor_names", **known, **addresses)) == ["hv1", "fd00::1"]
