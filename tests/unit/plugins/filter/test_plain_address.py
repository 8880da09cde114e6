# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An address has one form, however it is written."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.filter.plain_address import plain_address


@pytest.mark.parametrize(
    "text, plain",
    [
        ("10.231.5.11", "10.231.5.11"),
        ("10.231.5.11/24", "10.231.5.11/24"),
        ("10.231.5.11/255.255.255.0", "10.231.5.11/24"),
        ("FD00:5:0:0::0011", "fd00:5::11"),
        ("fd00:5:0:0::11/64", "fd00:5::11/64"),
        ("FD00:5::0011/64", "fd00:5::11/64"),
        ("::FFFF:10.231.5.11/96", plain_address("::ffff:ae7:50b/96")),
        # A name, a wrong address, none.
        ("San1", "San1"),
        ("10.231.5.300/24", "10.231.5.300/24"),
        ("fd00:5::11/129", "fd00:5::11/129"),
        ("", ""),
    ],
)
def test_each_has_one_form(text, plain):
    assert plain_address(text) == plain
