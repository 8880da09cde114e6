# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep VMs honest at their ports of Open vSwitch: no other MAC, no other IP, no BPDU, no DHCP server, no router.

    port-guard watch                  the service: guards a port when it appears, and all when the switch was restarted
    port-guard once                   guard all ports now
    port-guard off                    take all of its flows away
    port-guard hook GUEST OPERATION SUB-OPERATION EXTRA    as libvirt's hook, with the VM's XML on standard input

Installed by role drover.kvm.open_vswitch. All that it must know is in Open vSwitch's own database: libvirt writes there
which MAC address belongs to a port, and the limit of what the VM sends; `external_ids:drover-port` says what else
the VM's definition declares (`open`, or its addresses). So it needs neither libvirt nor Ansible, and a port that is
plugged by anybody, or comes with a migration, is guarded like all others. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COOKIE = "0xd07e000000000001"
POLICY = "drover-port"
NAMESPACE = "urn:drover:kvm:1"
PROTOCOLS = "--protocols=OpenFlow14,OpenFlow15"
# Meters have no owner that could be asked; ours are those from this number on.
METERS = 30000
SECONDS = 10
LOOK = 0.2  # how often the switch's process id is looked at
VERIFY = 30.0  # how often the flows are counted, in case somebody deleted them
# The standard leaves these addresses to bridges; BPDUs and LACP are among them.
RESERVED = "dl_dst=01:80:c2:00:00:00/ff:ff:ff:ff:ff:f0"
TAGGED = "vlan_tci=0x1000/0x1000"
# A guest answers no DHCP, is no router and redirects nobody.
SERVICES = ("udp,tp_src=67", "udp6,tp_src=547", "icmp6,icmp_type=134", "icmp6,icmp_type=137")
SOLICIT, ADVERTISE = "icmp6,icmp_type=135,icmp_code=0", "icmp6,icmp_type=136,icmp_code=0"
# As a DHCP client and a probe for a duplicate have it; in two parts, since nothing binds to it.
UNKNOWN = "0.0.0." + "0"
NO_MAC = "00:00:00:00:00:00"
NO_SPANNING_TREE = {"rstp-enable": "false", "stp-enable": "false"}
COLUMNS = {
    "Bridge": ["name", "ports", "controller", "fail_mode", "datapath_type"],
    "Port": ["_uuid", "name", "tag", "trunks", "vlan_mode", "interfaces", "other_config"],
    "Interface": ["_uuid", "name", "ofport", "external_ids", "ingress_policing_rate", "ingress_policing_burst"],
}


class GuardError(Exception):
    """What could not be done, in a sentence."""


@dataclass(frozen=True)
class Port:
    """A VM's port. `rate` and `burst` (kbit/s, kbit) limit what the VM sends; 0 where the datapath itself does it."""

    name: str
    number: int
    mac: str
    access: bool
    policy: str = ""
    rate: int = 0
    burst: int = 0
    spanning: bool = False

    @property
    def honest(self) -> bool:
        """Whether addresses are checked: on an access port, unless its VM may use any."""
        return self.access and self.policy != "open"

    @property
    def addresses(self) -> list[str]:
        """The only addresses that the VM may use; empty for any."""
        return [] if self.policy in ("", "open") else self.policy.split(",")


@dataclass
class Bridge:
    """A bridge with its VMs' ports. `foreign` says who else decides about its flows; such a bridge is left alone."""

    name: str
    foreign: str = ""
    ports: list[Port] = field(default_factory=list)


def call(*argv: str, feed: str = "") -> str:
    """Standard output of a program. Raises GuardError with its words."""
    try:
        done = subprocess.run(argv, input=feed, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuardError(f"{argv[0]}: {error}") from None
    if done.returncode:
        raise GuardError(f"{argv[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def plain(value: Any) -> Any:
    """A value of OVSDB's JSON as a list, a dict or itself."""
    if not isinstance(value, list):
        return value
    kind, items = value
    return items if kind == "uuid" else dict(items) if kind == "map" else [plain(item) for item in items]


def several(value: Any) -> list[Any]:
    """A column that OVSDB writes as a set, or bare when it holds one."""
    found = plain(value)
    return found if isinstance(found, list) else [found]


def bridges_of(results: list[dict[str, Any]]) -> list[Bridge]:
    """All bridges, from what the database answered for COLUMNS."""
    tables = {table: [dict(row) for row in result["rows"]] for table, result in zip(COLUMNS, results)}
    ports = {plain(row["_uuid"]): row for row in tables["Port"]}
    interfaces = {plain(row["_uuid"]): row for row in tables["Interface"]}
    found = []
    for row in tables["Bridge"]:
        own = [ports[key] for key in several(row["ports"]) if key in ports]
        userspace = row["datapath_type"] == "netdev"
        vms = [_port(port, interfaces[several(port["interfaces"])[0]], userspace) for port in own]
        foreign = "a controller" if several(row["controller"]) else ""
        foreign = foreign or ("fail_mode=secure" if several(row["fail_mode"]) == ["secure"] else "")
        found.append(Bridge(row["name"], foreign, sorted((port for port in vms if port), key=lambda one: one.number)))
    return found


def _port(port: Mapping[str, Any], interface: Mapping[str, Any], userspace: bool) -> Port | None:
    ids = plain(interface["external_ids"])
    number = next(iter(several(interface["ofport"])), -1)
    if not {"attached-mac", "vm-id"} <= set(ids) or number < 1 or len(several(port["interfaces"])) != 1:
        return None
    modes = several(port["vlan_mode"])
    access = bool(several(port["tag"])) and not several(port["trunks"]) and modes in ([], ["access"])
    config = plain(port["other_config"])
    return Port(
        name=port["name"],
        number=number,
        mac=ids["attached-mac"].lower(),
        access=access,
        policy=ids.get(POLICY, ""),
        # The kernel's datapath polices by itself, that in user space takes no notice of these columns.
        rate=interface["ingress_policing_rate"] if userspace else 0,
        burst=interface["ingress_policing_burst"] if userspace else 0,
        spanning=any(config.get(key) != value for key, value in NO_SPANNING_TREE.items()),
    )


def flows(port: Port) -> Iterator[str]:
    """What the switch does with frames of this VM, one flow a line; what is not said goes its normal way."""
    into = f"in_port={port.number}"
    yield f"priority=60040,{into},{RESERVED},actions=drop"
    meter = f"meter:{METERS + port.number}," if port.rate else ""
    if not port.honest:
        if meter:
            yield f"priority=60020,{into},actions={meter}NORMAL"
        return
    for words in (TAGGED, *SERVICES):
        yield f"priority=60040,{into},{words},actions=drop"
    for priority, words in _honest(port):
        yield f"priority={priority},{into},dl_src={port.mac},{words}actions={meter}NORMAL"
    for words in ("arp", "dl_type=0x8035", SOLICIT, ADVERTISE):
        yield f"priority=60029,{into},{words},actions=drop"
    yield f"priority=60000,{into},actions=drop"


def _honest(port: Port) -> Iterator[tuple[int, str]]:
    """The frames that an honest guest sends: priority, and the match with a comma at its end."""
    old = [address for address in port.addresses if ":" not in address]
    new = [address for address in port.addresses if ":" in address]
    for claim in [f"arp_spa={address}," for address in [*old, UNKNOWN]] if port.addresses else [""]:
        yield 60030, f"arp,arp_sha={port.mac},{claim}"
    # A hypervisor tells the switches so where a VM is now.
    yield 60030, f"dl_type=0x8035,arp_sha={port.mac},"
    for mac in (port.mac, NO_MAC):
        yield 60030, f"{SOLICIT},nd_sll={mac},"
        for claim in [f"nd_target={address}," for address in [*new, "fe80::/10"]] if port.addresses else [""]:
            yield 60030, f"{ADVERTISE},nd_tll={mac},{claim}"
    if not port.addresses:
        yield 60020, ""
        return
    for address in old:
        yield 60020, f"ip,nw_src={address},"
    yield 60020, f"udp,nw_src={UNKNOWN},tp_src=68,tp_dst=67,"
    for address in [*new, "fe80::/10"]:
        yield 60020, f"ipv6,ipv6_src={address},"
    yield 60020, "icmp6,ipv6_src=::,"


class Guard:
    """The switch of this machine; `folder` holds the sockets of its daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"unix:{folder}/db.sock"
        self.done: dict[str, tuple[str, str]] = {}

    def bridges(self) -> list[Bridge]:
        """The bridges as the database has them now."""
        asked = [{"op": "select", "table": table, "where": [], "columns": names} for table, names in COLUMNS.items()]
        words = json.dumps(["Open_vSwitch", *asked])
        return bridges_of(json.loads(call("ovsdb-client", f"--timeout={SECONDS}", "transact", self.database, words)))

    def ensure(self, verify: bool = False) -> list[str]:
        """Guard all ports; returns what was done in words. Raises GuardError."""
        said, bridges = [], self.bridges()
        spanning = [port.name for bridge in bridges for port in bridge.ports if port.spanning]
        if spanning:
            pairs = [f"other_config:{key}={value}" for key, value in NO_SPANNING_TREE.items()]
            self.vsctl(*(word for name in spanning for word in ("--", "set", "port", name, *pairs)))
        for bridge in bridges:
            text = "".join(f"cookie={COOKIE},{flow}\n" for port in bridge.ports for flow in flows(port))
            key = (self.process(), text + repr([(port.rate, port.burst) for port in bridge.ports]))
            if bridge.foreign or (self.done.get(bridge.name) == key and not (verify and self._lacks(bridge, text))):
                continue
            self._write(bridge, text)
            self.done[bridge.name] = key
            said.append(f"{bridge.name}: {', '.join(port.name for port in bridge.ports) or 'no VM'}")
        return said

    def _lacks(self, bridge: Bridge, text: str) -> bool:
        return len(self.ofctl("dump-flows", bridge.name, f"cookie={COOKIE}/-1").split("cookie=")) - 1 != text.count(
            "\n"
        )

    def _write(self, bridge: Bridge, text: str) -> None:
        limited = [port for port in bridge.ports if port.rate]
        present = set(re.findall(r"^meter[=:](\d+)", self.ofctl("dump-meters", bridge.name), re.MULTILINE))
        for port in limited:
            band = f"type=drop,rate={port.rate},burst_size={port.burst or port.rate}"
            verb = "mod-meter" if str(METERS + port.number) in present else "add-meter"
            self.ofctl(verb, bridge.name, f"meter={METERS + port.number},kbps,burst,band={band}")
        # One bundle: there is no moment in which a port has half of its flows.
        self.ofctl("--bundle", "add-flows", bridge.name, "-", feed=f"delete cookie={COOKIE}/-1\n{text}")
        for number in sorted(present - {str(METERS + port.number) for port in limited}):
            if int(number) >= METERS:
                self.ofctl("del-meter", bridge.name, f"meter={number}")

    def ofctl(self, *words: str, feed: str = "") -> str:
        """What ovs-ofctl answers; the bridge's name, the second word or the third, becomes its socket."""
        place = 2 if words[0].startswith("--") else 1
        words = (*words[:place], f"unix:{self.folder}/{words[place]}.mgmt", *words[place + 1 :])
        return call("ovs-ofctl", PROTOCOLS, f"--timeout={SECONDS}", *words, feed=feed)

    def off(self) -> list[str]:
        """Take our flows and meters off all bridges; returns their names. Raises GuardError."""
        names = [bridge.name for bridge in self.bridges()]
        for name in names:
            self._write(Bridge(name), "")
        return names

    def vsctl(self, *words: str) -> str:
        """What ovs-vsctl answers."""
        return call("ovs-vsctl", f"--timeout={SECONDS}", f"--db={self.database}", *words)

    def process(self) -> str:
        """The process id of ovs-vswitchd; a new one has no flows."""
        try:
            return (self.folder / "ovs-vswitchd.pid").read_text(encoding="ascii").strip()
        except OSError:
            return ""

    def declare(self, ports: Mapping[str, str]) -> None:
        """Write what a VM's definition says of its ports (see `policies`) into the database."""
        for tap, policy in ports.items():
            change = ("set", "interface", tap, f'external_ids:{POLICY}="{policy}"')
            self.vsctl(*(change if policy else ("remove", "interface", tap, "external_ids", POLICY)))

    def watch(self) -> None:
        """Guard for ever."""
        while True:
            with contextlib.suppress(OSError), contextlib.closing(Monitor(f"{self.folder}/db.sock")) as monitor:
                self._follow(monitor)
            time.sleep(LOOK)

    def _follow(self, monitor: Monitor) -> None:
        verified, process, due, complaint = time.monotonic(), "", True, ""
        while True:
            due = monitor.changed(LOOK) or due
            verify = time.monotonic() - verified > VERIFY
            before = self.process()
            if not (due or verify or process != before):
                continue
            try:
                tell(self.ensure(verify))
                verified, process, due, complaint = time.monotonic(), before, False, ""
            except GuardError as error:
                # The switch may be starting; it is asked again until it answers.
                complaint = tell([str(error)]) if str(error) != complaint else complaint
                due = True


class Monitor:
    """A connection on which the database says each change of what the guard looks at (RFC 7047, 4.1.5)."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(path)
        self.text = ""
        tables = {table: {"columns": [name for name in names if name != "_uuid"]} for table, names in COLUMNS.items()}
        self._send({"method": "monitor", "params": ["Open_vSwitch", None, tables], "id": 0})

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def changed(self, seconds: float) -> bool:
        """Whether something changed within so many seconds. Raises OSError when the connection is gone."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return False
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the database closed the connection")
        self.text += data.decode("utf-8", "replace")
        # All are looked at: each may want an answer.
        return True in [self._told(message) for message in self._messages()]

    def _told(self, message: Mapping[str, Any]) -> bool:
        if message.get("method") == "echo":
            # So the server learns that its client lives.
            self._send({"result": message["params"], "error": None, "id": message["id"]})
        return message.get("method") == "update"

    def _messages(self) -> Iterator[dict[str, Any]]:
        while self.text:
            try:
                message, end = json.JSONDecoder().raw_decode(self.text)
            except ValueError:
                return
            self.text = self.text[end:].lstrip()
            yield message

    def _send(self, message: Mapping[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode("ascii"))


def policies(definition: str) -> dict[str, str]:
    """By the name of its tap, what a VM's definition declares of each NIC on Open vSwitch: "" for the default."""
    root = ET.fromstring(definition)
    said = {
        nic.get("mac", "").lower(): nic for nic in root.iterfind(f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}nics/*")
    }
    found = {}
    for nic in root.iterfind("devices/interface"):
        target, mac, port = nic.find("target"), nic.find("mac"), nic.find("virtualport")
        if target is None or mac is None or port is None or port.get("type") != "openvswitch":
            continue
        own = said.get(mac.get("address", "").lower())
        policy = "" if own is None else "open" if own.get("anti_spoof") == "no" else own.get("ips", "")
        found[target.get("dev", "")] = policy
    return {tap: policy for tap, policy in found.items() if re.fullmatch(r"[A-Za-z0-9._-]{1,15}", tap)}


def tell(sentences: Iterable[str]) -> str:
    """Print, for the journal; returns the last sentence."""
    last = ""
    for last in sentences:
        print(last, flush=True)
    return last


def hook(guard: Guard, guest: str, operation: str) -> int:
    """Before its first instruction a VM's ports are guarded; status 1 keeps it from starting."""
    if operation != "start":
        return 0
    try:
        ports = policies(sys.stdin.read())
        if ports:
            guard.declare(ports)
            guard.ensure()
    except (GuardError, ET.ParseError) as error:
        mend = "mend that, or take the guard off this node with open_vswitch_port_guard: false"
        print(f"drover: {guest} refused: its ports can't be guarded ({error}); {mend}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description="Keep VMs honest at their ports of Open vSwitch.")
    parser.add_argument("--folder", default="/run/openvswitch", help="where Open vSwitch's sockets are")
    parser.add_argument("verb", choices=("watch", "once", "off", "hook"))
    parser.add_argument("words", nargs="*", help="the words of libvirt's hook")
    given = parser.parse_args()
    guard = Guard(Path(given.folder))
    if given.verb == "hook":
        return hook(guard, given.words[0], given.words[1])
    if given.verb == "watch":
        guard.watch()
    try:
        tell(guard.off() if given.verb == "off" else guard.ensure())
    except GuardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
