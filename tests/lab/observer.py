# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An independent witness of a lab: a process of its own that looks every 200 ms, and never asks our modules.

    with Observer(lab) as watch:
        ...
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)

By hand: ``python3 observer.py --name LAB --out FILE`` until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# It is a program as well as a module of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import RECORD_OFFSET, RECORD_SIZE, parse_record
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.roles.lab.files.drover_lab.network import RUN_NETNS
from ansible_collections.drover.kvm.tests.lab.judge import Sample, Verdict, judge

PERIOD = 0.2
DEFINITIONS_EVERY = 5
PORT = 9000
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def in_namespace(path: Path) -> Iterator[None]:
    """Be in another network namespace for a moment; a socket made there stays there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net", "rb") as home, open(path, "rb") as away:
        if libc.setns(away.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


def read_disk(path: str | Path) -> int:
    """The counter on a guest's raw disk (file or device); 0 when there is none yet."""
    with open(path, "rb") as disk:
        disk.seek(RECORD_OFFSET)
        record = parse_record(disk.read(RECORD_SIZE))
    return record.counter if record else 0


class Sampler:
    """The inside of the observing process."""

    def __init__(self, lab: Lab, out: Path) -> None:
        self.lab = lab
        self.out = out.open("a", encoding="utf-8", buffering=1)
        self.nodes = {(RUN_NETNS / lab.network.namespace(name)).stat().st_ino: name for name in lab.topology.nodes}
        self.sinks = []
        for client in lab.topology.clients:
            with in_namespace(RUN_NETNS / lab.network.namespace(client)):
                sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sink.bind(("", PORT))
            self.sinks.append(sink)

    def tell(self, kind: str, **data: Any) -> None:
        """Write one sample."""
        self.out.write(json.dumps({"kind": kind, "time": round(time.monotonic(), 4), **data}) + "\n")

    def run(self) -> None:
        """Sample until SIGTERM, or until who began it is gone: a story that was killed leaves nothing behind."""
        stop: list[int] = []
        parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda caught, _frame: stop.append(caught))
        looks = 0
        following = time.monotonic()
        while not stop and os.getppid() == parent:
            self.tell("copies", copies=list(self.copies()))
            if looks % DEFINITIONS_EVERY == 0:
                self.tell("definitions", nodes=self.definitions())
            looks += 1
            following = max(following + PERIOD, time.monotonic())
            self.listen(following)
        self.tell("copies", copies=list(self.copies()))
        self.tell("definitions", nodes=self.definitions())

    def listen(self, until: float) -> None:
        """Take down the guests' datagrams until the next look."""
        while True:
            left = until - time.monotonic()
            ready, _writable, _failed = select.select(self.sinks, [], [], max(left, 0))
            for sink in ready:
                data, source = sink.recvfrom(2048)
                record = parse_record(data)
                if record:
                    words = {"boot": record.boot_id, "counter": record.counter, "monotonic_ms": record.monotonic_ms}
                    self.tell("word", name=record.name, source=source[0], failed=record.failed_writes, **words)
            if left <= 0:
                return

    def copies(self) -> Iterator[dict[str, Any]]:
        """Every QEMU process of the lab's nodes, by what the kernel says of it."""
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                node = self.nodes.get(os.stat(f"/proc/{entry}/ns/net").st_ino)
                if node is None or "/qemu-system-" not in os.readlink(f"/proc/{entry}/exe"):
                    continue
                words = Path(f"/proc/{entry}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                # libvirt starts QEMU now and then to ask what it can: that one has no UUID.
                if "-uuid" not in words:
                    continue
                uuid = words[words.index("-uuid") + 1]
                name = words[words.index("-name") + 1].split(",")[0].replace("guest=", "")
                yield {"uuid": uuid, "name": name, "node": node, "pid": int(entry), "ran_ms": self.ran_ms(entry)}
            except (OSError, IndexError, ValueError):
                # It ended while we looked.
                continue

    def ran_ms(self, pid: str) -> float:
        """How long the virtual processors of a QEMU have run so far, in milliseconds."""
        total = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            name = Path(f"/proc/{pid}/task/{task}/comm").read_text(encoding="utf-8")
            if name.startswith("CPU "):
                total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text(encoding="ascii").split()[0])
        return round(total / 1e6, 3)

    def definitions(self) -> dict[str, dict[str, str]]:
        """Node → UUID → name of the persistent definitions, read from the files whether the node is on or off."""
        found: dict[str, dict[str, str]] = {}
        for name, machine in self.lab.machines.items():
            found[name] = {}
            for path in sorted((machine.folder / "upper/etc/libvirt/qemu").glob("*.xml")):
                try:
                    tree = ET.parse(path).getroot()
                except (OSError, ET.ParseError):
                    continue
                found[name][tree.findtext("uuid", "")] = tree.findtext("name", "")
        return found


class Observer:
    """Watch a lab from another process while a ``with`` block runs."""

    def __init__(self, lab: Lab, out: Path | None = None) -> None:
        """``out`` is the file of samples; default: ``observer.jsonl`` in the lab's state folder, begun anew."""
        self.lab = lab
        self.out = out or lab.state / "observer.jsonl"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Observer:
        self.out.unlink(missing_ok=True)
        argv = [sys.executable, str(Path(__file__).resolve()), "--name", self.lab.name, "--out", str(self.out)]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not any(sample["kind"] == "definitions" for sample in self.samples()):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"the observer of lab {self.lab.name} did not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *_reason: object) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def samples(self) -> list[Sample]:
        """What was written so far; a line that is just being written is left out."""
        if not self.out.exists():
            return []
        lines = self.out.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def words(self, name: str) -> list[Sample]:
        """The datagrams of one guest so far."""
        return [sample for sample in self.samples() if sample["kind"] == "word" and sample["name"] == name]

    def wait_word(self, name: str, after: float = 0, seconds: float = 90) -> Sample:
        """Wait for a datagram of a guest that came after ``after`` (time.monotonic()); AssertionError without one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            words = self.words(name)
            if words and words[-1]["time"] > after:
                return words[-1]
            time.sleep(0.2)
        raise AssertionError(f"{name} said nothing within {seconds:g} s")

    def longest_gap(self, name: str, since: float) -> float:
        """The longest time between two words of a VM from a second before `since` on, seconds."""
        times = [float(word["time"]) for word in self.words(name) if word["time"] > since - 1]
        return max(later - sooner for sooner, later in zip(times, times[1:]))

    def look_at_disk(self, name: str, path: str | Path) -> int:
        """Read a guest's counter from its raw disk into the samples; do it while the guest is off."""
        counter = read_disk(path)
        with self.out.open("a", encoding="utf-8") as out:
            data = {"kind": "disk", "time": round(time.monotonic(), 4), "name": name, "counter": counter}
            out.write(json.dumps(data) + "\n")
        return counter

    def verdict(self, new: Iterable[str] = (), gone: Iterable[str] = ()) -> Verdict:
        """Judge what was seen; ``new`` and ``gone`` are UUIDs of VMs that were to come or go."""
        return judge(self.samples(), new, gone)


def main() -> int:
    """Run the sampler."""
    options = argparse.ArgumentParser(description="Watch a lab until SIGTERM.")
    options.add_argument("--name", default="drover")
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    Sampler(Lab(chosen.name), chosen.out).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
