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
from ._target_tgt import LUN, Target

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


def refuse_foreign(name: str, path: str, target: Target | None, ours: bool, file: Mapping[str, Any] | None) -> None:
    """A target or file that we did not make is left alone. Raises Refused."""
    file_ours = ours or (file is not None and (file["mark"] or {}).get("name") == name)
    if file is not None and not file_ours:
        raise Refused(
            f"{path} exists and is not the file of volume {name} (no mark of it); it is left alone", path=path
        )
    exported = target.luns[LUN].path if target and LUN in target.luns else None
    if target and not ours and exported != path:
        raise Refused(f"the target {target.iqn} was not made for volume {name}; it is left alone", iqn=target.iqn)


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
    """A CHAP user has one secret in tgtd: all volumes that share it change together. Raises Refused or Invalid.

    `batch` are the options of all volumes of the task, `saved` our volumes, `targets` what tgtd has.
    """
    user, password = volume["chap_user"], volume["chap_password"]
    if user and password is None:
        raise Invalid(f"{volume['name']}: chap_password is missing; the present secret of {user} is not known")
    ours = {}
    together = {item["name"] for item in batch if item["state"] == "absent" or item["chap_password"] == password}
    for other in saved:
        ours[other["iqn"]] = other
        same = other["chap_user"] == user and other["chap_password"] == password
        if user and other["chap_user"] == user and not same and other["name"] not in together:
            raise Refused(
                f"the CHAP user {user} is shared with volume {other['name']}, which has another secret; "
                "change both in one task, or use another user",
                volume=other["name"],
            )
    for target in targets:
        if user and user in target.accounts and target.iqn not in (volume["iqn"], *ours):
            raise Refused(f"the CHAP user {user} is of target {target.iqn}, which is not ours; use another user")


def lets_in(rules: Iterable[str], initiator: str, address: str) -> bool:
    """Whether one of the access rules matches an initiator at an address."""
    for rule in rules:
        if rule in ("ALL", initiator, address):
            return True
        if "/" in rule and ipaddress.ip_address(address) in ipaddress.ip_network(rule):
            return True
    return False
