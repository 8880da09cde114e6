# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command that systemd runs later, whatever becomes of this process, and that tries again until it is done.

See systemd-run(1), and systemd.unit(5) for the limits of starting again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._errors import Failed, Refused
from ._run import run

NOT_LOADED = 5  # systemctl: the unit is gone already
INACTIVE = (3, 4)  # systemctl is-active: it has run, or is not known


def arm(unit: str, seconds: float, command: Sequence[str], words: str, tries: int, every: int = 1) -> None:
    """Run the command in so many seconds; where it fails again, every so many seconds, so many times.

    `words` say for people what it does. Raises Refused where such a unit is there already.
    """
    limit = tries * (every + 20)
    rules = ["Restart=on-failure", f"RestartSec={every}s", "RuntimeMaxSec=20"]
    rules += [f"StartLimitIntervalSec={limit}", f"StartLimitBurst={tries}"]
    again = [word for rule in rules for word in ("--property", rule)]
    timer = [f"--on-active={seconds:g}s", "--timer-property=AccuracySec=100ms", f"--description=drover: {words}"]
    try:
        run(["systemd-run", "--collect", "--quiet", f"--unit={unit}", *timer, *again, *command], timeout=30)
    except Failed as error:
        if "already" not in error.message:
            raise
        raise Refused(f"another operation is about to {words} ({unit}); wait some seconds and run this again") from None


def waits(unit: str) -> bool:
    """Whether its time has not come yet."""
    return run(["systemctl", "is-active", f"{unit}.timer"], timeout=30, ok=(0, *INACTIVE)).strip() == "active"


def disarm(unit: str) -> None:
    """It is not needed any more, whether it has begun or not."""
    for kind in ("timer", "service"):
        run(["systemctl", "stop", f"{unit}.{kind}"], timeout=30, ok=(0, NOT_LOADED))
