#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iscsi_volume: one volume, one target, one file on the SAN host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: iscsi_volume
short_description: Make, grow, copy, protect and remove volumes of an iSCSI SAN
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Makes volumes for virtual machines on a Linux server that is an iSCSI SAN, and keeps them as they are described.
    Each volume is a file or a logical volume of LVM on the server, exported as logical unit 1 of an iSCSI target of its
    own.
  - Runs on the SAN server as root, against LIO, the target in the Linux kernel (O(backend=lio)), or against the daemon
    C(tgtd) of the package C(tgt) (O(backend=tgt)). Role P(drover.kvm.san_target#role) installs either.
  - A volume comes back when the server starts, as it is also written to a file in O(config_directory).
  - Volumes, targets and backstores that were not made by this module are never changed and never removed, neither in
    the running system nor in what is restored at boot.
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
      - The kind of target. It is the same for all volumes of a task.
      - V(lio) is the kernel's and needs C(rtslib). It serves files and logical volumes, and knows initiators by their
        IQN only.
      - V(tgt) is a daemon that needs no kernel module. It serves files, and also knows initiators by their address.
      - The default is V(tgt).
    type: str
    choices: [tgt, lio]
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
      - Size of the volume in bytes, or with a unit such as V(40GiB); whole mebibytes. On LVM it is rounded up to whole
        extents.
      - The default for a new volume is the size of O(source), O(clone_of) or O(snapshot_of); without these it is
        required.
      - A bigger size grows the volume. LIO serves it at once, and sessions go on. tgtd learns a new size only by
        opening the file again, and for that it closes the connections of the volume for some milliseconds. QEMU and
        open-iscsi log in again by themselves and repeat what was not answered; a guest sees a pause of up to about a
        second. In both cases initiators must then be told to look at the size (RV(rescan_needed)).
      - A smaller size is refused.
    type: str
  store: &store
    description:
      - Where the volume's data is. V(file) is a file in O(directory), V(lvm) a logical volume of O(vg), V(lvm_thin) one
        of O(thin_pool), which takes space only for what was written and can be copied in a moment.
      - It can't be changed later, and is given in each task about the volume.
      - With O(backend=tgt) only V(file).
      - The default is V(file).
    type: str
    choices: [file, lvm, lvm_thin]
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
  vg: &vg
    description:
      - The volume group, for O(store=lvm) and O(store=lvm_thin). The logical volume in it has the name of the volume.
    type: str
  thin_pool: &thin_pool
    description:
      - The thin pool in O(vg), for O(store=lvm_thin). That it does not get full is left to the site (C(lvmthin(7\))).
    type: str
  wipe: &wipe
    description:
      - What is done with the space of a new or grown volume of O(store=lvm), which may hold what another volume left
        there. A guest never sees it before that is done.
      - V(zero) writes zeroes, by the disk itself where it can (C(blkdiscard --zeroout)). V(discard) only tells the disk
        that the space is unused; it is for disks that then read as zeroes. V(none) does nothing.
      - Files and thin pools give out zeroes by themselves. A thin pool in which that was switched off is refused unless
        this is V(none).
      - The default is V(zero).
    type: str
    choices: [zero, discard, none]
  source: &source
    description:
      - A raw image on the SAN server from which a new volume is copied; holes stay holes.
      - It must be inside O(source_directory), and not be bigger than O(size).
      - Used only when the volume's data is made.
    type: path
  source_directory: &source_directory
    description:
      - The directory with the images that may be copied.
      - The default is V(/srv/drover/images).
    type: path
  clone_of: &clone_of
    description:
      - The name of a volume in the same O(thin_pool), of which a new volume is a copy. It is made in a moment, shares
        the blocks that neither has changed, and is independent of it afterwards.
      - With O(store=file) a volume whose file is on the same file system. That must be one on which files can share
        blocks, such as XFS (by default) or Btrfs; others are refused.
      - The copy of a volume that is in use is what a guest finds after a power cut. Its serial and WWID are its own.
      - Used only when the volume is made.
    type: str
  snapshot_of: &snapshot_of
    description:
      - The same as O(clone_of), for a copy that is kept as it is. O(readonly) is then true by default.
    type: str
  initiators: &initiators
    description:
      - Who may log in, by the IQNs of initiators. With O(backend=tgt) also addresses, networks such as
        V(10.231.5.0/24), and V(ALL); these are refused for LIO.
      - One rule that matches lets an initiator in. To give both an IQN and an address does not narrow the access.
      - A list means exactly these; a dictionary with V(add) and V(remove) changes the present ones.
      - A new volume without initiators lets nobody in.
      - LIO would end the session of an initiator that is taken away, so that is refused while it is logged in. With
        tgtd it keeps the session until that ends; the module warns then.
    type: raw
  portals: &portals
    description:
      - Addresses and ports on which the volume's target answers, such as V(10.231.5.10:3260) or V([fd00:5::10]:3260).
        A port that is left out is 3260.
        A list means exactly these; a dictionary with V(add) and V(remove) changes the present ones.
      - An empty list, and the default for a new volume, is all IPv4 addresses. On LIO that fails while another target
        has a portal on a single address with the same port.
      - Sessions go on when a portal is taken away.
      - All targets of tgtd have the same portals, which role P(drover.kvm.san_target#role) sets; others are refused.
    type: raw
  chap_user: &chap_user
    description:
      - Name that an initiator must give (CHAP). An empty string means that no CHAP is asked for.
      - Required for a new volume, so that a volume without CHAP is always meant so.
      - tgtd's accounts belong to the daemon. Volumes may share a user, which then has one secret for all of them.
        LIO's belong to the volume.
    type: str
  chap_password: &chap_password
    description:
      - The CHAP secret. 12 to 16 letters, digits, dots, underscores, colons, commas, hyphens, C(@), C(+) and C(/).
      - It never is an argument of a command. It goes through the kernel's files or tgtd's socket, and is kept in the
        file in O(config_directory) with mode 0600.
      - LIO tells the secret, so that one that somebody changed by other means is set right. tgtd does not, and the
        module compares with what it wrote itself.
      - Sessions that exist go on when it is changed; new logins need the new one.
    type: str
  mutual_chap_user: &mutual_chap_user
    description:
      - Name with which the target in turn proves to the initiator who it is (mutual CHAP), so that nobody else on the
        network can pass for the SAN. It needs O(chap_user). An empty string ends it.
    type: str
  mutual_chap_password: &mutual_chap_password
    description:
      - The target's secret, with the same rules as O(chap_password), from which it must differ.
    type: str
  readonly: &readonly
    description:
      - Whether the volume is write-protected for all initiators. It is not switched on while somebody is logged in.
      - The default for a new volume is V(false), with O(snapshot_of) V(true).
    type: bool
  serial: &serial
    description:
      - Serial number of the logical unit, 8 to 31 hexadecimal digits or a UUID. RV(volume.wwid) follows from it, by
        which initiators recognise the volume, so two volumes with the same one are refused. LIO uses its first 25
        digits; tgtd takes no UUID.
      - It is not changed while somebody is logged in, and on LIO not while the volume is exported.
      - The default is made from the IQN and is always the same for it.
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
      - With O(state=absent), also delete the volume's file or logical volume and what is in it. Only what has our mark
        is deleted.
      - The default is V(false).
    type: bool
  config_directory:
    description:
      - Directory of what is restored when the server starts, V(/etc/rtslib-fb-target) for LIO (its
        C(saveconfig.json)), V(/etc/tgt/conf.d) for tgtd (files that C(tgt-admin) reads).
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
      store: *store
      directory: *directory
      path: *path
      vg: *vg
      thin_pool: *thin_pool
      wipe: *wipe
      source: *source
      source_directory: *source_directory
      clone_of: *clone_of
      snapshot_of: *snapshot_of
      initiators: *initiators
      portals: *portals
      chap_user: *chap_user
      chap_password: *chap_password
      mutual_chap_user: *mutual_chap_user
      mutual_chap_password: *mutual_chap_password
      readonly: *readonly
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
  - python3-rtslib-fb 2.1.75 or later, for LIO
  - tgt 1.0.85 or later, running, for tgtd
  - lvm2, with thin-provisioning-tools for thin volumes
notes:
  - The manuals are on U(https://github.com/open-iscsi/rtslib-fb) and U(https://github.com/fujita/tgt), in
    C(targetcli(8\)), C(tgtd(8\)), C(targets.conf(5\)) and C(lvmthin(7\)).
  - On LIO our mark is with the data, an extended attribute of the file or tags of the logical volume that begin with
    C(drover.). Of C(saveconfig.json) only the volume's own parts are written.
  - LIO serves files and logical volumes without a write cache of its own. What was confirmed is on the disk.
  - The environment variable E(TGT_IPC_SOCKET) names another tgtd's socket, as it does for C(tgtadm).
  - A run that was interrupted is finished by the next one.
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

- name: Volumes on LIO in a thin pool, on two portals, with CHAP in both directions
  drover.kvm.iscsi_volume:
    backend: lio
    store: lvm_thin
    vg: data
    thin_pool: volumes
    iqn_prefix: iqn.2026-11.org.example
    portals: ["10.231.5.10:3260", "10.231.7.10:3260"]
    initiators: [iqn.2026-11.org.example:hv1, iqn.2026-11.org.example:hv2]
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    mutual_chap_user: san
    mutual_chap_password: "{{ vault_san_password }}"
    volumes:
      - name: vms1
        size: 500GiB
      - name: vms2
        size: 500GiB

- name: A VM's disk as a copy of another one, and a snapshot of the latter that is kept
  drover.kvm.iscsi_volume:
    backend: lio
    store: lvm_thin
    vg: data
    thin_pool: volumes
    iqn_prefix: iqn.2026-11.org.example
    chap_user: drover
    chap_password: "{{ vault_chap_password }}"
    volumes:
      - name: drover-web2-0
        clone_of: drover-web1-0
        initiators: [iqn.2026-11.org.example:web2]
      - name: drover-web1-0-before-upgrade
        snapshot_of: drover-web1-0

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
    path: {description: Its file or device on the SAN server., type: str, returned: always}
    size: {description: Size in bytes., type: int, returned: always}
    serial: {description: Serial number., type: str, returned: always}
    wwid:
      description:
        - By what initiators know it, as in C(/dev/disk/by-id/scsi-WWID), multipath's C(wwid) and C(scsi_id). It is
          known before anybody logs in.
      type: str
      returned: always
      sample: 36001405ee27ff29e2f44851b1dc257c9
    initiators: {description: Who may log in., type: list, elements: str, returned: always}
    portals: {description: Where it answers., type: list, elements: str, returned: always}
    readonly: {description: Whether it is write-protected., type: bool, returned: always}
    chap_user: {description: CHAP user; empty without CHAP., type: str, returned: always}
    mutual_chap_user: {description: The target's own CHAP user; empty without., type: str, returned: always}
    owner: {description: Whom it is for., type: str, returned: always}
    vm_uuid: {description: UUID of the VM it belongs to., type: str, returned: always}
    exported: {description: Whether the target serves it., type: bool, returned: always}
    online: {description: Whether its target accepts commands., type: bool, returned: always}
    sessions:
      description:
        - Who is logged in, as dictionaries of C(initiator) and C(address). Of an initiator with several sessions LIO
          shows the newest.
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
from ansible_collections.drover.kvm.plugins.module_utils._fields import (
    Field,
    check_iqn,
    check_name,
    names_after,
    size_text,
)
from ansible_collections.drover.kvm.plugins.module_utils._lvm import check_lvm_name
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module
from ansible_collections.drover.kvm.plugins.module_utils._target_lio import LUN
from ansible_collections.drover.kvm.plugins.module_utils._target_tgt_conf import Store
from ansible_collections.drover.kvm.plugins.module_utils._volume_lio import LioVolume, Server
from ansible_collections.drover.kvm.plugins.module_utils._volume_tgt import TgtVolume

# The client, open and locked for one run, and what one volume is there. docs/storage.md tells how to add another one.
BACKENDS: dict[str, tuple[Any, Any]] = {"tgt": (Store, TgtVolume), "lio": (Server, LioVolume)}

FIELDS = (
    Field("name", required=True, check=check_name),
    Field("backend", choices=tuple(BACKENDS), default="tgt"),
    Field("state", choices=("present", "absent"), default="present"),
    Field("iqn", check=check_iqn),
    Field("iqn_prefix", check=check_iqn),
    Field("size", type="size", check=files.check_size),
    Field("store", choices=("file", "lvm", "lvm_thin"), default="file"),
    Field("directory", type="path", default="/srv/drover", check=files.check_directory),
    Field("path", type="path", check=files.check_path),
    Field("vg", check=check_lvm_name),
    Field("thin_pool", check=check_lvm_name),
    Field("wipe", choices=("zero", "discard", "none"), default="zero"),
    Field("source", type="path", check=files.check_path),
    Field("source_directory", type="path", default="/srv/drover/images", check=files.check_directory),
    Field("clone_of", check=check_name),
    Field("snapshot_of", check=check_name),
    Field("initiators", type="names", check=files.check_initiators),
    Field("portals", type="names", check=files.check_portals),
    Field("chap_user", check=files.check_user),
    Field("chap_password", no_log=True, check=files.check_secret),
    Field("mutual_chap_user", check=files.check_user),
    Field("mutual_chap_password", no_log=True, check=files.check_secret),
    Field("readonly", type="bool"),
    Field("serial", check=files.check_serial),
    Field("owner", check=check_name),
    Field("vm_uuid", check=files.check_uuid),
    Field("remove_data", type="bool", default=False),
    Field("config_directory", type="path", check=files.check_path),
)


CHAP = ("chap_user", "chap_password", "mutual_chap_user", "mutual_chap_password")
GIVEN = ("size", *CHAP, "serial", "owner", "vm_uuid", "readonly")
ONE_SAN = "backend and config_directory are the same for all volumes; give them beside the list"
# What is planned with and not told.
INNER = ("chap_password", "mutual_chap_password", "saved", "even")


class IscsiVolume(Resource):
    """A volume of the SAN; what the back end has of it is `volume`."""

    def __init__(self, params: dict[str, Any], client: Any) -> None:
        super().__init__(params, client)
        kind, volume = BACKENDS[params["backend"]]
        if not isinstance(client, kind):
            raise Invalid(ONE_SAN)
        self.volume = volume(client, params)
        self.batch: Sequence[Mapping[str, Any]] = [params]
        self.rescan = False

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """The SAN, locked against other runs."""
        client: AbstractContextManager[Any] = BACKENDS[params["backend"]][0].locked(params["config_directory"])
        return client

    @classmethod
    def review(cls, resources: Sequence[Resource]) -> None:
        """Find twins among the items, and let each know of the others (they may share a CHAP user)."""
        items = [item for item in resources if isinstance(item, cls)]
        if len({item.params["config_directory"] for item in items}) > 1:
            raise Invalid(ONE_SAN)
        present = [item for item in items if item.params["state"] == "present"]
        rules.refuse_twins([{**item.params, "iqn": item.volume.iqn, "path": item.volume.path} for item in present])
        for item in items:
            item.batch = [other.params for other in items]

    def read(self) -> State:
        """What is served, and what was saved of it."""
        state: State = self.volume.look()
        return state

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
        for key in ("initiators", "portals"):
            wanted[key] = names_after(have.get(key, []), self.params[key])
        self._check_new(wanted)
        wanted["size"] = self._size(have, wanted["size"])
        self.volume.complete(wanted)
        rules.settle_chap(wanted, self.params)
        self.volume.check(wanted, have, self.batch)
        self.rescan |= bool(users and wanted["size"] > have["size"])
        self._warn_of_uninvited(wanted)
        return wanted

    def _check_new(self, wanted: Mapping[str, Any]) -> None:
        if not wanted["iqn"] or wanted["chap_user"] is None:
            what = "iqn or iqn_prefix" if not wanted["iqn"] else 'chap_user (an empty one, "", asks for no CHAP)'
            raise Invalid(f"{self.name} is a new volume: {what} is missing")
        rules.refuse_bad_iqn(self.name, wanted["iqn"])
        if self.volume.lost:
            raise Refused(f"{wanted['path']}, the data of {self.name}, is gone; restore it, or remove the volume first")

    def _size(self, have: Mapping[str, Any], size: int | None) -> int:
        if not self.volume.has_data and not (self.params["clone_of"] or self.params["snapshot_of"]):
            size = files.new_size(self.name, self.params)
        new: int = self.volume.size(have.get("size") or 0, size)
        if new < (have.get("size") or 0):
            has = size_text(have["size"])
            raise Refused(
                f"{self.name} has {has}; it is not made smaller ({size_text(new)} asked): write size: {has} (for a VM "
                "of the inventory, as the size of its disk)"
            )
        return new

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
        """The volume without its secrets."""
        volume = state and {key: value for key, value in state.items() if key not in INNER}
        return {"volume": volume, "rescan_needed": self.rescan}


def main() -> None:
    """Run the module."""
    # One at a time: the volumes share a daemon or a kernel, its configuration, and its CHAP accounts.
    run_module(IscsiVolume, FIELDS, items="volumes", parallel=1, required_one_of=[("name", "volumes")])


if __name__ == "__main__":
    main()
