# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM is set back to a snapshot that its storage keeps: it is off meanwhile, and its volumes are written back.

The storage goes back volume by volume, and one that is broken off leaves a mixture. So the act is noted as `rolling` in
the VM's metadata before, with which nobody can start it, and the same id goes on with it; to write back is right at any
point. The VM's definition is no part of such a snapshot and stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property

from .._errors import DroverError, Failed, Refused
from .._resource import Step
from . import making
from .record import Act
from .reverting import Revert

# A client of the storage that died, as a run of this act that was killed, is forgotten after 30 s.
FREE_SECONDS, POLL = 45, 1


class Rolling(Revert):
    """One VM that shall be set back."""

    # It is off when its safety snapshot is made, by a step of its own.
    quiesce = making.NEVER
    cuts = False

    @property
    def is_forgotten(self) -> bool:
        """Never: the note of the act stays."""
        return False

    @cached_property
    def was(self) -> str:
        """`running` where the VM ran before, also before an earlier run of this act."""
        act = self.machine.record.act
        if act is not None and self._is_ours(act) and act.state != "done":
            return act.was
        return "running" if self.machine.active else ""

    @property
    def is_rolling(self) -> bool:
        """Whether an earlier run of this act has begun to write."""
        act = self.machine.record.act
        return act is not None and act.state == "rolling" and self._is_ours(act)

    def act(self, state: str) -> Act:
        """The note of it, with what the VM was before."""
        return replace(super().act(state), was=self.was)

    def runs_after(self) -> bool:
        """Whether it runs then, as it did before."""
        return bool(self.was)

    def check(self) -> None:
        """Raise Refused where the snapshot is not ours or not whole, and for all else that speaks against it."""
        machine = self.machine
        if self.name not in machine.notes:
            raise Refused(f"{self.name} of {machine.name} was made by other means; nobody knows of which moment it is")
        if lacks := machine.lacks(self.name):
            raise Refused(f"{machine.name} can't be set back to {self.name}: {lacks}")
        super().check()

    def check_way(self) -> None:
        """Raise Refused where somebody has a volume open; an earlier run of this act is waited for."""
        if not self.machine.active and not self._is_ours(self.machine.record.act):
            self.machine.volumes.check_free()

    def before(self) -> list[Step]:
        """Note it, and switch the VM off."""
        steps = [] if self.is_rolling else super().before()
        if self.machine.active:
            name = self.machine.name
            steps.append(Step(f"cut the power of {name}", self.cut, self.is_free, FREE_SECONDS))
        return steps

    def cut(self) -> None:
        """Switch it off."""
        self.machine.node.destroy(self.machine.name)
        self.machine.read()

    def is_free(self) -> bool | str:
        """Whether nobody has its volumes open any more."""
        found = self.machine.volumes.users()
        return not found or "; ".join(f"{', '.join(users)} has {volume} open" for volume, users in found.items())

    def needs_safety(self) -> bool:
        """What is half set back is worth no snapshot."""
        return super().needs_safety() and not self.is_rolling

    def save(self) -> None:
        """Make it, and see that it is there."""
        try:
            super().save()
        except DroverError as error:
            words = f"{self.machine.name} is off now, and nothing of it was changed; id={self.id} goes on from here"
            raise Failed(f"{error.message}; {words}") from None

    def revert(self) -> None:
        """Write the volumes back. Raises Failed, which says what is of the VM then."""
        machine = self.machine
        machine.write(replace(machine.record, act=self.act("rolling")))
        end = time.monotonic() + FREE_SECONDS
        while self.is_free() is not True and time.monotonic() < end:
            time.sleep(POLL)
        try:
            machine.volumes.roll_back(self.name)
        except DroverError as error:
            words = f"it is half set back, and can't be started before an act with id={self.id} has finished that"
            raise Failed(f"{error.message}; {words}; {self._state()}") from None
        machine.read()
        machine.write(replace(machine.record, act=self.act("carried")))

    def finish(self) -> None:
        """Start it where it ran, and note that all is done."""
        if self.was and not self.machine.read().active:
            self.machine.node.start(self.machine.name)
        super().finish()
