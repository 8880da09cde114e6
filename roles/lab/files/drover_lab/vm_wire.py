# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ends of a VM node's cables. A cable is the same pair of virtual Ethernet ends as a container's; its end in the
node's namespace, and the tap that QEMU holds, hand every frame to each other (LACP and spanning tree included, which a
bridge would keep). All of this runs in the node's namespace.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

from .run import run
from .topology import Nic

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
SIOCETHTOOL, ETHTOOL_GLINK = 0x8946, 0x0A
TABLE = "wire"


def open_tap(name: str) -> int:
    """Make a tap and return its file descriptor; the tap lives as long as somebody holds that."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode("ascii"), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(handle, TUNSETIFF, request)
    return handle


def rules(taps: dict[str, str]) -> str:
    """The text for nft that joins each NIC with its tap, both ways; in place of an earlier one."""
    text = f"table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n"
    for number, (nic, tap) in enumerate(taps.items()):
        for way, source, target in (("in", nic, tap), ("out", tap, nic)):
            hook = f'type filter hook ingress device "{source}" priority 0;'
            text += f'  chain {way}{number} {{ {hook} fwd to "{target}"; }}\n'
    return text + "}\n"


class Wires:
    """The taps of one node, and what is known of the cables behind them."""

    def __init__(self, nics: tuple[Nic, ...]) -> None:
        self.nics = nics
        self.taps = {nic.name: f"tap{number}" for number, nic in enumerate(nics)}
        self.handles = {nic.name: open_tap(self.taps[nic.name]) for nic in nics}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._joined: dict[str, int] = {}

    def indexes(self) -> dict[str, int]:
        """NIC → the kernel's number of its cable's end; one that was laid again has another number."""
        return {name: number for number, name in socket.if_nameindex() if name in self.taps}

    def join(self) -> None:
        """Hand frames between cables and taps; again after a cable was laid anew, else nothing is done."""
        there = self.indexes()
        if there == self._joined:
            return
        for nic in self.nics:
            # The kernel of the host is not to say a word of its own on the cable.
            run(["ip", "link", "set", self.taps[nic.name], "addrgenmode", "none"])
            run(["ip", "link", "set", self.taps[nic.name], "mtu", str(nic.mtu), "up"])
        run(["nft", "-f", "-"], feed=rules({nic: tap for nic, tap in self.taps.items() if nic in there}))
        self._joined = there

    def carrier(self, nic: str) -> bool:
        """Whether a NIC's cable has something alive at its other end."""
        answer = array.array("I", [ETHTOOL_GLINK, 0])
        request = struct.pack("16sP8x", nic.encode("ascii"), answer.buffer_info()[0])
        try:
            fcntl.ioctl(self._socket, SIOCETHTOOL, request)
        except OSError:
            return False
        return answer[1] == 1
