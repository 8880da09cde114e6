# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Field records: all that is to know of an option in one place. Pure, standard library only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, Callable

from ._errors import Invalid

LARGEST = 2**31 - 1
UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AGE = re.compile(r"(\d{1,9}) ?(s|min|m|h|d|w)?", re.ASCII)
SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
RATE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
RATE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))? ?([kMG]?)(?:bit(?:/s)?)?", re.ASCII)
SIZE = re.compile(r"(\d{1,18}) ?(?:([KMGT])(?:iB)?|(B)?)", re.ASCII)
WHOLE = re.compile(r"[+-]?\d{1,30}(\.0*)?", re.ASCII)
# Names that mean the controller, or all hosts, to Ansible.
CONTROLLER = ("localhost", "127.0.0.1", "all", "ungrouped")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
IQN = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9][a-z0-9-]*(\.[a-z0-9-]+)*(:[a-z0-9.:-]+)?", re.ASCII)
PORTAL = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):(\d{1,5})", re.ASCII)
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


@dataclass(frozen=True)
class Field:
    """One option: how Ansible sees it, how it is checked and compared, and where the resource keeps it.

    `type` is an Ansible type, or `size` (bytes; also "4GiB"), or `names` (a list that means exactly these,
    or a dict of `add`, `remove`, `set`). `check` takes the converted value and returns it normalised, or raises
    ValueError with the rule. `place` is the resource's own word for where the value lives. `fixed` says why the value
    of a thing that exists can't change. `when` says when a running VM has a new value: `power_cycle` (once it was
    powered off and on), `live` (at once), or `unseen` (at once, since no guest sees it, so that none waits for it).
    `same` says whether a value that is asked for (first) is what is there, where one thing can be said in two ways.
    """

    name: str
    type: str = "str"
    elements: str | None = None
    choices: tuple[str, ...] | None = None
    default: Any = None
    required: bool = False
    aliases: tuple[str, ...] = ()
    no_log: bool | None = None
    fields: tuple[Field, ...] = ()
    check: Callable[[Any], Any] | None = None
    place: Any = None
    fixed: str = ""
    when: str = "power_cycle"
    same: Callable[[Any, Any], bool] = eq


ANSIBLE_TYPES = {"size": "str", "names": "raw"}


def argument_spec(fields: Sequence[Field], defaults: bool = True) -> dict[str, dict[str, Any]]:
    """Ansible's argument_spec of the fields; without defaults where the engine itself fills them in (bulk items)."""
    spec: dict[str, dict[str, Any]] = {}
    for field in fields:
        option: dict[str, Any] = {"type": ANSIBLE_TYPES.get(field.type, field.type)}
        if field.elements:
            option["elements"] = ANSIBLE_TYPES.get(field.elements, field.elements)
        if field.choices:
            option["choices"] = list(field.choices)
        if field.aliases:
            option["aliases"] = list(field.aliases)
        if field.no_log is not None:
            option["no_log"] = field.no_log
        if field.fields:
            option["options"] = argument_spec(field.fields)
        if field.required and defaults:
            option["required"] = True
        elif field.default is not None and defaults:
            option["default"] = field.default
        spec[field.name] = option
    return spec


def tame(params: Any, spec: Mapping[str, Any]) -> Any:
    """The params with what Ansible's own checks of this argument_spec fall over as a text, which they refuse.

    That is a number where a dictionary belongs, and for a whole number what is infinite or has a huge exponent
    (ansible-core 2.19 to 2.21).
    """
    if isinstance(params, list):
        return [tame(item, spec) for item in params]
    if not isinstance(params, Mapping):
        return str(params)
    result = dict(params)
    for name, value in params.items():
        option = spec.get(name, {})
        if "int" in (option.get("type"), option.get("elements")):
            result[name] = [_quoted(item) for item in value] if isinstance(value, list) else _quoted(value)
        elif option.get("options") and value is not None:
            result[name] = tame(value, option["options"])
    return result


def _quoted(value: Any) -> Any:
    known = not isinstance(value, (str, float)) or WHOLE.fullmatch(str(value))
    return value if known else f"'{value}'"


def normalise(fields: Sequence[Field], params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The params converted and checked; options that were not given stay None, missing defaults are filled in.

    Raises Invalid naming the option by its path, such as `disks[0].size`.
    """
    values: dict[str, Any] = {}
    for field in fields:
        value = params.get(field.name)
        if value is None:
            value = field.default
        if value is None and field.required:
            raise Invalid(f"{path}{field.name} is missing", option=path + field.name)
        values[field.name] = None if value is None else _converted(field, value, path + field.name)
    return values


def _converted(field: Field, value: Any, path: str) -> Any:
    try:
        if isinstance(value, list) and None in value:
            raise ValueError("an item of the list is empty")
        if field.type == "size":
            value = parse_size(value)
        elif field.type == "names":
            value = parse_names(value)
        elif field.type == "list" and field.elements == "size":
            value = [parse_size(item) for item in value]
        elif "int" in (field.type, field.elements):
            _check_whole(value)
        choices = field.choices
        if choices and any(item not in choices for item in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{value} is none of {', '.join(choices)}")
        if field.fields and field.type == "list":
            value = [normalise(field.fields, item, f"{path}[{number}].") for number, item in enumerate(value)]
        elif field.fields:
            value = normalise(field.fields, value, path + ".")
        return field.check(value) if field.check else value
    except ValueError as error:
        raise Invalid(f"{path}: {error}", option=path) from None


def _check_whole(value: Any) -> None:
    """Raise ValueError for what Ansible and Python take for 0 and 1."""
    if any(isinstance(item, bool) for item in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{value} is not a whole number")


def parse_size(value: Any) -> int:
    """Bytes from a number or a text such as 4GiB, 512M or 4096 (units are powers of 1024). Raises ValueError."""
    match = SIZE.fullmatch(str(value).strip())
    if isinstance(value, (bool, float)) or not match:
        raise ValueError(f"{value!r} is not a size; write bytes or a number with KiB, MiB, GiB or TiB, such as 4GiB")
    return int(match.group(1)) * UNITS[match.group(2) or ""]


def parse_rate(value: Any) -> int:
    """Bits per second from a number or a text such as 10Mbit/s or 1.5Gbit (units are powers of 1000)."""
    match = RATE.fullmatch(str(value).strip())
    if isinstance(value, (bool, float)) or not match:
        raise ValueError(f"{value!r} is not a rate; write bits per second, with kbit/s, Mbit/s or Gbit/s")
    unit = RATE_UNITS[match[3]]
    fraction = int((match[2] or "0").ljust(3, "0"))
    if fraction * unit % 1000:
        raise ValueError(f"{value!r} is no whole number of bits per second")
    return int(match[1]) * unit + fraction * unit // 1000


def parse_age(value: Any) -> int:
    """Seconds of a span of time such as 30d, 20h, 90min or 600. Raises ValueError."""
    match = AGE.fullmatch(str(value).strip())
    if isinstance(value, (bool, float)) or not match:
        raise ValueError(f"{value!r} is no span of time; write seconds, or a number with min, h, d or w, such as 20h")
    return int(match[1]) * SECONDS[match[2] or ""]


def rate_text(rate: int) -> str:
    """The rate as `parse_rate` reads it."""
    unit = next((unit for unit in "GMk" if rate and rate % RATE_UNITS[unit] == 0), "")
    return f"{rate // RATE_UNITS[unit]}{unit}bit/s"


def size_text(size: int) -> str:
    """The size as `parse_size` reads it, in the largest unit that leaves no rest."""
    return next((f"{size // UNITS[unit]}{unit}iB" for unit in "TGMK" if size and size % UNITS[unit] == 0), str(size))


def parse_names(value: Any) -> dict[str, list[str]]:
    """A list (exactly these), or a dict of add, remove and set, as a dict of lists. Raises ValueError."""
    if isinstance(value, (str, list, tuple)):
        return {"set": _texts(value)}
    if not isinstance(value, dict) or not value or set(value) - {"add", "remove", "set"}:
        raise ValueError("write a list (exactly these), or a dict with add, remove or set")
    return {key: _texts(items) for key, items in value.items()}


def _texts(items: Any) -> list[str]:
    """The names as texts; one alone is a list of one, as Ansible takes it. Raises ValueError."""
    items = [items] if isinstance(items, (str, int, float)) else [] if items is None else items
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, (str, int, float)) for item in items):
        raise ValueError(f"{items!r} is not a list of names")
    return [str(item) for item in items]


def names_after(before: Sequence[str], change: Mapping[str, Sequence[str]] | None) -> list[str]:
    """The sorted names after a `names` option was applied; None leaves them as they are."""
    if change is None:
        return sorted(before)
    start = set(change["set"]) if "set" in change else set(before)
    return sorted((start | set(change.get("add", ()))) - set(change.get("remove", ())))


def check_name(value: str, longest: int = 63) -> str:
    """A name safe as file name, domain name and argument (libvirt itself accepts `..` and `-rf`)."""
    if not NAME.fullmatch(value) or ".." in value or len(value) > longest:
        raise ValueError(
            f"{value!r} is not a valid name: 1 to {longest} letters, digits, dots, hyphens or underscores, "
            "the first a letter or digit, no two dots in a row"
        )
    return value


def check_vm_name(value: str) -> str:
    """A name for a VM, which is a host of an inventory too."""
    if value.lower() in CONTROLLER:
        raise ValueError(f"{value!r} is no name for a VM: to Ansible it means the controller, or all hosts")
    return check_name(value)


def check_iqn(value: str) -> str:
    """An iSCSI qualified name (RFC 3720, 3.2.6.3.1), in lower case as the initiators compare it byte by byte."""
    if not IQN.fullmatch(value) or len(value) > 223:
        raise ValueError(
            f"{value!r} is not an iSCSI qualified name; write lower case letters, digits, dots, hyphens and colons "
            "such as iqn.2026-11.org.example:drover-web1-0"
        )
    return value


def check_portal(value: str) -> str:
    """An address with a port; a name is taken as it is."""
    match = PORTAL.fullmatch(value)
    if match and 1 <= int(match.group(2)) <= 65535:
        address = match.group(1)
        try:
            if address.startswith("["):
                address = f"[{ipaddress.IPv6Address(address.strip('[]'))}]"
            elif address.replace(".", "").isdecimal():
                address = str(ipaddress.IPv4Address(address))
        except ValueError:
            match = None
        if match:
            return f"{address}:{int(match.group(2))}"
    raise ValueError(f"{value!r} is not a portal; write address and port, such as 10.231.5.10:3260 or [fd00::10]:3260")


def check_mac(value: str) -> str:
    """A unicast MAC address in lower case."""
    mac = value.lower().replace("-", ":")
    if not MAC.fullmatch(mac):
        raise ValueError(f"{value!r} is not a MAC address; write it as 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is not the address of one NIC (multicast or all zero); use 52:54:00:xx:xx:xx")
    return mac


def check_vlan(value: int) -> int:
    """An IEEE 802.1Q VLAN id that may carry traffic: 1 to 4094."""
    if not 1 <= value <= 4094:
        raise ValueError(f"{value} is not a VLAN; a VLAN is a number from 1 to 4094")
    return value


def between(least: int, most: int = LARGEST, step: int = 1) -> Callable[[int], int]:
    """A check for a number in a range, and, for what would be rounded without a word, for its step."""

    def check(value: int) -> int:
        if not least <= value <= most or value % step:
            steps = f" in steps of {step}" if step > 1 else ""
            raise ValueError(f"{value} is out of range; write a number from {least} to {most}{steps}")
        return value

    return check


def zero_or(check: Callable[[int], int]) -> Callable[[int], int]:
    """A check that lets 0 pass, which takes a value away."""
    return lambda value: value and check(value)


def secret_names(fields: Sequence[Field]) -> set[str]:
    """The names, at any depth, of the fields that must not be shown."""
    names = {field.name for field in fields if field.no_log}
    for field in fields:
        names |= secret_names(field.fields)
    return names


def secret_keys(spec: Mapping[str, Any]) -> set[str]:
    """The same of an argument_spec, with the other names of these options."""
    names = {one for name, option in spec.items() if option.get("no_log") for one in (name, *option.get("aliases", ()))}
    return names.union(*(secret_keys(option.get("options") or {}) for option in spec.values()))


def texts_below(value: Any, names: set[str], below: bool = False) -> Iterator[str]:
    """The texts and numbers of plain data that are below a key of one of these names, wherever it is."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_below(item, names, below or key in names)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_below(item, names, below)
    elif below and value not in (None, "") and not isinstance(value, bool):
        yield str(value)


def differences(before: Any, after: Any) -> tuple[Any, Any]:
    """Both sides without what is the same on both, key by key in dicts; ({}, {}) when nothing differs."""
    if before == after:
        return {}, {}
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return before, after
    old, new = dict(before), dict(after)
    for key in before.keys() & after.keys():
        if before[key] == after[key]:
            del old[key], new[key]
        else:
            old[key], new[key] = differences(before[key], after[key])
    return old, new


def hidden(value: Any, secrets: set[str]) -> Any:
    """A copy of plain data in which the values of the secret keys are masked."""
    if isinstance(value, dict):
        return {key: "********" if key in secrets and item else hidden(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item, secrets) for item in value]
    return value
