# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The marks of the unit tests, for benchmarks too; here, as ansible-test has a configuration of its own."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest the mark `slow`."""
    words = "computes for seconds, runs playbooks or machines; make unit and make test run it, make check does not"
    config.addinivalue_line("markers", f"slow: {words}")
