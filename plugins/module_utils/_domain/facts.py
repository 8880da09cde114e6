# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of one domain, from its XML and the words of libvirt. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from .._ceph_conf import identity as identity_of_image
from .._identity import logical_of
from .._xml import devices, find, parse, text_of
from . import leases, metadata, state_files

if TYPE_CHECKING:
    from .._libvirt import Domain

UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS.update(
    {
        name: 2**power
        for power, names in ((10, "k KiB"), (20, "M MiB"), (30, "G GiB"), (40, "T TiB"))
        for name in names.split()
    }
)
NETWORK_TYPES = frozenset({"iscsi", "rbd", "nbd", "gluster", "nfs", "ssh", "http", "https"})

# What an identity of a kind needs before it to be a path.
PATHS = {"file": "", "block": "", "lvm": "/dev/"}


def domain_facts(domain: Domain, shared_mounts: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of a domain: of the running one where it runs, else of its definition.

    `shared_mounts` are the mount points of file systems that other nodes see too, the devices of a SAN and the folders
    of shared volume groups; what is one of them or below is shared storage.
    """
    root = parse(domain.live_xml or domain.xml)
    definition = parse(domain.xml) if domain.live_xml and domain.xml else root
    cpu = find(root, "cpu")
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "id": domain.id,
        "state": domain.state,
        "reason": domain.reason,
        "job": domain.job,
        "persistent": domain.persistent,
        "autostart": domain.autostart,
        "vcpus": _vcpus(root),
        "memory": _memory(root),
        "machine": _attribute(root, "os/type", "machine"),
        "arch": _attribute(root, "os/type", "arch"),
        "virt_type": root.get("type"),
        "cpu": text_of(cpu).strip() if cpu is not None and domain.live_xml else None,
        "hugepages": _hugepages(root),
        "lease": leases.read(root),
        "disks": [disk_facts(disk, shared_mounts) for disk in devices(root, "disk")],
        "nics": [nic_facts(nic) for nic in devices(root, "interface")],
        "hostdevs": [hostdev_facts(device) for device in devices(root, "hostdev")],
        "filesystems": shares(root),
        "state_files": state_files.kinds(root),
        "state_elsewhere": state_files.elsewhere(root),
        "has_snapshots": domain.has_snapshots,
        "managed_save": domain.has_managed_save,
        "metadata": metadata.read(root),
        "marker": metadata.marker(root) or metadata.marker(definition),
    }


def _attribute(element: Element, path: str, name: str) -> str | None:
    found = find(element, path)
    return None if found is None else found.get(name)


def shares(root: Element) -> list[str | None]:
    """The names by which the guest mounts folders of its node."""
    return [_attribute(device, "target", "dir") for device in devices(root, "filesystem")]


def size_of(element: Element | None) -> int | None:
    """Bytes of an element with a `unit` (libvirt's default is KiB)."""
    if element is None or not (element.text or "").strip().isdecimal():
        return None
    return int(str(element.text)) * UNITS.get(element.get("unit", "KiB"), 1024)


def _hugepages(root: Element) -> int | bool | None:
    """The size in bytes of the huge pages that back the memory (of the first NUMA node, where they differ).

    True where the node's usual size does, None where none do.
    """
    element = find(root, "memoryBacking/hugepages")
    sizes = [] if element is None else [page.get("size", "") for page in element if page.tag == "page"]
    if element is None or not sizes:
        return None if element is None else True
    unit = next(page.get("unit", "KiB") for page in element if page.tag == "page")
    return int(sizes[0]) * UNITS.get(unit, 1024) if sizes[0].isdecimal() else True


def _memory(root: Element) -> dict[str, int | None]:
    maximum = size_of(find(root, "memory"))
    current = size_of(find(root, "currentMemory"))
    return {"current": maximum if current is None else current, "maximum": maximum}


def _vcpus(root: Element) -> dict[str, int]:
    element = find(root, "vcpu")
    maximum = int(element.text or 1) if element is not None else 1
    return {"current": int(element.get("current", maximum)) if element is not None else 1, "maximum": maximum}


def disk_facts(disk: Element, shared_mounts: Sequence[str] = ()) -> dict[str, Any]:
    """One disk: what it is on the guest's side, and by which identity its storage is known."""
    kind, identity = disk_identity(disk)
    backing = _backing(disk)
    files = [identity, *(f"file:{path}" for path in backing)]
    return {
        "target": _attribute(disk, "target", "dev"),
        "device": disk.get("device", "disk"),
        "type": kind,
        "identity": identity,
        "format": _attribute(disk, "driver", "type"),
        "size": None,
        "readonly": find(disk, "readonly") is not None,
        "shared_storage": kind in NETWORK_TYPES
        or (kind in PATHS and all(_below(one or "", shared_mounts) for one in files)),
        "backing": backing,
        # libvirt empties the drive where the medium is missing, at a start as at the far end of a migration.
        "optional": _attribute(disk, "source", "startupPolicy") in ("optional", "requisite"),
    }


def _backing(disk: Element) -> list[str]:
    """The files that a disk is based on; one that is not on shared storage keeps the disk on its node."""
    sources = [find(store, "source") for store in disk.iter("backingStore")]
    return [source.get("file") or "" for source in sources if source is not None]


def _below(identity: str, places: Sequence[str]) -> bool:
    kind, _colon, name = identity.partition(":")
    return below(PATHS.get(kind, "") + name, places)


def below(path: str, places: Sequence[str]) -> bool:
    """Whether a path is in one of these folders, or one of them."""
    whole = PurePosixPath(path)
    return bool({str(whole), *map(str, whole.parents)} & set(places))


def disk_identity(disk: Element) -> tuple[str, str | None]:
    """The kind of a disk and the name by which its storage is the same on every node; None for an empty drive."""
    source = find(disk, "source")
    kind = disk.get("type", "file")
    if source is None:
        return kind, None
    if kind == "network":
        return _network_identity(source)
    if kind == "block":
        path = source.get("dev") or ""
        logical = logical_of(path)
        return ("lvm", f"lvm:{'/'.join(logical)}") if logical else ("block", f"block:{path}" if path else None)
    if kind == "volume":
        return kind, f"volume:{source.get('pool')}/{source.get('volume')}"
    path = source.get("file") or source.get("dir") or ""
    return kind, f"{kind}:{path}" if path else None


def unit_of(disk: Element) -> str | None:
    """The logical unit of a disk of kind iscsi, `IQN/LUN`, as the record of the VM calls it; None for others."""
    kind, identity = disk_identity(disk)
    return str(identity).partition(":")[2].rpartition("@")[0].lower() if kind == "iscsi" else None


def _network_identity(source: Element) -> tuple[str, str]:
    protocol = source.get("protocol") or "network"
    name = source.get("name") or ""
    host = find(source, "host")
    address = (host.get("name") or host.get("socket") or "") if host is not None else ""
    if protocol == "iscsi":
        # A portal is a part of what an IQN means; a monitor of Ceph is only a way to the image.
        if "/" not in name:
            name += "/0"
        port = (host.get("port") if host is not None else None) or "3260"
        return protocol, f"iscsi:{name}@{f'[{address}]' if ':' in address else address}:{port}"
    if protocol == "rbd":
        return protocol, identity_of_image(name, [child.get("name") or "" for child in source if child.tag == "host"])
    return protocol, f"{protocol}:{name}" + (f"@{address}" if address else "")


def nic_facts(nic: Element) -> dict[str, Any]:
    """One NIC: its address, what it is plugged into, and its VLAN (or VLANs, for a trunk)."""
    kind = nic.get("type", "bridge")
    vlan = find(nic, "vlan")
    tags = [int(tag.get("id", 0)) for tag in ([] if vlan is None else vlan) if tag.tag == "tag"]
    trunk = len(tags) > 1 or (vlan is not None and vlan.get("trunk") == "yes")
    return {
        "mac": _attribute(nic, "mac", "address"),
        "type": kind,
        "bridge": _attribute(nic, "source", "bridge"),
        "vlan": tags[0] if tags and not trunk else None,
        "trunks": tags if trunk else [],
        "model": _attribute(nic, "model", "type"),
        "target": _attribute(nic, "target", "dev"),
    }


def hostdev_options(device: Element) -> dict[str, Any] | None:
    """A PCI or USB device of the node as the option `hostdevs` of module vm says it; None for others."""
    kind, found = device.get("type"), find(device, "source/address")
    if device.get("mode") != "subsystem" or kind not in ("pci", "usb"):
        return None
    # A running VM shows where a device is that was asked for by its maker.
    ids = {name: (_attribute(device, f"source/{name}", "id") or "")[2:] for name in ("vendor", "product")}
    if kind == "usb" and all(ids.values()):
        return {"type": kind, **ids}
    names = ("domain", "bus", "slot", "function") if kind == "pci" else ("bus", "device")
    try:
        numbers = [int(str(None if found is None else found.get(name)), 0) for name in names]
    except ValueError:
        return None
    if kind == "usb":
        return {"type": kind, **dict(zip(names, numbers))}
    domain, bus, slot, function = numbers
    return {"type": kind, "address": f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"}


def hostdev_name(options: Mapping[str, Any]) -> str:
    """The same in words."""
    if options["type"] == "pci":
        return f"PCI device {options['address']}"
    if "vendor" in options:
        return f"USB device {options['vendor']}:{options['product']}"
    return f"USB device {options['device']} of bus {options['bus']}"


def hostdev_facts(device: Element) -> dict[str, Any]:
    """One device of the node: its type, its address as libvirt has it, and its name for people."""
    address, options = find(device, "source/address"), hostdev_options(device)
    return {
        "type": device.get("type"),
        "mode": device.get("mode"),
        "source": {} if address is None else dict(address.items()),
        "name": hostdev_name(options) if options else f"device of type {device.get('type')}",
    }
