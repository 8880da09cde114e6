# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM is copied to a second SAN, and starts from there when the first SAN and its hypervisors are gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import IMAGES, SINK, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer, read_disk

VM, FIRST, SECOND, SAN = "replica1", ("hv1", "hv2"), "hv3", "san1"
RECORDS = "/var/lib/drover/replicas"
INVENTORY = f"""
vms:
  hosts:
    {VM}:
      vm_disks:
        - {{type: iscsi, size: 32MiB, source: {IMAGES}/{VM}.img}}
        - {{type: iscsi, size: 16MiB}}
hypervisors_backup:
  hosts:
    {SECOND}:
san_backup:
  hosts:
    {SECOND}:
  vars:
    san_target_storage_network: 10.231.5.0/24
    san_target_portals: ["10.231.5.13:3260"]
all:
  vars:
    drover_replica_portal: 10.231.5.13:3260
    drover_replica_iqn_prefix: iqn.2026-11.org.example
    drover_replica_user: drover
    drover_replica_secret: san1
    drover_replica_chap_secret: "{{{{ san_chap_secret }}}}"
"""


class Story:
    """The site with a second SAN, and a VM that counts."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        self.cluster, self.more = cluster, ["-i", str(path)]

    def play(self, playbook: str, *options: str, **variables: Any) -> Any:
        """Run a playbook for that VM."""
        return self.cluster.play(playbook, *self.more, *options, vms=VM, **variables)

    def records(self) -> dict[str, dict[str, Any]]:
        """What the second node knows of the VM's replicas, by slot."""
        folder = self.cluster.lab.machine(SECOND).path(RECORDS)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"{VM}.*.json")]
        return {record["slot"]: record for record in found}

    def counter(self, slot: str) -> int:
        """The guest's counter in a replica."""
        machine = self.cluster.lab.machine(SECOND)
        return read_disk(machine.path(f"/srv/drover/replica-{VM}-0-{slot}.img"))

    def domains(self) -> dict[str, str]:
        """Node → state, of the nodes of the VM that answer."""
        nodes = [*FIRST, SECOND]
        found = {node: self.cluster.domains(node) for node in nodes if self.cluster.lab.machine(node).leader()}
        return {node: states[VM] for node, states in found.items() if VM in states}


@pytest.fixture(scope="module")
def story(site: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The VM on the first SAN; at the end it and its replicas are gone, and all nodes are on."""
    path = tmp_path_factory.mktemp("replicas") / "replicas.yml"
    path.write_text(INVENTORY, encoding="utf-8")
    found = Story(site, path)
    guests = Guests(site.lab.base)
    guests.ensure()
    place = site.lab.machine(SAN).path(f"{IMAGES}/{VM}.img")
    place.parent.mkdir(parents=True, exist_ok=True)
    guests.write_image(place, {"name": VM, "ip": "10.231.100.42/24", "sink": SINK})
    site.play("site", *found.more, "--limit", SECOND).good()
    found.play("build_vms", drover_pins={VM: "hv1"}).good()
    try:
        yield found
    finally:
        for node in FIRST:
            site.lab.power_on(node)
            wait_until(lambda node=node: "Id" in site.ssh(node, "virsh", "list", check=False) or "no answer", 120, node)
            site.ssh(node, "virsh", "undefine", VM, check=False)
        site.ssh(SAN, "systemctl", "start", "tgt")
        site.task(SECOND, "vm", name=VM, state="absent", force=True)
        names = [f"replica-{VM}-{number}-{slot}" for number in (0, 1) for slot in "ab"]
        absent = {"state": "absent", "remove_data": True, "iqn_prefix": "iqn.2026-11.org.example"}
        site.task(SECOND, "iscsi_volume", volumes=[{"name": name, **absent} for name in names])
        site.task(SAN, "iscsi_volume", volumes=[{"name": f"drover-{VM}-{number}", **absent} for number in (0, 1)])
        site.ssh(SECOND, f"rm -f {RECORDS}/{VM}.*")


def test_a_vm_is_copied_by_turn_and_a_killed_run_leaves_a_whole_replica(story: Story) -> None:
    with Observer(story.cluster.lab) as watch:
        before = watch.wait_word(VM, seconds=240)["counter"]
        foretold = story.play("replicate_vms", "--check").good()
        assert f"{VM}: replica a" in foretold.output and not story.cluster.ssh(SECOND, f"ls {RECORDS} || true")
        story.play("replicate_vms").good()
        after = watch.wait_word(VM, after=time.monotonic())["counter"]
        first = story.records()["a"]
        assert first["whole"] and before <= story.counter("a") <= after
        mode = story.cluster.ssh(SECOND, f"stat -c %a {RECORDS}/{VM}.a.json").strip()
        assert mode == "600" and "ChapOfTheLab42" not in json.dumps(first)

        process = story.cluster.start("replicate_vms", *story.more, vms=VM, drover_bandwidth="1MiB")
        wait_until(lambda: not (seen := story.records()).get("b", {}).get("whole", True) or str(seen), 120, "a copy")
        time.sleep(3)
        story.cluster.kill(process)
        seen = story.records()
        assert seen["a"] == first and not seen["b"]["whole"], seen
        # The module of the killed run may be at work yet: it ends its copies, or the next run does.
        story.play("replicate_vms").good()
        assert story.records()["a"] == first and story.records()["b"]["whole"]
        assert story.counter("b") > story.counter("a")
        # Longer than the words of a moment: the guest was never away.
        assert watch.longest_gap(VM, 0) < 10
    assert story.domains() == {"hv1": "running"}


def test_the_vm_starts_from_its_replica_when_all_else_is_gone(story: Story) -> None:
    lab = story.cluster.lab
    with Observer(lab) as watch:
        lived = watch.wait_word(VM, seconds=60)["counter"]
        copied = story.counter("b")
        assert copied < lived
        story.cluster.ssh(SAN, "systemctl", "stop", "tgt", timeout=90)
        story.play("dr_restore").refused("is still on a node that answers")
        for node in FIRST:
            lab.power_off(node)
        story.play("dr_restore").refused("gave no answer", "drover_fenced")
        fenced = {"drover_fenced": list(FIRST)}
        foretold = story.play("dr_restore", "--check", **fenced).good()
        moment = story.records()["b"]["time"]
        assert f"{VM} starts on {SECOND} with data of {moment}" in foretold.output, foretold.output
        assert VM not in story.cluster.domains(SECOND)
        begin = time.monotonic()
        restored = story.play("dr_restore", **fenced).good()
        assert f"{VM} starts on {SECOND} with data of {moment}" in restored.output and restored.changed == 1
        word = watch.wait_word(VM, after=begin, seconds=240)
        words = [one["counter"] for one in watch.words(VM) if one["time"] > begin]
        # It goes on from the moment of the copy: what came later is lost, as was told.
        assert copied < min(words) <= word["counter"] and min(words) < lived, (copied, words[:3], lived)
        again = story.play("dr_restore", **fenced).good()
        assert again.changed == 0 and f"{VM} runs there already" in again.output
        # What the VM now runs from is not written over: there is the other one.
        story.play("replicate_vms", **fenced).good()
        assert story.records()["a"]["whole"] and story.records()["b"]["time"] == moment
        refused = story.play("replicate_vms", **fenced)
        assert refused.code != 0 and "so that can't be its replica" in refused.output, refused.output
        assert story.records()["a"]["whole"]
