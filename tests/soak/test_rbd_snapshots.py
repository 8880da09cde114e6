# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module snapshot on a real Ceph, with a guest that counts as the witness: what it wrote is never lost.

The guest writes its counter to its image before it says it. A snapshot holds one value; after the way back the guest's
first word is the next one. The VM has a second image, so that it stands still when snapshots are made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.observer import Observer
from ansible_collections.drover.kvm.tests.lab.vm import kill_in
from ansible_collections.drover.kvm.tests.soak.test_ceph import number, on_disk, the_site, watchers

__all__ = ["the_site"]
NAME = "web1"
FIRST = {"type": "rbd", "pool": "vms", "size": "40MiB"}
SECOND = {"type": "rbd", "pool": "vms", "size": "64MiB"}
# A snapshot of two images takes well below a second; Ceph, two hypervisors and their guests are on few cores here.
LONGEST_PAUSE = 5.0
# The timer that lets it go on is there before it is paused.
PAUSING = "ls /run/systemd/transient/drover-resume-*.timer"
ROLLING = "virsh dumpxml --inactive $vm | grep -q state=.rolling."


class Vm:
    """The VM, wherever it runs."""

    def __init__(self, quorum: Cluster) -> None:
        self.site = quorum

    @property
    def node(self) -> str:
        """Where it is defined."""
        return next(node for node in ("hv1", "hv2") if NAME in self.site.domains(node))

    def task(self, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module where it is."""
        return self.site.task(self.node, "snapshot", check, name=NAME, **options)

    def good(self, **options: Any) -> dict[str, Any]:
        """The same; AssertionError when it failed."""
        result = self.task(**options)
        assert not result["failed"], result
        return result

    def same_twice(self, **options: Any) -> dict[str, Any]:
        """What check mode foretells happens, and a second run does nothing."""
        foretold, real, again = self.task(check=True, **options), self.good(**options), self.good(**options)
        assert foretold["actions"] == real["actions"] and real["changed"], (foretold, real)
        assert not again["changed"] and again["actions"] == []
        return real

    def snapshots(self, image: int = 0) -> list[str]:
        """Those of an image, as Ceph's administrator sees them."""
        found = json.loads(self.site.ssh("q1", f"rbd snap ls --format json vms/drover-{NAME}-{image}"))
        return sorted(one["name"] for one in found)

    def set_state(self, state: str) -> None:
        """Let it run, or cut its power."""
        done = self.site.task(self.node, "vm", name=NAME, state=state, force=state == "stopped")
        assert not done["failed"], done


@pytest.fixture(scope="module")
def vm(quorum: Cluster) -> Iterator[Vm]:
    """The VM with a second image."""
    found = Vm(quorum)
    assert not quorum.task(found.node, "vm", name=NAME, disks=[FIRST, SECOND])["failed"]
    yield found
    found.good(state="retained", keep=0)
    quorum.ssh("q1", f"rbd snap rm vms/drover-{NAME}-1@theirs", check=False)
    assert not quorum.task(found.node, "vm", name=NAME, disks=[FIRST])["failed"]
    quorum.ssh("q1", f"rbd rm vms/drover-{NAME}-1")


def first_word(watch: Observer, boot: str) -> int:
    """The counter with which the guest went on after it had another boot id."""
    start = max(at for at, word in enumerate(watch.words(NAME)) if word["boot"] == boot)
    wait_until(lambda: watch.words(NAME)[-1]["boot"] != boot, 120, f"{NAME} boots and counts")
    return int(watch.words(NAME)[start + 1]["counter"])


def test_a_revert_brings_the_counter_back(quorum, vm):
    with Observer(quorum.lab) as watch:
        watch.wait_word(NAME)
        begin = time.monotonic()
        made = vm.same_twice(snapshot="s1", description="before all", tags=["story"])
        watch.wait_word(NAME, after=time.monotonic())
        pause = watch.longest_gap(NAME, begin)
        (one,) = made["vms"][0]["snapshots"]
        assert (one["kind"], one["complete"], one["managed"]) == ("rbd", True, True) and one["size"] > 0, one
        assert vm.snapshots(0) == vm.snapshots(1) == ["s1"]
        held = on_disk(quorum, NAME, "s1")
        last = watch.wait_word(NAME, after=time.monotonic())
        assert held < last["counter"]
        refused = vm.task(snapshot="s1", state="reverted")
        assert refused["error"] == "Refused" and "discard_changes_since: s1" in refused["msg"]
        begin = time.monotonic()
        back = vm.same_twice(snapshot="s1", state="reverted", discard_changes_since="s1", id="CHG-1")
        went_on = first_word(watch, last["boot"])
        off = watch.longest_gap(NAME, begin)
    print(f"pause {pause:.2f} s, held {held}, said {last['counter']}, first word {went_on}, silent {off:.1f} s")
    print("lost:", back["lost"][NAME])
    assert went_on in (held + 1, held + 2) and went_on <= last["counter"]
    assert back["lost"][NAME]["bytes"] and pause <= LONGEST_PAUSE
    # Nothing was lost: what it was is in the safety snapshot, and there is a way to it.
    safety = "before-s1-CHG-1"
    kept = on_disk(quorum, NAME, safety)
    assert kept >= last["counter"] and vm.snapshots(1) == [safety, "s1"]
    vm.set_state("stopped")
    vm.good(snapshot=safety, state="reverted", discard_changes_since=safety, safety_snapshot=False)
    assert quorum.domains(vm.node)[NAME] == "shut off" and on_disk(quorum, NAME) == kept
    vm.set_state("running")
    assert len(vm.good(state="retained", keep=0)["actions"]) == 2 and vm.snapshots() == []


def test_a_vm_with_snapshots_moves(quorum, vm):
    vm.good(snapshot="s1", tags=["story"])
    source = vm.node
    other = "hv2" if source == "hv1" else "hv1"
    plan = quorum.play("drain_node", "--check", node=source).good()
    assert "snapshots, which libvirt" not in plan.output
    done = quorum.task(source, "migrate", name=NAME, to=other)
    assert not done["failed"] and done["verified"], done
    assert watchers(quorum, NAME) == [quorum.lab.topology.networks["storage"].address(number(quorum, other))]
    assert vm.node == other
    (one,) = vm.good(state="retained", keep=5)["vms"][0]["snapshots"]
    assert (one["name"], one["managed"], one["tags"], one["complete"]) == ("s1", True, ["story"], True)
    vm.good(snapshot="s1", state="absent")
    assert vm.snapshots() == []
    assert not quorum.task(other, "migrate", name=NAME, to=source)["failed"]


def test_what_others_made_is_left_alone(quorum, vm):
    quorum.ssh("q1", f"rbd snap create vms/drover-{NAME}-1@theirs")
    told = vm.task(snapshot="theirs")
    assert told["error"] == "Refused" and "has no part in it" in told["msg"]
    assert vm.task(snapshot="theirs", state="absent")["error"] == "Refused"
    assert not vm.good(state="retained", keep=0)["changed"] and vm.snapshots(1) == ["theirs"]


def test_a_killed_snapshot_is_made_anew_and_the_vm_goes_on(quorum, vm):
    given = {"snapshot": "k1", "tags": ["story"], "quiesce": "never"}
    kill_in(quorum, vm.node, NAME, PAUSING, **given)
    results: list[dict[str, Any]] = []

    def made() -> object:
        # Until the timer of the killed run has done its work it is refused.
        results.append(vm.task(**given))
        return not results[-1]["failed"] or results[-1]["msg"]

    wait_until(made, 90, "a run that is good")
    with Observer(quorum.lab) as watch:
        watch.wait_word(NAME)
    (one,) = [one for one in results[-1]["vms"][0]["snapshots"] if one["managed"]]
    assert (one["name"], one["complete"], one["tags"]) == ("k1", True, ["story"])
    vm.good(snapshot="k1", state="absent")


def test_a_killed_way_back_is_finished_and_nobody_starts_a_mixture(quorum, vm):
    vm.good(snapshot="r1", quiesce="never")
    held = on_disk(quorum, NAME, "r1")
    with Observer(quorum.lab) as watch:
        last = watch.wait_word(NAME, after=time.monotonic())
        act = {"snapshot": "r1", "state": "reverted", "discard_changes_since": "r1", "id": "K"}
        kill_in(quorum, vm.node, NAME, ROLLING, **act)
        said = quorum.ssh(vm.node, f"virsh start {NAME} 2>&1", check=False)
        assert "half set back to a snapshot" in said and quorum.domains(vm.node)[NAME] == "shut off", said
        other = vm.task(snapshot="r2")
        assert other["error"] == "Refused" and "half set back to r1" in other["msg"], other
        assert vm.good(**act)["changed"] and not vm.good(**act)["changed"]
        went_on = first_word(watch, last["boot"])
    assert went_on in (held + 1, held + 2) and on_disk(quorum, NAME, "before-r1-K") >= last["counter"]
    assert quorum.domains(vm.node)[NAME] == "running"
