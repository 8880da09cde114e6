# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that is frozen is thawed, whatever happens: with a guest agent and timers of systemd that are played."""

from __future__ import annotations

import pytest

from ansible_collections.drover.kvm.plugins.module_utils import _later, _quiesce
from ansible_collections.drover.kvm.plugins.module_utils._errors import Failed, NotFound, Refused, TimedOut
from ansible_collections.drover.kvm.plugins.module_utils._xml import parse
from ansible_collections.drover.kvm.tests.unit.frozen_guest import UUID, Guest, Systemd


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def systemd(monkeypatch, guest):
    found = Systemd({UUID: guest})
    monkeypatch.setattr(_later, "run", found.run)
    monkeypatch.setattr(_quiesce, "time", found.clock)
    return found


def freeze(guest):
    return _quiesce.Freeze(guest, "web1", UUID)


def test_a_guest_stands_still_between_begin_and_end(guest, systemd):
    still = freeze(guest)
    still.begin()
    assert guest.frozen and still.held()
    still.end()
    assert not guest.frozen and systemd.timers == {}
    assert guest.asked == ["freeze", "thaw", "list"]


def test_a_killed_run_leaves_a_timer_that_thaws(guest, systemd):
    freeze(guest).begin()
    systemd.clock.sleep(_quiesce.HOLD_SECONDS - 1)
    assert guest.frozen
    systemd.clock.sleep(1.5)
    assert not guest.frozen and systemd.timers == {}


def test_the_timer_is_there_before_the_guest_is_asked(guest, systemd):
    guest.before_freeze = lambda: guest.asked.append(f"{len(systemd.timers)} timer")
    freeze(guest).begin()
    assert guest.asked == ["1 timer", "freeze"]


def test_who_took_too_long_knows_it(guest, systemd):
    still = freeze(guest)
    still.begin()
    systemd.clock.sleep(_quiesce.HOLD_SECONDS + 1)
    assert not still.held()
    still.end()
    assert not guest.frozen


def test_a_second_freeze_is_refused_and_the_first_one_stays(guest, systemd):
    freeze(guest).begin()
    with pytest.raises(Refused, match="another operation is about to thaw web1"):
        freeze(guest).begin()
    assert guest.frozen and len(systemd.timers) == 1


def test_a_freeze_that_came_late_is_thawed_by_the_timer(guest, systemd):
    guest.late = True
    with pytest.raises(TimedOut):
        freeze(guest).begin()
    # The guest was slow: it freezes after it was told to thaw.
    guest.frozen = True
    systemd.clock.sleep(_quiesce.HOLD_SECONDS + 1)
    assert not guest.frozen


def test_an_agent_that_is_deaf_to_thaw_is_told_and_the_timer_goes_on(guest, systemd):
    still = freeze(guest)
    still.begin()
    guest.deaf = True
    with pytest.raises(Failed, match="may still be frozen.*virsh domfsthaw web1"):
        still.end()
    guest.deaf = False
    systemd.clock.sleep(2)
    assert not guest.frozen


def test_a_guest_that_says_thawed_and_is_not_is_found_out(guest, systemd):
    still = freeze(guest)
    still.begin()
    guest.liar = True
    with pytest.raises(Failed, match="disabled: the agent is in frozen state"):
        still.end()


@pytest.mark.parametrize("left, fine", [(0, True), (1, False)])
def test_an_agent_without_a_list_is_thawed_twice(guest, systemd, left, fine):
    guest.lists, guest.left = False, left
    still = freeze(guest)
    still.begin()
    if fine:
        still.end()
        assert guest.asked == ["freeze", "thaw", "thaw"]
    else:
        with pytest.raises(Failed, match="guest-get-fsinfo has not been found"):
            still.end()


def test_a_vm_that_is_gone_is_not_frozen(guest, systemd):
    still = freeze(guest)
    still.begin()
    guest.errors = [NotFound("no domain")]
    still.end()
    assert systemd.timers == {}


def test_without_systemd_nobody_is_frozen(guest, systemd):
    systemd.broken = [NotFound("the program systemd-run is not installed on this machine")]
    with pytest.raises(NotFound):
        freeze(guest).begin()
    assert guest.asked == []


CHANNEL = "<domain><devices><channel type='unix'><target name='{}' state='{}'/></channel></devices></domain>"


@pytest.mark.parametrize(
    "xml, words",
    [
        (None, "not running"),
        ("<domain><devices/></domain>", "no channel"),
        ("<domain><devices><channel type='pty'/></devices></domain>", "no channel"),
        (CHANNEL.format("org.libvirt.x", "connected"), "no channel"),
        (CHANNEL.format("org.qemu.guest_agent.0", "disconnected"), "does not run"),
        (CHANNEL.format("org.qemu.guest_agent.0", "connected"), None),
    ],
)
def test_why_a_guest_can_not_be_asked(xml, words):
    found = _quiesce.why_not(None if xml is None else parse(xml))
    assert (words is None and found is None) or words in found
