# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interfaces by which this machine is reached: who cuts one may lock out everybody, Ansible first."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._errors import Failed, Refused
from ._run import run_list

PROCESSES = Path("/proc")


def addresses() -> list[dict[str, Any]]:
    """The addresses of all links, as `ip` prints them."""
    return run_list(["ip", "-json", "address", "show"])


def routes() -> list[dict[str, Any]]:
    """The routes of the main table, of both families, as `ip` prints them."""
    found = []
    for family in ("-4", "-6"):
        # A kernel without IPv6 has no routes of it.
        with suppress(Failed):
            found += run_list(["ip", "-json", family, "route", "show", "table", "main"])
    return found


def came_in() -> str | None:
    """The address of this machine through which Ansible came by ssh, from what the processes above hold."""
    process = os.getpid()
    while process > 1:
        folder = PROCESSES / str(process)
        # sudo drops the variable, so it is looked for in all that started this.
        for entry in _bytes(folder / "environ").split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION=") and len(entry.split()) == 4:
                return entry.split()[2].decode("ascii", "replace")
        stat = _bytes(folder / "stat").decode("utf-8", "replace").strip()
        process = int((stat.rpartition(")")[2].split() + ["0", "0"])[1])
    return None


def judged(defaults: Iterable[str], addresses_of: Mapping[str, Iterable[str]], address: str | None) -> dict[str, str]:
    """The interfaces that a machine hangs on, each with the reason.

    `defaults` are those of the default routes, `addresses_of` has the addresses of each with their prefix, `address` is
    the one through which Ansible came.
    """
    found = dict.fromkeys(defaults, "the default route")
    for name, own in addresses_of.items():
        if address and any(item.split("/")[0] == address for item in own):
            found[name] = f"the connection of Ansible ({address})"
    return found


def read() -> dict[str, str]:
    """The interfaces that this machine hangs on now, each with the reason. Raises Failed."""
    given = {
        link["ifname"]: [one["local"] for one in link.get("addr_info", []) if "local" in one]
        for link in addresses()
        if "ifname" in link
    }
    return judged([route["dev"] for route in routes() if route.get("dst") == "default"], given, came_in())


def check(touched: Collection[str]) -> None:
    """Raise Refused when this machine hangs on one of these interfaces; without any nothing is asked."""
    if touched:
        refuse({name: reason for name, reason in read().items() if name in touched})


def refuse(cut: Mapping[str, str]) -> None:
    """Raise Refused when something would be cut (interface -> reason)."""
    if cut:
        raise Refused(
            f"{', '.join(sorted(cut))} carries {cut[min(cut)]}; this change would cut it off, at least for a while. "
            "Say confirm_timeout: 60, and the change takes itself back unless Ansible can come in again, or "
            "allow_connection_interface: true",
            devices=sorted(cut),
        )


def _bytes(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
