# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt says of a machine as plain data: VMs, storage pools, secrets, the host. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

# libvirt's enumerations in the words of virsh; the numbers are part of its stable interface.
STATES = ("unknown", "running", "running", "paused", "in shutdown", "stopped", "crashed", "pmsuspended")
RUNNING = (
    "unknown|booted|migrated|restored|from snapshot|unpaused|migration canceled|save canceled|event wakeup|crashed"
    "|post-copy|post-copy failed"
)
PAUSED = (
    "unknown|user|migrating|saving|dumping|I/O error|watchdog|from snapshot|shutting down|creating snapshot|crashed"
    "|starting up|post-copy|post-copy failed|api error"
)
REASONS = {
    1: tuple(RUNNING.split("|")),
    3: tuple(PAUSED.split("|")),
    4: ("unknown", "user"),
    5: ("unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "daemon"),
    6: ("unknown", "panicked"),
}
POOL_STATES = ("inactive", "building", "active", "degraded", "inaccessible")
SECRET_TYPES = ("none", "volume", "ceph", "iscsi", "tls", "vtpm")
JOBS = {4: "incoming", 5: "outgoing"}
CPU_MATCHES = {0: "incompatible", 1: "identical", 2: "superset"}


def word(words: Sequence[str], number: int) -> str:
    """The word of a number; one that a newer libvirt may send is named as such."""
    return words[number] if 0 <= number < len(words) else f"unknown ({number})"


def state_words(state: int, reason: int) -> tuple[str, str]:
    """State and reason of a VM in words."""
    return word(STATES, state), word(REASONS.get(state, ("unknown",)), reason)


def version(number: int) -> str:
    """11.3.0 from 11003000."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


@dataclass(frozen=True)
class Domain:
    """A VM as libvirt holds it. `xml` is the definition that the next boot uses, `live_xml` that of the running guest.

    A transient VM has no definition of its own: its `xml` is the live one. `job` is None, or its `type` (incoming,
    outgoing, other) and libvirt's figures.
    """

    name: str
    uuid: str
    id: int | None
    state: str
    reason: str
    persistent: bool
    autostart: bool
    has_managed_save: bool
    xml: str = field(repr=False)
    live_xml: str | None = field(repr=False, default=None)
    job: dict[str, Any] | None = None
    has_snapshots: bool = False

    @property
    def active(self) -> bool:
        """Whether there is a process of it: running, paused, or on its way in or out."""
        return self.id is not None


@dataclass(frozen=True)
class Pool:
    """A storage pool; the sizes are None while it is inactive, `path` where it has none."""

    name: str
    uuid: str
    state: str
    persistent: bool
    autostart: bool
    type: str
    path: str | None
    capacity: int | None
    allocation: int | None
    available: int | None
    xml: str = field(repr=False)

    @classmethod
    def of(cls, xml: str, state: int, persistent: bool, autostart: bool) -> Pool:
        """A pool from its XML and what libvirt says beside it."""
        root = fromstring(xml)
        sizes = {name: int(root.findtext(name) or 0) for name in ("capacity", "allocation", "available")}
        active = state in {2, 3}
        return cls(
            name=root.findtext("name") or "",
            uuid=root.findtext("uuid") or "",
            state=word(POOL_STATES, state),
            persistent=persistent,
            autostart=autostart,
            type=root.get("type", ""),
            path=root.findtext("target/path"),
            capacity=sizes["capacity"] if active else None,
            allocation=sizes["allocation"] if active else None,
            available=sizes["available"] if active else None,
            xml=xml,
        )


@dataclass(frozen=True)
class Secret:
    """A secret without its value. `type` is what it is for (iscsi, ceph), `usage` its name there."""

    uuid: str
    type: str
    usage: str
    description: str | None
    private: bool
    ephemeral: bool

    @classmethod
    def of(cls, xml: str, kind: int, usage: str) -> Secret:
        """A secret from its XML, the number of its type, and its usage name."""
        root = fromstring(xml)
        return cls(
            uuid=root.findtext("uuid") or "",
            type=word(SECRET_TYPES, kind),
            usage=usage,
            description=root.findtext("description"),
            private=root.get("private") == "yes",
            ephemeral=root.get("ephemeral") == "yes",
        )


def host_facts(capabilities: str, domain_capabilities: str | None) -> dict[str, Any]:
    """What libvirt's capabilities say: UUID, architecture, CPU, huge pages, machine types, virtualisation types."""
    root = fromstring(capabilities)
    arch = root.findtext("host/cpu/arch") or ""
    guests = [guest for guest in root.iterfind("guest/arch") if guest.get("name") == arch]
    model = None if domain_capabilities is None else cpu_definition(fromstring(domain_capabilities))
    own = root.find("host/cpu")
    shown = model if model is not None else own
    return {
        "uuid": root.findtext("host/uuid"),
        "arch": arch,
        "cpu_model": None if model is None else tostring(model, encoding="unicode"),
        "host_cpu": None if own is None else tostring(own, encoding="unicode").strip(),
        "cpu": {name: None if shown is None else shown.findtext(name) for name in ("model", "vendor")},
        "firmware": _firmware(domain_capabilities),
        "hugepages": _hugepages(root),
        "machine_aliases": {
            found.text or "": found.get("canonical", "")
            for guest in guests
            for found in guest.iter("machine")
            if found.get("canonical")
        },
        "machine_types": sorted({found.text or "" for guest in guests for found in guest.iter("machine")}),
        "virt_types": sorted({found.get("type", "") for guest in guests for found in guest.iterfind("domain")}),
    }


def cpu_definition(domain_capabilities: Element) -> Element | None:
    """The host-model of the domain capabilities as the `cpu` element that a domain, or a comparison, takes."""
    mode = domain_capabilities.find("cpu/mode[@name='host-model'][@supported='yes']")
    if mode is None or not mode.findtext("model"):
        return None
    cpu = Element("cpu", {"mode": "custom", "match": "exact"})
    SubElement(cpu, "model", {"fallback": "forbid"}).text = mode.findtext("model")
    if mode.findtext("vendor"):
        SubElement(cpu, "vendor").text = mode.findtext("vendor")
    for feature in mode.iterfind("feature"):
        SubElement(cpu, "feature", {name: feature.get(name, "") for name in ("policy", "name")})
    return cpu


def _firmware(domain_capabilities: str | None) -> list[str] | None:
    """What VMs can have of efi and tpm (an emulated one); None where libvirt does not say."""
    return None if domain_capabilities is None else offered_firmware(fromstring(domain_capabilities))


def offered_firmware(capabilities: Element) -> list[str]:
    """What domain capabilities have of efi and tpm (https://libvirt.org/formatdomaincaps.html)."""
    listed = {"efi": "os/enum[@name='firmware']/value", "tpm": "devices/tpm/enum[@name='backendModel']/value"}
    words = {"efi": "efi", "tpm": "emulator"}
    said = {name: {value.text for value in capabilities.iterfind(path)} for name, path in listed.items()}
    return [name for name, word in words.items() if word in said[name]]


def _hugepages(capabilities: Element) -> dict[str, int]:
    """The number of huge pages by page size in bytes (as text, for JSON), over all NUMA cells."""
    found = [(int(page.get("size", "0")) * 1024, int(page.text or 0)) for page in capabilities.iter("pages")]
    normal = min((size for size, _count in found), default=0)
    totals: dict[str, int] = {}
    for size, count in found:
        if size > normal and count:
            totals[str(size)] = totals.get(str(size), 0) + count
    return totals


def node_facts(host: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a node's facts that libvirt knows, from what `Node.host()` returned."""
    cpu = host["cpu"]
    names = ("hostname", "uuid", "arch", "libvirt_version", "qemu_version", "memory", "hugepages")
    return {
        **{name: host[name] for name in names},
        "cpus": {"threads": host["threads"], **cpu},
        **{name: host[name] for name in ("cpu_model", "host_cpu", "firmware", "machine_types", "virt_types")},
    }
