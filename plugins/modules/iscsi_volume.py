#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_volume: one volume, one target, one file on the SAN host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_volume
short_description: Make, grow, protect and remove volumes of an iSCSI SAN
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Makes volumes for virtual machines on a Linux server that is an iSCSI SAN, and keeps them as they are described.
    Each volume is a file on the server, exported as logical unit 1 of an iSCSI target of its own.
  - Runs on the SAN server, against the target daemon C(tgtd) of the package C(tgt), whose management socket only root
    may use. Role P(drover.kvm.san_target#role) installs it.
  - A volume comes back when the server starts, as its target is also written to a file in O(config_directory).
  - Volumes and targets that were not made by this module are never changed and never removed.
  - Nothing of a volume that is in use is taken away. A volume to which an initiator is logged in is not removed, and
    no volume is made smaller.
options:
  name:
    description:
      - Name of the volume. Volumes of VMs are called C(drover-VM-NUMBER).
      - Required unless O(volumes) is given.
    type: str
  backend: &backend
    description:
      - The kind of target daemon.
      - The default is V(tgt).
    type: str
    choices: [tgt]
  state: &state
    description:
      - V(present) makes the volume or brings it to what is asked for; options that are not given stay as they are.
      - V(absent) removes the target. The data stays unless O(remove_data) is set, and V(present) exports it again.
      - The default is V(present).
    type: str
    choices: [present, absent]
  iqn: &iqn
    description:
      - IQN of the target. It can't be changed later.
      - The default is O(iqn_prefix), a colon and O(name).
    type: str
  iqn_prefix: &iqn_prefix
    description:
      - Beginning of the default IQN, such as V(iqn.2026-11.org.example).
    type: str
  size: &size
    description:
      - Size of the volume in bytes, or with a unit such as V(40GiB); whole mebibytes.
      - The default for a new volume is the size of O(source); without a source it is required.
      - A bigger size grows the volume. tgtd learns a new size only by opening the file again, and for that it closes
        the connections of the volume for some milliseconds. QEMU and open-iscsi log in again by themselves and
        repeat what was not answered; a guest sees a pause of up to about a second. They must then be told to look at
        the size (RV(rescan_needed)).
      - A smaller size is refused.
    type: str
  directory: &directory
    description:
      - Directory of the volume's file, made when it is missing.
      - The default is V(/srv/drover).
    type: path
  path: &path
    description:
      - The volume's file, inside O(directory) also when all links are followed. It can't be changed later.
      - The default is O(name) with the ending C(.img) in O(directory).
    type: path
  source: &source
    description:
      - A raw image on the SAN server from which a new volume is copied; holes stay holes.
      - It must be inside O(source_directory), and not be bigger than O(size).
      - Used only when the volume's file is made.
    type: path
  source_directory: &source_directory
    description:
      - The directory with the images that may be copied.
      - The default is V(/srv/drover/images).
    type: path
  initiators: &initiators
    description:
      - Who may log in. IQNs of initiators, addresses, networks such as V(10.231.5.0/24), or V(ALL).
      - One rule that matches lets an initiator in. To give both an IQN and an address does not narrow the access.
      - A list means exactly these; a dictionary with V(add) and V(remove) changes the present ones.
      - A new volume without initiators lets nobody in.
      - An initiator that is taken away keeps a session that it has until the session ends; the module warns then.
    type: raw
  chap_user: &chap_user
    description:
      - Name that an initiator must give (CHAP). An empty string means that no CHAP is asked for.
      - Required for a new volume, so that a volume without CHAP is always meant so.
      - tgtd's accounts belong to the daemon. Volumes may share a user, which then has one secret for all of them.
    type: str
  chap_password: &chap_password
    description:
      - The CHAP secret. 12 to 16 letters, digits, dots, underscores, colons, commas, hyphens, C(@), C(+) and C(/).
      - It never is an argument of a command. It goes through tgtd's socket, and is kept in the volume's file in
        O(config_directory) with mode 0600.
      - tgtd does not tell an account's secret; the module compares with what it wrote itself. A secret that somebody
        changed in the running daemon by other means is not noticed.
      - Sessions that exist go on when it is changed; new logins need the new one.
    type: str
  serial: &serial
    description:
      - Serial number and device id of the logical unit, 8 to 31 hexadecimal digits. Initiators recognise the volume
        by it, so two volumes with the same one are refused, and it is not changed while somebody is logged in.
      - The default is made from the IQN.
    type: str
  owner: &owner
    description:
      - Whom the volume is for, a name without blanks; kept with the volume.
    type: str
  vm_uuid: &vm_uuid
    description:
      - UUID of the VM that the volume belongs to; kept with the volume.
      - A volume that has another UUID is neither changed nor removed.
    type: str
  remove_data: &remove_data
    description:
      - With O(state=absent), also delete the volume's file and what is in it. Only a file with our mark is deleted.
      - The default is V(false).
    type: bool
  config_directory:
    description:
      - Directory whose files C(tgt-admin) reads when the service starts.
      - The default is V(/etc/tgt/conf.d).
    type: path
  volumes:
    description:
      - Many volumes at once; each inherits the options that are given beside the list.
      - All are checked before the first is changed. A volume that fails does not keep the others from being finished.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the volume. Required.
        type: str
      backend: *backend
      state: *state
      iqn: *iqn
      iqn_prefix: *iqn_prefix
      size: *size
      directory: *directory
      path: *path
      source: *source
      source_directory: *source_directory
      initiators: *initiators
      chap_user: *chap_user
      chap_password: *chap_password
      serial: *serial
      owner: *owner
      vm_uuid: *vm_uuid
      remove_data: *remove_data
      config_directory:
        description: The same for all volumes; give it beside the list.
        type: path
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
requirements:
  - tgt 1.0.85 or later, running
notes:
  - The manual of the target daemon is on U(https://github.com/fujita/tgt), in C(tgtd(8)), C(tgtadm(8)) and
    C(targets.conf(5\)).
  - The environment variable E(TGT_IPC_SOCKET) names another tgtd's socket, as it does for C(tgtadm).
  - An access rule, a secret or a size that is changed at run time is written to O(config_directory) after it; a run
    that was interrupted is finished by the next one.
seealso:
  - module: community.general.open_iscsi
    description: Log in to a volume with the kernel's initiator.
"""

EXAMPLES = r"""
- name: A volume of 40 GiB for one VM
  drover.kvm.iscsi_volume:
    name: drover-web1-0
    iqn: iqn.2026-11.org.example:drover-web1-0
    size: 40GiB
    initiators: [iqn.2026-11.org.example:web1]
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    vm_uuid: 7a1ee0a7-4b9c-5d8e-9d55-08a1b6cf3a52

- name: The disks of all VMs in one task, copied from an image
  drover.kvm.iscsi_volume:
    iqn_prefix: iqn.2026-11.org.example
    initiators: [10.231.5.0/24]
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    volumes:
      - name: drover-web1-0
        size: 40GiB
        source: /srv/drover/images/debian-13.raw
      - name: drover-db1-0
        size: 100GiB
        source: /srv/drover/images/debian-13.raw

- name: Let one more hypervisor in
  drover.kvm.iscsi_volume:
    name: drover-web1-0
    initiators:
      add: [10.231.6.14]

- name: Take a volume off the SAN and delete its data
  drover.kvm.iscsi_volume:
    name: drover-web1-0
    state: absent
    remove_data: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["export it as iqn.2026-11.org.example:drover-web1-0"]
volume:
  description: The volume as it is after the task; null when it is absent. With O(volumes), in each item of RV(results).
  returned: always
  type: dict
  contains:
    name: {description: Name of the volume., type: str, returned: always}
    iqn: {description: IQN of its target., type: str, returned: always}
    lun: {description: Number of the logical unit., type: int, returned: always}
    path: {description: Its file on the SAN server., type: str, returned: always}
    size: {description: Size in bytes., type: int, returned: always}
    serial: {description: Serial number., type: str, returned: always}
    initiators: {description: Who may log in., type: list, elements: str, returned: always}
    chap_user: {description: CHAP user; empty without CHAP., type: str, returned: always}
    owner: {description: Whom it is for., type: str, returned: always}
    vm_uuid: {description: UUID of the VM it belongs to., type: str, returned: always}
    exported: {description: Whether tgtd serves it., type: bool, returned: always}
    online: {description: Whether its target accepts commands., type: bool, returned: always}
    sessions:
      description: Who is logged in, as dictionaries of C(initiator) and C(address).
      type: list
      elements: dict
      returned: always
rescan_needed:
  description: Whether the volume grew while initiators were logged in, which must now look at its size again.
  returned: always
  type: bool
results:
  description: One item per volume, with RV(volume), RV(actions), RV(rescan_needed) and C(changed).
  returned: when O(volumes) is given
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils import _volume_file as files
from ansible_collections.drover.kvm.plugins.module_utils import _volume_rules as rules
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid, Refused
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_iqn, check_name, names_after
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt import LUN
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt_conf import Store
from ansible_collections.drover.kvm.plugins.module_utils._volume_tgt import TgtVolume

FIELDS = (
    Field("name", required=True, check=check_name),
    Field("backend", choices=("tgt",), default="tgt"),
    Field("state", choices=("present", "absent"), default="present"),
    Field("iqn", check=check_iqn),
    Field("iqn_prefix", check=check_iqn),
    Field("size", type="size", check=files.check_size),
    Field("directory", type="path", default="/srv/drover", check=files.check_directory),
    Field("path", type="path", check=files.check_path),
    Field("source", type="path", check=files.check_path),
    Field("source_directory", type="path", default="/srv/drover/images", check=files.check_directory),
    Field("initiators", type="names", check=files.check_initiators),
    Field("chap_user", check=files.check_user),
    Field("chap_password", no_log=True, check=files.check_secret),
    Field("serial", check=files.check_serial),
    Field("owner", check=check_name),
    Field("vm_uuid", check=files.check_uuid),
    Field("remove_data", type="bool", default=False),
    Field("config_directory", type="path", default="/etc/tgt/conf.d", check=files.check_path),
)


GIVEN = ("size", "chap_user", "chap_password", "serial", "owner", "vm_uuid")


class IscsiVolume(Resource):
    """A volume of the SAN; what the back end has of it is `volume`."""

    def __init__(self, params: dict[str, Any], client: Store) -> None:
        super().__init__(params, client)
        self.volume = TgtVolume(client, params)
        self.batch: Sequence[Mapping[str, Any]] = [params]
        self.rescan = False

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Store]:
        """The configuration directory, locked against other runs."""
        return Store(params["config_directory"]).locked()

    @classmethod
    def review(cls, resources: Sequence[Resource]) -> None:
        """Find twins among the items, and let each know of the others (they may share a CHAP user)."""
        items = [item for item in resources if isinstance(item, cls)]
        present = [item for item in items if item.params["state"] == "present"]
        rules.refuse_twins([{**item.params, "iqn": item.volume.iqn, "path": item.volume.path} for item in present])
        for item in items:
            item.batch = [other.params for other in items]

    def read(self) -> State:
        """What is served, and what was saved of it."""
        return self.volume.look()

    def wanted(self, before: State) -> State:
        """The volume as asked for; what was not given stays."""
        have = before or {}
        users = ", ".join(f"{item['initiator']} from {item['address']}" for item in have.get("sessions", []))
        if self.params["state"] == "absent":
            if users:
                raise Refused(f"{self.name} is in use by {users}; stop the VM first", sessions=have["sessions"])
            return None
        given = {key: self.params[key] for key in GIVEN if self.params[key] is not None}
        new = {"name": self.name, "iqn": self.volume.iqn, "path": self.volume.path, "lun": LUN, "sessions": []}
        wanted = {**new, **dict.fromkeys(GIVEN), **have, **given, "exported": True, "online": True}
        # A run that was cut off while access was closed leaves nobody allowed; what was saved is meant then.
        allowed = have.get("initiators") or self.volume.saved.get("initiators", [])
        wanted["initiators"] = names_after(allowed, self.params["initiators"])
        wanted["serial"] = wanted["serial"] or rules.serial_of(self.volume.iqn)
        if not wanted["chap_user"]:
            wanted["chap_password"] = None
        self._check_size(have, wanted)
        rules.refuse_same_serial(wanted, self.volume.tgt.targets().values())
        rules.refuse_stolen_account(wanted, self.batch, self.volume.others.values(), self.volume.tgt.targets().values())
        if users and wanted["serial"] != have["serial"]:
            raise Refused(f"{self.name} is in use by {users}; its serial can't be changed", sessions=have["sessions"])
        self.rescan |= bool(users and wanted["size"] > have["size"])
        self._warn_of_uninvited(wanted)
        return wanted

    def _check_size(self, have: Mapping[str, Any], wanted: dict[str, Any]) -> None:
        if not wanted["iqn"] or wanted["chap_user"] is None:
            what = "iqn or iqn_prefix" if not wanted["iqn"] else 'chap_user (an empty one, "", asks for no CHAP)'
            raise Invalid(f"{self.name} is a new volume: {what} is missing")
        rules.refuse_bad_iqn(self.name, wanted["iqn"])
        if self.volume.saved and self.volume.file is None:
            raise Refused(f"{wanted['path']}, the file of {self.name}, is gone; restore it, or remove the volume first")
        if self.volume.file is None:
            wanted["size"] = files.new_size(self.name, self.params)
        if wanted["size"] < (have.get("size") or 0):
            raise Refused(f"{self.name} has {have['size']} bytes; it is not made smaller ({wanted['size']} asked)")

    def _warn_of_uninvited(self, wanted: Mapping[str, Any]) -> None:
        for item in wanted["sessions"]:
            text = (
                f"{self.name}: {item['initiator']} from {item['address']} is not allowed any more but still logged in"
            )
            if not rules.lets_in(wanted["initiators"], **item) and text not in self.warnings:
                self.warnings.append(text)

    def steps(self, before: State, wanted: State) -> list[Step]:
        """The back end's changes."""
        if wanted is None:
            return [Step(*change) for change in self.volume.removal(before)] if before else []
        return [Step(*change) for change in self.volume.changes(before, wanted)]

    def result(self, state: State) -> dict[str, Any]:
        """The volume without its secret."""
        volume = state and {key: value for key, value in state.items() if key != "chap_password"}
        return {"volume": volume, "rescan_needed": self.rescan}


def main() -> None:
    """Run the module."""
    # One at a time: the CHAP accounts belong to the daemon, and tgtd does one thing after the other anyway.
    run_module(IscsiVolume, FIELDS, items="volumes", parallel=1, required_one_of=[("name", "volumes")])


if __name__ == "__main__":
    main()
