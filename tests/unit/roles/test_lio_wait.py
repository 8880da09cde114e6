# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of role san_target that waits before LIO's volumes are restored."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles/san_target/files/drover-lio-wait"


def saved(path, addresses, devices):
    portals = [{"ip_address": address, "port": 3260} for address in addresses]
    stores = [{"dev": str(item)} for item in devices]
    path.write_text(json.dumps({"targets": [{"tpgs": [{"portals": portals}]}], "storage_objects": stores}))
    return path


def start(path, seconds):
    return subprocess.Popen([sys.executable, PROGRAM, path, str(seconds)], stderr=subprocess.PIPE, text=True)


def test_it_waits_for_a_device_that_comes_late(tmp_path):
    device = tmp_path / "lv1"
    waiting = start(saved(tmp_path / "saved", ["127.0.0.1", "[::1]"], [device]), 60)
    time.sleep(0.7)
    assert waiting.poll() is None
    device.touch()
    assert waiting.communicate(timeout=20) == (None, "") and waiting.returncode == 0


def test_what_does_not_come_is_named_and_the_rest_is_not_kept_waiting(tmp_path):
    waiting = start(saved(tmp_path / "saved", ["192.0.2.1"], [tmp_path / "gone"]), 0)
    _out, words = waiting.communicate(timeout=20)
    assert waiting.returncode == 0 and "192.0.2.1 is not there" in words and f"{tmp_path}/gone is not there" in words


@pytest.mark.parametrize("text", ["", "[]", '{"targets": 1}', None])
def test_a_file_that_cannot_be_read_is_left_to_the_service(tmp_path, text):
    path = tmp_path / "saved"
    if text is not None:
        path.write_text(text)
    waiting = start(path, 60)
    assert str(path) in waiting.communicate(timeout=20)[1] and waiting.returncode == 0
