# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether memory can be sent to a node, and where a job stands that does not move."""

from __future__ import annotations

import socket

import pytest

from ansible_collections.drover.kvm.plugins.module_utils._errors import Refused
from ansible_collections.drover.kvm.plugins.module_utils._migration import ends, stream
from ansible_collections.drover.kvm.plugins.module_utils._migration.order import Order

URI = "qemu+tls://10.0.0.2/system"


def order(address="127.0.0.1"):
    return Order("1", "live", "vm1", "u1", "hv1", "hv2", "hv1", {"hv2": URI}, f"tcp://{address}")


def test_a_port_that_refuses_proves_the_way():
    assert stream.silent("127.0.0.1") == ""
    stream.reach(order())


def test_a_port_that_answers_does_so_too(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(stream, "LAST", server.getsockname()[1])
        assert stream.silent("127.0.0.1") == ""


def test_dropped_packets_are_told(monkeypatch):
    # A listener whose queue is full drops what comes, as a firewall does.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as first:
        first.connect(server.getsockname())
        monkeypatch.setattr(stream, "LAST", server.getsockname()[1])
        assert "no answer within 0.3 s" in stream.silent("127.0.0.1", 0.3)


def test_a_name_that_nobody_knows_is_told():
    with pytest.raises(Refused, match="hv2 does not answer on the migration network .no-such-host.invalid port 49215"):
        stream.reach(order("no-such-host.invalid"))


@pytest.mark.parametrize(
    "phase, progress, words",
    [
        ("none", {}, "waits for that of hv2 at qemu+tls://10.0.0.2/system"),
        ("begin3", {"sent": 0, "total": 0}, "hv2 still prepares: QEMU starts"),
        ("perform3", {"sent": 0, "total": 0}, "the connection to tcp://10.0.0.2 is not made (TCP, then TLS); look"),
        ("perform3", {"sent": 3 << 20, "total": 9 << 20}, "3 of 9 MiB were sent to tcp://10.0.0.2, then nothing"),
        ("perform3_done", {"sent": 9 << 20, "total": 9 << 20}, "all is sent, and hv2 does not answer"),
        ("", {}, "nothing was sent yet"),
    ],
)
def test_a_job_that_stands_still_says_where(phase, progress, words):
    assert words in stream.standing(order("10.0.0.2"), phase, progress)


@pytest.mark.parametrize(
    "text, phase",
    [
        ("<!--\nWARNING\n-->\n\n<domstatus><job async='migration out' phase='begin3'/></domstatus>\n", "begin3"),
        ("<domstatus><job type='none' async='migration out'/></domstatus>", "none"),
        ("<domstatus/>", ""),
        ("<domst", ""),
        (None, ""),
    ],
)
def test_the_phase_is_what_libvirt_wrote(tmp_path, monkeypatch, text, phase):
    monkeypatch.setattr(ends, "STATUS", str(tmp_path / "{}.xml"))
    if text is not None:
        (tmp_path / "vm1.xml").write_text(text)
    assert ends.End.phase("vm1") == phase
