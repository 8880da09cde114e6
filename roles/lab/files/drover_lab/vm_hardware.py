# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM node is built of, as the command line of QEMU. Pure.

QEMU sees the node's folder as /node and the cached image as /image.
"""

from __future__ import annotations

from .topology import Nic, Node

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


def nic_device(node: Node, nic: Nic) -> dict[str, str]:
    """The properties of a NIC. Without a speed, no kernel takes it into an LACP bond."""
    return {
        "driver": "virtio-net-pci",
        "id": nic.name,
        "netdev": f"wire-{nic.name}",
        "mac": mac(node, nic),
        "speed": "10000",
        "duplex": "full",
        "romfile": "",
    }


def _device(properties: dict[str, str]) -> str:
    rest = ",".join(f"{key}={value}" for key, value in properties.items() if key != "driver")
    return f"{properties['driver']},{rest}"


def disk_names(node: Node) -> dict[str, str]:
    """File name → size of the extra disks; the node finds each by the same name in /dev/disk/by-id."""
    return {f"disk{number}": size for number, size in enumerate(node.disks, 1)}


def _disks(node: Node) -> list[str]:
    argv = []
    for name in ("root", *disk_names(node)):
        argv += ["-drive", f"file=/node/{name}.qcow2,id={name},{DRIVE}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return argv


def _channels() -> list[str]:
    argv = ["-chardev", "file,id=console,path=/node/console.log,append=on", "-serial", "chardev:console"]
    argv += ["-qmp", "unix:/node/qmp.sock,server=on,wait=off"]
    argv += ["-chardev", "socket,id=agent,path=/node/agent.sock,server=on,wait=off", "-device", "virtio-serial-pci"]
    return [*argv, "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]


def command(node: Node, kvm: bool, wires: dict[str, int]) -> list[str]:
    """The command line; ``wires`` is NIC → file descriptor of the tap that its cable ends in."""
    argv = ["qemu-system-x86_64", "-name", node.name, "-machine", "pc", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-m", node.memory, "-smp", str(node.vcpus), "-rtc", "base=utc"]
    # Pages of five levels only make the emulation slower.
    argv += ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,tb-size=256", "-cpu", "max,-la57"]
    argv += ["-kernel", "/image/vmlinuz", "-initrd", "/node/initrd.img", "-append", COMMAND_LINE]
    argv += [*_disks(node), *_channels(), "-device", "virtio-rng-pci"]
    for nic in node.nics:
        argv += ["-netdev", f"tap,id=wire-{nic.name},fd={wires[nic.name]}"]
        argv += ["-device", _device(nic_device(node, nic))]
    return argv
