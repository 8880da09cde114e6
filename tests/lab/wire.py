# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a node's wires and in a guest's memory: for the proof that the second does not come to the first."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.drover.kvm.tests.lab.cluster import wait_until
from ansible_collections.drover.kvm.tests.lab.migration import MIB, Mover

FOLDER = "/run/capture"
HEADER = 24
IPV4 = 0x0800
TCP = 6
SYN = 0x02


@dataclass
class Flow:
    """What went one way over a TCP connection, in order."""

    name: str
    port: int
    data: bytes


class Capture:
    """Record all TCP on interfaces of the node that the VM leaves, while a ``with`` block runs."""

    def __init__(self, mover: Mover, interfaces: tuple[str, ...]) -> None:
        self.mover, self.interfaces = mover, interfaces
        self.packets: list[bytes] = []

    def __enter__(self) -> Capture:
        node = self.mover.source
        self.mover.inside(node, "mkdir", "-p", FOLDER)
        for name in self.interfaces:
            argv = f"tcpdump -i {name} -s 0 -B 65536 -U -Z root -w {FOLDER}/{name} tcp".split()
            self.mover.inside(node, "systemd-run", "--quiet", "--collect", f"--unit=capture-{name}", *argv)
        for name in self.interfaces:
            path = self.file(name)
            # tcpdump writes the file's header once it listens.
            wait_until(lambda path=path: (path.exists() and path.stat().st_size >= HEADER) or "no file", 60, str(path))
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.interfaces:
            self.mover.inside(self.mover.source, "systemctl", "stop", f"capture-{name}")
            self.packets += list(packets(self.file(name).read_bytes()))
        self.mover.inside(self.mover.source, "rm", "-r", FOLDER)

    def file(self, interface: str) -> Path:
        """The recording, seen from the host."""
        return self.mover.lab.machine(self.mover.source).path(f"{FOLDER}/{interface}")

    def flows(self) -> list[Flow]:
        """The connections' data, put together."""
        segments: dict[tuple[bytes, bytes], dict[int, bytes]] = {}
        for packet in self.packets:
            for ends, sequence, data in tcp(packet):
                seen = segments.setdefault(ends, {})
                if len(data) > len(seen.get(sequence, b"")):
                    seen[sequence] = data
        every = segments.items()
        return [Flow(hosts.hex(), int.from_bytes(ports[2:], "big"), joined(seen)) for (hosts, ports), seen in every]


def packets(recording: bytes) -> Iterator[bytes]:
    """The packets of a file of tcpdump."""
    order = "<" if recording[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    at = HEADER
    while at + 16 <= len(recording):
        length = struct.unpack(f"{order}I", recording[at + 8 : at + 12])[0]
        yield recording[at + 16 : at + 16 + length]
        at += 16 + length


def tcp(frame: bytes) -> Iterator[tuple[tuple[bytes, bytes], int, bytes]]:
    """Of an Ethernet frame with TCP over IPv4 that carries data: both ends, sequence number, data."""
    kind = struct.unpack("!H", frame[12:14])[0]
    if kind != IPV4 or frame[23] != TCP:
        return
    begin = 14 + 4 * (frame[14] & 15)
    # A segment that the kernel has not cut yet may have no length in its header.
    end = 14 + struct.unpack("!H", frame[16:18])[0] if frame[16:18] != b"\0\0" else len(frame)
    data = frame[begin + 4 * (frame[begin + 12] >> 4) : end]
    if data:
        ends = (frame[26:34], frame[begin : begin + 4])
        yield ends, struct.unpack("!I", frame[begin + 4 : begin + 8])[0], data


def joined(segments: dict[int, bytes]) -> bytes:
    """The segments in order. What was sent twice stays once; a hole in the recording is left out."""
    base = next(iter(segments))
    order = sorted(segments, key=lambda sequence: (sequence - base + (1 << 31)) % (1 << 32))
    found, reached = bytearray(), order[0]
    for sequence in order:
        data = segments[sequence]
        known = (reached - sequence) % (1 << 32)
        if known >= 1 << 31:
            known = 0
        if known < len(data):
            found += data[known:]
            reached = (sequence + len(data)) % (1 << 32)
    return bytes(found)


def in_memory(mover: Mover, node: str, text: bytes) -> int:
    """How often a text is in the memory of the VM's QEMU process."""
    pids = [pid for pid in mover.lab.machine(node).find("qemu-system-x86_64") if is_of(pid, mover.uuid)]
    assert len(pids) == 1, f"{mover.vm} on {node}: processes {pids}"
    found = 0
    with open(f"/proc/{pids[0]}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pids[0]}/maps").read_text(encoding="utf-8").splitlines():
            place, rights = line.split()[:2]
            begin, end = (int(word, 16) for word in place.split("-"))
            # The guest's memory is data of some size; what can be executed is the emulator's.
            if rights.startswith("rw-") and end - begin >= MIB:
                memory.seek(begin)
                found += memory.read(end - begin).count(text)
    return found


def is_of(pid: int, word: str) -> bool:
    """Whether a process was started with this word, such as its VM's UUID; False when it is gone."""
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
