# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Examples with all of their machines; tests/lab has the faults on fewer."""

from __future__ import annotations

from ansible_collections.drover.kvm.tests.lab.test_san_lacp import built


def test_a_san_with_pairs_of_cables() -> None:
    with built() as example:
        assert len(set(example.where().values())) > 1, example.where()
        assert example.play("site").good().changed == 0
        assert example.play("build_vms").good().changed == 0
