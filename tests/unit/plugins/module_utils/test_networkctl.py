# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What networkd is asked."""

from __future__ import annotations

from ansible_collections.drover.kvm.plugins.module_utils import _networkctl


def test_a_link_that_networkd_has_not_met_yet_is_not_named_to_it(monkeypatch, tmp_path):
    for name in ("bond0", "br100"):
        (tmp_path / name).mkdir()
    calls = []
    monkeypatch.setattr(_networkctl, "DEVICES", tmp_path)
    monkeypatch.setattr(_networkctl, "run", lambda argv, **_words: calls.append(argv))
    monkeypatch.setattr(_networkctl, "run_json", lambda argv: {"Interfaces": [{"Name": "bond0"}, {"Name": "gone0"}]})
    _networkctl.Networkd().reconfigure(["bond0", "br100", "gone0"])
    assert calls == [["networkctl", "reconfigure", "bond0"]]
    _networkctl.Networkd().reconfigure(["br100"])
    assert len(calls) == 1
