# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several modules are tested against."""

from __future__ import annotations

import pytest
from ansible.module_utils.common import warnings

from ansible_collections.drover.kvm.tests.unit import ovs_server


@pytest.fixture(autouse=True)
def no_old_warnings(monkeypatch):
    """A result has its own warnings only: Ansible gathers them per process, and a node has one for each module."""
    monkeypatch.setattr(warnings, "_global_warnings", {})


@pytest.fixture(scope="module")
def server():
    """A private Open vSwitch for all tests of a file."""
    with ovs_server.private_switch() as running:
        yield running
