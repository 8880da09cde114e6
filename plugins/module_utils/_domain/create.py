# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of a new VM before its options are written into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Refused
from .._xml import parse
from .machine import machine_family

# For four devices that each VM has, its disks and NICs, and some that are plugged in later.
ROOT_PORTS, OWN_DEVICES, SPARE_PORTS = 14, 4, 4
SKELETON = """\
<domain>
  <name/>
  <uuid/>
  <memory unit='KiB'/>
  <currentMemory unit='KiB'/>
  <vcpu/>
  <os>
    <type>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu/>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
  </clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>restart</on_crash>
  <devices>
    <controller type='usb' model='none'/>{ports}
    <serial type='pty'>
      <target port='0'/>
    </serial>
    <console type='pty'>
      <target type='serial' port='0'/>
    </console>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <memballoon model='virtio'>
      <stats period='10'/>
    </memballoon>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>"""
ROOT = "\n    <controller type='pci' index='0' model='pcie-root'/>"
PORT = "\n    <controller type='pci' index='{}' model='pcie-root-port'/>"
# Under emulation a named model is what is the same on every node and for every version of QEMU; Nehalem is x86-64-v2.
EMULATED_CPU = "Nehalem"


def skeleton(offer: Mapping[str, Any], params: Mapping[str, Any]) -> Element:
    """A new definition for what the node offers: `virt_types`, `machine_types` and `arch`. Raises Refused.

    Of `params` it takes `machine` (default q35 where the node has it), `virt_type` (default hardware
    virtualisation where the node has it), and how many `disks` and `nics` there are.
    """
    machine = params["machine"] or ("q35" if "q35" in offer["machine_types"] else "pc")
    # A machine of type q35 has slots for what it is born with only; hot-plug needs free ports.
    lists = ("disks", "nics", "hostdevs", "filesystems")
    plugged = OWN_DEVICES + sum(len(params[name] or []) for name in lists)
    ports = ROOT + "".join(PORT.format(1 + number) for number in range(max(ROOT_PORTS, plugged + SPARE_PORTS)))
    root = parse(SKELETON.format(ports=ports if machine_family(machine) == "q35" else ""))
    root.set("type", virt_type(offer, params["virt_type"]))
    kind = next(element for element in root.iter("type"))
    # libvirt would do so itself, and check mode could not tell.
    kind.attrib.update({"arch": offer["arch"], "machine": offer.get("machine_aliases", {}).get(machine, machine)})
    return root


def virt_type(offer: Mapping[str, Any], wanted: str | None) -> str:
    """kvm where the node has it, else what it has (qemu: emulation); or the one that is wanted."""
    types = offer["virt_types"]
    if wanted is not None and wanted not in types:
        raise Refused(
            f"virt_type={wanted} is not there on this node (it has: {', '.join(types)}); is /dev/kvm missing?"
        )
    return wanted or ("kvm" if "kvm" in types else str(types[0]))


def default_cpu(virtualisation: str) -> str:
    """The CPU of a VM that asks for none: what equal nodes share, so that the VM can move between them."""
    return "host-model" if virtualisation == "kvm" else EMULATED_CPU
