# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tgtd 1.0.85 prints, its management protocol against a fake daemon, and the files of volumes."""

from __future__ import annotations

import socket
import tempfile
import threading
from contextlib import contextmanager

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _target_tgt as tgt
from ansible_collections.drover.kvm.plugins.module_utils import _volume_rules as rules
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, Unreachable
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt_conf import Store, parse, render

SHOWN = """\
Target 1: iqn.2026-11.lab:a
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 6
            Initiator: iqn.2026-11.lab:vm1 alias: hv1
            Connection: 0
                IP Address: 10.231.5.11
        I_T nexus: 7
            Initiator: iqn.2026-11.lab:vm2 alias: none
            Connection: 0
                IP Address: fd00:5::12
    LUN information:
        LUN: 0
            Type: controller
            SCSI SN: beaf10
            Size: 0 MB, Block size: 1
            Backing store path: None
        LUN: 1
            Type: disk
            SCSI SN: 0123456789abcdef
            Size: 67 MB, Block size: 512
            Backing store path: /srv/drover/a.img
            Backing store flags: \n\
    Account information:
        u1
        back (outgoing)
    ACL information:
        10.231.5.0/24
        255.255.255.255
        iqn.2026-11.lab:vm1
Target 12: iqn.2026-11.lab:b
    System information:
        Driver: iscsi
        State: offline
    I_T nexus information:
    LUN information:
    Account information:
    ACL information:
"""
VOLUME = {
    "name": "a",
    "iqn": "iqn.2026-11.lab:a",
    "path": "/srv/drover/a.img",
    "serial": "0123456789abcdef",
    "size": 67108864,
    "initiators": ["10.231.5.0/24", "iqn.2026-11.lab:vm1"],
    "chap_user": "u1",
    "chap_password": "hidden-Canary1",
    "mutual_chap_user": "san1",
    "mutual_chap_password": "hidden-Canary2",
    "readonly": True,
    "owner": None,
    "vm_uuid": None,
}


def test_what_tgtd_shows_is_read():
    first, second = tgt.parse_targets(SHOWN)
    assert first == tgt.Target(
        tid=1,
        iqn="iqn.2026-11.lab:a",
        online=True,
        luns={
            0: tgt.Lun(0, "None", "beaf10", 0),
            1: tgt.Lun(1, "/srv/drover/a.img", "0123456789abcdef", 67),
        },
        sessions=[
            tgt.Session("iqn.2026-11.lab:vm1", "10.231.5.11", ((6, 0),)),
            tgt.Session("iqn.2026-11.lab:vm2", "fd00:5::12", ((7, 0),)),
        ],
        accounts=["u1"],
        outgoing="back",
        initiators=["10.231.5.0/24", "iqn.2026-11.lab:vm1"],
    )
    assert (second.tid, second.iqn, second.online, second.luns) == (12, "iqn.2026-11.lab:b", False, {})


@pytest.mark.parametrize("mib", [1, 2, 64, 1023, 40960, 1 << 20, 64 << 20])
def test_one_more_mebibyte_is_seen(mib):
    assert tgt.megabytes((mib + 1) << 20) != tgt.megabytes(mib << 20)


@contextmanager
def daemon(monkeypatch, *answers):
    """A socket that gives these answers one after the other, and keeps what it was asked."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base, socket.socket(socket.AF_UNIX) as server:
        monkeypatch.setenv("TGT_IPC_SOCKET", f"{base}/s")
        server.bind(f"{base}/s.0")
        server.listen()
        asked = []

        def serve():
            for answer in answers:
                connection, _peer = server.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def test_a_request_is_the_struct_of_tgtadm(monkeypatch):
    good = tgt.ANSWER.pack(0, 8)
    shown = SHOWN.encode() + b"\0"
    with daemon(monkeypatch, tgt.ANSWER.pack(0, 8 + len(shown)) + shown, good, good) as asked:
        tgt.Tgt().set_online("iqn.2026-11.lab:b", False)
    assert len(asked[0]) == 120 and asked[0][:13] == b"\1\0\0\0" + b"\2\0\0\0" + b"iscsi"
    body = b"state=offline\0"
    assert asked[2][120:] == body
    assert asked[2][72:80] == (120 + len(body)).to_bytes(4, "little") + (12).to_bytes(4, "little")


def test_errors_carry_tgtds_words(monkeypatch):
    shown = SHOWN.encode() + b"\0"
    answers = tgt.ANSWER.pack(0, 8 + len(shown)) + shown, tgt.ANSWER.pack(0, 8), tgt.ANSWER.pack(19, 8)
    with daemon(monkeypatch, *answers), pytest.raises(Failed, match="delete the target .*: the target is in use"):
        tgt.Tgt().delete_target("iqn.2026-11.lab:a")
    with daemon(monkeypatch, b""), pytest.raises(Unreachable, match="only root"):
        tgt.Tgt().targets()
    with pytest.raises(Unreachable, match="is the service tgt running"):
        tgt.Tgt().targets()


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    store = Store(str(tmp_path))
    store.save(VOLUME)
    assert {key: value for key, value in store.volumes()["a"].items() if key != "version"} == VOLUME
    assert store.path("a").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [store.path("a")]
    store.path("a").chmod(0o644)
    assert store.text("a") != render(VOLUME)
    assert parse("<target x>\n</target>\n") is None


def test_a_file_always_has_an_address_so_that_it_never_means_everybody():
    for initiators in ([], ["iqn.2026-11.lab:vm1"]):
        text = render({**VOLUME, "initiators": initiators})
        assert "    initiator-address 255.255.255.255\n" in text
    assert "255.255" not in render(VOLUME)


def test_who_is_let_in():
    allowed = ["10.231.5.0/24", "fd00::5", "iqn.2026-11.lab:vm1"]
    assert rules.lets_in(allowed, "x", "10.231.5.99")
    assert rules.lets_in(allowed, "x", "fd00::5")
    assert rules.lets_in(allowed, "iqn.2026-11.lab:vm1", "192.0.2.1")
    assert rules.lets_in(["ALL"], "x", "192.0.2.1")
    assert not rules.lets_in(allowed, "iqn.2026-11.lab:vm", "10.231.6.1")
