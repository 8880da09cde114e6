# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab and the cluster of the stories (tests/lab), for what takes longer.

DROVER_CEPH_LAB=NAME     which lab the stories about Ceph have to themselves (default: drover-ceph)
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab
from ansible_collections.drover.kvm.tests.lab.conftest import (
    cluster,
    dice,
    lab,
    mover,
    pytest_generate_tests,
    pytest_runtest_makereport,
    shuffle,
    site,
    traveller,
)

__all__ = [
    "cluster",
    "dice",
    "lab",
    "mover",
    "pytest_generate_tests",
    "pytest_runtest_makereport",
    "site",
    "traveller",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of stories that run with several seeds."""
    shuffle(items)


@pytest.fixture(scope="session")
def quorum() -> Iterator[Cluster]:
    """The nodes of examples/ceph-quorum on a lab of its own: Ceph works, and nothing else is set up."""
    with example_lab(os.environ.get("DROVER_CEPH_LAB", "drover-ceph"), ROOT / "examples/ceph-quorum") as found:
        yield found
