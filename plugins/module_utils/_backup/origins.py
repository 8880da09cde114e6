# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are read from snapshots which their storage keeps: the SAN's own, made while the guest stood still.

A snapshot is a device of the node, or a logical unit to which qemu-img logs in as QEMU does; the secret goes to it on
its standard input. See https://www.qemu.org/docs/master/system/device-url-syntax.html and qemu-block-drivers(7).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from .._disks import iscsi
from .._disks.file import check_path
from .._domain.disks import check_target
from .._errors import Invalid, Refused
from .._fields import Field
from .._identity import initiator_iqn
from .._libvirt import Domain, Node
from .._run import run_json
from .._xml import Property, parse, target_of
from . import files, job, store
from .disks import Disk
from .files import Source

NO_NOTES = "snapshots of the storage don't tell what has changed"


def check_moment(value: str) -> str:
    """A moment as module vm_freeze returns it."""
    try:
        store.moment(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a moment such as 20261122T030000Z") from None
    return value


FIELDS = (
    Field("moment", check=check_moment),
    Field("quiesced", type="bool", default=False),
    Field(
        "disks",
        type="list",
        elements="dict",
        required=True,
        fields=(
            Field("target", required=True, check=check_target),
            Field("path", type="path", check=check_path),
            *iscsi.FIELDS,
        ),
    ),
)


def of_disks(node: Node, domain: Domain, asked: Mapping[str, Any]) -> dict[str, Source]:
    """Where each disk of the VM is read, by its target. Raises Invalid, Refused, and NotFound for a lacking secret."""
    elements = {target_of(one): one for one in job.copied_disks(parse(domain.live_xml or domain.xml))[0]}
    given = [one["target"] for one in asked["disks"]]
    if sorted(given) != sorted(elements):
        raise Refused(
            f"{domain.name} has the disks {', '.join(elements)}, and from_snapshot has {', '.join(given) or 'none'}: "
            "name each once, as all must be of one moment",
            option="from_snapshot",
        )
    return {one["target"]: _origin(node, domain.name, elements[one["target"]], one) for one in asked["disks"]}


def _origin(node: Node, vm: str, disk: Element, one: Mapping[str, Any]) -> Source:
    target, path = one["target"], one["path"]
    if bool(path) == bool(one["iqn"]):
        raise Invalid(f"from_snapshot: {target} of {vm}: give either path or iqn", option="from_snapshot")
    if path:
        if path in (Property("source/@dev").get(disk), Property("source/@file").get(disk)):
            raise Refused(f"{path} is {target} of {vm} itself and no snapshot of it")
        return Source(path)
    own = {field.name: field.place.get(disk) for field in iscsi.FIELDS} if iscsi.ISCSI.recognises(disk) else {}
    if (one["iqn"], one["lun"] or 1) == (own.get("iqn"), own.get("lun")):
        raise Refused(f"{one['iqn']} is {target} of {vm} itself and no snapshot of it")
    names = ("portal", "initiator", "user", "secret")
    login = {name: own.get(name) if one[name] is None else one[name] for name in names}
    if not login["portal"]:
        raise Invalid(f"from_snapshot: {target} of {vm} needs a portal", option="from_snapshot")
    unit = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": login["portal"],
        "target": one["iqn"],
        "lun": 1 if one["lun"] is None else one["lun"],
        "initiator-name": login["initiator"] or initiator_iqn(vm),
    }
    if not login["user"]:
        return Source(_address(unit))
    password = node.password("iscsi", str(login["secret"]))
    return Source(_address({**unit, "user": login["user"], "password-secret": files.LOGIN}), secret=password)


def _address(unit: Mapping[str, Any]) -> str:
    return "json:" + json.dumps({"driver": "raw", "file": unit})


def copy(disk: Disk, origin: Source, image: Path, style: files.Style) -> Disk:
    """All of a disk as its snapshot has it; its size is known then. Raises Failed, Refused for one of another size."""
    words = ["qemu-img", "info", *origin.login(), "--output=json", "-f", origin.format, origin.address]
    size = run_json(words, origin.secret)["virtual-size"]
    if disk.size not in (0, size):
        raise Refused(
            f"the snapshot of {disk.target} has {size} bytes and the disk {disk.size}: it is of another disk, or that "
            "one has grown since"
        )
    files.copy(origin, image, style)
    return disk._replace(size=size)
