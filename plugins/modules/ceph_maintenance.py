#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell Ceph that the OSDs of hosts will be stopped for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ceph_maintenance
short_description: Tell Ceph that the OSDs of hosts will be stopped for a while
version_added: "0.1.0"
description:
  - Begins or ends the maintenance of hosts with OSDs. While it lasts, Ceph does not count their OSDs as lost (flag
    C(noout), for these hosts only), so it does not copy their data elsewhere when they are down for long.
  - Before it begins, Ceph is asked whether all of these OSDs may stop at once (C(ceph osd ok-to-stop)), and the
    monitors on these hosts too (C(ceph mon ok-to-stop)), as a host may be switched off. When data would no longer be
    available, or no majority of the monitors be left, it is refused and nothing is changed.
  - The same goes while Ceph reports operations that wait for too long (C(SLOW_OPS) of C(ceph health detail)). The OSD
    that they wait for counts as up, also when its disk or its process answers nobody, and may be the one that is left.
  - A maintenance that this module began carries a mark in the monitors. Only that one is ended, by whoever runs it,
    wherever an earlier run was cut off. A C(noout) that somebody else has set stays.
  - The OSDs themselves are started and stopped by the site (C(ceph-osd.target)). Playbook C(drover.kvm.drain_node) does
    both.
  - It runs where the key of an administrator of Ceph is, which is most often a monitor's host.
  - See U(https://docs.ceph.com/en/reef/rados/troubleshooting/troubleshooting-osd/#stopping-without-rebalancing).
options:
  hosts:
    description: The hosts, by their names in the CRUSH map, which most often are their host names.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(started) asks whether the OSDs may stop, and sets C(noout).
      - V(ended) takes C(noout) away at once, and then waits until the OSDs are up, also where there was no flag to take
        away. For one that Ceph has given up (it is C(out)) it does not wait.
    type: str
    choices: [started, ended]
    default: started
  reason:
    description: Why, for people; kept in the mark.
    type: str
  by:
    description: Who, for people; kept in the mark.
    type: str
  wait:
    description:
      - How long to wait, in seconds, until the daemons may stop, or the OSDs are up again.
      - After another host came back its data is brought up to date first; until then no further OSD may stop.
    type: int
    default: 30
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
  - drover.kvm.ceph
seealso:
  - module: drover.kvm.ceph_pool
  - module: drover.kvm.cordon
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Restart the OSDs of one host
  hosts: ceph_mon[0]
  gather_facts: false
  tasks:
    - name: May they stop?
      drover.kvm.ceph_maintenance:
        hosts: [hv1]
      check_mode: true

    - name: Begin
      drover.kvm.ceph_maintenance:
        hosts: [hv1]
        reason: new firmware
        wait: 300

    - name: End, and wait until the OSDs are back
      drover.kvm.ceph_maintenance:
        hosts: [hv1]
        state: ended
        wait: 600
"""

RETURN = r"""
maintenance:
  description: The hosts.
  returned: always
  type: list
  elements: dict
  contains:
    host:
      description: Its name in the CRUSH map.
      type: str
      sample: hv1
    osds:
      description: The numbers of its OSDs.
      type: list
      elements: int
      sample: [0, 1]
    up:
      description: The numbers of those that are up.
      type: list
      elements: int
      sample: [0, 1]
    down:
      description: The numbers of those that are down and that Ceph has not given up (they are C(in)).
      type: list
      elements: int
      sample: []
    noout:
      description: Whether the flag is set for it, by whomever.
      type: bool
      sample: true
    mark:
      description: Since when, by whom and why, for a maintenance that this module began; else null.
      type: dict
      sample: {since: "2026-11-21T10:00:00+00:00", by: admin, reason: new firmware}
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["set noout for hv1 (osd.0, osd.1)"]
"""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._ceph import OPTIONS, Ceph, connect
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, NotFound, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

MARK = "drover/maintenance/"

FIELDS = (
    Field("hosts", type="list", elements="str", required=True, check=lambda hosts: [check_name(one) for one in hosts]),
    Field("state", choices=("started", "ended"), default="started"),
    Field("reason"),
    Field("by"),
    Field("wait", type="int", default=30, check=between(0, 86400)),
    *OPTIONS,
)


def osds_of(tree: Mapping[str, Any], host: str) -> list[int]:
    """The OSDs of a host, from `osd tree`. Raises Invalid for one that has none."""
    known = {node["name"]: node["children"] for node in tree["nodes"] if node["type"] == "host"}
    if not known.get(host):
        names = ", ".join(sorted(name for name in known if known[name])) or "none"
        raise Invalid(f"Ceph knows no host {host} with OSDs (hosts with OSDs: {names})", option="hosts")
    return sorted(known[host])


def _short(name: str) -> str:
    return name.split(".", 1)[0]


class Maintenance(Resource):
    """The maintenance of some hosts, which begins and ends for all of them together."""

    @property
    def name(self) -> str:
        """The hosts."""
        return ", ".join(self.params["hosts"])

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Ceph]:
        """The cluster, as an administrator."""
        return connect(params)

    def read(self) -> State:
        """Per host its OSDs, the flag, and our mark."""
        tree, osds = self.client.ask("osd tree"), self.client.ask("osd dump")
        each = {one["osd"]: one for one in osds["osds"]}
        flags = osds.get("crush_node_flags", {})
        found = {host: [each[osd] for osd in osds_of(tree, host) if osd in each] for host in self.params["hosts"]}
        return {host: self._read_host(host, osds, "noout" in flags.get(host, [])) for host, osds in found.items()}

    def _read_host(self, host: str, osds: list[dict[str, Any]], noout: bool) -> dict[str, Any]:
        try:
            mark = self.client.ask("config-key get", key=MARK + host)
        except NotFound:
            mark = None
        return {
            "osds": [one["osd"] for one in osds],
            "up": [one["osd"] for one in osds if one["up"]],
            "down": [one["osd"] for one in osds if one["in"] and not one["up"]],
            "noout": noout,
            "mark": mark,
        }

    def wanted(self, before: State) -> State:
        """All hosts with or without the flag. Raises Refused when the OSDs may not stop."""
        found = before or {}
        if self.params["state"] == "ended":
            return {
                host: {**one, "noout": one["noout"] and one["mark"] is None, "mark": None}
                for host, one in found.items()
            }
        if any(one["up"] for one in found.values()):
            self._until_allowed("osd", sorted(str(osd) for one in found.values() for osd in one["osds"]))
            self._until_allowed("mon", self._monitors())
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        mark = {"since": now, "by": self.params["by"], "reason": self.params["reason"]}
        return {
            # The flag of somebody else carries no mark of ours, so nobody takes it away.
            host: one if one["noout"] else {**one, "noout": True, "mark": one["mark"] or mark}
            for host, one in found.items()
        }

    def _monitors(self) -> list[str]:
        """The monitors on the hosts; of one that is down nobody knows where it is.

        CRUSH has a host's short name unless it is told another one, a monitor says all of it.
        https://docs.ceph.com/en/reef/rados/operations/crush-map/#crush-location
        """
        hosts = {_short(host) for host in self.params["hosts"]}
        return sorted(
            one["name"] for one in self.client.ask("mon metadata") if _short(one.get("hostname", "")) in hosts
        )

    def _until_allowed(self, kind: str, daemons: list[str]) -> None:
        end = time.monotonic() + self.params["wait"]
        while daemons:
            try:
                self._ask_to_stop(kind, daemons)
                return
            except Refused as error:
                words = error
            if time.monotonic() > end:
                names = [f"{kind}.{daemon}" for daemon in daemons]
                raise Refused(f"{', '.join(names)} of {self.name} may not stop now: {words.message}", daemons=names)
            time.sleep(1)

    def _ask_to_stop(self, kind: str, daemons: list[str]) -> None:
        """Raise Refused with the mend when these daemons may not stop."""
        try:
            self.client.ask(f"{kind} ok-to-stop", ids=daemons)
        except Refused as error:
            mend = "Bring back what is down, and wait until Ceph has healed (ceph -s)"
            raise Refused(f"{error.message}. {mend}") from None
        # What they wait for counts as up. https://docs.ceph.com/en/reef/rados/operations/health-checks/#slow-ops
        if slow := self.client.ask("health", detail="detail")["checks"].get("SLOW_OPS"):
            raise Refused(
                f"operations wait for too long: {slow['summary']['message']}. Find the OSD that they wait for (ceph "
                "tell osd.N dump_ops_in_flight, of each of these), mend or stop that one, and wait until Ceph has "
                "healed (ceph -s)"
            )

    def steps(self, before: State, wanted: State) -> list[Step]:
        """The mark before the flag, and away after it: a run that is cut off leaves no flag without a mark."""
        steps = []
        for host, after in (wanted or {}).items():
            now = (before or {})[host]
            osds, down = (", ".join(f"osd.{osd}" for osd in now[kind]) for kind in ("osds", "down"))
            if after["noout"] and not now["noout"]:
                steps.append(Step(f"set noout for {host} ({osds})", partial(self._begin, host, after["mark"])))
            elif now["mark"] is not None and after["mark"] is None:
                words = f"end the maintenance of {host} ({osds})"
                steps.append(Step(words, partial(self._end, host), self._all_up, self.params["wait"]))
            elif self.params["state"] == "ended" and down:
                # A run before this one has ended it, and may have waited in vain.
                steps.append(Step(f"wait until {down} is up", lambda: None, self._all_up, self.params["wait"]))
        return steps

    def _begin(self, host: str, mark: Mapping[str, Any]) -> None:
        self.client.tell("config-key set", key=MARK + host, val=json.dumps(mark))
        self.client.tell("osd set-group", flags="noout", who=[host])

    def _end(self, host: str) -> None:
        self.client.tell("osd unset-group", flags="noout", who=[host])
        self.client.tell("config-key rm", key=MARK + host)

    def _all_up(self) -> bool | str:
        down = [f"osd.{osd}" for one in (self.read() or {}).values() for osd in one["down"]]
        return not down or f"{', '.join(down)} down"

    def result(self, state: State) -> dict[str, Any]:
        """The hosts."""
        return {"maintenance": [{"host": host, **one} for host, one in (state or {}).items()]}


def main() -> None:
    """Run the module."""
    run_module(Maintenance, FIELDS)


if __name__ == "__main__":
    main()
