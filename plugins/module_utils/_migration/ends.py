# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One end of a migration: the few calls to libvirt that moving and recovering a VM takes. VMs are named by UUID."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .. import _xml as xml
from .._domain import metadata, state_files
from .._errors import DroverError, NotFound
from .._hypervisor import JOBS, state_words
from .._libvirt import Node, libvirt, translated
from .._lvm import Lvm
from . import firmware, locks, stream
from .order import Order, under_way
from .pace import speed
from .volumes import Volumes

# libvirt: VIR_DOMAIN_EVENT_SUSPENDED and its details.
SUSPENDED = 3
STATUS = "/run/libvirt/qemu/{}.xml"
DETAILS = {0: "paused", 1: "migrated"}


class End:
    """One node as a migration sees it, on a read-write connection."""

    def __init__(self, node: Node) -> None:
        self.node = node.name
        self.connection = node.connection
        self.volumes = Volumes(node)
        self.lvm = Lvm()

    def _domain(self, uuid: str) -> Any:
        with translated(f"looking for {uuid} on {self.node}"):
            return self.connection.lookupByUUIDString(uuid)

    def state(self, uuid: str) -> tuple[str, str] | None:
        """State and reason, or None when there is no such domain. Raises Failed."""
        try:
            domain = self._domain(uuid)
            with translated(f"state on {self.node}"):
                number, reason = domain.state()
        except NotFound:
            return None
        return state_words(number, reason)

    def look(self, uuid: str) -> dict[str, Any] | str:
        """All that recovery wants to know of the VM on this node, as plain data, or `absent`."""
        state = self.state(uuid)
        if state is None:
            return "absent"
        domain = self._domain(uuid)
        with translated(f"asking {self.node}"):
            return {
                "state": "shutoff" if state[0] == "stopped" else state[0],
                "reason": state[1],
                "name": domain.name(),
                "job": self._job(domain) if domain.isActive() else "",
                "persistent": bool(domain.isPersistent()),
                "autostart": bool(domain.isPersistent() and domain.autostart()),
                "marker": self.marker(uuid),
                "progress": self.progress(uuid).get("sent"),
            }

    def find(self, names: list[str] | None) -> dict[str, Any]:
        """What `look` says of these VMs by name, those that are here; with None, of all that are on or marked."""
        with translated(f"listing the VMs of {self.node}"):
            here = {domain.name(): domain.UUIDString() for domain in self.connection.listAllDomains()}
        wanted = here if names is None else {name: here[name] for name in names if name in here}
        looks = {name: self.look(uuid) for name, uuid in wanted.items()}
        return {
            name: {**look, "uuid": here[name]}
            for name, look in looks.items()
            if isinstance(look, dict) and (names is not None or look["marker"] or look["state"] != "shutoff")
        }

    @staticmethod
    def _job(domain: Any) -> str:
        try:
            stats = domain.jobStats()
        except libvirt.libvirtError as error:
            # A destination has no figures of the migration; the source alone has them.
            return "incoming" if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED else ""
        if stats.get("type", 0) not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
            return ""
        return JOBS.get(stats.get("operation", 0), "other")

    def marker(self, uuid: str) -> dict[str, Any] | None:
        """The marker of the persistent or the live definition."""
        domain = self._domain(uuid)
        flags = [libvirt.VIR_DOMAIN_AFFECT_CONFIG] if domain.isPersistent() else []
        flags += [libvirt.VIR_DOMAIN_AFFECT_LIVE] if domain.isActive() else []
        for flag in flags:
            try:
                with translated(f"reading the marker on {self.node}"):
                    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
                    return metadata.marker_from_text(domain.metadata(kind, metadata.MARKER_NAMESPACE, flag))
            except NotFound as error:
                if error.details["code"] != "NO_DOMAIN_METADATA":
                    raise
        return None

    def note(self, uuid: str) -> None:
        """Write into the marker that the VM ran on here. Raises Failed."""
        with translated(f"reading the marker on {self.node}"):
            kind, flag = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
            text = self._domain(uuid).metadata(kind, metadata.MARKER_NAMESPACE, flag)
        self._set_metadata(uuid, metadata.noted(text), metadata.MARKER_NAMESPACE)

    def home(self, uuid: str) -> str | None:
        """The node that the VM goes back to, from its metadata."""
        home = metadata.read(xml.parse(self._xml(uuid)))["home"]
        return None if home is None else str(home)

    def set_home(self, uuid: str, home: str) -> None:
        """Remember the node that the VM goes back to."""
        root = xml.parse(self._xml(uuid))
        metadata.edit(root, {"home": home})
        self._set_metadata(uuid, metadata.record_xml(root), metadata.NAMESPACE)

    def rehome(self, uuid: str, home: str) -> None:
        """Give a VM that goes back to another node this one as its home; one that goes nowhere back keeps to that."""
        if self.home(uuid) not in (None, home):
            self.set_home(uuid, home)

    def _xml(self, uuid: str, flags: int = 0) -> str:
        with translated(f"reading the definition on {self.node}"):
            return str(self._domain(uuid).XMLDesc(flags))

    def set_marker(self, uuid: str, marker: dict[str, Any] | None) -> None:
        """Write or clear the marker in the live and the persistent definition."""
        text = None if marker is None else metadata.marker_xml(marker)
        self._set_metadata(uuid, text, metadata.MARKER_NAMESPACE)

    def _set_metadata(self, uuid: str, text: str | None, namespace: str) -> None:
        domain = self._domain(uuid)
        with translated(f"writing metadata on {self.node}"):
            flags = 0
            if domain.isActive():
                flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
            if domain.isPersistent():
                flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, metadata.PREFIX, namespace, flags)

    def autostart(self, uuid: str) -> bool:
        """Whether the node starts it at boot."""
        with translated(f"reading autostart on {self.node}"):
            domain = self._domain(uuid)
            return bool(domain.isPersistent() and domain.autostart())

    def set_autostart(self, uuid: str, on: bool) -> None:
        """Switch autostart on or off."""
        with translated(f"setting autostart on {self.node}"):
            self._domain(uuid).setAutostart(int(on))

    def resume(self, uuid: str) -> None:
        """Start the vCPUs."""
        with translated(f"resuming on {self.node}"):
            self._domain(uuid).resume()

    def destroy(self, uuid: str) -> None:
        """Stop it hard."""
        with translated(f"stopping on {self.node}"):
            self._domain(uuid).destroy()

    def undefine(self, uuid: str) -> None:
        """Remove the definition, never a disk; fine when it is gone already."""
        try:
            domain = self._domain(uuid)
        except NotFound:
            return
        with translated(f"undefining on {self.node}"):
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)

    def definition(self, uuid: str, live: bool = False) -> str:
        """The definition, complete, as another node can take it; with `live` that of the running VM, if it runs."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        return self._xml(uuid, flags if live else flags | libvirt.VIR_DOMAIN_XML_INACTIVE)

    def define(self, text: str) -> None:
        """Define a domain."""
        with translated(f"defining on {self.node}"):
            self.connection.defineXML(text)

    def capacity(self, uuid: str, target: str) -> int:
        """How big, in bytes, its QEMU takes a disk for."""
        with translated(f"measuring {target} on {self.node}"):
            return int(self._domain(uuid).blockInfo(target, 0)[0])

    def uses(self, path: str) -> bool:
        """Whether a domain of this node has the file as a disk."""
        disks = [disk for root in self._roots() for disk in xml.devices(root, "disk")]
        files = {xml.Property("source/@file").get(disk) for disk in disks}
        return Path(path).resolve() in {Path(name).resolve() for name in files if name}

    def kept(self, uuid: str) -> list[str]:
        """The files of UEFI and of a TPM that stay on this machine when the VM leaves it."""
        running = (self.state(uuid) or ("stopped",))[0] != "stopped"
        return firmware.kept(xml.parse(self._xml(uuid)), running)

    def forget(self, paths: Iterable[str]) -> None:
        """Delete files of UEFI and of a TPM of a VM that has left the node, unless a domain of it has them."""
        roots = self._roots() if paths else []
        used = {place for root in roots for place in (state_files.variables(root), state_files.keys(root)) if place}
        self.volumes.forget(path for path in paths if not used & {path, str(PurePosixPath(path).parent)})

    def _roots(self) -> list[Any]:
        with translated(f"listing the VMs of {self.node}"):
            return [xml.parse(domain.XMLDesc(0)) for domain in self.connection.listAllDomains()]

    def eject(self, uuid: str, target: str) -> None:
        """Empty a drive, as the VM runs and in its definition. Raises Failed."""
        domain = self._domain(uuid)
        scopes = [(libvirt.VIR_DOMAIN_AFFECT_LIVE, 0)] if domain.isActive() else []
        scopes += [(libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_XML_INACTIVE)] if domain.isPersistent() else []
        for scope, text in scopes:
            root = xml.parse(self._xml(uuid, text | libvirt.VIR_DOMAIN_XML_SECURE))
            for drive in (disk for disk in xml.devices(root, "disk") if xml.target_of(disk) == target):
                xml.empty(drive)
                with translated(f"ejecting {target} on {self.node}"):
                    domain.updateDeviceFlags(xml.text_of(drive), scope)

    def has_managed_save(self, uuid: str) -> bool:
        """Whether its memory was saved to this node's disk."""
        with translated(f"asking {self.node}"):
            return bool(self._domain(uuid).hasManagedSaveImage())

    def snapshots(self, uuid: str) -> int:
        """How many snapshots it has."""
        with translated(f"asking {self.node}"):
            return int(self._domain(uuid).snapshotNum())

    def incoming(self) -> set[str]:
        """The UUIDs of the VMs that are just coming in."""
        with translated(f"listing the VMs of {self.node}"):
            domains = self.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)
            states = {domain.UUIDString(): state_words(*domain.state()) for domain in domains}
        return {uuid for uuid, state in states.items() if state == ("paused", "migrating")}

    def names(self) -> dict[str, str]:
        """The UUIDs of all domains of the node by name."""
        with translated(f"listing the VMs of {self.node}"):
            return {domain.name(): domain.UUIDString() for domain in self.connection.listAllDomains()}

    def free_memory(self) -> int:
        """The bytes of memory that a new VM could take."""
        with translated(f"asking {self.node}"):
            stats = self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return sum(int(stats.get(name, 0)) for name in ("free", "buffers", "cached")) * 1024

    def host_cpu(self) -> str:
        """The CPU of the node itself."""
        with translated(f"asking {self.node}"):
            cpu = xml.find(xml.parse(self.connection.getCapabilities()), "host/cpu")
        return "" if cpu is None else xml.text_of(cpu)

    def capabilities(self, need: Mapping[str, Any]) -> Any:
        """What the node's QEMU has for a VM of this kind. Raises Failed."""
        with translated(f"asking {self.node}"):
            kind = (need["arch"], need["machine"], need["virt_type"])
            return xml.parse(self.connection.getDomainCapabilities(None, *kind))

    def loaders(self, kind: Mapping[str, Any]) -> list[str]:
        """The files of UEFI that the node lists; none where its QEMU no longer has the VM's machine type."""
        try:
            return firmware.loaders(self.capabilities(kind))
        except DroverError:
            return []

    def refuses_machine(self, need: Mapping[str, Any]) -> dict[str, str]:
        """Why the node can't have the VM's machine type, its firmware or its TPM, by what it is."""
        try:
            return firmware.lacking(need, self.capabilities(need))
        except DroverError as error:
            return {"machine": error.message}

    def refuses_cpu(self, need: Mapping[str, Any]) -> str:
        """Why the node can't give the VM its CPU, or nothing."""
        flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        kind = (need["arch"], need["machine"], need["virt_type"])
        try:
            same = self.connection.compareHypervisorCPU(None, *kind, need["cpu"], flags)
        except libvirt.libvirtError as error:
            return str(error.get_error_message())
        return "" if same > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE else "it lacks features of the VM's CPU"

    def refuses_host_cpu(self, cpu: str) -> str:
        """Why a VM with the CPU of its host can't run here: it must be the same, or nothing."""
        try:
            same = self.connection.compareCPU(cpu, 0)
        except libvirt.libvirtError as error:
            return str(error.get_error_message())
        return "" if same == libvirt.VIR_CPU_COMPARE_IDENTICAL else "its CPU is not the one that the VM sees"

    def has_secret(self, secret: Mapping[str, str]) -> bool:
        """Whether the node has a secret, by its usage or its UUID."""
        kinds = {"ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH, "iscsi": libvirt.VIR_SECRET_USAGE_TYPE_ISCSI}
        try:
            if "usage" in secret:
                self.connection.secretLookupByUsage(kinds[secret["type"]], secret["usage"])
            else:
                self.connection.secretLookupByUUIDString(secret["uuid"])
        except (libvirt.libvirtError, KeyError):
            return False
        return True

    def process(self, name: str, uuid: str) -> int | None:
        """A pidfd of the VM's QEMU, readable when that process is dead; None where the kernel has none."""
        try:
            pid = int(Path(f"/run/libvirt/qemu/{name}.pid").read_text(encoding="ascii"))
            descriptor = os.pidfd_open(pid)
            if uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return descriptor
            os.close(descriptor)
        except (OSError, ValueError, AttributeError):
            return None
        return None

    def migrate(self, order: Order) -> None:
        """Move the VM, peer to peer, and leave it paused there. Blocks until libvirt has ended. Raises Failed."""
        flags = 0
        for name in ("LIVE", "PEER2PEER", "PERSIST_DEST", "UNDEFINE_SOURCE", "ABORT_ON_ERROR", "TLS", "PAUSED"):
            flags |= getattr(libvirt, "VIR_MIGRATE_" + name)
        params: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: order.stream}
        if order.copies:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
            params[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [copy["target"] for copy in order.copies]
        if limit := speed(order, under_way()):
            params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = limit
        if order.auto_converge:
            flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
        if order.connections:
            flags |= libvirt.VIR_MIGRATE_PARALLEL
            params[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = order.connections
        if order.compression:
            flags |= libvirt.VIR_MIGRATE_COMPRESSED
            params[libvirt.VIR_MIGRATE_PARAM_COMPRESSION] = [order.compression]
        domain = self._domain(order.uuid)
        with translated(f"migrating {order.vm} from {order.source} to {order.target}"):
            domain.migrateToURI3(order.uri, params, flags)

    @staticmethod
    def reach(order: Order) -> None:
        """See that packets reach the address where the memory shall be sent. Raises Refused."""
        stream.reach(order)

    @staticmethod
    def phase(name: str) -> str:
        """The phase of the job that libvirt on this machine has written down for its next start, for messages."""
        try:
            job = xml.find(xml.parse(Path(STATUS.format(name)).read_text("utf-8")), "job")
        except (OSError, ValueError, DroverError):
            return ""
        return "" if job is None else job.get("phase", "none")

    @staticmethod
    def share(order: Order) -> None:
        """Let the other node have this node's logical volumes, too. Raises Failed."""
        locks.share(order)

    def paths(self) -> dict[str, list[dict[str, Any]]]:
        """The node's disks by their WWID as udev tells it, those of multipath by their paths.

        `place` is host, channel, target and logical unit in the kernel's words (`scsi_3_0_0_1`), `size` is in bytes; 0
        where it is not known: libvirt multiplies the kernel's sectors of 512 bytes by the size of the disk's own.
        """
        flag = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_STORAGE
        with translated(f"listing the disks of {self.node}"):
            texts = [device.XMLDesc(0) for device in self.connection.listAllDevices(flag)]
        found: dict[str, list[dict[str, Any]]] = {}
        for root in map(xml.parse, texts):
            names = ("serial", "block", "size", "logical_block_size")
            serial, name, size, sector = (xml.Property(f"capability/{name}").get(root) or "" for name in names)
            path = {"name": name, "place": xml.Property("parent").get(root) or ""}
            found.setdefault(serial, []).append({**path, "size": int(size) if sector == "512" else 0})
        return found

    def progress(self, uuid: str) -> dict[str, Any]:
        """Bytes of the job that runs: total, sent, remaining, rate per second; empty when there is none."""
        try:
            stats = self._domain(uuid).jobStats()
        except (libvirt.libvirtError, DroverError):
            return {}
        if "data_processed" not in stats:
            return {}
        return {
            "sent": stats["data_processed"],
            "remaining": stats.get("data_remaining", 0),
            "total": stats.get("data_total", 0),
            "rate": stats.get("memory_bps", 0),
            "pass": stats.get("memory_iteration", 0),
        }

    def abort(self, uuid: str) -> None:
        """End the job that runs."""
        with translated(f"aborting the job on {self.node}"):
            self._domain(uuid).abortJob()

    def allow_downtime(self, uuid: str, milliseconds: int) -> bool:
        """Let the VM stand still for so long at the switch; false when the job takes no such word now."""
        return self._told(uuid, lambda domain: domain.migrateSetMaxDowntime(milliseconds, 0))

    def limit(self, uuid: str, speed: int) -> bool:
        """Let the migration take so many MiB/s; false when the job takes no such word now."""
        return self._told(uuid, lambda domain: domain.migrateSetMaxSpeed(speed, 0))

    def _told(self, uuid: str, word: Callable[[Any], Any]) -> bool:
        try:
            word(self._domain(uuid))
        except (libvirt.libvirtError, DroverError):
            return False
        return True

    def totals(self, uuid: str) -> dict[str, Any]:
        """The bytes that were sent here and the passes over the memory that took; empty when libvirt lost them."""
        try:
            stats = self._domain(uuid).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except (libvirt.libvirtError, DroverError):
            return {}
        return {"sent": stats.get("data_processed"), "passes": stats.get("memory_iteration")}

    def on_event(self, uuid: str, heard: Callable[[str, str], None]) -> None:
        """Call `heard(event, detail)` when the VM is suspended."""

        def told(_connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
            if domain.UUIDString() == uuid and event == SUSPENDED:
                heard("suspended", DETAILS.get(detail, str(detail)))

        with translated(f"listening to {self.node}"):
            kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            self.connection.domainEventRegisterAny(None, kind, told, None)
