# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused of a volume, so that nothing is lost and no two volumes are taken for each other. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._errors import Invalid, Refused
from ._fields import check_iqn
from ._target_tgt import Target

Volume = Mapping[str, Any]


def serial_of(iqn: str) -> str:
    """The default serial: the same for the same IQN for ever, another for each IQN."""
    return hashlib.sha256(iqn.encode()).hexdigest()[:16]


def refuse_bad_iqn(name: str, iqn: str) -> None:
    """A prefix and a name may each be right and yet make no IQN (capitals, underscores). Raises Invalid."""
    try:
        check_iqn(iqn)
    except ValueError as error:
        raise Invalid(f"{name}: {error}; or give the volume its own iqn", option="iqn") from None


def refuse_twins(volumes: Sequence[Volume]) -> None:
    """No two volumes of a task have the same IQN, file or serial. Raises Invalid naming both."""
    seen: dict[tuple[str, str], str] = {}
    for volume in volumes:
        for key in ("iqn", "path", "serial"):
            value = volume[key]
            other = seen.setdefault((key, value), volume["name"]) if value else volume["name"]
            if other != volume["name"]:
                raise Invalid(
                    f"{other} and {volume['name']} have the same {key} {value}", volumes=[other, volume["name"]]
                )


def refuse_changed_identity(name: str, asked: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """IQN, file and VM of a volume don't change. Raises Refused."""
    for key in ("iqn", "path", "vm_uuid"):
        if asked.get(key) and known.get(key) and asked[key] != known[key]:
            raise Refused(
                f"{name} has {key} {known[key]}, not {asked[key]}; a volume keeps it for its life", **{key: known[key]}
            )


def refuse_foreign_data(name: str, path: str, data: Mapping[str, Any] | None, ours: bool) -> None:
    """A file or logical volume that we did not make is left alone. Raises Refused."""
    if data is not None and not ours and (data["mark"] or {}).get("name") != name:
        raise Refused(
            f"{path} exists and is not the data of volume {name} (no mark of it); it is left alone", path=path
        )


def refuse_foreign_target(name: str, iqn: str, ours: bool) -> None:
    """A target that we did not make is left alone. Raises Refused."""
    if not ours:
        raise Refused(f"the target {iqn} was not made for volume {name}; it is left alone", iqn=iqn)


def refuse_other_units(name: str, iqn: str, others: Mapping[str, str]) -> None:
    """Logical units that somebody added to our target would go with it. Raises Refused; `others` are data by number."""
    if others:
        units = ", ".join(f"{number} ({path})" for number, path in sorted(others.items()))
        raise Refused(
            f"the target {iqn} of volume {name} also has logical unit {units}, which this module did not make and "
            "which would go with it; take that off first",
            units=dict(others),
        )


def refuse_options(name: str, asked: Mapping[str, Any], where: str, options: Iterable[str]) -> None:
    """Options that can't have an effect. Raises Invalid."""
    given = [option for option in options if asked[option]]
    if given:
        raise Invalid(f"{name}: {', '.join(given)} can't be had with {where}", option=given[0])


def origin_of(name: str, asked: Mapping[str, Any]) -> str | None:
    """The volume of which a new one is a copy. Raises Invalid for more than one beginning."""
    if sum(bool(asked[option]) for option in ("source", "clone_of", "snapshot_of")) > 1:
        raise Invalid(f"{name}: give one of source, clone_of and snapshot_of")
    origin: str | None = asked["clone_of"] or asked["snapshot_of"]
    return origin


def settle_chap(volume: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Without a user there is no secret, and without CHAP none of the target's own.

    Raises Invalid for half of an account, and for the same secret in both directions (RFC 7143, 12.1.3).
    """
    name = volume["name"]
    if not volume["chap_user"] and asked["mutual_chap_user"]:
        raise Invalid(f"{name}: mutual_chap_user needs a chap_user; CHAP is asked of the initiator first")
    for kind in ("", "mutual_"):
        user = volume[f"{kind}chap_user"] = (volume["chap_user"] and volume[f"{kind}chap_user"]) or ""
        if not user:
            volume[f"{kind}chap_password"] = None
        elif volume[f"{kind}chap_password"] is None:
            raise Invalid(f"{name}: {kind}chap_password is missing; the present secret of {user} is not known")
    if volume["chap_user"] and volume["chap_password"] == volume["mutual_chap_password"]:
        raise Invalid(f"{name}: chap_password and mutual_chap_password are the same; each would give away the other")


def refuse_ending_sessions(name: str, wanted: Volume, have: Volume, kicks: bool) -> None:
    """Nothing is taken from those who are logged in; `kicks`: an initiator that is taken away loses its session."""
    users = [item["initiator"] for item in have.get("sessions", [])]
    for user in users:
        if kicks and user not in wanted["initiators"]:
            raise Refused(f"{name} is in use by {user}, which would lose it; stop the VM first", initiator=user)
    if users and wanted["readonly"] and not have["readonly"]:
        raise Refused(f"{name} is in use by {', '.join(users)}; it is not write-protected now", initiator=users[0])


def lio_wwid(serial: str) -> str:
    """The WWID that multipath and /dev/disk/by-id show: 3, LIO's NAA prefix, the first 25 digits of the serial."""
    return "36001405" + serial.replace("-", "")[:25].ljust(25, "0")


def tgt_wwid(serial: str) -> str:
    """The WWID of a volume of tgtd: 3, NAA type 6, and the serial as a number of 31 hexadecimal digits."""
    return "36" + serial.rjust(31, "0")


def refuse_other_portals(name: str, wanted: Sequence[str], have: Sequence[str]) -> None:
    """All targets of tgtd have the same portals. Raises Refused."""
    if list(wanted) != list(have):
        raise Refused(
            f"{name}: tgtd listens on {', '.join(have)} for all volumes, not on {', '.join(wanted)}; "
            "the role san_target changes that",
            portals=list(have),
        )


def refuse_same_wwid(volume: Volume, serials: Mapping[str, str]) -> None:
    """Initiators take two volumes with one WWID for two paths to one disk. Raises Refused naming both."""
    for other, serial in serials.items():
        if lio_wwid(serial) == volume["wwid"]:
            raise Refused(
                f"{volume['name']} and {other} would have the same WWID {volume['wwid']}; give one its own serial",
                wwid=volume["wwid"],
            )


def refuse_on_lio(volume: Volume) -> None:
    """What LIO can't do or takes for something else. Raises Invalid."""
    name = volume["name"]
    for initiator in volume["initiators"]:
        if not initiator.startswith("iqn."):
            raise Invalid(f"{name}: initiators: LIO knows initiators by their IQN only, not {initiator}")
    for iqn in (volume["iqn"], *volume["initiators"]):
        if "." not in iqn[len("iqn.2026-11.") :]:
            raise Invalid(f"{name}: {iqn}: LIO takes an IQN only with a dot in it after the date, as in org.example")
    for key in ("chap_user", "chap_password", "mutual_chap_user", "mutual_chap_password"):
        if str(volume[key]).startswith("NULL"):
            raise Invalid(f"{name}: {key} begins with NULL, which LIO takes for none")


def refuse_same_serial(volume: Volume, targets: Iterable[Target]) -> None:
    """Initiators take two volumes with one serial for two paths to one disk. Raises Refused naming both."""
    for target in targets:
        if target.iqn != volume["iqn"] and any(lun.serial == volume["serial"] for lun in target.luns.values()):
            raise Refused(
                f"{volume['iqn']} and {target.iqn} would have the same serial {volume['serial']}; give one its own",
                serial=volume["serial"],
            )


def refuse_stolen_account(
    volume: Volume, batch: Sequence[Volume], saved: Iterable[Volume], targets: Iterable[Target]
) -> None:
    """A CHAP user has one secret in tgtd: all volumes that share it change together. Raises Refused.

    `batch` are the options of all volumes of the task, `saved` our volumes, `targets` what tgtd has.
    """
    ours = {other["iqn"]: other for other in saved}
    for kind, other_kind in (("", "mutual_"), ("mutual_", "")):
        user, password = volume[f"{kind}chap_user"], volume[f"{kind}chap_password"]
        if not user:
            continue
        same_now = [item for item in batch if item["state"] == "absent" or item[f"{kind}chap_password"] == password]
        together = {item["name"] for item in same_now}
        for other in ours.values():
            same = other[f"{kind}chap_user"] == user and other[f"{kind}chap_password"] == password
            if other[f"{kind}chap_user"] == user and not same and other["name"] not in together:
                raise Refused(
                    f"the CHAP user {user} is shared with volume {other['name']}, which has another secret; "
                    "change both in one task, or use another user",
                    volume=other["name"],
                )
        if user in [other[f"{other_kind}chap_user"] for other in (volume, *ours.values())]:
            raise Refused(f"the CHAP user {user} is used in the other direction; tgtd has one secret for a user")
        for target in targets:
            if user in (*target.accounts, target.outgoing) and target.iqn not in (volume["iqn"], *ours):
                raise Refused(f"the CHAP user {user} is of target {target.iqn}, which is not ours; use another user")


def lets_in(rules: Iterable[str], initiator: str, address: str) -> bool:
    """Whether one of the access rules matches an initiator at an address."""
    for rule in rules:
        if rule in ("ALL", initiator, address):
            return True
        if "/" in rule and ipaddress.ip_address(address) in ipaddress.ip_network(rule):
            return True
    return False
