# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and backups that are killed in the middle of each act; at other moments in tests/soak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.kills import kill_at, victim
from ansible_collections.drover.kvm.tests.lab.vm import Vm


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Vm]:
    with victim(lab) as found:
        yield found


def test_an_act_that_is_killed_is_finished_by_the_next_run(vm: Vm) -> None:
    kill_at(vm, 1)
