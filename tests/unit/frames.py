# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw Ethernet frames as guests send them, honest and not, and what a recording of a port holds."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from pathlib import Path

MAC, OTHER_MAC, EVERYBODY = "52:54:00:00:00:01", "52:54:00:00:00:99", "ff:ff:ff:ff:ff:ff"
IP4, OTHER_IP4, PEER4 = "10.231.100.21", "10.231.100.99", "10.231.100.1"
IP6, OTHER_IP6, LOCAL6, PEER6 = "fd00::21", "fd00::99", "fe80::5054:ff:fe00:1", "fd00::1"
IPV4, ARP, RARP, QTAG, IPV6 = 0x0800, 0x0806, 0x8035, 0x8100, 0x86DD
UDP, TCP, ICMP6 = 17, 6, 58


def mac(text: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(text.replace(":", ""))


def ether(kind: int, data: bytes, source: str = MAC, target: str = EVERYBODY) -> bytes:
    """A frame of Ethernet II, long enough."""
    return (mac(target) + mac(source) + struct.pack("!H", kind) + data).ljust(60, b"\0")


def checksum(data: bytes) -> int:
    """The one's complement sum of IP, ICMP, UDP and TCP."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ipv4(protocol: int, data: bytes, source: str = IP4, target: str = PEER4) -> bytes:
    """A packet of IPv4."""
    ends = ip_address(source).packed + ip_address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data


def ipv6(protocol: int, data: bytes, source: str = IP6, target: str = PEER6) -> bytes:
    """A packet of IPv6."""
    head = struct.pack("!IHBB", 6 << 28, len(data), protocol, 255)
    return head + ip_address(source).packed + ip_address(target).packed + data


def udp(source: int, target: int, data: bytes = b"hello") -> bytes:
    """A datagram without a checksum, as IPv4 allows."""
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


def icmp6(kind: int, data: bytes, source: str = IP6, target: str = PEER6) -> bytes:
    """A packet of IPv6 with ICMP in it."""
    body = struct.pack("!BBH", kind, 0, 0) + data
    ends = ip_address(source).packed + ip_address(target).packed + struct.pack("!II", len(body), ICMP6)
    return ipv6(ICMP6, body[:2] + struct.pack("!H", checksum(ends + body)) + body[4:], source, target)


def discovery(kind: int, about: str, link: str = "", source: str = IP6) -> bytes:
    """A neighbour solicitation (135) or advertisement (136) about an address, with a link-layer address or without."""
    option = struct.pack("!BB", 1 if kind == 135 else 2, 1) + mac(link) if link else b""
    return icmp6(kind, bytes(4) + ip_address(about).packed + option, source, "ff02::1")


def arp(sender: str = MAC, address: str = IP4, target: str = PEER4, operation: int = 1, kind: int = ARP) -> bytes:
    """What asks for an address, or answers (2)."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    data = head + mac(sender) + ip_address(address).packed + bytes(6) + ip_address(target).packed
    return ether(kind, data)


def tagged(vlan: int, frame: bytes) -> bytes:
    """The frame with one more VLAN tag."""
    return frame[:12] + struct.pack("!HH", QTAG, vlan) + frame[12:]


def bpdu(source: str = MAC) -> bytes:
    """A bridge that says that it is the root of the rapid spanning tree, with the best priority there is."""
    root = struct.pack("!H", 0) + mac("00:00:00:00:00:01")
    body = struct.pack("!HBBB", 0, 2, 2, 0x3C) + root + struct.pack("!I", 0) + root
    body += struct.pack("!HHHHHB", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8, 0)
    data = b"\x42\x42\x03" + body
    return (mac("01:80:c2:00:00:00") + mac(source) + struct.pack("!H", len(data)) + data).ljust(60, b"\0")


def lacp(source: str = MAC) -> bytes:
    """A LACPDU."""
    return ether(0x8809, b"\x01\x01\x01\x14" + bytes(106), source, "01:80:c2:00:00:02")


def recorded(path: Path) -> list[bytes]:
    """The frames of a recording in the format of tcpdump."""
    data, at, found = path.read_bytes(), 24, []
    while at + 16 <= len(data):
        length = struct.unpack("=I", data[at + 8 : at + 12])[0]
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return found
