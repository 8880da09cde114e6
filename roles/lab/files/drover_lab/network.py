# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces, cables and switches. Nothing is ever added to the host's own network namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import cgroups
from .run import run, spawn, wait_for
from .topology import Cable, Switch, Topology, cables, switch_arguments

RUN_NETNS = Path("/run/netns")
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class Network:
    """The network of one lab; each ``ensure_…`` repairs what is missing and says whether anything was."""

    def __init__(self, lab: str, topology: Topology, state: Path) -> None:
        self.lab = lab
        self.topology = topology
        self.folder = state / "switch"
        self.mark = state / "network-is-whole"

    def namespace(self, place: str) -> str:
        """The name of a place's network namespace, as in /run/netns."""
        return f"{self.lab}.{place}"

    def inodes(self) -> set[int]:
        """What identifies the lab's namespaces in /proc/PID/ns/net (those of an earlier topology included)."""
        return {path.stat().st_ino for path in self.namespaces()}

    def namespaces(self) -> list[Path]:
        """The existing namespaces of this lab."""
        return sorted(RUN_NETNS.glob(f"{self.lab}.*"))

    def enter(self, place: str, argv: list[str]) -> list[str]:
        """The command that runs another one in a place (``ip netns exec`` would hide the cgroups)."""
        return ["nsenter", f"--net={RUN_NETNS / self.namespace(place)}", "--", *argv]

    def links(self, place: str) -> dict[str, Any]:
        """Interface name → what ``ip link`` says of it."""
        shown = run(["ip", "-json", "-n", self.namespace(place), "link", "show"]).stdout
        return {link["ifname"]: link for link in json.loads(shown or "[]")}

    def ensure(self) -> bool:
        """Lay the whole network, or what is missing of it."""
        # Making and connecting a cable are two steps: the mark says that both were done for all, once.
        whole = self.mark.exists()
        changed = self._ensure_namespaces() or not whole
        links = {place: self.links(place) for place in self.topology.places()}
        every = cables(self.topology)
        missing = [
            cable
            for cable in every
            if cable.left_nic not in links[cable.left] or cable.right_nic not in links[cable.right]
        ]
        if missing:
            self.mark.unlink(missing_ok=True)
            self._forget(missing)
        for cable in missing:
            self._lay(cable)
        # A cable that was pulled on purpose stays so, unless the network was never finished.
        for cable in missing if whole else every:
            self._connect(cable)
        for switch in self.topology.switches.values():
            if switch.kind == "bridge" and (missing or changed):
                self._connect_bridge(switch)
        if any(switch.kind == "openvswitch" for switch in self.topology.switches.values()):
            changed |= self._ensure_open_vswitch()
        self.mark.touch()
        return changed or bool(missing)

    def _ensure_namespaces(self) -> bool:
        changed = False
        there = {path.name for path in self.namespaces()}
        for place in self.topology.places():
            # A run killed between making the name and mounting on it leaves a plain file.
            if self.namespace(place) in there and self._is_namespace(place):
                continue
            self.mark.unlink(missing_ok=True)
            (RUN_NETNS / self.namespace(place)).unlink(missing_ok=True)
            run(["ip", "netns", "add", self.namespace(place)])
            changed = True
        return changed

    def _is_namespace(self, place: str) -> bool:
        return run(["ip", "-n", self.namespace(place), "link", "show", "lo"], check=False).returncode == 0

    def _forget(self, missing: list[Cable]) -> None:
        """Take the ports of lost cables from a running switch: it would go on reading the NIC that is no more."""
        lost = [cable.right_nic for cable in missing if cable.right == "switch"]
        if lost and self._answers("vswitchd.ctl"):
            words = [word for nic in lost for word in ("--", "--if-exists", "--with-iface", "del-port", nic)]
            self.vsctl(*words[1:])

    def _lay(self, cable: Cable) -> None:
        left, right = self.namespace(cable.left), self.namespace(cable.right)
        words = ["link", "add", cable.left_nic, "mtu", str(cable.mtu), "netns", left, "type", "veth"]
        run(["ip", *words, "peer", "name", cable.right_nic, "mtu", str(cable.mtu), "netns", right])

    def _connect(self, cable: Cable) -> None:
        """Bring up what is not a node's own business; repeatable."""
        for place in (cable.left, cable.right):
            run(["ip", "-n", self.namespace(place), "link", "set", "lo", "up"])
        for place, nic in ((cable.left, cable.left_nic), (cable.right, cable.right_nic)):
            if place == "switch":
                run(["ip", "-n", self.namespace(place), "link", "set", nic, "up"])
            elif place in self.topology.nodes and self.topology.nodes[place].kind == "vm":
                # Only a lead to the VM's own NIC: it is to say nothing itself.
                run(["ip", "-n", self.namespace(place), "link", "set", nic, "addrgenmode", "none", "up"])
        if cable.left in self.topology.clients:
            left, address = self.namespace(cable.left), self.topology.networks[cable.left_nic].interface(1)
            run(["ip", "-n", left, "address", "replace", address, "dev", cable.left_nic])
            run(["ip", "-n", left, "link", "set", cable.left_nic, "up"])

    def _connect_bridge(self, switch: Switch) -> None:
        space = self.namespace("switch")
        if switch.name not in self.links("switch"):
            run(["ip", "-n", space, "link", "add", switch.name, "type", "bridge"])
        address = self.topology.networks[switch.network].interface(1)
        run(["ip", "-n", space, "address", "replace", address, "dev", switch.name])
        run(["ip", "-n", space, "link", "set", switch.name, "up"])
        for node in self.topology.nodes.values():
            for nic in node.nics:
                if nic.to == switch.name:
                    run(["ip", "-n", space, "link", "set", f"{node.name}-{nic.name}", "master", switch.name])

    def vsctl(self, *arguments: str, timeout: float = 20) -> str:
        """Ask the lab's own Open vSwitch (the switches', not a node's)."""
        socket = f"--db=unix:{self.folder}/db.sock"
        return run(["ovs-vsctl", socket, "--timeout=15", *arguments], timeout=timeout).stdout

    def appctl(self, *arguments: str) -> str:
        """Ask the switches' ovs-vswitchd, for example ``lacp/show``."""
        return run(["ovs-appctl", f"--target={self.folder}/vswitchd.ctl", *arguments], timeout=20).stdout

    def _ensure_open_vswitch(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        changed = False
        if not self._answers("db.ctl"):
            self._start_database()
            changed = True
        if not self._answers("vswitchd.ctl"):
            self._start_switch()
            changed = True
        before = self._ports()
        words: list[str] = []
        for switch in self.topology.switches.values():
            if switch.kind == "openvswitch":
                words += switch_arguments(self.topology, switch)
        self.vsctl(*words[1:])
        return changed or before != self._ports()

    def _ports(self) -> list[str]:
        return sorted(self.vsctl("--bare", "--columns=name", "list", "Interface").split())

    def _answers(self, socket: str) -> bool:
        if not (self.folder / socket).exists():
            return False
        target = f"--target={self.folder / socket}"
        return run(["ovs-appctl", target, "--timeout=5", "version"], check=False).returncode == 0

    def _spawn(self, argv: list[str], log: str) -> None:
        places = {name: str(self.folder) for name in ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")}
        spawn(cgroups.inside(self.lab, "switch", self.enter("switch", argv)), self.folder / log, places)

    def _start_database(self) -> None:
        database = self.folder / "conf.db"
        for stale in self.folder.iterdir():
            stale.unlink()
        run(["ovsdb-tool", "create", str(database), SCHEMA])
        argv = ["ovsdb-server", str(database), f"--remote=punix:{self.folder}/db.sock"]
        argv += [f"--unixctl={self.folder}/db.ctl"]
        self._spawn(argv, "db.log")
        wait_for("answer of ovsdb-server", lambda: (self._answers("db.ctl"), self._log("db.log")), 15)
        # Without it frames with a checksum that is still to be filled in would leave the switch.
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")

    def _start_switch(self) -> None:
        argv = ["ovs-vswitchd", f"unix:{self.folder}/db.sock", f"--unixctl={self.folder}/vswitchd.ctl"]
        self._spawn(argv, "vswitchd.log")
        wait_for("answer of ovs-vswitchd", lambda: (self._answers("vswitchd.ctl"), self._log("vswitchd.log")), 15)

    def _log(self, name: str) -> str:
        lines = (self.folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-3:])

    def remove(self) -> bool:
        """Delete the namespaces and with them every link and switch in them."""
        found = self.namespaces()
        for path in found:
            if run(["ip", "netns", "delete", path.name], check=False).returncode != 0:
                path.unlink(missing_ok=True)
        return bool(found)
