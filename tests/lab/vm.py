# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM on files of a node, whose boot sector counts, as the witness of what is done to it; and modules that are killed.

The guest writes its counter to its disk and then says it on its serial port.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, program, wait_until

NODE = "hv1"
FOLDER = "/srv/snap"
XML = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type machine='pc'>hvm</type></os><features><acpi/></features><on_reboot>restart</on_reboot><devices>{disks}
<serial type='file'><source path='{folder}/{name}.serial' append='on'/></serial>{agent}</devices></domain>"""
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/>
<source file='{folder}/{name}-{target}.{format}'/><target dev='{target}' bus='virtio'/></disk>"""

SECOND = "/machine/peripheral/virtio-disk1/virtio-backend"

# The module's own process, told from the programs that start it by who has the library of libvirt open.
KILL = """
pid=
until [ -n "$pid" ]; do
    sleep 0.05
    for one in $(pgrep -f AnsiballZ_{module}); do
        grep -q libvirtmod /proc/$one/maps 2>/dev/null && pid=$one && break
    done
done
vm={vm}
begin=$(date +%s%3N)
while [ -d /proc/$pid ]; do
    if {{ {moment}; }} >/dev/null 2>&1; then
        kill -9 $pid && echo killed $(($(date +%s%3N) - begin)) && exit
    fi
done
echo done $(($(date +%s%3N) - begin))
"""


class Fate(NamedTuple):
    """Of a module that was to be killed: whether it was, the seconds that it lived, and what Ansible said."""

    killed: bool
    seconds: float
    output: str


def cut_off(site: Cluster, node: str, vm: str, moment: str, module: str = "snapshot", **options: Any) -> Fate:
    """Run a module for a VM and kill it with SIGKILL as soon as a shell condition on the node is true."""
    task = json.dumps({"name": vm, **options})
    argv = [*program("ansible"), *site.inventory, node, "-m", f"drover.kvm.{module}", "-a", task]
    # Pipelining, which the sites use, leaves nothing in the process's command line by which it could be told.
    argv += ["-e", json.dumps({"ansible_ssh_pipelining": False})]
    with subprocess.Popen(
        argv,
        env=site.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        script = KILL.format(moment=moment, vm=vm, module=module)
        fate, milliseconds = site.ssh(node, "sh", stdin=script, timeout=240).split()
        output = process.communicate(timeout=240)[0]
    return Fate(fate == "killed", int(milliseconds) / 1000, output)


def kill_in(site: Cluster, node: str, vm: str, moment: str, **options: Any) -> None:
    """The same of module snapshot; AssertionError when it had ended before."""
    fate = cut_off(site, node, vm, moment, **options)
    assert fate.killed, f"not exercised, it was done: {fate.output}"


def on_second(vm: str, words: Sequence[str]) -> str:
    """The shell script that lets QEMU do these things of qemu-io(1) to a VM's second disk, as the guest would."""
    ask = f"virsh -q qemu-monitor-command {vm} --hmp 'qemu-io -d {SECOND} \"{{}}\"'"
    return "; ".join(ask.format(one) for one in words)


class Vm:
    """A VM whose boot sector counts; `disks` by their names on the bus, each with its format."""

    def __init__(self, site: Cluster, name: str, disks: dict[str, str]) -> None:
        self.site, self.name, self.disks = site, name, disks
        guests = Guests(site.lab.base)
        guests.ensure()
        self.sector = base64.b64encode(guests.boot_sector.read_bytes().ljust(17 * 512, b"\0")).decode()

    def make(self) -> Vm:
        """Define it anew and start it."""
        self.remove()
        lines = [f"mkdir -p {FOLDER}; cd {FOLDER}; base64 -d >sector; truncate -s 16M sector"]
        for target, kind in self.disks.items():
            lines.append(f"qemu-img convert -f raw -O {kind} sector {self.name}-{target}.{kind}")
        # The second one is big, and takes space for what is written to it.
        lines += [f"qemu-img resize -f {self.disks['vdb']} {self.name}-vdb.{self.disks['vdb']} 1G"]
        self.site.ssh(NODE, "; ".join(lines), stdin=self.sector)
        given = {"folder": FOLDER, "name": self.name}
        disks = [DISK.format(**given, target=target, format=kind) for target, kind in self.disks.items()]
        # Without an agent: one that is silent is waited for after each way back.
        xml = XML.format(folder=FOLDER, name=self.name, memory=32, disks="".join(disks), agent="")
        self.site.ssh(NODE, f"cat >{FOLDER}/{self.name}.xml; virsh define {FOLDER}/{self.name}.xml", stdin=xml)
        self.virsh("start")
        self.counts()
        return self

    def remove(self) -> None:
        """Take it away with all that it has."""
        self.site.ssh(
            NODE,
            f"virsh destroy {self.name}; virsh undefine {self.name} --snapshots-metadata --checkpoints-metadata; "
            f"rm -f {FOLDER}/{self.name}*",
            check=False,
        )

    def virsh(self, *words: str, check: bool = True) -> str:
        """What virsh says of it."""
        return self.site.ssh(NODE, "virsh", "-q", words[0], self.name, *words[1:], check=check, timeout=300).strip()

    def fill(self, mib: int) -> None:
        """Let QEMU write to the second disk as the guest would, from 32 MiB on."""
        self._on_second([f"write -P 5 {number * 32}M 32M" for number in range(1, mib // 32 + 1)])

    def empty(self, mib: int) -> None:
        """Let QEMU give back what was written there."""
        self._on_second([f"discard 32M {mib}M"])

    def _on_second(self, words: Sequence[str]) -> None:
        self.site.ssh(NODE, on_second(self.name, words), timeout=240)

    def said(self) -> list[int]:
        """All that it has counted aloud; a line that is not whole is left out."""
        text = self.site.ssh(NODE, f"cat {FOLDER}/{self.name}.serial", check=False)
        return [int(word, 16) for word in re.findall(r"t([0-9a-f]{8})\r?\n", text)]

    def counts(self) -> int:
        """Wait for its next word."""
        before = len(self.said())
        wait_until(lambda: len(self.said()) > before, 90, f"{self.name} counts")
        return self.said()[-1]

    def returned(self, since: int = 0) -> list[int]:
        """With which counts it went on each time it was set back, in what it said from a place on."""
        said = self.said()[since:]
        return [other for one, other in zip(said, said[1:]) if other < one]

    def state(self) -> str:
        """State and reason."""
        return self.virsh("domstate", "--reason")

    def snapshots(self) -> list[str]:
        """Names, by virsh."""
        return sorted(self.virsh("snapshot-list", "--name").split())

    def chain(self, target: str = "vda") -> list[str]:
        """The files of a disk, by qemu-img, which reads every header."""
        path = dict(line.split(None, 1) for line in self.virsh("domblklist").splitlines())[target]
        told = json.loads(self.site.ssh(NODE, f"qemu-img info -U --backing-chain --output=json {path}"))
        return [one["filename"] for one in told]

    def kept(self, snapshot: str) -> int:
        """The counter on the disk of an internal snapshot."""
        path = f"{FOLDER}/{self.name}-vda.qcow2"
        script = f"cd {FOLDER}; qemu-img convert -U -l snapshot.name={snapshot} -O raw {path} look"
        self.site.ssh(NODE, script, timeout=120)
        return self.counter("look")

    def counter(self, raw: str) -> int:
        """The counter on a raw image: sector 16 holds DRVT and 32 bits."""
        words = self.site.ssh(NODE, f"od -An -tx4 -j8192 -N8 {FOLDER}/{raw}").split()
        assert words[0] == "54565244", words
        return int(words[1], 16)

    def asked(self, command: str) -> str:
        """What the guest agent answers."""
        return self.virsh("qemu-agent-command", f'\'{{"execute": "{command}"}}\'', check=False)

    def task(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module."""
        return self.site.task(NODE, "snapshot", check, name=self.name, **options)

    def good(self, **options: Any) -> dict[str, Any]:
        """The same; AssertionError when it failed."""
        result = self.task(**options)
        assert not result["failed"], result
        return result

    def killed(self, moment: str, **options: Any) -> None:
        """Run the module and kill it with SIGKILL as soon as a shell condition on the node is true."""
        kill_in(self.site, NODE, self.name, moment, **options)

    def settled(self, module: str = "snapshot", **options: Any) -> dict[str, Any]:
        """Run the module again until libvirt has ended what it had begun."""
        results: list[dict[str, Any]] = []

        def run() -> object:
            results.append(self.site.task(NODE, module, name=self.name, **options))
            return not results[-1]["failed"] or results[-1]

        wait_until(run, 120, "a run that is good")
        return results[-1]

    def is_sound(self) -> None:
        """It counts, and QEMU's own check finds nothing wrong with its disks once it is off."""
        self.counts()
        self.virsh("destroy")
        try:
            for target in self.disks:
                for path in self.chain(target):
                    kind = "qcow2" if path.endswith("qcow2") or "." not in path else "raw"
                    if kind == "qcow2":
                        self.site.ssh(NODE, f"qemu-img check -f qcow2 {path}", timeout=120)
        finally:
            self.virsh("start")
        self.counts()
