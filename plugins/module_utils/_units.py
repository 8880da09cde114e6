# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of systemd: which units have read their files, and which are on their way."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from ._errors import Failed, NotFound
from ._run import run

UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,240}\.(service|socket|target|timer|mount|path)", re.ASCII)
SHOW = ("systemctl", "show", "--timestamp=us+utc", "--property=ActiveState,NeedDaemonReload,StateChangeTimestamp")


def check_units(units: Mapping[str, Any]) -> dict[str, list[str]]:
    """Units with a list of absolute paths each. Raises ValueError naming what is neither."""
    for unit, files in units.items():
        if not UNIT.fullmatch(str(unit)):
            raise ValueError(f"{unit!r} is not the whole name of a unit, such as libvirtd.service")
        if not isinstance(files, (list, tuple)) or not all(str(file).startswith("/") for file in files):
            raise ValueError(f"{unit}: write a list of absolute paths")
    return {unit: [str(file) for file in files] for unit, files in units.items()}


def stale(units: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The active units that have not read their files, each with those that are newer than its last change of state.

    systemd notes that moment for a start and for a reload (systemctl(1): StateChangeTimestamp). Raises Failed and
    TimedOut.
    """
    if not units:
        return {}
    newer: dict[str, list[str]] = {}
    for unit, state in zip(units, _states(units)):
        if state["ActiveState"] not in ("active", "reloading"):
            continue
        files = [file for file in units[unit] if _written(file) >= _moment(state["StateChangeTimestamp"])]
        if files or state["NeedDaemonReload"] == "yes":
            newer[unit] = files
    return dict(sorted(newer.items()))


def changing(unit: str) -> str:
    """What systemd does with a unit, or is about to do (`activating`, `waiting to be started or stopped`), in words.

    Empty when there is nothing, and where systemd does not run. Raises TimedOut.
    """
    try:
        text = run(["systemctl", "show", "--property=ActiveState,Job", "--", unit], timeout=30)
    except (Failed, NotFound):
        return ""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    state = found.get("ActiveState", "")
    if state in ("activating", "deactivating", "reloading"):
        return state
    return "waiting to be started or stopped" if found.get("Job", "0") not in ("", "0") else ""


def _states(units: Mapping[str, Any]) -> list[dict[str, str]]:
    """In the order of the units, as systemctl shows them, with a block for each, also for one that it does not know."""
    blocks = run([*SHOW, "--", *units], timeout=30).strip().split("\n\n")
    if len(blocks) != len(units):
        raise Failed(f"systemctl showed {len(blocks)} units of {len(units)}: {blocks}")
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def _written(file: str) -> float:
    """When the file was written, in seconds of the epoch; far in the past when there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(file).st_mtime
    return 0.0


def _moment(text: str) -> float:
    """Seconds of the epoch from systemd's words, such as `Sun 2026-11-22 02:07:39.123456 UTC`."""
    try:
        _day, date, time, zone = text.split()
        moment = datetime.fromisoformat(f"{date}T{time}").replace(tzinfo=timezone.utc)
    except ValueError:
        zone = ""
    if zone != "UTC":
        raise Failed(f"systemctl wrote the time {text!r}, which is not of the form that --timestamp=us+utc asks for")
    return moment.timestamp()
