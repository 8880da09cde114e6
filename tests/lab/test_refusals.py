# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input: each is a clear error that names the thing and the mend; nothing is changed, no traceback."""

from __future__ import annotations

import subprocess
import time

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, program


@pytest.fixture(autouse=True)
def nothing_moves(cluster: Cluster):
    """What is refused changes nothing."""
    before = cluster.where()
    yield
    assert cluster.where() == before


def test_unknown_vm(cluster: Cluster) -> None:
    cluster.play("build_vms", vms="web1,nosuch").refused("No VM of group vms is named nosuch", "web1")


def test_unknown_node(cluster: Cluster) -> None:
    cluster.play("drain_node", node="hv9").refused("hv9 is not in group hypervisors", "hv1, hv2, hv3")


def test_a_limit_without_a_hypervisor(cluster: Cluster) -> None:
    cluster.play("build_vms", "--limit", "web1").refused("holds no hypervisor", "-e vms=web1")


def test_a_drain_when_the_rest_has_no_memory(cluster: Cluster) -> None:
    cluster.play("drain_node", node="hv1", drover_memory_reserve="1TiB").refused("memory", "hv1")


@pytest.mark.parametrize(
    "variables,words",
    [
        ({"vm_nics": [{"bridge": "br0", "vlan": 4095}]}, ["4095", "1 to 4094"]),
        ({"vm_nics": [{"bridge": "br0", "mac": "52:54:00:zz:00:01"}]}, ["52:54:00:zz:00:01", "MAC"]),
        (
            {"vm_nics": [{"bridge": "br0", "addresses": ["10.231.100.77/24"], "gateway": "10.231.7.1"}]},
            ["gateway 10.231.7.1 is outside of 10.231.100.0/24", "10.231.100.77 is given to vm_nics[0] of", "of web1"],
        ),
        ({"vm_memory": "4GB"}, ["4GB", "4GiB"]),
        ({"vm_memroy": "4GiB"}, ["vm_memroy", "vm_memory"]),
    ],
)
def test_a_sheet_with_a_fault(cluster: Cluster, variables, words) -> None:
    cluster.play("build_vms", vms="web1", **variables).refused(*words)


@pytest.mark.parametrize("name", ["../x", "{{ 7*7 }}", "-rf", "a b"])
def test_a_name_that_is_none(cluster: Cluster, name: str, tmp_path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: hv1\n  gather_facts: false\n  tasks:\n    - name: Build it\n      drover.kvm.vm:\n"
        "        name: !unsafe '" + name + "'\n        memory: 96MiB\n        vcpus: 1\n"
    )
    cluster.play(str(play)).refused(name, "not a valid name")


def test_a_kernel_that_is_not_the_nodes_own(cluster: Cluster) -> None:
    refused = cluster.task("hv1", "ksm", run=1)
    assert refused["failed"] and "this is a container (systemd-nspawn): KSM is its host's" in refused["msg"], refused
    assert not cluster.task("hv1", "ksm", state="absent")["changed"]


def test_a_volume_in_use_is_not_removed(cluster: Cluster, tmp_path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: san1\n  gather_facts: false\n  tasks:\n    - name: Remove it\n      drover.kvm.iscsi_volume:\n"
        "        name: drover-web1-0\n        iqn: iqn.2026-11.org.example:drover-web1-0\n        state: absent\n"
    )
    cluster.play(str(play)).refused("drover-web1-0", "session")


def test_a_frozen_libvirtd_costs_ten_seconds_at_most(cluster: Cluster) -> None:
    config = cluster.lab.state / "nodes.drover.yml"
    wrapper = cluster.lab.state / "bin/ssh"
    lines = ["plugin: drover.kvm.libvirt", "hypervisors:"]
    for node in ("hv1", "hv2", "hv3"):
        lines += [f"  {node}:", f"    uri: qemu+ssh://root@{node}/system?command={wrapper}"]
    config.write_text("\n".join(lines) + "\n")
    cluster.lab.freeze("hv2", "libvirtd")
    try:
        begin = time.monotonic()
        done = subprocess.run(
            [*program("ansible-inventory"), "-i", str(config), "--graph"],
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        took = time.monotonic() - begin
        # Who says that it is off is not believed: its VMs would run twice.
        cluster.play("build_vms", drover_fenced=["hv2"]).refused("hv2 is in drover_fenced, but it is on", "libvirt")
    finally:
        cluster.lab.thaw("hv2", "libvirtd")
    assert done.returncode == 0, done.stderr
    assert took < 30, f"{took:.1f} s with the start of Ansible"
    assert "drover_unreachable" in done.stdout and "hv2" in done.stdout.split("drover_unreachable")[1], done.stdout
    assert "hv2" in done.stderr, done.stderr
