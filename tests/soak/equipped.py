# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM of a story: what module vm makes of it, what libvirt says of its devices, and what its guest's agent does."""

from __future__ import annotations

import base64
import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import SINK, Cluster, wait_until

SOURCES, BOOT = "/srv/equipment", "/var/lib/libvirt/boot"


class Equipped:
    """A VM, the node where it was made, and its guest."""

    def __init__(self, cluster: Cluster, name: str, node: str) -> None:
        self.cluster, self.name, self.node = cluster, name, node
        self.source = f"{SOURCES}/{name}.raw"

    def ssh(self, command: str, check: bool = True) -> str:
        """What a command says on the node where it was made."""
        return self.cluster.ssh(self.node, command, check=check).strip()

    def task(self, node: str = "", check: bool = False, **options: Any) -> dict[str, Any]:
        """Module vm."""
        return self.cluster.task(node or self.node, "vm", check=check, name=self.name, **options)

    def vm(self, **options: Any) -> dict[str, Any]:
        """Module vm: as check mode said, and a second run changes nothing."""
        predicted, done = self.task(check=True, **options), self.task(**options)
        assert not done["failed"], done
        assert [predicted[key] for key in ("actions", "pending_restart")] == [done["actions"], done["pending_restart"]]
        again = self.task(**options)
        assert again["actions"] == [] and again["pending_restart"] == done["pending_restart"], again
        return done

    def move(self, node: str, to: str, **options: Any) -> dict[str, Any]:
        """Module migrate."""
        return self.cluster.task(node, "migrate", name=self.name, to=to, **options)

    def places(self, *options: str) -> dict[str, dict[str, str]]:
        """The address of each disk and NIC on its bus, as it runs, or with --inactive as it is defined."""
        found: dict[str, dict[str, str]] = {}
        for device in ET.fromstring(self.ssh(f"virsh dumpxml {' '.join(options)} {self.name}")).iterfind("devices/*"):
            if device.tag in ("disk", "interface"):
                at, key = device.find("address"), device.find("target" if device.tag == "disk" else "mac")
                assert at is not None and key is not None
                found[key.get("dev", key.get("address", ""))] = dict(at.attrib)
        return found

    def tap(self, mac: str) -> str:
        """The tap of one of its NICs."""
        lines = [line.split() for line in self.ssh(f"virsh -q domiflist {self.name}").splitlines()]
        return next(line[0] for line in lines if line[-1] == mac)

    def disk(self, address: str) -> dict[str, str]:
        """Its disk, which is to be a copy of an image with the guest's settings."""
        guests = Guests(self.cluster.lab.base)
        guests.ensure()
        self.cluster.ssh(self.node, "mkdir", "-p", SOURCES)
        settings = {"name": self.name, "ip": address, "sink": SINK}
        guests.write_image(self.cluster.lab.machine(self.node).path(self.source), settings)
        return {"type": "file", "target": "vda", "format": "raw", "source": self.source, "source_format": "raw"}

    def agent(self, node: str, command: str, **arguments: Any) -> Any:
        """What the guest's agent answers."""
        words = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        said = self.cluster.ssh(node, f"virsh qemu-agent-command {self.name} {shlex.quote(words)}")
        return json.loads(said)["return"]

    def guest(self, node: str, script: str) -> str:
        """What a script says in the guest; AssertionError when it fails."""
        arguments = {"path": "/bin/sh", "arg": ["-ec", script], "capture-output": True}
        number = self.agent(node, "guest-exec", **arguments)["pid"]
        said: dict[str, Any] = {}

        def done() -> bool:
            said.update(self.agent(node, "guest-exec-status", pid=number))
            return bool(said["exited"])

        wait_until(done, 180, "the script in the guest")
        texts = [base64.b64decode(said.get(f"{name}-data", "")).decode() for name in ("out", "err")]
        assert said["exitcode"] == 0, texts
        return texts[0].strip()

    def wait_agent(self, node: str, seconds: float = 120) -> None:
        """The agent comes some time after the counter."""
        ping = f'virsh qemu-agent-command {self.name} \'{{"execute": "guest-ping"}}\''
        wait_until(lambda: "return" in self.cluster.ssh(node, ping, check=False), seconds, "the guest's agent")

    def boot_from(self, kernel: Path, initrd: Path, words: str, nodes: tuple[str, ...]) -> None:
        """Write a kernel into its definition, as a person does with virsh edit, and put it on the nodes."""
        for node in nodes:
            self.cluster.ssh(node, "mkdir", "-p", BOOT)
            for source, name in ((kernel, f"{self.name}-kernel"), (initrd, f"{self.name}-initrd")):
                place = self.cluster.lab.machine(node).path(f"{BOOT}/{name}")
                place.write_bytes(source.read_bytes())
                place.chmod(0o644)
        own = f"<kernel>{BOOT}/{self.name}-kernel</kernel><initrd>{BOOT}/{self.name}-initrd</initrd>"
        text = self.cluster.ssh(self.node, "virsh", "dumpxml", "--inactive", self.name)
        assert text.count("</os>") == 1
        changed = text.replace("</os>", f"{own}<cmdline>{words}</cmdline></os>")
        self.cluster.ssh(self.node, "virsh", "define", "/dev/stdin", stdin=changed)
