# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease in a definition: one of ours, whatever else is there."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import leases
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse, text_of

UUID = "7d4da458-de51-4138-9921-aae15234a969"
PATH = f"/srv/shared/leases/{UUID}"


def lease(above: str, space: str, key: str) -> str:
    return f"<lease><lockspace>{space}</lockspace><key>{key}</key><target path='{above}'/></lease>"


OURS = lease("/srv/shared", "leases", UUID)
OLD = lease("/srv/old", "leases", UUID)
FOREIGN = lease("/srv/shared", "leases", "license-dongle")


@pytest.mark.parametrize(
    "before,path,after",
    [
        ("", PATH, OURS),
        (OURS, PATH, OURS),
        (OLD, PATH, OURS),
        (OURS + OLD, PATH, OURS),
        (FOREIGN, PATH, FOREIGN + OURS),
        (FOREIGN + OLD, PATH, FOREIGN + OURS),
        (FOREIGN + OURS, None, FOREIGN + OURS),
        ("", None, ""),
    ],
)
def test_a_vm_has_exactly_one_of_its_own(before, path, after):
    root = parse(f"<domain><uuid>{UUID}</uuid><devices>{before}<disk/></devices></domain>")
    leases.write(root, path)
    text = text_of(root)
    for one in (OURS, OLD, FOREIGN):
        assert text.count(one) == after.count(one)
    assert leases.read(root) == (PATH if OURS in after else None)
    leases.write(root, path)
    assert text_of(root) == text
