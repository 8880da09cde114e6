# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Five acts on a VM with two qcow2 disks, each killed with SIGKILL in its middle and finished by the next run.

A snapshot with memory is made, gone back to and removed; an external one is made and merged (blockcommit); a backup is
made. After each the guest counts on from what it knew, and at the end of all QEMU finds nothing wrong with its disks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.vm import FOLDER, NODE, Fate, Vm, cut_off

NAME = "kill1"
ROOT = "/srv/backup-kills"
FILLED = 256  # MiB
# What libvirt keeps of a VM: its definition, what it does now, its snapshots.
SAYS = "grep -q {} /etc/libvirt/qemu/$vm.xml"
DOES = "grep -q {} /run/libvirt/qemu/$vm.xml"
KEEPS = "ls /var/lib/libvirt/qemu/snapshot/$vm/{}.xml"
HOLDS = f"ls {ROOT}/$vm/.*.part/{{}}"
# Three moments of each act, in their order.
MOMENTS = {
    "create": ("true", SAYS.format("made=.no."), DOES.format("state=.paused.")),
    "revert": (SAYS.format("state=.begun."), KEEPS.format("before-s1-*"), SAYS.format("state=.carried.")),
    "delete": ("true", f"! {KEEPS.format('s1')}", f"! {KEEPS.format('before-s1-*')}"),
    "blockcommit": ("true", DOES.format("active-commit"), f"! {KEEPS.format('e1')}"),
    "backup": (HOLDS.format("begun.json"), HOLDS.format("vda.copy"), HOLDS.format("vda.qcow2")),
}
# The module runs on only while nobody looks: on a busy machine a moment may be over before it is seen.
STEPWISE = "kill -STOP $pid; {} || ! {{ kill -CONT $pid; sleep 0.01; }}"
# Acts that a busy machine may look past even so, with what undoes them: a small VM is paused for a moment only.
SHORT = {"create": {"snapshot": "s1", "state": "absent"}}
TRIES = 3
Moment = Callable[[str], str]


@contextmanager
def victim(lab: Lab) -> Iterator[Vm]:
    """The VM, which counts, on a lab that needs no site; gone at the end with all that was made of it."""
    vm = Vm(Cluster(lab), NAME, {"vda": "qcow2", "vdb": "qcow2"})
    vm.site.ssh(NODE, f"rm -rf {ROOT}; install -d -m 0711 {ROOT}")
    try:
        yield vm.make()
    finally:
        vm.remove()
        vm.site.ssh(NODE, f"rm -rf {ROOT}")


def kill_each(vm: Vm, moment: Moment, number: int) -> dict[str, Fate]:
    """What became of each act when it was to be killed at the moment that `moment` names for it, a shell condition.

    `number` tells this round from others. Raises AssertionError where the next run does not finish it, or something is
    lost.
    """
    fates = {}
    for act, run in ACTS.items():

        def killed(options: dict[str, Any], act: str = act) -> dict[str, Any]:
            module = "backup" if act == "backup" else "snapshot"
            for _try in range(TRIES):
                fates[act] = cut_off(vm.site, NODE, vm.name, moment(act), module, **options)
                if fates[act].killed or act not in SHORT:
                    break
                vm.settled(module, **SHORT[act])
            return vm.settled(module, **options)

        run(vm, killed, number)
    vm.is_sound()
    return fates


def kill_at(vm: Vm, which: int) -> None:
    """Kill each act at the first, second or third of its moments (0 to 2); AssertionError also when one was missed."""
    fates = kill_each(vm, lambda act: STEPWISE.format(MOMENTS[act][which]), which)
    assert not [f"{act} was not exercised: {fate.output}" for act, fate in fates.items() if not fate.killed]


Killed = Callable[[dict[str, Any]], dict[str, Any]]


def create(vm: Vm, killed: Killed, _number: int) -> None:
    """It is whole, and the next run knows it for its own."""
    given = {"snapshot": "s1", "memory": True, "tags": ["story"]}
    (one,) = killed(given)["vms"][0]["snapshots"]
    assert one["tags"] == ["story"] and one["managed"] and one["memory"], one
    wait_until(lambda: "running" in vm.state(), 60, "the VM runs")


def revert(vm: Vm, killed: Killed, number: int) -> None:
    """It is set back once, to the very count that the snapshot holds; what it was before is in the safety snapshot."""
    held, last, said = vm.kept("s1"), vm.counts(), len(vm.said())
    act = f"A{number}"
    killed({"snapshot": "s1", "state": "reverted", "discard_changes_since": "s1", "id": act})
    assert vm.snapshots() == [f"before-s1-{act}", "s1"] and vm.kept(f"before-s1-{act}") >= last - 1
    wait_until(lambda: "running" in vm.state(), 60, "the VM runs")
    vm.counts()
    back = vm.returned(said - 1)
    assert len(back) == 1 and back[0] in (held, held + 1), (held, vm.said()[said - 1 :])


def delete(vm: Vm, killed: Killed, _number: int) -> None:
    """All snapshots are gone, and it counts on."""
    count = vm.counts()
    killed({"state": "retained", "keep": 0})
    assert vm.snapshots() == [] and vm.counts() > count


def blockcommit(vm: Vm, killed: Killed, _number: int) -> None:
    """What was written beside the first files is in them, and there is one file for each disk."""
    vm.good(snapshot="e1")
    vm.fill(FILLED)
    count = vm.counts()
    killed({"snapshot": "e1", "state": "absent"})
    assert vm.snapshots() == [] and vm.counts() > count
    assert [len(vm.chain(target)) for target in vm.disks] == [1, 1]
    vm.empty(FILLED)


def backup(vm: Vm, killed: Killed, _number: int) -> None:
    """The backup of the next run is whole, newer than what the guest knew, and nothing is left of the one before."""
    count = vm.counts()
    made = killed({"path": ROOT})["backup"]
    folder = made["folder"]
    assert made["good"], made
    look = f"cd {folder} && sha256sum --quiet -c SHA256SUMS && qemu-img convert -O raw vda.qcow2 {FOLDER}/look"
    vm.site.ssh(NODE, look, timeout=120)
    assert vm.counter("look") >= count - 1
    assert vm.site.ssh(NODE, f"cd {ROOT}/{vm.name}; ls -d .*.part 2>/dev/null || true") == ""
    # With QEMU's notes of what changes there is no way back to an internal snapshot.
    notes = vm.virsh("checkpoint-list", "--name").split()
    for note in notes:
        vm.virsh("checkpoint-delete", note)
    assert len(notes) <= 2, notes


ACTS: dict[str, Callable[[Vm, Killed, int], None]] = {
    "create": create,
    "revert": revert,
    "delete": delete,
    "blockcommit": blockcommit,
    "backup": backup,
}
