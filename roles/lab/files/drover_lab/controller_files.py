# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files by which a controller finds the nodes: inventory, SSH settings, known hosts. Pure."""

from __future__ import annotations

from typing import Any

from .ceph import fsid
from .topology import Topology

# An emulated processor on a busy machine is slow to answer.
VM_SECONDS = 60


def inventory(topology: Topology, state: str, name: str, accelerator: str) -> dict[str, Any]:
    """The Ansible inventory as data (YAML's JSON subset)."""
    groups: dict[str, Any] = {}
    for node in topology.nodes.values():
        addresses = {network: topology.networks[network].address(node.number) for network in node.networks}
        bonds: dict[str, list[str]] = {}
        for nic in node.nics:
            if nic.bond:
                bonds.setdefault(nic.bond, []).append(nic.name)
        values: dict[str, Any] = {"ansible_host": topology.management(node)}
        values.update(lab_addresses=addresses, lab_bonds=bonds)
        if node.kind == "vm":
            values["ansible_ssh_timeout"] = VM_SECONDS
        for group in node.groups:
            groups.setdefault(group, {"hosts": {}})["hosts"][node.name] = values
    common: dict[str, Any] = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-F {state}/ssh_config",
        # Labs run side by side with the same addresses: their multiplexed connections must not meet.
        "ansible_control_path_dir": f"{state}/cp",
        "lab_name": name,
        "lab_accelerator": accelerator,
        "lab_networks": {
            network.name: {"subnet": network.subnet, "vlan": network.vlan} for network in topology.networks.values()
        },
        "lab_controller_address": topology.networks["management"].address(1),
    }
    if topology.ceph:
        network = topology.networks[topology.ceph.network]
        monitors = [network.address(topology.node(monitor).number) for monitor in topology.ceph.monitors]
        common["lab_ceph"] = {"fsid": fsid(name), "monitors": monitors}
    return {"all": {"vars": common, "children": groups}}


def ssh_config(topology: Topology, state: str, namespace: str) -> str:
    """SSH client settings: nodes by name or address, through the switch's namespace, host keys checked."""
    text = ""
    for node in topology.nodes.values():
        address = topology.management(node)
        text += f"Host {node.name} {address}\n  HostName {address}\n  HostKeyAlias {node.name}\n"
        if node.kind == "vm":
            text += f"  ConnectTimeout {VM_SECONDS}\n  ServerAliveInterval {VM_SECONDS}\n"
        text += "\n"
    return text + (
        "Host *\n"
        "  User root\n"
        f"  IdentityFile {state}/id_ed25519\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {state}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
        "  PasswordAuthentication no\n"
        "  ConnectTimeout 10\n"
        "  ServerAliveInterval 5\n"
        "  LogLevel ERROR\n"
        f"  ProxyCommand nsenter --net=/run/netns/{namespace} nc %h %p\n"
    )


def known_hosts(keys: dict[str, str]) -> str:
    """Node name → public host key, in the format of known_hosts."""
    return "".join(f"{name} {' '.join(key.split()[:2])}\n" for name, key in sorted(keys.items()))
