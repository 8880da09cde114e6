# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's definition as its sheet: the options of module vm in plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import Invalid, Refused
from .._fields import names_after, size_text
from .._identity import vm_uuid
from .._xml import Property
from . import bandwidth, cloud_init, cpu, disks, leases, memory, metadata, nics, tuning
from .boot import BOOT, arrange_boot, has_order
from .create import default_cpu, skeleton
from .hardware import HARDWARE

SIZES = {"hugepages", *(field.name for field in (*HARDWARE, *disks.DISKS) if field.type == "size")}


def read(root: Element) -> dict[str, Any]:
    """The options that describe this definition."""
    return {
        **{field.name: field.place.get(root) for field in HARDWARE},
        "tags": metadata.read(root)["tags"],
        "disks": disks.read_all(root),
        "nics": nics.read_all(root),
        "seed": cloud_init.read(root),
        "lease": leases.read(root),
    }


def create(params: Mapping[str, Any], offer: Mapping[str, Any]) -> Element:
    """A new definition; `offer` is what the node has (see `create.skeleton`). Raises Invalid."""
    for name in ("memory", "vcpus"):
        if params[name] is None:
            raise Invalid(f"{name} is missing; a new VM needs it", option=name)
    root = skeleton(offer, params)
    Property("name").put(root, params["name"])
    defaults = {"uuid": vm_uuid(params["name"]), "cpu": default_cpu(str(root.get("type"))), "secure_boot": False}
    for field in HARDWARE:
        if field.name not in ("machine", "virt_type"):
            value = params[field.name]
            value = defaults.get(field.name) if value is None else value
            if value not in (None, ""):
                field.place.put(root, value)
    cpu.check_arrangement(root)
    memory.check_minimum(root)
    metadata.edit(root, {"tags": names_after([], params["tags"])})
    return root


def edit(root: Element, params: Mapping[str, Any], bridges: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Write the options that were given into a definition, where they differ.

    Returns the disks as declared, by target. Raises Invalid or Refused.
    """
    ordered = has_order(root)
    for field in HARDWARE:
        value, present = params[field.name], field.place.get(root)
        if value is None or field.same(value, present) or (value == "" and present is None):
            continue
        if field.fixed:
            raise Refused(f"{field.name} is {present} and can't become {value}: {field.fixed}")
        field.place.put(root, None if value == "" else value)
    if any(params[field.name] is not None for field in cpu.CPU_FIELDS):
        cpu.check_arrangement(root)
    if params["memory"] is not None or params["min_memory"] is not None:
        memory.check_minimum(root)
    tags = metadata.read(root)["tags"]
    if names_after(tags, params["tags"]) != tags:
        metadata.edit(root, {"tags": names_after(tags, params["tags"])})
    name = params["name"]
    declared = {} if params["disks"] is None else disks.write(root, params["disks"], name)
    if params["nics"] is not None:
        nics.write(root, params["nics"], name, bridges, "network" in (BOOT.get(root) or ()))
    if params["cloud_init"] is not None:
        cloud_init.write(root, params["cloud_init"])
    arrange_boot(root, params, ordered)
    return declared


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences of two sheets in words, such as `memory 2GiB -> 4GiB` or `disk vdb added`."""
    words = [
        f"{name} {shown(name, before[name])} -> {shown(name, after[name])}"
        for name in [*(field.name for field in HARDWARE), "tags", "lease"]
        if before[name] != after[name]
    ]
    told = [(sheet["seed"] or {}).get("digest") for sheet in (before, after)]
    if told[0] != told[1]:
        words.append(f"cloud-init data {shown('seed', told[0])} -> {shown('seed', told[1])}")
    media = [(sheet["seed"] or {}).get("medium") for sheet in (before, after)]
    if after["seed"] and media[0] and not media[1]:
        words.append("seed taken out of its drive")
    for kind, key in (("disk", "target"), ("nic", "mac")):
        old = {device[key]: device for device in before[f"{kind}s"]}
        new = {device[key]: device for device in after[f"{kind}s"]}
        words += [f"{kind} {device} removed" for device in old if device not in new]
        for device, values in new.items():
            if device not in old:
                words.append(f"{kind} {device} added")
                continue
            words += [
                f"{kind} {device} {name} {shown(name, old[device].get(name))} -> {shown(name, value)}"
                for name, value in values.items()
                if old[device].get(name) != value
            ]
    return words


def subject(change: str) -> str:
    """What one of the `changes` is about, without the values: `memory`, `disk vda iops`, `disk vdb added`."""
    words = change.split(" ")
    return " ".join(words[:3] if words[0] in ("disk", "nic") else words[:1])


def pending(live: Element, definition: Mapping[str, Any]) -> list[str]:
    """What the running VM does not have yet of its definition (a sheet); it gets that at its next start."""
    running = read(live)
    if definition["cpu"] == "host-model" and Property("cpu/vendor").get(live):
        # libvirt replaces host-model by the model that the node has, with its vendor.
        running["cpu"] = "host-model"
    running.update(memory.compared(live, definition))
    running.update(cpu.compared(live, definition))
    if cpu.has_features(live, definition["cpu_features"] or {}):
        running["cpu_features"] = definition["cpu_features"]
    for field in HARDWARE:
        if field.fixed or field.when == "unseen":
            running[field.name] = definition[field.name]
    return changes(running, definition)


def shown(name: str, value: Any) -> str:
    """A value in words."""
    if name == "bandwidth":
        return bandwidth.words(value or {}) if set(value or ()) <= set(bandwidth.WAYS) else tuning.words(value)
    if name in SIZES and isinstance(value, int) and not isinstance(value, bool):
        return size_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(key, item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(f"({shown(name, one)})" if isinstance(one, dict) else str(one) for one in value) or "none"
    return "none" if value is None or value == "" else str(value)
