# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots on a SAN are read by qemu-img, from a real tgtd; the secret is never in its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _run
from ansible_collections.drover.kvm.plugins.module_utils._backup import files, origins, secrecy
from ansible_collections.drover.kvm.plugins.module_utils._backup.disks import Disk
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import Tgt
from ansible_collections.drover.kvm.tests.unit import images, tgt_server

MIB = 2**20
IQN = f"{tgt_server.PREFIX}:web1-backup"
DRIVER = Path("/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so")
LACKING = tgt_server.missing() or ([] if DRIVER.exists() else ["package qemu-block-extra"])
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not here: {LACKING}")
XML = """<domain type='qemu'><name>web1</name><devices><disk type='network' device='disk'>
<driver name='qemu' type='raw'/><source protocol='iscsi' name='{iqn}/1'><host name='127.0.0.1' port='{port}'/>
<auth username='drover'><secret type='iscsi' usage='san1'/></auth>
<initiator><iqn name='iqn.2026-01.org.drover:vm-web1'/></initiator></source><target dev='vda' bus='virtio'/></disk>
</devices></domain>"""


class Node:
    """It knows one secret."""

    def password(self, kind: str, usage: str) -> str:
        if (kind, usage) != ("iscsi", "san1"):
            raise NotFound(f"no secret {usage}")
        return "hidden-Canary1"


@pytest.fixture
def san() -> Iterator[tgt_server.PrivateSan]:
    """One volume, write-protected, with CHAP, and for one initiator only."""
    found, tgt = tgt_server.PrivateSan(), Tgt()
    path = found.data / "snapshot.img"
    path.write_bytes(b"guest" + bytes(MIB) + b"end".rjust(MIB - 5))
    tgt.export(IQN, str(path))
    tgt.set_account(IQN, "drover", "hidden-Canary1")
    tgt.set_initiators(IQN, ["iqn.2026-01.org.drover:vm-web1"])
    tgt.set_readonly(IQN, True)
    tgt.set_online(IQN, True)
    yield found
    found.close()


def origin(san: tgt_server.PrivateSan, **options: Any) -> files.Source:
    """Where vda is read; it lies on the same SAN."""
    xml = XML.format(iqn=f"{tgt_server.PREFIX}:web1", port=san.port)
    domain: Any = SimpleNamespace(name="web1", live_xml=None, xml=xml)
    node: Any = Node()
    names = [field.name for field in origins.FIELDS[2].fields]
    one = {**dict.fromkeys(names), "target": "vda", "iqn": IQN, **options}
    return origins.of_disks(node, domain, {"disks": [one]})["vda"]


def test_it_is_read_with_the_login_of_the_disk_itself(san: Any, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[list[str]] = []

    def seen(argv: list[str], *args: Any, **named: Any) -> str:
        asked.append(argv)
        return _run.run(argv, *args, **named)

    for module in (files, secrecy):
        monkeypatch.setattr(module, "run", seen)
    disk = Disk("vda", "iscsi:x", "raw", None, 2 * MIB, 2 * MIB)
    image, plain = tmp_path / "vda.qcow2", files.Style("none", 60, 0)
    assert origins.copy(disk, origin(san), image, files.Style("zstd", 60, 0)) == disk
    assert images.content(image, tmp_path / "raw", "qcow2") == (san.data / "snapshot.img").read_bytes()
    assert len(asked) == 2 and "hidden" not in str(asked) and "hidden" not in origin(san).address
    # The size of one whose VM is off is not known before.
    assert origins.copy(disk._replace(size=0), origin(san), tmp_path / "again", plain).size == 2 * MIB
    with pytest.raises(Refused, match="it is of another disk"):
        origins.copy(disk._replace(size=MIB), origin(san), tmp_path / "third", plain)
    with pytest.raises(Failed):
        origins.copy(disk, origin(san, initiator="iqn.2026-11.test.vm:other"), tmp_path / "third", plain)
    assert not (tmp_path / "third").exists()


def test_the_disk_itself_is_no_snapshot_and_a_secret_must_be_there(san: Any) -> None:
    with pytest.raises(Refused, match="is vda of web1 itself"):
        origin(san, iqn=f"{tgt_server.PREFIX}:web1")
    with pytest.raises(NotFound, match="no secret other"):
        origin(san, secret="other")
    assert origin(san, user="").secret is None
