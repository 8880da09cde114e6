# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example with LACP pairs to the core and the SAN: storage stays on its VLAN, one cable of a pair may be lost.

Each story runs twice, with either target: what makes it LIO is one word in the inventory. LIO is in the kernel, so the
SAN is a full VM then.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import ROOT, Cluster, example_lab, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer

EXAMPLE = ROOT / "examples/san-lacp"
SAN = "san1"
CABLES = ("nic1", "nic2")
# The longest time without a written record of a guest, seconds: a link that is lost is seen at once, a silent one only
# when three of the partner's LACPDUs, one a second, are missing (IEEE 802.1AX, short timeout).
LONGEST = {"pulled": 1.0, "silent": 5.0}
BETWEEN_CUTS = 35
# The SAN of LIO is emulated: beside other labs a play that sets it up took longer than the stories' 600 s.
SITE_SECONDS = 1800


def on_lio(example: Path) -> None:
    """Change a copy of the example: another target, and a machine with a kernel of its own for it."""
    topology = example / "topology.json"
    machines = json.loads(topology.read_text(encoding="utf-8"))
    machines["nodes"][SAN].update({"kind": "vm", "memory": "1G"})
    topology.write_text(json.dumps(machines), encoding="utf-8")
    settings = example / "inventory/group_vars/san.yml"
    before = settings.read_text(encoding="utf-8")
    after = before.replace("san_target_backend: tgt", "san_target_backend: lio")
    assert after != before, before
    settings.write_text(after, encoding="utf-8")


@pytest.fixture(scope="module", params=["tgt", "lio"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The example on a lab of its own, its guests counting."""
    copy = tmp_path_factory.mktemp(request.param) / EXAMPLE.name
    shutil.copytree(EXAMPLE, copy)
    if request.param == "lio":
        on_lio(copy)
    with example_lab("drover-san", copy) as found:
        found.play_seconds = SITE_SECONDS
        found.play("site").good()
        found.write_images()
        found.play("build_vms").good()
        with Observer(found.lab) as watch:
            for name in found.sheets():
                watch.wait_word(name, seconds=240)
        yield found


def whole(example: Cluster) -> bool | str:
    """Whether both ends of the SAN's pair take both cables."""
    here = example.ssh(SAN, "ovs-appctl lacp/show bond1")
    there = example.lab.network.appctl("lacp/show", f"{SAN}-bond1")
    return all(said.count(": current attached") == 2 for said in (here, there)) or here + there


def test_a_second_run_changes_nothing(example: Cluster) -> None:
    assert example.play("site").good().changed == 0
    assert example.play("build_vms").good().changed == 0


def test_storage_is_in_its_vlan_and_nowhere_else(example: Cluster) -> None:
    seen = {}
    for nic in ("nic1", "nic2", "nic3", "nic4"):
        # Each guest writes ten times a second.
        words = f"timeout 3 tcpdump -c 2000 -nn -e -i {nic} 'ip or vlan' 2>/dev/null || true"
        seen[nic] = [line for line in example.ssh("hv1", words).splitlines() if ".3260" in line]
    assert not seen["nic1"] + seen["nic2"], "storage on the cables to the core"
    storage = seen["nic3"] + seen["nic4"]
    assert storage, "not exercised: no guest of hv1 wrote"
    assert all("vlan 5," in line for line in storage), storage


def test_a_guest_does_not_reach_the_san(example: Cluster) -> None:
    port, portal = "probe", example.lab.topology.networks["storage"].address(10)
    for tag in (100, 5):
        example.ssh("hv1", f"ovs-vsctl add-port br0 {port} tag={tag} -- set interface {port} type=internal")
        try:
            # In a namespace of its own, as a guest is, with an address of the storage network.
            inside = f"ip netns add probe && ip link set {port} netns probe && ip -n probe link set {port} up"
            example.ssh("hv1", f"{inside} && ip -n probe address add 10.231.5.99/24 dev {port}")
            said = example.ssh("hv1", f"ip netns exec probe ping -c 3 -i 0.3 -W 1 {portal}", check=False)
            assert "100% packet loss" in said, said
        finally:
            example.ssh("hv1", f"ip netns del probe; ovs-vsctl --if-exists del-port {port}", check=False)
    assert "0% packet loss" in example.ssh("hv1", f"ping -c 2 -i 0.2 -W 1 {portal}")


def test_one_cable_of_the_san_may_be_lost(example: Cluster) -> None:
    gaps: dict[str, list[float]] = {how: [] for how in LONGEST}
    with Observer(example.lab) as watch:
        names = list(example.sheets())
        for how in LONGEST:
            for nic in CABLES:
                wait_until(lambda: whole(example), BETWEEN_CUTS, "the pair with both cables")
                gaps[how].append(cut(example, watch, names, nic, how))
    for how, limit in LONGEST.items():
        assert max(gaps[how]) < limit, gaps
    # All that the guests write goes through these two cables: whichever carries it was cut once.
    assert max(gaps["silent"]) > 1, f"not exercised: {gaps}"
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    print(f"longest gaps between two writes: {gaps}")


def cut(example: Cluster, watch: Observer, names: list[str], nic: str, how: str) -> float:
    """Cut a cable of the SAN, wait for the guests and for the pair without it, mend it; the guests' longest gap."""
    for name in names:
        watch.wait_word(name)
    begin = time.monotonic()
    example.lab.cut(SAN, nic, silent=how == "silent")
    try:
        wait_until(lambda: attached(example) == 1 or attached(example), 15, "the pair with one cable")
        alone = time.monotonic()
        for name in names:
            watch.wait_word(name, after=alone, seconds=20)
    finally:
        example.lab.restore(SAN, nic)
    return max(watch.longest_gap(name, begin) for name in names)


def attached(example: Cluster) -> int:
    """The cables that the SAN's end of the pair uses."""
    return example.ssh(SAN, "ovs-appctl lacp/show bond1").count(": current attached")
