# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The day the network breaks, for what tests/lab has no time for: a cable that flaps, a VM that one node silences."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.test_network import NICS, NODE, ROLE, attached, guests_of, tap_of


def flap(cluster: Cluster, nic: str, seconds: float) -> None:
    """Pull a cable of the node and plug it in again, once a second."""
    begin = time.monotonic()
    for turn in range(round(2 * seconds)):
        change = cluster.lab.restore if turn % 2 else cluster.lab.cut
        assert change(NODE, nic), f"not exercised: the cable was {'whole' if turn % 2 else 'pulled'} already"
        time.sleep(max(0.0, begin + (turn + 1) / 2 - time.monotonic()))


def count(cluster: Cluster, *names: str) -> int:
    """The sum of the counters of a node's cables."""
    paths = [f"/sys/class/net/{nic}/{name}" for nic in NICS for name in names]
    return sum(int(word) for word in cluster.ssh(NODE, "cat", *paths).split())


@contextmanager
def rate(cluster: Cluster) -> Iterator[list[int]]:
    """Afterwards the list holds the frames a second that went over the node's cables, both ways."""
    names = ("statistics/rx_packets", "statistics/tx_packets")
    found: list[int] = []
    begin, before = time.monotonic(), count(cluster, *names)
    yield found
    found.append(round((count(cluster, *names) - before) / (time.monotonic() - begin)))


def test_guests_bear_a_cable_that_flaps(cluster: Cluster) -> None:
    names = guests_of(cluster)
    with Observer(cluster.lab) as watch:
        for name in names:
            watch.wait_word(name)
        with rate(cluster) as usual:
            time.sleep(4)
        begin, changes = time.monotonic(), count(cluster, "carrier_changes")
        try:
            with rate(cluster) as flapping:
                flap(cluster, "nic2", 10)
        finally:
            cluster.lab.restore(NODE, "nic2")
        changes = count(cluster, "carrier_changes") - changes
        assert changes >= 18, f"not exercised: {changes} changes of the carrier"
        # What a guest could not write it writes later; a loop would make tens of thousands.
        assert flapping[0] < 2 * usual[0] + 100, f"frames a second: {usual} before, then {flapping}"
        wait_until(lambda: attached(cluster), 35, "both members current and attached again")
        for name in names:
            watch.wait_word(name, after=time.monotonic(), seconds=10)
        gaps = {name: watch.longest_gap(name, begin) for name in names}
    assert max(gaps.values()) < 5, gaps
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    assert cluster.play("site", *ROLE).good().changed == 0
    print(f"a cable that flaps: {changes} changes of the carrier, {usual} and {flapping} frames/s, longest gaps {gaps}")


def test_a_vm_that_only_this_node_silences_is_moved_and_heard(cluster: Cluster) -> None:
    before, name = cluster.where(), guests_of(cluster)[0]
    tap = tap_of(cluster, name)
    # Re-plugging does not mend this: the tap is in its bridge as libvirt says. A new tap is up.
    asked: dict[str, Any] = {"node": NODE, "vms": name, "migrate": True, "drover_listen": 3}
    with Observer(cluster.lab) as watch:
        word = watch.wait_word(name)
        cluster.ssh(NODE, f"ip link set {tap} down")
        try:
            predicted = cluster.play("repair_network", "--check", **asked).good()
            assert predicted.changed == 0, predicted.output
            assert "it can not hear who would stay silent" in predicted.output, predicted.output
            assert re.search(rf"{name} +{NODE} -> hv[13]  live", predicted.output), predicted.output
            nowhere = cluster.play("repair_network", drover_pins={name: NODE}, **asked)
            words = f"{name} (on {NODE}) sent nothing for 3 s", f"{name} (224 MiB) has no place"
            nowhere.refused(*words, f"is not among the nodes it is pinned to ({NODE})")
            assert cluster.where() == before and watch.words(name)[-1]["time"] < time.monotonic() - 3
            moving = cluster.play("repair_network", bounce=True, **asked).good()
            assert f"{name} came to hv" in re.sub(r"\s+", " ", moving.output), moving.output
            again = watch.wait_word(name, after=time.monotonic(), seconds=10)
        finally:
            cluster.ssh(NODE, f"ip link set {tap} up", check=False)
        assert again["boot"] == word["boot"], f"{name} was rebooted"
        assert again["counter"] > word["counter"] and again["monotonic_ms"] > word["monotonic_ms"]
        moved = cluster.where()
        assert {vm for vm in before if moved[vm] != before[vm]} == {name}, moved
        cluster.play("undrain_node", node=NODE).good()
        assert cluster.where() == before
    verdict = watch.verdict()
    assert verdict.ok, str(verdict)
    assert [place for place, _begin, _end in verdict.guests[name].where] == [NODE, moved[name], NODE], str(verdict)
