# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What VMs must not share, over all nodes of a large site."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import (
    Survey,
    check_definition,
    check_elsewhere,
    check_start,
)
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._identity import vm_uuid

NODES, EACH = 10, 1000


class Domain(dict[str, Any]):
    """What is said of one domain; counts how often somebody looks at what it holds."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        Domain.looks += key == "claims"
        return super().__getitem__(key)


def held(number: int) -> set[tuple[str, str]]:
    """What VM number so-and-so holds."""
    mac = "52:54:01:" + ":".join(f"{number:06x}"[place : place + 2] for place in (0, 2, 4))
    return {
        ("UUID", vm_uuid(f"vm{number}")),
        ("MAC address", mac),
        ("IP address", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"),
        ("disk", f"file:/srv/vm{number}.raw"),
    }


@pytest.fixture
def site():
    """Ten thousand VMs; each third one is off, as templates are."""
    Domain.looks = 0

    def domain(number: int) -> Domain:
        claims = [list(claim) for claim in held(number)]
        return Domain(name=f"vm{number}", active=number % 3 != 0, claims=claims)

    return {f"hv{node}": Survey(domain(node * EACH + n) for n in range(EACH)) for node in range(NODES)}


def test_ten_thousand_vms_are_compared_with_one_another_in_one_look_at_each(site):
    start = time.process_time()
    for number in range(NODES * EACH):
        check_definition(f"vm{number}", held(number), site)
    took = time.process_time() - start
    assert Domain.looks == NODES * EACH
    assert took < 20, "one second does on a machine that has nothing else to do"


@pytest.mark.parametrize("kind", ["UUID", "MAC address", "IP address", "disk"])
@pytest.mark.parametrize("number", [9998, 9999])
def test_the_other_one_is_named_with_its_host_also_when_it_is_off(site, kind, number):
    claim = {one for one in held(number) if one[0] == kind}
    with pytest.raises(Refused, match=f"{kind} .* of new belongs to vm{number} on hv9"):
        check_definition("new", claim, site)
    if number % 3:
        with pytest.raises(Refused, match=f"belongs to vm{number} on hv9"):
            check_start("new", claim, site)
    else:
        check_start("new", claim, site)


def test_a_vm_that_is_planned_in_the_same_task_counts_too(site):
    check_definition("new", {("IP address", "192.0.2.1")}, site)
    site["hv0"].append({"name": "first", "active": False, "claims": [["IP address", "192.0.2.1"]]})
    with pytest.raises(Refused, match="belongs to first on hv0"):
        check_definition("new", {("IP address", "192.0.2.1")}, site)


def test_a_name_and_a_uuid_have_one_home(site):
    check_elsewhere("new", vm_uuid("new"), site)
    with pytest.raises(Refused, match="vm9999 is defined on hv9"):
        check_elsewhere("vm9999", vm_uuid("new"), site)
    with pytest.raises(Refused, match="UUID .* of new runs on hv9 as vm9998"):
        check_elsewhere("new", vm_uuid("vm9998"), site)
