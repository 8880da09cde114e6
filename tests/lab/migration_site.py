# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab with TLS between its hypervisors and one guest that counts, for the stories about migration.

The guest sends its counter ten times a second to 10.99.0.1, an address that every node has on its own bridge, so
each node's log holds what the guest did there. A counter that two logs hold was counted by two running copies.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
NODES = ("hv1", "hv2", "hv3")
VM = "story"
SECOND = "story2"
CANARY = "DROVERCANARYSTORY"
SHARED = ("-o", "ControlPath=/tmp/drover-story-%C")
SINK = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9000))
with open("/run/counter.log", "a", buffering=1) as log:
    while True:
        words = s.recv(2048).split(bytes(1))[0].decode("ascii", "replace").strip()
        log.write(f"{time.time():.4f} {words}\\n")
"""
DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type><kernel>/var/lib/libvirt/images/vmlinuz</kernel>
<initrd>/var/lib/libvirt/images/initrd.img</initrd><cmdline>quiet console=ttyS0 panic=1 no_timer_check nokaslr
 mitigations=off lpj=4000000 audit=0 nowatchdog cryptomgr.notests random.trust_cpu=on net.ifnames=0
 drover.name={name} drover.ip=10.99.0.21/24 drover.sink=10.99.0.1:9000 drover.canary={canary}</cmdline></os>
<features><acpi/><apic/></features><cpu mode='custom' match='exact'><model fallback='allow'>Nehalem</model></cpu>
<on_crash>destroy</on_crash><devices><controller type='usb' model='none'/><interface type='bridge'>
<mac address='52:54:00:99:01:21'/><source bridge='br-vm'/><model type='virtio'/><rom enabled='no'/></interface>
<serial type='file'><source path='/var/lib/libvirt/images/{name}.console'/></serial>
<memballoon model='virtio'/></devices></domain>"""


SECOND_DOMAIN = f"""<domain type='qemu'><name>{SECOND}</name><memory unit='MiB'>32</memory><os>
<type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os><devices><controller type='usb' model='none'/></devices>
<cpu mode='custom' match='exact'><model fallback='allow'>Nehalem</model></cpu></domain>"""


class Missed(AssertionError):
    """The fault did not fall into its phase: the story is not exercised, and must not count as passed."""


class Site:
    """The lab's nodes by ssh, and the collection's modules by ansible."""

    def __init__(self, name):
        self.name = name
        self.state = Path("/var/tmp/drover-lab") / name
        # One connection for each node, opened apart: its process would keep the pipes of a command open.
        for node in NODES:
            argv = [str(self.state / "bin/ssh"), *SHARED, "-o", "ControlMaster=yes", "-N", "-f", node]
            null = subprocess.DEVNULL
            subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=False)

    def ssh(self, node, command, stdin=None, check=True, timeout=60):
        done = subprocess.run(
            [str(self.state / "bin/ssh"), *SHARED, node, command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=not isinstance(stdin, bytes),
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{node}: {command}: {done.stderr}"
        return done.stdout if isinstance(done.stdout, str) else done.stdout.decode()

    def virsh(self, node, command, check=True):
        return self.ssh(node, f"timeout 10 virsh -q {command}", check=check).strip()

    def start(self, node, task, check=False):
        """Begin module migrate with these options; returns the process."""
        argv = ["ansible", "-i", str(self.state / "inventory.yml"), node, "-m", "drover.kvm.migrate"]
        argv += ["-a", json.dumps(task), *(["--check"] if check else [])]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ
        )

    @staticmethod
    def end(process, seconds=150):
        """The module's result."""
        out, err = process.communicate(timeout=seconds)
        match = re.search(r"=> (\{.*\})\s*$", out, re.DOTALL)
        assert match, out + err
        return {"failed": "FAILED!" in out, **json.loads(match.group(1))}

    def migrate(self, node, check=False, **task):
        return self.end(self.start(node, task, check))

    # The VM as libvirt and the guest tell
    def reason(self, node):
        return self.virsh(node, f"domstate {VM} --reason", check=False)

    def where(self):
        """What each node that has the VM says of it, and whether it is persistent and starts by itself."""
        found = {}
        for node in NODES:
            info = self.virsh(node, f"dominfo {VM}", check=False)
            if info:
                facts = dict(re.findall(r"^(State|Persistent|Autostart):\s+(.*)$", info, re.MULTILINE))
                found[node] = (facts["State"], facts["Persistent"], facts["Autostart"])
        return found

    def marked(self):
        """The nodes on which the VM carries the marker."""
        return [n for n in NODES if self.virsh(n, f"metadata {VM} urn:drover:migration:1", check=False)]

    def counters(self):
        """(boot, counter) by node."""
        found = {}
        for node in NODES:
            rows = [line.split() for line in self.ssh(node, "cat /run/counter.log", check=False).splitlines()]
            found[node] = [(row[2], int(row[3])) for row in rows if len(row) > 6 and row[6] == VM]
        return found

    def doubles(self):
        """How many counters were counted more than once."""
        every = Counter(counter for rows in self.counters().values() for counter in rows)
        return sum(number - 1 for number in every.values())

    def counts_on(self, node, seconds=1.5):
        """Whether the guest counts on the node now."""
        before = len(self.counters()[node])
        time.sleep(seconds)
        return len(self.counters()[node]) > before

    # Faults
    def signal(self, node, name, program="libvirtd"):
        self.ssh(node, f"pkill -{name} -x {program}", check=False)

    def until(self, words, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise Missed(f"not exercised: {words} did not come within {seconds} s")
            time.sleep(0.1)

    def processed(self, node):
        """MiB that the migration has sent."""
        match = re.search(r"Data processed:\s+([\d.]+) (\w+)", self.virsh(node, f"domjobinfo {VM}", check=False))
        return 0 if not match else float(match.group(1)) * {"MiB": 1, "GiB": 1024}.get(match.group(2), 0)

    def in_perform(self, node):
        self.until("Perform", lambda: self.processed(node) > 1)

    def freeze_before_finish(self, source, target):
        """Freeze the destination's daemon in Perform, then let the memory end: Finish can't be answered."""
        self.in_perform(source)
        self.signal(target, "STOP")
        self.virsh(source, f"migrate-setspeed {VM} 900")
        self.virsh(source, f"migrate-setmaxdowntime {VM} 1500", check=False)
        self.until("the pause before Finish", lambda: "migrating" in self.reason(source), 20)

    # Setting up
    def prepare(self, guest):
        if "10.99.0.1/24" in self.ssh(
            "hv3", "ip address show br-vm 2>/dev/null; systemctl is-active sink", check=False
        ):
            return
        subprocess.run([str(HERE / "cluster_by_hand"), self.name], check=True)
        for node in NODES:
            for name in ("vmlinuz", "initrd.img"):
                self.ssh(node, f"cat > /var/lib/libvirt/images/{name}", stdin=(guest / name).read_bytes())
            self.ssh(node, "systemctl stop openvswitch-switch sink 2>/dev/null; cat > /root/sink.py", stdin=SINK)
            self.ssh(
                node,
                "ip link set br-vm up address 52:54:00:99:00:01; ip addr replace 10.99.0.1/24 dev br-vm; "
                "rm -f /run/counter.log; systemd-run -q --unit sink python3 /root/sink.py",
            )

    def fresh_vm(self, node):
        """The VM on this node and nowhere else, counting, with autostart. One that is well is brought here."""
        for other in NODES:
            self.signal(other, "CONT")
            self.ssh(other, "systemctl stop 'drover-migrate-*'; rm -f /run/drover/*.json; : > /run/counter.log")
        places = self.where()
        here = next(iter(places), "")
        well = list(places.values()) == [("running", "yes", "enable")] and not self.marked() and self.counts_on(here)
        if well and (here == node or self.migrate(here, name=VM, to=node).get("verified")):
            return
        for other in NODES:
            for command in (f"destroy {VM}", f"undefine {VM}"):
                self.virsh(other, command, check=False)
        xml = DOMAIN.format(name=VM, canary=CANARY).replace("\n drover", " drover")
        self.ssh(node, "cat > /root/story.xml", stdin=xml)
        for command in ("define /root/story.xml", f"start {VM}", f"autostart {VM}"):
            self.virsh(node, command)
        self.until("the guest's first word", lambda: bool(self.counters()[node]), 120)

    def second_vm(self, node):
        """A VM without a disk that waits in its BIOS."""
        for other in NODES:
            for command in (f"destroy {SECOND}", f"undefine {SECOND}"):
                self.virsh(other, command, check=False)
        self.ssh(node, "cat > /root/second.xml", stdin=SECOND_DOMAIN)
        self.virsh(node, "define /root/second.xml")
        self.virsh(node, f"start {SECOND}")
