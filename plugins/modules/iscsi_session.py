#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_session: the kernel's sessions with the targets of a SAN."""

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_session
short_description: Log a node in to the volumes of an iSCSI SAN, and out again
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Logs the kernel's iSCSI initiator (open-iscsi) in to targets, at exactly the portals that are given, and keeps the
    node records as described, so that the sessions come back when the node starts.
  - Returns each disk by what it is (WWID, serial, C(/dev/disk/by-id)), never by the order in which it came.
  - Takes the new size of a logical unit that grew on the SAN, in the kernel and in multipathd. Whether it grew is read
    from the SAN itself, in check mode too.
  - A session is not ended while a disk that it alone brings is mounted, carries an active logical volume or another
    mapping, or is open by a process such as the QEMU of a VM; the user is named.
  - Two volumes of one WWID, such as an array's clone that kept the serial of its origin, are one disk for multipath,
    which would send what is written to the one to the other too. A login that brings such a unit is taken back at
    once, and the error names both; a session that was there before stays.
  - CHAP secrets are no argument of a command. The record is written as the file that C(iscsiadm) would write (0600,
    under its lock), for C(iscsiadm --op update --value) shows the secret in the process list to all users of the node.
options:
  target:
    description:
      - IQN of the target.
      - Required unless O(sessions) is given.
    type: str
    aliases: [iqn]
  state: &state
    description:
      - V(present) has a record and a session at each of O(portals).
      - V(logged_out) has the records, and no session.
      - V(absent) has neither; with O(portals) only at those.
      - The default is V(present).
    type: str
    choices: [present, logged_out, absent]
  portals: &portals
    description:
      - Exactly these portals, such as V(10.231.5.10:3260), V(10.231.5.10) or V([fd00:5::10]:3260). Addresses, no names.
        They are compared as addresses and ports.
      - Sessions and records of the target at other portals go.
      - Required for a target without records; the default is the portals of its records.
    type: list
    elements: str
  interfaces: &interfaces
    description:
      - The network interface to which the session at a portal is bound. A dictionary whose keys are portals, such as
        V(10.231.5.10:3260), and whose values are interfaces, such as V(nic1).
      - A portal that is not named stays as it is; a new one is not bound, and the routes decide.
    type: dict
  chap_user: &chap_user
    description:
      - Name with which the node logs in (CHAP). An empty string means no CHAP.
      - The default of a new record is what C(iscsid.conf) says, as for all settings.
    type: str
  chap_password: &chap_password
    description:
      - Its secret. 12 to 16 letters, digits, dots, underscores, colons, commas, hyphens, C(@), C(+) and C(/).
    type: str
  mutual_chap_user: &mutual_chap_user
    description:
      - Name that the SAN must give in return (mutual CHAP). An empty string asks for none.
    type: str
  mutual_chap_password: &mutual_chap_password
    description:
      - Its secret, another one than O(chap_password).
    type: str
  startup: &startup
    description:
      - Whether open-iscsi logs in when the node starts, with V(automatic), or before network file systems are
        mounted in the initial RAM disk, with V(onboot).
      - The default of a new record is V(automatic).
    type: str
    choices: [automatic, manual, onboot]
  replacement_timeout: &replacement_timeout
    description:
      - Seconds that a broken session may take to come back before its requests fail, over to another path if there is
        one. With multipath a few seconds; without it much longer. C(multipathd) sets its C(fast_io_fail_tmo) instead.
    type: int
  noop_interval: &noop_interval
    description: Seconds without a word of the SAN after which it is asked whether it is there; 0 never asks.
    type: int
  noop_timeout: &noop_timeout
    description: Seconds that the SAN may take to answer that before the session counts as broken; 0 waits for ever.
    type: int
  login_timeout: &login_timeout
    description: Seconds that a login may take.
    type: int
  multipath: &multipath
    description:
      - Every path must be in a map of C(multipathd) after the login; the module waits for it, and fails without.
      - A portal that does not answer, where the target has a record and no session, as after a boot, is left out
        with a warning while another path works; the next run that finds it back logs in there.
      - The default is V(false).
    type: bool
  same_units_as: &same_units_as
    description:
      - IQNs of other targets that lead to the same logical units, under the same numbers, as of an array whose
        controllers have a target each. Their units may have one WWID; those of all others may not.
      - The default is none.
    type: list
    elements: str
  sessions:
    description:
      - Many targets at once; each inherits the options that are given beside the list.
      - All are checked before the first is changed. One that fails does not keep the others from being finished.
    type: list
    elements: dict
    suboptions:
      target:
        description: IQN of the target. Required.
        type: str
        aliases: [iqn]
      state: *state
      portals: *portals
      interfaces: *interfaces
      chap_user: *chap_user
      chap_password: *chap_password
      mutual_chap_user: *mutual_chap_user
      mutual_chap_password: *mutual_chap_password
      startup: *startup
      replacement_timeout: *replacement_timeout
      noop_interval: *noop_interval
      noop_timeout: *noop_timeout
      login_timeout: *login_timeout
      multipath: *multipath
      same_units_as: *same_units_as
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
requirements:
  - open-iscsi 2.1 or later
  - multipath-tools, for O(multipath) and for maps that grow
notes:
  - The packages and C(multipath.conf) are set up before; new records begin with what C(iscsid.conf) says.
  - The manuals are C(iscsiadm(8\)), C(iscsid(8\)) and the comments in C(/etc/iscsi/iscsid.conf).
  - A session goes on with the settings of its login; RV(session.pending) tells which will change at the next one.
    After a CHAP secret was changed on the SAN, log out and in again, one portal after the other, before a path breaks;
    the session would try the old secret.
  - Only a target without a record at a portal is looked for by discovery (sendtargets), once for each portal.
seealso:
  - module: drover.kvm.iscsi_volume
  - module: community.general.open_iscsi
    description: Compares neither CHAP nor timeouts.
"""

EXAMPLES = r"""
- name: One volume over two paths
  drover.kvm.iscsi_session:
    target: iqn.2026-11.org.example:drover-web1-0
    portals: ["10.231.5.10:3260", "10.231.7.10:3260"]
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    multipath: true

- name: All volumes of the site in one task, each interface for its own network
  drover.kvm.iscsi_session:
    portals: ["10.231.5.10:3260", "10.231.7.10:3260"]
    interfaces:
      "10.231.5.10:3260": nic1
      "10.231.7.10:3260": nic2
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    replacement_timeout: 5
    sessions: "{{ san_volumes | map(attribute='iqn') | map('community.general.dict_kv', 'target') | list }}"

- name: An array whose two controllers have a target each
  drover.kvm.iscsi_session:
    chap_user: ""
    multipath: true
    same_units_as: ["iqn.2010-01.com.example:array1.a", "iqn.2010-01.com.example:array1.b"]
    sessions:
      - {target: "iqn.2010-01.com.example:array1.a", portals: ["10.231.5.20:3260"]}
      - {target: "iqn.2010-01.com.example:array1.b", portals: ["10.231.7.20:3260"]}

- name: Take the new size of a volume that was grown on the SAN
  drover.kvm.iscsi_session:
    target: iqn.2026-11.org.example:drover-web1-0

- name: Log out and forget the target
  drover.kvm.iscsi_session:
    target: iqn.2026-11.org.example:drover-web1-0
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["write the record at 10.231.5.10:3260 (chap_password, chap_user)", "log in at 10.231.5.10:3260"]
session:
  description: The target's sessions after the task; null when there are none and no record. With O(sessions), in each
    item of RV(results).
  returned: always
  type: dict
  contains:
    target: {description: IQN of the target., type: str, returned: always}
    initiator: {description: The node's own initiator name., type: str, returned: always}
    portals:
      description: By portal, the C(interface), the C(state) of the session (C(LOGGED_IN), C(FAILED) while it is broken,
        null without one) and whether there is a C(record).
      type: dict
      returned: always
    pending:
      description: By portal, the settings that the session learns only at its next login.
      type: dict
      returned: always
    devices:
      description: The logical units. With multipath, size and path are those of the map.
      type: list
      elements: dict
      returned: always
      contains:
        lun: {description: Its number., type: int, returned: always}
        wwid: {description: WWID as C(multipath.conf) takes it., type: str, returned: always}
        serial: {description: Unit serial number., type: str, returned: always}
        size: {description: Size in bytes., type: int, returned: always}
        path: {description: The device by its identity., type: str, returned: always}
        multipath: {description: Name of its map; null without one., type: str, returned: always}
        paths:
          description: Each way, as a dictionary of C(device), C(portal) and C(state) of its session.
          type: list
          elements: dict
          returned: always
results:
  description: One item per target, with RV(session), RV(actions) and C(changed).
  returned: when O(sessions) is given
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _session as rules
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_iqn
from ansible_collections.drover.kvm.plugins.module_utils._initiator import parse_portal
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._session_san import San
from ansible_collections.drover.kvm.plugins.module_utils._volume_file import check_secret, check_user

DISK_SECONDS = 180
FIELDS = (
    Field("target", required=True, aliases=("iqn",), check=check_iqn),
    Field("state", choices=("present", "logged_out", "absent"), default="present"),
    Field("portals", type="list", elements="str", check=rules.check_portals),
    Field("interfaces", type="dict", check=rules.check_interfaces),
    Field("chap_user", check=check_user),
    Field("chap_password", no_log=True, check=check_secret),
    Field("mutual_chap_user", check=check_user),
    Field("mutual_chap_password", no_log=True, check=check_secret),
    Field("startup", choices=("automatic", "manual", "onboot")),
    Field("replacement_timeout", type="int", check=between(0, 86400)),
    Field("noop_interval", type="int", check=between(0, 3600)),
    Field("noop_timeout", type="int", check=between(0, 3600)),
    Field("login_timeout", type="int", check=between(1, 600)),
    Field("multipath", type="bool", default=False),
    Field("same_units_as", type="list", elements="str", default=(), check=rules.check_iqns),
)


class IscsiSession(Resource):
    """The records and sessions of one target."""

    key = "target"

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[San]:
        """open-iscsi on this node."""
        return nullcontext(San())

    @classmethod
    def review(cls, resources: Sequence[Resource]) -> None:
        """Look for units that can't be told apart, of all targets at once. Raises Refused."""
        arrivals = resources[0].client.arrivals if resources else None
        units = arrivals.units() if arrivals else []
        for one in resources:
            if one.params["state"] == "present":
                one.client.arrivals.check(units, one.name, one.params["same_units_as"])

    def look(self) -> rules.Disks:
        """The sessions now, and their disks."""
        self.sessions = rules.by_portal(self.name, self.client.initiator.sessions(self.name))
        self.disks = rules.Disks(self.client.blocks, list(self.sessions.values()))
        return self.disks

    def read(self) -> State:
        """What there is at each portal, and how big the logical units are."""
        self.records = rules.by_portal(self.name, self.client.initiator.records(self.name))
        disks = self.look()
        portals = sorted({*self.records, *self.sessions})
        if not portals:
            return None
        found = {str(one): rules.portal_state(self.records.get(one), self.sessions.get(one)) for one in portals}
        return {"target": self.name, "portals": found, "sizes": disks.sizes(), "in_maps": disks.in_maps()}

    def wanted(self, before: State) -> State:
        """What shall be at each portal; a unit that grew on the SAN shall have its new size here."""
        have = before["portals"] if before else {}
        after = rules.wanted_portals(self.name, have, self.params, self.client.defaults)
        if self.params["multipath"]:
            left_out = rules.leave_out(have, after, self.sessions.values(), self.client.answers)
            self.warnings += [text for text in left_out if text not in self.warnings]
        self.disks.refuse_use(lambda session: rules.logs_out(str(session.portal), have, after))
        self.groups = {name: self._group(name) for name in after}
        self.grown = {lun: found for lun, found in self.disks.grown().items() if not self._waits(lun, found)}
        if not after:
            return None
        sizes = {**(before or {}).get("sizes", {}), **{lun: found["asked"] for lun, found in self.grown.items()}}
        stays = any(at["logged_in"] for at in after.values())
        maps = stays and (self.params["multipath"] or (before or {}).get("in_maps", False))
        return {"target": self.name, "portals": after, "sizes": sizes if stays else {}, "in_maps": maps}

    def _waits(self, lun: int, found: Mapping[str, Any]) -> bool:
        text = f"logical unit {lun} of {self.name} grew; its new size is taken when {', '.join(found['waits'])} is back"
        if found["waits"] and text not in self.warnings:
            self.warnings.append(text)
        return bool(found["waits"])

    def _group(self, name: str) -> int:
        portal = parse_portal(name)
        known = self.records.get(portal) or self.sessions.get(portal)
        return int(known.tpgt if known else self.client.group(self.name, portal))

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Log out where nothing shall be, write the records, log in, take new sizes."""
        have, after = (state["portals"] if state else {} for state in (before, wanted))
        steps = [step for name in have for step in self._leave(name, have, after)]
        steps += [step for name in after for step in self._enter(name, have, after)]
        logins = [parse_portal(name) for name in after if rules.logs_in(name, have, after)]
        maps = bool(wanted and wanted["in_maps"])
        if logins or (maps and not (before and before["in_maps"])):
            # Once for all logins: what udev does with a disk takes longer than the login.
            done = partial(self._seen, partial(rules.Disks.ready, portals=logins, maps=maps))
            steps.append(Step("wait for the disks", self.client.initiator.settle, done, DISK_SECONDS))
        for lun, found in self.grown.items() if wanted and wanted["sizes"] else ():
            done = partial(self._seen, partial(rules.Disks.has_size, lun=lun, size=found["asked"]))
            steps.append(Step(rules.growth_words(lun, found), partial(self._grow, found), done))
        return steps

    def _leave(self, name: str, have: Mapping[str, Any], after: Mapping[str, Any]) -> list[Step]:
        initiator, portal, steps = self.client.initiator, parse_portal(name), []
        if rules.logs_out(name, have, after):
            steps.append(Step(f"log out at {name}", partial(initiator.logout, self.sessions[portal])))
        if portal in self.records and (name not in after or rules.rebound(name, have, after)):
            steps.append(Step(f"remove the record at {name}", partial(initiator.delete, self.records[portal])))
        return steps

    def _enter(self, name: str, have: Mapping[str, Any], after: Mapping[str, Any]) -> list[Step]:
        initiator, portal, settings = self.client.initiator, parse_portal(name), after[name]
        at = None if rules.rebound(name, have, after) else have.get(name)
        if at == settings:
            return []
        known = self.records.get(portal) or next(iter(self.records.values()), None)
        base = known.values if known else self.client.defaults
        record = rules.record_of(self.name, portal, self.groups[name], settings, base)
        changes, steps = rules.changed_settings(at, settings), []
        if changes or not (at and at["record"]):
            words = f" ({', '.join(changes) or 'file mode'})" if at else ""
            steps.append(Step(f"write the record at {name}{words}", partial(initiator.write, record)))
        if rules.logs_in(name, have, after):
            call = partial(self.client.arrivals.log_in, record, self.records.get(portal))
            steps.append(Step(f"log in at {name}", call, self._alone))
        return steps

    def _seen(self, question: Callable[[rules.Disks], object]) -> object:
        self._alone()
        return question(self.look())

    def _alone(self) -> bool:
        self.client.arrivals.check_new(self.name, self.params["same_units_as"])
        return True

    def _grow(self, found: Mapping[str, Any]) -> None:
        for path in found["paths"]:
            self.client.blocks.rescan(path)
        if found["map"]:
            self.client.initiator.resize(found["map"])

    def result(self, state: State) -> dict[str, Any]:
        """The sessions without their secrets."""
        if state is None:
            return {"session": None}
        if self.name in self.client.arrivals.refused:
            self.look()
        facts, devices = rules.describe(state["portals"], self.sessions), self.disks.describe()
        return {"session": {"target": self.name, "initiator": self.client.name, **facts, "devices": devices}}


def main() -> None:
    """Run the module."""
    # Logins wait for the SAN and disks for udev: many cost little more than one. `iscsiadm --loginall` has no limit.
    run_module(IscsiSession, FIELDS, items="sessions", parallel=32, required_one_of=[("target", "sessions")])


if __name__ == "__main__":
    main()
