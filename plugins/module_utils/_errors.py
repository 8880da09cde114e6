# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exceptions of the collection: one tree, the details as data.

Clients and resources raise them; only the engine turns them into a module's failure.
"""

from __future__ import annotations

from typing import Any


class DroverError(Exception):
    """Something that the user must know: `message` names the thing and the mend, `details` is data for the result."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class Invalid(DroverError):
    """The input is wrong; nothing was asked of any system."""


class Refused(DroverError):
    """The input is right, but doing it would lose something; nothing was changed."""


class NotFound(DroverError):
    """A thing that must be there is not."""


class Unreachable(DroverError):
    """A system gave no answer within its time limit; nothing is known about what it holds."""


class TimedOut(DroverError):
    """A state was not reached in time; says what was seen last."""


class Failed(DroverError):
    """A system refused or failed to do what it was asked; carries its own words."""


class NotConverged(DroverError):
    """Everything was applied without an error, and yet the system does not show what was asked for."""
