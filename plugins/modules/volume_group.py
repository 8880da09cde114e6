#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manage volume groups of LVM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_group
short_description: Manage volume groups of LVM for the disks of VMs
version_added: "0.1.0"
description:
  - Makes a volume group on devices that are blank, adds devices to it, and takes what devices have become bigger by.
    Disks of module M(drover.kvm.vm) of type V(lvm) are volumes in it.
  - A shared group lies on volumes of a SAN that several nodes see. lvmlockd and sanlock keep its locks on that storage,
    so that a volume is active on one node only. Role P(drover.kvm.san_initiator#role) sets them up.
  - A device that carries anything, even of an unknown kind, is refused. No device is taken out of a group.
  - See lvmlockd(8) and U(https://man7.org/linux/man-pages/man8/lvmlockd.8.html).
options:
  name:
    description: Name of the group.
    type: str
    required: true
  devices:
    description:
      - The devices that it lies on, each by a name that follows what it is, such as V(/dev/san/NAME). V(/dev/sdb) and
        the like are refused.
      - Needed for a new group. A device that the group has and the list has not is refused; take it out by hand
        (pvmove, vgreduce). Without the option the devices stay.
    type: list
    elements: str
  shared:
    description:
      - Whether several nodes have the group. It can't be changed later. Some 256 MiB of it hold the locks.
      - The first node needs about a minute to make a shared group, each other one half of that to join it.
      - The default for a new group is V(false) on devices of the node itself. For one on volumes of a SAN it is
        required; V(false) then means that this node alone ever sees them.
    type: bool
  state:
    description:
      - With V(present) the group is there, and this node takes part in the locks of a shared one.
      - V(absent) removes a group that this module has made and that holds no volumes. Of a shared one, this node must
        take part in the locks, and all others must have left it before (C(vgchange --lock-stop NAME) on each); those
        that have not are named. The devices are blank afterwards, as far as LVM wrote of the group at their beginning.
    type: str
    choices: [present, absent]
    default: present
requirements:
  - lvm2, util-linux; for shared groups lvmlockd (lvm2-lockd) and sanlock
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
seealso:
  - module: drover.kvm.vm
  - module: drover.kvm.iscsi_volume
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: A group on a disk of the node alone
  drover.kvm.volume_group:
    name: vmdata
    devices: [/dev/disk/by-id/nvme-eui.0025388b01234567]

- name: A group that all hypervisors share, on a volume of the SAN; one node after the other
  drover.kvm.volume_group:
    name: vmsan
    devices: [/dev/san/vms1]
    shared: true
  throttle: 1

- name: A second volume for it
  drover.kvm.volume_group:
    name: vmsan
    devices: [/dev/san/vms1, /dev/san/vms2]
  run_once: true

- name: Take what the volumes have grown by, once the nodes see it
  drover.kvm.volume_group:
    name: vmsan
  run_once: true

- name: Remove a group without volumes
  drover.kvm.volume_group:
    name: vmdata
    state: absent

- name: Let the other nodes leave a shared group
  ansible.builtin.command: vgchange --lock-stop vmsan
  when: inventory_hostname != groups.hypervisors[0]

- name: Remove it on the one that is left
  drover.kvm.volume_group:
    name: vmsan
    state: absent
  run_once: true
"""

RETURN = r"""
group:
  description: The group; null when it is absent.
  returned: always
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    devices: {description: Paths of its devices as LVM calls them., type: list, elements: str, returned: always}
    shared: {description: Whether several nodes have it., type: bool, returned: always}
    size: {description: Its size in bytes; null before it is made., type: int, returned: always}
    free: {description: What of it no volume uses in bytes; null before it is made., type: int, returned: always}
    uuid: {description: LVM's UUID of it; null before it is made., type: str, returned: always}
    locks: {description: Whether this node takes part in its locks., type: bool, returned: always}
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["make volume group vmsan on /dev/san/vms1"]
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._blocks import Blocks
from ansible_collections.drover.kvm.plugins.module_utils._disks import block
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field
from ansible_collections.drover.kvm.plugins.module_utils._lvm import MADE, Lvm, check_lvm_name, content
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("name", required=True, check=check_lvm_name),
    Field("devices", type="list", elements="str"),
    Field("shared", type="bool"),
    Field("state", choices=("present", "absent"), default="present"),
)


class VolumeGroup(Resource):
    """One volume group."""

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Lvm]:
        """LVM on this machine."""
        return nullcontext(Lvm())

    def read(self) -> State:
        """The group, and the devices that have become bigger than it knows."""
        self.client.forget()
        self.group = self.client.groups().get(self.name)
        if self.group is None:
            return None
        self.physical = self.client.physical(self.name)
        state = {"name": self.name, "devices": sorted(self.physical), "shared": self.group.shared}
        state.update({key: getattr(self.group, key) for key in ("size", "free", "uuid")})
        return {**state, "grown": self._grown(), "locks": state["shared"] and self.client.locks_started(self.name)}

    def _grown(self) -> list[str]:
        extent = self.group.extent
        return sorted(
            path for path, one in self.physical.items() if (one.size - one.start) // extent * extent > one.used
        )

    def wanted(self, before: State) -> State:
        """The group on its devices. Raises Invalid, NotFound, Refused."""
        if self.params["state"] == "absent":
            self._check_removal(before)
            return None
        devices, shared = self.params["devices"], self.params["shared"]
        if before is None and not devices:
            raise Invalid(f"there is no volume group {self.name}; devices says what to make it on", option="devices")
        if before and shared not in (None, before["shared"]):
            words = "shared" if before["shared"] else "of one node alone"
            raise Refused(f"volume group {self.name} is {words}, and that can't be changed")
        new = self._new(before["devices"] if before else [], devices or [])
        if before is None and shared is None and (remote := sorted(set(new) & set(Blocks().of_san()))):
            raise Invalid(
                f"{remote[0]} is a volume of a SAN, and LVM of two nodes would lose the group: say shared: true, or "
                "shared: false when this node alone ever sees it",
                option="shared",
            )
        base = before or dict.fromkeys(("size", "free", "uuid"))
        shared = bool(before["shared"] if before else shared)
        after = sorted([*(before or {"devices": []})["devices"], *new])
        return {**base, "name": self.name, "devices": after, "shared": shared, "grown": [], "locks": shared}

    def _check_removal(self, before: State) -> None:
        if before and self.group.volumes:
            raise Refused(f"volume group {self.name} holds {self.group.volumes} volume(s); it is not removed")
        if before and self.group.mark != MADE:
            raise Refused(f"volume group {self.name} was not made by this module; it is not removed")
        if before and before["shared"]:
            self._check_left(before)

    def _check_left(self, before: dict[str, Any]) -> None:
        if not before["locks"]:
            raise Refused(
                f"this node does not take part in the locks of volume group {self.name}, so it can't see who else uses "
                f"it: vgchange --lock-start {self.name} first"
            )
        if others := self.client.sharers(self.name):
            raise Refused(
                f"volume group {self.name} is still shared with {', '.join(others)}: vgchange --lock-stop {self.name} "
                "there first. A node that died counts until its locks are free, some 150 s later",
                nodes=others,
            )

    def _new(self, have: list[str], asked: list[str]) -> list[str]:
        """The devices that are to be added; each may have several names."""
        blocks = Blocks()
        known = {blocks.resolve(path): path for path in have}
        named: dict[str, str] = {}
        for path in asked:
            if words := block.speaks_against(path):
                raise Invalid(f"devices: {words}", option="devices")
            named[blocks.resolve(path)] = path
        left = [path for name, path in known.items() if asked and name not in named]
        if left:
            raise Refused(f"volume group {self.name} also lies on {', '.join(left)}; add it to devices, or take it out "
                          f"by hand: pvmove {left[0]}; vgreduce {self.name} {left[0]}")  # fmt: skip
        new = {name: path for name, path in named.items() if name not in known}
        for name, path in new.items():
            self._check_blank(blocks, name, path)
        return list(new.values())

    @staticmethod
    def _check_blank(blocks: Blocks, name: str, path: str) -> None:
        if blocks.top(name) != name:
            raise Refused(f"{path} is only one path to /dev/mapper/{blocks.look(blocks.top(name)).map}; give that")
        if users := blocks.users(name):
            raise Refused(f"{path} is in use: {', '.join(users)}", users=users)
        if words := content(path):
            raise Refused(f"{path} carries {words}; if nobody needs that, clear it: blkdiscard --zeroout {path}")

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Make it, join its locks, add devices, take new sizes; or remove it."""
        lvm, name = self.client, self.name
        if wanted is None:
            devices = before["devices"] if before else []
            words, call = f"remove volume group {name}", partial(lvm.remove_group, name, devices)
            return [Step(words, call)] if before else []
        if before is None:
            words = f"make {'shared ' if wanted['shared'] else ''}volume group {name} on {', '.join(wanted['devices'])}"
            return [Step(words, partial(lvm.make_group, name, wanted["devices"], MADE, wanted["shared"]))]
        steps = []
        if wanted["locks"] and not before["locks"]:
            steps.append(Step(f"join the locks of volume group {name}", partial(lvm.start_locks, name)))
        new = [path for path in wanted["devices"] if path not in before["devices"]]
        steps += [Step(f"add {path} to volume group {name}", partial(lvm.extend_group, name, path)) for path in new]
        grown = before["grown"]
        return steps + [Step(f"take the new size of {path}", partial(lvm.resize_device, path)) for path in grown]

    def result(self, state: State) -> dict[str, Any]:
        """The group."""
        return {"group": state and {key: value for key, value in state.items() if key != "grown"}}


def main() -> None:
    """Run the module."""
    run_module(VolumeGroup, FIELDS)


if __name__ == "__main__":
    main()
