# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Children that may hang leave what is their parent's alone."""

from __future__ import annotations

import gc
import os

from ansible_collections.drover.kvm.plugins.module_utils._run import bounded


def test_a_child_finalizes_nothing_of_its_parent(tmp_path):
    class Open:
        def __init__(self):
            self.itself = self

        def __del__(self):
            (tmp_path / "closed").write_text(str(os.getpid()))

    gc.collect()
    Open()
    assert bounded({"hv1": lambda: len([[i] for i in range(10**5)])}, 10) == {"hv1": 10**5}
    assert not (tmp_path / "closed").exists()
    gc.collect()
    assert (tmp_path / "closed").read_text() == str(os.getpid())
