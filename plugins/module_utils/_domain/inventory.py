# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sheet of a VM from the variables of its inventory host, and the volumes that its sheet needs. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from xml.etree.ElementTree import Element

from .._errors import DroverError, Invalid
from .._fields import Field, normalise, size_text
from .._identity import disk_target, initiator_iqn, target_number, vm_mac, vm_uuid, volume_iqn, volume_name
from . import nics
from .adopt import FIELDS
from .cpu import check_arrangement
from .disks import check_alone, check_target
from .hardware import HARDWARE, check_seconds
from .memory import check_minimum

GIB = 2**30
PROFILES: dict[str, dict[str, int]] = {
    "standard": {"vcpus": 4, "memory": 4 * GIB, "disk": 40 * GIB},
    "large": {"vcpus": 8, "memory": 16 * GIB, "disk": 40 * GIB},
}
STATES = ("present", "running", "paused", "stopped", "absent")
OPTIONS = [field.name for field in FIELDS if field.name != "name"]
OTHERS = ["state", "autostart", "shutdown_timeout", "profile", "number", "networks"]
POWER = (Field("autostart", type="bool"), Field("shutdown_timeout", type="int", check=check_seconds))
COUPLED = ("memory", "max_memory", "min_memory", "vcpus", "max_vcpus", "cpu_topology")
TOGETHER = [field for field in HARDWARE if field.name in COUPLED]
BOOLEANS = {"y", "yes", "on", "1", "true", "t", "1.0"}, {"n", "no", "off", "0", "false", "f", "0.0"}  # Ansible's
NUMBER = re.compile(r"-?\d{1,20}", re.ASCII)
BRACES = re.compile(r"\{[{%#]")
STORAGE = ["iscsi_iqn_prefix", "iscsi_portal", "iscsi_user", "iscsi_secret", "iscsi_chap_secret"]
RBD = ["pool", "namespace", "user", "secret", "monitors"]
STORAGE += [f"rbd_{key}" for key in RBD]
MAKING = ("size", "source", "source_format", "checksum", "clone")


def vm_sheet(variables: Mapping[str, Any], new_disks: bool = True) -> dict[str, Any]:
    """The options of module vm for one inventory host, from its `vm_*`. Raises Invalid naming the variable.

    Without `new_disks` the sheet does not say what a disk would be made from, so that one that is missing is refused.
    """
    name = str(variables["inventory_hostname"])
    given = {key[3:]: variables[key] for key in variables if key.startswith("vm_") and variables[key] is not None}
    _check_names(name, given)
    profile = _profile(name, given)
    disks = given.get("disks")
    if disks is None and profile and given.get("iscsi_portal"):
        disks = [{"type": "iscsi"}]
    elif disks is None and profile and given.get("rbd_pool"):
        disks = [{"type": "rbd"}]
    options: dict[str, Any] = {"vcpus": profile.get("vcpus"), "memory": profile.get("memory")}
    options.update({key: value for key, value in given.items() if key in OPTIONS})
    if disks is not None:
        options["disks"] = _disks(name, given, disks, profile.get("disk"))
    if given.get("cloud_init") is not None:
        options["cloud_init"] = _cloud_init(name, given["cloud_init"])
    sheet = {"name": name, **{key: value for key, value in options.items() if value is not None}}
    checked = _checked(name, sheet)
    sheet.update({key: checked[key] for key in ("memory", "max_memory") if key in sheet})
    if not new_disks and disks is not None:
        sheet["disks"] = [{key: disk[key] for key in disk if key not in MAKING} for disk in sheet["disks"]]
    return {**sheet, **_others(name, given)}


def vm_variables(sheet: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of an inventory host that give this sheet of a VM that is there, whatever its groups say.

    What the VM does not have is None, so that no group adds it. Sizes are texts. Raises Invalid for a text that Ansible
    would take for a template.
    """
    name = str(sheet["name"])
    if any(BRACES.search(text) for text in _texts(sheet)):
        raise Invalid(f"{name}: its title, description or another text holds {{{{, {{% or {{#, a template for Ansible")
    texts = _sized(FIELDS, sheet)
    variables = {f"vm_{key}": value for key, value in texts.items() if key != "name"}
    nothing = [key for key in (*OPTIONS, "profile", *STORAGE) if key not in texts]
    return {**variables, **{f"vm_{key}": None for key in sorted(nothing)}}


def _texts(value: Any) -> Iterable[str]:
    """All texts in plain data."""
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from [item] if isinstance(item, str) else _texts(item)


def _sized(fields: Iterable[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with sizes as texts."""
    result = dict(values)
    for field in fields:
        value = values.get(field.name)
        if field.type == "size" and isinstance(value, int):
            result[field.name] = size_text(value)
        elif field.elements == "dict" and value:
            result[field.name] = [_sized(field.fields, item) for item in value]
    return result


def declared_nics(variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The NICs of one inventory host with all of their options, and with the MAC address that each will have.

    A VM that has been there before keeps the addresses that it has. Raises Invalid naming the variable.
    """
    sheet = vm_sheet(variables)
    found: list[dict[str, Any]] = _checked(sheet["name"], sheet)["nics"] or []
    return [{**nic, "mac": nic["mac"] or vm_mac(sheet["name"], place)} for place, nic in enumerate(found)]


def iscsi_volumes(
    sheets: Iterable[Mapping[str, Any]], variables: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The items of module iscsi_volume for the disks of these sheets.

    `variables` (hostvars) hold the CHAP passwords, vm_iscsi_chap_secret of each VM; without them the items have none.
    """
    return [
        _volume(sheet, disk, number, variables)
        for sheet in sheets
        for number, disk in numbered(sheet.get("disks") or [])
        if disk.get("type") == "iscsi"
    ]


def san_snapshots(
    sheets: Iterable[Mapping[str, Any]], variables: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """For each of these sheets the snapshots of its volumes that a backup reads: items of iscsi_volume, and where.

    They have one name for ever, so that the next run finds what one that was killed has left.
    """
    return [_snapshots(sheet, variables) for sheet in sheets]


def _snapshots(sheet: Mapping[str, Any], variables: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    volumes, disks = [], []
    for number, disk in numbered(sheet.get("disks") or []):
        if disk.get("type") == "iscsi" and not disk.get("readonly"):
            volume = _volume(sheet, disk, number, variables)
            kept = {key: value for key, value in volume.items() if key not in ("size", "source")}
            names = {key: f"{volume[key]}-backup" for key in ("name", "iqn")}
            volumes.append({**kept, **names, "snapshot_of": volume["name"]})
            disks.append({"target": disk_target(disk, number), "iqn": names["iqn"], "lun": 1})
    return {"name": sheet["name"], "volumes": volumes, "disks": disks}


def _check_names(name: str, given: Mapping[str, Any]) -> None:
    known = [*OPTIONS, *OTHERS, *STORAGE]
    for key in given:
        if key not in known:
            raise Invalid(f"{name}: there is no variable vm_{key}; {_meant(key, known, 'vm_')}", option=f"vm_{key}")


def _meant(key: str, known: Iterable[str], prefix: str = "") -> str:
    """What was probably meant by a name that is not known, or all that are."""
    near = get_close_matches(key, sorted(known), n=3)
    if near:
        return f"did you mean {', '.join(prefix + other for other in near)}?"
    return f"there are {', '.join(prefix + other for other in sorted(known))}"


def _profile(name: str, given: Mapping[str, Any]) -> dict[str, int]:
    profile = given.get("profile")
    if profile is not None and str(profile) not in PROFILES:
        raise Invalid(f"{name}: vm_profile: {profile!r} is none of {', '.join(PROFILES)}", option="vm_profile")
    return PROFILES[str(profile)] if profile is not None else {}


def _others(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    state = given.get("state", "running")
    if state not in STATES:
        raise Invalid(f"{name}: vm_state: {state!r} is none of {', '.join(STATES)}", option="vm_state")
    others: dict[str, Any] = {"state": state}
    others.update({key: value for key, value in _converted(name, POWER, given).items() if value is not None})
    return others


def _cloud_init(name: str, given: Any) -> dict[str, Any]:
    """With user data as the text that module vm takes."""
    if not isinstance(given, Mapping):
        raise Invalid(f"{name}: vm_cloud_init: write a dictionary", option="vm_cloud_init")
    data = given.get("user_data")
    if isinstance(data, Mapping):
        # JSON is YAML too, and what reads it needs no rules for quotes.
        return {**given, "user_data": f"#cloud-config\n{json.dumps(data, indent=1, default=str)}\n"}
    return dict(given)


def numbered(disks: Iterable[Any]) -> Iterable[tuple[int, dict[str, Any]]]:
    """The disks with their numbers: the place in the list, or what their target says."""
    number = 0
    for disk in disks:
        if isinstance(disk, Mapping) and disk.get("device", "disk") == "disk":
            number = target_number(disk["target"]) if disk.get("target") else number
            yield number, dict(disk)
            number += 1
        else:
            yield -1, disk


def _disks(name: str, given: Mapping[str, Any], disks: Any, size: int | None) -> list[Any]:
    if not isinstance(disks, (list, tuple)) or not all(isinstance(disk, Mapping) for disk in disks):
        raise Invalid(f"{name}: vm_disks: write a list of dictionaries", option="vm_disks")
    targets = Field("disks", type="list", fields=(Field("target", check=check_target),))
    _converted(name, [targets], {"disks": disks})
    result = []
    for number, disk in numbered(disks):
        if number == 0 and size is not None:
            disk.setdefault("size", size)
        complete = {"iscsi": _iscsi, "rbd": _rbd}.get(str(disk.get("type")))
        result.append(complete(name, given, disk, number) if complete else disk)
    return result


def _iscsi(name: str, given: Mapping[str, Any], disk: dict[str, Any], number: int) -> dict[str, Any]:
    found = {"portal": given.get("iscsi_portal"), "user": given.get("iscsi_user"), "secret": given.get("iscsi_secret")}
    if found["user"] == "":
        found["secret"] = ""
    if given.get("iscsi_iqn_prefix"):
        found["iqn"] = volume_iqn(str(given["iscsi_iqn_prefix"]), name, number)
    disk = {**{key: value for key, value in found.items() if value is not None}, **disk}
    for key, variable in (("iqn", "vm_iscsi_iqn_prefix"), ("portal", "vm_iscsi_portal")):
        if not disk.get(key):
            raise Invalid(f"{name}: vm_disks: a disk of type iscsi needs {key}, or the variable {variable}")
    return disk


def _rbd(name: str, given: Mapping[str, Any], disk: dict[str, Any], _number: int) -> dict[str, Any]:
    found = {key: given[f"rbd_{key}"] for key in RBD if given.get(f"rbd_{key}")}
    if not disk.get("pool") and "pool" not in found:
        raise Invalid(f"{name}: vm_disks: a disk of type rbd needs pool, or the variable vm_rbd_pool")
    return {**found, **disk}


def _checked(name: str, sheet: Mapping[str, Any]) -> dict[str, Any]:
    """The options as module vm will read them; unknown suboptions and wrong values are named here already."""
    for field in [field for field in FIELDS if field.elements == "dict"]:
        key, known = field.name, list(dict.fromkeys(inner.name for inner in field.fields))
        for number, item in enumerate(sheet.get(key) or []):
            if not isinstance(item, Mapping):
                raise Invalid(f"{name}: vm_{key}: write a list of dictionaries", option=f"vm_{key}")
            for inner in set(item) - set(known):
                raise Invalid(f"{name}: vm_{key}[{number}]: there is no option {inner}; {_meant(inner, known)}")
    checked = _converted(name, FIELDS, sheet)
    _check_together(name, checked)
    return checked


def _check_together(name: str, checked: Mapping[str, Any]) -> None:
    """Raise Invalid for what module vm would refuse of a new VM: here it is said before a volume is made."""
    root = Element("domain")
    for field in TOGETHER:
        if checked[field.name] is not None:
            try:
                field.place.put(root, checked[field.name])
                # Without a number it is that of a VM that is there.
                if field.name == "cpu_topology" and checked["vcpus"] is not None:
                    check_arrangement(root)
                elif field.name == "min_memory":
                    check_minimum(root)
            except DroverError as error:
                raise Invalid(f"{name}: vm_{error.message}", option=f"vm_{field.name}") from None
    _check_devices(name, checked)


def _check_devices(name: str, checked: Mapping[str, Any]) -> None:
    for key, check in (("disks", check_alone), ("nics", nics.check_alone)):
        for place, one in enumerate(checked[key] or []):
            try:
                check(one, f"{key}[{place}]")
            except DroverError as error:
                raise Invalid(f"{name}: vm_{error.message}", option=f"vm_{key}") from None
    ordered = [one for key in ("disks", "nics") for one in checked[key] or [] if one["boot_order"]]
    if ordered and checked["boot"] is not None:
        raise Invalid(f"{name}: vm_boot and boot_order don't go together; write vm_boot: null", option="vm_boot")
    taken = [disk["target"] for disk in checked["disks"] or [] if disk["target"]]
    for target in taken:
        if taken.count(target) > 1:
            raise Invalid(f"{name}: vm_disks: {target} is in the list twice", option="vm_disks")


def _converted(name: str, fields: Sequence[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these fields as a module will read them. Raises Invalid naming the variable."""
    try:
        return normalise(fields, _typed(fields, values))
    except DroverError as error:
        where = "" if error.details.get("option") == "name" else "vm_"
        raise Invalid(f"{name}: {where}{error.message}", option=error.details.get("option")) from None


def _typed(fields: Iterable[Field], values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values in the types of their fields, as Ansible itself would convert them. Raises Invalid."""
    result = dict(values)
    for field in fields:
        value = values.get(field.name)
        if field.type == "int" and value is not None:
            if isinstance(value, bool) or not NUMBER.fullmatch(str(value).strip()):
                raise Invalid(f"{path}{field.name}: {value!r} is not a whole number", option=path + field.name)
            result[field.name] = int(value)
        elif field.type == "bool" and value is not None:
            result[field.name] = _boolean(value, path + field.name)
        elif field.type in ("str", "path") and value is not None:
            if isinstance(value, (Mapping, list, tuple)):
                raise Invalid(f"{path}{field.name}: {value!r} is not a text", option=path + field.name)
            result[field.name] = str(value)
        elif field.elements == "str" and isinstance(value, str):
            result[field.name] = value.split(",")
        elif (field.fields or field.elements) and value is not None:
            result[field.name] = _nested(field, value, path + field.name)
    return result


def _boolean(value: Any, where: str) -> bool:
    for meaning, texts in zip((True, False), BOOLEANS):
        if str(value).strip().lower() in texts:
            return meaning
    raise Invalid(f"{where}: {value!r} is not a boolean; write true or false", option=where)


def _nested(field: Field, value: Any, where: str) -> Any:
    """The same for a dictionary, a list of dictionaries and a list of single values."""
    if field.type == "dict":
        if not isinstance(value, Mapping):
            raise Invalid(f"{where}: {value!r} is not a dictionary", option=where)
        known = [inner.name for inner in field.fields]
        for name in set(value) - set(known):
            raise Invalid(f"{where}: there is no option {name}; there are {', '.join(known)}", option=where)
        return _typed(field.fields, value, f"{where}.")
    if field.fields:
        return [_typed(field.fields, item, f"{where}[{n}].") for n, item in enumerate(value)]
    if not isinstance(value, (list, tuple)):
        raise Invalid(f"{where}: {value!r} is not a list", option=where)
    one, parent = Field(field.name, type=field.elements or "str"), where[: -len(field.name)]
    return [_typed([one], {field.name: item}, parent)[field.name] for item in value]


def _volume(
    sheet: Mapping[str, Any], disk: Mapping[str, Any], number: int, variables: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any]:
    name = str(sheet["name"])
    volume: dict[str, Any] = {
        "name": volume_name(name, number),
        "iqn": disk["iqn"],
        "size": disk.get("size"),
        "source": disk.get("source"),
        "initiators": [disk.get("initiator") or initiator_iqn(name)],
        "chap_user": disk.get("user"),
        "owner": name,
        "vm_uuid": sheet.get("uuid") or vm_uuid(name),
    }
    if variables is not None:
        volume["chap_password"] = variables[name].get("vm_iscsi_chap_secret")
    return {key: value for key, value in volume.items() if value is not None}
