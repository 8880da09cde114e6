# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole cycle over nodes: each in turn is emptied and filled again, and all is known before the first move."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from . import maintenance
from .consolidate import moved
from .drain import drain
from .model import Cluster, Plan
from .undrain import one_way, undrain


@dataclass(frozen=True)
class Step:
    """One part of the cycle: which node, `drain` or `undrain`, the cluster as it finds it, and what it does."""

    node: str
    what: str
    cluster: Cluster
    plan: Plan


def rolling(
    cluster: Cluster, nodes: Sequence[str], room: bool = True, come_home: bool = True, only_fill: Collection[str] = ()
) -> Iterator[Step]:
    """The steps in their order, each planned on what the one before leaves; a step with blockers is still gone on from.

    With `come_home` the guests of a node come back before the next one is emptied, so that each guest moves twice and
    all are where they were. Without it the next node's guests mostly go to the node that was just emptied, which is the
    least busy: each moves about once, and ends elsewhere; what was shut down for the turn starts again. The nodes of
    `only_fill` are not emptied: that was done, and all that is missing there is the way home.
    """
    for name in nodes:
        if name not in only_fill:
            leaving = drain(cluster, [name], room)
            yield Step(name, "drain", cluster, leaving)
            cluster = maintenance.after(cluster, leaving)
            cluster = moved(_with_homes(cluster, leaving) if come_home else cluster, list(leaving.moves))
        home = come_home or name in only_fill
        returning = undrain(cluster, [name], home)
        if home or returning.starts or returning.blockers:
            yield Step(name, "undrain", one_way(cluster), returning)
            cluster = moved(maintenance.after(cluster, returning), list(returning.moves))
        if name in cluster.nodes:
            # The end of its turn lifts its cordon, which an earlier run may have left.
            cluster = replace(cluster, nodes={**cluster.nodes, name: replace(cluster.nodes[name], cordon=None)})


def _with_homes(cluster: Cluster, plan: Plan) -> Cluster:
    """As migrate leaves them behind: a guest that has no home yet remembers the node that it leaves."""
    leaving = {(each.vm, each.source) for each in plan.moves}
    guests = (replace(g, home=g.home or g.node) if g.key in leaving else g for g in cluster.guests)
    return replace(cluster, guests=tuple(guests))
