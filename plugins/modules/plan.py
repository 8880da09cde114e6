#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin plan, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Compute where VMs shall run before anything is moved
version_added: "0.1.0"
author: "The drover.kvm contributors (@drover)"
description:
  - Computes on the controller, from facts of all nodes, where new VMs go (O(operation=place)), which moves empty one
    or more nodes (O(operation=drain)), which bring VMs back to a node (O(operation=undrain)), a whole cycle of both
    (O(operation=rolling)), and which even out the load (O(operation=rebalance)) or gather the VMs on few nodes
    (O(operation=consolidate)) and take them apart again (O(operation=spread)).
  - It is pure. It reads no system, changes none, and gives the same plan for the same input, so RV(ignore:changed) is
    always V(false), in check mode and in the real run.
  - Each plan is replayed by an independent checker before it is returned. The memory of a VM counts on its target
    while its source still holds it.
  - When the operation can't be done, all that hinders it is named before the first move, each with what mends it.
  - With C(--diff) the readable plan is also shown on standard error, whatever the verbosity.
  - Facts are a hint for planning, never the proof. M(drover.kvm.migrate) asks the nodes themselves again before it
    moves anything.
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.info
options:
  operation:
    description:
      - V(place) finds a node for each of O(vms). A VM that exists stays where it is; a new one goes to the node that is
        least busy with it, by its share of memory plus its vCPUs per thread.
      - V(drain) empties O(node). VMs that are shut off move too, as a definition. A VM whose home is another node goes
        there if it can. When spreading leaves a VM over, nodes are packed tighter; when that is not enough, VMs of
        other nodes move to make room (O(make_room)).
      - What becomes of a VM with V(drain) and V(rolling) is its own word (O(drover.kvm.vm#module:on_maintenance)). It
        may also be restarted elsewhere, shut down until the node returns, left there, or refuse. The other operations
        but V(undrain) move no running VM with another word than C(migrate).
      - V(undrain) brings back exactly the VMs whose home is one of O(node), in an order in which each finds room. A VM
        that was moved on purpose since has another home and stays. VMs that were shut down for the time are started.
      - V(rolling) empties and fills the nodes of O(node) one after the other (all that take VMs, if none is named).
        Each step is planned on what the one before leaves, so that all is known before the first move. Its steps are in
        RV(cycle), and RV(moves), RV(stages), RV(blockers) and RV(enough) are those of all steps.
      - V(rebalance) moves running VMs until the nodes are nearly as busy as O(weights) says, by memory and vCPUs. Each
        VM moves at most once. It is steepest descent, so the first moves of a plan are those that help most.
      - V(spread) brings VMs home that have their home elsewhere, then does what V(rebalance) does with the others.
      - V(consolidate) empties as many nodes as it can (RV(emptied)), those with the least memory in use first; the loss
        of any one node that stays on can be borne, unless O(require_n_minus_1=false).
      - V(report) plans nothing. It says where every VM is and where else it could be (RV(guests)), which rules are
        broken (RV(blockers)), what each node carries and whether N-1 holds.
    type: str
    required: true
    choices: [place, drain, undrain, rolling, rebalance, spread, consolidate, report]
  nodes:
    description:
      - The facts of every node that answered, as results of M(drover.kvm.node_info) or the value of their C(node).
      - A running VM counts with the maximum of its memory, since its balloon may grow to that.
    type: list
    elements: dict
    required: true
  unreachable:
    description:
      - Names of the nodes of the cluster that gave no answer. They take no VM.
      - Unreachable is not absent. With O(operation=place), a VM that is seen nowhere is refused while one of them is
        not in O(fenced).
    type: list
    elements: str
    default: []
  fenced:
    description: Names of nodes in O(unreachable) that are certainly off or empty, because somebody made sure of it.
    type: list
    elements: str
    default: []
  node:
    description:
      - The nodes to fill again, or to empty. Needed by O(operation=drain) and O(operation=undrain).
      - With O(operation=rolling), the nodes of the cycle in their order; all that take VMs, by name, if left out.
    type: list
    elements: str
    default: []
  names:
    description:
      - With O(operation=drain), only these VMs leave O(node), as when a fault of that node concerns them alone; the
        others stay. The node takes no other VM in this plan either.
      - A VM that is on another node already is left there; one that is on no node is a blocker.
      - Without it, all VMs leave.
    type: list
    elements: str
  vms:
    description:
      - Sheets of the VMs to place. Of each, C(name), C(memory) (a size), C(vcpus) (V(1) if left out), C(tags), C(nics)
        (of each its C(bridge), C(vlan) and C(trunks)), C(uuid), C(machine), C(virt_type), C(firmware), C(tpm),
        C(hugepages) and C(state) are read, the rest is left alone.
      - C(memory) may be left out for a VM that exists. With C(max_memory) the VM counts with that.
    type: list
    elements: dict
    default: []
  anti_affinity:
    description:
      - Tags that keep VMs apart. Two running VMs that share one of these tags are never put on the same node.
      - VMs that are together already are left so, unless one of them has to move anyway.
    type: list
    elements: str
    default: []
  affinity:
    description:
      - Tags of which VMs are wished together, such as one for each guest operating system, so that the kernel merges
        their equal pages (KSM). A wish, given up where it would make a node busier by more than a tenth.
    type: list
    elements: str
    default: []
    version_added: "0.1.0"
  failure_domains:
    description:
      - The room, rack or power feed of each node, by its name. VMs that O(anti_affinity) keeps apart then also go to
        nodes of different ones, as long as that leaves no VM without a place.
    type: dict
    default: {}
    version_added: "0.1.0"
  pins:
    description:
      - For each VM named, or each tag of VMs, the node or the list of nodes where they may run.
      - What this and O(avoid) say of a VM by its name and by all of its tags holds at once. A VM that runs elsewhere is
        left there, unless it has to move anyway.
    type: dict
    default: {}
  avoid:
    description: For each VM named, or each tag of VMs, the node or the list of nodes where they may not run.
    type: dict
    default: {}
  cpu_matrix:
    description:
      - What the nodes said when they compared the CPUs of VMs with their own. Without any answer all are taken as
        compatible; with some, a node that did not compare the CPU of a VM that runs is none where it can be.
    type: list
    elements: dict
    default: []
    suboptions:
      vm:
        description: Name of the VM.
        type: str
        required: true
      node:
        description: The node that compared.
        type: str
        required: true
      compatible:
        description: Whether the node can run the VM's CPU.
        type: bool
        required: true
      reason:
        description: Why it can't, for the report.
        type: str
  check_return:
    description:
      - Whether a VM may only leave a node that could take it back, by O(cpu_matrix). Set it to V(false) to empty a node
        for good.
    type: bool
    default: true
  copy_storage:
    description:
      - Whether a VM may move whose disks are files of its node. Its moves then say so to M(drover.kvm.migrate)
        (O(drover.kvm.migrate#module:storage=copy)), which refuses them where there is no room for the files.
      - Otherwise, and where a disk can't be copied, it is a blocker.
    type: bool
    default: false
    version_added: "0.1.0"
  eject_cdrom:
    description:
      - Whether a VM may move that has a medium of its node in its drive. Its moves then say so to
        M(drover.kvm.migrate) (O(drover.kvm.migrate#module:eject_cdrom)), which ejects it.
      - Otherwise it is a blocker.
    type: bool
    default: false
    version_added: "0.1.0"
  make_room:
    description: Whether VMs of other nodes may move when a VM of an emptied node fits nowhere.
    type: bool
    default: true
  come_home:
    description:
      - With O(operation=rolling), whether the VMs of a node come back before the next is emptied. Default is V(true).
      - With V(false) each VM moves about once instead of twice, since the node that was just emptied takes most of the
        next one's; they end on other nodes than before. What was shut down for the turn of its node starts again.
      - With O(operation=undrain), V(false) only starts what was shut down there, and nobody moves.
    type: bool
    version_added: "0.1.0"
  only_fill:
    description: With O(operation=rolling), those of O(node) that an earlier run has emptied; their VMs only come home.
    type: list
    elements: str
    version_added: "0.1.0"
  weights:
    description:
      - With O(operation=rebalance), how much of the load each node shall carry, as numbers of any scale, such as 75 and
        25. V(0) is a node that shall carry nothing.
      - Every node that takes VMs must be named. Without it nodes carry by what they have, so that all are filled to the
        same percentage.
    type: dict
    version_added: "0.1.0"
  max_moves:
    description:
      - The most VMs that O(operation=rebalance) and the second half of O(operation=spread) move. Default is no limit.
    type: int
    version_added: "0.1.0"
  max_memory_moved:
    description:
      - Like O(max_moves), for the sum of the memory of the VMs that move, such as V(200GiB). Default is no limit.
    type: str
    version_added: "0.1.0"
  threshold:
    description:
      - With O(operation=rebalance) and O(operation=spread), nothing is moved to even out loads while no node is further
        from its aim than this, in percent of what VMs may take on it. Default is V(10).
      - When more is amiss, moves go on until half of it is reached, so that a small change does not start the next
        ones.
      - vCPUs per thread count on the same scale; a node with its fair share of both has the same number twice.
    type: float
    version_added: "0.1.0"
  hold_off:
    description:
      - With O(operation=rebalance) and O(operation=spread), VMs that run on their node for less than so many seconds
        stay there, so that none goes to and fro. A VM that was moved runs there since then. Default is V(0).
      - VMs that must be kept apart are taken apart all the same, and VMs go home all the same.
    type: int
    version_added: "0.1.0"
  require_n_minus_1:
    description:
      - Whether it is a blocker when after the plan the loss of a node could not be borne (RV(n_minus_1)).
      - Default is V(false). With O(operation=consolidate) only V(false) changes something, see there. With
        O(operation=place) it is asked where there is a new VM.
    type: bool
    version_added: "0.1.0"
  require_off:
    description:
      - With O(operation=drain) and O(operation=rolling), whether it is a blocker when a VM would be left running on a
        node that is emptied (RV(left)), as it is to be rebooted or switched off. Default is V(false).
    type: bool
    version_added: "0.1.0"
  bandwidth:
    description:
      - What the migration link of each node carries in a second, as measured or declared, such as V(1100MiB) for 10
        Gbit/s. From it come the minutes of the plan.
    type: str
    version_added: "0.1.0"
  saved:
    description:
      - An earlier result of this module that shall be carried out exactly. Its moves are returned if the facts are
        still those it was made from; else it is refused, naming the nodes that differ.
      - Not for O(operation=place) and O(operation=rolling).
    type: dict
    version_added: "0.1.0"
  memory_reserve:
    description:
      - Memory of each node that VMs must leave free, in bytes or as a size such as V(4GiB).
      - On nodes that also run Ceph OSDs, add what these take (4 GiB each is usual).
    type: str
    default: 2GiB
  memory_overhead:
    description: What a running VM takes besides its own memory (QEMU itself, video memory, page tables).
    type: str
    default: 128MiB
  fail_on_blockers:
    description:
      - Whether to fail when something hinders the operation. With V(false), the moves or places that are possible all
        the same are returned beside the blockers.
    type: bool
    default: true
seealso:
  - module: drover.kvm.node_info
  - module: drover.kvm.migrate
  - name: Migration of libvirt guests
    description: What a live migration needs, in libvirt's own words.
    link: https://libvirt.org/migration.html
"""

EXAMPLES = r"""
- name: Ask every node what it has
  drover.kvm.node_info:
  register: node_facts

- name: Plan what emptying hv1 takes
  drover.kvm.plan:
    operation: drain
    node: [hv1]
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    unreachable: "{{ groups['hypervisors'] | difference(ansible_play_hosts) }}"
    anti_affinity: [web, ldap]
  register: drain
  run_once: true

- name: Show it
  ansible.builtin.debug:
    msg: "{{ drain.text.splitlines() }}"
  run_once: true

- name: Plan where two VMs of hv1 can go, and leave the others there
  drover.kvm.plan:
    operation: drain
    node: [hv1]
    names: [web1, db1]
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
  run_once: true

- name: Carry out a plan, one stage after the other
  drover.kvm.migrate:
    moves: "{{ stage | selectattr('from', 'equalto', inventory_hostname) }}"
  loop: "{{ drain.stages }}"
  loop_control:
    loop_var: stage

- name: Bring the VMs of hv1 back
  drover.kvm.plan:
    operation: undrain
    node: [hv1]
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
  run_once: true

- name: Find nodes for two new VMs, although hv3 is broken and switched off
  drover.kvm.plan:
    operation: place
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    unreachable: [hv3]
    fenced: [hv3]
    vms:
      - name: ldap1
        memory: 4GiB
        vcpus: 2
        tags: [ldap]
        nics: [{bridge: br-core, vlan: 100}]
      - name: ldap2
        memory: 4GiB
        vcpus: 2
        tags: [ldap]
        nics: [{bridge: br-core, vlan: 100}]
    anti_affinity: [ldap]
    pins:
      ldap1: [hv1, hv2]
    avoid:
      ldap: [hv4] # a tag
    memory_reserve: 8GiB

- name: Is there a way to reboot all nodes, one after the other?
  drover.kvm.plan:
    operation: rolling
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    require_n_minus_1: false
    bandwidth: 1100MiB
  run_once: true

- name: Three quarters of the load in room A, one quarter in room B, with at most 200 GiB moved
  drover.kvm.plan:
    operation: rebalance
    weights: {a1: 75, b1: 25}
    max_memory_moved: 200GiB
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
  run_once: true

- name: Which nodes can be switched off over night?
  drover.kvm.plan:
    operation: consolidate
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
  register: night
  run_once: true

- name: Where is everything, and is all as the rules want it?
  drover.kvm.plan:
    operation: report
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    anti_affinity: [web, ldap]
    failure_domains: {hv1: room-a, hv2: room-a, hv3: room-b}
    fail_on_blockers: false
  run_once: true

- name: Do exactly what was planned and read this morning, or nothing
  drover.kvm.plan:
    operation: drain
    node: [hv1]
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    saved: "{{ lookup('ansible.builtin.file', 'drain-hv1.json') | from_json }}"
  run_once: true

- name: Collect what hinders a drain instead of failing
  drover.kvm.plan:
    operation: drain
    node: [hv1, hv2]
    nodes: "{{ ansible_play_hosts | map('extract', hostvars, 'node_facts') }}"
    fail_on_blockers: false
"""

RETURN = r"""
operation:
  description: What was planned.
  returned: always
  type: str
  sample: drain
memory_moved:
  description: The memory of the running VMs that move, in bytes.
  returned: always
  type: int
  sample: 12884901888
minutes:
  description:
    - How long the moves take at least over links of O(bandwidth), one stage after the other. VMs that write while they
      move send some of their memory again. Null without O(bandwidth).
  returned: always
  type: float
  sample: 2.0
enough:
  description:
    - When a drain is blocked, the smallest set of mends with which it could be done, in words. Found by planning again
      as if they were made; empty when a few are not enough.
  returned: always
  type: list
  elements: str
  sample: ["undrain hv3 (it is cordoned: disk swap)"]
emptied:
  description: The nodes that hold no VM after the plan.
  returned: for all operations but V(rolling)
  type: list
  elements: str
  sample: [hv1]
facts:
  description: A hash for each node with what is on it, and one for the rules; what O(saved) is compared by.
  returned: for all operations but V(rolling)
  type: dict
  sample: {hv1: 6b86b273ff34fce1}
cycle:
  description:
    - For O(operation=rolling) the steps in their order, each with C(node), C(operation) (V(drain) or V(undrain)) and
      all that a plan of its own has.
  returned: for V(rolling)
  type: list
  elements: dict
moves:
  description:
    - The moves in an order in which each is possible when its turn comes, as M(drover.kvm.migrate) takes them.
    - C(mode) is C(live), C(offline) for a VM that is off, or C(restart) for one that is shut down before, moves as
      C(offline), and is started after.
  returned: always
  type: list
  elements: dict
  sample: [{vm: web1, uuid: 0a1b2c3d-0000-4000-8000-000000000001, from: hv1, to: hv2, mode: live, memory: 4294967296}]
stages:
  description:
    - The same moves in groups. Moves of one group may run at the same time and in any order; a group must be done
      before the next begins, since that one needs the room it leaves.
  returned: always
  type: list
  elements: list
blockers:
  description: Everything that hinders the operation; an empty list when it can be done.
  returned: always
  type: list
  elements: dict
  contains:
    vm:
      description: The VM, or an empty text when it is about a node.
      type: str
    node:
      description: Where the VM is, or the node it is about.
      type: str
    reason:
      description:
        - A keyword. C(host_device), C(filesystem), C(local_disk), C(local_iso), C(state_file) (it is off, and its UEFI
          variables or TPM keys are not in libvirt's own folders), C(job), C(interrupted), C(state) and C(defined_twice)
          keep a VM where it is, whatever the destination.
        - C(memory), C(hugepages), C(cpu), C(cpu_return), C(machine_type), C(virt_type), C(firmware), C(bridge),
          C(vlan), C(lease), C(anti_affinity) and C(pinned) are why no node can take it; to mend one of those of a VM
          is enough.
        - C(on_maintenance) is a VM that is not to be moved, or would be left running, by its own word
          (O(drover.kvm.vm#module:on_maintenance)).
        - C(reserved_vlan) is a NIC of a VM that asks for a VLAN of the hosts.
        - C(n_minus_1) is a node whose loss could not be borne, see O(require_n_minus_1).
        - C(unknown_vm) is a name of O(names) that no node has.
        - C(node_unreachable), C(unknown_node), C(no_destination) and C(unknown_place) are about nodes.
      type: str
    text:
      description: The same in words, with names and numbers.
      type: str
    mend:
      description: What mends it.
      type: str
  sample:
    - vm: inst
      node: hv1
      reason: local_iso
      text: "inst has file:/root/d.iso of its node in drive sda"
      mend: "let it be ejected (eject_cdrom), or put the image on shared storage"
shutdowns:
  description:
    - The VMs that are shut down where they are until the node returns, with C(vm), C(uuid), C(node) and C(running),
      which is V(false) when an earlier run did it.
  returned: always
  type: list
  elements: dict
  sample: [{vm: gpu1, uuid: 0a1b2c3d-0000-4000-8000-000000000002, node: hv1, running: true}]
left:
  description: The VMs that are left on the node as they are, in the same way.
  returned: always
  type: list
  elements: dict
starts:
  description:
    - The VMs that were shut down for maintenance and start where they are, in the same way; of one that runs only the
      mark of that is left over.
  returned: always
  type: list
  elements: dict
placements:
  description: For O(operation=place), the node of each VM for which there is one, be it there already or new.
  returned: always
  type: dict
  sample: {ldap1: hv1, ldap2: hv2}
nodes:
  description: For each node that answered, its memory and VMs now and after the plan. Sizes in bytes.
  returned: always
  type: list
  elements: dict
  sample:
    - name: hv2
      memory: {total: 34359738368, usable: 32212254720, before: 8858370048, after: 13287555072}
      vcpus: {threads: 16, before: 6, after: 8}
      vms: {before: 2, after: 3}
guests:
  description:
    - For O(operation=report) where each VM is, its home, the nodes that could take it now, and by the keywords of
      RV(blockers) what ties it where there is none. Memory in bytes.
  returned: for V(report)
  type: list
  elements: dict
  sample:
    - name: web1
      node: hv2
      active: true
      memory: 4294967296
      home: hv1
      on_maintenance: migrate
      could_go_to: [hv1, hv3]
      tied: []
n_minus_1:
  description:
    - Whether after the plan the running VMs of any one node could be started on the others if it were lost. Memory,
      bridges, machine types and pins count for that, anti-affinity does not.
  returned: always
  type: bool
not_borne:
  description: The nodes whose loss could not be borne, with the VMs that would have no place.
  returned: always
  type: list
  elements: dict
  sample: [{node: hv2, vms: [db1]}]
notes:
  description: Nodes that were left out, and why; for a report also what rules name and nobody has.
  returned: always
  type: list
  elements: str
  sample: ["hv4 was left out: it is cordoned (disk swap)"]
text:
  description: The whole plan as a text that people read.
  returned: always
  type: str
refusal:
  description:
    - What hinders the operation, and what mends it, as a text; empty when it can be done.
    - With O(fail_on_blockers) it is the message of the failure. To show it alone, without the plan, set that to
      V(false) and fail with this text.
  returned: always
  type: str
error:
  description:
    - When it failed, the kind of failure. V(Refused) means blockers, V(Invalid) a wrong option, V(Failed) a plan that
      the checker did not accept (a fault of the planner, please report it).
  returned: on failure
  type: str
  sample: Refused
"""
