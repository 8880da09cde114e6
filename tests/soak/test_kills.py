# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots and backups that are killed at the first and the third moment of each act, and at twenty by chance.

tests/lab has the second. Each by chance is a seed: `-k 'test_kills and (seed07 or seed08)'` runs two of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.kills import ACTS, kill_at, kill_each, victim
from ansible_collections.drover.kvm.tests.lab.vm import Vm

SEEDS = 20


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Iterator[Vm]:
    with victim(lab) as found:
        yield found


@pytest.fixture(scope="module")
def lives(vm: Vm) -> dict[str, float]:
    """The seconds that each act took last when nobody killed it."""
    return {act: fate.seconds for act, fate in kill_each(vm, lambda _act: "false", 0).items()}


@pytest.mark.parametrize("which", [0, 2])
def test_an_act_that_is_killed_is_finished_by_the_next_run(vm: Vm, which: int) -> None:
    kill_at(vm, which)


@pytest.mark.parametrize("seed", range(1, SEEDS + 1), ids=lambda seed: f"seed{seed:02}")
def test_an_act_that_is_killed_at_any_moment_is_finished_by_the_next_run(
    vm: Vm, lives: dict[str, float], seed: int
) -> None:
    dice = random.Random(seed)
    moments = {act: dice.random() * lives[act] for act in ACTS}
    fates = kill_each(vm, lambda act: f"sleep {moments[act]:.3f}", seed)
    print(", ".join(f"{act} {fate.seconds:.2f} s of {lives[act]:.2f}" for act, fate in fates.items()))
    # One that was quicker this time was not killed.
    lives.update({act: fate.seconds for act, fate in fates.items() if not fate.killed})
    assert sum(fate.killed for fate in fates.values()) >= 3, fates
