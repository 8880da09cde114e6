# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_freeze against libvirt's test driver, with a guest agent and timers of systemd that are played."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.drover.kvm.plugins.module_utils import _later, _quiesce
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import Node, connect, libvirt
from ansible_collections.drover.kvm.plugins.modules import vm_freeze
from ansible_collections.drover.kvm.tests.unit.frozen_guest import UUID, Guest, Systemd

pytestmark = pytest.mark.skipif(libvirt is None, reason="not installed: Python package libvirt")
VM = """<domain type='test'><name>web1</name><uuid>{uuid}</uuid><memory>1024</memory><os><type>hvm</type></os>
<devices>{channel}</devices></domain>"""
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


class Site:
    """The VM, its agent, the timers, and the module."""

    def __init__(self, node: Node, capsys: Any) -> None:
        self.node, self.capsys, self.guest = node, capsys, Guest()
        self.systemd = Systemd({UUID: self.guest})
        self.guest.resume = lambda: node.resume("web1")

    def define(self, channel: str = CHANNEL) -> None:
        self.node.define(VM.format(uuid=UUID, channel=channel), validate=False)
        self.node.start("web1")

    @property
    def state(self) -> tuple[str, bool]:
        domain = self.node.domain("web1")
        assert domain is not None
        return domain.state, self.guest.frozen

    def run(self, check: bool = False, **args: Any) -> dict[str, Any]:
        with patch_module_args({"name": "web1", **args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            vm_freeze.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def good(self, **args: Any) -> dict[str, Any]:
        """As check mode said, and nothing to do again."""
        before = self.state
        predicted = self.run(check=True, **args)
        assert self.state == before
        real, again = self.run(**args), self.run(**args)
        assert not real.get("failed") and not again["changed"], (real, again)
        for key in ("changed", "actions", "vm"):
            assert predicted[key] == real[key]
        return real


@pytest.fixture
def site(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Iterator[Site]:
    path = tmp_path / "node.xml"
    path.write_text("<node/>", encoding="utf-8")
    with connect(f"test://{path}") as node:
        found = Site(node, capsys)

        @contextmanager
        def same(_uri: str) -> Iterator[Node]:
            yield node

        monkeypatch.setattr(vm_freeze, "connect", same)
        monkeypatch.setattr(_later, "run", found.systemd.run)
        monkeypatch.setattr(_quiesce, "time", found.systemd.clock)
        for verb in ("freeze", "thaw", "list_file_systems"):
            monkeypatch.setattr(Node, verb, lambda _node, name, verb=verb: getattr(found.guest, verb)(name))
        found.define()
        yield found


def held(frozen: bool, paused: bool) -> dict[str, Any]:
    return {"name": "web1", "frozen": frozen, "paused": paused}


def test_it_holds_still_from_one_task_to_the_next(site: Site) -> None:
    made = site.good(pause=True)
    assert made["vm"] == held(True, True) and made["was"] == held(False, False) and len(made["moment"]) == 16
    assert site.state == ("paused", True) and len(site.systemd.timers) == 2
    gone = site.run(state="thawed")
    assert gone["was"] == made["vm"] and gone["vm"] == held(False, False) and gone["actions"] == ["let web1 go on"]
    assert site.state == ("running", False) and site.systemd.timers == {}
    assert not site.run(state="thawed")["changed"]


def test_who_comes_too_late_is_told(site: Site) -> None:
    made = site.good(pause=True, hold=20)
    site.systemd.clock.sleep(19)
    assert site.state == ("paused", True)
    site.systemd.clock.sleep(2)
    assert site.state == ("running", False)
    gone = site.run(state="thawed")
    assert gone["was"] == held(False, False) != made["vm"] and not gone["changed"]


def test_without_an_agent_only_a_pause_helps(site: Site) -> None:
    site.node.destroy("web1")
    site.define(channel="")
    refused = site.run(quiesce="required", pause=True)
    assert refused["failed"] and "no channel" in refused["msg"] and site.state == ("running", False)
    assert site.good()["vm"] == held(False, False) and site.systemd.timers == {}
    assert site.good(pause=True)["vm"] == held(False, True)
    site.run(state="thawed")
    assert site.state == ("running", False)


def test_an_agent_that_fails_is_told_and_goes_on_by_its_timer(site: Site) -> None:
    site.guest.late = True
    done = site.run()
    assert not done.get("failed") and done["vm"] == held(False, False), done
    assert "web1 is not frozen: the agent did not answer in time" in str(done["warnings"])
    assert list(site.systemd.timers) == [f"drover-thaw-{UUID}"]
    site.systemd.clock.sleep(9)
    failed = site.run(quiesce="required")
    assert failed["failed"] and "did not answer" in failed["msg"]


def test_never_asks_nobody(site: Site) -> None:
    assert site.good(quiesce="never", pause=True)["vm"] == held(False, True)
    assert site.guest.asked == []


def test_what_others_froze_or_paused_stays_so(site: Site) -> None:
    site.node.suspend("web1")
    site.guest.frozen = True
    assert not site.run(pause=True)["changed"] and not site.run(state="thawed")["changed"]
    assert site.state == ("paused", True) and site.guest.asked == []
    site.node.destroy("web1")
    assert not site.run(pause=True)["changed"] and not site.run(state="thawed")["changed"]
    gone = site.run(name="web9")
    assert gone["failed"] and gone["error"] == "NotFound"
