# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of migrations that wait for long limits; the quick ones are in tests/lab."""

from __future__ import annotations

import time

from ansible_collections.drover.kvm.tests.lab.cluster import Cluster, wait_until
from ansible_collections.drover.kvm.tests.lab.migration import SLOW, Mover

HEARTBEAT_SECONDS = 20


def test_e8_with_the_destination_still_frozen_the_source_runs_again(mover: Mover) -> None:
    process = mover.start_slowly(stall_timeout=300)
    mover.freeze_before_finish()
    mover.kill_daemon(mover.source)
    result = mover.end(process)
    assert result["failed"] and result["details"]["where"] == mover.source
    mover.counts()
    mover.thaw()
    mover.hits("what is left at the destination", lambda: "paused" in (seen := mover.reason(mover.target)) or seen)
    recovered = mover.migrate(mover.third, state="recovered")
    assert recovered["changed"] and recovered["places"] == {mover.vm: mover.source}
    mover.rests_on(mover.source)
    assert not mover.migrate(mover.third, state="recovered")["changed"]


def test_a_dead_controller_begins_no_further_move(cluster: Cluster, mover: Mover) -> None:
    second = next(name for name, node in cluster.where().items() if node == mover.source and name != mover.vm)
    moves = [{"vm": mover.vm, "to": mover.target, "bandwidth": SLOW}, {"vm": second, "to": mover.target}]
    process = mover.start(mover.source, moves=moves, parallel=1)
    mover.hits("Perform", lambda: mover.phase(mover.source) == "perform3" or mover.stage())
    mover.kill_controller(process)
    wait_until(lambda: "running" in (seen := mover.reason(mover.target)) or seen, 90, "the end of the first move")
    # Nothing is to happen here, so there is no state to wait for: the time that the queue waits for a controller.
    time.sleep(HEARTBEAT_SECONDS + 5)
    assert cluster.where()[second] == mover.source
    mover.rests_on(mover.target)
    result = mover.migrate(mover.source, moves=moves)
    assert [one["changed"] for one in result["results"]] == [False, True]
    result = mover.migrate(mover.target, name=second, to=mover.source)
    assert result.get("verified"), result
