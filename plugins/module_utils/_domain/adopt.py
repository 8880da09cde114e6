# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sheet of a VM that is there: options with which module vm finds nothing to change. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from .._errors import Invalid
from .._fields import Field, check_vm_name, normalise
from .._xml import find, parse
from . import cloud_init, power, sheet
from .disks import DISKS, MIB
from .facts import domain_facts, hostdev_name
from .hardware import HARDWARE, check_tags
from .nics import NICS

if TYPE_CHECKING:
    from .._libvirt import Domain

FIELDS = (
    Field("name", required=True, check=check_vm_name),
    *HARDWARE,
    Field("disks", type="list", elements="dict", fields=DISKS, when="live"),
    Field("nics", type="list", elements="dict", fields=NICS, when="live"),
    Field("tags", type="names", check=check_tags, when="live"),
    Field("cloud_init", type="dict", fields=cloud_init.FIELDS),
)
IDENTITY = ("type", "target", "mac")  # By these a disk or a NIC is found again.
AGENT = "org.qemu.guest_agent.0"
# Devices that have options, that every VM has, or that are named by what they hold.
SAID = {"disk", "interface", "hostdev", "filesystem", "controller", "emulator", "input", "memballoon", "serial"}
SAID |= {"console", "graphics", "video", "rng", "watchdog", "tpm", "audio"}


def adoption(domain: Domain, sizes: Mapping[str, int] | None = None) -> tuple[dict[str, Any], list[str]]:
    """The options, and in words what the VM has that module vm has no option for (it leaves that as it is).

    `sizes` are bytes of disks, by target, where they are known.
    """
    root = parse(domain.xml)
    options: dict[str, Any] = {"name": domain.name, **sheet.read(root)}
    options["disks"] = [{**disk, "size": _whole((sizes or {}).get(disk["target"]))} for disk in options["disks"]]
    kept: dict[str, Any] = {}
    facts = domain_facts(domain)
    # The seed's drive belongs to cloud_init, of which nothing can be read back.
    facts["disks"] = [disk for disk in facts["disks"] if disk["target"] != cloud_init.target(root)]
    words = _foreign(root, facts, options)
    for field in FIELDS:
        value, faults = _writable(field, _given(options.get(field.name)))
        words += faults
        if value is not None:
            kept[field.name] = value
    kept["autostart"] = domain.autostart
    asked = domain.state == "paused" and domain.reason == power.USER
    kept["state"] = "paused" if asked else "stopped" if domain.state == power.STOPPED else "running"
    return kept, words


def _whole(size: int | None) -> int | None:
    """A size that the option can say; without it the disk keeps the one that it has."""
    return None if size is None or size % MIB else size or None


def _foreign(root: Element, facts: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The devices that are not among the options."""
    words = []
    for kind, key, label in (("disks", "target", "disk"), ("nics", "mac", "NIC")):
        known = {device[key] for device in options[kind]}
        words += [f"{label} {one[key]} (of type {one['type']})" for one in facts[kind] if one[key] not in known]
    named = [hostdev_name(one) for one in options["hostdevs"] or []]
    words += [f"host device (of type {one['type']})" for one in facts["hostdevs"] if one["name"] not in named]
    shared = [one["target"] for one in options["filesystems"] or []]
    words += [f"shared folder {folder}" for folder in facts["filesystems"] if folder not in shared]
    parent = find(root, "devices")
    return words + [word for device in (() if parent is None else parent) if (word := _other(device))]


def _other(device: Element) -> str | None:
    """A device of another sort in words, such as `sound (ich9)`; None for those that have options."""
    target = find(device, "target")
    name = None if target is None else target.get("name")
    if device.tag in SAID or (device.tag == "channel" and name == AGENT) or not isinstance(device.tag, str):
        return None
    about = name or device.get("model") or device.get("type")
    return f"{device.tag} ({about})" if about else device.tag


def _given(value: Any) -> Any:
    """Without the options of disks and NICs that have no value."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _writable(field: Field, value: Any) -> tuple[Any, list[str]]:
    """The value as far as it can be given, and what can't. A device stays as it is in what its item does not say."""
    words: list[str] = []
    if field.elements == "dict":
        pairs = [_item(field.fields, item, f"{field.name}[{place}].") for place, item in enumerate(value or [])]
        value, words = [item for item, _faults in pairs], [word for _item, faults in pairs for word in faults]
    try:
        normalise((field,), {field.name: value})
    except Invalid as error:
        what = f" ({field.name} is left out whole: give this VM no vm_{field.name}, of its groups neither)"
        return None, [error.message + (what if field.elements == "dict" else "")]
    return value, words


def _item(fields: Sequence[Field], item: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """One disk or NIC without the options of which it has a value that can't be given."""
    kept, words = dict(item), []
    for field in fields:
        try:
            normalise((field,), kept, path)
        except Invalid as error:
            if field.name not in IDENTITY:
                words.append(error.message)
                del kept[field.name]
    return kept, words
