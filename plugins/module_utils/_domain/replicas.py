# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas of VMs on a second SAN: two for each VM, by turn, so that one is always whole. Pure.

A record says of one replica (`vm`, `slot`) whether it is `whole`, of which moment (`time`, UTC), and how the VM was
defined then (`sheet`, the options of module vm with the disks of the replica).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from .._errors import Invalid
from .._identity import disk_target, initiator_iqn, iqn_part, vm_uuid
from .disks import COMMON
from .inventory import numbered

SLOTS = ("a", "b")
FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# What is said of the storage that a disk lay on, not of what its guest sees.
OF_STORAGE = ("device", "format", "readonly", "cache", "io")
SETTINGS = ("iqn_prefix", "portal", "user", "secret")


def stamp(moment: datetime) -> str:
    """A moment as records have it."""
    return moment.astimezone(timezone.utc).strftime(FORMAT)


def _whole(records: Iterable[Mapping[str, Any]], vm: str) -> list[Mapping[str, Any]]:
    """The replicas of a VM of which every record says that they are whole, the newest first.

    Each node has a record of its own. A node that was away when a replica was written again still calls it whole.
    """
    own = [record for record in records if record["vm"] == vm]
    torn = {record["slot"] for record in own if not record["whole"]}
    newest = {record["slot"]: record for record in sorted(own, key=lambda record: str(record["time"]))}
    found = [record for slot, record in newest.items() if slot not in torn]
    return sorted(found, key=lambda record: str(record["time"]), reverse=True)


def next_slot(records: Iterable[Mapping[str, Any]], vm: str) -> str:
    """The slot to write to: never that of the newest replica that is whole."""
    whole = [record["slot"] for record in _whole(records, vm)]
    return next(slot for slot in SLOTS if slot not in whole[:1])


def plan(
    sheets: Iterable[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What to copy where: for each VM `vm` (options of module vm_replica), `volumes` (items of iscsi_volume), `record`.

    `settings` are those of the second SAN (`SETTINGS`). Raises Invalid.
    """
    for key in set(settings) - set(SETTINGS):
        raise Invalid(f"replicas: there is no setting {key}; there are {', '.join(SETTINGS)}")
    for key in ("iqn_prefix", "portal"):
        if not settings.get(key):
            raise Invalid(f"replicas: {key} of the second SAN is missing (drover_replica_{key})")
    return [_item(sheet, next_slot(records, str(sheet["name"])), settings) for sheet in sheets]


def _item(sheet: Mapping[str, Any], slot: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    name = str(sheet["name"])
    pairs = [_pair(sheet, disk, number, slot, settings) for number, disk in numbered(sheet.get("disks") or [])]
    found = [pair for pair in pairs if pair is not None]
    return {
        "vm": {"name": name, "slot": slot, "disks": [disk for disk, _volume in found]},
        "volumes": [volume for _disk, volume in found],
        "record": {"vm": name, "slot": slot, "whole": False},
    }


def _pair(
    sheet: Mapping[str, Any], disk: Mapping[str, Any], number: int, slot: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    name = str(sheet["name"])
    if number < 0 or disk.get("readonly"):
        return None
    if not disk.get("size"):
        raise Invalid(f"{name}: vm_disks[{number}] has no size; without it no volume for its replica can be made")
    iqn = f"{settings['iqn_prefix']}:replica-{iqn_part(name)}-{number}-{slot}"
    place = {"iqn": iqn, "portal": settings["portal"], "user": settings.get("user"), "secret": settings.get("secret")}
    target = disk_target(disk, number)
    given = {key: value for key, value in place.items() if value}
    return {"target": target, **given}, {
        "name": f"replica-{name}-{number}-{slot}",
        "iqn": iqn,
        "size": disk["size"],
        "initiators": [initiator_iqn(name)],
        "chap_user": settings.get("user") or "",
        "owner": name,
        "vm_uuid": sheet.get("uuid") or vm_uuid(name),
    }


def sheet_of(sheet: Mapping[str, Any], copies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sheet with which the VM starts from its replica; `copies` are the options of the new disks by target.

    Media stay behind: they are files of a node.
    """
    keep = [field.name for field in COMMON if field.name not in OF_STORAGE]
    disks = [
        {**{key: disk[key] for key in keep if disk.get(key)}, **copies[disk["target"]]}
        for disk in sheet["disks"]
        if disk["target"] in copies
    ]
    return {**sheet, "disks": disks, "state": "running"}


def choose(records: Sequence[Mapping[str, Any]], names: Iterable[str], now: str) -> list[dict[str, Any]]:
    """The newest whole replica of each VM: `name`, `slot`, `time`, `age` in seconds at `now`, `sheet`.

    A VM without one has None there. Raises ValueError for a moment that is none.
    """
    chosen: list[dict[str, Any]] = []
    for name in names:
        best = next(iter(_whole(records, name)), None)
        if best is None:
            chosen.append({"name": name, "slot": None, "time": None, "age": None, "sheet": None})
        else:
            age = int((_moment(now) - _moment(best["time"])).total_seconds())
            chosen.append({"name": name, **{key: best[key] for key in ("slot", "time", "sheet")}, "age": age})
    return chosen


def check_moment(text: str) -> str:
    """A moment as records have it."""
    try:
        datetime.strptime(text, FORMAT).replace(tzinfo=timezone.utc)
    except ValueError:
        raise ValueError(f"{text!r} is not a moment such as 2026-11-21T20:15:00Z") from None
    return text


def _moment(text: str) -> datetime:
    return datetime.strptime(check_moment(text), FORMAT).replace(tzinfo=timezone.utc)
