# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_volume as Ansible runs it, on whatever SAN a test has."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.modules import iscsi_volume


class VolumeRuns:
    """For a SAN with `data`, `conf` and `capsys`: `given` are options of every run, `made` those of a new volume."""

    given: ClassVar[dict[str, Any]] = {}
    made: ClassVar[dict[str, Any]] = {}

    def __call__(self, check=False, **args):
        args = {"directory": str(self.data), "config_directory": str(self.conf), **self.given, **args}
        args = {**args, "source_directory": str(self.data / "images"), "_ansible_check_mode": check}
        with patch_module_args(args), pytest.raises(SystemExit):
            iscsi_volume.main()
        self.text, self.errors = self.capsys.readouterr()
        return json.loads(self.text)

    def make(self, name="a", **args):
        return done(self(name=name, **{"chap_user": "", **self.made, **args}))


def done(result):
    assert not result.get("failed"), result["msg"]
    return result


def refused(result, *words):
    assert result.get("failed") and not result["changed"], result
    for word in words:
        assert word in result["msg"], result["msg"]
    return result
