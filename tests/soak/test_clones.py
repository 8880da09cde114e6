# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that counts on its disk is cloned as it counts; a clone that is killed half way; the clone counts on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Record, parse_record
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.soak.counting import build_guest

NODE, NAME, SECOND = "hv1", "first1", "second1"
FOLDER = "/var/lib/libvirt/images"
DISK = f"{FOLDER}/drover-{NAME}-0.qcow2"
SCRATCH, OWN = f"{FOLDER}/.drover-clone-{SECOND}", f"{FOLDER}/drover-{SECOND}-0.qcow2"


class Cloned:
    """The VM that is cloned, on its node."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def ssh(self, command: str) -> str:
        return self.cluster.ssh(NODE, command, timeout=120).strip()

    def record(self, path: str = DISK) -> Record:
        """What a guest wrote last on its disk."""
        said = self.ssh(f"qemu-io -r -U -f qcow2 -c 'read -v 8192 128' {path}").splitlines()
        found = parse_record(bytes.fromhex("".join(line.split("  ")[1] for line in said if line.startswith("0000"))))
        assert found is not None, said
        return found

    def goes_on(self, path: str = DISK) -> None:
        """The guest counts, by its disk."""
        before = self.record(path)
        wait_until(lambda: self.record(path).counter > before.counter or before, 120, "the guest goes on counting")

    def images(self) -> list[str]:
        """The chain of its disk, as libvirt and as QEMU's tool see it."""
        seen = json.loads(self.ssh(f"qemu-img info -U --backing-chain --output=json {DISK}"))
        return [self.ssh(f"virsh -q domblklist {NAME}").split()[-1], *(one["filename"] for one in seen)]

    def remove(self, name: str) -> None:
        gone = self.cluster.task(NODE, "vm", name=name, state="absent", force=True, remove_disks=True)
        assert not gone["failed"], gone


@pytest.fixture(scope="module")
def cloned(site: Cluster) -> Iterator[Cloned]:
    found = Cloned(site)
    build_guest(site, NODE, NAME, "10.231.100.45/24", DISK)
    wait_until(lambda: counting(found), 240, "the guest counts")
    yield found
    found.remove(NAME)
    found.ssh(f"rm -f {DISK}")
    assert [one for one in found.ssh(f"ls -A {FOLDER}").split() if "first1" in one or "second1" in one] == []


def counting(cloned: Cloned) -> Any:
    """True once the guest has written its first word."""
    try:
        return cloned.record().counter > 0
    except AssertionError as error:
        return str(error)


def test_a_running_guest_is_cloned_and_its_clone_counts_on(cloned: Cloned) -> None:
    variables: dict[str, Any] = {"vm": NAME, "new_name": SECOND, "nics": "none", "quiesce": "required"}
    checked = cloned.cluster.play("clone_vm", "--check", **variables).good()
    assert checked.changed == 1 and cloned.ssh(f"ls -A {FOLDER}").count(SECOND) == 0
    before = cloned.record()
    assert cloned.cluster.play("clone_vm", **variables).good().changed == 1
    assert cloned.cluster.play("clone_vm", **variables).good().changed == 0
    cloned.goes_on()
    assert cloned.images() == [DISK, DISK] and cloned.ssh(f"virsh checkpoint-list --name {NAME}") == ""
    same = cloned.record(OWN)
    assert same.boot_id == before.boot_id and before.counter <= same.counter <= cloned.record().counter
    started = cloned.cluster.task(NODE, "vm", name=SECOND, state="running")
    assert not started["failed"], started
    wait_until(lambda: cloned.record(OWN).boot_id != same.boot_id or same, 240, "the clone boots")
    cloned.goes_on(OWN)
    cloned.goes_on()
    # It is a VM like any other, with disks of its own that go with it.
    cloned.remove(SECOND)
    assert cloned.ssh(f"ls -A {FOLDER}").count(SECOND) == 0


def killed_as(cloned: Cloned, what: str) -> None:
    """kill -9 of the module when such a file is there."""
    place, scratch = cloned.cluster.lab.machine(NODE).path(FOLDER), f"{SCRATCH}/{NAME}"
    end = time.monotonic() + 120
    while not list(place.glob(what)):
        assert time.monotonic() < end, f"no {what} within 120 s"
        time.sleep(0.005)
    killed = [process for process in Path("/proc").glob("[0-9]*") if holds(process, scratch)]
    for process in killed:
        os.kill(int(process.name), signal.SIGKILL)
    assert len(killed) == 1, killed


def holds(process: Path, folder: str) -> bool:
    """Whether it is the module: it has the folder open, as its lock."""
    with suppress(OSError):
        return any(os.readlink(one) == folder for one in (process / "fd").iterdir())
    return False


def test_a_clone_that_is_killed_leaves_its_source_as_it_was(cloned: Cloned) -> None:
    options: dict[str, Any] = {"source": NAME, "name": SECOND}
    running = threading.Thread(
        target=cloned.cluster.task, args=(NODE, "clone"), kwargs={**options, "bandwidth": "2MiB"}
    )
    running.start()
    killed_as(cloned, f".drover-clone-{SECOND}/{NAME}/.*.part/vda.copy")
    running.join(120)
    assert cloned.ssh(f"ls -A {SCRATCH}/{NAME}").startswith(".") and SECOND not in cloned.cluster.domains(NODE)
    cloned.goes_on()
    again = cloned.cluster.task(NODE, "clone", **options)
    assert not again["failed"] and again["actions"][0].startswith(f"clear {SCRATCH}"), again
    assert not cloned.cluster.task(NODE, "clone", **options)["changed"]
    assert cloned.images() == [DISK, DISK] and cloned.record(OWN).name == NAME
    assert cloned.ssh(f"virsh domjobinfo {NAME}").split() == ["Job", "type:", "None"]
    cloned.goes_on()
    cloned.remove(SECOND)
