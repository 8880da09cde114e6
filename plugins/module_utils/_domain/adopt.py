# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sheet of a VM that is there: options with which module vm finds nothing to change. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._errors import Invalid
from .._fields import Field, check_name, normalise
from .._xml import parse
from . import cloud_init, power, sheet
from .disks import DISKS
from .facts import domain_facts
from .hardware import HARDWARE, check_tags
from .nics import NICS

if TYPE_CHECKING:
    from .._libvirt import Domain

FIELDS = (
    Field("name", required=True, check=check_name),
    *HARDWARE,
    Field("disks", type="list", elements="dict", fields=DISKS, when="live"),
    Field("nics", type="list", elements="dict", fields=NICS, when="live"),
    Field("tags", type="names", check=check_tags, when="live"),
    Field("cloud_init", type="dict", fields=cloud_init.FIELDS),
)


def adoption(domain: Domain) -> tuple[dict[str, Any], list[str]]:
    """The options, and in words what the VM has that module vm has no option for (it leaves that as it is)."""
    root = parse(domain.xml)
    options: dict[str, Any] = {"name": domain.name, **sheet.read(root)}
    kept: dict[str, Any] = {}
    facts = domain_facts(domain)
    # The seed's drive belongs to cloud_init, of which nothing can be read back.
    facts["disks"] = [disk for disk in facts["disks"] if disk["target"] != cloud_init.target(root)]
    words = _foreign(facts, options)
    for field in FIELDS:
        value = _given(options.get(field.name))
        try:
            _check_choices(field, value)
            normalise((field,), {field.name: value})
        except Invalid as error:
            words.append(error.message)
            continue
        if value is not None:
            kept[field.name] = value
    kept["autostart"] = domain.autostart
    asked = domain.state == "paused" and domain.reason == power.USER
    kept["state"] = "paused" if asked else "stopped" if domain.state == power.STOPPED else "running"
    return kept, words


def _foreign(facts: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The devices that are not among the options."""
    words = []
    for kind, key, label in (("disks", "target", "disk"), ("nics", "mac", "NIC")):
        known = {device[key] for device in options[kind]}
        words += [f"{label} {one[key]} (of type {one['type']})" for one in facts[kind] if one[key] not in known]
    words += [f"host device (of type {one['type']})" for one in facts["hostdevs"]]
    return words + [f"shared folder {folder}" for folder in facts["filesystems"]]


def _given(value: Any) -> Any:
    """Without the options of disks and NICs that have no value."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _check_choices(field: Field, value: Any) -> None:
    """What Ansible itself checks of an option. Raises Invalid."""
    if field.choices and value is not None and value not in field.choices:
        raise Invalid(f"{field.name}: {value} is none of {', '.join(field.choices)}")
    for item in ([value] if field.type == "dict" else value or []) if field.fields and value else []:
        for inner in field.fields:
            _check_choices(inner, item.get(inner.name))
