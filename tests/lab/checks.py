# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds on the nodes that playbook site has set up, seen from outside: commands there, none of our modules.

Each check raises AssertionError with what it saw. By hand: ``python -m ansible_collections.drover.kvm.tests.lab.checks
--name LAB``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster

NODES = ("hv1", "hv2", "hv3")
SAN = "san1"
PROBE = "drover-check"
# Addresses that nothing else of the lab has: 10.231.100.251 and .252, one for each of the first two nodes.
PROBE_NUMBERS = {"hv1": 251, "hv2": 252}
# One that no migration of a lab takes: libvirt begins with 49152.
MIGRATION_PORT = 49210
# As nft lists what the firewall closes.
CLOSED = "tcp dport { 16514, 49152-49215 }"
# Somebody else's table, to see that nftables.service has removed all that there were.
FOREIGN_TABLE = "drover_check"
GUEST_VLAN, OTHER_VLAN = 100, 200
# A VM without disk and network, for what libvirt does before a guest matters.
DOMAIN = f"""<domain type='qemu'><name>{PROBE}</name><memory unit='MiB'>32</memory><os>
<type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='custom'><model>qemu64</model></cpu></domain>"""
WRITE_DOMAIN = f"umask 077; cat >/run/{PROBE}.xml <<'XML'\n{DOMAIN}\nXML\n"
FACT = "/etc/ansible/facts.d/drover.fact"


def address(cluster: Cluster, node: str, network: str) -> str:
    """A node's address in one of the lab's networks."""
    return cluster.lab.topology.networks[network].address(cluster.lab.topology.node(node).number)


def say(cluster: Cluster, node: str, script: str) -> str:
    """What a shell script on a node says on both of its outputs; its exit status is the last line."""
    return cluster.ssh(node, f"{{ {script}\n}} 2>&1; echo status=$?")


def listening(cluster: Cluster, node: str) -> list[tuple[str, str]]:
    """The TCP sockets that listen on a node: address:port and process."""
    lines = [line.split(maxsplit=5) for line in cluster.ssh(node, "ss -Hltnp").splitlines()]
    return [(words[3], words[5] if len(words) > 5 else "") for words in lines]


def libvirt_listens_with_tls_only(cluster: Cluster) -> None:
    """16509 is libvirt without encryption and without a password."""
    for node in NODES:
        ports = {place.rpartition(":")[2] for place, _process in listening(cluster, node)}
        assert "16509" not in ports, f"{node} listens on 16509: {ports}"
        assert "16514" in ports, f"{node} does not listen on 16514: {ports}"


def nodes_reach_each_other_over_tls(cluster: Cluster) -> None:
    """Each node's libvirt takes each other node's certificate."""
    for node in NODES:
        for other in set(NODES) - {node}:
            uri = f"qemu+tls://{address(cluster, other, 'management')}/system"
            said = say(cluster, node, f"timeout 20 virsh -c {uri} hostname")
            assert said.split() == [other, "status=0"], f"{node} to {other}: {said}"


def others_do_not_reach_libvirt(cluster: Cluster) -> None:
    """The SAN is no peer: the firewall drops it, while its ssh to the same address would be answered."""
    for node in NODES:
        place = f"/dev/tcp/{address(cluster, node, 'management')}"
        assert "status=0" in say(cluster, SAN, f"timeout 5 bash -c '<{place}/22'"), node
        for port in (16514, MIGRATION_PORT):
            said = say(cluster, SAN, f"timeout 1 bash -c '<{place}/{port}'")
            assert "status=124" in said, f"{SAN} to {node}, port {port}: {said}"


def the_firewall_outlives_nftables(cluster: Cluster) -> None:
    """nftables.service removes all tables when it starts, reloads and stops, ours among them: they are loaded again."""
    rules = {}
    for verb in ("restart", "reload", "stop"):
        lay = f"nft add table inet {FOREIGN_TABLE}; systemctl {verb} nftables.service"
        rules[verb] = say(cluster, "hv1", f"{lay} && nft list ruleset")
    for verb, said in rules.items():
        assert "status=0" in said, f"{verb}: {said}"
        assert FOREIGN_TABLE not in said, f"{verb} removed nothing: {said}"
        assert CLOSED in said, f"{verb}: {said}"


def a_migration_port_serves_the_nodes_own_connections(cluster: Cluster) -> None:
    """The kernel gives the node's clients such ports, too: a disk on the SAN waited 127 s for its answer."""
    for node in NODES:
        said = say(cluster, node, f"nc -v -z -w 5 -p {MIGRATION_PORT} {address(cluster, SAN, 'storage')} 3260")
        assert "status=0" in said, f"{node} to {SAN}: {said}"


def libvirt_refuses_the_key_of_qemu(cluster: Cluster) -> None:
    """A guest that breaks out of QEMU can read QEMU's key; the same place with libvirt's key works."""
    lay = "set -e; rm -rf /run/drover-check; mkdir -m 700 /run/drover-check; cd /run/drover-check; "
    uri = f"qemu+tls://{address(cluster, 'hv2', 'management')}/system?pkipath=/run/drover-check"
    ask = f"timeout 20 virsh -c '{uri}' hostname"
    keys = {
        "qemu": ("/etc/pki/qemu/client-cert.pem", "/etc/pki/qemu/client-key.pem"),
        "libvirt": ("/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem"),
    }
    said = {}
    for name, (certificate, key) in keys.items():
        copy = f"cp /etc/pki/CA/cacert.pem .; cp {certificate} clientcert.pem; cp {key} clientkey.pem; "
        said[name] = say(cluster, "hv1", f"{lay}{copy}set +e; {ask}")
    cluster.ssh("hv1", "rm -rf /run/drover-check")
    assert said["libvirt"].split() == ["hv2", "status=0"], said["libvirt"]
    assert "status=0" not in said["qemu"], said["qemu"]
    assert "hv2" not in said["qemu"].split(), said["qemu"]
    assert "error: failed to connect to the hypervisor" in said["qemu"], said["qemu"]


def both_cables_carry_lacp(cluster: Cluster) -> None:
    """Both members of the bond are attached, as the node sees it and as the core switch sees it."""
    for node in cluster.lab.machines:
        here = cluster.ssh(node, "ovs-appctl lacp/show bond0")
        there = cluster.lab.network.appctl("lacp/show", f"{node}-bond0")
        for shown in (here, there):
            assert "status: active negotiated" in shown, f"{node}: {shown}"
            assert shown.count(": current attached") == 2, f"{node}: {shown}"


def storage_and_migration_networks_carry(cluster: Cluster) -> None:
    """Every node answers in every network that it has."""
    for node in NODES:
        for network in ("storage", "migration"):
            peers = [other for other in cluster.lab.machines if network in cluster.lab.topology.node(other).networks]
            # A port that was made again has another MAC address; who knew the old one sends there for up to a minute.
            pings = ["ip neighbour flush all"]
            pings += [f"ping -q -c 1 -w 5 {address(cluster, peer, network)} >/dev/null" for peer in peers]
            assert "status=0" in say(cluster, node, " && ".join(pings)), f"{node}: {network} to {peers}"


@contextlib.contextmanager
def probes(cluster: Cluster) -> Iterator[None]:
    """A port of the host in the guests' VLAN of the first two nodes, for a moment."""
    name = f"-- set interface {PROBE} type=internal"
    try:
        for node, number in PROBE_NUMBERS.items():
            own = cluster.lab.topology.networks["guests"].address(number)
            made = f"ovs-vsctl --may-exist add-port br0 {PROBE} tag={GUEST_VLAN} {name}"
            cluster.ssh(node, f"{made} && ip address replace {own}/24 dev {PROBE} && ip link set {PROBE} up")
        yield
    finally:
        for node in PROBE_NUMBERS:
            cluster.ssh(node, f"ovs-vsctl --if-exists del-port br0 {PROBE}")


def vlans_do_not_meet(cluster: Cluster) -> None:
    """Two ports of one VLAN on two nodes reach each other; the same two in two VLANs do not."""
    other = cluster.lab.topology.networks["guests"].address(PROBE_NUMBERS["hv2"])
    ping = f"ip neighbour flush dev {PROBE}; ping -q -c 1 -w 5 -I {PROBE} {other}"
    with probes(cluster):
        said = say(cluster, "hv1", ping)
        assert "status=0" in said, f"in one VLAN: {said}"
        cluster.ssh("hv2", f"ovs-vsctl set port {PROBE} tag={OTHER_VLAN}")
        said = say(cluster, "hv1", ping.replace("-w 5", "-w 2"))
        assert "status=1" in said, f"in two VLANs: {said}"


def tgtd_answers_in_the_storage_network_only(cluster: Cluster) -> None:
    """An iSCSI target on the management network would be open to everybody there."""
    places = {place for place, process in listening(cluster, SAN) if "tgtd" in process or place.endswith(":3260")}
    assert places == {f"{address(cluster, SAN, 'storage')}:3260"}, places


def migrations_are_encrypted_or_refused(cluster: Cluster) -> None:
    """libvirt itself refuses a migration in clear text; the same one encrypted goes through."""
    uri = f"qemu+tls://{address(cluster, 'hv2', 'management')}/system"
    place = f"--migrateuri tcp://{address(cluster, 'hv2', 'migration')}"
    migrate = f"timeout 60 virsh migrate --live --p2p {place} {PROBE} {uri}"
    try:
        cluster.ssh("hv1", f"{WRITE_DOMAIN}virsh create /run/{PROBE}.xml")
        said = say(cluster, "hv1", migrate)
        assert "status=1" in said and "TLS" in said, f"in clear text: {said}"
        assert PROBE in cluster.domains("hv1"), said
        said = say(cluster, "hv1", migrate.replace("--live", "--live --tls"))
        assert "status=0" in said, f"encrypted: {said}"
        assert PROBE in cluster.domains("hv2")
    finally:
        for node in ("hv1", "hv2"):
            cluster.ssh(node, f"rm -f /run/{PROBE}.xml; virsh destroy {PROBE}", check=False)


@contextlib.contextmanager
def cordoned(cluster: Cluster, node: str) -> Iterator[None]:
    """A cordon written by hand; the node's own fact comes back."""
    cordon = '{"cordon": {"since": "2026-01-01T00:00:00Z", "by": "checks", "reason": "to see"}}'
    keep = f"mkdir -p /etc/ansible/facts.d; if [ -e {FACT} ]; then cp -a {FACT} /run/{PROBE}.fact; fi"
    cluster.ssh(node, f"{keep}; echo '{cordon}' >{FACT}")
    try:
        yield
    finally:
        cluster.ssh(node, f"rm -f {FACT}; if [ -e /run/{PROBE}.fact ]; then mv /run/{PROBE}.fact {FACT}; fi")


def a_cordoned_node_starts_nothing(cluster: Cluster) -> None:
    """libvirt's hook refuses whoever asks; without the cordon the same VM starts."""
    start = f"{WRITE_DOMAIN}virsh create /run/{PROBE}.xml"
    try:
        with cordoned(cluster, "hv3"):
            said = say(cluster, "hv3", start)
            assert "status=1" in said and "cordoned since 2026-01-01T00:00:00Z by checks (to see)" in said, said
            assert PROBE not in cluster.domains("hv3")
        said = say(cluster, "hv3", start)
        assert "status=0" in said, said
    finally:
        cluster.ssh("hv3", f"rm -f /run/{PROBE}.xml; virsh destroy {PROBE}", check=False)


CHECKS: tuple[Callable[[Cluster], None], ...] = (
    libvirt_listens_with_tls_only,
    nodes_reach_each_other_over_tls,
    the_firewall_outlives_nftables,
    others_do_not_reach_libvirt,
    a_migration_port_serves_the_nodes_own_connections,
    libvirt_refuses_the_key_of_qemu,
    both_cables_carry_lacp,
    storage_and_migration_networks_carry,
    vlans_do_not_meet,
    tgtd_answers_in_the_storage_network_only,
    migrations_are_encrypted_or_refused,
    a_cordoned_node_starts_nothing,
)


def main() -> int:
    """Run all checks on a lab that is up and set up; the exit status is the number of those that failed."""
    options = argparse.ArgumentParser(description="Check the nodes of a lab that playbook site has set up.")
    options.add_argument("--name", required=True, help="the lab")
    cluster = Cluster(Lab(options.parse_args().name))
    failed = 0
    for check in CHECKS:
        begin = time.monotonic()
        fault = ""
        try:
            check(cluster)
        except AssertionError as error:
            failed += 1
            fault = f"\n{error}"
        print(f"{'FAILED' if fault else 'ok':6} {time.monotonic() - begin:5.1f} s  {check.__name__}{fault}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
