# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks that look at a site: which consoles answer, and which CPU all nodes can give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.roles.lab.files.drover_lab.guest import Guests
from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, Played

NODES = ("hv1", "hv2", "hv3")
# The lab's guests have a shell on their console, and nothing to log in at; a machine of firmware alone says nothing.
PROMPT, MUTE = {"drover_console_expect": "# $"}, "mute1"
TALKERS = {"talk1": "hv1", "talk2": "hv2"}
DISK = "/var/lib/libvirt/images/{}.raw"
SHEET: dict[str, Any] = {"memory": "24MiB", "vcpus": 1}


class Consoles:
    """Two guests with a shell on their console, which an inventory of their own knows, and playbook console_check."""

    def __init__(self, site: Cluster, folder: Path) -> None:
        self.site, self.inventory = site, folder / "talkers.yml"
        groups = {"vms": {"children": {"talkers": {"hosts": dict.fromkeys(TALKERS)}}}}
        self.inventory.write_text(yaml.safe_dump(groups), encoding="utf-8")

    def check(self, *options: str, **variables: Any) -> Played:
        return self.site.play("console_check", "-i", str(self.inventory), *options, **{**PROMPT, **variables})

    def begin(self) -> None:
        guests = Guests(self.site.lab.base)
        guests.ensure()
        for name, node in TALKERS.items():
            guests.write_image(self.site.lab.machine(node).path(DISK.format(name)), {"name": name})
            disk = {"type": "file", "target": "vda", "format": "raw", "path": DISK.format(name)}
            made = self.site.task(node, "vm", name=name, state="running", memory="128MiB", vcpus=1, disks=[disk])
            assert not made["failed"], made
        for name, node in TALKERS.items():
            # A machine that boots answers when it has booted.
            seen = self.site.task(node, "console_info", names=[name], expect="# $", timeout=240)
            assert seen["consoles"][0]["ok"], seen

    def end(self) -> None:
        for name, node in TALKERS.items():
            gone = self.site.task(node, "vm", name=name, state="absent", force=True)
            self.site.ssh(node, "rm", "-f", DISK.format(name))
            assert not gone["failed"], gone


@pytest.fixture(scope="module")
def consoles(site: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consoles]:
    found = Consoles(site, tmp_path_factory.mktemp("inventory"))
    try:
        found.begin()
        yield found
    finally:
        found.end()


@pytest.fixture
def mute(site: Cluster) -> Iterator[str]:
    """A VM on hv2 whose console is silent; gone at the end."""
    made = site.task("hv2", "vm", name=MUTE, state="running", **SHEET)
    assert not made["failed"], made
    yield MUTE
    gone = site.task("hv2", "vm", name=MUTE, state="absent", force=True)
    assert not gone["failed"] and MUTE not in site.domains("hv2"), gone


def test_all_consoles_answer(consoles: Consoles) -> None:
    good = consoles.check(vms="talkers").good()
    assert good.changed == 0
    for name in TALKERS:
        assert f"{name} answers on its console" in good.output, good.output
    some = consoles.check(vms="talk2").good()
    assert "talk2 answers" in some.output and "talk1 answers" not in some.output, some.output


def test_a_silent_console_is_named(consoles: Consoles, mute: str) -> None:
    bad = consoles.check("--limit", "hv2", drover_console_timeout=8)
    bad.refused(f"{mute} does not answer on its console within 8 s")
    # What the inventory does not know is no part of a pattern, so the rest is good.
    consoles.check("--limit", "hv2", vms="talk2").good()


def test_a_check_that_looked_at_nothing_fails(consoles: Consoles) -> None:
    consoles.check(vms="tlak1").refused("No VM of group vms is named tlak1")
    consoles.check("--limit", "hv3", vms="talkers").refused("Not running on hv3: talk1, talk2")


def test_a_node_on_which_nothing_runs_has_no_consoles(consoles: Consoles) -> None:
    node = TALKERS["talk1"]
    names = [name for name, home in consoles.site.where().items() if home == node]
    assert "talk1" in names
    try:
        for name in names:
            consoles.site.ssh(node, "virsh", "suspend", name)
        consoles.check("--limit", node).refused(f"No VM runs on {node}, so no console was looked at")
    finally:
        for name in names:
            consoles.site.ssh(node, "virsh", "resume", name)


def test_the_cpu_that_all_nodes_have(site: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "cpu.yml"
    checked = site.play("cpu_baseline", "--check", file=str(place)).good()
    assert not place.exists() and checked.changed == 1, checked.output
    written = site.play("cpu_baseline", file=str(place)).good()
    assert written.changed == 1 and site.play("cpu_baseline", file=str(place)).good().changed == 0
    said = yaml.safe_load(place.read_text(encoding="utf-8"))
    assert set(said) == {"vm_cpu", "vm_cpu_features"} and said["vm_cpu"], said
    sheet = {**SHEET, "name": "same1", "cpu": said["vm_cpu"], "cpu_features": said["vm_cpu_features"]}
    try:
        for node in NODES:
            made = site.task(node, "vm", state="running", **sheet)
            assert not made["failed"] and site.domains(node)["same1"] == "running", made
            assert not site.task(node, "vm", state="running", **sheet)["changed"]
            assert not site.task(node, "vm", name="same1", state="absent", force=True)["failed"]
    finally:
        for node in NODES:
            site.task(node, "vm", name="same1", state="absent", force=True)


def test_a_part_of_the_cluster_gets_no_cpu(site: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "cpu.yml"
    refused = site.play("cpu_baseline", "--limit", "hv1", file=str(place))
    refused.refused("hv2, hv3 gave no answer (hv2: outside of the limit")
    assert not place.exists()
