# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbook site makes of bare servers."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.lab.checks import CHECKS
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_site_that_is_set_up(cluster: Cluster, check) -> None:
    check(cluster)
