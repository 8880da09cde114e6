# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the switch what a running VM's record says of its ports; the guard does the rest."""

from __future__ import annotations

from .. import _ovs
from .._bridge import taps as ports
from .._hypervisor import Domain
from . import taps


def declare(domain: Domain | None) -> None:
    """Write our external ids of its ports that are plugged. Raises what the switch's client raises."""
    found = {} if domain is None else taps.of_all([domain])
    found = {name: tap for name, tap in found.items() if tap["type"] == "ovs"}
    if not found:
        return
    with _ovs.connect(_ovs.SOCKET) as ovs:
        snapshot = ovs.snapshot()
        seen = ports.seen(snapshot, {}, {}, found)
        plugged = {name: port for name, port in seen.items() if port["type"] == "ovs"}
        wanted = {name: {**port, "external_ids": found[name]["external_ids"]} for name, port in plugged.items()}
        change = ports.change(snapshot, plugged, wanted)
        if change:
            ovs.commit(change)
