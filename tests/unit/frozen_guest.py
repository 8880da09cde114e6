# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest agent, timers of systemd that thaw its guest, and the clock by which they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.drover.kvm.plugins.module_utils._errors import DroverError, Failed, TimedOut

UUID = "7d4da458-de51-4138-9921-aae15234a969"


class Guest:
    """A guest with two file systems, as `Node` asks it.

    `late`: it freezes when nobody waits any more; `deaf`: it gives no answer; `liar`: it says thawed and is not;
    `lists`: its agent knows the command; `left`: how many it thaws again and again; `errors`: what libvirt says.
    """

    def __init__(self) -> None:
        self.frozen = self.late = self.deaf = self.liar = False
        self.lists, self.left = True, 0
        self.asked: list[str] = []
        self.errors: list[DroverError] = []
        self.before_freeze: Callable[[], object] = lambda: None
        self.resume: Callable[[], object] = lambda: None

    def _hear(self, what: str) -> None:
        for error in self.errors:
            raise error
        if self.deaf:
            raise Failed("Guest agent is not responding")
        self.asked.append(what)

    def freeze(self, _name: str) -> int:
        self.before_freeze()
        self._hear("freeze")
        if self.late:
            raise TimedOut("the agent did not answer in time")
        self.frozen = True
        return 2

    def thaw(self, _name: str) -> int:
        self._hear("thaw")
        count = 2 if self.frozen else self.left
        self.frozen = self.frozen and self.liar
        return count

    def list_file_systems(self, _name: str) -> int:
        if not self.lists:
            raise Failed("The command guest-get-fsinfo has not been found")
        if self.frozen:
            raise Failed("Command guest-get-fsinfo has been disabled: the agent is in frozen state")
        self._hear("list")
        return 2


class Clock:
    """Time that passes only when somebody sleeps; `due` is called then."""

    def __init__(self, due: Callable[[], object]) -> None:
        self.now, self.due = 1000.0, due

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.due()


class Systemd:
    """`run` of systemd-run and systemctl; timers (unit -> when, verb, guest) try again until their guest is thawed."""

    def __init__(self, guests: Mapping[str, Guest]) -> None:
        self.guests = guests
        self.timers: dict[str, tuple[float, str, Guest]] = {}
        self.broken: list[DroverError] = []
        self.clock = Clock(self.fire)

    def run(self, argv: Sequence[str], **_named: Any) -> str:
        for error in self.broken:
            raise error
        words = dict(word.split("=", 1) for word in argv if word.startswith("--") and "=" in word)
        if argv[0] == "systemd-run":
            unit = words["--unit"]
            if unit in self.timers:
                raise Failed(f"systemd-run failed: Unit {unit}.timer was already loaded or has a fragment file.")
            assert argv[-2] in ("domfsthaw", "resume"), argv
            seconds = float(words["--on-active"].rstrip("s"))
            self.timers[unit] = self.clock.now + seconds, argv[-2], self.guests[argv[-1]]
        elif argv[1] == "is-active":
            return "active\n" if argv[2].rpartition(".")[0] in self.timers else "inactive\n"
        else:
            assert list(argv[:2]) == ["systemctl", "stop"], argv
            self.timers.pop(argv[2].rpartition(".")[0], None)
        return ""

    def fire(self) -> None:
        for unit, (moment, verb, guest) in list(self.timers.items()):
            if moment > self.clock.now or guest.deaf or guest.liar:
                continue
            if verb == "resume":
                guest.resume()
            else:
                guest.frozen = False
            del self.timers[unit]
