#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move VMs between hypervisors, and finish what was interrupted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migrate
short_description: Move VMs between hypervisors
version_added: "0.1.0"
description:
  - A migration is a state, namely that this VM is on that node. Run it on the node that has the VM. When the VM is
    there already, nothing is changed.
  - A running VM is migrated live, peer to peer over TLS. It stays paused on the destination until it is proven that
    the source can never run it again, so no fault of a network, a daemon or a controller makes two running copies.
    A VM that is shut off moves as a definition, with the files of its UEFI and its TPM, which are written at the
    destination and read again before it is defined there.
  - Nothing of UEFI and TPM stays on the source. A file of them that O(to) has already is never written over while the
    VM is shut off, but a reason against the move.
  - The work is done by a helper, the transient unit C(drover-migrate-UUID) on the source. It is the VM's lock on that
    node and goes on when the controller is lost; a second run adopts it, waits for its end and looks where the VM is.
    Its log is in the journal.
  - Before anything is changed, everything that speaks against the move is listed in one error. What only the
    destination's facts tell (a cordon, a missing bridge) is in that list when O(destinations) is given. Otherwise, and
    for a medium that the destination can't open, the destination itself refuses, and the VM runs on undisturbed.
  - Whether packets reach O(to) is looked at, too, by a connection to the last migration port (49215) of its migration
    address, as libvirt would wait for minutes where a firewall drops them.
  - A VM with a lease goes only to a node that has the same lease directory, as C(/etc/drover/cluster.json) says, and
    that shows the file of the lease. After the move somebody must hold it, or the task fails.
  - After an interruption O(state=recovered) decides from what all nodes say, by fixed rules. It never starts a VM that
    was shut off, never resumes one that its user paused, and removes no disk but
    what O(storage=copy) left on the node that does not have the VM. Where no decision is safe it tells
    what a person must look at.
  - See U(https://libvirt.org/migration.html) for the terms.
options:
  <<: &sheet
    name:
      description: The VM.
      type: str
      aliases: [vm]
    to:
      description: The node that the VM shall be on, by its name in C(/etc/drover/cluster.json). Needed to migrate.
      type: str
    from:
      description: The node that the VM is expected on. If it is on a third node, the task is refused.
      type: str
    uuid:
      description: The UUID of the VM. If the VM of that name has another, the task is refused.
      type: str
    mode:
      description: How a plan expects the VM to move. If its state asks for the other way, that is done, with a warning.
      type: str
      choices: [live, offline]
    memory:
      description: The memory of the VM, from which the default of O(timeout) is made. Default is what the VM has now.
      type: str
    state:
      description:
        - V(migrated) moves the VM to O(to).
        - V(recovered) finishes migrations that were interrupted, of O(name) or of all VMs of the cluster. Can run on
          any node; where the decision needs the lock of the source, run it there.
        - Default is V(migrated).
      type: str
      choices: [migrated, recovered]
    parallel:
      description: How many VMs of O(moves) move at the same time. Default is V(2).
      type: int
    parallel_inbound:
      description:
        - How many VMs O(to) takes in at the same time, whichever nodes they come from. It is asked before each
          migration, which waits meanwhile. Two sources that ask at the same moment may both go ahead.
        - Default is no limit but O(parallel) of each source.
      type: int
    parallel_cluster:
      description:
        - How many VMs move at the same time in the whole cluster, from and to whichever nodes, as for links or switches
          that all of them share. All nodes are asked in the same way.
        - Default is no limit but O(parallel) of each source.
      type: int
    bandwidth: &bandwidth
      description: The most that one migration may take, in bytes per second, such as V(100MiB). Default is no limit.
      type: str
    bandwidth_per_node:
      description:
        - The most that all migrations which leave the node take together, in bytes per second. Those that run share it
          evenly, and what one no longer needs is the others' within a second. Default is no limit.
        - Counted in MiB/s, of which each has at least one.
      type: str
    timeout: &timeout
      description:
        - After how many seconds a migration is aborted; the VM then runs on where it was.
        - Default is O(timeout_per_gib) for each GiB of memory and of disks that are copied, and at least 120 s.
      type: int
    timeout_per_gib: &timeout_per_gib
      description: The seconds that each GiB may take, from which the default of O(timeout) is made. Default is V(150).
      type: int
    stall_timeout: &stall_timeout
      description:
        - After how many seconds without progress a migration is aborted. The error says where it stood, and what to
          look at.
        - Default is V(60).
      type: int
    auto_converge: &auto_converge
      description:
        - Slow the VM's processors down, by 20 percent and then by 10 more each time, while it changes its memory faster
          than the network carries it. Default is V(true).
      type: bool
    max_downtime: &max_downtime
      description:
        - How long the VM may stand still at the switch, in milliseconds, as QEMU foretells it. It begins with 300, and
          is doubled up to this with each pass over the memory from the third on.
        - Default is V(1000).
      type: int
    when_stuck: &when_stuck
      description:
        - What is done when the time (O(timeout)) is over and the VM still changes its memory too fast.
        - V(abort) aborts the migration.
        - V(pause) lets the VM stand still for up to O(max_pause) and finishes, if what is left goes over in that time
          at the present rate, and aborts otherwise.
        - Default is V(abort).
      type: str
      choices: [abort, pause]
    max_pause: &max_pause
      description: For O(when_stuck=pause), how many seconds the VM may stand still. Default is V(10).
      type: int
    parallel_connections: &parallel_connections
      description:
        - Over how many connections one VM's memory is sent at the same time, V(2) or more. It helps where one processor
          can't encrypt as fast as the network is, from some 10 Gbit/s on. Default is one connection.
      type: int
    compression: &compression
      description:
        - How the memory is made smaller on its way, at the cost of processor time on both nodes.
        - V(xbzrle) sends of a page that was sent before only what has changed. It is for a slow link and a VM that
          writes a little into the same pages over and over, and takes memory of the source for its cache (64 MiB).
        - V(zstd) and V(zlib) compress every page, in the threads of O(parallel_connections), which they need. libvirt
          of Debian 12 (9.0) has neither; there the migration fails before it begins.
        - Default is V(none).
      type: str
      choices: [none, xbzrle, zlib, zstd]
      version_added: "0.1.0"
    policies:
      description:
        - What applies to VMs by their tags. Of several that fit a VM the first one counts. What the task or an item of
          O(moves) says itself goes before.
      type: list
      elements: dict
      suboptions:
        tag:
          description: The tag of the VMs.
          type: str
          required: true
        bandwidth: *bandwidth
        timeout: *timeout
        timeout_per_gib: *timeout_per_gib
        stall_timeout: *stall_timeout
        auto_converge: *auto_converge
        max_downtime: *max_downtime
        when_stuck: *when_stuck
        max_pause: *max_pause
        parallel_connections: *parallel_connections
        compression: *compression
    storage:
      description:
        - What becomes of disks that only the source has.
        - V(shared) refuses the move before anything is changed.
        - V(copy) copies them while the VM runs, to files of the same path. The folder must be there on O(to), with room
          for 1.05 times the size of the disks, and no file of that name. Only raw and qcow2 files that are based on no
          other file are copied, and only those of a running VM.
        - When the VM runs on O(to), the source's files are deleted if they carry the mark that M(drover.kvm.vm) sets.
          Others stay, with a warning. When the move fails, what was copied is deleted on O(to).
        - Default is V(shared).
      type: str
      choices: [shared, copy]
      version_added: "0.1.0"
    eject_cdrom:
      description:
        - Whether a medium in a drive of the VM that only the source has is ejected before the move, as it runs and for
          its next start. The image itself stays where it is, and so does the drive, empty, also when the move fails.
        - A guest may lock the tray; then the VM stays where it is.
        - Otherwise such a medium is a reason against the move, but for one without which libvirt starts the VM
          (C(startupPolicy)). Default is V(false).
      type: bool
      version_added: "0.1.0"
    set_home:
      description:
        - What is remembered as the VM's home, the node that it goes back to.
        - V(source) remembers the node that it leaves, unless a home is remembered already (draining a node).
        - V(destination) makes the new node its home, if a home is remembered (moved on purpose).
        - V(keep) changes nothing. Default is V(destination).
      type: str
      choices: [keep, source, destination]
    early_resume:
      description:
        - Resume the VM as soon as the source's QEMU process is dead, instead of when libvirt's call has returned. It
          saves 0.2 s of the time that the VM stands still. Default is V(true).
      type: bool
    keep:
      description: For O(state=recovered), the node whose copy stays where only a person can choose.
      type: str
    fenced:
      description:
        - For O(state=recovered), nodes that are certainly powered off, by their names in the cluster. A copy that waits
          for the proof that its source can't run the VM again is resumed then.
        - B(Danger:) when one of them does run the VM, two copies write to the same disks and destroy them. And a source
          that ran on after the move had failed has left disks that are newer than the memory of that copy. Name it only
          when it lost its power while the move was under way.
        - For O(state=migrated), a VM that is off or paused is moved although these nodes give no answer; else it is
          refused, as one of them may run it.
        - The default is the empty list.
      type: list
      elements: str
      version_added: "0.1.0"
    destinations:
      description: Facts of the destinations by name, RV(drover.kvm.node_info#module:node), to find more blockers.
      type: dict
    heartbeat:
      description:
        - A file that the controller touches; the next VM of the queue begins only while it is younger than 20 s, and
          while the controller's connection is open.
        - The action plugin sets it.
      type: path
  moves:
    description: Several VMs. Each item takes the options above and inherits those that it does not give.
    type: list
    elements: dict
    suboptions: *sheet
extends_documentation_fragment: [drover.kvm.attributes, drover.kvm.attributes.kvm]
seealso:
  - module: drover.kvm.node_info
author: The drover.kvm contributors (@drover)
"""

EXAMPLES = r"""
- name: Move one VM
  drover.kvm.migrate:
    name: web1
    to: hv2

- name: Move what a plan says, three at a time, and let the VMs remember where they come from
  drover.kvm.migrate:
    moves: "{{ plan.moves }}"
    parallel: 3
    set_home: source

- name: Move a VM whose disks are files of its node, with them
  drover.kvm.migrate:
    name: build7
    to: hv3
    storage: copy

- name: Move a VM although the image of a CD of its node is in its drive
  drover.kvm.migrate:
    name: new1
    to: hv2
    eject_cdrom: true

- name: Move VMs, and let those with the tag db stand still for up to 30 s rather than stay
  drover.kvm.migrate:
    moves: "{{ plan.moves }}"
    policies:
      - tag: db
        timeout_per_gib: 60
        when_stuck: pause
        max_pause: 30
      - tag: web
        max_downtime: 300
        bandwidth: 200MiB

- name: Move a large VM over a link that is slower than the processors
  drover.kvm.migrate:
    name: erp1
    to: hv2
    parallel_connections: 4
    compression: zstd

- name: Show all that speaks against a move
  drover.kvm.migrate:
    name: web1
    to: hv2
    destinations:
      hv2: "{{ hostvars.hv2.node }}"
  check_mode: true

- name: Finish a move whose source has lost its power, and was seen to be off
  drover.kvm.migrate:
    name: web1
    state: recovered
    fenced: [hv1]

- name: Finish what an interruption left, wherever it is
  drover.kvm.migrate:
    state: recovered
"""

RETURN = r"""
where:
  description: The node that has the VM; V(unknown) when the nodes' answers don't tell.
  returned: always
  type: str
vm_state:
  description: What all nodes say of the VM.
  returned: when it is about one VM
  type: str
  sample: running on hv2
verified:
  description: Whether every node that answers says that the VM is on O(to) and nowhere else, and no marker is left.
  returned: always
  type: bool
unseen:
  description: Nodes that gave no answer.
  returned: with O(state=migrated)
  type: list
  elements: str
seconds:
  description: How long the migration took.
  returned: with O(state=migrated)
  type: float
downtime_ms:
  description:
    - How long the VM stood still, in milliseconds, from libvirt's event of the source's stop to the return of the
      destination's resume, by the helper's clock on the source. What a client of the VM notices is a little more.
  returned: with O(state=migrated)
  type: float
proof_ms:
  description: How much of that went by from the destination being ready to the proof that it may run, in milliseconds.
  returned: with O(state=migrated)
  type: float
from:
  description: The node that it left in this run.
  returned: with O(state=migrated)
  type: str
sent:
  description: The bytes that libvirt sent for it, from its own count at the destination.
  returned: with O(state=migrated)
  type: int
passes:
  description: How often its memory was gone through, by the same count.
  returned: with O(state=migrated)
  type: int
open:
  description: For each VM that needs a person or a node that is silent, why.
  returned: with O(state=recovered)
  type: dict
places:
  description: Where the VMs are that were looked at.
  returned: with O(state=recovered)
  type: dict
results:
  description: The same for each of O(moves).
  returned: with O(moves)
  type: list
  elements: dict
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._errors import Invalid
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_name
from ansible_collections.drover.kvm.plugins.module_utils._migration.client import Client
from ansible_collections.drover.kvm.plugins.module_utils._migration.mending import Mending
from ansible_collections.drover.kvm.plugins.module_utils._migration.moving import Moving
from ansible_collections.drover.kvm.plugins.module_utils._migration.pace import check_compression
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

MOST = 16


def check_seconds(value: int) -> int:
    """A time limit of at least 5 s."""
    if value < 5:
        raise ValueError(f"{value} s is too short, give 5 at least")
    return value


def within(least: int, most: int, unit: str) -> Callable[[int], int]:
    """A check for whole numbers from least to most."""

    def check(value: int) -> int:
        if not least <= value <= most:
            raise ValueError(f"{value} is not from {least} to {most} {unit}")
        return value

    return check


PACE = (
    Field("bandwidth", type="size"),
    Field("timeout", type="int", check=check_seconds),
    Field("timeout_per_gib", type="int", check=within(1, 3600, "s")),
    Field("stall_timeout", type="int", check=check_seconds),
    Field("auto_converge", type="bool"),
    Field("max_downtime", type="int", check=within(10, 60000, "ms")),
    Field("when_stuck", choices=("abort", "pause")),
    Field("max_pause", type="int", check=within(1, 600, "s")),
    Field("parallel_connections", type="int", check=within(2, 64, "connections")),
    Field("compression", choices=("none", "xbzrle", "zlib", "zstd")),
)
FIELDS = (
    Field("name", aliases=("vm",), check=check_name),
    Field("to", check=check_name),
    Field("from"),
    Field("uuid"),
    Field("mode", choices=("live", "offline")),
    Field("memory", type="size"),
    Field("state", choices=("migrated", "recovered"), default="migrated"),
    Field("parallel_inbound", type="int", check=within(1, MOST, "VMs")),
    Field("parallel_cluster", type="int", check=within(1, MOST, "VMs")),
    Field("parallel", type="int", default=2, check=within(1, MOST, "VMs")),
    *PACE,
    Field("bandwidth_per_node", type="size"),
    Field("policies", type="list", elements="dict", fields=(Field("tag", required=True), *PACE)),
    Field("storage", choices=("shared", "copy"), default="shared"),
    Field("eject_cdrom", type="bool", default=False),
    Field("set_home", choices=("keep", "source", "destination"), default="destination"),
    Field("early_resume", type="bool", default=True),
    Field("keep"),
    Field("fenced", type="list", elements="str", default=[]),
    Field("destinations", type="dict"),
    Field("heartbeat", type="path"),
)


class Migration(Resource):
    """One VM on its node, or everything recovered."""

    def __init__(self, params: dict[str, Any], client: Client) -> None:
        super().__init__(params, client)
        if params["state"] == "migrated" and not (params["name"] and params["to"]):
            raise Invalid("to migrate, name the VM (name) and the node (to)")
        self.task = Moving(params, client) if params["state"] == "migrated" else Mending(params, client)
        self.fresh = False

    @property
    def name(self) -> str:
        """The VM, or what stands for all."""
        return str(self.params["name"] or "all interrupted migrations")

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """What all moves share. Where there is none, what they would share is looked at before a playbook begins."""
        check_compression(params)
        return Client.of(params)

    @classmethod
    def review(cls, resources: Sequence[Resource]) -> None:
        """Ask all nodes for all VMs at once, and each destination for all that shall come to it."""
        tasks = [resource.task for resource in resources if isinstance(resource, Migration)]
        Moving.review([task for task in tasks if isinstance(task, Moving)])

    def read(self) -> State:
        """The first time from the common look at all VMs, later by asking again."""
        fresh, self.fresh = self.fresh, True
        return self.task.read(fresh)

    def wanted(self, before: State) -> State:
        """See Moving and Mending."""
        wanted = self.task.wanted(before or {})
        self.warnings = self.task.warnings
        return wanted

    def steps(self, before: State, wanted: State) -> list[Step]:
        """See Moving and Mending."""
        return self.task.steps(before or {}, wanted or {})

    def result(self, state: State) -> dict[str, Any]:
        """See Moving and Mending."""
        return self.task.result(state)


def main() -> None:
    """Run the module."""
    run_module(Migration, FIELDS, items="moves", parallel=MOST)


if __name__ == "__main__":
    main()
