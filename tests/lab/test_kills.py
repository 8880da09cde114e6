# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and backups that are killed at three moments of each act; at twenty more in tests/soak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.kills import MOMENTS, kill_each, victim
from ansible_collections.drover.kvm.tests.lab.vm import Vm


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Vm]:
    with victim(lab) as found:
        yield found


@pytest.mark.parametrize("moment", range(3))
def test_an_act_that_is_killed_is_finished_by_the_next_run(vm: Vm, moment: int) -> None:
    fates = kill_each(vm, lambda act: MOMENTS[act][moment], moment)
    assert not [f"{act} was not exercised: {fate.output}" for act, fate in fates.items() if not fate.killed]
