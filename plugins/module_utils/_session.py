# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a target's sessions are and shall be, as plain data; what would take a disk away from its user is refused.

A portal's state is the dictionary of its record's settings, with `record` and `logged_in`; None where there is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Optional, TypeVar

from ._blocks import Block, Blocks
from ._blocks import describe as describe_block
from ._errors import Invalid, NotFound, Refused
from ._fields import check_iqn, size_text
from ._initiator import Portal, Record, Session, new_values, parse_portal

AUTH = "node.session.auth."


class Setting(NamedTuple):
    """A line of a node record. `built_in` is what iscsiadm takes when neither a record nor iscsid.conf says it.

    `shown` tells that a session shows with what it runs (`RUNNING` of `_initiator.py`), so that what it learns only at
    its next login can be told.
    """

    key: str
    built_in: str | int = ""
    shown: bool = True


SETTINGS = {
    "startup": Setting("node.startup", "manual", shown=False),
    # multipathd writes its own fast_io_fail_tmo over the session's timeout, so a difference there says nothing.
    "replacement_timeout": Setting("node.session.timeo.replacement_timeout", 120, shown=False),
    "noop_interval": Setting("node.conn[0].timeo.noop_out_interval", 5),
    "noop_timeout": Setting("node.conn[0].timeo.noop_out_timeout", 5),
    "login_timeout": Setting("node.conn[0].timeo.login_timeout", 30, shown=False),
    "chap_user": Setting(f"{AUTH}username"),
    "chap_password": Setting(f"{AUTH}password"),
    "mutual_chap_user": Setting(f"{AUTH}username_in"),
    "mutual_chap_password": Setting(f"{AUTH}password_in"),
}
PortalState = Optional[dict[str, Any]]
Thing = TypeVar("Thing", Record, Session)
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)


def check_portals(value: list[str]) -> list[Portal]:
    """Portals, each once. Raises ValueError."""
    found = [parse_portal(text) for text in value]
    if not found or len(set(found)) != len(found):
        raise ValueError("name at least one portal" if not found else "a portal is listed twice")
    return found


def check_interfaces(value: Mapping[str, Any]) -> dict[str, str]:
    """The interface of each portal. Raises ValueError."""
    for nic in value.values():
        if not isinstance(nic, str) or (nic and not INTERFACE.fullmatch(nic)):
            raise ValueError(f"{nic!r} is not the name of a network interface")
    return {str(parse_portal(portal)): nic for portal, nic in value.items()}


def check_iqns(value: Sequence[str]) -> list[str]:
    """Names of targets. Raises ValueError."""
    return [check_iqn(name) for name in value]


def by_portal(target: str, found: Iterable[Thing]) -> dict[Portal, Thing]:
    """One thing for each portal. Raises Refused where there are more: this module binds a portal to one interface."""
    result: dict[Portal, Thing] = {}
    for one in found:
        if one.portal in result:
            nics = " and ".join(nic or "default" for nic in (result[one.portal].nic, one.nic))
            raise Refused(f"{target} has more than one record or session at {one.portal} ({nics}); remove one of them")
        result[one.portal] = one
    return result


def settings(values: Mapping[str, str]) -> dict[str, Any]:
    """A record's lines as options of the module."""
    found: dict[str, Any] = {}
    for option, setting in SETTINGS.items():
        text = values.get(setting.key, str(setting.built_in))
        found[option] = int(text) if isinstance(setting.built_in, int) and text.isdecimal() else text
    if values.get(f"{AUTH}authmethod", "None") != "CHAP":
        found.update(chap_user="", chap_password="", mutual_chap_user="", mutual_chap_password="")
    return found


def portal_state(record: Record | None, session: Session | None) -> PortalState:
    """What is at one portal."""
    if record is None and session is None:
        return None
    found = settings(record.values) if record else {}
    nic = record.nic if record else session.nic if session else ""
    return {
        **found,
        "interface": nic,
        "record": record is not None and record.private,
        "logged_in": session is not None,
    }


def wanted_state(have: PortalState, params: Mapping[str, Any], nic: str, defaults: Mapping[str, str]) -> dict[str, Any]:
    """What shall be at one portal: the record's settings, else those of iscsid.conf, under the options given."""
    base = have or {**settings(defaults), "startup": "automatic"}
    given = {name: params[name] for name in SETTINGS if params[name] is not None}
    after = {**base, **given, "interface": nic, "record": True, "logged_in": params["state"] == "present"}
    if not after["chap_user"]:
        after.update(chap_password="", mutual_chap_user="", mutual_chap_password="")
    if not after["mutual_chap_user"]:
        after["mutual_chap_password"] = ""
    return after


def wanted_portals(
    target: str, have: Mapping[str, PortalState], params: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What shall be at each portal; portals that are not in it shall have nothing. Raises Invalid."""
    given, nics = params["portals"], params["interfaces"] or {}
    asked = {str(portal) for portal in given} if given is not None else set(have)
    unknown = sorted(set(nics) - asked)
    if unknown:
        raise Invalid(
            f"{target}: interfaces names {', '.join(unknown)}, which is none of its portals", option="interfaces"
        )
    if params["state"] == "absent":
        return {name: dict(at or {}) for name, at in have.items() if name not in asked}
    if not asked:
        raise Invalid(f"{target} has no record yet: portals is missing", option="portals")
    after = {}
    # A new portal of a known target has what its other portals have.
    other = next((at for at in have.values() if at and "startup" in at), None)
    for name in sorted(asked):
        at = have.get(name)
        nic = str(nics.get(name, at["interface"] if at else ""))
        after[name] = wanted_state(at if at and "startup" in at else other, params, nic, defaults)
        check_chap(target, after[name])
    return after


def rebound(name: str, have: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a portal is to be reached over another interface than now: a new record and a new session."""
    return name in have and name in after and have[name]["interface"] != after[name]["interface"]


def logs_out(name: str, have: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the session at a portal ends."""
    stays = name in after and after[name]["logged_in"] and not rebound(name, have, after)
    return name in have and have[name]["logged_in"] and not stays


def logs_in(name: str, have: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a session at a portal begins."""
    goes_on = name in have and have[name]["logged_in"] and not rebound(name, have, after)
    return bool(after[name]["logged_in"]) and not goes_on


def leave_out(
    have: Mapping[str, Any],
    after: Mapping[str, dict[str, Any]],
    sessions: Iterable[Session],
    answers: Callable[[Portal], bool],
) -> list[str]:
    """While another path works, or can be made, want no session at a silent portal that has a record; says so."""
    back = [name for name, at in after.items() if at["logged_in"] and name in have and not have[name]["logged_in"]]
    silent = [name for name in back if not answers(parse_portal(name))]
    works = any(one.state == "LOGGED_IN" and str(one.portal) in after for one in sessions)
    if not works and len(silent) == len(back):
        return []
    for name in silent:
        after[name]["logged_in"] = False
    return [f"the portal {name} does not answer; what was logged in there before goes on without it" for name in silent]


def check_chap(target: str, after: Mapping[str, Any]) -> None:
    """The rules of CHAP (RFC 7143, 9.2.1) over all options together. Raises Invalid."""
    for user, password in (("chap_user", "chap_password"), ("mutual_chap_user", "mutual_chap_password")):
        if after[user] and not after[password]:
            raise Invalid(f"{target}: {user} is given without {password}", option=password)
    if after["mutual_chap_user"] and after["mutual_chap_password"] == after["chap_password"]:
        raise Invalid(
            f"{target}: chap_password and mutual_chap_password are the same; who has the one could play the SAN",
            option="mutual_chap_password",
        )


def record_of(target: str, portal: Portal, tpgt: int, after: Mapping[str, Any], base: Mapping[str, str]) -> Record:
    """The record that holds these settings; of `base` (a record's lines, or iscsid.conf) the rest is kept."""
    # An interface that the record was bound to before is not kept beside the new one.
    kept = {key: value for key, value in base.items() if not key.startswith(("iface.", AUTH)) or key.endswith("_algs")}
    ours = {setting.key: str(after[name]) for name, setting in SETTINGS.items() if after[name] != ""}
    ours[f"{AUTH}authmethod"] = "CHAP" if after["chap_user"] else "None"
    nic = after["interface"]
    return Record(target, portal, tpgt, nic, {**kept, **new_values(target, portal, tpgt, nic), **ours})


def changed_settings(have: PortalState, after: Mapping[str, Any]) -> list[str]:
    """The names of what a record must be told."""
    skipped = ("logged_in", "record")
    return sorted(name for name in after if name not in skipped and (have or {}).get(name) != after[name])


def pending(session: Session, after: Mapping[str, Any]) -> list[str]:
    """The settings with which the session does not run yet: it learns them at its next login."""
    found = []
    for name, setting in SETTINGS.items():
        value = str(after.get(name, ""))
        told = session.running.get(setting.key, "")
        if setting.shown and told != value and (value or "password" not in name):
            found.append(name)
    return found


class Disks:
    """The logical units that the sessions of one target brought."""

    def __init__(self, blocks: Blocks, sessions: Sequence[Session]) -> None:
        self.blocks = blocks
        self.sessions = sessions

    def units(self) -> dict[int, list[tuple[Session, Block]]]:
        """The paths of each logical unit, by its number."""
        found: dict[int, list[tuple[Session, Block]]] = {}
        for session in self.sessions:
            for name, lun in session.disks.items():
                # It may have gone since, with its session.
                with suppress(NotFound):
                    block = self.blocks.look(name)
                    found.setdefault(lun, []).append((session, block))
        return dict(sorted(found.items()))

    def grown(self) -> dict[int, dict[str, Any]]:
        """The units that are bigger on the SAN than the kernel or multipathd knows: sizes, paths and map.

        `waits` are the portals of broken paths: a map can't grow beyond a path that has the old size still.
        """
        found = {}
        for lun, paths in self.units().items():
            live = [block for session, block in paths if session.state == "LOGGED_IN"]
            asked = next((size for block in live if (size := self.blocks.capacity(block.name))), None)
            top = self.blocks.look(self.blocks.top(paths[0][1].name))
            small = [block.name for block in live if asked and block.size < asked]
            if asked and (small or top.size < asked):
                waits = [str(session.portal) for session, block in paths if block not in live]
                multipath = top.map if top.is_multipath else ""
                found[lun] = {"size": top.size, "asked": asked, "paths": small, "map": multipath, "waits": waits}
        return found

    def sizes(self) -> dict[int, int]:
        """The size of each logical unit here, in bytes."""
        return {lun: self.blocks.look(self.blocks.top(paths[0][1].name)).size for lun, paths in self.units().items()}

    def has_size(self, lun: int, size: int) -> bool | str:
        """Whether a unit has that size here, else what it has."""
        return self.sizes().get(lun) == size or f"{self.sizes().get(lun)} bytes"

    def in_maps(self) -> bool:
        """Whether every path is in a multipath map."""
        units = self.units()
        paths = [block for found in units.values() for _session, block in found]
        return bool(paths) and all(self.blocks.look(self.blocks.top(block.name)).is_multipath for block in paths)

    def ready(self, portals: Sequence[Portal], maps: bool) -> bool | str:
        """Whether the sessions at these portals and their disks are there, known to udev; else what is seen.

        With `maps`, every path must be in a multipath map too.
        """
        sessions = {one.portal: one for one in self.sessions}
        unready = (f"at {one}: {words}" for one in portals if (words := self._unready(sessions.get(one))))
        seen = next(unready, "")
        if not seen and maps and not self.in_maps():
            seen = "a path is in no multipath map; does multipathd run, and not blacklist it?"
        return seen or True

    def _unready(self, session: Session | None) -> str:
        if session is None or session.state != "LOGGED_IN":
            return f"the session is {session.state}" if session else "no session"
        if not session.disks:
            return "no logical unit; is one mapped for this initiator?"
        unseen = [name for name in session.disks if not self.blocks.known_to_udev(name)]
        return f"udev has not seen {', '.join(unseen)} yet" if unseen else ""

    def refuse_use(self, leaving: Callable[[Session], bool]) -> None:
        """Raises Refused when a disk that is in use would lose its last way."""
        for lun, paths in self.units().items():
            stays = [block for session, block in paths if session.state == "LOGGED_IN" and not leaving(session)]
            tops = {self.blocks.top(block.name) for _session, block in paths}
            over_map = any(self.blocks.look(top).is_multipath for top in tops)
            goes = [block for session, block in paths if leaving(session)]
            if not goes or (stays and over_map):
                continue
            used = sorted({words for block in goes for words in self.blocks.users(self.blocks.top(block.name))})
            if used:
                raise Refused(
                    f"{goes[0].by_id}, logical unit {lun} of {self.sessions[0].target}, is used by {'; '.join(used)}; "
                    "stop that first",
                    users=used,
                )

    def describe(self) -> list[dict[str, Any]]:
        """The units as the module returns them."""
        found = []
        for lun, paths in self.units().items():
            top = self.blocks.look(self.blocks.top(paths[0][1].name))
            ways = [{"device": b.name, "portal": str(s.portal), "state": s.state} for s, b in paths]
            facts = describe_block(top)
            serial = facts["serial"] or paths[0][1].serial
            multipath = top.map if top.is_multipath else None
            found.append({"lun": lun, **facts, "serial": serial, "multipath": multipath, "paths": ways})
        return found


def growth_words(lun: int, found: Mapping[str, Any]) -> str:
    """A growth in words."""
    return f"take the new size of logical unit {lun}, {size_text(found['asked'])} ({size_text(found['size'])} before)"


def describe(portals: Mapping[str, dict[str, Any]], sessions: Mapping[Portal, Session]) -> dict[str, Any]:
    """The portals as the module returns them, and what their sessions don't know yet."""
    found = {str(portal): session for portal, session in sessions.items()}
    shown = {}
    for name, at in portals.items():
        state = found[name].state if name in found else None
        shown[name] = {"interface": at["interface"], "record": at["record"], "state": state}
    waits = {name: pending(found[name], at) for name, at in portals.items() if name in found and at["record"]}
    return {"portals": shown, "pending": {name: names for name, names in waits.items() if names}}
