# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All nodes are updated and rebooted one after the other while their VMs run; a run that stops is gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.tests.lab.cluster import PLAY_SECONDS, Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

NODES = ("hv1", "hv2", "hv3")
MARK = "/srv/updated"
FACT, CORDON = "/etc/ansible/facts.d/drover_rolling.fact", "/etc/ansible/facts.d/drover.fact"
PACKAGE, UPDATES, SOURCE = "drover-story", "/srv/updates", "/etc/apt/sources.list.d/story.list"
CONTROL = f"""Package: {PACKAGE}
Version: %s
Architecture: all
Maintainer: The drover.kvm contributors
Description: a package of a story
"""
# As the packages of kernels and of libc do it, on the nodes that the story chooses.
REBOOTS = "[ ! -e /srv/reboots ] || touch /run/reboot-required"


@pytest.fixture
def work(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Files of tasks: the update notes each boot and reboots, and fails on hv2 while the file `sick` is there."""
    log = tmp_path / "log"
    line = {"path": str(log), "create": True, "mode": "0600", "insertafter": "EOF"}
    sick = {
        "name": "Fail while told to",
        "ansible.builtin.assert": {"that": f"inventory_hostname != 'hv2' or '{tmp_path}/sick' is not file"},
    }
    note = {"name": "Be updated", "ansible.builtin.copy": {"content": "new\n", "dest": MARK, "mode": "0644"}}
    boot = {"name": "Reboot", "ansible.builtin.reboot": {"reboot_timeout": 240}}
    files = {"update": [sick, note, boot]}
    for when in ("before", "after"):
        say = {**line, "line": f"{when} {{{{ drover_turn }}}} {{{{ lookup('pipe', 'date +%s%N') }}}}"}
        files[when] = [{"name": "Tell", "ansible.builtin.lineinfile": say}]
    options = {}
    for name, tasks in files.items():
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump(tasks), encoding="utf-8")
        options[f"drover_{name}_tasks"] = str(path)
    # Three drains, reboots and returns in one run.
    cluster.play_seconds = 3 * PLAY_SECONDS
    yield options
    cluster.play_seconds = PLAY_SECONDS
    for node in NODES:
        cluster.ssh(node, "rm", "-f", MARK, FACT)


def told(tmp_path: Path) -> list[str]:
    """What the tasks of the controller said, without the time."""
    return [text.rpartition(" ")[0] for text in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]


def updated(cluster: Cluster) -> list[str]:
    """The nodes on which the update was done."""
    return [node for node in NODES if cluster.ssh(node, "cat", MARK, check=False)]


def test_a_node_that_is_not_healthy_is_named_before_the_first_move(cluster: Cluster, work: dict[str, Any]) -> None:
    before = cluster.where()
    cluster.ssh("hv3", "systemd-run", "--unit=sick", "--wait", "false", check=False)
    try:
        cluster.play("rolling_update", **work).refused("hv3 is not healthy: sick.service has failed")
    finally:
        cluster.ssh("hv3", "systemctl", "reset-failed", "sick")
    assert cluster.where() == before and not updated(cluster)


def test_where_no_package_is_to_be_upgraded_nothing_is_done(cluster: Cluster) -> None:
    before = cluster.where()
    played = cluster.play("rolling_update").good()
    assert played.changed == 0 and "Nothing to do." in played.output, played.output
    assert cluster.where() == before


def test_all_nodes_are_updated_and_a_run_that_stopped_is_gone_on_with(
    cluster: Cluster, work: dict[str, Any], tmp_path: Path
) -> None:
    before = cluster.where()
    (tmp_path / "sick").touch()
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        assert cluster.play("rolling_update", "--check", "--diff", **work).good().changed > 0
        assert cluster.where() == before and not updated(cluster)

        stopped = cluster.play("rolling_update", **work)
        assert stopped.code != 0 and "rolling_update stopped at hv2" in stopped.output, stopped.output
        assert updated(cluster) == ["hv1"]
        assert cluster.domains("hv2") == {} and sorted(cluster.where()) == sorted(before)
        assert told(tmp_path) == ["before hv1", "after hv1", "before hv2", "after hv2"]
        assert '"rolling_update"' in cluster.ssh("hv2", "cat", CORDON)

        (tmp_path / "sick").unlink()
        again = cluster.play("rolling_update", **work).good()
        assert "Done already by the run that this one goes on with." in again.output
        assert told(tmp_path)[4:] == ["before hv2", "after hv2", "before hv3", "after hv3"]
        assert updated(cluster) == list(NODES)
        assert cluster.where() == before
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print(f"{stopped.seconds:.0f} s until it stopped, {again.seconds:.0f} s to go on\n{again.output}")


def test_a_run_that_is_killed_as_the_vms_come_home_is_gone_on_with_there(
    cluster: Cluster, work: dict[str, Any], tmp_path: Path
) -> None:
    before = cluster.where()

    def coming() -> bool | str:
        """Whether the node is done, VMs may come, and the first one has not."""
        assert process.poll() is None, f"not exercised: {process.communicate()[0]}"
        # It reboots meanwhile, and is another machine then.
        fact, cordon = (cluster.lab.machine("hv1").path(path) for path in (FACT, CORDON))
        done = fact.exists() and '"filling"' in fact.read_text(encoding="utf-8")
        return (done and '"since"' not in cordon.read_text(encoding="utf-8")) or "not done yet"

    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        process = cluster.start("rolling_update", node="hv1", drover_bandwidth="4MiB", drover_parallel=1, **work)
        try:
            wait_until(coming, cluster.play_seconds, "the way home")
        finally:
            said = cluster.kill(process)
        assert "PLAY RECAP" not in said and cluster.where() != before, f"not exercised: {said}"
        cluster.ssh("hv1", "rm", MARK)
        # A move that had begun goes on by itself, and what check mode says depends on it.
        cluster.play("recover_migrations").good()

        foretold = cluster.play("rolling_update", "--check", "--diff", node="hv1", **work).good()
        assert "Done but for the way home of its VMs, which is next: hv1" in foretold.output, foretold.output
        again = cluster.play("rolling_update", node="hv1", **work).good()
        assert "Done but for the way home of its VMs, which is next: hv1" in again.output, again.output
        assert cluster.where() == before and not updated(cluster)
        assert not cluster.ssh("hv1", "cat", FACT, check=False)
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)


def test_undrain_node_ends_what_a_run_left_that_nobody_goes_on_with(cluster: Cluster) -> None:
    record = {"work": "packages", "done": 0, "filling": 1_700_000_000, "had": {"bridges": [{"name": "br9"}]}}
    fact = cluster.lab.machine("hv1").path(FACT)
    fact.parent.mkdir(parents=True, exist_ok=True)
    fact.write_text(json.dumps(record), encoding="utf-8")
    try:
        told = cluster.play("rolling_update", "--check", node="hv1").good().output
        assert "way home of its VMs, which is next: hv1" in told, told
        cluster.play("undrain_node", node="hv1").good()
        assert json.loads(fact.read_text(encoding="utf-8")) == {"work": "packages", "done": record["filling"]}
    finally:
        fact.unlink()


class Repository:
    """Packages that each node has in a folder of its own, as a source of apt."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def offer(self, version: str, after: str) -> None:
        """A version of the package, with what it does after it was unpacked; the only one on all nodes from now on."""
        shutil.rmtree(self.folder, ignore_errors=True)
        made, served = self.folder / "package", self.folder / "served"
        (made / "DEBIAN").mkdir(parents=True)
        served.mkdir()
        (made / "DEBIAN/control").write_text(CONTROL % version, encoding="ascii")
        (made / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{after}\n", encoding="ascii")
        (made / "DEBIAN/postinst").chmod(0o755)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(made), str(served)], check=True)
        index = ["apt-ftparchive", "packages", "."]
        packages = subprocess.run(index, cwd=served, stdout=subprocess.PIPE, text=True, check=True).stdout
        (served / "Packages").write_text(packages, encoding="ascii")
        for node in NODES:
            machine = self.cluster.lab.machine(node)
            place, source = machine.path(UPDATES), machine.path(SOURCE)
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(served, place)
            place.chmod(0o755)
            source.parent.mkdir(exist_ok=True)
            source.write_text(f"deb [trusted=yes] file:{UPDATES} ./\n", encoding="ascii")

    def versions(self) -> list[str]:
        """What each node has, and whether it is whole."""
        query = ["dpkg-query", "-W", "-f", "'${Version} ${db:Status-Status}'", PACKAGE]
        return [self.cluster.ssh(node, *query) for node in NODES]

    def remove(self) -> None:
        """Nothing of it stays on the nodes."""
        for node in NODES:
            self.cluster.ssh(node, "dpkg", "--purge", "--force-all", PACKAGE, check=False)
            self.cluster.ssh(node, "rm", "-rf", UPDATES, SOURCE, FACT, "/srv/reboots", "/run/reboot-required")
            self.cluster.ssh(node, "apt-get", "-q", "update")


@pytest.fixture
def packages(cluster: Cluster, tmp_path: Path) -> Iterator[Repository]:
    """The nodes have version 1 of a package; nothing of it is left at the end."""
    found = Repository(cluster, tmp_path / "repository")
    cluster.play_seconds = 3 * PLAY_SECONDS
    try:
        found.offer("1", "true")
        for node in NODES:
            cluster.ssh(node, f"apt-get -q update && apt-get -q -y install {PACKAGE}")
        yield found
    finally:
        found.remove()
        cluster.play_seconds = PLAY_SECONDS


def test_packages_are_upgraded_and_only_a_node_whose_package_asks_for_it_reboots(
    cluster: Cluster, packages: Repository
) -> None:
    before, leaders = cluster.where(), [cluster.lab.machine(node).leader() for node in NODES]
    packages.offer("2", REBOOTS)
    cluster.ssh("hv2", "touch", "/srv/reboots")
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        foretold = cluster.play("rolling_update", "--check", "--diff").good()
        assert foretold.changed > 0 and cluster.where() == before and packages.versions() == ["1 installed"] * 3
        done = cluster.play("rolling_update").good()
        assert packages.versions() == ["2 installed"] * 3
        rebooted = [cluster.lab.machine(node).leader() != leader for node, leader in zip(NODES, leaders)]
        assert rebooted == [False, True, False]
        assert cluster.where() == before
        again = cluster.play("rolling_update").good()
        assert again.changed == 0 and "Nothing to do." in again.output, again.output
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print(f"three nodes, one of them rebooted: {done.seconds:.0f} s")


def test_packages_that_fail_stop_the_run_and_mended_ones_let_it_go_on(cluster: Cluster, packages: Repository) -> None:
    before = cluster.where()
    packages.offer("2", "exit 1")
    with Observer(cluster.lab) as watch:
        for name in before:
            watch.wait_word(name)
        stopped = cluster.play("rolling_update")
        assert stopped.code != 0 and "rolling_update stopped at hv1" in stopped.output, stopped.output
        assert cluster.domains("hv1") == {} and sorted(cluster.where()) == sorted(before)
        assert [version.split()[0] for version in packages.versions()] == ["2", "1", "1"]
        packages.offer("3", "true")
        cluster.play("rolling_update").good()
        assert packages.versions() == ["3 installed"] * 3
        assert cluster.where() == before
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
