# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at work on a VM is asked before anything is done to it."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._domain import power
from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused

FACTS = {"name": "web1", "state": "running", "reason": "booted", "marker": None, "job": None}


def test_a_vm_at_rest_is_nobodys():
    power.guard(FACTS)


@pytest.mark.parametrize(
    "busy", [{"marker": {"from": "hv1", "to": "hv2"}}, {"job": {"type": "outgoing"}}, {"job": {"type": "other"}}]
)
def test_one_at_a_time(busy):
    with pytest.raises(Refused, match="another operation"):
        power.guard({**FACTS, **busy})
