# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role hypervisor installs for the pools, and which of them come after the roles that make their secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.tests.unit.role_variables import role_variable

VARIABLES = Path(__file__).resolve().parents[3] / "roles/hypervisor/vars"
POOLS: list[dict[str, Any]] = [
    {"name": "default", "type": "dir", "path": "/srv/a"},
    {"name": "plain", "path": "/srv/b"},
    {"name": "media", "type": "netfs", "source": "/export"},
    {"name": "ceph-vms", "type": "rbd", "source": "vms"},
]


def test_only_the_drivers_of_the_pools_are_installed() -> None:
    packages = {"rbd": ["driver-rbd"], "iscsi-direct": ["driver-iscsi"], "netfs": ["nfs"]}
    known = {"hypervisor_driver_packages": packages}
    found = role_variable(VARIABLES / "main.yml", "hypervisor_drivers", hypervisor_pools=POOLS, **known)
    assert found == ["driver-rbd", "nfs"]
    assert role_variable(VARIABLES / "main.yml", "hypervisor_drivers", hypervisor_pools=POOLS[:2], **known) == []


def test_pools_with_the_secret_of_another_role_come_after_it() -> None:
    assert role_variable(VARIABLES / "main.yml", "hypervisor_pools_late", hypervisor_pools=POOLS) == POOLS[3:]


@pytest.mark.parametrize("system", ["debian", "ubuntu", "redhat"])
def test_each_system_has_a_driver_for_all_types_that_need_one(system: str) -> None:
    packages = yaml.safe_load((VARIABLES / f"{system}.yml").read_text(encoding="utf-8"))["hypervisor_driver_packages"]
    assert set(packages) == {"iscsi-direct", "logical", "netfs", "rbd"}
