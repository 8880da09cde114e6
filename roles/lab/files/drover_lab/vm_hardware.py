# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM node is built of, for QEMU. Pure.

QEMU sees the node's folder as /node and the cached image as /image.
"""

from __future__ import annotations

import json
from typing import Union

from .topology import Nic, Node

Device = dict[str, Union[str, int]]

# Cached pages of the host survive the death of QEMU: a power cut of the node loses what the node had not flushed.
DRIVE = "if=none,format=qcow2,cache=unsafe,discard=unmap"
COMMAND_LINE = (
    "quiet console=ttyS0 panic=5 no_timer_check lpj=4000000 mitigations=off audit=0 nowatchdog "
    "cryptomgr.notests random.trust_cpu=on initcall_blacklist=jent_mod_init,load_system_certificate_list"
)


def mac(node: Node, nic: Nic) -> str:
    """The hardware address of a NIC: told apart within a lab by the node's number, in it by the order of names."""
    index = sorted(other.name for other in node.nics).index(nic.name)
    return f"52:54:00:{node.number >> 8:02x}:{node.number & 255:02x}:{index:02x}"


def link_file(node: Node, nic: Nic) -> str:
    """The text of the systemd.link file that gives a NIC the topology's name and MTU."""
    return (
        f"[Match]\nPermanentMACAddress={mac(node, nic)}\n\n"
        f"[Link]\nName={nic.name}\nMTUBytes={nic.mtu}\nMACAddressPolicy=none\n"
    )


def disks(node: Node) -> dict[str, str]:
    """File name → size of the extra disks; the node finds each as /dev/disk/by-id/virtio-NAME."""
    return {f"disk{number}": size for number, size in enumerate(node.disks, 1)}


def devices(node: Node) -> list[Device]:
    """What is in the node's slots, as QEMU's device_add takes it: the extra disks and the NICs."""
    found: list[Device] = [{"driver": "virtio-blk-pci", "id": name, "drive": f"{name}-file"} for name in disks(node)]
    for device in found:
        device["serial"] = device["id"]
    for nic in node.nics:
        # Without a speed, no kernel takes it into an LACP bond.
        speed: Device = {"speed": 10000, "duplex": "full", "romfile": ""}
        name = {"driver": "virtio-net-pci", "id": nic.name, "netdev": f"{nic.name}-wire", "mac": mac(node, nic)}
        found.append({**name, **speed})
    return found


def core(memory: str, vcpus: int, kvm: bool) -> list[str]:
    """The part of QEMU's command line that is the same for all nodes of one size, and for their saved state."""
    argv = ["qemu-system-x86_64", "-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-m", memory, "-smp", str(vcpus), "-rtc", "base=utc"]
    # Pages of five levels only make the emulation slower.
    argv += ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,tb-size=256", "-cpu", "max,-la57"]
    argv += ["-kernel", "/image/vmlinuz", "-initrd", "/node/initrd.img", "-append", COMMAND_LINE]
    argv += ["-drive", f"file=/node/root.qcow2,id=root,{DRIVE}", "-device", "virtio-blk-pci,drive=root,serial=root"]
    argv += ["-chardev", "file,id=console,path=/node/console.log,append=on", "-serial", "chardev:console"]
    argv += ["-qmp", "unix:/node/qmp.sock,server=on,wait=off", "-device", "virtio-serial-pci"]
    argv += ["-chardev", "socket,id=agent,path=/node/agent.sock,server=on,wait=off"]
    argv += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    # Random numbers of a restored node are its own: its kernel learns from the second that it is a copy.
    return [*argv, "-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"]


def command(node: Node, kvm: bool, wires: dict[str, int], saved: str = "") -> list[str]:
    """The command line of a node; ``wires`` is NIC → file descriptor of the tap that its cable ends in.

    With ``saved`` (a file as QEMU sees it) it goes on from there, paused and with empty slots; else it boots.
    """
    argv = [*core(node.memory, node.vcpus, kvm), "-name", node.name]
    for name in disks(node):
        argv += ["-drive", f"file=/node/{name}.qcow2,id={name}-file,{DRIVE}"]
    for nic in node.nics:
        argv += ["-netdev", f"tap,id={nic.name}-wire,fd={wires[nic.name]}"]
    if saved:
        return [*argv, "-incoming", f"file:{saved}"]
    for device in devices(node):
        argv += ["-device", json.dumps(device)]
    return argv
