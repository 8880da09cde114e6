# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network interfaces of this machine as its kernel sees them: carrier, counters, bonds, bridges, neighbours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._errors import Failed, NotFound, TimedOut
from ._files import told
from ._run import run, run_json

DEVICES = Path("/sys/class/net")
BONDS = Path("/proc/net/bonding")
LOOK = 0.1  # seconds between two looks at a counter
PULLED = 1.0  # seconds that a bounced link is down; the guest's driver must see both changes
LLDP_ANSWER = 3.0  # seconds; neighbours are worth having, not worth waiting for


def devices() -> set[str]:
    """The names of all interfaces."""
    return {path.name for path in DEVICES.iterdir()} if DEVICES.is_dir() else set()


def lone_taps() -> set[str]:
    """The taps that libvirt named and that no bridge of the kernel holds."""
    return {name for name in devices() if name.startswith("vnet") and not (DEVICES / name / "brport").exists()}


def physical() -> dict[str, str]:
    """The interfaces that have hardware behind them, with their link: up or down."""
    return {path.parent.name: link_state(path.parent.name) for path in DEVICES.glob("*/device")}


def link_state(name: str) -> str:
    """Up or down; the kernel refuses to say it of an interface that is not set up."""
    return "up" if told(DEVICES / name / "carrier") == "1" else "down"


def heard(name: str) -> int:
    """Packets that came in; of a tap, those that its guest has sent. 0 when it is gone."""
    return int(told(DEVICES / name / "statistics/rx_packets") or 0)


def silent(names: Sequence[str], seconds: float) -> list[str]:
    """The interfaces that took no packet in so many seconds, sorted; ends when all have. None for 0 seconds."""
    waiting = {name: heard(name) for name in names}
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        time.sleep(LOOK)
        waiting = {name: packets for name, packets in waiting.items() if heard(name) == packets}
    return sorted(waiting) if seconds else []


def pause() -> None:
    """Wait as long as a cable that is pulled and put back is out."""
    time.sleep(PULLED)


def bridge_of(name: str) -> str | None:
    """The bridge of the kernel into which an interface is plugged."""
    bridge = DEVICES / name / "brport/bridge"
    return bridge.resolve().name if bridge.exists() else None


def bridges() -> set[str]:
    """The bridges of the kernel."""
    return {path.parent.name for path in DEVICES.glob("*/bridge")}


def plug(name: str, bridge: str) -> None:
    """Plug an interface into a bridge of the kernel. Raises Failed."""
    run(["ip", "link", "set", "dev", name, "master", bridge], timeout=10)


def unplug(name: str) -> None:
    """Take an interface out of its bridge of the kernel. Raises Failed."""
    run(["ip", "link", "set", "dev", name, "nomaster"], timeout=10)


def vlans() -> dict[str, dict[str, Any]]:
    """By port of a bridge of the kernel that filters, its VLAN of untagged packets and the tagged ones."""
    found = {}
    for port in run_json(["bridge", "-json", "vlan", "show"], timeout=10) or []:
        untagged = [entry["vlan"] for entry in port["vlans"] if "PVID" in entry.get("flags", [])]
        tagged = [entry for entry in port["vlans"] if "PVID" not in entry.get("flags", [])]
        spans = [range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1) for entry in tagged]
        numbers = sorted(number for span in spans for number in span)
        found[port["ifname"]] = {"untagged": untagged[0] if untagged else None, "tagged": numbers}
    return found


def set_vlans(name: str, untagged: int | None, tagged: Sequence[int]) -> None:
    """Give a port of a bridge of the kernel exactly these VLANs. Raises Failed."""
    now = vlans().get(name, {"untagged": None, "tagged": []})
    for number in [*now["tagged"], *([now["untagged"]] if now["untagged"] else [])]:
        run(["bridge", "vlan", "delete", "dev", name, "vid", str(number)], timeout=10)
    for number in tagged:
        run(["bridge", "vlan", "add", "dev", name, "vid", str(number)], timeout=10)
    if untagged:
        run(["bridge", "vlan", "add", "dev", name, "vid", str(untagged), "pvid", "untagged"], timeout=10)


def bonds() -> dict[str, str]:
    """What the kernel tells of each of its bonds."""
    return {path.name: told(path) for path in sorted(BONDS.iterdir())} if BONDS.is_dir() else {}


def lldp() -> Any:
    """What lldpd knows of the neighbours; None when it is not installed, does not run or does not answer."""
    try:
        return run_json(["lldpcli", "-f", "json", "show", "neighbors"], timeout=LLDP_ANSWER)
    except (NotFound, Failed, TimedOut):
        return None
