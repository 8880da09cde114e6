# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest holds its file systems still for a moment, and never for longer: whoever asked for it may be killed.

    still = Freeze(node, "web1", uuid)
    still.begin()
    try:
        ...                     # the snapshot, within HOLD_SECONDS
        good = still.held()     # False: the guest wrote again before that was done
    finally:
        still.end()

Before the guest is asked, a timer of systemd is set that thaws it; its unit is also the lock against a second freeze.
See https://www.qemu.org/docs/master/interop/qemu-ga-ref.html (guest-fsfreeze-freeze).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from xml.etree.ElementTree import Element

from . import _later
from ._errors import DroverError, Failed, NotFound
from ._libvirt import LOCAL, Node
from ._xml import devices, find

AGENT = "org.qemu.guest_agent.0"
HOLD_SECONDS = 8
THAW_SECONDS = 10.0
POLL = 0.2
# It tries again: libvirt may be busy with the very snapshot for which the guest was frozen.
TRIES = 60


def why_not(running: Element | None) -> str | None:
    """Why the guest of this live XML can't be asked (None: it can). A guest that is off needs no freeze."""
    if running is None:
        return "it is not running"
    targets = [target for device in devices(running, "channel") for target in _target(device)]
    states = [target.get("state") for target in targets if target.get("name") == AGENT]
    if not states:
        return f"it has no channel {AGENT} (option agent of module vm)"
    if "disconnected" in states:
        return "its guest agent does not run (package qemu-guest-agent)"
    return None


def _target(device: Element) -> Iterator[Element]:
    target = find(device, "target")
    if target is not None:
        yield target


class Freeze:
    """The file systems of one running guest, held still from `begin` to `end`, and for so many seconds at most."""

    def __init__(self, node: Node, name: str, uuid: str, seconds: float = HOLD_SECONDS) -> None:
        self.node, self.name, self.seconds = node, name, seconds
        self.unit, self.uuid = f"drover-thaw-{uuid}", uuid
        self.until = 0.0

    def begin(self) -> None:
        """Freeze. Raises Refused when somebody else holds it; else what the agent did, and the guest is thawed then.

        A freeze that was given up may still happen in a slow guest: the timer stays, and thaws it.
        """
        self.until = time.monotonic() + self.seconds
        command = ("virsh", "--quiet", "--connect", LOCAL, "domfsthaw", self.uuid)
        _later.arm(self.unit, self.seconds, command, f"thaw {self.name}", TRIES)
        try:
            self.node.freeze(self.name)
        except DroverError:
            with suppress(DroverError):
                self.node.thaw(self.name)
            raise

    def held(self) -> bool:
        """Whether the guest stood still all the time until now: the timer can't have come yet."""
        return time.monotonic() < self.until

    def end(self) -> None:
        """Thaw, and take the timer away. Raises Failed when the guest does not go on; the timer tries on then."""
        end = time.monotonic() + THAW_SECONDS
        while words := self._thaw():
            if time.monotonic() > end:
                raise Failed(
                    f"{self.name} may still be frozen: {words}; {self.unit}.service goes on trying. By hand: virsh "
                    f"domfsthaw {self.name}"
                )
            time.sleep(POLL)
        _later.disarm(self.unit)

    def _thaw(self) -> str:
        """What went wrong. An agent that holds its file systems refuses to list them, so an answer is the proof.

        An agent that can't list any is asked once more: then there must be none left to thaw.
        """
        try:
            self.node.thaw(self.name)
            try:
                self.node.list_file_systems(self.name)
            except Failed as error:
                if "disabled" in error.message or self.node.thaw(self.name):
                    return error.message
        except NotFound:
            return ""  # the VM is gone, and what was frozen with it
        except DroverError as error:
            return error.message
        return ""
