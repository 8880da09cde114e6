#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module backup: back up VMs to a folder, whole or what has changed, and prove the backups that are there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup
short_description: Back up VMs while they run, and keep the last good histories
version_added: "0.1.0"
author: The drover.kvm contributors (@drover)
description:
  - Copies the disks of a machine as they are at one moment into a folder of its own, together with its definition, the
    variables of its UEFI, the keys of its TPM and checksums. QEMU copies while the machine runs (backups of libvirt in
    push mode, see U(https://libvirt.org/kbase/live_full_disk_backup.html)). Page docs/backups.md says why it is done
    that way, and how to come back with C(qemu-img) and C(virsh) alone.
  - A full backup and the incremental ones that are based on it are a history. O(keep) counts good histories. Older
    ones are removed only after all that is kept was read once more and found to be good. What this module did not
    make is never removed.
  - A backup gets its name when all of it is there and proved. If the module is killed, the next run ends what is left
    of it, and begins anew.
options:
  path:
    description:
      - The folder of all backups, as an absolute path on the node. It must exist, and everybody must be able to pass
        through it, as QEMU, which is another user, writes there. For another machine mount its folder here (NFS).
      - Required.
    type: path
  name:
    description: The machine. It must be on this node. Required unless O(vms) is given.
    type: str
  vms:
    description: Several machines, one after the other. Each item takes the options of one machine.
    type: list
    elements: dict
    suboptions:
      path:
        description: See O(path).
        type: path
      name:
        description: The machine. Required.
        type: str
      type:
        description: See O(type).
        type: str
        choices: [full, incremental]
      max_incrementals:
        description: See O(max_incrementals).
        type: int
      keep:
        description: See O(keep).
        type: int
      newer_than:
        description: See O(newer_than).
        type: str
      mode:
        description: See O(mode).
        type: str
        choices: [snapshot, suspend, stop]
      quiesce:
        description: See O(quiesce).
        type: str
        choices: [auto, required, never]
      bandwidth:
        description: See O(bandwidth).
        type: str
      compression:
        description: See O(compression).
        type: str
        choices: [zstd, zlib, none]
      encryption:
        description: See O(encryption).
        type: str
        choices: [none, luks]
      passphrase:
        description: See O(passphrase).
        type: str
      timeout:
        description: See O(timeout).
        type: int
      shutdown_timeout:
        description: See O(shutdown_timeout).
        type: int
      state:
        description: See O(state).
        type: str
        choices: [present, verified, absent]
      from_snapshot:
        description: See O(from_snapshot).
        type: dict
        suboptions: &from_snapshot
          moment:
            description:
              - The moment of which the snapshots are, in UTC, as M(drover.kvm.vm_freeze) returns it
                (V(20261122T030000Z)). The default is the beginning of the backup.
            type: str
          quiesced:
            description: Whether the guest held its file systems still, for RV(backup.quiesced).
            type: bool
            default: false
          disks:
            description:
              - Where the snapshot of each disk is. All disks that the machine writes to must be named. An option of the
                login that is not given is that of the disk itself, where that is of type C(iscsi).
            required: true
            type: list
            elements: dict
            suboptions:
              target:
                description: The disk's name on the bus, such as V(vda).
                required: true
                type: str
              path:
                description: The snapshot as a device of this node, such as V(/dev/san/web1-snapshot), or a raw file.
                type: path
              iqn:
                description: IQN of the snapshot's own iSCSI target. Give either O(from_snapshot.disks[].path) or this.
                type: str
              lun:
                description: Its logical unit. The default is V(1).
                type: int
              portal:
                description: Address and port of the target, such as V(10.231.5.10:3260).
                type: str
              initiator:
                description: IQN with which C(qemu-img) logs in.
                type: str
              user:
                description: CHAP user.
                type: str
              secret:
                description: Usage name of the libvirt secret (of type C(iscsi)) with the CHAP password.
                type: str
      older_than:
        description: See O(older_than).
        type: str
      uri:
        description: See O(uri).
        type: str
  type:
    description:
      - V(incremental) copies what has changed since the last backup in this folder. Where that is not known it is a
        full one, and RV(backup.reason) says why. That is so for a machine that is off, a disk that was changed for
        another one or has grown, and after a power cut of the node.
      - QEMU can note changes in qcow2 disks only. Of others all is copied each time, and RV(backup.reason) names them;
        where the machine has no qcow2 disk, the backup is a full one.
      - Where all disks are images of RBD, and the node has C(python3-rbd) and settings and a key of the cluster in
        C(/etc/ceph), it copies what has changed since the last backup's snapshot of the images, whether the machine is
        off, has moved or lost its node. That snapshot stays until the next backup, and the pool keeps what is
        overwritten meanwhile.
      - The default is V(full).
    type: str
    choices: [full, incremental]
  max_incrementals:
    description:
      - How many incremental backups a history has at most. Then a full one begins a new history.
      - The default is V(6).
    type: int
  keep:
    description:
      - How many good histories are kept, the new one among them.
      - The default is V(2).
    type: int
  newer_than:
    description:
      - Do nothing where a good backup is younger than that, such as V(20h), V(6d), V(90min) or in seconds. With it a
        second run changes nothing. Without it each run makes a backup.
    type: str
  mode:
    description:
      - What happens to a machine that runs. V(snapshot) lets it run. V(suspend) holds it still for the part of a
        second in which the copy begins. V(stop) shuts it down, begins the copy, and starts it at once.
        Should it go off only after O(shutdown_timeout), the task has failed, and a timer of systemd starts it again.
      - A machine that is off is copied by C(qemu-img), and can't be started meanwhile, but for one on images of RBD.
      - The default is V(snapshot).
    type: str
    choices: [snapshot, suspend, stop]
  quiesce:
    description:
      - Whether the guest agent is asked to write out and hold still the guest's file systems while the copy begins,
        with O(mode=snapshot). A timer lets them go on after 8 seconds at the latest. V(auto) asks where there is an
        agent. V(required) refuses, or fails, without.
      - The default is V(auto).
    type: str
    choices: [auto, required, never]
  bandwidth:
    description: The most that is read from each disk, in bytes per second, such as V(100MiB). The default is no limit.
    type: str
  compression:
    description:
      - How the images are compressed. They stay qcow2, which QEMU 5.1 and later can read with V(zstd), all with
        V(zlib). It takes room for the largest disk once more while it works.
      - The default is V(zstd), and V(none) with O(encryption=luks), as QEMU can't compress what it encrypts.
    type: str
    choices: [zstd, zlib, none]
  encryption:
    description:
      - With V(luks) only O(passphrase) opens the backup. The images are qcow2 with LUKS inside, with a random key that
        is the same for all of a history; that key, the definition, the variables of UEFI and the keys of the TPM are in
        a container, which the passphrase opens. Nothing of it is ever in the folder in clear. C(qemu-img) alone reads
        all of it, page docs/backups.md says how.
      - What the backup is of can be seen still, such as the name of the machine, the moment, and the names and sizes of
        the disks.
      - A disk of a running machine is written once, in its last form. Each disk costs some two seconds of one
        processor, and the container four.
      - An incremental backup is made of the history's passphrase only. Where the last backup is encrypted and this one
        shall not be, or the other way round, it is a full one.
      - The default is V(none).
    type: str
    choices: [none, luks]
  passphrase:
    description:
      - What opens an encrypted backup, as one line of text. Required with O(encryption=luks).
      - With another one than that of the last backup, O(type=incremental) is refused. Make a full backup with the new
        one, from which on it is needed; the older histories need the old one as long as they are there.
      - It is lost when you lose it. Keep it also where the building is gone.
    type: str
  timeout:
    description:
      - How long copying may take, in seconds; after it the copy is ended.
      - The default is V(86400).
    type: int
  shutdown_timeout:
    description:
      - How long the guest has to shut down with O(mode=stop), in seconds. One that is late by up to 10 minutes is
        started again.
      - The default is V(180).
    type: int
  state:
    description:
      - V(present) makes a backup. V(verified) reads all backups of the machine, whether it still exists or not, and
        compares checksums. One that is damaged is noted, named in RV(damaged), and neither counts nor is based upon.
        Backups can go on meanwhile.
      - V(absent) removes all backups of a machine that is gone, the last good one too, if that is older than
        O(older_than). Nothing else ever removes them. It is refused where the machine is on this node; playbook
        C(remove_backups) asks all nodes.
      - The default is V(present).
    type: str
    choices: [present, verified, absent]
  from_snapshot:
    description:
      - Read the disks from snapshots that their storage has made, such as a SAN, in place of letting QEMU copy them.
        Then the machine has nothing to do with the copy, and stands still only as long as the storage takes to make
        them. M(drover.kvm.vm_freeze) sees to that, and playbook C(backup) does all of it
        (C(drover_backup_from_snapshot)).
      - The snapshots are only read. Who made them removes them.
      - All of the disks is copied each time, as such snapshots don't tell what has changed. O(quiesce), and
        O(mode=suspend), have no effect, and O(mode=stop) is refused.
    type: dict
    suboptions: *from_snapshot
  older_than:
    description:
      - How old the last backup of a machine that is gone must be for O(state=absent), such as V(365d). Required with
        it.
    type: str
  uri:
    description:
      - URI of the libvirt daemon, as seen from the node. See U(https://libvirt.org/uri.html).
      - The default is V(qemu:///system).
    type: str
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
attributes:
  idempotent:
    support: partial
    details: With O(newer_than) or O(state=verified). Else each run makes a backup.
requirements:
  - libvirt 7.6 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img); for images of RBD C(qemu-io), C(python3-rbd) and QEMU's driver of RBD (package qemu-block-extra) too
  - C(systemd-run), to thaw, resume or start a guest should the module be killed
notes:
  - Files are 0600, and belong to root. What they hold is in clear without O(encryption).
  - O(state=verified) compares checksums, which needs no passphrase. That it opens a backup is proved by a restore.
  - Media and disks that the machine only reads are left out.
  - Where the target is slow, so are the guest's first writes to what is not copied yet.
seealso:
  - module: drover.kvm.backup_info
  - module: drover.kvm.restore
"""

EXAMPLES = r"""
- name: A full backup now, two are kept
  drover.kvm.backup:
    name: web1
    path: /srv/backup

- name: Every night what has changed, a new history each week
  drover.kvm.backup:
    vms: [{name: web1}, {name: db1, quiesce: required}]
    path: /mnt/backup
    type: incremental
    newer_than: 20h
    bandwidth: 100MiB

- name: One whose volumes the SAN made snapshots of, while vm_freeze held it still
  drover.kvm.backup:
    name: mail1
    path: /mnt/backup
    from_snapshot:
      moment: "{{ frozen.moment }}"
      quiesced: "{{ frozen.vm.frozen }}"
      disks:
        - {target: vda, iqn: iqn.2026-11.org.example:drover-mail1-0-backup}

- name: One whose snapshot this node is logged in to
  drover.kvm.backup:
    name: db2
    path: /mnt/backup
    from_snapshot: {disks: [{target: vda, path: /dev/san/db2-snapshot}]}

- name: One that nobody reads without the passphrase
  drover.kvm.backup:
    name: payroll1
    path: /mnt/backup
    type: incremental
    encryption: luks
    passphrase: "{{ vault_backup_passphrase }}"

- name: One for which the guest is shut down and started again
  drover.kvm.backup:
    name: legacy1
    path: /mnt/backup
    mode: stop

- name: Read all backups of a machine, and fail if one is damaged
  drover.kvm.backup:
    name: web1
    path: /mnt/backup
    state: verified
  register: proof
  failed_when: proof.damaged | length > 0

- name: Remove all backups of a machine that is gone for more than a year
  drover.kvm.backup:
    name: old1
    path: /mnt/backup
    state: absent
    older_than: 365d
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["back up web1 to /srv/backup: vda; full (asked for)"]
backup:
  description: The newest backup. Null where there is none. M(drover.kvm.backup_info) lists all.
  returned: always
  type: dict
  contains:
    id: {description: "Its name, the moment in UTC at which it was begun.", type: str, returned: always}
    folder: {description: Where it is., type: str, returned: always}
    type: {description: V(full) or V(incremental)., type: str, returned: always}
    base: {description: What an incremental one is based on., type: str, returned: always}
    history: {description: The full backup of its history., type: str, returned: always}
    moment: {description: "The moment of which it is, UTC.", type: str, returned: always}
    reason:
      description:
        - Why a full one was made where an incremental one was asked for, or of which disks all is in the incremental
          one.
      type: str
      returned: always
    quiesced: {description: Whether the guest held its file systems still., type: bool, returned: always}
    encryption: {description: V(luks) or V(none)., type: str, returned: always}
    size: {description: Bytes of its files., type: int, returned: always}
    good: {description: Whether nothing is known against it., type: bool, returned: always}
    complaint: {description: What is known against it., type: str, returned: always}
damaged:
  description: The backups of this machine that are not good, each with the reason.
  returned: always
  type: dict
  sample: {20261115T030000Z: vda.qcow2 does not have the checksum that SHA256SUMS says}
error:
  description: The kind of failure, see M(drover.kvm.vm).
  returned: failure
  type: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Callable

from ansible_collections.drover.kvm.plugins.module_utils._backup import origins, secrecy, store
from ansible_collections.drover.kvm.plugins.module_utils._backup.acts import Acts
from ansible_collections.drover.kvm.plugins.module_utils._backup.taking import Order
from ansible_collections.drover.kvm.plugins.module_utils._disks.file import check_path
from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, between, check_name, parse_age
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import URI, Node, connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

FIELDS = (
    Field("path", type="path", required=True, check=check_path),
    Field("name", check=check_name),
    Field("type", choices=("full", "incremental"), default="full"),
    Field("max_incrementals", type="int", default=6, check=between(0, 1000)),
    Field("keep", type="int", default=2, check=between(1, 1000)),
    Field("newer_than", check=parse_age),
    Field("mode", choices=("snapshot", "suspend", "stop"), default="snapshot"),
    Field("quiesce", choices=("auto", "required", "never"), default="auto"),
    Field("bandwidth", type="size"),
    Field("compression", choices=("zstd", "zlib", "none")),
    Field("encryption", choices=("none", "luks"), default="none"),
    Field("passphrase", no_log=True, check=secrecy.check_passphrase),
    Field("timeout", type="int", default=86400, check=between(1)),
    Field("shutdown_timeout", type="int", default=180, check=between(1, 86400)),
    Field("from_snapshot", type="dict", fields=origins.FIELDS),
    Field("older_than", check=parse_age),
    Field("state", choices=("present", "verified", "absent"), default="present"),
    URI,
)


class VmBackup(Resource):
    """The backups of one VM."""

    def __init__(self, params: dict[str, Any], client: Node) -> None:
        super().__init__(params, client)
        if not params["name"]:
            raise Invalid("name the VM (name), or several (vms)", option="name")
        if params["state"] == "absent" and params["older_than"] is None:
            raise Invalid("state: absent removes all backups: say older_than, such as 365d", option="older_than")
        if params["from_snapshot"] is not None and params["mode"] == "stop":
            raise Invalid("mode: stop has no effect on snapshots that are there (from_snapshot)", option="mode")
        self._check_encryption()
        root = store.check_root(params["path"])
        given = {name: params[name] for name in Order._fields if name in params}
        given["compression"] = params["compression"] or ("zstd" if params["passphrase"] is None else "none")
        order = Order(**{**given, "root": root, "vm": self.name, "bandwidth": params["bandwidth"] or 0})
        self.acts = Acts(client, order, params["keep"], params["newer_than"])

    def _check_encryption(self) -> None:
        """Raise Invalid where the options of it don't fit each other."""
        encrypted = self.params["encryption"] == "luks"
        if encrypted != (self.params["passphrase"] is not None):
            words = ("passphrase", "encryption: luks") if encrypted else ("encryption: luks", "passphrase")
            raise Invalid(
                "{} is missing, without which {} has no effect".format(*words), option=words[0].partition(":")[0]
            )
        if encrypted and self.params["compression"] not in (None, "none"):
            raise Invalid("QEMU can't compress what it encrypts: leave compression out", option="compression")

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Node]:
        """The node."""
        return connect(str(params["uri"]))

    def read(self) -> State:
        """The backups that are there, by a quick look."""
        backups = self.acts.look()
        return {"name": self.name, "backups": [one.id for one in backups], "damaged": self.damaged()}

    def damaged(self) -> dict[str, str]:
        """Those that are not good, and why."""
        return {one.id: one.complaint for one in self.acts.backups if one.complaint}

    def wanted(self, before: State) -> State:
        """One more, and the older histories gone; or what reading all of them says."""
        state = before or {}
        if self.params["state"] == "verified":
            return {**state, "damaged": self.acts.verify()}
        if self.params["state"] == "absent":
            gone = {one.id for history in self._orphans() for one in history}
            damaged = {one: words for one, words in state["damaged"].items() if one not in gone}
            return {**state, "backups": [one for one in state["backups"] if one not in gone], "damaged": damaged}
        if self.acts.made or self.acts.is_young():
            return state
        self.acts.plan()
        self.warnings = self.acts.warnings
        gone = {one.id for history in self.acts.surplus() for one in history}
        return {**state, "backups": [*(one for one in state["backups"] if one not in gone), "new"]}

    def _orphans(self) -> list[list[store.Backup]]:
        found = self.acts.orphans(self.params["older_than"])
        self.warnings = self.acts.warnings
        return found

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Clear what a killed run left, make the backup, remove old histories; or note what was found."""
        known, seen = before or {}, wanted or {}
        if self.params["state"] == "verified":
            changed = {
                one: words
                for one in known["backups"]
                if (words := seen["damaged"].get(one)) != known["damaged"].get(one)
            }
            return [
                Step(f"note of {one}: {words or 'good again'}", partial(self.acts.note, one))
                for one, words in changed.items()
            ]
        if known == seen:
            return []
        if self.params["state"] == "absent":
            return [self._removal(history, self.acts.forget) for history in self._orphans()]
        path = Path(self.params["path"])
        steps = [
            Step(f"clear {one.name} of {self.name}, which a run left", partial(self.acts.clear, one))
            for one in store.left(path, self.name)
        ]
        steps.append(Step(f"back up {self.name} to {path}: {self.acts.words()}", self.acts.take))
        return [*steps, *(self._removal(history, self.acts.remove) for history in self.acts.surplus())]

    def _removal(self, history: list[store.Backup], call: Callable[[list[store.Backup]], None]) -> Step:
        return Step(f"remove the history {history[0].history} of {self.name} ({len(history)})", partial(call, history))

    def result(self, state: State) -> dict[str, Any]:
        """The newest backup."""
        last = self.acts.made or (self.acts.backups[-1] if self.acts.backups else None)
        return {"backup": last and last.facts(), "damaged": self.damaged() if state is None else state["damaged"]}


def main() -> None:
    """Run the module."""
    run_module(VmBackup, FIELDS, items="vms", parallel=1)


if __name__ == "__main__":
    main()
