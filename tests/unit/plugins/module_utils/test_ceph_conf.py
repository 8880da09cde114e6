# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clusters a node knows, and by which name an image is the same on every node."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _ceph_conf as conf

A, B = "5a1fb9a4-6a4c-4b0e-9f0c-0d7b1c9b8f11", "6b2fb9a4-6a4c-4b0e-9f0c-0d7b1c9b8f22"


@pytest.mark.parametrize(
    "text, found",
    [
        ("10.0.0.1", ["10.0.0.1:6789"]),
        ("10.0.0.1:6789, mon2 mon3:3300", ["10.0.0.1:6789", "mon2:6789", "mon3:3300"]),
        ("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3300/0]", ["10.0.0.1:6789", "10.0.0.2:3300"]),
        ("[fd00::1]:6789,[v2:[fd00::2]:3300/0,v1:[fd00::2]:6789/0]", ["[fd00::1]:6789", "[fd00::2]:6789"]),
    ],
)
def test_monitors_of_a_setting(text, found):
    assert conf.monitors(text) == found


@pytest.mark.parametrize("value", ["", "a b", "v1:10.0.0.1:6789", "10.0.0.1:0", "10.0.0.1:99999", "-x", "mon1,mon2"])
def test_what_is_no_monitor(value):
    with pytest.raises(ValueError, match="is not a monitor"):
        conf.check_monitor(value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "FOLDER", tmp_path)
    (tmp_path / "backup.conf").write_text(f"[global]\nmon-host=mon9 ; old\nfsid={B.upper()}\n")
    (tmp_path / "ceph.conf").write_text(
        f'fsid = {A}\n[osd]\nmon host = no\n[global]\n\tmon host = "10.0.0.1,\\\nmon2"\n'
    )
    (tmp_path / "rbdmap.conf").write_text("# nothing\n")
    return tmp_path


def test_the_clusters_of_a_node(folder):
    found = [(one.name, one.fsid, one.monitors) for one in conf.clusters()]
    assert found == [("ceph", A, ("10.0.0.1:6789", "mon2:6789")), ("backup", B, ("mon9:6789",))]
    assert conf.clusters()[1].keyring("vm") == f"{folder}/backup.client.vm.keyring"


@pytest.mark.parametrize(
    "hosts, name, all_names",
    [
        (["mon2"], f"rbd:{A}/vms/x", [f"rbd:{A}/vms/x"]),
        (["mon9", "mon8"], f"rbd:{B}/vms/x", [f"rbd:{B}/vms/x"]),
        (["mon7"], "rbd:?/vms/x", ["rbd:?/vms/x", f"rbd:{A}/vms/x", f"rbd:{B}/vms/x"]),
        ([], "rbd:?/vms/x", ["rbd:?/vms/x", f"rbd:{A}/vms/x", f"rbd:{B}/vms/x"]),
    ],
)
def test_an_image_is_known_by_its_cluster(folder, hosts, name, all_names):
    assert conf.identity("vms/x", hosts) == name
    assert conf.may_be(name) == all_names
    assert conf.may_be("file:/?/x") == ["file:/?/x"]
