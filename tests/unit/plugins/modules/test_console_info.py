# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module console_info: on libvirt's test driver with consoles that talk, and on the serial port of a real QEMU."""

from __future__ import annotations

import json
import time

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect, libvirt
from ansible_collections.drover.kvm.plugins.modules import console_info
from ansible_collections.drover.kvm.tests.unit import libvirt_server

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
DOMAIN = "<domain type='test'><name>{}</name><memory>65536</memory><os><type>hvm</type></os>{}</domain>"
OFF = "<test:runstate>5</test:runstate>"
NODE = f"""<node xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
{DOMAIN.format("web1", "")}{DOMAIN.format("web2", "")}{DOMAIN.format("off", OFF)}</node>"""
SAYS = {
    "web1": b"\x1b[2J\x1b[01;32mDebian GNU/Linux 13\x1b[0m web1 ttyS0\r\n\r\nweb1 login: ",
    "web2": b"\r\nKernel panic - not syncing\r\n",
}
# SeaBIOS itself writes to the serial port when it is asked to.
BARE = """<domain type='qemu'><name>bare</name><memory unit='MiB'>32</memory><os>
<type arch='x86_64' machine='pc'>hvm</type><bios useserial='yes'/></os><devices>
<controller type='usb' model='none'/><serial type='pty'/><memballoon model='none'/></devices></domain>"""


@pytest.fixture
def run(tmp_path, capsys):
    (tmp_path / "node.xml").write_text(NODE, encoding="utf-8")

    def run(**args):
        with patch_module_args({"uri": f"test://{tmp_path}/node.xml", **args}), pytest.raises(SystemExit):
            console_info.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def consoles(monkeypatch):
    """What is typed, and an answer for each machine that `enough` stops at, as the client's own loop does."""
    typed = []

    def console(_node, name, keys, enough, seconds):
        typed.append((name, keys, seconds))
        if name not in SAYS:
            raise Failed(f"open the console of VM {name}: Active console session exists for this domain")
        enough(SAYS[name])
        return SAYS[name]

    monkeypatch.setattr(Node, "console", console)
    return typed


def test_all_that_run_are_asked_and_each_answer_is_told(run, consoles):
    found = run(timeout=3)["consoles"]
    assert sorted(consoles) == [("web1", b"\r", 3), ("web2", b"\r", 3)]
    assert [(one["name"], one["ok"]) for one in found] == [("web1", True), ("web2", False)]
    assert found[0]["text"] == "Debian GNU/Linux 13 web1 ttyS0\n\nweb1 login: "
    assert found[1]["message"] == "web2 does not answer on its console within 3 s"
    assert "panic" in found[1]["text"]


def test_what_is_expected_can_be_said(run, consoles):
    assert run(names=["web2"], expect="^Kernel panic")["consoles"][0]["ok"] is True
    assert "not a regular expression" in run(expect="(")["msg"] and "not running" in run(names=["off"])["msg"]


def test_a_console_at_which_somebody_is_makes_the_others_not_fail(run, consoles, monkeypatch):
    monkeypatch.delitem(SAYS, "web2")
    found = run()["consoles"]
    assert [one["ok"] for one in found] == [True, False] and "Active console session" in found[1]["message"]


def test_one_that_says_nothing(run, consoles, monkeypatch):
    monkeypatch.setitem(SAYS, "web1", b"")
    assert run(names=["web1"])["consoles"][0]["message"].endswith("within 15 s, and says nothing")


@pytest.mark.skipif(bool(libvirt_server.missing()), reason=str(libvirt_server.missing()))
def test_a_real_serial_port_is_read_and_typed_at():
    with libvirt_server.private_libvirtd() as daemon, connect(daemon.uri()) as node:
        if "qemu" not in node.host()["virt_types"]:
            pytest.skip("QEMU is not installed")
        node.define(BARE)
        node.start("bare", paused=True)
        other = node.connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
        safe = libvirt.VIR_DOMAIN_CONSOLE_SAFE
        node.connection.lookupByName("bare").openConsole(None, other, safe)
        with pytest.raises(Failed, match="console"):
            node.console("bare", b"\r", bool, 5)
        other.abort()
        assert node.console("bare", b"\r", bool, 0.3) == b"", "it stands still"
        node.resume("bare")
        asked = [time.monotonic()]

        def booted(said):
            """QEMU looks once a second whether somebody reads, and drops what it says before."""
            if time.monotonic() - asked[-1] > 3:
                asked.append(time.monotonic())
                node.connection.lookupByName("bare").reset(0)
            return b"SeaBIOS" in said

        assert b"SeaBIOS" in node.console("bare", b"\r", booted, 90)
        node.destroy("bare")
        node.undefine("bare")
