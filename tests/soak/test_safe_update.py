# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook safe_update: what went well stays, what failed or fell silent is set back, and the failure is reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.lab import Lab
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played
from ansible_collections.drover.kvm.tests.lab.vm import NODE, Vm

NAME = "safe1"
ASK = f"virsh -q qemu-monitor-command {NAME} --hmp 'qemu-io -d /machine/peripheral/virtio-disk1/virtio-backend"
WRITE = f"{ASK} \"write -P 7 64M 1M\"'; {ASK} flush'"
UPDATE = [{"name": "Update", "ansible.builtin.shell": WRITE, "delegate_to": NODE}]
# How the guest is after the update.
HEALTH: dict[str, dict[str, Any]] = {
    "well": {"ansible.builtin.assert": {"that": "inventory_hostname == 'safe1'"}},
    "ill": {"ansible.builtin.fail": {"msg": "the service is down"}},
    "silent": {"ansible.builtin.ping": {}},
}


@pytest.fixture
def vm(lab: Lab) -> Iterator[Vm]:
    """A guest that counts, and whose second disk the update changes."""
    found = Vm(Cluster(lab), NAME, {"vda": "qcow2", "vdb": "qcow2"}).make()
    yield found
    found.remove()


def update(vm: Vm, health: str, *options: str, **variables: Any) -> Played:
    """Run the playbook with a health check of this kind; nothing listens at the guest's address."""
    state = vm.site.lab.state
    files = {
        "safe-hosts.json": {"vms": {"hosts": {NAME: {"ansible_host": "127.0.0.1", "ansible_port": 1}}}},
        "safe-update.json": UPDATE,
        "safe-health.json": [{"name": "See whether it is well", **HEALTH[health]}],
    }
    for name, content in files.items():
        (state / name).write_text(json.dumps(content), encoding="utf-8")
    own = {"drover_update_tasks": state / "safe-update.json", "drover_verify_tasks": state / "safe-health.json"}
    given = {"vms": NAME, **{key: str(path) for key, path in own.items()}, **variables}
    return vm.site.play("safe_update", "-i", str(state / "safe-hosts.json"), *options, **given)


def is_updated(vm: Vm) -> bool:
    """Whether the second disk has what the update writes."""
    path = vm.chain("vdb")[0]
    asked = vm.site.ssh(NODE, f"qemu-io -r -U -f qcow2 -c 'read -P 7 64M 1M' {path}", check=False)
    return "verification failed" not in asked


def test_what_went_well_stays_and_its_snapshot_goes_later(vm: Vm) -> None:
    assert not is_updated(vm)
    update(vm, "well", "--check").good()
    assert vm.snapshots() == []
    update(vm, "well").good()
    (kept,) = vm.snapshots()
    assert is_updated(vm) and kept.startswith("safe-update-")
    count = vm.counts()
    # The next one, which finds that the time of the first is over.
    update(vm, "well", drover_grace="0").good()
    (newer,) = vm.snapshots()
    assert newer != kept and is_updated(vm) and vm.counts() > count
    vm.is_sound()


@pytest.mark.parametrize("health", ["ill", "silent"])
def test_what_went_wrong_is_set_back_and_reported(vm: Vm, health: str) -> None:
    done = update(vm, health)
    assert done.code != 0 and f"{NAME} was set back to safe-update-" in " ".join(done.output.split()), done.output
    assert not is_updated(vm)
    safety, kept = vm.snapshots()
    assert safety.startswith(f"before-{kept}-")
    vm.counts()
    vm.site.play("safe_update", "-i", str(vm.site.lab.state / "safe-hosts.json"), vms=NAME, drover_grace="0").good()
    assert vm.snapshots() == []
    assert len(vm.chain("vdb")) == 1 and not is_updated(vm)
    vm.is_sound()
