# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several modules are tested against."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.tests.unit import ovs_server


@pytest.fixture(scope="module")
def server():
    """A private Open vSwitch for all tests of a file."""
    with ovs_server.private_switch() as running:
        yield running
