# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridges of this machine, of both kinds."""

from __future__ import annotations

from pathlib import Path

from ._errors import Failed, NotFound, TimedOut
from ._run import run

NETWORK = Path("/sys/class/net")


def bridges() -> dict[str, str]:
    """The name of each bridge with its type, `ovs` or `linux`; without Open vSwitch only the kernel's own."""
    found = {path.parent.name: "linux" for path in NETWORK.glob("*/bridge")}
    try:
        names = run(["ovs-vsctl", "--timeout=10", "list-br"], timeout=15).split()
    except (NotFound, Failed, TimedOut):
        names = []
    return {**found, **dict.fromkeys(names, "ovs")}


def filtering() -> set[str]:
    """The bridges of the kernel that keep VLANs apart."""
    paths = NETWORK.glob("*/bridge/vlan_filtering")
    return {path.parent.parent.name for path in paths if path.read_text(encoding="ascii").strip() == "1"}
