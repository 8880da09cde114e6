# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way that a VM's memory takes to the other node: whether packets arrive there, and where a job stands that stalls.

libvirt of the source connects to the migration port by itself and waits for that as long as the kernel does (131 s on
Linux 6.5 and later). Meanwhile nothing ends the job. The same holds while the destination prepares: an abort counts
only when that has come back.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .._errors import Refused
from .order import Order

# libvirt takes the first free port from 49152 on, so that nobody listens at the last one; a listener there would be
# the QEMU of the 64th migration at once, which a stray connection would spoil.
FIRST, LAST = 49152, 49215
# The kernel asks again some three times meanwhile on old Linux and six times on new (6.5). Next to a burst on the same
# switch three in a row were lost (4 s were too few once in the lab).
SECONDS = 10.0


def silent(address: str, seconds: float = SECONDS) -> str:
    """Why no memory can be sent from this machine to a node at its migration address, or nothing.

    A port that refuses is as good as one that answers: the packets arrive.
    """
    try:
        socket.create_connection((address, LAST), seconds).close()
    except ConnectionRefusedError:
        return ""
    except OSError as error:
        words = f"no answer within {seconds:g} s" if isinstance(error, socket.timeout) else error.strerror or str(error)
        return f"{address} port {LAST}: {words}"
    return ""


def mend(source: str, target: str) -> str:
    """What to look at when memory can't be sent."""
    ports = f"TCP {FIRST} to {LAST}"
    return f"look at {target}'s firewall ({ports} from {source}), and at the migration network's cables and VLAN"


def reach(order: Order) -> None:
    """Raise Refused when the memory can't be sent."""
    words = silent(urlsplit(order.stream).hostname or "")
    if words:
        raise Refused(
            f"{order.target} does not answer on the migration network ({words}); {mend(order.source, order.target)}"
        )


def standing(order: Order, phase: str, progress: Mapping[str, Any]) -> str:
    """Where a job stands that does not move, and what to look at.

    `phase` is that of libvirt's own status (`none` before it has the other daemon, `begin3` while the destination
    prepares, `perform3` from then on; '' when it can't be read), `progress` the job's figures.
    """
    sent, total = int(progress.get("sent") or 0), int(progress.get("total") or 0)
    if phase in ("perform3_done", "finish3"):
        return f"all is sent, and {order.target} does not answer: look at its libvirt (journalctl -u libvirtd)"
    if total:
        words = f"{sent >> 20} of {total >> 20} MiB were sent to {order.stream}, then nothing"
        return f"{words}; {mend(order.source, order.target)}"
    if phase == "none":
        return f"libvirt of {order.source} waits for that of {order.target} at {order.uri}: look at the network between"
    if phase == "begin3":
        return (
            f"nothing was sent, as {order.target} still prepares: QEMU starts there and opens the disks; look at its "
            f"/var/log/libvirt/qemu/{order.vm}.log, and whether {order.target} reaches the storage"
        )
    what = "nothing was sent yet" if not phase else f"the connection to {order.stream} is not made (TCP, then TLS)"
    return f"{what}; {mend(order.source, order.target)}"
