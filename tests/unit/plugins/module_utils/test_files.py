# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are replaced as a whole, also where there is no room for them."""

from __future__ import annotations

import resource

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._files import replace_file


@pytest.fixture
def full():
    """No file may become longer than four bytes: the kernel refuses the write, as it does on a full file system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, full):
    """F-17: /run, where the orders of migrations are written, is full."""
    path = tmp_path / "order.json"
    path.write_bytes(b"old")
    with pytest.raises(Failed, match="order.json could not be written: File too large"):
        replace_file(path, b"longer than there is room for")
    assert [one.name for one in tmp_path.iterdir()] == ["order.json"] and path.read_bytes() == b"old"


def test_a_file_is_readable_by_root_only(tmp_path):
    replace_file(tmp_path / "new", b"text")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
