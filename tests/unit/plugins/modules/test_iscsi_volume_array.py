# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The back end that docs/storage.md gives as an example works with the module as it is."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.modules import iscsi_volume

PAGE = Path(__file__).resolve().parents[4] / "docs/storage.md"
PREFIX = "iqn.2026-11.test.drover"


@pytest.fixture
def array(monkeypatch, capsys, tmp_path):
    """The module on the example's array, in the place of tgt."""
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names = {"hashlib": hashlib, "contextmanager": contextmanager, "Invalid": Invalid, "Refused": Refused}
    (tmp_path / "example.py").write_text(example)
    names = runpy.run_path(str(tmp_path / "example.py"), names)
    monkeypatch.setitem(iscsi_volume.BACKENDS, "tgt", (names["Array"], names["ArrayVolume"]))

    def call(check=False, **args):
        with patch_module_args({"iqn_prefix": PREFIX, "_ansible_check_mode": check, **args}), pytest.raises(SystemExit):
            iscsi_volume.main()
        return json.loads(capsys.readouterr().out)

    call.volumes = names["Array"].volumes
    return call


def test_the_example_back_end_makes_grows_and_removes(array):
    args = {"name": "a", "size": "8MiB", "chap_user": "", "initiators": [f"{PREFIX}:hv1"]}
    predicted = array(check=True, **args)
    assert array.volumes == {}
    made = array(**args)
    assert made["changed"] and made["actions"] == predicted["actions"] and made["volume"] == predicted["volume"]
    assert not array(**args)["changed"] and not array(name="a")["changed"]
    assert array(name="a", size="16MiB")["volume"]["size"] == 2**24
    assert "not made smaller" in array(name="a", size="8MiB")["msg"]
    assert "no CHAP" in array(name="a", chap_user="u", chap_password="hidden-Canary1")["msg"]
    array.volumes["a"]["sessions"] = [{"initiator": f"{PREFIX}:hv1", "address": "10.231.5.11"}]
    assert "in use by" in array(name="a", state="absent")["msg"]
    array.volumes["a"]["sessions"] = []
    assert array(name="a", state="absent")["changed"] and array.volumes == {}
    assert not array(name="a", state="absent")["changed"]
