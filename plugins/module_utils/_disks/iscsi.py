# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A logical unit of an iSCSI target, reached by QEMU's own initiator: the same XML on every node, no host device.

See https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms and https://libvirt.org/formatsecret.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from .._blocks import Blocks
from .._errors import NotFound, Refused, Unreachable
from .._fields import Field, check_iqn, check_portal
from .._identity import initiator_iqn
from .._libiscsi import Login, wwids
from .._xml import Property, drop, find, make
from .kind import ANOTHER, Kind, Options, Password

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,222}", re.ASCII)
# What the kernel and udev make of a name of IEEE's, 8 or 16 bytes long (NAA), or of an EUI-64.
WWID = re.compile(r"3[0-9a-f]{16}([0-9a-f]{16})?|2[0-9a-f]{16}([0-9a-f]{8}|[0-9a-f]{16})?")
# As QEMU calls itself where no name is given.
QEMU_INITIATOR = "iqn.2008-11.org.linux-kvm"
USER = re.compile(r"[A-Za-z0-9_+-]{1,222}", re.ASCII)


@dataclass(frozen=True)
class Name:
    """The IQN or the number of the logical unit: libvirt keeps both in one attribute, `IQN/LUN`."""

    lun: bool

    def get(self, disk: Element) -> Any:
        """The one half."""
        iqn, _slash, lun = (Property("source/@name").get(disk) or "").partition("/")
        if self.lun:
            return int(lun) if lun.isdecimal() else 0
        return iqn or None

    def put(self, disk: Element, value: Any) -> None:
        """Write the one half and keep the other."""
        iqn, lun = (Name(False).get(disk) or "", value) if self.lun else (value, Name(True).get(disk))
        Property("source/@name").put(disk, f"{iqn}/{lun}")


class Portal:
    """Address and port of the target, as in 10.231.5.10:3260 or [fd00::10]:3260."""

    def get(self, disk: Element) -> str | None:
        """The first host of the source."""
        host = find(disk, "source/host")
        if host is None:
            return None
        address = host.get("name", "")
        return f"{f'[{address}]' if ':' in address else address}:{host.get('port', '3260')}"

    def put(self, disk: Element, value: str) -> None:
        """Write it."""
        address, _colon, port = value.rpartition(":")
        make(disk, "source/host").attrib.update({"name": address.strip("[]"), "port": port})


def _check_lun(value: int) -> int:
    if not 0 <= value <= 16383:
        raise ValueError(f"{value} is not a logical unit; write a number from 0 to 16383")
    return value


def check_wwid(value: str) -> str:
    """A WWID as udev and multipath write it, in lower case; empty for none."""
    wwid = value.lower()
    if wwid and not WWID.fullmatch(wwid):
        raise ValueError(
            f"{value!r} is not a WWID; write what the array calls NAA or WWN (16 or 32 digits from 0 to f) after a 3, "
            "such as 36001405ee27ff29e2f44851b1dc257c9"
        )
    return wwid


def check_word(value: str) -> str:
    """The name of a secret. libvirt's schema takes none with a slash."""
    if not WORD.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: letters, digits and . _ : @ - only, the first a letter or digit")
    return value


def check_user(value: str) -> str:
    """The name of a user as libvirt takes it in a domain (genericName in its schema); empty for none."""
    if value and not USER.fullmatch(value):
        raise ValueError(f"{value!r} is not a user that libvirt takes: letters, digits and _ + - only")
    return value


def check_account(value: str) -> str:
    """The name of a secret; empty for none, so without CHAP."""
    return check_word(value) if value else value


@dataclass(frozen=True)
class Account(Property):
    """A half of what the initiator logs in with; without one half there is no login."""

    def put(self, root: Element, value: Any) -> None:
        """Write it; with an empty one the whole account goes."""
        source, auth = find(root, "source"), find(root, "source/auth")
        if value:
            super().put(root, value)
        elif source is not None and auth is not None:
            drop(source, auth)


FIELDS = (
    Field("iqn", check=check_iqn, place=Name(lun=False), fixed=ANOTHER),
    Field("lun", type="int", check=_check_lun, place=Name(lun=True), fixed=ANOTHER),
    Field("portal", check=check_portal, place=Portal(), fixed=ANOTHER),
    Field("initiator", check=check_iqn, place=Property("source/initiator/iqn/@name")),
    Field("user", check=check_user, place=Account("source/auth/@username")),
    Field(
        "secret",
        # The name of a libvirt secret; what it holds never comes here.
        no_log=False,
        check=check_account,
        place=Account("source/auth/secret/@usage", fixed=(("type", "iscsi"),)),
    ),
)


def _recognises(disk: Element) -> bool:
    return disk.get("type") == "network" and Property("source/@protocol").get(disk) == "iscsi"


def _source() -> Element:
    disk = Element("disk", {"type": "network"})
    # The guest's own cache is enough; with the node's cache a live migration would not be safe.
    SubElement(disk, "driver", {"name": "qemu", "cache": "none"})
    SubElement(disk, "source", {"protocol": "iscsi"})
    return disk


def _fill(options: dict[str, Any], vm: str, _number: int) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    return {**options, "lun": 1, "format": "raw", "initiator": initiator_iqn(vm), **given}


def _identity(options: dict[str, Any]) -> str | None:
    if not options.get("iqn") or not options.get("portal"):
        return None
    lun = options.get("lun")
    return f"iscsi:{options['iqn']}/{1 if lun is None else lun}@{options['portal']}"


def _complaint(options: dict[str, Any]) -> str | None:
    return None if options["format"] == "raw" else "a disk of type iscsi has the format raw"


def _check_start(options: Options, uuid: str, password: Password) -> None:
    """Raise Refused while this node's kernel uses the unit, and when it is another volume than declared (`wwid`)."""
    unit, blocks = f"{options['iqn']}/{options['lun']}", Blocks()
    users = {words for name in blocks.of_unit(unit) for words in blocks.users(name)}
    if users and not options["readonly"]:
        raise Refused(
            f"{unit} is in use on this node: {', '.join(sorted(users))}; stop that and log out", users=sorted(users)
        )
    if not options["wwid"]:
        return
    initiator = options["initiator"] or f"{QEMU_INITIATOR}:{uuid}"
    login = Login(options["portal"], options["iqn"], options["lun"], initiator)
    try:
        if options["user"]:
            login = login._replace(user=options["user"], password=password("iscsi", options["secret"]))
        found = wwids(login)
    except (NotFound, Unreachable) as error:
        words = f"{unit} could not be asked whether it is the volume {options['wwid']}"
        raise Refused(f"{words}: {error.message}. Does the portal let this initiator in?") from None
    if options["wwid"] not in found:
        raise Refused(
            f"{unit} is the volume {' or '.join(found) or 'of no WWID'}, not {options['wwid']}: the array maps another "
            "volume there. Correct the mapping; where the volume was replaced on purpose, correct wwid",
            wwids=found,
        )


ISCSI = Kind("iscsi", FIELDS, ("iqn", "portal"), _recognises, _source, _fill, _identity, _complaint, None, _check_start)
